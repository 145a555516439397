package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/tradewind-mta/tradewind/store"
)

// Queue is one queue that has, or lately had, ready items: its window in
// memory and its place on disk. See the package comment for how items get in.
type Queue struct {
	m   *Manager
	key store.QueueKey

	mu        sync.Mutex // protects everything below
	window    []*Item    // ready and unleased, oldest first
	cursor    uint64     // items at or before it have been in the window
	complete  bool       // nothing ready lies behind the cursor
	left      uint64     // last place that was left on disk
	leased    int
	refilling bool
	gone      bool // no longer in Manager.queues
	// removing holds the places that somebody is deleting from disk. They are
	// true once the deletion is visible; they stay while a refill that may
	// have read them is under way.
	removing map[uint64]bool
}

// Key names the queue.
func (q *Queue) Key() store.QueueKey { return q.key }

// refillChunk is how many items one read of the disk fetches at the most; it
// never fetches more than a window.
const refillChunk = 256

// offer takes an item whose commit has just become visible and durable into
// the window if it belongs there. It reports whether the window was empty
// before, and false for ok when the queue has left memory meanwhile.
func (q *Queue) offer(it *Item) (woke, ok bool) {
	q.mu.Lock()
	if q.gone {
		q.mu.Unlock()
		return false, false
	}
	it.queue, it.key = q, &q.key
	if it.seq > q.cursor {
		if !q.complete || len(q.window) >= q.m.windowSize() {
			q.complete = false
			q.left = max(q.left, it.seq)
			refill := q.wantsRefill()
			q.mu.Unlock()
			q.m.dropBody(it)
			if refill {
				q.m.startRefill(q)
			}
			return false, true
		}
		q.cursor = it.seq
	}
	q.window = append(q.window, it)
	q.m.items.Add(1)
	woke = len(q.window) == 1
	q.mu.Unlock()
	return woke, true
}

// windowSize shrinks the window of every queue when memory for items runs
// short, so that many small queues cannot add up.
func (m *Manager) windowSize() int {
	c := m.Config()
	if m.items.Load() >= int64(c.MaxItems) {
		return min(c.Window, 16)
	}
	return c.Window
}

// Lease takes up to limit items from the front of the window. All of them are
// of the same message and sender as the first, so that they can share one
// transaction. It returns nil when the window is empty; Deps.Ready says when it
// no longer is.
func (q *Queue) Lease(limit int) []*Item {
	q.mu.Lock()
	n := 0
	for n < len(q.window) && n < limit {
		if it := q.window[n]; n > 0 && (it.ID != q.window[0].ID || it.Recipient.ReturnPath != q.window[0].Recipient.ReturnPath) {
			break
		}
		n++
	}
	var items []*Item
	if n > 0 {
		items = make([]*Item, n)
		copy(items, q.window)
		clear(q.window[:n])
		q.window = q.window[n:]
		if len(q.window) == 0 {
			q.window = nil // or its head would keep the array alive
		}
		q.leased += n
		q.m.items.Add(-int64(n))
	}
	refill := q.wantsRefill()
	q.mu.Unlock()
	if refill {
		q.m.startRefill(q)
	}
	return items
}

// Len is the number of items in the window, and more whether others lie on
// disk behind it.
func (q *Queue) Len() (n int, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.window), !q.complete
}

// Release puts leased items back at the front of the window: no attempt was
// made. The caller goes on to serve the queue.
func (q *Queue) Release(items []*Item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.window = append(append(make([]*Item, 0, len(items)+len(q.window)), items...), q.window...)
	q.leased -= len(items)
	q.m.items.Add(int64(len(items)))
}

// wantsRefill claims the refill. REQUIRES: q.mu.
func (q *Queue) wantsRefill() bool {
	if q.refilling || q.complete || q.gone || len(q.window) > q.m.windowSize()/2 {
		return false
	}
	q.refilling = true
	return true
}

func (m *Manager) startRefill(q *Queue) {
	m.wg.Go(func() {
		err := m.refill(q)
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, store.ErrDead) {
			m.deps.Logger.Error("refill of a queue from disk", "queue", q.key.String(), "err", err)
		}
	})
}

// refill reads the next ready items of q from disk into its window.
// REQUIRES: the caller has claimed q.refilling.
func (m *Manager) refill(q *Queue) error {
	for {
		select {
		case m.refills <- struct{}{}:
		case <-m.ctx.Done():
			return m.ctx.Err()
		}
		woke, next, horizon, err := m.refillOnce(q)
		<-m.refills
		if err != nil {
			q.mu.Lock()
			q.refilling = false
			q.mu.Unlock()
			return err
		}
		if woke {
			m.deps.Ready(q)
		}
		switch next {
		case refillDone:
			return nil
		case refillAgain:
		case refillLater:
			// It moves within the time of a commit.
			if err := m.db.Sequence().Wait(m.ctx, horizon); err != nil {
				return err
			}
		}
	}
}

// refillStep is what follows one read of the disk.
type refillStep uint8

const (
	refillDone  refillStep = iota // q.refilling has been given back
	refillAgain                   // nothing that was read can be used, and more follows
	refillLater                   // items are known to lie behind the horizon
)

// refillOnce reads the disk once, up to the horizon it returns.
func (m *Manager) refillOnce(q *Queue) (woke bool, next refillStep, horizon uint64, err error) {
	q.mu.Lock()
	after := q.cursor
	q.mu.Unlock()
	horizon = m.db.Sequence().Horizon()

	var items []*Item
	last, exhausted, read := after, true, 0
	limit := min(refillChunk, m.windowSize())
	if horizon > after {
		_, err = m.db.EachReadable(store.ReadySpan(&q.key, after, horizon), func(k, v []byte) (bool, error) {
			if read == limit {
				exhausted = false
				return false, nil
			}
			read++
			_, seq, err := store.ParseReadyKey(k)
			if err != nil {
				return false, err
			}
			last = seq
			it, err := decodeItem(v)
			if err != nil {
				m.moves.Lock()
				defer m.moves.Unlock()
				return true, m.quarantine(k, v, err)
			}
			it.queue, it.key, it.seq = q, &q.key, seq
			items = append(items, it)
			return true, nil
		})
		if err != nil {
			return false, refillDone, horizon, fmt.Errorf("queue: refill %s: %w", q.key, err)
		}
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	was := len(q.window)
	for _, it := range items {
		if _, ok := q.removing[it.seq]; !ok {
			q.window = append(q.window, it)
		}
	}
	for seq, visible := range q.removing {
		if visible {
			delete(q.removing, seq)
		}
	}
	m.items.Add(int64(len(q.window) - was))
	if exhausted {
		last = max(last, horizon, after)
	}
	q.cursor = max(q.cursor, last)
	q.complete = exhausted && q.left <= q.cursor
	woke = was == 0 && len(q.window) > 0
	switch {
	case q.complete || len(q.window) > 0:
	case exhausted:
		return woke, refillLater, horizon, nil
	default:
		return woke, refillAgain, horizon, nil
	}
	q.refilling = false
	return woke, refillDone, horizon, nil
}

// takeResult is what take came to.
type takeResult uint8

const (
	takeDone   takeResult = iota // claimed; taken must follow
	takeLeased                   // somebody has leased the item
	takeGone                     // the queue has left memory: ask for it again
)

// take claims the unleased item at place seq for somebody who is about to
// delete it from disk. After takeDone, taken must follow when the deletion is
// visible or given up.
func (q *Queue) take(seq uint64) takeResult {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return takeGone
	}
	if seq <= q.cursor {
		i := slices.IndexFunc(q.window, func(it *Item) bool { return it.seq == seq })
		if i < 0 {
			return takeLeased
		}
		q.m.items.Add(-1)
		q.m.dropBody(q.window[i])
		q.window = slices.Delete(q.window, i, i+1)
	}
	if q.removing == nil {
		q.removing = make(map[uint64]bool)
	}
	q.removing[seq] = false
	return takeDone
}

// taken ends what take began. It reports whether the caller is to refill the
// queue, which may have come to memory only to be taken from.
func (q *Queue) taken(seq uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refilling {
		q.removing[seq] = true
	} else {
		delete(q.removing, seq)
	}
	return q.wantsRefill()
}

// settled ends the lease of n items.
func (q *Queue) settled(n int) {
	q.mu.Lock()
	q.leased -= n
	q.mu.Unlock()
}
