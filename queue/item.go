package queue

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Item is one recipient of a message, waiting. Whoever has leased an item owns
// it until it is settled or released; before and after that it belongs to its
// queue and must not be touched.
type Item struct {
	ID        message.ID
	Recipient message.Recipient
	Accepted  time.Time
	Expires   time.Time
	// Attempt counts the attempts made so far.
	Attempt int
	// EventSeq is the number of the recipient's last event.
	EventSeq uint32
	// FirstAttempt is the zero time before the first attempt.
	FirstAttempt time.Time
	// DelayNotified is when the sender was told of the delay, if ever.
	DelayNotified time.Time
	// LastReply is why the last attempt failed, shortened.
	LastReply *message.Reply

	queue *Queue           // where it was leased from; nil for an item nobody leased
	key   *store.QueueKey  // the queue it belongs to
	seq   uint64           // its place in the ready queue
	due   time.Time        // when it is due, for an item that lies under a due key
	msg   *message.Message // nil until loaded
	body  *body            // nil unless cached
}

// appendPlace appends the key the item lies under.
func (it *Item) appendPlace(b []byte) []byte {
	if !it.due.IsZero() {
		return store.DueKey(b, it.due, it.ID, it.Recipient.N)
	}
	return store.ReadyKey(b, it.key, it.seq)
}

// Queue is the queue the item was leased from.
func (it *Item) Queue() *Queue { return it.queue }

// Message is the message, once Load has returned.
func (it *Item) Message() *message.Message { return it.msg }

// body is a message's bytes in memory, shared by its items and counted against
// the cache.
type body struct {
	data []byte
	refs atomic.Int32
}

func (m *Manager) dropBody(it *Item) {
	if b := it.body; b != nil {
		it.body = nil
		if b.refs.Add(-1) == 0 {
			m.bodies.Add(-int64(len(b.data)))
		}
	}
}

// Load returns the message and the body of leased items, which are recipients
// of one message, from memory or from disk. An error that wraps ErrDamaged means
// that they cannot be read any more: the caller hands the items to Abandon.
func (m *Manager) Load(items []*Item) (*message.Message, []byte, error) {
	first := items[0]
	if first.body != nil {
		for _, it := range items[1:] {
			it.msg = first.msg
		}
		return first.msg, first.body.data, nil
	}
	s, ok := m.shared.get(first.ID)
	if !ok {
		var err error
		if s, err = m.read(first.ID); err != nil {
			return nil, nil, err
		}
	}
	for _, it := range items {
		it.msg = s.msg
	}
	return s.msg, s.body, nil
}

// read reads a message from disk, once for everybody who asks at the same time.
func (m *Manager) read(id message.ID) (sharedMessage, error) {
	v, err, _ := m.reads.Do(string(id[:]), func() (any, error) {
		if s, ok := m.shared.get(id); ok {
			return s, nil
		}
		var s sharedMessage
		err := m.db.Apart(func() (err error) {
			if s.msg, err = m.Message(id); err == nil {
				s.body, err = m.Body(id, s.msg.Size)
			}
			return err
		})
		if err != nil {
			return sharedMessage{}, err
		}
		m.shared.put(s)
		return s, nil
	})
	return v.(sharedMessage), err
}

// lookup reads the record of message id. It returns nil when the queue does
// not hold it.
func (m *Manager) lookup(id message.ID) (*message.Message, error) {
	v, err := m.db.Get(store.MessageKey(nil, id))
	if err != nil || v == nil {
		return nil, err
	}
	return decodeMessage(id, v)
}

// Message reads the record of message id, which must be in the queue.
func (m *Manager) Message(id message.ID) (*message.Message, error) {
	msg, err := m.lookup(id)
	if errors.Is(err, store.ErrDead) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, id, err)
	}
	if msg == nil {
		return nil, fmt.Errorf("%w: %s: record missing", ErrDamaged, id)
	}
	return msg, nil
}

// Body reads the body of message id, size bytes long.
func (m *Manager) Body(id message.ID, size int) ([]byte, error) { return bodyOf(m.db, id, size) }

func bodyOf(db *store.DB, id message.ID, size int) ([]byte, error) {
	data := make([]byte, 0, size)
	var key [21]byte
	for n := uint32(0); len(data) < size; n++ {
		before := len(data)
		next, err := db.AppendGet(data, store.BodyKey(key[:0], id, n))
		if store.IsDamage(err) {
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, id, err)
		}
		if err != nil {
			return nil, err
		}
		if next == nil || len(next) == before {
			return nil, fmt.Errorf("%w: %s: body chunk %d missing", ErrDamaged, id, n)
		}
		data = next
	}
	if len(data) != size {
		return nil, fmt.Errorf("%w: %s: body has %d bytes, want %d", ErrDamaged, id, len(data), size)
	}
	return data, nil
}
