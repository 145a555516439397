package queue

import (
	"slices"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/store"
)

// Queue is one queue that has, or lately had, ready items: its window in
// memory and its place on disk. See the package comment for how items get in.
type Queue struct {
	m   *Manager
	key store.QueueKey

	at int // place in its campaign's share; Manager.mu protects it

	mu        sync.Mutex // protects everything below
	window    []*Item    // ready and unleased, oldest first
	cursor    uint64     // items at or before it have been in the window
	complete  bool       // nothing ready lies behind the cursor
	left      uint64     // last place that was left on disk
	leased    int
	refilling bool
	gone      bool      // no longer in Manager.queues
	served    time.Time // when something was last leased, or the queue came to memory
	// removing holds the places that somebody is deleting from disk. They are
	// true once the deletion is visible; they stay while a refill that may
	// have read them is under way.
	removing map[uint64]bool
}

// Key names the queue.
func (q *Queue) Key() store.QueueKey { return q.key }

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
// short, so that many small queues cannot add up: what the windows hold stays
// below twice MaxItems, or one for each queue if that is more.
func (m *Manager) windowSize() int {
	c := m.Config()
	if m.items.Load() < int64(c.MaxItems) {
		return c.Window
	}
	return max(1, min(c.Window, c.MaxItems/int(max(1, m.active.Load()))))
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
		q.served = q.m.deps.Now()
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
