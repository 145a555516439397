package throttle

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/tradewind-mta/tradewind/message"
)

const (
	byIP       = "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP address."
	byNetblock = "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP Netblock."
	byDKIM     = "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your DKIM domain [a.example 35]."
	bySPF      = "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your SPF domain [b.a.example 35]."
	byURL      = "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail containing one of your URL domains."
	byMessage  = "421 4.7.28 Gmail has detected this message exceeded its quota for sending messages with the same Message-ID."
	byNothing  = "421 4.7.28 Gmail has detected an unusual rate of mail."
	forGood    = "550 5.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP address."
)

// gmail is a few sources towards Google under the shipped rules.
type gmail struct {
	t     *testing.T
	eng   *Engine
	now   time.Time
	lanes map[string]*Lane // by source
}

func newGmail(t *testing.T) *gmail {
	g := &gmail{t: t, now: epoch, lanes: map[string]*Lane{}}
	g.eng = New(shipped(t), Options{Now: func() time.Time { return g.now }, Registerer: prometheus.NewRegistry()})
	for name, addr := range map[string]string{"ip1": "198.51.100.1", "ip2": "198.51.100.2", "ip3": "203.0.113.1"} {
		g.lanes[name] = g.eng.Lane(Target{
			Source: name, SourceAddr: netip.MustParseAddr(addr), Pool: "bulk",
			Site: "gmail", Hosts: []string{"gmail-smtp-in.l.google.com"}, Domain: "gmail.com",
		})
	}
	return g
}

// mailA and mailB share nothing but the tenant.
var (
	mailA = Mail{Domain: "gmail.com", Tenant: "t", Campaign: "a", SenderDomain: "b.a.example", DKIMDomain: "a.example"}
	mailB = Mail{Domain: "gmail.com", Tenant: "t", Campaign: "b", SenderDomain: "b.b.example", DKIMDomain: "b.example"}
)

// observe feeds a reply, "" for success.
func (g *gmail) observe(source string, m Mail, reply string) []Action {
	g.t.Helper()
	o := &Observation{
		Result: message.Delivered, Domain: m.Domain, Tenant: m.Tenant, Campaign: m.Campaign,
		SenderDomain: m.SenderDomain, DKIMDomain: m.DKIMDomain,
	}
	if reply != "" {
		r, err := message.ParseReply(reply)
		if err != nil {
			g.t.Fatal(err)
		}
		r.Stage = message.StageDot
		o.Result, o.Reply = message.Deferred, r
	}
	return g.lanes[source].Observe(g.now, o)
}

// may reports whether a transaction would be granted now.
func (g *gmail) may(source string, m Mail) bool {
	// A second later than any before, so that only holds are asked.
	g.now = g.now.Add(time.Second)
	grant := g.lanes[source].Send(g.now, m)
	grant.Release()
	return grant.OK
}

// connections opens as many as are granted and closes them again.
func (g *gmail) connections(source string) int {
	var open []Grant
	for len(open) < 100 {
		grant := g.lanes[source].Connect(g.now, netip.Addr{})
		if !grant.OK {
			// The pace of new connections is not what is asked for here.
			if grant.Limit != LimitConnectionRate {
				break
			}
			g.now = grant.At
			continue
		}
		open = append(open, grant)
	}
	for i := range open {
		open[i].Release()
	}
	return len(open)
}

// transactions starts as many as are granted at once and ends them again.
func (g *gmail) transactions(source string, m Mail) int {
	var open []Grant
	for len(open) < 50 {
		grant := g.lanes[source].Send(g.now, m)
		if !grant.OK {
			if grant.Limit != LimitRate {
				break
			}
			g.now = grant.At
			continue
		}
		open = append(open, grant)
	}
	for i := range open {
		open[i].Release()
	}
	return len(open)
}

func kinds(actions []Action) string {
	var s []string
	for _, a := range actions {
		s = append(s, a.Kind.String())
	}
	return strings.Join(s, " ")
}

func TestScopeOfAGmailQuotaIsReadFromTheReply(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, reply string
		// who may send afterwards: mail A through ip1 was deferred
		sameMail, otherMail, sameMailOtherIP, otherBlock bool
	}{
		{"ip", byIP, false, false, true, true},
		{"netblock", byNetblock, false, false, false, true},
		{"dkim domain", byDKIM, false, true, false, false},
		{"spf domain", bySPF, false, true, false, false},
		{"url", byURL, false, true, false, false},
		{"message", byMessage, true, true, true, true},
		{"nothing named", byNothing, false, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newGmail(t)
			actions := g.observe("ip1", mailA, c.reply)
			if len(actions) == 0 || actions[0].Kind != ActDefer && actions[0].Kind != ActRetryAt {
				t.Fatalf("actions %q", kinds(actions))
			}
			if wait := actions[0].Until.Sub(epoch); wait < 10*time.Minute {
				t.Errorf("deferred for %v, want at least 10m", wait)
			}
			for _, try := range []struct {
				what   string
				source string
				mail   Mail
				want   bool
			}{
				{"same mail", "ip1", mailA, c.sameMail},
				{"other mail", "ip1", mailB, c.otherMail},
				{"same mail through another address of the block", "ip2", mailA, c.sameMailOtherIP},
				{"same mail through another block", "ip3", mailA, c.otherBlock},
				{"other mail through another block", "ip3", mailB, true},
			} {
				if got := g.may(try.source, try.mail); got != try.want {
					t.Errorf("%s may be sent: %v, want %v", try.what, got, try.want)
				}
			}
		})
	}
}

// TestGmailRecoveryRowByRow walks through Google's procedure, one change of
// state after the other:
//
//	1 normal, deferred: held        6 probe, accepted: ramp of two
//	2 normal, 5xx: held, bounced    7 ramp, a step worked: one more
//	3 held, time is over: probe     8 ramp, deferred: held
//	4 held: nothing is tried        9 ramp at the limit: normal
//	5 probe, deferred: held
func TestGmailRecoveryRowByRow(t *testing.T) {
	t.Parallel()
	g := newGmail(t)
	if n := g.connections("ip1"); n != 5 {
		t.Fatalf("normal: %d connections, want 5", n)
	}
	// Row 1: deferred with a scope. Hold ten minutes, close the connections.
	began := g.now
	actions := g.observe("ip1", mailA, byIP)
	if got := kinds(actions); got != "defer-until close throttle" {
		t.Errorf("row 1: actions %q", got)
	}
	if e := actions[2].Event; e == nil || e.Type != message.EventEgressThrottled || e.Egress.Provider != "gmail" || !strings.Contains(e.Detail, "quota-ip") {
		t.Errorf("row 1: event %+v", e)
	}
	if want := began.Add(10 * time.Minute); !actions[0].Until.Equal(want) || actions[0].Spread == 0 {
		t.Errorf("row 1: until %v spread over %v, want %v", actions[0].Until, actions[0].Spread, want)
	}
	// Row 4: while held nothing is tried, and the refusal says until when.
	g.now = began.Add(9*time.Minute + 59*time.Second)
	for _, grant := range []Grant{g.lanes["ip1"].Connect(g.now, netip.Addr{}), g.lanes["ip1"].Send(g.now, mailA)} {
		if grant.OK || grant.Limit != LimitBackoff || !grant.At.Equal(actions[0].Until) || grant.Rule.Key != "quota-ip" {
			t.Errorf("row 4: %v %v until %v by %v", grant.OK, grant.Limit, grant.At, grant.Rule)
		}
	}
	// Row 3: then exactly one connection, one transaction.
	g.now = began.Add(10 * time.Minute)
	if n, m := g.connections("ip1"), g.transactions("ip1", mailA); n != 1 || m != 1 {
		t.Errorf("row 3: %d connections, %d transactions at once, want 1 and 1", n, m)
	}
	// Row 5: deferred again. Another ten minutes, and longer on repeats.
	for i, want := range []time.Duration{10 * time.Minute, 20 * time.Minute, 40 * time.Minute} {
		a := g.observe("ip1", mailA, byIP)
		if got := a[0].Until.Sub(g.now); got != want {
			t.Errorf("row 5: failed probe %d waits %v, want %v", i+1, got, want)
		}
		g.now = a[0].Until
		if n := g.connections("ip1"); n != 1 {
			t.Errorf("row 5: %d connections after the wait, want 1", n)
		}
	}
	// Row 6: accepted. Two connections at once, not more.
	if a := g.observe("ip1", mailA, ""); len(a) != 0 {
		t.Errorf("row 6: actions %q", kinds(a))
	}
	if n := g.connections("ip1"); n != 2 {
		t.Errorf("row 6: %d connections, want 2", n)
	}
	// Row 7: each step that works adds one.
	g.observe("ip1", mailA, "")
	if n := g.connections("ip1"); n != 2 {
		t.Errorf("row 7: %d connections within the step, want 2", n)
	}
	g.now = g.now.Add(time.Minute)
	g.observe("ip1", mailA, "")
	if n := g.connections("ip1"); n != 3 {
		t.Errorf("row 7: %d connections after a step, want 3", n)
	}
	// A step without mail proves nothing.
	g.now = g.now.Add(time.Hour)
	if n := g.connections("ip1"); n != 3 {
		t.Errorf("row 7: %d connections after an idle hour, want 3", n)
	}
	// Row 8: deferred in the ramp. Held again.
	a := g.observe("ip1", mailA, byIP)
	if got := kinds(a); got != "defer-until close throttle" || g.connections("ip1") != 0 {
		t.Errorf("row 8: actions %q", got)
	}
	// Row 9: when the ramp reaches the limit of the rules, back to normal.
	g.now = a[0].Until
	g.observe("ip1", mailA, "")
	for range 2 {
		g.now = g.now.Add(time.Minute)
		if a := g.observe("ip1", mailA, ""); len(a) != 0 {
			t.Errorf("row 9: too early: %q", kinds(a))
		}
	}
	g.now = g.now.Add(time.Minute)
	a = g.observe("ip1", mailA, "")
	if got := kinds(a); got != "resume" || a[0].Event.Type != message.EventEgressResumed {
		t.Errorf("row 9: actions %q", got)
	}
	if n := g.connections("ip1"); n != 5 {
		t.Errorf("row 9: %d connections, want 5", n)
	}
}

func TestPermanentQuotaBouncesHoldsAndAlerts(t *testing.T) {
	t.Parallel()
	g := newGmail(t)
	a := g.observe("ip1", mailA, forGood) // row 2
	if got := kinds(a); !strings.HasPrefix(got, "none alert") {
		t.Errorf("actions %q, want the message left to bounce and an alert", got)
	}
	if g.may("ip1", mailA) {
		t.Error("mail goes on at once")
	}
}

func TestRepliesToMailUnderWayDoNotPunishTwice(t *testing.T) {
	t.Parallel()
	g := newGmail(t)
	first := g.observe("ip1", mailA, byIP)
	g.now = g.now.Add(20 * time.Second)
	echo := g.observe("ip1", mailA, byIP)
	if got := kinds(echo); got != "defer-until" {
		t.Errorf("echo causes %q, want defer-until only", got)
	}
	if got := echo[0].Until.Sub(first[0].Until); got != 20*time.Second {
		t.Errorf("hold grew by %v, want 20s: ten minutes count from the last deferral", got)
	}
}

func TestSlowDownHalvesAndGrowsBackStepByStep(t *testing.T) {
	t.Parallel()
	g := newGmail(t)
	l := g.eng.Lane(Target{Source: "ip1", Site: "other", Hosts: []string{"mx.nobody.example"}})
	rate := func() int {
		n := 0
		for start := g.now; g.now.Sub(start) < 10*time.Second; {
			grant := l.Send(g.now, mailB)
			if grant.OK {
				grant.Release()
				n++
				continue
			}
			g.now = grant.At
		}
		return n / 10
	}
	reply := func() []Action {
		r, _ := message.ParseReply("421 4.7.0 You are sending too fast, rate limit exceeded")
		return l.Observe(g.now, &Observation{Result: message.Deferred, Reply: r})
	}
	full := rate()
	if full < 98 || full > 100 {
		t.Fatalf("normal rate %d/s, want about 100", full)
	}
	if got := kinds(reply()); got != "none throttle" {
		t.Errorf("actions %q", got)
	}
	if got := kinds(reply()); got != "none" {
		t.Errorf("echo within the cohort causes %q", got)
	}
	rests := func() {
		t.Helper()
		if grant := l.Send(g.now, mailB); grant.OK || grant.Limit != LimitBackoff || grant.At.Sub(g.now) != time.Minute {
			t.Errorf("after a deferral: %v by %v until %v, want a minute of rest", grant.OK, grant.Limit, grant.At)
		}
		g.now = g.now.Add(time.Minute)
	}
	rests()
	if got := rate(); got < 45 || got > 51 {
		t.Errorf("after one deferral %d/s, want about 50", got)
	}
	reply()
	rests()
	if got := rate(); got < 22 || got > 26 {
		t.Errorf("after another %d/s, want about 25", got)
	}
	var resumed bool
	for last := 0; !resumed; {
		g.now = g.now.Add(90 * time.Second)
		a := l.Observe(g.now, &Observation{Result: message.Delivered})
		resumed = kinds(a) == "resume"
		got := rate()
		if got < last || got > full {
			t.Fatalf("rate went from %d to %d/s, ceiling %d", last, got, full)
		}
		if last = got; g.now.Sub(epoch) > 2*time.Hour {
			t.Fatal("never back to normal")
		}
	}
	if got := rate(); got != full {
		t.Errorf("after recovery %d/s, want %d", got, full)
	}
}

func TestYahooMayCloseWithoutAWord(t *testing.T) {
	t.Parallel()
	eng := New(shipped(t), Options{Now: func() time.Time { return epoch }})
	l := eng.Lane(Target{Source: "ip1", Site: "yahoo", Hosts: []string{"mta5.am0.yahoodns.net"}})
	if got := kinds(l.Observe(epoch, &Observation{Closed: true, Sent: 12})); got != "reconnect" {
		t.Errorf("silent close after 12 messages: %q, want reconnect", got)
	}
	if got := kinds(l.Observe(epoch, &Observation{Closed: true})); got != "" {
		t.Errorf("silent close of a fresh connection: %q, want nothing", got)
	}
	r, _ := message.ParseReply("421 Max message per connection reached")
	if got := kinds(l.Observe(epoch, &Observation{Result: message.Deferred, Reply: r})); got != "reconnect" {
		t.Errorf("announced close: %q, want reconnect", got)
	}
	if g := l.Connect(epoch, mxAddr); !g.OK {
		t.Errorf("refused by %v afterwards", g.Limit)
	}
}

func TestThresholdCountsWithinItsPeriod(t *testing.T) {
	t.Parallel()
	eng := New(shipped(t), Options{Now: func() time.Time { return epoch }})
	l := eng.Lane(Target{Source: "ip1", Site: "hotmail", Hosts: []string{"hotmail-com.olc.protection.outlook.com"}})
	r, _ := message.ParseReply("451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. (S775)")
	for i, c := range []struct {
		after time.Duration
		want  string
	}{
		{0, "none"}, {40 * time.Minute, "none"}, {70 * time.Minute, "none"},
		{90 * time.Minute, "defer-until close suspend"},
	} {
		a := l.Observe(epoch.Add(c.after), &Observation{Result: message.Deferred, Reply: r})
		if got := kinds(a); got != c.want {
			t.Errorf("reply %d: %q, want %q", i+1, got, c.want)
		}
	}
}

func TestTooManyConnectionsLeaveOneForAnHour(t *testing.T) {
	t.Parallel()
	eng := New(shipped(t), Options{Now: func() time.Time { return epoch }})
	l := eng.Lane(Target{Source: "ip1", Site: "hotmail", Hosts: []string{"hotmail-com.olc.protection.outlook.com"}})
	r, _ := message.ParseReply("451 4.7.652 The mail server [192.0.2.1] has exceeded the maximum number of connections. (S3115)")
	one := l.Connect(epoch, mxAddr)
	two := l.Connect(epoch.Add(time.Second), mxAddr)
	l.Observe(epoch, &Observation{Result: message.Deferred, Reply: r})
	two.Release()
	if g := l.Connect(epoch.Add(time.Minute), mxAddr); g.OK || g.Limit != LimitBackoff {
		t.Errorf("second connection: %v %v", g.OK, g.Limit)
	}
	l.Observe(epoch.Add(61*time.Minute), &Observation{Result: message.Delivered})
	if g := l.Connect(epoch.Add(61*time.Minute), mxAddr); !g.OK {
		t.Errorf("after an hour that worked: refused by %v", g.Limit)
	}
	one.Release()
}

func TestDisabledSourceStaysSoUntilResumed(t *testing.T) {
	t.Parallel()
	eng := New(shipped(t), Options{Now: func() time.Time { return epoch }})
	l := eng.Lane(Target{Source: "ip1", Site: "yahoo", Hosts: []string{"mta5.am0.yahoodns.net"}})
	woken := 0
	l.Notify(func(Freed) { woken++ })
	r, _ := message.ParseReply("553 5.7.1 [BL21] Connections will not be accepted")
	a := l.Observe(epoch, &Observation{Result: message.Failed, Reply: r})
	if got := kinds(a); got != "none alert close disable" || a[3].Event.Type != message.EventEgressSuspended {
		t.Errorf("actions %q", got)
	}
	later := epoch.Add(1000 * time.Hour)
	if g := l.Connect(later, mxAddr); g.OK || g.Limit != LimitSuspended || !g.At.IsZero() {
		t.Errorf("after 1000 h: %v %v at %v", g.OK, g.Limit, g.At)
	}
	if !eng.Resume(Selector{Provider: "yahoo", Source: "ip1"}) || woken != 1 {
		t.Errorf("resume woke %d lanes, want 1", woken)
	}
	if g := l.Connect(later, mxAddr); !g.OK {
		t.Errorf("after resume: refused by %v", g.Limit)
	}
}
