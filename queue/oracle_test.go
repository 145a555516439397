package queue

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// The oracle is the queue as one would write it if memory never failed and
// nothing happened at the same time.

// fate is where a recipient of the oracle is.
type fate uint8

const (
	isDue fate = iota
	isReady
	isLeased
	isGone
)

// oracleRecipient is one recipient as the oracle sees it.
type oracleRecipient struct {
	msg     *oracleMessage
	n       uint32
	key     store.QueueKey
	fate    fate
	due     time.Time
	place   uint64 // order of becoming ready
	attempt int
	events  uint32
	item    *Item // while leased
}

// oracleMessage is one accepted message.
type oracleMessage struct {
	id         message.ID
	body       []byte
	expires    time.Time
	recipients []*oracleRecipient
}

func (m *oracleMessage) waiting() (n int) {
	for _, r := range m.recipients {
		if r.fate != isGone {
			n++
		}
	}
	return n
}

// eventKey names one event for ever; eventFact is what it has to say.
type eventKey struct {
	id  message.ID
	n   uint32
	seq uint32
}

type eventFact struct {
	typ      message.EventType
	attempt  int
	terminal bool
}

type oracle struct {
	now      time.Time
	messages []*oracleMessage // those with somebody waiting, in order of acceptance
	gone     []message.ID     // some of those without
	lines    map[store.QueueKey][]*oracleRecipient
	leased   []*oracleRecipient
	// lazy are promotions that a crash may undo: nothing synced came later.
	lazy   []*oracleRecipient
	places uint64
	facts  map[eventKey]eventFact
}

func newOracle(now time.Time) *oracle {
	return &oracle{now: now, lines: map[store.QueueKey][]*oracleRecipient{}, facts: map[eventKey]eventFact{}}
}

// record notes an event that the journal must hold from now on.
func (o *oracle) record(r *oracleRecipient, typ message.EventType, terminal bool) {
	r.events++
	o.facts[eventKey{r.msg.id, r.n, r.events}] = eventFact{typ, r.attempt, terminal}
	o.lazy = nil // whatever was committed before this event is as durable as it
}

func (o *oracle) line(r *oracleRecipient) {
	o.places++
	r.fate, r.place = isReady, o.places
	o.lines[r.key] = append(o.lines[r.key], r)
}

// accept takes a submission as Manager.Accept does.
func (o *oracle) accept(s *message.Submission) {
	msg := s.Message
	om := &oracleMessage{id: msg.ID, body: s.Body, expires: msg.Expires}
	for i := range s.Recipients {
		r := &oracleRecipient{msg: om, n: uint32(i), key: store.QueueKey{
			Pool: msg.Pool, Domain: s.Recipients[i].Address.Domain(), Tenant: msg.Tenant, Campaign: msg.Campaign, Class: msg.Class,
		}}
		om.recipients = append(om.recipients, r)
		o.record(r, message.EventAccepted, false)
		switch {
		case suppressed(s, i) != "":
			o.record(r, message.EventSuppressed, true)
			r.fate = isGone
		case msg.NotBefore.After(o.now):
			r.fate, r.due = isDue, msg.NotBefore
		default:
			o.line(r)
		}
	}
	if om.waiting() > 0 {
		o.messages = append(o.messages, om)
	} else {
		o.bury(om)
	}
}

// maxGone bounds the ended messages that are remembered to be asked for again.
const maxGone = 16

func (o *oracle) bury(m *oracleMessage) {
	o.gone = append(o.gone, m.id)
	if len(o.gone) > maxGone {
		o.gone = o.gone[1:]
	}
}

// leave ends a recipient that is out of its line.
func (o *oracle) leave(r *oracleRecipient) {
	r.fate, r.item = isGone, nil
	if r.msg.waiting() == 0 {
		i := slices.Index(o.messages, r.msg)
		o.messages = slices.Delete(o.messages, i, i+1)
		o.bury(r.msg)
	}
}

func (o *oracle) unline(r *oracleRecipient) {
	line := o.lines[r.key]
	i := slices.Index(line, r)
	o.lines[r.key] = slices.Delete(line, i, i+1)
}

// tick lets time pass: what is due becomes ready, then what is too old ends.
func (o *oracle) tick(d time.Duration) {
	o.now = o.now.Add(d)
	o.promote()
	for _, m := range slices.Clone(o.messages) {
		if m.expires.After(o.now) {
			continue
		}
		for _, r := range m.recipients {
			if r.fate == isReady || r.fate == isDue {
				o.end(r, message.EventExpired)
			}
		}
	}
}

// end takes an unleased recipient out with a final event.
func (o *oracle) end(r *oracleRecipient, typ message.EventType) {
	if r.fate == isReady {
		o.unline(r)
	}
	o.record(r, typ, true)
	o.leave(r)
}

func (o *oracle) promote() {
	var list []*oracleRecipient
	for _, m := range o.messages {
		for _, r := range m.recipients {
			if r.fate == isDue && !r.due.After(o.now) {
				list = append(list, r)
			}
		}
	}
	slices.SortFunc(list, func(a, b *oracleRecipient) int {
		return cmp.Or(a.due.Compare(b.due), bytes.Compare(a.msg.id[:], b.msg.id[:]), cmp.Compare(a.n, b.n))
	})
	for _, r := range list {
		o.line(r)
	}
	o.lazy = append(o.lazy, list...)
}

// lease takes what the queue handed out off the front of its line.
func (o *oracle) lease(key store.QueueKey, items []*Item) error {
	for i, it := range items {
		line := o.lines[key]
		if len(line) == 0 {
			return fmt.Errorf("%v handed out %s, but nothing is in line", key, message.RecipientID(it.ID, it.Recipient.N))
		}
		r := line[0]
		if r.msg.id != it.ID || r.n != it.Recipient.N {
			return fmt.Errorf("%v handed out %s, next in line is %s", key, message.RecipientID(it.ID, it.Recipient.N), message.RecipientID(r.msg.id, r.n))
		}
		if it.Attempt != r.attempt || it.EventSeq != r.events {
			return fmt.Errorf("%s has %d attempts and %d events, want %d and %d", message.RecipientID(it.ID, it.Recipient.N), it.Attempt, it.EventSeq, r.attempt, r.events)
		}
		if i > 0 && it.ID != items[0].ID {
			return fmt.Errorf("one lease holds items of two messages")
		}
		o.lines[key] = line[1:]
		r.fate, r.item = isLeased, it
		o.leased = append(o.leased, r)
	}
	return nil
}

// unlease takes a recipient off the list of leased ones.
func (o *oracle) unlease(r *oracleRecipient) {
	i := slices.Index(o.leased, r)
	o.leased = slices.Delete(o.leased, i, i+1)
	r.item = nil
}

// release puts a leased recipient at the front.
func (o *oracle) release(r *oracleRecipient) {
	o.unlease(r)
	r.fate = isReady
	o.lines[r.key] = slices.Insert(o.lines[r.key], 0, r)
}

// evicted puts a line back into the order of the disk.
func (o *oracle) evicted(key store.QueueKey) {
	slices.SortFunc(o.lines[key], func(a, b *oracleRecipient) int { return cmp.Compare(a.place, b.place) })
}

// restart forgets what only memory knew. stillDue says which of the lazy
// promotions the disk does not know of.
func (o *oracle) restart(stillDue func(*oracleRecipient) (bool, error)) error {
	for len(o.leased) > 0 {
		o.release(o.leased[0])
	}
	for _, r := range o.lazy {
		if r.fate != isReady {
			continue
		}
		back, err := stillDue(r)
		if err != nil {
			return err
		}
		if back {
			o.unline(r)
			r.fate = isDue
		}
	}
	o.lazy = nil
	for key := range o.lines {
		o.evicted(key)
	}
	o.promote()
	return nil
}

// counts returns the numbers that Verify must report.
func (o *oracle) counts() (messages, due, ready int) {
	for _, m := range o.messages {
		for _, r := range m.recipients {
			switch r.fate {
			case isDue:
				due++
			case isReady, isLeased:
				ready++
			}
		}
	}
	return len(o.messages), due, ready
}

// factRecorder is a journal that holds exactly what the oracle wants to compare.
type factRecorder struct{}

func (factRecorder) Append(b *store.Batch, events ...*message.Event) {
	first := b.Reserve(len(events))
	for i, e := range events {
		e.Seq = first + uint64(i)
		v := append([]byte{byte(e.Type), 0}, e.MessageID[:]...)
		if e.Terminal {
			v[1] = 1
		}
		v = binary.BigEndian.AppendUint32(v, e.N)
		v = binary.BigEndian.AppendUint32(v, e.RecipientSeq)
		v = binary.BigEndian.AppendUint32(v, uint32(e.Attempt))
		b.Set(store.JournalKey(nil, e.Seq), v)
	}
}

func parseFact(v []byte) (eventKey, eventFact, error) {
	if len(v) != 30 {
		return eventKey{}, eventFact{}, fmt.Errorf("event of %d bytes", len(v))
	}
	k := eventKey{message.ID(v[2:18]), binary.BigEndian.Uint32(v[18:]), binary.BigEndian.Uint32(v[22:])}
	return k, eventFact{message.EventType(v[0]), int(binary.BigEndian.Uint32(v[26:])), v[1] == 1}, nil
}

// journal compares the whole journal with the facts.
func (o *oracle) journal(db *store.DB) error {
	n := 0
	err := db.Each(store.JournalSpan(0, ^uint64(0)), func(_, v []byte) (bool, error) {
		k, got, err := parseFact(v)
		if err != nil {
			return false, err
		}
		want, ok := o.facts[k]
		if !ok || got != want {
			return false, fmt.Errorf("the journal says %+v of %s event %d, want %+v", got, message.RecipientID(k.id, k.n), k.seq, want)
		}
		n++
		return true, nil
	})
	if err == nil && n != len(o.facts) {
		err = fmt.Errorf("the journal holds %d events, want %d", n, len(o.facts))
	}
	return err
}
