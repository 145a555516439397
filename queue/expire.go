package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// sweepEvery is how often expiry and old idempotency records are looked at.
const sweepEvery = 10 * time.Second

// sweepChunk bounds the items one sweep commit settles.
const sweepChunk = 500

// runSweep expires what is too old, wherever it lies.
func (m *Manager) runSweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := m.deps.Now()
		if err := m.expire(ctx, now); err != nil {
			return err
		}
		if err := m.expireIdempotency(now); err != nil {
			return err
		}
	}
}

// expire settles every item whose message expires at or before now, except
// leased ones: whoever holds those sees to their end.
func (m *Manager) expire(ctx context.Context, now time.Time) error {
	var ids []message.ID
	_, err := m.db.EachReadable(store.ExpirySpan(now.Add(1)), func(k, _ []byte) (bool, error) {
		_, id, err := store.ParseExpiryKey(k)
		if err != nil {
			return false, err
		}
		ids = append(ids, id)
		return len(ids) < 100_000, nil
	})
	if err != nil {
		return fmt.Errorf("queue: expire: %w", err)
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.expireMessage(id); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) expireMessage(id message.ID) error {
	for {
		n, err := m.remove(id, nil, m.deps.Expired)
		switch {
		case errors.Is(err, ErrInFlight):
			return nil // the next sweep sees to it
		case store.IsDamage(err) && !errors.Is(err, ErrDamaged):
			m.deps.Logger.Error("a message cannot be expired: its locators are damaged", "msg_id", id, "err", err)
			return nil
		case errors.Is(err, ErrNotQueued), errors.Is(err, ErrDamaged):
			m.deps.Logger.Error("remains of a message are removed", "msg_id", id, "err", err)
			return m.purge(id)
		case err != nil || n < sweepChunk:
			return err
		}
	}
}

// purge removes what a damaged message left behind. Its recipients are
// settled, or sit in quarantine.
func (m *Manager) purge(id message.ID) error {
	b := m.db.NewBatch(0)
	defer b.Close()
	b.Delete(store.MessageKey(nil, id))
	b.DeleteSpan(store.BodySpan(id))
	b.DeleteSpan(store.LocatorSpan(id))
	_, err := m.db.EachReadable(store.ExpirySpan(m.deps.Now().Add(1)), func(k, _ []byte) (bool, error) {
		if _, other, err := store.ParseExpiryKey(k); err == nil && other == id {
			b.Delete(k)
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("queue: purge %s: %w", id, err)
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("queue: purge %s: %w", id, err)
	}
	return nil
}

// ErrInFlight reports that a delivery attempt is under way, so that the item
// cannot be taken out of the queue.
var ErrInFlight = errors.New("queue: a delivery attempt is under way")

// ErrNotQueued reports a message or recipient that the queue does not hold.
var ErrNotQueued = errors.New("queue: not in the queue")

// Cancel takes recipients of message id that are not being delivered right now
// out of the queue: number n, or all when n is nil. It returns how many left. It
// wraps ErrNotQueued when none waits and ErrInFlight when only leased ones do.
func (m *Manager) Cancel(id message.ID, n *uint32, reason string) (int, error) {
	total := 0
	for {
		removed, err := m.remove(id, n, func(it *Item, msg *message.Message) Settlement {
			e := m.Event(it, message.EventCanceled, m.deps.Now())
			e.Category, e.Detail = message.Canceled, reason
			return Settlement{Item: it, Event: e}
		})
		total += removed
		if err != nil {
			if total > 0 && (errors.Is(err, ErrInFlight) || errors.Is(err, ErrNotQueued)) {
				err = nil
			}
			return total, err
		}
		if removed < sweepChunk {
			return total, nil
		}
	}
}

// remove settles up to sweepChunk unleased recipients of message id as finish
// says, in one durable commit.
func (m *Manager) remove(id message.ID, only *uint32, finish func(*Item, *message.Message) Settlement) (int, error) {
	msg, lookupErr := m.lookup(id)
	if errors.Is(lookupErr, store.ErrDead) {
		return 0, fmt.Errorf("queue: remove: %w", lookupErr)
	}
	if msg == nil && lookupErr == nil {
		return 0, fmt.Errorf("%w: %s", ErrNotQueued, id)
	}
	b := m.db.NewBatch(0)
	defer b.Close()
	m.moves.Lock()
	b.OnVisible(m.moves.Unlock)
	span := store.LocatorSpan(id)
	if only != nil {
		span = store.Span{Start: store.LocatorKey(nil, id, *only), End: store.LocatorKey(nil, id, *only+1)}
	}
	var list []Settlement
	held := 0
	err := m.db.Each(span, func(k, place []byte) (bool, error) {
		_, n, err := store.ParseLocatorKey(k)
		if err != nil {
			return false, err
		}
		it, damage, err := m.claim(b, id, n, place)
		if err != nil {
			return false, err
		}
		if it == nil {
			held++
			return true, nil
		}
		it.msg = msg
		if damage == nil {
			damage = lookupErr
		}
		if damage != nil {
			m.deps.Logger.Error("a recipient is damaged on disk and ends", "msg_id", id, "recipient", n, "err", damage)
			list = append(list, m.damagedEnd(it, damage))
		} else {
			list = append(list, finish(it, msg))
		}
		return len(list) < sweepChunk, nil
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("queue: remove %s: %w", id, err)
	case len(list) == 0 && held > 0:
		return 0, fmt.Errorf("%w: %s", ErrInFlight, id)
	case len(list) == 0 && lookupErr != nil:
		return 0, fmt.Errorf("%w: %s: %w", ErrDamaged, id, lookupErr)
	case len(list) == 0:
		return 0, fmt.Errorf("%w: %s", ErrNotQueued, id)
	}
	if err := m.settle(b, list); err != nil {
		return 0, err
	}
	b.AfterCommit(func(err error) {
		if err == nil {
			for i := range list {
				m.counts.add(list[i].Item.tenant(), -1)
			}
		}
	})
	if err := b.Commit(); err != nil {
		return 0, fmt.Errorf("queue: remove: %w", err)
	}
	return len(list), nil
}

// claim returns the unleased item of recipient n of id under the due or ready
// key place, for deletion in b, or nil when somebody has leased it. damage says
// why the item is made up.
// REQUIRES: m.moves.
func (m *Manager) claim(b *store.Batch, id message.ID, n uint32, place []byte) (it *Item, damage, err error) {
	v, err := m.db.Get(place)
	if err != nil && !store.IsDamage(err) {
		return nil, nil, err
	}
	damage = err
	if v == nil && damage == nil {
		at, err := m.db.Get(store.LocatorKey(nil, id, n))
		if err != nil || string(at) != string(place) {
			return nil, nil, err // settled since the locator was read
		}
		it, err := m.damagedItem(id, n, place)
		return it, errDangling, err
	}
	if store.IsDue(place) {
		if damage == nil {
			if it, damage = decodeDue(place, v); damage == nil {
				return it, nil, nil
			}
		}
		it, err := m.damagedItem(id, n, place)
		return it, damage, err
	}
	key, seq, err := store.ParseReadyKey(place)
	if err != nil {
		return nil, nil, err
	}
	// The queue is brought into memory for the time being, so that nobody can
	// lease the item between here and the commit.
	q := m.ensure(&key, true)
	taken := q.take(seq)
	for taken == takeGone {
		q = m.ensure(&key, true)
		taken = q.take(seq)
	}
	if taken == takeLeased && damage == nil {
		return nil, nil, nil
	}
	if taken == takeDone {
		b.OnVisible(func() {
			if q.taken(seq) {
				m.startRefill(q)
			}
		})
	}
	if damage == nil {
		if it, damage = decodeItem(v); damage == nil {
			it.key, it.seq = &q.key, seq
			return it, nil, nil
		}
	}
	it, err = m.damagedItem(id, n, place)
	return it, damage, err
}

func decodeDue(place, v []byte) (*Item, error) {
	key, record, err := splitDue(v)
	if err != nil {
		return nil, err
	}
	it, err := decodeItem(record)
	if err != nil {
		return nil, err
	}
	it.key = &key
	it.due, _, _, err = store.ParseDueKey(place)
	return it, err
}
