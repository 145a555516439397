package mta_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/throttle"
)

const gmailZone = "g.example. MX 1 aspmx.l.google.com.\naspmx.l.google.com. A 192.0.2.1\n"

// shippedRules is the text of the shaping file that comes with the program.
func shippedRules(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../configs/shaping.toml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// gmailHost plays Gmail's word: refusing while it is cross, counting always.
type gmailHost struct {
	mu       sync.Mutex // protects everything below
	say      map[string]string
	mails    map[string]int // by sender domain, refused ones included
	open     int
	peak     int
	lastMail time.Time
}

func (g *gmailHost) config() loadgen.SinkConfig {
	return loadgen.SinkConfig{TLS: true, Latency: 200 * time.Millisecond, OnMail: func(_, from string) (string, func()) {
		_, domain, _ := strings.Cut(from, "@")
		g.mu.Lock()
		defer g.mu.Unlock()
		g.mails[domain]++
		g.lastMail = time.Now()
		if g.say[""] != "" {
			return g.say[""], nil
		}
		return g.say[domain], nil
	}}
}

func (g *gmailHost) watch(w *world) {
	w.opened = func(string, string) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.open++
		g.peak = max(g.peak, g.open)
	}
	w.closed = func(string, string) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.open--
	}
}

// quiet returns what has happened since the last call.
func (g *gmailHost) quiet() (mails, peak int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.mails {
		mails += n
	}
	peak, g.peak = g.peak, g.open
	clear(g.mails)
	return mails, peak
}

func (g *gmailHost) set(domain, reply string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.say[domain] = reply
}

// TestGmailProcedureStepByStep replays the procedure that Gmail publishes
// (reference section "Gmail recovery") through the whole of delivery: at least
// ten minutes of quiet, one connection, then one more at a time, and from the
// beginning when it is cross again.
func TestGmailProcedureStepByStep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, worldConfig{shaping: shippedRules(t), zone: gmailZone, settings: sources(1)})
		defer w.end()
		g := &gmailHost{say: map[string]string{}, mails: map[string]int{}}
		w.host("192.0.2.1", g.config())
		g.watch(w)
		const cross = "421 4.7.28 Gmail has detected an unusual rate of mail originating from your IP address"
		list := make([]mail, 4500)
		for i := range list {
			list[i] = mail{from: "a@s0.example", sign: "s0.example", tenant: "t0", to: []string{fmt.Sprintf("r%d@g.example", i)}}
		}
		state := func() string {
			holds := w.eng.Holds(time.Now())
			if len(holds) == 0 {
				return "normal"
			}
			return fmt.Sprintf("%s %d", holds[0].State, holds[0].Connections)
		}
		w.accept(list...)
		time.Sleep(10 * time.Second)
		if mails, peak := g.quiet(); mails < 20 || peak < 3 {
			t.Fatalf("before: %d mails over %d connections: the test tests less than it says", mails, peak)
		}
		g.set("", cross) // 1: normal -> held
		time.Sleep(5 * time.Second)
		g.quiet()
		if state() != "held 0" {
			t.Fatalf("after the 421: %s, want held", state())
		}
		g.mu.Lock()
		since := time.Since(g.lastMail)
		g.mu.Unlock()
		time.Sleep(10*time.Minute - since - time.Second) // 4: held, nothing is tried
		if mails, peak := g.quiet(); mails != 0 || peak > 0 {
			t.Errorf("during the ten minutes: %d mails, %d connections; want none", mails, peak)
		}
		time.Sleep(30 * time.Second) // 3, 5: one connection, deferred again, another ten minutes
		if mails, peak := g.quiet(); mails != 1 || peak != 1 || state() != "held 0" {
			t.Errorf("the probe: %d mails over %d connections, then %s; want 1, 1, held", mails, peak, state())
		}
		g.set("", "")
		time.Sleep(9 * time.Minute)
		if mails, peak := g.quiet(); mails != 0 || peak != 0 {
			t.Errorf("during the second ten minutes: %d mails, %d connections; want none", mails, peak)
		}
		// 6, 7: one connection more after each step that worked.
		seen := []int{}
		for range 12 {
			time.Sleep(30 * time.Second)
			_, peak := g.quiet()
			if len(seen) == 0 || peak != seen[len(seen)-1] {
				seen = append(seen, peak)
			}
		}
		for i := 1; i < len(seen); i++ {
			if seen[i] > seen[i-1]+1 && !(i == 1 && seen[0] == 0 && seen[1] <= 2) {
				t.Errorf("connections grew by more than one at a time: %v", seen)
			}
		}
		if state() != "normal" { // 9
			t.Errorf("at the end %s, connections went %v; want normal", state(), seen)
		}
		// 8: cross again in the middle of a ramp.
		g.set("", cross)
		time.Sleep(5 * time.Second)
		g.set("", "")
		time.Sleep(11 * time.Minute)
		if !strings.HasPrefix(state(), "ramp") {
			t.Fatalf("%s, want a ramp", state())
		}
		g.set("", cross)
		time.Sleep(10 * time.Second)
		if state() != "held 0" {
			t.Errorf("deferred on the ramp: %s, want held", state())
		}
		g.set("", "")
		time.Sleep(3 * time.Hour)
		if n := w.count(message.EventDelivered); n != len(list) {
			t.Errorf("%d of %d delivered in the end", n, len(list))
		}
		if n := w.count(message.EventBounced); n > 0 {
			t.Errorf("%d recipients bounced for it", n)
		}
		if th, re := w.count(message.EventEgressThrottled), w.count(message.EventEgressResumed); th < 4 || re < 1 {
			t.Errorf("%d throttled and %d resumed events, want one for each step", th, re)
		}
	})
}

// TestGmailScopesHoldWhatTheReplyNames sends for two sender domains from two
// sources, lets Gmail name one thing, and looks at what still goes.
func TestGmailScopesHoldWhatTheReplyNames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reply string
		goes  bool // mail of the other domain goes on at full speed
	}{
		"DKIM domain": {"421 4.7.28 Gmail has detected an unusual rate of mail originating from your DKIM domain [s0.example 36]", true},
		"SPF domain":  {"421 4.7.28 Gmail has detected an unusual rate of mail originating from your SPF domain [s0.example 36]", true},
		"IP address":  {"421 4.7.28 Gmail has detected an unusual rate of mail originating from your IP address", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, worldConfig{shaping: shippedRules(t), zone: gmailZone, settings: sources(1)})
				defer w.end()
				g := &gmailHost{say: map[string]string{"s0.example": c.reply}, mails: map[string]int{}}
				w.host("192.0.2.1", g.config())
				var list []mail
				for i := range 2000 {
					d := fmt.Sprintf("s%d.example", i%2)
					list = append(list, mail{from: "a@" + d, sign: d, tenant: "t" + d[1:2], to: []string{fmt.Sprintf("r%d@g.example", i)}})
				}
				w.accept(list...)
				time.Sleep(9 * time.Minute)
				g.mu.Lock()
				defer g.mu.Unlock()
				if g.mails["s0.example"] > 10 {
					t.Errorf("%d attempts for the domain that is held", g.mails["s0.example"])
				}
				if other := g.mails["s1.example"]; c.goes && other != 1000 || !c.goes && other > 100 {
					t.Errorf("%d attempts for the other domain; it goes on: %t", other, c.goes)
				}
			})
		})
	}
}

// TestBrakeStopsOneTenantOnly lets the mail of one tenant bounce.
func TestBrakeStopsOneTenantOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		data, err := os.ReadFile("../configs/bounce.toml")
		if err != nil {
			t.Fatal(err)
		}
		rules, err := bounce.NewClassifier(data)
		if err != nil {
			t.Fatal(err)
		}
		set := sources(1)
		set.Rules = rules
		w := newWorld(t, worldConfig{
			shaping: "[default]\nrate = \"10/s\"\n[brake.strangers]\nscope = \"tenant\"\nunknown = 0.2\nsample = 50\naction = \"hold\"\n",
			zone:    limitsZone, settings: set, keep: true,
		})
		defer w.end()
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			w.host(addr, loadgen.SinkConfig{})
		}
		var list []mail
		for i := range 1000 {
			bad, good := fmt.Sprintf("r%d@a0.example", i), fmt.Sprintf("r%d@a0.example", i)
			if i%2 == 0 {
				bad = "reject+" + bad
			}
			list = append(list, mail{from: "a@bad.example", tenant: "bad", to: []string{bad}}, mail{from: "a@good.example", tenant: "good", to: []string{good}})
		}
		w.accept(list...)
		time.Sleep(10 * time.Minute)
		w.mu.Lock()
		outcomes := map[string]int{}
		var stopped []*message.Event
		for _, e := range w.events {
			switch e.Type {
			case message.EventDelivered, message.EventBounced:
				outcomes[e.Tenant]++
			case message.EventEgressSuspended:
				stopped = append(stopped, e)
			}
		}
		w.mu.Unlock()
		if outcomes["good"] != 1000 {
			t.Errorf("%d of the other tenant's mail went, want all", outcomes["good"])
		}
		if n := outcomes["bad"]; n < 50 || n > 60 {
			t.Errorf("%d of the bad tenant's mail went, want the sample and what was under way", n)
		}
		if len(stopped) != 1 || stopped[0].Tenant != "bad" || !strings.Contains(stopped[0].Detail, "brake strangers") {
			t.Errorf("events: %+v, want one that names brake and tenant", stopped)
		}
		if n := w.metric("tradewind_throttle_brakes_total"); n != 1 {
			t.Errorf("%v brakes counted, want 1", n)
		}
	})
}

// TestComplaintsBrakeOneTenantAndTheOthersKeepTheirPace has 5 % of one tenant's
// recipients complain from the tenth minute on.
func TestComplaintsBrakeOneTenantAndTheOthersKeepTheirPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, worldConfig{
			shaping: "[default]\ntenant_rate = \"5/s\"\n[brake.spam]\nscope = \"tenant\"\ncomplaints = 0.003\nsample = 1000\naction = \"hold\"\n",
			zone:    limitsZone, settings: sources(2),
		})
		defer w.end()
		w.host("192.0.2.1", loadgen.SinkConfig{Latency: 10 * time.Millisecond})
		began := time.Now()
		var mu sync.Mutex
		minutes := map[string]map[int]int{"bad": {}, "good": {}}
		w.heard = func(e *message.Event) {
			if e.Type == message.EventDelivered {
				mu.Lock()
				defer mu.Unlock()
				minutes[e.Tenant][int(time.Since(began)/time.Minute)]++
			}
		}
		const span = 20 // minutes
		var list []mail
		for i := range 300 * (span + 2) {
			for _, tenant := range []string{"bad", "good"} {
				list = append(list, mail{from: "a@" + tenant + ".example", tenant: tenant, to: []string{fmt.Sprintf("r%d@a0.example", i)}})
			}
		}
		w.accept(list...)
		for minute := range span {
			time.Sleep(time.Minute)
			for range 15 { // of 300
				if minute >= 10 {
					w.mta.Report(throttle.Report{Tenant: "bad", Complaint: true})
				}
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for minute := 1; minute < span; minute++ {
			if n := minutes["good"][minute]; n < 285 || n > 315 {
				t.Errorf("minute %d: %d of the other tenant's mail went, want 300 within 5 %%", minute, n)
			}
			n := minutes["bad"][minute]
			if minute <= 10 && n < 285 || minute > 12 && n > 0 {
				t.Errorf("minute %d: %d of the mail went that is complained about", minute, n)
			}
		}
	})
}
