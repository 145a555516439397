package queue

import (
	"context"
	"encoding/json"
	"fmt"
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

// chunkAhead is the body size above which chunks are committed ahead of the
// message, so that one batch never holds a very large body.
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
		if len(s.Body) <= chunkAhead {
			size += len(s.Body)
		}
		size += 1024 + 1024*len(s.Recipients)
	}
	b := m.db.NewBatch(size)
	defer b.Close()
	for _, s := range subs {
		if err := m.add(b, s); err != nil {
			return err
		}
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

// add writes one submission into b. Its items reach their queues when b is
// committed.
func (m *Manager) add(b *store.Batch, s *message.Submission) error {
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
	events := make([]*message.Event, 0, len(s.Recipients))
	live := 0
	for i := range s.Recipients {
		r := &s.Recipients[i]
		r.N = uint32(i)
		e := m.event(msg, r, message.EventAccepted, 1)
		e.Time, e.Size, e.Origin = msg.Accepted, msg.Size, msg.Origin
		events = append(events, e)
		if reason := suppressed(s, i); reason != "" {
			e := m.event(msg, r, message.EventSuppressed, 2)
			e.Time, e.Terminal, e.Category, e.Detail = msg.Accepted, true, message.Suppressed, reason
			events = append(events, e)
			continue
		}
		live++
	}
	if live > 0 {
		if err := m.addBody(b, msg.ID, s.Body); err != nil {
			return err
		}
		var key [32]byte
		b.Set(store.MessageKey(key[:0], msg.ID), appendMessage(make([]byte, 0, 512), msg))
		b.Set(store.ExpiryKey(key[:0], msg.Expires, msg.ID), nil)
		m.addItems(b, s, live)
	}
	if s.Idempotency != nil {
		m.addIdempotency(b, s.Idempotency)
	}
	m.deps.Recorder.Append(b, events...)
	return nil
}

func (m *Manager) addBody(b *store.Batch, id message.ID, data []byte) error {
	var key [32]byte
	if len(data) <= chunkAhead {
		for n := 0; n*bodyChunk < len(data); n++ {
			b.Set(store.BodyKey(key[:0], id, uint32(n)), data[n*bodyChunk:min(len(data), (n+1)*bodyChunk)])
		}
		return nil
	}
	for n := 0; n*bodyChunk < len(data); n++ {
		ahead := m.db.NewBatch(bodyChunk + 128)
		if n == 0 {
			ahead.Set(store.PendingKey(key[:0], id), nil)
		}
		ahead.Set(store.BodyKey(key[:0], id, uint32(n)), data[n*bodyChunk:min(len(data), (n+1)*bodyChunk)])
		err := ahead.CommitLazy() // the commit of b makes it durable too
		ahead.Close()
		if err != nil {
			return fmt.Errorf("queue: accept: %w", err)
		}
	}
	b.Delete(store.PendingKey(key[:0], id))
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

// addItems writes the due or ready keys of the live recipients and arranges for
// their queues to hear of them.
func (m *Manager) addItems(b *store.Batch, s *message.Submission, live int) {
	msg := s.Message
	scheduled := msg.NotBefore.After(m.deps.Now())
	var cached *body
	if !scheduled && m.bodies.Load()+int64(len(s.Body)) <= m.Config().BodyCache {
		cached = &body{data: s.Body}
		cached.refs.Store(int32(live))
		m.bodies.Add(int64(len(s.Body)))
	}
	var seq uint64
	if !scheduled {
		seq = b.Reserve(live)
	}
	items := make([]*Item, 0, live)
	keys := make([]store.QueueKey, 0, live)
	var kbuf, lbuf [128]byte
	var vbuf [512]byte
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
		items = append(items, it)
		keys = append(keys, key)
	}
	b.AfterCommit(func(err error) {
		if err != nil {
			if cached != nil {
				m.bodies.Add(-int64(len(cached.data)))
			}
			return
		}
		m.counts.add(msg.Tenant, int64(live))
		if scheduled {
			m.wakeDue(msg.NotBefore)
		}
		for i, it := range items {
			m.enqueue(&keys[i], it)
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
