package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tradewind-mta/tradewind/store"
)

// refillChunk is how many items one read of the disk fetches at the most; it
// never fetches more than a window.
const refillChunk = 256

// refillWorkers read at the same time, and urgentWorkers more when urgent mail
// would have to wait for them.
const (
	refillWorkers = 4
	urgentWorkers = 2
)

// refills is the line of queues that wait to be filled from disk. However many
// there are, few are read at a time, and those of urgent mail go first.
type refills struct {
	mu      sync.Mutex // protects everything below
	line    [2][]*Queue
	workers int
	// behind are queues whose next item lies at a place that the horizon has
	// not passed yet; one goroutine waits for all of them.
	behind  []behind
	waiting bool
}

type behind struct {
	q     *Queue
	place uint64
}

// startRefill puts q into the line. REQUIRES: the caller has claimed q.refilling.
func (m *Manager) startRefill(q *Queue) {
	r := &m.refills
	urgent := urgency(q.key.Class)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.line[urgent] = append(r.line[urgent], q)
	if r.workers < refillWorkers || urgent == 0 && r.workers < refillWorkers+urgentWorkers {
		r.workers++
		m.wg.Go(m.refillLine)
	}
}

// next takes a queue out of the line; nil ends the worker.
func (r *refills) next() *Queue {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.line {
		if len(r.line[i]) == 0 {
			continue
		}
		q := r.line[i][0]
		r.line[i][0] = nil
		if r.line[i] = r.line[i][1:]; len(r.line[i]) == 0 {
			r.line[i] = nil // or its head would keep the array alive
		}
		return q
	}
	r.workers--
	return nil
}

func (m *Manager) refillLine() {
	for q := m.refills.next(); q != nil; q = m.refills.next() {
		if m.ctx.Err() != nil {
			continue
		}
		if err := m.refill(q); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, store.ErrDead) {
			m.deps.Logger.Error("refill of a queue from disk", "queue", q.key.String(), "err", err)
		}
	}
}

// refill reads the next ready items of q from disk into its window.
// REQUIRES: the caller has claimed q.refilling.
func (m *Manager) refill(q *Queue) error {
	for {
		woke, next, horizon, err := m.refillOnce(q)
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
			m.refillBehind(q, horizon)
			return nil
		}
	}
}

// refillBehind refills q when the horizon has passed place. Items were left on
// disk whose places it has not reached: it moves within the time of a commit.
func (m *Manager) refillBehind(q *Queue, place uint64) {
	r := &m.refills
	r.mu.Lock()
	defer r.mu.Unlock()
	r.behind = append(r.behind, behind{q, place})
	if !r.waiting {
		r.waiting = true
		m.wg.Go(m.waitHorizon)
	}
}

// waitHorizon puts the queues that wait for the horizon back into the line, as it
// passes them.
func (m *Manager) waitHorizon() {
	r := &m.refills
	for {
		horizon := m.db.Sequence().Horizon()
		r.mu.Lock()
		var passed []*Queue
		keep := r.behind[:0]
		first := ^uint64(0)
		for _, b := range r.behind {
			if horizon > b.place {
				passed = append(passed, b.q)
				continue
			}
			keep = append(keep, b)
			first = min(first, b.place)
		}
		clear(r.behind[len(keep):])
		r.behind = keep
		if len(keep) == 0 {
			r.behind, r.waiting = nil, false
		}
		r.mu.Unlock()
		for _, q := range passed {
			m.startRefill(q)
		}
		if len(keep) == 0 || m.db.Sequence().Wait(m.ctx, first) != nil {
			return
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
