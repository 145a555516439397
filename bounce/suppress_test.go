package bounce

import "testing"

// TestNothingButAGoneRecipientSuppresses lists words near those of a missing
// mailbox. A wrong answer here loses a customer.
func TestNothingButAGoneRecipientSuppresses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"5.1.0 - Unknown address error 554-'Service unavailable; Client host [192.0.2.1] blocked using Spamhaus'",
		"550 5.1.8 <a@example.com>: Sender address rejected: User unknown in local recipient table",
		"550 sender not found: user unknown",
		"550 5.1.1 <a@example.com>: Recipient address rejected: unverified address: Connection timed out; try again later",
		"554 5.7.1 <out.example.com[192.0.2.1]>: Client host rejected: cannot find your hostname",
		"550 5.7.1 <a@example.com>: Recipient address rejected: Please see http://example.com/policy",
		"550 Invalid HELO: host not found",
		"550 HELO: domain does not exist",
		"553 5.1.8 Domain of sender address a@example.com does not exist",
		"550 5.7.1 Sender domain does not exist",
		"501 5.1.7 Invalid address: sender@example.com is not a valid sender",
		"550 Your IP is not registered here, no such host",
		"450 4.1.1 <a@example.com>: Recipient address rejected: User unknown in local recipient table",
		"451 4.3.0 <a@example.com>: Temporary lookup failure",
		"550 5.7.1 Message rejected because our database does not exist",
		"554 5.7.1 You are not allowed to connect, unknown host 192.0.2.1",
		"550 5.2.1 Mailbox disabled, not accepting messages",
		"550 5.2.2 mailbox full, user unknown to have quota",
		"550 5.4.1 Recipient address rejected: Access denied",
		"550 5.7.0 Our system detected spam; no such user will ever read it",
		"550 permanent failure for one or more recipients (a@example.com:blocked)",
		"550 5.7.1 recipient does not exist in your address book; sender blocked",
		"554 5.7.1 The file attached does not exist",
		"550 5.3.0 The server configuration does not exist",
		"550 Administrative prohibition",
		"550 relay not permitted: unknown domain",
		"550 5.7.1 Unable to relay for a@example.com",
		"554 5.5.1 Error: no valid recipients",
		"550 5.1.1 RCP-P2 Refused due to recipient preferences",
		"550 : User unknown",
		"550 5.2.0 User unknown",
		"554 Mailbox unavailable or access denied",
		"550 Requested action not taken: mailbox unavailable",
		"550 5.0.0 Requested action not taken",
		"550 5.6.0 header From: no such address syntax",
		"550 dnsbl: domain not found in whitelist, IP blocked",
		"550 The domain of your address does not exist",
		"host not found, try again",
		"Name service error for name=example.org type=MX: Host not found, try again",
		"mail: 550 no such user",
		"banner: 554 no such user here",
		"ehlo: 550 unknown host",
		"dot: 550 Unknown user",
		"mx:mfsmax.docomo.ne.jp rcpt: 550 Unknown user",
		"The person you wrote to is on holiday",
		"",
	} {
		r, host := parseExample(s)
		if v := shipped(t).Classify(r, host); v.Suppress {
			t.Errorf("%q suppresses by rule %q (%s)", s, v.Rule, v.Category)
		}
	}
}

// TestAGoneRecipientSuppresses is the other side: missed ones burn reputation.
func TestAGoneRecipientSuppresses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"550 5.1.1 <a@example.com>... User unknown",
		"rcpt: 550 5.1.1 <a@example.com>: Recipient address rejected: User unknown in virtual alias table",
		"550 No such user here",
		"550-5.1.1 The email account that you tried to reach does not exist.",
		"550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
		"550 5.1.1 RESOLVER.ADR.RecipNotFound; not found",
		"550 Invalid recipient a@example.com (#5.1.1)",
		"550 5.1.1 sorry, no mailbox here by that name",
		"554 delivery error: dd This user doesn't have a yahoo.com account (a@yahoo.com) [-9]",
		"552 1 Requested mail action aborted, mailbox not found",
		"550 5.1.1 unknown or illegal alias: a@example.com",
		"550 <a@example.com> is not a valid mailbox",
		"550 Mailbox does not exist",
		"553 sorry, this recipient is not in my validrcptto list (#5.7.1): no such user",
		"550 5.7.1 No such user!",
		"550 Account not found",
		"550 #5.1.0 Address rejected: unknown recipient",
		"550 5.1.1 User a@example.com does not exist in our system: user does not exist",
		"551 not our customer",
		"550 5.1.1 adresse inconnue",
		"resolve: no such domain",
		"Host or domain name not found. Name service error for name=example.org type=A: Host not found",
		"550 5.1.2 <a@example.org>... Host unknown (Name server: example.org: host not found)",
		"Unrouteable address",
		"550 5.1.1 zut alors",
	} {
		r, host := parseExample(s)
		if v := shipped(t).Classify(r, host); !v.Suppress {
			t.Errorf("%q does not suppress: rule %q (%s, permanent %v)", s, v.Rule, v.Category, v.Permanent)
		}
	}
}
