package event

import (
	"fmt"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Late adds facts about recipients that have left the queue: a bounce or a
// complaint that came back days later. It continues the recipient's numbering,
// which the queue keeps for as long as the recipient waits.
//
// A Late holds the journal's lock for late facts from Journal.Late until its
// batch is visible, so that two of them cannot take the same number. The lock
// is not held across the sync.
type Late struct {
	j     *Journal
	b     *store.Batch
	pasts map[recipient]*Past // as this batch has changed them
}

type recipient struct {
	id message.ID
	n  uint32
}

// Past is what the journal knows of a recipient.
type Past struct {
	// Queued says that the recipient waits in the queue. The queue numbers their
	// events then, and nothing late may be added yet.
	Queued bool
	// Last is the latest event, nil where the journal holds none any more. A
	// fact added then has no number.
	Last *message.Event

	types uint32
	seq   uint32
}

// Has reports whether an event of this type is among those that the journal
// holds.
func (p *Past) Has(t message.EventType) bool { return p.types&(1<<t) != 0 }

// maxPast bounds the events that Look reads: the latest ones.
const maxPast = 256

// Late begins to add late facts to b, which the caller must commit or close
// soon.
func (j *Journal) Late(b *store.Batch) *Late {
	j.late.Lock()
	b.OnVisible(j.late.Unlock)
	return &Late{j: j, b: b, pasts: map[recipient]*Past{}}
}

// Look tells what is known of recipient n of message id, facts added before in
// the same batch included.
func (l *Late) Look(id message.ID, n uint32) (*Past, error) {
	who := recipient{id, n}
	if p := l.pasts[who]; p != nil {
		return p, nil
	}
	p := &Past{}
	// In this order: the commit that takes a recipient out of the queue holds
	// their last event, so whoever is found gone has their whole past.
	v, err := l.j.db.Get(store.LocatorKey(nil, id, n))
	if err != nil {
		return nil, fmt.Errorf("event: past of %s: %w", message.RecipientID(id, n), err)
	}
	p.Queued = v != nil
	span := store.Span{Start: store.HistoryKey(nil, id, n, 0), End: store.HistoryKey(nil, id, n, ^uint64(0))}
	var seqs []uint64
	err = l.j.db.Each(span, func(key, _ []byte) (bool, error) {
		_, _, seq, err := store.ParseHistoryKey(key)
		seqs = append(seqs, seq)
		return len(seqs) < maxHistory, err
	})
	if err != nil {
		return nil, fmt.Errorf("event: past of %s: %w", message.RecipientID(id, n), err)
	}
	var key, value, latest []byte
	for _, seq := range seqs[max(0, len(seqs)-maxPast):] {
		key = store.JournalKey(key[:0], seq)
		if value, err = l.j.db.AppendGet(value[:0], key); err != nil {
			return nil, fmt.Errorf("event: past of %s: %w", message.RecipientID(id, n), err)
		}
		if value == nil {
			continue // retention has taken it
		}
		typ, json, err := parseRecord(value)
		if err != nil {
			l.j.metrics.unreadable.Inc()
			continue
		}
		p.types |= 1 << typ
		latest = append(latest[:0], json...)
	}
	if latest != nil {
		if p.Last, err = Parse(latest); err != nil {
			return nil, fmt.Errorf("event: past of %s: %w", message.RecipientID(id, n), err)
		}
		p.seq = p.Last.RecipientSeq
	}
	l.pasts[who] = p
	return p, nil
}

// Add adds e about the recipient that Look found p for. What e leaves empty of
// the message and the recipient is taken from their past; the number continues
// theirs. REQUIRES: !p.Queued.
func (l *Late) Add(p *Past, e *message.Event) {
	if old := p.Last; old != nil {
		e.MessageID, e.N = old.MessageID, old.N
		e.RFCMessageID, e.Sender, e.Recipient = old.RFCMessageID, old.Sender, old.Recipient
		e.Tenant, e.Campaign, e.Class, e.Tags, e.Metadata = old.Tenant, old.Campaign, old.Class, old.Tags, old.Metadata
		e.Egress = old.Egress
		if p.seq > 0 {
			p.seq++
			e.RecipientSeq = p.seq
		}
	}
	l.j.Append(l.b, e)
	p.types |= 1 << e.Type
	last := *e
	p.Last = &last
}
