package throttle

import (
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
