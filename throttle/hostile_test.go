package throttle

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// FuzzObserve feeds replies of hostile servers through the shipped rules. Any
// text may come; what was held must be explained, and only for a while unless
// a rule says disable.
func FuzzObserve(f *testing.F) {
	r := shipped(f)
	hosts := []string{"mx.nobody.example"}
	for _, p := range r.providers {
		for _, rule := range p.rules {
			for _, m := range rule.Match {
				if reply, err := message.ParseReply(m); err == nil {
					f.Add(uint8(len(hosts)), uint16(reply.Code), reply.Enhanced[1], reply.Enhanced[2], reply.Text)
				}
			}
		}
		if len(p.MXSuffix) > 0 {
			hosts = append(hosts, "mx"+p.MXSuffix[0])
		}
	}
	f.Fuzz(func(t *testing.T, host uint8, code, subject, detail uint16, text string) {
		if len(text) > 8<<10 {
			return // the client cuts replies off long before
		}
		e := New(r, Options{Now: func() time.Time { return epoch }})
		h := hosts[int(host)%len(hosts)]
		l := e.Lane(Target{Source: "ip1", Site: h, Hosts: []string{h}, Domain: "d.example"})
		reply := &message.Reply{
			Code: 400 + int(code)%200, Text: text, Stage: message.StageDot,
			Enhanced: message.Enhanced{4 + code%2, subject % 1000, detail % 1000},
		}
		o := &Observation{
			Result: message.Deferred, Reply: reply, Domain: "d.example", Tenant: "t", Campaign: "c",
			SenderDomain: "s.example", DKIMDomain: "k.example",
		}
		for i := range 4 {
			now := epoch.Add(time.Duration(i) * time.Minute)
			for _, a := range l.Observe(now, o) {
				if a.Origin == nil || a.Rule == "" {
					t.Errorf("action %v names no rule", a.Kind)
				}
				if a.Kind == ActDefer && (!a.Until.After(now) || a.Until.Sub(now) > 24*time.Hour) {
					t.Errorf("deferred from %v until %v", now, a.Until)
				}
			}
		}
		for _, s := range e.Holds(epoch.Add(time.Hour)) {
			if len(s.Reply) > 600 || strings.ContainsAny(s.Reply, "\r\n") {
				t.Errorf("reply kept as %q", s.Reply)
			}
		}
		if err := New(r, Options{}).Restore(e.Snapshot(epoch)); err != nil {
			t.Error(err)
		}
	})
}

// FuzzRestore feeds damaged snapshots: they may be refused or left out in
// part, but whatever is restored has to run.
func FuzzRestore(f *testing.F) {
	r := shipped(f)
	e := New(r, Options{Now: func() time.Time { return epoch }})
	l := e.Lane(Target{Source: "ip1", Site: "s", Hosts: []string{"aspmx.l.google.com"}})
	for _, text := range []string{byIP, byDKIM, byURL} {
		reply, _ := message.ParseReply(text)
		l.Observe(epoch, &Observation{Result: message.Deferred, Reply: reply, Tenant: "t", Campaign: "c", DKIMDomain: "k.example"})
	}
	e.Suspend(Selector{Tenant: "t"}, epoch.Add(time.Hour), "x")
	seed, err := json.Marshal(e.Snapshot(epoch))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"version":1,"rates":[{"level":0,"key":["ip1","s"],"used":["2026-11-02T18:00:00Z"]},{"provider":"gmail","level":7,"scope":"tenant","key":["t"],"used":["9999-01-01T00:00:00Z"]}],"warmups":[{"source":"ip1","provider":"gmail","day":3,"date":20000,"sent":7}],"picks":[{"pool":"b","provider":"gmail","current":{"a":5}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s Snapshot
		if json.Unmarshal(data, &s) != nil {
			return
		}
		e := New(r, Options{Now: func() time.Time { return epoch }, Pools: []Pool{{"b", []WeightedSource{{"a", 3}, {"c", 1}}}}})
		if e.Restore(&s) != nil {
			return
		}
		l := e.Lane(Target{Source: "ip1", Site: "s", Hosts: []string{"aspmx.l.google.com"}})
		m := Mail{Domain: "d.example", Tenant: "t", Campaign: "c", DKIMDomain: "k.example"}
		for i := range 3 {
			now := epoch.Add(time.Duration(i) * time.Hour)
			c, g := l.Connect(now, mxAddr), l.Send(now, m)
			l.Observe(now, &Observation{Result: message.Delivered, Tenant: "t", Campaign: "c", DKIMDomain: "k.example"})
			g.Release()
			c.Release()
			e.Sweep(now)
		}
		e.Pick("b", "gmail", nil)
		if _, err := json.Marshal(e.Snapshot(epoch)); err != nil {
			t.Error(err)
		}
	})
}

func TestManyTenantsAreNotCountedWithoutBound(t *testing.T) {
	t.Parallel()
	eng := New(mustLoad(t, "[default]\ntenant_rate = \"1/h\"\n"), Options{
		Now: func() time.Time { return epoch }, MaxKeys: 100,
	})
	l := eng.Lane(Target{Source: "ip1", Site: "s"})
	for i := range 100 {
		g := l.Send(epoch, Mail{Tenant: fmt.Sprint(i)})
		if !g.OK {
			t.Fatalf("tenant %d: refused by %v", i, g.Limit)
		}
		g.Release()
	}
	// One more would have to go uncounted: it waits instead.
	if g := l.Send(epoch, Mail{Tenant: "more"}); g.OK || g.Limit != LimitTenant || !g.At.Equal(epoch.Add(time.Second)) {
		t.Errorf("101st tenant: %v %v at %v", g.OK, g.Limit, g.At)
	}
	// When the others have nothing left to remember, there is room.
	if g := l.Send(epoch.Add(2*time.Hour), Mail{Tenant: "more"}); !g.OK {
		t.Errorf("two hours later: refused by %v", g.Limit)
	}
	if got := len(l.g.Load().shares); got > 100 {
		t.Errorf("%d counters, want at most 100", got)
	}
}

func TestHoldWithoutMailForADayIsForgotten(t *testing.T) {
	t.Parallel()
	g := newGmail(t)
	g.observe("ip1", mailA, byDKIM)
	if ev := g.eng.Sweep(g.now.Add(24 * time.Hour)); len(ev) != 0 {
		t.Errorf("events within a day of the hold's end: %+v", ev)
	}
	ev := g.eng.Sweep(g.now.Add(49 * time.Hour))
	if len(ev) != 1 || ev[0].Type != message.EventEgressResumed || ev[0].Egress.Provider != "gmail" {
		t.Errorf("events: %+v", ev)
	}
	if hs := g.eng.Holds(g.now.Add(49 * time.Hour)); len(hs) != 0 {
		t.Errorf("holds left: %+v", hs)
	}
}
