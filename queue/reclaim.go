package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// A body that is deleted goes on taking up its place in a blob file until a
// compaction meets the deletion, and nothing makes the store hurry: when a large
// queue has drained and little follows, that is never. So the bodies deleted are
// added up, and when they are a quarter of what the store takes up the keys of
// bodies, which are small, are compacted over the range they were in.
const (
	reclaimEvery = time.Minute
	reclaimFrom  = 64 << 20 // octets of bodies; less is not worth while
	reclaimShare = 4
)

// dropped is what was deleted since the last reclaim.
type dropped struct {
	mu          sync.Mutex // protects everything below
	octets      int64
	first, last message.ID
}

// note adds a message whose body is deleted.
func (d *dropped) note(id message.ID, size int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.octets == 0 || string(id[:]) < string(d.first[:]) {
		d.first = id
	}
	if d.octets == 0 || string(id[:]) > string(d.last[:]) {
		d.last = id
	}
	d.octets += int64(size)
}

// take returns the range and begins anew, if at least least octets were deleted.
func (d *dropped) take(least int64) (s store.Span, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.octets < least {
		return s, false
	}
	d.octets = 0
	return store.Span{Start: store.BodySpan(d.first).Start, End: store.BodySpan(d.last).End}, true
}

// runReclaim gives the space of deleted bodies back.
func (m *Manager) runReclaim(ctx context.Context) error {
	tick := time.NewTicker(reclaimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := m.reclaim(ctx); err != nil {
			return err
		}
	}
}

func (m *Manager) reclaim(ctx context.Context) error {
	span, ok := m.dropped.take(max(reclaimFrom, int64(m.db.Metrics().DiskSpaceUsage()/reclaimShare)))
	if !ok {
		return nil
	}
	err := m.db.Compact(ctx, span)
	switch {
	case store.IsDamage(err): // the space stays in use; mail goes on
		m.deps.Logger.Error("space cannot be given back: a table is damaged", "err", err)
	case err != nil && !errors.Is(err, context.Canceled):
		return fmt.Errorf("queue: reclaim: %w", err)
	}
	return nil
}
