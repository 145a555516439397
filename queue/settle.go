package queue

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Settlement says what becomes of one leased item.
type Settlement struct {
	Item *Item
	// Event explains it; see Manager.Event. Its RecipientSeq is set here.
	Event *message.Event
	// Retry is when the item is due again. The zero time means never: the item
	// leaves the queue with this event, which must be terminal.
	Retry time.Time
	// Spawn is mail that comes out of it (a DSN), accepted in the same commit.
	Spawn []*message.Submission
}

// Settle ends the lease of items: in one durable commit each leaves the queue or
// is rescheduled, together with the event that explains it. After an error the
// storage is dead and the items are as they were on disk.
func (m *Manager) Settle(list []Settlement) error {
	b := m.db.NewBatch(512 * len(list))
	defer b.Close()
	if err := m.settle(b, list); err != nil {
		return err
	}
	b.AfterCommit(func(err error) {
		if err == nil {
			m.settled(list)
		}
	})
	if err := b.Commit(); err != nil {
		return fmt.Errorf("queue: settle: %w", err)
	}
	return nil
}

// settle writes the changes and events of list into b.
func (m *Manager) settle(b *store.Batch, list []Settlement) error {
	var kbuf, lbuf [128]byte
	var vbuf [1024]byte
	events := make([]*message.Event, 0, len(list))
	var spawned []*message.Submission
	for i := range list {
		s := &list[i]
		it := s.Item
		it.EventSeq++
		s.Event.RecipientSeq = it.EventSeq
		s.Event.Attempt = it.Attempt
		s.Event.Terminal = s.Retry.IsZero()
		s.Event.NextAttempt = s.Retry
		events = append(events, s.Event)
		locator := store.LocatorKey(lbuf[:0], it.ID, it.Recipient.N)
		b.Delete(it.appendPlace(kbuf[:0]))
		if s.Retry.IsZero() {
			b.Delete(locator)
		} else {
			k := store.DueKey(kbuf[:0], s.Retry, it.ID, it.Recipient.N)
			b.Set(k, appendDue(vbuf[:0], it.key, it))
			b.Set(locator, k)
		}
		spawned = append(spawned, s.Spawn...)
	}
	if len(spawned) > 0 {
		if err := m.add(b, spawned); err != nil {
			return err
		}
	}
	m.deps.Recorder.Append(b, events...)
	return m.dropDone(b, list)
}

// settled updates memory after the commit.
func (m *Manager) settled(list []Settlement) {
	for i := range list {
		s := &list[i]
		m.dropBody(s.Item)
		if s.Item.queue != nil {
			s.Item.queue.settled(1)
		}
		if s.Retry.IsZero() {
			m.counts.add(s.Item.tenant(), -1)
		} else {
			m.wakeDue(s.Retry)
		}
	}
}

// dropDone deletes the messages whose last recipients list settles. The check
// and the deletion of a message with several recipients happen under its
// stripe, which is let go of when the batch is visible.
func (m *Manager) dropDone(b *store.Batch, list []Settlement) error {
	var locked [stripes / 64]uint64
	done := make(map[message.ID]int, 1)
	for i := range list {
		s := &list[i]
		if !s.Retry.IsZero() {
			continue
		}
		if s.Item.msg == nil {
			msg, err := m.lookup(s.Item.ID)
			if err != nil || msg == nil {
				continue // damaged: the sweep removes what is left of it
			}
			s.Item.msg = msg
		}
		if s.Item.msg.RecipientCount == 1 {
			m.dropMessage(b, s.Item.msg)
			continue
		}
		done[s.Item.ID]++
	}
	if len(done) == 0 {
		return nil
	}
	for id := range done {
		n := m.stripeNumber(id)
		locked[n/64] |= 1 << (n % 64)
	}
	// Taken in ascending order, so that two settlers cannot wait for each other.
	for n := range stripes {
		if locked[n/64]&(1<<(n%64)) != 0 {
			m.stripe[n].Lock()
			b.OnVisible(m.stripe[n].Unlock)
		}
	}
	for i := range list {
		it := list[i].Item
		gone, ok := done[it.ID]
		if !ok {
			continue
		}
		delete(done, it.ID)
		left, err := m.stripe[m.stripeNumber(it.ID)].leave(m.db, it.ID, gone)
		if store.IsDamage(err) {
			continue // the sweep removes what is left
		}
		if err != nil {
			return fmt.Errorf("queue: settle: %w", err)
		}
		if left == 0 {
			m.dropMessage(b, it.msg)
		}
	}
	return nil
}

// dropMessage deletes what is left of a message without recipients.
func (m *Manager) dropMessage(b *store.Batch, msg *message.Message) {
	var key [32]byte
	b.Delete(store.MessageKey(key[:0], msg.ID))
	for n := 0; n*bodyChunk < msg.Size; n++ {
		b.DeleteSized(store.BodyKey(key[:0], msg.ID, uint32(n)), min(bodyChunk, msg.Size-n*bodyChunk))
	}
	b.Delete(store.ExpiryKey(key[:0], msg.Expires, msg.ID))
	m.dropped.note(msg.ID, msg.Size)
}

// appendDue is the value of a due key: the queue to go to, then the item.
func appendDue(b []byte, key *store.QueueKey, it *Item) []byte {
	var kbuf [128]byte
	k := key.Append(kbuf[:0])
	b = binary.AppendUvarint(b, uint64(len(k)))
	return appendItem(append(b, k...), it)
}

// splitDue takes a due value apart; item is the encoding a ready key holds.
func splitDue(v []byte) (key store.QueueKey, item []byte, err error) {
	n, w := binary.Uvarint(v)
	if w <= 0 || n > uint64(len(v)-w) {
		return key, nil, errRecord
	}
	key, rest, err := store.ParseQueueKey(v[w : w+int(n)])
	if err != nil || len(rest) > 0 {
		return key, nil, errRecord
	}
	return key, v[w+int(n):], nil
}
