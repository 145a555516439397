package suppression

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// outgoing is an event on its way to the journal.
type outgoing struct {
	seq   uint64
	event *message.Event
}

// event is what the journal is told of o. Of an erased person it says nothing
// but that there was one.
func (o *op) event(now time.Time) *message.Event {
	e := &message.Event{
		Type: message.EventSuppressionAdded, Time: now, Tenant: o.Tenant, Campaign: o.Stream,
		Recipient: o.Address.String(), Detail: o.Reason.String(), Origin: o.Source,
	}
	if o.remove {
		e.Type = message.EventSuppressionRemoved
	}
	if o.Reason == Erasure {
		e.Recipient = ""
	}
	return e
}

// waiting is the stored form of an event in the outbox.
type waiting struct {
	Type      message.EventType `json:"type"`
	Time      time.Time         `json:"time"`
	Tenant    string            `json:"tenant,omitempty"`
	Stream    string            `json:"stream,omitempty"`
	Recipient string            `json:"recipient,omitempty"`
	Detail    string            `json:"detail,omitempty"`
	Origin    string            `json:"origin,omitempty"`
}

const outboxVersion = 1

func encodeEvent(e *message.Event) []byte {
	b, err := json.Marshal(waiting{e.Type, e.Time, e.Tenant, e.Campaign, e.Recipient, e.Detail, e.Origin})
	if err != nil {
		panic(err) // strings and a time of our own making
	}
	return append([]byte{outboxVersion}, b...)
}

func decodeEvent(v []byte) (*message.Event, error) {
	var w waiting
	if len(v) == 0 || v[0] != outboxVersion {
		return nil, errRow
	}
	if err := json.Unmarshal(v[1:], &w); err != nil {
		return nil, fmt.Errorf("suppression: outbox: %w", err)
	}
	return &message.Event{Type: w.Type, Time: w.Time, Tenant: w.Tenant, Campaign: w.Stream,
		Recipient: w.Recipient, Detail: w.Detail, Origin: w.Origin}, nil
}

// publish journals events and empties the outbox of them. What fails stays
// there, and Run tries it again. It reports success.
func (l *List) publish(evs []*outgoing) bool {
	if len(evs) == 0 {
		return true
	}
	var all []*message.Event
	for _, e := range evs {
		if e.event != nil {
			all = append(all, e.event)
		}
	}
	if len(all) > 0 { // otherwise there were only unreadable ones, which go
		if err := l.c.Publish(all...); err != nil {
			l.c.Logger.Warn("suppression events not journalled yet", "err", err)
			return false
		}
	}
	b := l.db.NewBatch(0)
	defer b.Close()
	for _, e := range evs {
		b.Delete(store.OutboxKey(nil, e.seq))
	}
	if err := b.CommitWritten(); err != nil { // a power cut may undo it: the events are told twice then
		l.c.Logger.Error("suppression outbox not emptied", "err", err)
		return false
	}
	return true
}

// drainRound bounds the events published in one go.
const drainRound = 1000

// drainOutbox publishes what lies in the outbox, in rounds between which
// changes may take their turn: nothing a change is about to publish itself is
// published here as well.
func (l *List) drainOutbox(ctx context.Context) error {
	if l.c.Publish == nil {
		return nil
	}
	for more := true; more && ctx.Err() == nil; {
		err := l.write.do(&change{alone: func() (err error) {
			more, err = l.drainSome()
			return err
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

// drainSome publishes one round, and reports whether another is worth it.
func (l *List) drainSome() (more bool, err error) {
	var evs []*outgoing
	err = l.db.Each(store.OutboxSpan(), func(k, v []byte) (bool, error) {
		if len(k) != 9 {
			return false, store.ErrBadKey
		}
		e, err := decodeEvent(v)
		if err != nil {
			// Left in place it would come first for ever and hold up the rest.
			l.c.Logger.Error("suppression event unreadable, dropped", "err", err)
		}
		evs = append(evs, &outgoing{seq: binary.BigEndian.Uint64(k[1:]), event: e})
		return len(evs) < drainRound, nil
	})
	if err != nil || len(evs) == 0 {
		return false, err
	}
	return l.publish(evs) && len(evs) == drainRound, nil
}
