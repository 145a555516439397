package store

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// sequenceBlock is how many places are claimed on disk at a time: after a
// crash numbering goes on behind the claimed block, so no place is used twice.
const sequenceBlock = 1 << 20

// Sequencer numbers what is committed: events in the journal and items in
// ready queues. Batches commit in another order than they were numbered in, so
// a reader that follows the numbers needs to know how far they are complete:
// the Horizon.
//
// Lock order: mu is innermost; claim is called with it held and must not take
// another lock of ours.
type Sequencer struct {
	mu      sync.Mutex // protects everything below
	next    uint64
	bound   uint64                   // places below bound are claimed on disk
	claim   func(bound uint64) error // makes bound durable no later than any place below it
	open    []reservation            // in order of first; the head is not done
	horizon uint64
	waiters chan struct{}   // closed when the horizon moves; nil when nobody waits
	died    <-chan struct{} // closed when the horizon moves no more
}

type reservation struct {
	first uint64
	done  bool
}

// newSequencer starts numbering at first. It ends when died is closed.
func newSequencer(first uint64, died <-chan struct{}, claim func(uint64) error) *Sequencer {
	return &Sequencer{next: first, bound: first, horizon: first - 1, died: died, claim: claim}
}

// reserve claims n consecutive places. They hold the horizon back until done
// is called with the first of them.
func (s *Sequencer) reserve(n int) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next+uint64(n) > s.bound {
		bound := s.next + uint64(n) + sequenceBlock
		if err := s.claim(bound); err != nil {
			return 0, err
		}
		s.bound = bound
	}
	first := s.next
	s.next += uint64(n)
	s.open = append(s.open, reservation{first: first})
	return first, nil
}

// done says that the places reserved by one batch, each named by the first of
// its reservation, are committed or given up. It takes them together: one by one,
// ten thousand messages in a batch would move what stands behind each head.
func (s *Sequencer) done(places []uint64) {
	if len(places) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, first := range places {
		i, _ := slices.BinarySearchFunc(s.open, first, func(r reservation, first uint64) int { return cmp.Compare(r.first, first) })
		s.open[i].done = true
	}
	n := 0
	for n < len(s.open) && s.open[n].done {
		n++
	}
	if n == 0 {
		return
	}
	s.open = slices.Delete(s.open, 0, n)
	s.horizon = s.next - 1
	if len(s.open) > 0 {
		s.horizon = s.open[0].first - 1
	}
	if s.waiters != nil {
		close(s.waiters)
		s.waiters = nil
	}
}

// Horizon is the last place up to which everything is committed durably or
// given up for good: nothing will appear at or before it any more.
func (s *Sequencer) Horizon() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.horizon
}

// Last is the last place given out so far.
func (s *Sequencer) Last() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next - 1
}

// Wait returns when the horizon is past after, with ctx's error, or with ErrDead.
func (s *Sequencer) Wait(ctx context.Context, after uint64) error {
	for {
		s.mu.Lock()
		if s.horizon > after {
			s.mu.Unlock()
			return nil
		}
		if s.waiters == nil {
			s.waiters = make(chan struct{})
		}
		ch := s.waiters
		s.mu.Unlock()
		select {
		case <-ch:
		case <-s.died:
			return ErrDead
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
