package queue

import (
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Place says where a waiting recipient is.
type Place struct {
	Queue     store.QueueKey
	N         uint32
	Recipient message.Address
	// ReturnPath is the recipient's own reverse path, zero: the message's.
	ReturnPath message.Address
	Attempt    int
	// Due is when the recipient is tried next; zero means now, as soon as its
	// lane lets it.
	Due       time.Time
	Expires   time.Time
	LastReply *message.Reply
	// Leased is set while somebody is trying to deliver.
	Leased bool
}

// Status returns the message and where its waiting recipients are, up to limit
// of them. The message is nil when the queue does not hold it any more.
func (m *Manager) Status(id message.ID, limit int) (*message.Message, []Place, error) {
	msg, err := m.lookup(id)
	if err != nil || msg == nil {
		return nil, nil, err
	}
	var places []Place
	err = m.db.Each(store.LocatorSpan(id), func(_, at []byte) (bool, error) {
		v, err := m.db.Get(at)
		if err != nil || v == nil {
			return true, err // moved on since the locator was read
		}
		p, err := m.place(at, v)
		if err != nil {
			return false, err
		}
		places = append(places, p)
		return len(places) < limit, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("queue: status of %s: %w", id, err)
	}
	return msg, places, nil
}

func (m *Manager) place(at, v []byte) (p Place, err error) {
	if store.IsDue(at) {
		if p.Due, _, _, err = store.ParseDueKey(at); err != nil {
			return p, err
		}
		if p.Queue, v, err = splitDue(v); err != nil {
			return p, err
		}
	} else {
		var seq uint64
		if p.Queue, seq, err = store.ParseReadyKey(at); err != nil {
			return p, err
		}
		if q := m.queue(&p.Queue); q != nil {
			p.Leased = q.holds(seq)
		}
	}
	it, err := decodeItem(v)
	if err != nil {
		return p, err
	}
	p.N, p.Recipient, p.ReturnPath, p.Attempt = it.Recipient.N, it.Recipient.Address, it.Recipient.ReturnPath, it.Attempt
	p.Expires, p.LastReply = it.Expires, it.LastReply
	return p, nil
}

// holds reports whether the item at place seq is leased.
func (q *Queue) holds(seq uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if seq > q.cursor {
		return false
	}
	for _, it := range q.window {
		if it.seq == seq {
			return false
		}
	}
	return true
}
