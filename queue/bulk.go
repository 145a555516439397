package queue

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Filter says which waiting recipients an operation is about: those of the
// queues that Match accepts, of Message alone if that is set. What is being
// delivered at the moment is left alone.
type Filter struct {
	Match   func(*store.QueueKey) bool
	Message message.ID
}

// Tally counts waiting recipients.
type Tally struct {
	Ready   int `json:"ready"`   // may be sent as soon as their lane lets them
	Waiting int `json:"waiting"` // wait for their time
	Queues  int `json:"queues"`  // different queues among the ready ones
}

// Total is how many recipients there are.
func (t Tally) Total() int { return t.Ready + t.Waiting }

// bulkChunk is how many recipients one commit of a bulk operation changes.
const bulkChunk = 500

// spot is where one waiting recipient lies.
type spot struct {
	place []byte // its due or ready key
	id    message.ID
	n     uint32
}

// Count says how many recipients a filter fits, and changes nothing. It reads
// the keys of all that waits.
func (m *Manager) Count(ctx context.Context, f Filter) (t Tally, err error) {
	var last store.QueueKey
	err = m.spots(ctx, f, func(list []spot) error {
		for _, s := range list {
			if store.IsDue(s.place) {
				t.Waiting++
				continue
			}
			t.Ready++
			if key, _, err := store.ParseReadyKey(s.place); err == nil && (t.Queues == 0 || key != last) {
				t.Queues++
				last = key
			}
		}
		return nil
	})
	return t, err
}

// RemoveAll settles every unleased recipient that a filter fits as finish says,
// in durable commits of up to bulkChunk, and calls progress after each with the
// number so far. It stops between two commits when ctx ends; what is done stays
// done.
func (m *Manager) RemoveAll(ctx context.Context, f Filter, finish func(*Item, *message.Message) Settlement, progress func(done int)) (done int, err error) {
	err = m.spots(ctx, f, func(list []spot) error {
		n, err := m.removeSpots(list, finish)
		if done += n; err == nil {
			progress(done)
		}
		return err
	})
	return done, err
}

func (m *Manager) removeSpots(list []spot, finish func(*Item, *message.Message) Settlement) (int, error) {
	b := m.db.NewBatch(512 * len(list))
	defer b.Close()
	m.moves.Lock()
	b.OnVisible(m.moves.Unlock)
	var settle []Settlement
	for i := range list {
		it, damage, err := m.claim(b, list[i].id, list[i].n, list[i].place)
		switch {
		case err != nil:
			return 0, fmt.Errorf("queue: remove: %w", err)
		case it == nil:
			continue
		case damage != nil:
			settle = append(settle, m.damagedEnd(it, damage))
			continue
		}
		if it.msg, err = m.lookup(it.ID); err != nil || it.msg == nil {
			continue // damaged: the sweep removes what is left of it
		}
		settle = append(settle, finish(it, it.msg))
	}
	if len(settle) == 0 {
		return 0, nil
	}
	if err := m.settle(b, settle); err != nil {
		return 0, err
	}
	b.AfterCommit(func(err error) {
		if err == nil {
			for i := range settle {
				m.counts.add(settle[i].Item.tenant(), -1)
			}
		}
	})
	if err := b.Commit(); err != nil {
		return 0, fmt.Errorf("queue: remove: %w", err)
	}
	return len(settle), nil
}

// Reroute moves every unleased recipient that a filter fits to the queue of the
// same name in another pool; otherwise it is like RemoveAll.
func (m *Manager) Reroute(ctx context.Context, f Filter, pool string, progress func(done int)) (done int, err error) {
	if strings.ContainsRune(pool, 0) {
		return 0, fmt.Errorf("queue: reroute: %q is not the name of a pool", pool)
	}
	inner := f.Match
	f.Match = func(k *store.QueueKey) bool { return k.Pool != pool && inner(k) } // or it would not end
	err = m.spots(ctx, f, func(list []spot) error {
		n, err := m.rerouteSpots(list, pool)
		if done += n; err == nil {
			progress(done)
		}
		return err
	})
	return done, err
}

func (m *Manager) rerouteSpots(list []spot, pool string) (int, error) {
	var arrivals []arrival
	moved := 0
	b := m.db.NewBatch(512 * len(list))
	defer b.Close()
	m.moves.Lock()
	b.OnVisible(m.moves.Unlock)
	var kbuf, lbuf [128]byte
	var vbuf [1024]byte
	for i := range list {
		it, damage, err := m.claim(b, list[i].id, list[i].n, list[i].place)
		switch {
		case err != nil:
			return 0, fmt.Errorf("queue: reroute: %w", err)
		case it == nil, damage != nil: // what is damaged ends when it expires
			continue
		}
		moved++
		key := *it.key
		key.Pool = pool
		if store.IsDue(list[i].place) {
			b.Set(list[i].place, appendDue(vbuf[:0], &key, it))
			continue
		}
		fresh := &Item{}
		*fresh = *it
		fresh.key, fresh.seq = nil, b.Reserve(1)
		ready := store.ReadyKey(kbuf[:0], &key, fresh.seq)
		b.Delete(list[i].place)
		b.Set(ready, appendItem(vbuf[:0], fresh))
		b.Set(store.LocatorKey(lbuf[:0], it.ID, it.Recipient.N), ready)
		arrivals = append(arrivals, arrival{key, fresh})
	}
	if moved == 0 {
		return 0, nil
	}
	b.AfterCommit(func(err error) {
		if err != nil {
			return
		}
		for i := range arrivals {
			m.enqueue(&arrivals[i].key, arrivals[i].it)
		}
	})
	if err := b.Commit(); err != nil {
		return 0, fmt.Errorf("queue: reroute: %w", err)
	}
	return moved, nil
}

// spots calls fn with up to bulkChunk places at a time that a filter fits: those
// that wait for their time first, because time moves them to the others.
func (m *Manager) spots(ctx context.Context, f Filter, fn func([]spot) error) error {
	if !f.Message.IsZero() {
		return m.spotsOf(ctx, f, fn)
	}
	if err := m.scan(ctx, store.DueSpan(time.Time{}), fn, func(k, v []byte) (spot, bool, error) {
		_, id, n, err := store.ParseDueKey(k)
		if err != nil {
			return spot{}, false, err
		}
		key, _, err := splitDue(v)
		return spot{bytes.Clone(k), id, n}, err == nil && f.Match(&key), nil
	}); err != nil {
		return err
	}
	// From queue to queue: what does not fit costs one step each.
	after := (*store.QueueKey)(nil)
	for {
		key, ok, err := m.nextQueue(after)
		if err != nil || !ok {
			return err
		}
		after = &key
		if !f.Match(&key) {
			continue
		}
		err = m.scan(ctx, store.ReadySpan(&key, 0, ^uint64(0)), fn, func(k, v []byte) (spot, bool, error) {
			it, err := decodeItem(v)
			if err != nil {
				return spot{}, false, nil // the next one who reads it puts it in quarantine
			}
			return spot{bytes.Clone(k), it.ID, it.Recipient.N}, true, nil
		})
		if err != nil {
			return err
		}
	}
}

// spotsOf is spots for one message.
func (m *Manager) spotsOf(ctx context.Context, f Filter, fn func([]spot) error) error {
	return m.scan(ctx, store.LocatorSpan(f.Message), fn, func(k, place []byte) (spot, bool, error) {
		id, n, err := store.ParseLocatorKey(k)
		if err != nil {
			return spot{}, false, err
		}
		key, err := m.queueAt(place)
		return spot{bytes.Clone(place), id, n}, err == nil && f.Match(&key), nil
	})
}

// queueAt is the queue of the recipient that lies at a place.
func (m *Manager) queueAt(place []byte) (store.QueueKey, error) {
	if store.IsReady(place) {
		key, _, err := store.ParseReadyKey(place)
		return key, err
	}
	v, err := m.db.Get(place)
	if err != nil {
		return store.QueueKey{}, err
	}
	key, _, err := splitDue(v)
	return key, err
}

// scan reads a span in pieces, so that no iterator is held while fn works.
func (m *Manager) scan(ctx context.Context, span store.Span, fn func([]spot) error, read func(k, v []byte) (spot, bool, error)) error {
	for {
		var list []spot
		looked := 0
		var next []byte
		err := m.db.Each(span, func(k, v []byte) (bool, error) {
			if looked == 10*bulkChunk || len(list) == bulkChunk {
				next = bytes.Clone(k)
				return false, nil
			}
			looked++
			s, fits, err := read(k, v)
			if fits && err == nil {
				list = append(list, s)
			}
			return true, err
		})
		if err != nil {
			return fmt.Errorf("queue: scan: %w", err)
		}
		if len(list) > 0 {
			if err := fn(list); err != nil {
				return err
			}
		}
		if next == nil {
			return ctx.Err()
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		span.Start = next
	}
}

// nextQueue returns the first queue behind after that has ready items on disk.
func (m *Manager) nextQueue(after *store.QueueKey) (key store.QueueKey, ok bool, err error) {
	err = m.db.Each(store.ReadyQueuesSpan(after), func(k, _ []byte) (bool, error) {
		if key, _, err = store.ParseReadyKey(k); err != nil {
			return false, err
		}
		ok = true
		return false, nil
	})
	return key, ok, err
}
