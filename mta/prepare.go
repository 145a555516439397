package mta

import (
	"context"
	"errors"
	"sync"

	"github.com/tradewind-mta/tradewind/dkim"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/outbound"
	"github.com/tradewind-mta/tradewind/queue"
)

// prepare brings the message of t into memory and drops the recipients that
// must not be mailed: expired, or suppressed since the message was accepted. It
// reports false when nobody is left; t is settled then.
func (m *MTA) prepare(t *txn) bool {
	if t.load.msg == nil { // or it waited for a permit, and may be signed
		msg, body, err := m.queue.Load(t.items)
		if err != nil {
			m.unreadable(t, err)
			return false
		}
		t.load = loaded{msg: msg, body: body}
	}
	msg := t.load.msg
	now := m.deps.Now()
	keep := t.items[:0]
	var done []queue.Settlement
	for i, it := range t.items {
		if !it.Expires.After(now) {
			done = append(done, m.Expired(it, msg))
			continue
		}
		reason, hit, err := m.suppressed(msg, it)
		if err != nil {
			// Mail late is better than mail to one who objected.
			m.deps.Logger.Warn("suppression cannot be asked; the message waits", "msg_id", msg.ID, "err", err)
			rest := append(append([]*queue.Item(nil), keep...), t.items[i:]...)
			m.commit(done)
			t.q.Release(rest)
			m.after(holdUnresolved, func() { m.Ready(t.q) })
			return false
		}
		if hit {
			e := m.queue.Event(it, message.EventSuppressed, now)
			e.Category, e.Detail = message.Suppressed, reason
			done = append(done, queue.Settlement{Item: it, Event: e})
			continue
		}
		keep = append(keep, it)
	}
	t.items = keep
	m.commit(done)
	return len(keep) > 0
}

func (m *MTA) suppressed(msg *message.Message, it *queue.Item) (reason string, hit bool, err error) {
	if m.deps.Suppressed == nil || msg.Internal {
		return "", false, nil
	}
	return m.deps.Suppressed(m.hard, msg.Tenant, msg.Campaign, it.Recipient.Address)
}

// unreadable ends recipients whose message is damaged on disk. It says so
// loudly: the mail was acknowledged.
func (m *MTA) unreadable(t *txn, err error) {
	if !errors.Is(err, queue.ErrDamaged) {
		t.q.Release(t.items)
		return
	}
	m.deps.Logger.Error("a message is damaged on disk and cannot be sent", "msg_id", t.items[0].ID, "err", err)
	if err := m.queue.Abandon(t.items, err); err != nil && !isShutdown(err) {
		m.deps.Logger.Error("settle", "err", err)
	}
}

// finish makes the bytes that go to a server with these capabilities: 7-bit if
// it asks for that, then signed. A reply means that the message cannot be sent.
func (m *MTA) finish(t *txn, caps *outbound.Caps) *message.Reply {
	if t.load.msg.EightBit && !caps.EightBitMIME && m.deps.Reencode != nil {
		body, err := m.deps.Reencode(t.load.body)
		if err != nil {
			return local(message.StageMail, 554, message.Enhanced{5, 6, 3}, "the server takes only 7-bit mail and this message cannot be converted: "+err.Error())
		}
		msg := *t.load.msg
		msg.EightBit, msg.Plain = false, false
		t.load = loaded{msg: &msg, body: body}
	}
	if t.load.signed {
		return nil
	}
	sig, err := m.sign(t)
	switch {
	case err == nil:
		t.load.sig, t.load.signed = sig, true
		return nil
	case errors.Is(err, dkim.ErrNoKey):
		m.metrics.unsigned.Inc()
		m.deps.Logger.Error("no DKIM key: mail waits until a key is configured, or unsigned mail allowed", "domain", t.load.msg.HeaderFrom, "tenant", t.load.msg.Tenant)
		return local(message.StageNone, 451, message.Enhanced{4, 7, 5}, "no DKIM key for "+t.load.msg.HeaderFrom)
	case errors.Is(err, context.Canceled):
		return local(message.StageNone, 451, message.Enhanced{4, 3, 2}, "stopping")
	case errors.Is(err, dkim.ErrHeader), errors.Is(err, dkim.ErrLineEnd), errors.Is(err, message.ErrBadAddress):
		return local(message.StageNone, 554, message.Enhanced{5, 6, 0}, "the message cannot be signed: "+err.Error())
	}
	m.deps.Logger.Error("DKIM signing", "msg_id", t.load.msg.ID, "err", err)
	return local(message.StageNone, 451, message.Enhanced{4, 7, 5}, "the message could not be signed")
}

func (m *MTA) sign(t *txn) ([]byte, error) {
	ring := m.set.Load().Signer
	msg := t.load.msg
	if ring == nil {
		return nil, nil
	}
	// A copy in 7 bits has a signature of its own.
	key := signatureKey{msg.ID, msg.EightBit}
	shared := msg.RecipientCount > 1
	if shared {
		if sig, ok := m.signed.get(key); ok {
			return sig, nil
		}
	}
	sig, err := ring.Sign(m.hard, dkim.Request{Message: t.load.body, From: msg.HeaderFrom, Tenant: msg.Tenant})
	if errors.Is(err, dkim.ErrNoKey) && msg.Internal {
		return nil, nil // our own notices go out all the same
	}
	if err == nil && shared {
		m.signed.put(key, sig)
	}
	return sig, err
}

// signatures remembers the signatures of messages with several recipients for
// as long as those are being delivered: the oldest go first.
type signatures struct {
	mu    sync.Mutex // protects everything below
	byKey map[signatureKey][]byte
	order fifo[signatureKey]
	max   int
}

type signatureKey struct {
	id       message.ID
	eightBit bool
}

func newSignatures(limit int) *signatures {
	return &signatures{byKey: make(map[signatureKey][]byte), max: limit}
}

func (s *signatures) get(k signatureKey) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.byKey[k]
	return v, ok
}

func (s *signatures) put(k signatureKey, sig []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byKey[k]; !ok {
		if s.order.len() == s.max {
			delete(s.byKey, s.order.pop())
		}
		s.order.push(k)
	}
	s.byKey[k] = sig
}
