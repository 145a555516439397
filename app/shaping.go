package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/throttle"
)

// shapingState keeps in the ledger what package throttle has learned: holds,
// suspensions, warm-up counts, the round robin of pools, what brakes have
// counted, and how much of slow rates is used up.
type shapingState struct {
	a      *App
	now    chan struct{} // asks for a save at once
	resume *time.Timer   // for when the next suspension runs out

	mu    sync.Mutex // protects saved, and is held while saving
	saved throttle.Parts
}

// shapingEvery is how often the state is saved while nothing asks for it. A
// crash loses what rates and brakes have counted since; holds, suspensions and
// warm-ups are saved before anything depends on them.
const shapingEvery = 5 * time.Second

func newShapingState(a *App) *shapingState {
	return &shapingState{a: a, now: make(chan struct{}, 1), saved: throttle.Parts{}}
}

// poke asks for a save at once. It does not block.
func (s *shapingState) poke() {
	select {
	case s.now <- struct{}{}:
	default:
	}
}

// heard saves at once when a hold or a suspension has changed.
func (s *shapingState) heard(events []*message.Event) {
	for _, e := range events {
		switch e.Type {
		case message.EventEgressThrottled, message.EventEgressSuspended, message.EventEgressResumed:
			s.poke()
			return
		}
	}
}

// shapingKey is where a part of the state lies.
func shapingKey(part string) []byte { return store.StateKey(nil, "throttle/"+part) }

// load puts back what was saved. What this release cannot read is left out and
// said aloud: mail must not wait for it.
func (s *shapingState) load() error {
	for _, name := range throttle.PartNames() {
		v, err := s.a.ledger.Get(shapingKey(name))
		if err != nil {
			return fmt.Errorf("app: shaping state: %w", err)
		}
		if len(v) > 0 {
			s.saved[name] = v
		}
	}
	snap, err := s.saved.Snapshot()
	if err != nil {
		s.a.log.Error("some of the shaping state cannot be read and begins anew", "err", err)
	}
	if err := s.a.throttle.Restore(snap); err != nil {
		return fmt.Errorf("app: shaping state: %w", err)
	}
	return nil
}

// run saves now and then, whenever it is asked to, and at the end.
func (s *shapingState) run(ctx context.Context) error {
	tick := time.NewTicker(shapingEvery)
	defer tick.Stop()
	s.resume = time.NewTimer(time.Hour)
	defer s.resume.Stop()
	for {
		if next := s.a.throttle.NextResume(); !next.IsZero() {
			s.resume.Reset(max(0, next.Sub(s.a.opt.Now())))
		}
		select {
		case <-ctx.Done():
			return s.save(false)
		case <-s.resume.C:
			s.a.record(s.a.throttle.Sweep(s.a.opt.Now())...)
			s.a.mta.SuspensionsChanged()
		case <-s.now:
		case <-tick.C:
		}
		if err := s.save(true); err != nil {
			return err
		}
	}
}

// save writes what has changed in one durable commit. While mail is being sent,
// it writes down warm-up volume ahead of its use.
func (s *shapingState) save(running bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.a.throttle.Snapshot(s.a.opt.Now())
	if running {
		s.a.throttle.Reserve(snap)
	}
	parts, err := snap.Parts()
	if err != nil {
		return err
	}
	changed := parts.Changed(s.saved)
	if len(changed) > 0 {
		b := s.a.ledger.NewBatch(0)
		defer b.Close()
		for name, v := range changed {
			b.Set(shapingKey(name), v)
		}
		if err := b.Commit(); err != nil {
			if errors.Is(err, store.ErrDead) {
				return nil // whoever owns the store ends the process
			}
			return fmt.Errorf("app: save the shaping state: %w", err)
		}
		s.saved = parts
	}
	s.a.throttle.Reserved(snap)
	return nil
}
