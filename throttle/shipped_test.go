package throttle

import (
	"os"
	"strings"
	"testing"
	"time"

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
		{"553 5.7.2 [TSS09] All messages from 192.0.2.1 will be permanently deferred", "mta5.am0.yahoodns.net", "tss09", ScopeSource, VerbSuspend, true},
		{"553 5.7.1 [BL21] Connections will not be accepted", "mta5.am0.yahoodns.net", "spamhaus", ScopeSource, VerbDisable, true},
		{"451 4.7.652 exceeded the maximum number of connections (S3115)", "hotmail-com.olc.protection.outlook.com", "connections", ScopeSource, VerbConnections, false},
		{"550 5.7.515 does not meet the required authentication level", "hotmail-com.olc.protection.outlook.com", "authentication-level", ScopeDKIMDomain, VerbSuspend, true},
		{"421 Trop de connexions, veuillez verifier votre configuration", "smtp-in.orange.fr", "connections", ScopeSource, VerbConnections, false},
		{"550 5.1.0 LPN007_405", "smtpz4.laposte.net", "sender", ScopeSenderDomain, VerbAlert, true},
		{"452 Too many messages in this session. AUP#I-1540", "mx0.charter.net", "session", ScopeConnection, VerbReconnect, false},
		{"421 4.7.0 AUP#O-1340", "mx0.charter.net", "connections", ScopeSource, VerbConnections, false},
		{"450 4.2.1 Mailbox rate limit exceeded", "inmx.rambler.ru", "recipient-rate", ScopeRecipient, VerbRetry, false},
		{"452 4.5.3 rate limit exceeded", "inmx.rambler.ru", "rate", ScopeSource, VerbBackoff, false},
		{"554 MI:SPB 163 mx1", "163mx01.mxmail.netease.com", "spam", ScopeMessage, VerbAlert, true},
		{"550 RP:ORQ 163 mx1", "163mx01.mxmail.netease.com", "daily-limit", ScopeSource, VerbSuspend, false},
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

// TestShippedLimitsHoldAtTheHostsTheyAreMeantFor asks for each provider whose
// figures somebody has published, by the name of a host of its own.
func TestShippedLimitsHoldAtTheHostsTheyAreMeantFor(t *testing.T) {
	t.Parallel()
	eng := New(shipped(t), Options{Now: func() time.Time { return epoch }})
	for _, c := range []struct {
		host, domain, provider string
		connections, messages  int64
		basis                  string // of the connections
	}{
		{"mx.nobody.example", "", "default", 10, 100, "community"},
		{"alt1.gmail-smtp-in.l.google.com", "", "gmail", 5, 50, "community"},
		{"aspmx2.googlemail.com", "", "gmail", 5, 50, "community"},
		{"mta5.am0.yahoodns.net", "", "yahoo", 10, 20, "community"},
		{"mx-att.mail.am0.yahoodns.net", "att.net", "yahoo", 10, 20, "community"},
		{"mx1.mail.yahoo.co.jp", "yahoo.co.jp", "yahoo-japan", 2, 20, "community"},
		{"outlook-com.olc.protection.outlook.com", "", "outlook", 5, 50, "community"},
		{"x-example.mail.protection.outlook.com", "", "exchange-online", 5, 50, "community"},
		{"x-example.a-v1.mx.microsoft", "", "exchange-online", 5, 50, "community"},
		{"mx01.mail.icloud.com", "", "icloud", 10, 5, "community"},
		{"mx2h1.comcast.net", "", "comcast", 25, 1000, "published"},
		{"cxr.mx.a.cloudfilter.cox.net", "", "cox", 5, 100, "community"},
		{"mx0.charter.net", "", "spectrum", 2, 10, "guess"},
		{"smtp-in.orange.fr", "", "orange", 2, 100, "community"},
		{"smtpz4.laposte.net", "", "laposte", 2, 100, "community"},
		{"smtp-in.sfr.fr", "", "sfr", 2, 100, "guess"},
		{"mx1.free.fr", "", "free", 1, 100, "guess"},
		{"mx00.emig.gmx.net", "", "gmx", 4, 20, "community"},
		{"mx-ha02.web.de", "", "gmx", 4, 20, "community"},
		{"mx00.mail.com", "", "mailcom", 4, 100, "community"},
		{"mx00.t-online.de", "", "t-online", 2, 100, "guess"},
		{"mxs.mail.ru", "", "mailru", 10, 100, "guess"},
		{"mx.yandex.ru", "", "yandex", 10, 100, "guess"},
		{"eu-smtp-inbound-1.mimecast.com", "", "mimecast", 10, 100, "community"},
		{"d1.ess.barracudanetworks.com", "", "barracuda", 10, 15, "community"},
		{"mx1.netvigator.com", "", "netvigator", 5, 10, "community"},
		{"mx1.kpnmail.nl", "", "kpn", 10, 10, "community"},
		{"mx3.qq.com", "", "qq", 4, 8, "community"},
		{"163mx01.mxmail.netease.com", "", "netease", 4, 7, "community"},
	} {
		l := eng.Lane(Target{Source: "ip1", Site: c.host, Hosts: []string{c.host}, Domain: c.domain})
		eff := l.Limits(c.domain)
		messages, _ := eff.Count(KeyMessagesPerConnection)
		connections, _ := eff.Count(KeyConnections)
		basis, _, _ := strings.Cut(eff.val[KeyConnections].Origin.Basis, " ")
		if l.Provider() != c.provider || connections != c.connections || messages != c.messages || basis != c.basis {
			t.Errorf("%s: provider %q, %d connections (%s), %d messages on each; want %q, %d (%s), %d",
				c.host, l.Provider(), connections, basis, messages, c.provider, c.connections, c.basis, c.messages)
		}
		l.Close()
	}
}
