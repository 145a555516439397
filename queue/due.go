package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/store"
)

// promoteChunk is how many items one commit moves from due to ready.
const promoteChunk = 1000

// idle is how long promotion and the sweep sleep when nothing is known to be
// due. They look again then, because a wake-up may have met a full channel.
const idle = time.Minute

// early knows a time before which nothing is due, so that promotion need not pass
// over the tombstones of everything it has promoted before.
type early struct {
	mu     sync.Mutex // protects everything below
	from   time.Time
	latest time.Time // earliest time that became visible since begin; zero for none
}

// note says that an item due at t has become visible.
func (e *early) note(t time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t.Before(e.from) {
		e.from = t
	}
	if e.latest.IsZero() || t.Before(e.latest) {
		e.latest = t
	}
}

// begin returns where to look from. What becomes visible before is seen by an
// iterator made after; what comes later is noted until end.
func (e *early) begin() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.latest = time.Time{}
	return e.from
}

// end says that an iterator made since begin has found nothing before t.
func (e *early) end(t time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.latest.IsZero() && e.latest.Before(t) {
		t = e.latest
	}
	e.from = t
}

// wakeDue makes the promotion look again no later than t, where something
// has become due.
func (m *Manager) wakeDue(t time.Time) {
	m.early.note(t)
	for {
		select {
		case m.due <- t:
			return
		default:
		}
		// Keep the earlier of the two.
		select {
		case other := <-m.due:
			if other.Before(t) {
				t = other
			}
		default:
		}
	}
}

// runPromotion moves items to their ready queues when their time comes.
func (m *Manager) runPromotion(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var next time.Time // what timer is set for
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case t := <-m.due:
			if t.Before(next) {
				next = t
				timer.Reset(next.Sub(m.deps.Now()))
			}
			continue
		case <-timer.C:
		}
		for {
			moved, due, err := m.promote(m.deps.Now())
			if err != nil {
				return err
			}
			if moved < promoteChunk {
				next = due
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		now := m.deps.Now()
		if next.IsZero() || next.Sub(now) > idle {
			next = now.Add(idle)
		}
		timer.Reset(next.Sub(now))
	}
}

// promote moves up to promoteChunk items that are due at now, in one commit,
// and returns when the next one behind them is due.
func (m *Manager) promote(now time.Time) (moved int, next time.Time, err error) {
	type arrival struct {
		key store.QueueKey
		it  *Item
	}
	var arrivals []arrival
	b := m.db.NewBatch(0)
	defer b.Close()
	m.moves.Lock()
	b.OnVisible(m.moves.Unlock)
	var kbuf, lbuf [128]byte
	var last time.Time
	// What lies where the disk cannot be read ends at its expiry.
	_, err = m.db.EachReadable(store.DueFrom(m.early.begin()), func(k, v []byte) (bool, error) {
		t, id, n, err := store.ParseDueKey(k)
		if err != nil {
			return false, err
		}
		if last = t; t.After(now) || moved == promoteChunk {
			next = t
			return false, nil
		}
		moved++
		key, record, err := splitDue(v)
		var it *Item
		if err == nil {
			it, err = decodeItem(record)
		}
		if err != nil {
			return true, m.quarantine(k, v, err)
		}
		it.seq = b.Reserve(1)
		ready := store.ReadyKey(kbuf[:0], &key, it.seq)
		b.Delete(k)
		b.Set(ready, record)
		b.Set(store.LocatorKey(lbuf[:0], id, n), ready)
		arrivals = append(arrivals, arrival{key, it})
		return true, nil
	})
	if err != nil {
		return 0, next, fmt.Errorf("queue: promote: %w", err)
	}
	b.AfterCommit(func(err error) {
		if err != nil {
			return
		}
		for i := range arrivals {
			m.enqueue(&arrivals[i].key, arrivals[i].it)
		}
	})
	// Nothing is promised by a promotion: if it is lost, the item is still due.
	if err := b.CommitLazy(); err != nil {
		return 0, next, fmt.Errorf("queue: promote: %w", err)
	}
	if !last.IsZero() {
		m.early.end(last)
	}
	return moved, next, nil
}
