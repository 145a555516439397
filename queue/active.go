package queue

import (
	"context"
	"time"

	"github.com/tradewind-mta/tradewind/store"
)

// queue returns the queue in memory, or nil.
func (m *Manager) queue(key *store.QueueKey) *Queue {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.queues[*key]
}

// enqueue hands a committed ready item to its queue, or leaves it on disk when
// the queue is not in memory and there is no room for another.
func (m *Manager) enqueue(key *store.QueueKey, it *Item) {
	for {
		q := m.queue(key)
		if q == nil {
			q = m.activate(key, it.seq)
		}
		if q == nil {
			m.dropBody(it)
			return
		}
		woke, ok := q.offer(it)
		if woke {
			m.deps.Ready(q)
		}
		if ok {
			return
		}
	}
}

// activate brings a queue into memory for the item at place seq. It returns nil
// when memory for queues is used up; the search will come back to it.
func (m *Manager) activate(key *store.QueueKey, seq uint64) *Queue {
	suspended := m.suspended(key)
	m.mu.Lock()
	defer m.mu.Unlock()
	if q := m.queues[*key]; q != nil {
		return q
	}
	if suspended {
		m.parked = true
		return nil
	}
	limit := m.Config().MaxActive
	if len(m.queues) >= limit-limit/4 {
		m.wake(m.crowded)
	}
	if len(m.queues) >= limit {
		m.left++
		return nil
	}
	q := &Queue{m: m, key: *key}
	if m.left == m.seen && !m.parked {
		// Nothing of this queue lies on disk but what is being committed now.
		q.complete = true
		q.cursor = seq - 1
	} else {
		q.left = seq
	}
	m.queues[*key] = q
	return q
}

func (m *Manager) wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// reapEvery is how often queues without items are dropped from memory; that
// happens at once when they take up three quarters of the room, or mail to many
// domains would be pushed out to disk by queues that are done.
const reapEvery = 10 * time.Second

// runSearch looks for queues on disk that are not in memory, whenever there may
// be some and there is room for them, and drops those that have run empty.
func (m *Manager) runSearch(ctx context.Context) error {
	reap := time.NewTicker(reapEvery)
	defer reap.Stop()
	busy := false // what is in memory has work: looking again at once is in vain
	for {
		if err := m.searchDisk(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-reap.C:
			m.reap()
			busy = false
		case <-m.crowded:
			if !busy {
				busy = m.reap() < m.Config().MaxActive/8
			}
		case <-m.search:
		}
	}
}

// searchDisk seeks from queue to queue through the ready keys and brings those
// it finds into memory, up to the limit. It goes on where the last search
// stopped, so that every queue has its turn however few fit.
func (m *Manager) searchDisk(ctx context.Context) error {
	m.mu.RLock()
	left := m.left
	nothing := m.left == m.seen
	m.mu.RUnlock()
	if nothing {
		return nil
	}
	all := store.ReadyQueuesSpan(nil)
	spans := []store.Span{all}
	if m.searched != nil {
		from := store.ReadyQueuesSpan(m.searched).Start
		spans = []store.Span{{Start: from, End: all.End}, {Start: all.Start, End: from}}
	}
	for _, span := range spans {
		room, err := m.searchSpan(ctx, span)
		if err != nil || !room {
			return err
		}
	}
	m.mu.Lock()
	m.seen = left
	m.mu.Unlock()
	return nil
}

// searchSpan reports false when it stopped because memory for queues is full.
func (m *Manager) searchSpan(ctx context.Context, span store.Span) (room bool, err error) {
	for {
		room, err := m.searchReadable(ctx, &span)
		if !store.IsDamage(err) {
			return room, err
		}
		if span.Start, err = m.db.ReadableAfter(span); err != nil || span.Start == nil {
			return true, err
		}
	}
}

// searchReadable moves span's start along, so that the search can go on behind
// what is damaged.
func (m *Manager) searchReadable(ctx context.Context, span *store.Span) (room bool, err error) {
	it, err := m.db.NewIter(*span)
	if err != nil {
		return false, err
	}
	defer func() {
		if closing := it.Close(); err == nil {
			err = closing // it tells a failed read again
		}
	}()
	for ok := it.First(); ok; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		key, _, err := store.ParseReadyKey(it.Key())
		if err != nil {
			m.deps.Logger.Error("ready key of an unknown shape is left alone", "err", err)
			ok = it.Next()
			continue
		}
		if !m.adopt(&key) {
			return false, nil
		}
		m.searched = &key
		span.Start = store.ReadyQueuesSpan(&key).Start
		ok = it.SeekGE(span.Start)
	}
	return true, it.Error()
}

// adopt makes sure that a queue found on disk is in memory and being filled. It
// reports false when there is no room.
func (m *Manager) adopt(key *store.QueueKey) bool {
	if m.suspended(key) {
		m.mu.Lock()
		m.parked = true
		m.mu.Unlock()
		return true
	}
	q := m.ensure(key, m.Config().MaxActive)
	if q == nil {
		return false
	}
	q.mu.Lock()
	refill := q.wantsRefill()
	q.mu.Unlock()
	if refill {
		m.startRefill(q)
	}
	return true
}

// ensure returns the queue in memory, bringing it there if there are fewer than
// limit; otherwise nil.
func (m *Manager) ensure(key *store.QueueKey, limit int) *Queue {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queues[*key]
	if q == nil && len(m.queues) < limit {
		// What was left on disk before now has a place below the next one.
		q = &Queue{m: m, key: *key, left: m.db.Sequence().Last()}
		m.queues[*key] = q
	}
	return q
}

// reap drops the queues that have nothing to send, and returns how many.
func (m *Manager) reap() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.queues)
	for key, q := range m.queues {
		q.mu.Lock()
		if q.complete && len(q.window) == 0 && q.leased == 0 && !q.refilling && len(q.removing) == 0 {
			q.gone = true
			delete(m.queues, key)
		}
		q.mu.Unlock()
	}
	if m.left != m.seen {
		m.wake(m.search)
	}
	return before - len(m.queues)
}

// Evict drops a queue from memory that cannot be served for long, to make room
// for others; its items stay on disk and the search finds it again. It reports
// false when items of it are leased.
func (m *Manager) Evict(q *Queue) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.drop(q) {
		return false
	}
	m.left++
	return true
}

// Park drops a queue from memory whose mail is suspended; it stays on disk until
// Unpark. It reports false when items of it are leased.
func (m *Manager) Park(q *Queue) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.drop(q) {
		return false
	}
	m.parked = true
	return true
}

// Unpark looks for the queues on disk again: something has been resumed.
func (m *Manager) Unpark() {
	m.mu.Lock()
	parked := m.parked
	if parked {
		m.parked = false
		m.left++
	}
	m.mu.Unlock()
	if parked {
		m.wake(m.search)
	}
}

func (m *Manager) suspended(key *store.QueueKey) bool {
	return m.deps.Suspended != nil && m.deps.Suspended(key)
}

// drop takes a queue without leased items out of memory. REQUIRES: m.mu.
func (m *Manager) drop(q *Queue) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.leased > 0 || q.refilling || q.gone || len(q.removing) > 0 {
		return false
	}
	for _, it := range q.window {
		m.dropBody(it)
	}
	m.items.Add(-int64(len(q.window)))
	q.window, q.gone = nil, true
	delete(m.queues, q.key)
	return true
}
