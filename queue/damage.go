package queue

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// A recipient whose record cannot be read any more still gets a final event: it
// was acknowledged, so somebody must hear of its end. Who it was is known from
// its keys, and its address from the journal. When the record itself can be
// reached, that happens as soon as it is met; when the part of the disk it lies
// on cannot, at the message's expiry, through the locator.

// ErrDamaged reports a message whose record or body cannot be read.
var ErrDamaged = errors.New("queue: damaged message")

// errDangling reports a locator that names a place where nothing lies.
var errDangling = errors.New("nothing lies where the locator says")

// damagedItem makes up an item from what is known without its record: place is
// the key it lies under.
func (m *Manager) damagedItem(id message.ID, n uint32, place []byte) (*Item, error) {
	it := &Item{ID: id, Recipient: message.Recipient{N: n}, EventSeq: 1, key: &store.QueueKey{}}
	if store.IsDue(place) {
		due, _, _, err := store.ParseDueKey(place)
		if err != nil {
			return nil, err
		}
		it.due = due
	} else {
		key, seq, err := store.ParseReadyKey(place)
		if err != nil {
			return nil, err
		}
		it.key, it.seq = &key, seq
	}
	if m.deps.Recall != nil {
		if e := m.deps.Recall(id, n); e != nil {
			it.EventSeq, it.Attempt = e.RecipientSeq, e.Attempt
			if a, err := message.ParseAddress(e.Recipient); err == nil {
				it.Recipient.Address = a
			}
			it.key.Tenant, it.key.Campaign, it.key.Class = e.Tenant, e.Campaign, e.Class
		}
	}
	msg, err := m.lookup(id)
	if errors.Is(err, store.ErrDead) {
		return nil, err
	}
	it.msg = msg // nil when it is damaged as well
	return it, nil
}

// damagedEnd is the final event of an item that cannot be sent.
func (m *Manager) damagedEnd(it *Item, cause error) Settlement {
	msg := it.msg
	if msg == nil {
		msg = &message.Message{ID: it.ID, Tenant: it.key.Tenant, Campaign: it.key.Campaign, Class: it.key.Class, Accepted: it.Accepted, Expires: it.Expires}
	}
	e := m.EventOf(it, msg, message.EventBounced, m.deps.Now())
	e.Category, e.Detail = message.Other, "damaged on disk: "+cause.Error()
	m.damaged.Add(1)
	return Settlement{Item: it, Event: e}
}

// Abandon settles leased items whose message cannot be read: they bounce, with
// the damage as the reason.
func (m *Manager) Abandon(items []*Item, cause error) error {
	list := make([]Settlement, len(items))
	for i, it := range items {
		list[i] = m.damagedEnd(it, cause)
	}
	return m.Settle(list)
}

// quarantine sets aside the record under a due or ready key that cannot be read:
// it is kept under a key of its own and counted, the rest goes on, and its
// recipient gets a final event. REQUIRES: m.moves.
func (m *Manager) quarantine(key, value []byte, cause error) error {
	if v, err := m.db.Get(key); err != nil || v == nil {
		return err // somebody else saw to it
	}
	b := m.db.NewBatch(0)
	defer b.Close()
	seq := b.Reserve(1)
	kept := append(append([]byte{byte(len(key))}, key...), value...)
	b.Set(store.QuarantineKey(nil, seq), kept)
	id, n, known, err := m.whose(key, value)
	if err != nil {
		return err
	}
	if known {
		it, err := m.damagedItem(id, n, key)
		if err != nil {
			return err
		}
		if err := m.settle(b, []Settlement{m.damagedEnd(it, cause)}); err != nil {
			return err
		}
		b.AfterCommit(func(err error) {
			if err == nil {
				m.counts.add(it.tenant(), -1)
			}
		})
	} else {
		b.Delete(key) // its locator dangles until the message expires
		m.damaged.Add(1)
	}
	m.deps.Logger.Error("unreadable queue record moved to quarantine", "record", seq, "key", fmt.Sprintf("%x", key), "msg_id", id, "recipient", n, "err", cause)
	if err := b.Commit(); err != nil {
		return fmt.Errorf("queue: quarantine: %w", err)
	}
	return nil
}

// whose tells the recipient of a due or ready key whose value is damaged. A due
// key says it; a ready record may still say it, and is believed if the locator
// agrees.
func (m *Manager) whose(key, value []byte) (id message.ID, n uint32, known bool, err error) {
	if store.IsDue(key) {
		_, id, n, err := store.ParseDueKey(key)
		return id, n, err == nil, nil
	}
	if len(value) < 1+len(id) {
		return id, 0, false, nil
	}
	copy(id[:], value[1:])
	v, w := binary.Uvarint(value[1+len(id):])
	if w <= 0 || v > 1<<32-1 {
		return id, 0, false, nil
	}
	at, err := m.db.Get(store.LocatorKey(nil, id, uint32(v)))
	if store.IsDamage(err) {
		return id, 0, false, nil
	}
	return id, uint32(v), string(at) == string(key), err
}
