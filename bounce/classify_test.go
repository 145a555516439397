package bounce

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

var shippedOnce = sync.OnceValues(func() (*Classifier, error) {
	data, err := os.ReadFile("../configs/bounce.toml")
	if err != nil {
		return nil, err
	}
	return NewClassifier(data)
})

// shipped is the classifier with the rules we ship, shared by all tests: it is
// safe for concurrent use, and the tests rely on that.
func shipped(t testing.TB) *Classifier {
	t.Helper()
	c, err := shippedOnce()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestShippedRulesPassTheirOwnExamples(t *testing.T) {
	t.Parallel()
	for _, p := range shipped(t).SelfTest() {
		t.Error(p)
	}
}

// TestRepliesOfProviders holds the replies that the provider tables describe
// to what they ask for.
func TestRepliesOfProviders(t *testing.T) {
	t.Parallel()
	const yes, no = true, false
	for _, test := range []struct {
		reply               string
		category            string
		permanent, suppress bool
	}{
		// Gmail
		{"421 4.7.28 Our system has detected an unusual rate of unsolicited mail originating from your IP address", "rate", no, no},
		{"550 5.7.28 Our system has detected an unusual rate of unsolicited mail", "rate", yes, no},
		{"421 4.7.0 This message is suspicious due to the very low reputation of the sending IP address", "policy-related", no, no},
		{"421 4.7.26 Your email has been rate limited because it is unauthenticated. Gmail requires all senders to authenticate with either SPF or DKIM.", "policy-related", no, no},
		{"421 5.7.32 Your email has been temporarily deferred because the From: header isn't aligned with either the authenticated SPF or DKIM organizational domain", "policy-related", no, no},
		{"550 5.7.25 The IP address sending this message does not have a PTR record", "policy-related", yes, no},
		{"450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages", "rate", no, no},
		{"550 5.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages", "rate", no, no},
		{"452 4.2.2 The recipient's inbox is out of storage space", "quota-issues", no, no},
		{"552 5.2.2 The recipient's inbox is out of storage space and inactive", "quota-issues", yes, no},
		{"550 5.1.1 The email account that you tried to reach does not exist", "bad-mailbox", yes, yes},
		{"550 5.2.1 The email account that you tried to reach is inactive", "inactive-mailbox", yes, no},
		{"552 5.3.4 Your message exceeded Google's message size limits", "quota-issues", yes, no},
		{"554 5.4.6 Message exceeded 50 hops; possible mail loop", "routing-errors", yes, no},
		// Yahoo
		{"421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1", "rate", no, no},
		{"553 5.7.2 [TSS09] All messages from 192.0.2.1 will be permanently deferred", "policy-related", yes, no},
		{"553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list", "policy-related", yes, no},
		{"554 delivery error: dd This user doesn't have a yahoo.com account (a@yahoo.com) [0] - mta1", "bad-mailbox", yes, yes},
		{"554 delivery error: dd Requested mail action aborted, mailbox not found [-5]", "bad-mailbox", yes, yes},
		{"450 User is receiving mail too quickly", "rate", no, no},
		{"421 Max message per connection reached, closing transmission channel", "rate", no, no},
		// Microsoft
		{"451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation (S775)", "policy-related", no, no},
		{"550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. part of their network is on our block list (S3140)", "policy-related", yes, no},
		{"550 5.7.515 Access denied, sending domain example.com does not meet the required authentication level.", "policy-related", yes, no},
		{"554 5.2.121 Recipient's per hour message receive limit from specific sender exceeded", "rate", no, no},
		{"450 4.7.3 Organization queue quota exceeded.", "rate", no, no},
		{"550 5.5.0 Requested action not taken: mailbox unavailable", "inactive-mailbox", yes, no},
		{"550 5.4.1 Recipient address rejected: Access denied.", "bad-mailbox", yes, no},
		{"451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (AS77712344)", "rate", no, no},
		{"452 4.5.3 Recipients belong to multiple regions ATTR38", "rate", no, no},
		// Apple, Comcast, Cox
		{"552 5.2.2 <a@icloud.com>: user is over quota", "quota-issues", yes, no},
		{"550 5.1.1 <a@comcast.net> Not our Customer", "bad-mailbox", yes, yes},
		{"452 4.1.1 too many recent messages", "rate", no, no},
		// Europe
		{"550 5.1.1 Adresse d au moins un destinataire invalide. Invalid recipient. OFR_416 [416]", "bad-mailbox", yes, yes},
		{"421 mwinf5c04 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR004_104 [104]", "rate", no, no},
		{"554 IP=192.0.2.1 - A problem occurred. (Ask your postmaster for help or to contact tosa@rx.t-online.de to clarify.) (NOWL)", "policy-related", yes, no},
		{"540 5.7.1 <a@rambler.ru>: recipient address rejected: Inactive", "inactive-mailbox", yes, no},
		{"550 spam message rejected. Please visit http://help.mail.ru/notspam-support/id", "spam-related", yes, no},
		// Gateways and Asia
		{"550 Ip frequency limited [abc]", "rate", no, no},
		{"421 4.1.1 address verification in progress", "rate", no, no},
		{"451 4.7.1 Greylisted for 5 minutes", "rate", no, no},
		{"550 5.7.1 Your message was blocked using prs.proofpoint.com", "policy-related", yes, no},
		// Our own words
		{"resolve: 0 5.4.4 no such domain", "bad-domain", yes, yes},
		// A 4xx never suppresses, nor does anything before RCPT.
		{"450 4.1.1 <a@example.com>: no such user", "bad-mailbox", no, no},
		{"mail: 550 5.1.1 user unknown", "bad-mailbox", yes, no},
		{"banner: 554 no such user", "bad-mailbox", yes, no},
		// Unknown words
		{"250 whatever", "other", no, no},
		{"450 blorb", "other", no, no},
		{"550 blorb", "other", yes, no},
		{"blorb", "other", no, no},
		{"", "other", no, no},
	} {
		r, host := parseExample(strings.Replace(test.reply, ": 0 ", ": ", 1))
		got := shipped(t).Classify(r, host)
		if got.Category.String() != test.category || got.Permanent != test.permanent || got.Suppress != test.suppress {
			t.Errorf("%q: %s permanent %v suppress %v by rule %q, want %s %v %v", test.reply,
				got.Category, got.Permanent, got.Suppress, got.Rule, test.category, test.permanent, test.suppress)
		}
	}
}

func TestVerdictDoesNotDependOnTheCache(t *testing.T) {
	t.Parallel()
	c := shipped(t)
	var replies []*message.Reply
	for i := range c.rules {
		for _, s := range append(c.rules[i].spec.Match, c.rules[i].spec.Not...) {
			r, _ := parseExample(s)
			replies = append(replies, r)
		}
	}
	fresh := make([]Verdict, len(replies))
	for i, r := range replies {
		fresh[i] = c.decide(r, "", string(normalise(nil, r.Text)))
	}
	c2 := &Classifier{rules: c.rules, literals: c.literals, matcher: c.matcher, firstBare: c.firstBare, suffixes: c.suffixes}
	c2.cache.limit = 20 // turns over all the time
	random := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		i := random.IntN(len(replies))
		if got := c2.Classify(replies[i], ""); got != fresh[i] {
			t.Fatalf("%q: %+v, without the cache %+v", replies[i].Text, got, fresh[i])
		}
	}
	if n := len(c2.cache.young) + len(c2.cache.old); n > 40 {
		t.Errorf("the cache holds %d entries, the limit is 40", n)
	}
}

func TestRepliesThatDifferInNamesOnlyShareACacheEntry(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ in, want string }{
		{"<Alice@Example.ORG>: User  unknown", "<@>: user unknown"},
		{"host 192.0.2.1 blocked", "host # blocked"},
		{"id=98e67ed59e1d1-2c819db36a9si6099002a91.116 - gsmtp", "# - gsmtp"},
		{"queued 123456", "queued #"},
		{"5.7.1 and 550 and OFR_506 stay", "5.7.1 and 550 and ofr_506 stay"},
		{"denied...7d39d5299584f4be161127e61f5f5400...", "denied..#.."},
		{" \t\r\n", ""},
		{"ends at 192.0.2.1.", "ends at #"},
	} {
		if got := string(normalise(nil, test.in)); got != test.want {
			t.Errorf("normalise(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}

func TestRuleFileMistakesAreAllNamed(t *testing.T) {
	t.Parallel()
	_, err := NewClassifier([]byte(`
version = 2
[[rule]]
name = "a"
category = "no-such"
permanent = "maybe"
confidence = 101
colour = "red"
text = ["User Unknown", "ab", "x@example.com"]
regexp = ["(", "a|b"]
code = ["5x", "650"]
enhanced = ["5.1", "a.b.c"]
stage = ["lunch"]
[[rule]]
name = "a"
category = "other"
permanent = "no"
suppress = true
[[rule]]
category = "other"
text = ["late words"]
`))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"version is 2", `"no-such"`, `"maybe"`, "101", "colour", `write "user unknown"`, "shorter than three", `write "@"`,
		"regexp \"(\"", "regexp \"a|b\"", `code "5x"`, `code "650"`, `enhanced "5.1"`, `enhanced "a.b.c"`, `"lunch"`,
		"name is used twice", "never permanent", "has no name", "words come before codes",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %s:\n%v", want, err)
		}
	}
}

func TestSelfTestFindsDeadRules(t *testing.T) {
	t.Parallel()
	c, err := NewClassifier([]byte(`
version = 1
[[rule]]
name = "first"
category = "other"
text = ["unknown"]
match = ["550 unknown"]
[[rule]]
name = "shadowed"
category = "bad-mailbox"
text = ["user unknown"]
match = ["550 user unknown"]
[[rule]]
name = "untested"
category = "bad-mailbox"
text = ["gone fishing"]
[[rule]]
name = "greedy"
category = "bad-mailbox"
text = ["no such"]
match = ["no such user"]
not = ["no such luck"]
`))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(c.SelfTest())
	for _, want := range []string{
		`shadowed: Example "550 user unknown" was decided by rule "first"`, `shadowed: Text "user unknown" is never reached`,
		"untested: It has no example", `greedy: Example "no such luck" in not was matched`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("SelfTest does not report %s:\n%s", want, got)
		}
	}
}

func TestConditionsOfARuleAllHold(t *testing.T) {
	t.Parallel()
	c, err := NewClassifier([]byte(`
version = 1
[[rule]]
name = "picky"
category = "rate"
text = ["slow"]
unless = ["not slow"]
code = ["45x"]
enhanced = ["4.7.*"]
stage = ["rcpt"]
mx = ["example.com"]
match = ["mx:mx1.example.com rcpt: 451 4.7.1 slow down"]
not = [
  "mx:mx1.example.com rcpt: 451 4.7.1 not slow", "mx:mx1.example.com rcpt: 461 4.7.1 slow", "mx:mx1.example.com rcpt: 451 4.3.1 slow",
  "mx:mx1.example.com rcpt: 451 slow", "mx:mx1.example.com mail: 451 4.7.1 slow", "mx:mx.badexample.com rcpt: 451 4.7.1 slow", "rcpt: 451 4.7.1 slow",
]
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.SelfTest() {
		t.Error(p)
	}
	if v := c.Classify(&message.Reply{Code: 451, Enhanced: message.Enhanced{4, 7, 1}, Stage: message.StageRcpt, Text: "slow"}, "MX.Example.COM."); v.Rule != "picky" {
		t.Errorf("a host name in capitals with a dot was decided by %q", v.Rule)
	}
}

func FuzzClassify(f *testing.F) {
	for i := range shipped(f).rules {
		for _, s := range shipped(f).rules[i].spec.Match {
			f.Add(s, uint16(550), uint8(8))
		}
	}
	f.Add(strings.Repeat("user unknown \xff\x00@", 500), uint16(9999), uint8(200))
	f.Fuzz(func(t *testing.T, text string, code uint16, stage uint8) {
		c := shipped(t)
		r, host := parseExample(text)
		if r.Code == 0 {
			r.Code = int(code)
		}
		r.Stage = message.Stage(stage % 14)
		v := c.Classify(r, host)
		if again := c.Classify(r, host); again != v {
			t.Fatalf("first %+v, then %+v", v, again)
		}
		if v.Suppress && (!v.Permanent || r.Code >= 400 && r.Code < 500 || v.Category != message.BadMailbox && v.Category != message.BadDomain) {
			t.Fatalf("%q suppresses: %+v", text, v)
		}
	})
}

var benchReplies = []string{
	"550-5.1.1 The email account that you tried to reach does not exist. Please try 550-5.1.1 double-checking the recipient's email address for typos or 550-5.1.1 unnecessary spaces.",
	"<alice@example.org>: Recipient address rejected: User unknown in local recipient table",
	"[TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes",
	"Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
}

func BenchmarkClassifyHit(b *testing.B) {
	c := shipped(b)
	replies := make([]*message.Reply, len(benchReplies))
	for i, s := range benchReplies {
		replies[i] = &message.Reply{Code: 550, Text: s, Stage: message.StageRcpt}
		c.Classify(replies[i], "mx.example.org")
	}
	b.ReportAllocs()
	done := cpuPerOp(b)
	for i := 0; b.Loop(); i++ {
		c.Classify(replies[i&3], "mx.example.org")
	}
	done()
}

func BenchmarkClassifyMiss(b *testing.B) {
	c := shipped(b)
	replies := make([]*message.Reply, len(benchReplies))
	texts := make([]string, len(benchReplies))
	for i, s := range benchReplies {
		replies[i] = &message.Reply{Code: 550, Text: s, Stage: message.StageRcpt}
		texts[i] = string(normalise(nil, s))
	}
	b.ReportAllocs()
	done := cpuPerOp(b)
	for i := 0; b.Loop(); i++ {
		c.decide(replies[i&3], "mx.example.org", texts[i&3])
	}
	done()
}

func BenchmarkNewClassifier(b *testing.B) {
	data, err := os.ReadFile("../configs/bounce.toml")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := NewClassifier(data); err != nil {
			b.Fatal(err)
		}
	}
}
