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
// when memory for queues is used up and nobody has to give way; the search will
// come back to it.
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
	if m.tight() {
		m.wake(m.crowded)
	}
	if !m.room(key) {
		m.left++
		return nil
	}
	q := &Queue{m: m, key: *key, served: m.deps.Now()}
	if m.left == m.seen && !m.parked {
		// Nothing of this queue lies on disk but what is being committed now.
		q.complete = true
		q.cursor = seq - 1
	} else {
		q.left = seq
	}
	m.keep(q)
	return q
}

// keep puts q among the queues in memory. REQUIRES: m.mu.
func (m *Manager) keep(q *Queue) {
	m.queues[q.key] = q
	m.shares.add(q)
	m.active.Add(1)
}

// forget takes q, whose gone is set, out again. REQUIRES: m.mu.
func (m *Manager) forget(q *Queue) {
	delete(m.queues, q.key)
	m.shares.remove(q)
	m.active.Add(-1)
}

// room reports whether one more queue fits into memory, and makes room for it if
// another one has to give way to key. REQUIRES: m.mu.
func (m *Manager) room(key *store.QueueKey) bool {
	if len(m.queues) < m.Config().MaxActive {
		return true
	}
	for _, q := range m.shares.victims(key) {
		if m.evict(q) {
			return true
		}
	}
	return false
}

func (m *Manager) wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// How often queues without items are dropped from memory: seldom, but soon again
// when others wait on disk for their places and some have just run empty, and at
// once when they take up three quarters of the room, or mail to many domains
// would be pushed out to disk by queues that are done.
const (
	reapEvery = 10 * time.Second
	reapSoon  = 250 * time.Millisecond
)

// runSearch looks for queues on disk that are not in memory, whenever there may
// be some and there is room for them, and drops those that have run empty.
func (m *Manager) runSearch(ctx context.Context) error {
	m.wake(m.search) // what a start finds on disk
	reap := time.NewTimer(reapEvery)
	defer reap.Stop()
	wait := reapEvery
	busy := false // what is in memory has work: looking again at once is in vain
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.crowded:
			// The crowd may be gone: who came while the last reap was under way has
			// waked us for what that one has done.
			if !busy && m.tight() {
				busy = m.reap() < m.Config().MaxActive/8
			}
		case <-reap.C:
			busy = false
			if wait = min(2*wait, reapEvery); m.reap() > 0 && m.outside() {
				wait = reapSoon
			}
			reap.Reset(wait)
		case <-m.search:
			if err := m.searchDisk(ctx); err != nil {
				return err
			}
		}
	}
}

// tight reports that queues take up three quarters of the room for them.
func (m *Manager) tight() bool {
	limit := m.Config().MaxActive
	return m.active.Load() >= int64(limit-limit/4)
}

// outside reports whether there may be queues on disk that are not in memory.
func (m *Manager) outside() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.left != m.seen
}

// ensure returns the queue in memory and brings it there if need be: into a free
// place, or one that another queue has to give up, or, with force, in any case.
func (m *Manager) ensure(key *store.QueueKey, force bool) *Queue {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queues[*key]
	if q == nil && (force || m.room(key)) {
		// What was left on disk before now has a place below the next one.
		q = &Queue{m: m, key: *key, served: m.deps.Now(), left: m.db.Sequence().Last()}
		m.keep(q)
	}
	return q
}

// A queue that nothing has been leased from for heldFor is held up: its domain
// does not answer, or its provider does not want it now. While others wait on
// disk for a place, one in giveWay of the places is taken from such queues each
// time the reaper comes by, so that all of them go round in minutes.
const (
	heldFor = 30 * time.Second
	giveWay = 10
)

// reap drops the queues that have nothing to send and, when others wait for
// their places, some of those that are held up. It returns how many were empty.
func (m *Manager) reap() (empty int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	full := len(m.queues) >= m.Config().MaxActive
	late := m.deps.Now().Add(-heldFor)
	var held []*Queue
	for _, q := range m.queues {
		q.mu.Lock()
		switch {
		case q.complete && len(q.window) == 0 && q.leased == 0 && !q.refilling && len(q.removing) == 0:
			q.gone = true
			m.forget(q)
			empty++
		case full && q.served.Before(late):
			held = append(held, q)
		}
		q.mu.Unlock()
	}
	if m.left == m.seen {
		return empty
	}
	if now := m.deps.Now(); empty == 0 && now.Sub(m.gaveWay) >= reapEvery {
		m.gaveWay = now
		give := 1 + m.Config().MaxActive/giveWay
		for _, q := range held {
			if give > 0 && m.evict(q) {
				give--
			}
		}
	}
	m.wake(m.search)
	return empty
}

// drop takes a queue out of memory; its items stay on disk. It reports false when
// items of it are leased or on their way. REQUIRES: m.mu.
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
	m.forget(q)
	return true
}

// evict drops a queue to make room for another; the search finds it again.
// REQUIRES: m.mu.
func (m *Manager) evict(q *Queue) bool {
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
