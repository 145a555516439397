package throttle

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tradewind-mta/tradewind/message"
)

// restart carries an engine's state through JSON into a new one.
func restart(t *testing.T, e *Engine, r *Rules, now time.Time, opt Options) *Engine {
	t.Helper()
	data, err := json.Marshal(e.Snapshot(now))
	if err != nil {
		t.Fatal(err)
	}
	var s Snapshot
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	opt.Now = func() time.Time { return now }
	n := New(r, opt)
	if err := n.Restore(&s); err != nil {
		t.Fatal(err)
	}
	again, _ := json.Marshal(n.Snapshot(now))
	if d := cmp.Diff(string(data), string(again)); d != "" {
		t.Errorf("snapshot after restart differs (-before +after):\n%s", d)
	}
	return n
}

func TestHoldsSurviveARestartInEveryState(t *testing.T) {
	t.Parallel()
	g := newGmail(t)
	slow, _ := message.ParseReply("421 you are throttled")
	other := g.eng.Lane(Target{Source: "ip2", Site: "other", Hosts: []string{"mx.nobody.example"}})
	other.Observe(g.now, &Observation{Result: message.Deferred, Reply: slow})
	g.observe("ip1", mailA, byIP)
	a := g.observe("ip1", mailA, byURL)
	g.observe("ip2", mailB, byDKIM)
	g.eng.Suspend(Selector{Tenant: "t", Campaign: "x"}, g.now.Add(time.Hour), "asked for")
	r := shipped(t)
	g.eng = restart(t, g.eng, r, g.now, Options{})
	for name, addr := range map[string]string{"ip1": "198.51.100.1", "ip2": "198.51.100.2"} {
		g.lanes[name] = g.eng.Lane(Target{Source: name, SourceAddr: netip.MustParseAddr(addr), Site: "gmail", Hosts: []string{"gmail-smtp-in.l.google.com"}})
	}
	if grant := g.lanes["ip1"].Connect(g.now, mxAddr); grant.OK || !grant.At.Equal(a[0].Until) || grant.Rule.Key != "quota-ip" {
		t.Errorf("held source after restart: %v until %v by %v", grant.OK, grant.At, grant.Rule)
	}
	if g.may("ip2", mailB) || g.may("ip2", mailA) {
		t.Error("a held DKIM domain or campaign may send after the restart")
	}
	g.now = a[0].Until
	g.observe("ip1", mailB, "") // ramp(2)
	g.eng = restart(t, g.eng, r, g.now, Options{})
	var states []string
	for _, h := range g.eng.Holds(g.now) {
		states = append(states, fmt.Sprint(h.Provider, " ", h.Scope, " ", h.Key, " ", h.State, " ", h.Connections))
	}
	want := []string{
		"default source ip2 slowed 1",
		"gmail source ip1 ramp 2",
		"gmail dkim-domain b.example ramp 2",
		"gmail campaign t/a probe 1",
	}
	if d := cmp.Diff(want, states); d != "" {
		t.Errorf("holds (-want +got):\n%s", d)
	}
}

func TestSnapshotOfAnotherVersionIsRefused(t *testing.T) {
	t.Parallel()
	e := engine(t, "")
	if err := e.Restore(&Snapshot{Version: 99}); !errors.Is(err, ErrSnapshot) {
		t.Errorf("Restore = %v, want ErrSnapshot", err)
	}
	// Nonsense is left out and harms nothing.
	if err := e.Restore(&Snapshot{Version: snapshotVersion,
		Holds:       []HoldState{{Provider: "p", Scope: 200, State: 100}, {Scope: ScopeSource, State: StateSlowed, RawKey: []string{"x"}, Base: 1, Step: 1}},
		Warmups:     []WarmupState{{Source: "s", Day: -1}},
		Suspensions: []Suspension{{}},
		Brakes:      []BrakeState{{Brake: "none"}},
		Picks:       []PickState{{Pool: "none"}},
	}); err != nil {
		t.Fatal(err)
	}
	if s := e.Snapshot(epoch); len(s.Holds)+len(s.Warmups)+len(s.Suspensions)+len(s.Picks) > 0 {
		t.Errorf("nonsense came back: %+v", s)
	}
}

func TestWeightsHoldAcrossRestarts(t *testing.T) {
	t.Parallel()
	r := mustLoad(t, "")
	opt := Options{Pools: []Pool{{Name: "bulk", Sources: []WeightedSource{{"a", 7}, {"b", 2}, {"c", 1}}}}}
	e := New(r, opt)
	count := map[string]int{}
	for i := range 1000 {
		count[e.Pick("bulk", "gmail", nil)]++
		if i%13 == 0 {
			e = restart(t, e, r, epoch, opt)
		}
	}
	if d := cmp.Diff(map[string]int{"a": 700, "b": 200, "c": 100}, count); d != "" {
		t.Errorf("picks (-want +got):\n%s", d)
	}
}

// TestWarmupVolumesAreExactOverAMonthWithRestarts sends as much as it may,
// skips a weekend day, is restarted at odd moments, and counts per UTC day.
func TestWarmupVolumesAreExactOverAMonthWithRestarts(t *testing.T) {
	t.Parallel()
	r := mustLoad(t, "[source.new]\nwarmup = \"w\"\n[warmup.w]\nvolumes = [20, 50, 100, 200, 400, 800, 1600, 3000]\nhold_above_deferred = 0.2\nsample = 10\n")
	volumes := []int{20, 50, 100, 200, 400, 800, 1600, 3000}
	now := epoch
	e := New(r, Options{Now: func() time.Time { return now }})
	target := Target{Source: "new", Site: "s", Hosts: []string{"mx.s.example"}}
	day := 0
	for date := range 12 {
		midnight := epoch.Truncate(24 * time.Hour).Add(time.Duration(date) * 24 * time.Hour)
		now = midnight.Add(8 * time.Hour)
		if date%5 == 4 {
			continue // nothing is sent: the day does not count
		}
		l := e.Lane(target)
		plan := l.WarmupPlan(now)
		sent := 0
		for {
			g := l.Send(now, Mail{})
			if !g.OK {
				if g.Limit != LimitWarmup || !g.At.Equal(midnight.Add(24*time.Hour)) {
					t.Fatalf("refused by %v until %v", g.Limit, g.At)
				}
				break
			}
			g.Release()
			sent++
			result, reply := message.Delivered, (*message.Reply)(nil)
			if date == 2 && sent%3 == 0 {
				// Too much for the provider: this day is repeated.
				result, reply = message.Deferred, &message.Reply{Code: 450, Text: "later"}
			}
			l.Observe(now, &Observation{Result: result, Reply: reply})
			if sent%37 == 0 {
				now = now.Add(time.Second)
				e = restart(t, e, r, now, Options{})
				l = e.Lane(target)
			}
			if sent > 5000 {
				break
			}
		}
		if day >= len(volumes) {
			if sent <= 5000 || len(plan) != 0 {
				t.Errorf("after the warm-up: %d sent, plan %v", sent, plan)
			}
			continue
		}
		if sent != volumes[day] || plan[0].Volume != int64(volumes[day]) || plan[0].Day != day+1 {
			t.Errorf("date %d: %d sent, plan %+v, want %d", date, sent, plan[0], volumes[day])
		}
		if date != 2 {
			day++
		}
	}
	if day < len(volumes)-1 {
		t.Errorf("only %d days counted", day)
	}
}

func TestWarmupLeavesTheRestToOtherSources(t *testing.T) {
	t.Parallel()
	e := engine(t, "[source.new]\nwarmup = \"w\"\n[warmup.w]\nvolumes = [2]\n")
	e.SetPools([]Pool{{Name: "bulk", Sources: []WeightedSource{{"new", 1}, {"old", 1}}}})
	lanes := map[string]*Lane{}
	for _, s := range []string{"new", "old"} {
		lanes[s] = e.Lane(Target{Source: s, Site: "s"})
	}
	count := map[string]int{}
	for range 10 {
		s := e.Pick("bulk", DefaultProvider, func(s string) bool {
			left, limited := lanes[s].WarmupLeft(epoch)
			return !limited || left > 0
		})
		if g := lanes[s].Send(epoch, Mail{}); !g.OK {
			t.Fatalf("%s refused by %v", s, g.Limit)
		}
		count[s]++
	}
	if count["new"] != 2 || count["old"] != 8 {
		t.Errorf("sent %v, want new 2 and old 8", count)
	}
}

func TestSuspensionStopsWhatItNamesAndRunsOut(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[provider.p]\nmx_suffix = [\".p.example\"]\n")
	l := eng.Lane(Target{Source: "ip1", Site: "s", Hosts: []string{"mx.p.example"}})
	until := epoch.Add(time.Hour)
	mail := Mail{Domain: "d.example", Tenant: "t", Campaign: "c"}
	for _, c := range []struct {
		sel     Selector
		connect bool // connections are refused, too
		hits    bool
	}{
		{Selector{Domain: "d.example"}, false, true},
		{Selector{Provider: "p"}, true, true},
		{Selector{Tenant: "t"}, false, true},
		{Selector{Tenant: "t", Campaign: "c"}, false, true},
		{Selector{Source: "ip1"}, true, true},
		{Selector{Provider: "p", Source: "ip1", Tenant: "t"}, false, true},
		{Selector{Provider: "q"}, false, false},
		{Selector{Tenant: "t", Campaign: "other"}, false, false},
		{Selector{Source: "ip1", Domain: "e.example"}, false, false},
	} {
		if !eng.Suspend(c.sel, until, "test") {
			t.Errorf("%+v: refused", c.sel)
		}
		conn := l.Connect(epoch, mxAddr)
		conn.Release()
		if conn.OK == c.connect {
			t.Errorf("%+v: connection granted %v", c.sel, conn.OK)
		}
		g := l.Send(epoch, mail)
		if g.OK == c.hits || c.hits && (g.Limit != LimitSuspended || !g.At.Equal(until)) {
			t.Errorf("%+v: %v %v until %v", c.sel, g.OK, g.Limit, g.At)
		}
		if g := l.Send(until, mail); !g.OK {
			t.Errorf("%+v: refused by %v when it has run out", c.sel, g.Limit)
		}
		if got := eng.Suspensions(epoch); len(got) != 1 || got[0].Reason != "test" {
			t.Errorf("%+v: suspensions %+v", c.sel, got)
		}
		if !eng.Resume(c.sel) || eng.Resume(c.sel) {
			t.Errorf("%+v: can be resumed not at all, or twice", c.sel)
		}
		l.Close()
		eng = engine(t, "[provider.p]\nmx_suffix = [\".p.example\"]\n")
		l = eng.Lane(Target{Source: "ip1", Site: "s", Hosts: []string{"mx.p.example"}})
	}
	if eng.Suspend(Selector{}, until, "everything") {
		t.Error("an empty selector was accepted")
	}
	eng.Suspend(Selector{Tenant: "t"}, until, "x")
	eng.Suspend(Selector{Tenant: "u"}, time.Time{}, "y")
	ev := eng.Sweep(until)
	if len(ev) != 1 || ev[0].Type != message.EventEgressResumed || ev[0].Tenant != "t" {
		t.Errorf("events when it runs out: %+v", ev)
	}
	if g := l.Send(until, Mail{Tenant: "u"}); g.OK || !g.At.IsZero() {
		t.Errorf("suspended for good: %v at %v", g.OK, g.At)
	}
}

func TestBrakesStopOneTenantAndLeaveTheOthers(t *testing.T) {
	t.Parallel()
	doc := func(scope, action string) string {
		return "[brake.b]\nscope = \"" + scope + "\"\nbounces = 0.1\nunknown = 0.05\ncomplaints = 0.01\nsample = 100\nwithin = \"1h\"\naction = \"" + action + "\"\nfor = \"2h\"\nrate = \"1/min\"\n"
	}
	for _, c := range []struct {
		name, scope, action string
		feed                func(l *Lane, e *Engine, i int) []Action
		want                string
		after               int // outcomes until it acts
	}{
		{"unknown users pause a tenant", "tenant", "pause", func(l *Lane, _ *Engine, i int) []Action { return outcome(l, i%10 == 0, true) }, "suspend alert", 100},
		{"bounces hold a campaign", "campaign", "hold", func(l *Lane, _ *Engine, i int) []Action { return outcome(l, i%8 == 0, false) }, "suspend alert", 100},
		{"complaints slow a tenant", "tenant", "slow", func(l *Lane, e *Engine, i int) []Action {
			outcome(l, false, false)
			return e.Report(epoch, Report{Tenant: "bad", Campaign: "c", Complaint: i >= 149})
		}, "throttle alert", 150},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := mustLoad(t, doc(c.scope, c.action))
			e := New(r, Options{Now: func() time.Time { return epoch }})
			l := e.Lane(Target{Source: "ip1", Site: "s"})
			acted := 0
			for i := 1; i <= 200 && acted == 0; i++ {
				if a := c.feed(l, e, i); len(a) > 0 {
					acted = i
					if got := kinds(a); got != c.want || a[0].Event == nil || !strings.Contains(a[0].Event.Detail, "brake b") {
						t.Errorf("actions %q, want %q", got, c.want)
					}
				}
			}
			if acted != c.after {
				t.Errorf("acted after %d outcomes, want %d", acted, c.after)
			}
			e = restart(t, e, r, epoch, Options{})
			l = e.Lane(Target{Source: "ip1", Site: "s"})
			bad := Mail{Tenant: "bad", Campaign: "c"}
			l.Send(epoch, bad)
			if g := l.Send(epoch.Add(time.Second), bad); g.OK {
				t.Error("the tenant goes on as before")
			}
			if g := l.Send(epoch.Add(time.Second), Mail{Tenant: "good", Campaign: "c"}); !g.OK {
				t.Errorf("another tenant is refused by %v", g.Limit)
			}
			later := l.Send(epoch.Add(2*time.Hour), bad)
			if want := c.action != "hold"; later.OK != want {
				t.Errorf("two hours later: %v, want %v", later.OK, want)
			}
			if c.action == "slow" && !l.Send(epoch.Add(2*time.Hour), bad).OK {
				t.Error("still slow when the time is over")
			}
		})
	}
}

// outcome reports one delivery or bounce of the bad tenant.
func outcome(l *Lane, bounce, unknown bool) []Action {
	o := &Observation{Result: message.Delivered, Tenant: "bad", Campaign: "c"}
	if bounce {
		o.Result, o.Reply, o.UnknownUser = message.Failed, &message.Reply{Code: 550, Text: "no"}, unknown
	}
	return l.Observe(epoch, o)
}

func TestExplainNamesEveryValueTheHoldAndTheBindingLimit(t *testing.T) {
	t.Parallel()
	g := newGmail(t)
	open := g.lanes["ip1"].Connect(g.now, mxAddr)
	g.observe("ip1", mailA, byIP)
	g.eng.Suspend(Selector{Provider: "gmail"}, time.Time{}, "maintenance")
	target := Target{Source: "ip1", SourceAddr: netip.MustParseAddr("198.51.100.1"), Site: "gmail", Hosts: []string{"gmail-smtp-in.l.google.com"}, Domain: "gmail.com"}
	x := g.eng.Explain(target, g.now)
	if x.Provider != "gmail" || x.Open != (OpenConnections{1, 1, 1}) || len(x.Holds) != 1 || len(x.Suspensions) != 1 {
		t.Errorf("explanation %+v", x)
	}
	if x.Connect.OK || x.Connect.Limit != "suspended" || x.Send.OK {
		t.Errorf("connect %+v, send %+v", x.Connect, x.Send)
	}
	if x.MaxRate < 83 || x.MaxRate > 84 || x.MaxRateBy.Key != "connection_rate" {
		// 100 connections a minute of 50 messages each.
		t.Errorf("most %v/s by %v, want 83.3 by connection_rate", x.MaxRate, x.MaxRateBy)
	}
	for _, s := range x.Settings {
		if s.Origin.File != "shaping.toml" || s.Origin.Line == 0 || s.Origin.Basis == "" {
			t.Errorf("%s = %s comes from %+v", s.Key, s.Value, s.Origin)
		}
	}
	g.eng.Resume(Selector{Provider: "gmail"})
	x = g.eng.Explain(target, g.now)
	if x.Connect.Limit != "backoff" || !strings.Contains(x.Connect.Rule, "quota-ip") || !x.Connect.At.Equal(epoch.Add(10*time.Minute)) {
		t.Errorf("connect %+v", x.Connect)
	}
	if _, err := json.Marshal(x); err != nil {
		t.Error(err)
	}
	open.Release()
}

func TestAskingWhyChangesNothing(t *testing.T) {
	t.Parallel()
	rules := mustLoad(t, "[default]\nrate = \"1/s\"\nconnections = 1\nmx_connections = 1\n[warmup.w]\nvolumes = [100]\n[source.ip2]\nwarmup = \"w\"\n")
	reserved := 0
	eng := New(rules, Options{Now: func() time.Time { return epoch }, Reserve: func() { reserved++ }})
	warming := Target{Source: "ip2", Site: "s"}
	if x := eng.Explain(warming, epoch); !x.Send.OK || x.Warmup == nil || x.Warmup.Volume != 100 {
		t.Errorf("explained a source that warms up: %+v, today %+v", x.Send, x.Warmup)
	}
	if plans := eng.WarmupPlans(epoch, []string{"ip2"}, 1); reserved != 0 || len(plans) != 1 || plans[0].Site != "" {
		t.Errorf("asking began a warm-up: %d reservations, plans %+v", reserved, plans)
	}
	l := eng.Lane(Target{Source: "ip1", Site: "s"})
	for range 5 {
		if g := l.WhySend(epoch, Mail{Domain: "d.example"}); !g.OK {
			t.Fatalf("WhySend: %v", g.Limit)
		}
		if g := l.WhyConnect(epoch, mxAddr); !g.OK {
			t.Fatalf("WhyConnect: %v", g.Limit)
		}
	}
	if s, c := l.Send(epoch, Mail{}), l.Connect(epoch, mxAddr); !s.OK || !c.OK {
		t.Error("asking used up the permits")
	}
}

func TestWarmupTellsHowManyRecipientsAreLeft(t *testing.T) {
	t.Parallel()
	e := engine(t, "[source.new]\nwarmup = \"w\"\n[warmup.w]\nvolumes = [5]\n")
	l := e.Lane(Target{Source: "new", Site: "s"})
	if g := l.Send(epoch, Mail{Recipients: 8}); g.OK || g.Limit != LimitWarmup || g.Max != 5 {
		t.Errorf("8 recipients on a day of 5: %v %v max %d", g.OK, g.Limit, g.Max)
	}
	if g := l.Send(epoch, Mail{Recipients: 5}); !g.OK {
		t.Errorf("5 recipients: refused by %v", g.Limit)
	}
	if g := l.Send(epoch, Mail{}); g.OK || g.Max != 0 {
		t.Errorf("another: %v max %d", g.OK, g.Max)
	}
}

func TestDailyBurstIsNotGrantedAgainAfterARestart(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"rate", "source_rate", "provider_rate", "tenant_rate", "campaign_rate", "sender_domain_rate"} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			r := mustLoad(t, "[provider.p]\nmx_suffix = [\".p.example\"]\n"+key+" = [\"48/d burst 20\", \"1000/s burst 100\"]\n")
			e := New(r, Options{Now: func() time.Time { return epoch }})
			target := Target{Source: "ip1", Site: "s", Hosts: []string{"mx.p.example"}}
			send := func(now time.Time) int {
				l := e.Lane(target)
				for n := 0; ; n++ {
					g := l.Send(now, Mail{Tenant: "t", Campaign: "c", SenderDomain: "s.example"})
					if !g.OK {
						return n
					}
					g.Release()
				}
			}
			if n := send(epoch); n != 20 {
				t.Fatalf("burst of %d, want 20", n)
			}
			e = restart(t, e, r, epoch.Add(time.Minute), Options{})
			e = restart(t, e, r, epoch.Add(time.Minute), Options{}) // nobody came back in between
			if n := send(epoch.Add(2 * time.Minute)); n != 0 {
				t.Errorf("%d sent right after the restart, want 0", n)
			}
			// 48 a day are one in half an hour.
			if n := send(epoch.Add(92 * time.Minute)); n != 3 {
				t.Errorf("%d sent an hour and a half later, want 3", n)
			}
		})
	}
}
