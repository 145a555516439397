package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// bodyChunk is the largest piece of a body under one key. Larger values would
// make Pebble turn a batch into a table of its own.
const bodyChunk = 1 << 20

// suppressed is the reason why recipient i must not be mailed, or "".
func suppressed(s *message.Submission, i int) string {
	if s.Suppressed == nil {
		return ""
	}
	return s.Suppressed[i]
}

// chunkAhead is how many octets of bodies go into the batch of their messages. More
// are committed ahead of it in batches of bodyChunk, whose memory the store uses
// again: a batch of half a memtable it would sort and flush by itself.
const chunkAhead = 4 << 20

// Accept makes the submissions durable in one commit and puts their recipients
// into their queues. When it returns nil, they survive a power cut, or, if every
// one of them asks for message.Written only, the death of the process. Any error
// means that nothing was accepted; it wraps store.ErrDead when storage failed.
func (m *Manager) Accept(ctx context.Context, subs []*message.Submission) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	size := 0
	for _, s := range subs {
		size += 1024 + 1024*len(s.Recipients)
	}
	if n := bodySize(subs); n <= chunkAhead {
		size += n
	}
	b := m.db.NewBatch(size)
	defer b.Close()
	if err := m.add(b, subs); err != nil {
		return err
	}
	commit := b.CommitWritten
	for _, s := range subs {
		if s.Message.Durability != message.Written {
			commit = b.Commit
		}
	}
	if err := commit(); err != nil {
		return fmt.Errorf("queue: accept: %w", err)
	}
	return nil
}

// liveOf is how many recipients of s are to be mailed.
func liveOf(s *message.Submission) int {
	n := len(s.Recipients)
	for _, reason := range s.Suppressed {
		if reason != "" {
			n--
		}
	}
	return n
}

// bodySize is how many octets of bodies subs bring.
func bodySize(subs []*message.Submission) int {
	n := 0
	for _, s := range subs {
		if liveOf(s) > 0 {
			n += len(s.Body)
		}
	}
	return n
}

// add writes submissions into b. Their items reach their queues when b is
// committed. It writes one kind of key after the other: the store finds the place
// of a key at once when it lies behind that of the last one, and with a search
// from the top when it does not.
func (m *Manager) add(b *store.Batch, subs []*message.Submission) error {
	for _, s := range subs {
		m.complete(s)
	}
	if err := m.addBodies(b, subs); err != nil {
		return err
	}
	var key [32]byte
	var value [512]byte
	for _, s := range subs {
		if liveOf(s) > 0 {
			b.Set(store.MessageKey(key[:0], s.Message.ID), appendMessage(value[:0], s.Message))
		}
	}
	for _, s := range subs {
		if liveOf(s) > 0 {
			b.Set(store.ExpiryKey(key[:0], s.Message.Expires, s.Message.ID), nil)
		}
	}
	m.addItems(b, subs)
	events := make([]*message.Event, 0, len(subs))
	for _, s := range subs {
		if s.Idempotency != nil {
			m.addIdempotency(b, s.Idempotency)
		}
		events = m.appendEvents(events, s)
	}
	m.deps.Recorder.Append(b, events...)
	return nil
}

// complete fills in what the queue knows best.
func (m *Manager) complete(s *message.Submission) {
	msg := s.Message
	msg.Size = len(s.Body)
	msg.RecipientCount = len(s.Recipients)
	if msg.Expires.IsZero() {
		from := msg.Accepted
		if msg.NotBefore.After(from) {
			from = msg.NotBefore
		}
		msg.Expires = from.Add(m.Config().MaxAge)
	}
	for i := range s.Recipients {
		s.Recipients[i].N = uint32(i)
	}
}

// appendEvents appends what is to be told of the acceptance of s.
func (m *Manager) appendEvents(events []*message.Event, s *message.Submission) []*message.Event {
	msg := s.Message
	for i := range s.Recipients {
		r := &s.Recipients[i]
		e := m.event(msg, r, message.EventAccepted, 1)
		e.Time, e.Size, e.Origin = msg.Accepted, msg.Size, msg.Origin
		events = append(events, e)
		if reason := suppressed(s, i); reason != "" {
			e := m.event(msg, r, message.EventSuppressed, 2)
			e.Time, e.Terminal, e.Category, e.Detail = msg.Accepted, true, message.Suppressed, reason
			events = append(events, e)
		}
	}
	return events
}

// addBodies writes the bodies into b or, where they are many, ahead of it. A
// pending key then says of each that its message is still to come.
func (m *Manager) addBodies(b *store.Batch, subs []*message.Submission) error {
	var key [32]byte
	into := b
	ahead := bodySize(subs) > chunkAhead
	if ahead {
		into = m.db.NewBatch(bodyChunk)
		defer func() { into.Close() }()
	}
	for _, s := range subs {
		if liveOf(s) == 0 {
			continue
		}
		id := s.Message.ID
		if ahead {
			into.Set(store.PendingKey(key[:0], id), nil)
			b.Delete(store.PendingKey(key[:0], id))
		}
		n := uint32(0)
		for data := range slices.Chunk(s.Body, bodyChunk) {
			if ahead && into.Len()+len(data) > bodyChunk-128 {
				if err := into.CommitLazy(); err != nil { // the commit of b makes it durable too
					return fmt.Errorf("queue: accept: %w", err)
				}
				into.Close()
				into = m.db.NewBatch(max(bodyChunk, len(data)+128))
			}
			into.Set(store.BodyKey(key[:0], id, n), data)
			n++
		}
	}
	if !ahead {
		return nil
	}
	if err := into.CommitLazy(); err != nil {
		return fmt.Errorf("queue: accept: %w", err)
	}
	return nil
}

// dropPending removes bodies whose message never came: the engine died between
// the first chunk and the commit.
func (m *Manager) dropPending() error {
	b := m.db.NewBatch(0)
	defer b.Close()
	_, err := m.db.EachReadable(store.PendingSpan(), func(k, _ []byte) (bool, error) {
		id, err := store.ParsePendingKey(k)
		if err != nil {
			return false, err
		}
		b.DeleteSpan(store.BodySpan(id))
		b.Delete(k)
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("queue: drop unfinished messages: %w", err)
	}
	return b.CommitLazy()
}

// arrival is an item on its way into its queue.
type arrival struct {
	key store.QueueKey
	it  *Item
}

// addItems writes the due or ready keys of the live recipients and arranges for
// their queues to hear of them.
func (m *Manager) addItems(b *store.Batch, subs []*message.Submission) {
	now := m.deps.Now()
	ready := 0
	for _, s := range subs {
		if !s.Message.NotBefore.After(now) {
			ready += liveOf(s)
		}
	}
	var seq uint64
	if ready > 0 {
		seq = b.Reserve(ready)
	}
	arrivals := make([]arrival, 0, ready)
	var bodies []*body
	var kbuf, lbuf [128]byte
	var vbuf [512]byte
	for _, s := range subs {
		msg := s.Message
		scheduled := msg.NotBefore.After(now)
		var cached *body
		if n := liveOf(s); n > 0 && !scheduled && m.bodies.Load()+int64(len(s.Body)) <= m.Config().BodyCache {
			cached = &body{data: s.Body}
			cached.refs.Store(int32(n))
			m.bodies.Add(int64(len(s.Body)))
			bodies = append(bodies, cached)
		}
		for i := range s.Recipients {
			r := &s.Recipients[i]
			if suppressed(s, i) != "" {
				continue
			}
			key := store.QueueKey{Pool: msg.Pool, Domain: r.Address.Domain(), Tenant: msg.Tenant, Campaign: msg.Campaign, Class: msg.Class}
			it := &Item{ID: msg.ID, Recipient: *r, Accepted: msg.Accepted, Expires: msg.Expires, EventSeq: 1, msg: msg}
			locator := store.LocatorKey(lbuf[:0], msg.ID, r.N)
			if scheduled {
				k := store.DueKey(kbuf[:0], msg.NotBefore, msg.ID, r.N)
				b.Set(k, appendDue(vbuf[:0], &key, it))
				b.Set(locator, k)
				continue
			}
			it.seq, it.body = seq, cached
			seq++
			k := store.ReadyKey(kbuf[:0], &key, it.seq)
			b.Set(k, appendItem(vbuf[:0], it))
			b.Set(locator, k)
			arrivals = append(arrivals, arrival{key, it})
		}
	}
	b.AfterCommit(func(err error) {
		if err != nil {
			for _, c := range bodies {
				m.bodies.Add(-int64(len(c.data)))
			}
			return
		}
		for _, s := range subs {
			if n := liveOf(s); n > 0 {
				m.counts.add(s.Message.Tenant, int64(n))
				if s.Message.NotBefore.After(now) {
					m.wakeDue(s.Message.NotBefore)
				}
			}
		}
		for i := range arrivals {
			m.enqueue(&arrivals[i].key, arrivals[i].it)
		}
	})
}

// event starts an event about one recipient of msg.
func (m *Manager) event(msg *message.Message, r *message.Recipient, typ message.EventType, seq uint32) *message.Event {
	metadata := mergeMetadata(msg.Metadata, r.Metadata)
	sender := msg.From.String()
	return &message.Event{
		Type:         typ,
		MessageID:    msg.ID,
		RFCMessageID: msg.RFCMessageID,
		Sender:       sender,
		Recipient:    r.Address.String(),
		N:            r.N,
		RecipientSeq: seq,
		Tenant:       msg.Tenant,
		Campaign:     msg.Campaign,
		Class:        msg.Class,
		Tags:         msg.Tags,
		Metadata:     metadata,
	}
}

// mergeMetadata lays a recipient's metadata over the message's. Both are empty or
// one JSON object, as the door has checked.
func mergeMetadata(msg, rcpt json.RawMessage) json.RawMessage {
	switch {
	case len(rcpt) == 0:
		return msg
	case len(msg) == 0:
		return rcpt
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(msg, &all) != nil || json.Unmarshal(rcpt, &all) != nil {
		return rcpt
	}
	merged, err := json.Marshal(all)
	if err != nil {
		return rcpt
	}
	return merged
}

// Event starts an event about a leased item that is loaded. Settle fills in its
// number.
func (m *Manager) Event(it *Item, typ message.EventType, at time.Time) *message.Event {
	return m.EventOf(it, it.msg, typ, at)
}

// EventOf starts an event about an item of msg.
func (m *Manager) EventOf(it *Item, msg *message.Message, typ message.EventType, at time.Time) *message.Event {
	e := m.event(msg, &it.Recipient, typ, it.EventSeq+1)
	e.Time = at
	e.Attempt = it.Attempt
	return e
}
