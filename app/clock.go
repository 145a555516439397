package app

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// steady is the clock of an engine. It takes the wall clock's word once, at the
// start, and then counts the time that goes by, so that a step of the wall clock
// neither makes a queue's worth of mail due or too old at once, nor leaves it
// waiting, nor opens the windows in which a provider's limits are counted.
//
// A step forward is believed when it has lasted: a machine that slept, or a clock
// that was wrong at the start and was put right. One beyond maxStep is not, and
// neither is any step back: time that goes back would stall whatever waits for a
// time. Both take effect with the next start, for which somebody has looked at
// the clock.
type steady struct {
	wall func() time.Time     // may step
	mono func() time.Duration // since the start; does not
	log  *slog.Logger

	base atomic.Int64 // wall time at mono 0, as believed; Unix nanoseconds
	next atomic.Int64 // mono of the next look at the wall clock

	mu    sync.Mutex    // protects everything below
	since time.Duration // mono when the wall clock was first seen to be ahead; 0 means it is not
	ahead time.Duration // by how much, then
	told  time.Duration // mono of the last complaint
}

const (
	compareEvery = time.Second
	believeStep  = 5 * time.Minute // how long a step must have lasted
	smallStep    = time.Second     // less is drift
	maxStep      = 24 * time.Hour
	tellEvery    = 10 * time.Minute
)

// newSteady returns a steady clock on the real one.
func newSteady(log *slog.Logger) *steady {
	start := time.Now()
	s := &steady{
		wall: func() time.Time { return time.Now().Round(0) }, // without the monotonic reading
		mono: func() time.Duration { return time.Since(start) },
		log:  log,
	}
	s.base.Store(start.UnixNano())
	s.next.Store(int64(compareEvery))
	return s
}

// Now is the engine's time. It never goes back. It is asked a dozen times for
// each message, by all connections at once, so it takes no lock.
func (s *steady) Now() time.Time {
	mono := s.mono()
	if int64(mono) >= s.next.Load() {
		s.look(mono)
	}
	return s.at(mono)
}

func (s *steady) at(mono time.Duration) time.Time { return time.Unix(0, s.base.Load()+int64(mono)) }

// Offset is how far the wall clock is ahead of the engine's.
func (s *steady) Offset() time.Duration { return s.wall().Sub(s.at(s.mono())) }

// look compares the clocks, unless somebody else has just done so.
func (s *steady) look(mono time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if int64(mono) < s.next.Load() {
		return
	}
	s.next.Store(int64(mono + compareEvery))
	offset := s.wall().Sub(s.at(mono))
	switch {
	case offset < smallStep && offset > -smallStep:
		s.since, s.told = 0, 0
		return
	case offset < 0 || offset > maxStep:
		s.since = 0
		if s.told == 0 || mono-s.told >= tellEvery {
			s.told = mono
			s.log.Error("the clock was set; the engine keeps its own time until it is started again", "offset", offset.Round(time.Millisecond))
		}
		return
	case s.since == 0 || offset-s.ahead >= smallStep || s.ahead-offset >= smallStep:
		s.since, s.ahead = mono, offset
		s.log.Warn("the clock was set forward; the engine follows if it stays so", "offset", offset.Round(time.Millisecond), "after", believeStep)
		return
	}
	if mono-s.since >= believeStep {
		s.base.Add(int64(offset))
		s.since = 0
		s.log.Warn("the engine follows the clock", "offset", offset.Round(time.Millisecond))
	}
}
