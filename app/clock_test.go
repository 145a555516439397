package app

import (
	"log/slog"
	"testing"
	"time"
)

// hands is a steady clock with both of its sources in hand.
type hands struct {
	wall time.Time
	mono time.Duration
}

func (h *hands) pass(d time.Duration) {
	h.wall = h.wall.Add(d)
	h.mono += d
}

func TestStepsOfTheWallClockNeitherFloodNorStall(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		step time.Duration
		back time.Duration // the step is taken back after this; 0 means never
		want time.Duration // what the engine has followed an hour later
	}{
		"drift":                {step: 300 * time.Millisecond},
		"an hour forward":      {step: time.Hour, want: time.Hour},
		"a day forward":        {step: 24 * time.Hour, want: 24 * time.Hour},
		"a glitch of a day":    {step: 24 * time.Hour, back: 4 * time.Minute},
		"two days forward":     {step: 48 * time.Hour},
		"ten years forward":    {step: 10 * 365 * 24 * time.Hour},
		"an hour back":         {step: -time.Hour},
		"a day back":           {step: -24 * time.Hour},
		"ten years back":       {step: -10 * 365 * 24 * time.Hour},
		"back and right again": {step: -time.Hour, back: 30 * time.Minute},
	} {
		h := &hands{wall: start}
		s := &steady{wall: func() time.Time { return h.wall }, mono: func() time.Duration { return h.mono }, log: slog.New(slog.DiscardHandler)}
		s.base.Store(start.UnixNano())
		s.Now()
		h.pass(time.Minute)
		h.wall = h.wall.Add(c.step)
		last := s.Now()
		if got := last.Sub(start); got != time.Minute {
			t.Errorf("%s: a single reading moved the engine by %v", name, got-time.Minute)
		}
		followed := time.Duration(0)
		for gone := time.Duration(0); gone < time.Hour; gone += 10 * time.Second {
			if c.back > 0 && gone == c.back {
				h.wall = h.wall.Add(-c.step)
			}
			h.pass(10 * time.Second)
			now := s.Now()
			if now.Before(last.Add(10 * time.Second)) {
				t.Fatalf("%s: the engine's time stood still or went back", name)
			}
			if jump := now.Sub(last) - 10*time.Second; jump > 0 {
				followed += jump
				if gone < believeStep-10*time.Second {
					t.Errorf("%s: believed after %v", name, gone)
				}
			}
			last = now
		}
		if followed != c.want {
			t.Errorf("%s: the engine followed by %v, want %v", name, followed, c.want)
		}
	}
}
