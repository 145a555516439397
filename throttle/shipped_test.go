package throttle

import (
	"os"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

// shipped loads configs/shaping.toml.
func shipped(t testing.TB) *Rules {
	t.Helper()
	data, err := os.ReadFile("../configs/shaping.toml")
	if err != nil {
		t.Fatal(err)
	}
	r, problems := Load(File{Name: "shaping.toml", Data: data})
	for _, p := range problems {
		t.Errorf("%v", p)
	}
	return r
}

func TestShippedRulesPassTheirOwnExamples(t *testing.T) {
	t.Parallel()
	r := shipped(t)
	for _, p := range r.Check() {
		t.Errorf("%v", p)
	}
	if got := len(r.Providers()); got < 30 {
		t.Errorf("%d providers, want at least 30", got)
	}
}

func TestEveryShippedValueSaysWhereItComesFrom(t *testing.T) {
	t.Parallel()
	r := shipped(t)
	check := func(o Origin) {
		words := strings.Fields(o.Basis)
		if len(words) < 2 {
			t.Errorf("%v: basis %q, want published, community or guess with a source or date", o, o.Basis)
		}
	}
	sections := []*section{&r.def}
	for _, p := range r.providers {
		sections = append(sections, &p.section)
	}
	for _, s := range sections {
		for _, v := range s.val {
			if v != nil {
				check(v.Origin)
			}
		}
		for _, rule := range s.rules {
			check(rule.Origin)
			if len(rule.Not) == 0 {
				t.Errorf("%v: has no reply that it must not match", rule.Origin)
			}
		}
	}
}

func TestShippedRulesReadProvidersAsTheyMeanIt(t *testing.T) {
	t.Parallel()
	r := shipped(t)
	for _, c := range []struct {
		reply, host string
		rule        string
		scope       Scope
		action      Verb
		permanent   bool
	}{
		{"421-4.7.28 Gmail has detected an unusual rate of unsolicited mail originating\n421 4.7.28 from your IP Netblock.", "gmail-smtp-in.l.google.com", "quota-netblock", ScopeNetblock, VerbRecover, false},
		{"421-4.7.28 Gmail has detected an unusual rate of mail originating from your\n421 4.7.28 DKIM domain [example.com 35].", "aspmx.l.google.com", "quota-dkim", ScopeDKIMDomain, VerbRecover, false},
		{"550 5.7.28 Gmail has detected an unusual rate of mail.", "alt1.aspmx.l.google.com", "quota-permanent", ScopeIdentity, VerbRecover, true},
		{"550 5.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages", "aspmx.l.google.com", "recipient-rate", ScopeRecipient, VerbTemporary, false},
		{"421 5.7.32 not aligned", "aspmx.l.google.com", "unaligned", ScopeDKIMDomain, VerbSuspend, false},
		{"421 Max message per connection reached", "mx-att.mail.am0.yahoodns.net", "connection-full", ScopeConnection, VerbReconnect, false},
		{"550 Domain frequency limited [abc]", "mx3.qq.com", "frequency-domain", ScopeSenderDomain, VerbSuspend, false},
		{"554 5.2.121 per hour limit", "hotmail-com.olc.protection.outlook.com", "recipient-hourly", ScopeRecipient, VerbTemporary, false},
		{"452 4.5.3 Recipients belong to multiple regions ATTR38", "outlook-com.olc.protection.outlook.com", "regions", ScopeConnection, VerbSplit, false},
		{"550 5.4.1 Recipient address rejected: Access denied", "x.mail.protection.outlook.com", "access-denied", ScopeRecipient, VerbNone, true},
		{"550 5.1.1 user unknown", "mx.nobody.example", "", ScopeNone, VerbNone, true},
		{"450 4.2.0 Greylisted", "mx.nobody.example", "greylisted", ScopeRecipient, VerbRetry, false},
	} {
		reply, err := message.ParseReply(c.reply)
		if err != nil {
			t.Fatal(err)
		}
		x := r.ExplainReply(reply, c.host, "")
		if x.Rule != c.rule || x.Scope != c.scope || x.Action != c.action || x.Permanent != c.permanent {
			t.Errorf("%q from %s: rule %q, %v, %v, permanent %v; want %q, %v, %v, %v",
				c.reply, c.host, x.Rule, x.Scope, x.Action, x.Permanent, c.rule, c.scope, c.action, c.permanent)
		}
	}
}
