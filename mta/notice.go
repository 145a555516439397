package mta

import (
	"bytes"
	"crypto/rand"
	"time"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/queue"
)

// report is one recipient's line in a delivery status notification.
type report struct {
	it     *queue.Item
	reply  *message.Reply
	action bounce.Action
}

// wanted reports whether the sender asked to hear of this (RFC 3461, 4.1), or
// the tenant asks for all its senders. A recipient without NOTIFY is reported
// on only at the tenant's wish: the events tell everybody else.
func (m *MTA) wanted(msg *message.Message, r *report) bool {
	notify := r.it.Recipient.Notify
	switch r.action {
	case bounce.ActionFailed:
		return notify&message.NotifyFailure != 0 || notify == 0 && m.set.Load().Tenants[msg.Tenant].DSN
	case bounce.ActionDelayed:
		return notify&message.NotifyDelay != 0 || notify == 0 && m.set.Load().Tenants[msg.Tenant].DSN
	case bounce.ActionRelayed:
		return notify&message.NotifySuccess != 0
	}
	return false
}

// isLate reports whether the sender should be told now that the mail is late.
func (m *MTA) isLate(msg *message.Message, it *queue.Item, now time.Time) bool {
	after := m.set.Load().Config.NotifyDelay
	from := it.Accepted
	if msg.NotBefore.After(from) {
		from = msg.NotBefore
	}
	return after > 0 && it.DelayNotified.IsZero() && now.Sub(from) >= after
}

// notice composes a notification to the sender about those reports that are
// wanted, or returns nil. Nothing is ever sent to the null sender, nor about
// our own notices (RFC 3464, 2).
func (m *MTA) notice(t *txn, reports []report, now time.Time) *message.Submission {
	msg := t.load.msg
	if msg.Internal || msg.From.IsZero() {
		return nil
	}
	set := m.set.Load()
	dsn := bounce.DSN{Hostname: set.Hostname, Message: msg, Now: now, Rand: rand.Reader}
	for i := range reports {
		r := &reports[i]
		if !m.wanted(msg, r) {
			continue
		}
		d := bounce.DSNRecipient{Recipient: r.it.Recipient, Action: r.action, Reply: r.reply, LastAttempt: now}
		if r.action == bounce.ActionDelayed {
			d.WillRetryUntil = r.it.Expires
		}
		dsn.Recipients = append(dsn.Recipients, d)
	}
	if len(dsn.Recipients) == 0 {
		return nil
	}
	body := t.load.body
	if body == nil {
		if loaded, err := m.queue.Body(msg.ID, msg.Size); err == nil {
			body = loaded
		}
	}
	if header, rest, ok := bytes.Cut(body, []byte("\r\n\r\n")); ok {
		dsn.OriginalHeader, dsn.OriginalBody = header, rest
	}
	text, err := bounce.Compose(dsn)
	if err != nil {
		m.deps.Logger.Error("compose a delivery status notification", "msg_id", msg.ID, "err", err)
		return nil
	}
	return &message.Submission{
		Message: &message.Message{
			ID: m.deps.IDs.New(now), Tenant: msg.Tenant, Class: message.Transactional,
			Accepted: now, Internal: true, HeaderFrom: set.Hostname, Origin: "dsn",
		},
		Recipients: []message.Recipient{{Address: msg.From}},
		Body:       text,
	}
}
