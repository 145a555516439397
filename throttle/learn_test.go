package throttle

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tradewind-mta/tradewind/message"
)

const secretRules = `
[default]
rate = "10/s"
connections = 10
[[default.rule]]
name = "rate"
text = "slow down"
scope = "source"
action = "backoff"
[[default.rule]]
name = "connections"
text = "too many connections"
scope = "source"
action = "connections"
connections = 1
for = "1h"
`

// secret is a provider that keeps its limit to itself, and a sender that always
// has mail.
type secret struct {
	t      *testing.T
	eng    *Engine
	lane   *Lane
	now    time.Time
	limit  int // messages a minute
	minute int64
	sent   int
}

func newSecret(t *testing.T, limit int) *secret {
	s := &secret{t: t, now: epoch, limit: limit}
	s.start(secretRules, nil)
	return s
}

// start begins with an engine of its own, as after a restart.
func (s *secret) start(rules string, state *Snapshot) {
	s.eng = New(mustLoad(s.t, rules), Options{Now: func() time.Time { return s.now }, Registerer: prometheus.NewRegistry()})
	if state != nil {
		if err := s.eng.Restore(state); err != nil {
			s.t.Fatal(err)
		}
	}
	s.lane = s.eng.Lane(Target{Source: "ip1", Site: "mx.secret.example", Hosts: []string{"mx.secret.example"}})
}

// run sends for so long and returns what was taken and what was refused.
func (s *secret) run(d time.Duration) (taken, refused int) {
	for end := s.now.Add(d); s.now.Before(end); {
		g := s.lane.Send(s.now, Mail{Domain: "secret.example"})
		if !g.OK {
			s.now = g.At
			continue
		}
		o := &Observation{Result: message.Delivered}
		if m := s.now.Unix() / 60; m != s.minute {
			s.minute, s.sent = m, 0
		}
		if s.sent++; s.sent > s.limit {
			o.Result, o.Reply = message.Deferred, &message.Reply{Code: 451, Text: "slow down"}
			refused++
		} else {
			taken++
		}
		s.lane.Observe(s.now, o)
		g.Release()
		s.now = s.now.Add(time.Microsecond)
	}
	return taken, refused
}

// hold is the only hold there is.
func (s *secret) hold() HoldState {
	s.t.Helper()
	holds := s.eng.Holds(s.now)
	if len(holds) != 1 {
		s.t.Fatalf("%d holds, want 1", len(holds))
	}
	return holds[0]
}

// TestSecretRateThatCostsAPauseIsLearned sends for two days to a provider whose
// words about a rate that it keeps to itself mean a pause of half an hour.
func TestSecretRateThatCostsAPauseIsLearned(t *testing.T) {
	t.Parallel()
	const rules = `
[default]
rate = "100/s"
connections = 2
[[default.rule]]
name = "rate"
text = "slow down"
scope = "source"
action = "suspend"
for = "30m"
`
	for _, limit := range []int{60, 300} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			s := &secret{t: t, now: epoch, limit: limit}
			s.start(rules, nil)
			for hour := 0; hour < 3*24; {
				// The first day has four: the one that teaches nothing, the one in the
				// ramp after it, and what is found out as the pace grows again.
				pauses, least := 4, limit*60*24*75/100
				if hour > 0 {
					pauses, least = 1, limit*60*24*90/100
				}
				day := hour / 24
				taken, refused := 0, 0
				for ; hour < 24*(day+1); hour++ {
					ok, not := s.run(time.Hour)
					taken, refused = taken+ok, refused+not
				}
				if refused > pauses || taken < least {
					t.Errorf("day %d: %d refused, want at most %d, and %d taken, want at least %d", day, refused, pauses, taken, least)
				}
				if day == 1 { // a restart forgets nothing of it
					s.start(rules, s.eng.Snapshot(s.now))
				}
			}
			if h := s.hold(); h.State != StateRamp || h.Interval == 0 || !h.Settled {
				t.Errorf("the hold is %+v, want a settled pace", h)
			}
		})
	}
}

func TestSecretRateIsLearnedAndLookedAboveRarely(t *testing.T) {
	t.Parallel()
	limits := []int{30, 300, 570}
	if brief() {
		limits = limits[:1]
	}
	for _, limit := range limits {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			s := newSecret(t, limit)
			s.run(time.Hour)
			learning := 0
			for hour := 1; hour < 4*24; hour++ {
				taken, refused := s.run(time.Hour)
				if min := limit * 60 * 8 / 10; hour > 2 && taken < min {
					t.Errorf("hour %d: %d taken, want at least %d", hour, taken, min)
				}
				if refused > 3 {
					t.Errorf("hour %d: %d refused: what is known is tried again and again", hour, refused)
				}
				if learning += refused; hour == 23 && learning > 8 {
					t.Errorf("%d refused in the first day after its first hour, want at most 8", learning)
				}
				if hour == 23 {
					learning = 0
				}
			}
			// Three days, one look each, and what was under way then.
			if learning > 6 {
				t.Errorf("%d refused in the three days that followed, want at most 6", learning)
			}
			h := s.hold()
			if rate := float64(time.Second) / float64(h.TooFast) * 60; !h.Settled || rate < float64(limit) || rate > 1.2*float64(limit) {
				t.Errorf("settled %v, refused at %.0f a minute, limit %d", h.Settled, rate, limit)
			}
			if words := h.Learned(); !strings.HasPrefix(words, "refused at ") || !strings.Contains(words, "/s, looks above it at 2026-11-0") {
				t.Errorf("in words %q", words)
			}
			if h.Look != 24*time.Hour {
				t.Errorf("looks every %v, want 24h", h.Look)
			}
			if got := testutil.ToFloat64(s.eng.metrics.learned.WithLabelValues(DefaultProvider, "rate")); got != 1 {
				t.Errorf("metric says %v learned, want 1", got)
			}
		})
	}
}

func TestLearnedRateSurvivesARestartAndFollowsTheRules(t *testing.T) {
	t.Parallel()
	s := newSecret(t, 60)
	s.run(12 * time.Hour)
	before := s.hold()
	if before.TooFast == 0 {
		t.Fatal("nothing learned")
	}
	b, err := json.Marshal(s.eng.Snapshot(s.now))
	if err != nil {
		t.Fatal(err)
	}
	restart := func(rules string) HoldState {
		var state Snapshot
		if err := json.Unmarshal(b, &state); err != nil {
			t.Fatal(err)
		}
		s.start(rules, &state)
		return s.hold()
	}
	if got := restart(secretRules); got.TooFast != before.TooFast || got.Look != before.Look || got.Settled != before.Settled || !got.Until.Equal(before.Until) {
		t.Errorf("after a restart %+v, before %+v", got, before)
	}
	if _, refused := s.run(time.Hour); refused > 2 {
		t.Errorf("%d refused in the hour after a restart", refused)
	}
	for _, rate := range []string{"5/s", "50/s"} {
		other := "[default]\nrate = \"" + rate + "\"\n" + secretRules[len("\n[default]\nrate = \"10/s\"\n"):]
		if got := restart(other); got.TooFast != 0 {
			t.Errorf("with %s after a restart the old limit is still known", rate)
		}
		restart(secretRules)
		s.eng.Reload(mustLoad(t, other))
		if got := s.hold(); got.TooFast != 0 || got.Ceiling == before.Ceiling {
			t.Errorf("with %s after a reload the old limit is still known", rate)
		}
	}
	restart(secretRules)
	s.now = s.now.Add(26 * time.Hour)
	s.eng.Sweep(s.now)
	s.hold() // a day without mail is a Sunday
	s.now = s.now.Add(3 * 24 * time.Hour)
	s.eng.Sweep(s.now)
	if holds := s.eng.Holds(s.now); len(holds) > 0 {
		t.Errorf("after days without mail still %+v", holds)
	}
	if got := testutil.ToFloat64(s.eng.metrics.learned.WithLabelValues(DefaultProvider, "rate")); got != 0 {
		t.Errorf("metric says %v learned, want 0", got)
	}
}

func TestLiftedLimitIsFoundByItself(t *testing.T) {
	t.Parallel()
	limit, known, lifted := 60, 6*time.Hour, 48*time.Hour
	if brief() {
		limit, known, lifted = 300, time.Hour, 8*time.Hour
	}
	s := newSecret(t, limit)
	s.run(known)
	s.limit = 1 << 30
	s.run(lifted)
	if taken, _ := s.run(time.Minute); taken < 590 {
		t.Errorf("%d a minute %v after the limit went, want about 600", taken, lifted)
	}
}

// TestLooksNeedMailToSeeAnything: a step that no mail used proves nothing.
func TestLooksNeedMailToSeeAnything(t *testing.T) {
	t.Parallel()
	s := newSecret(t, 60)
	s.run(6 * time.Hour)
	before := s.hold()
	for range 48 { // two days of a message every half hour
		s.now = s.now.Add(30 * time.Minute)
		s.run(time.Microsecond)
	}
	if got := s.hold(); got.TooFast != before.TooFast {
		t.Errorf("refused at %v, after two idle days at %v", before.TooFast, got.TooFast)
	}
}

func TestSecretNumberOfConnectionsIsLearned(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 2, 5, 9} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			s := newSecret(t, 1<<30)
			refused, day := 0, 0
			var open []Grant
			for minute := range 4 * 24 * 60 {
				s.now = epoch.Add(time.Duration(minute) * time.Minute)
				for {
					g := s.lane.Connect(s.now, mxAddr)
					if !g.OK {
						break
					}
					open = append(open, g)
					if len(open) > limit {
						refused++
						s.lane.Observe(s.now, &Observation{Stage: message.StageBanner, Reply: &message.Reply{Code: 421, Text: "too many connections"}, Result: message.Deferred})
						open[len(open)-1].Release()
						open = open[:len(open)-1]
						break
					}
				}
				s.lane.Observe(s.now, &Observation{Result: message.Delivered})
				for len(open) > 0 && minute%7 == 0 { // connections end
					open[0].Release()
					open = open[1:]
				}
				if minute == 24*60 {
					day = refused
				}
			}
			if day > 10 || refused-day > 4 {
				t.Errorf("%d refused in the first day, %d in three more", day, refused-day)
			}
			h := s.hold()
			if h.TooMany != int64(limit+1) || h.WorkedConnections != int64(limit) {
				t.Errorf("refused at %d, worked with %d, limit %d", h.TooMany, h.WorkedConnections, limit)
			}
			if got := testutil.ToFloat64(s.eng.metrics.learned.WithLabelValues(DefaultProvider, "connections")); got != 1 {
				t.Errorf("metric says %v learned, want 1", got)
			}
		})
	}
}
