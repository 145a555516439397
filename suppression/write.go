package suppression

import (
	"fmt"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// writer turns concurrent changes into few commits. Rows are read, merged and
// written, so changes must not overlap: one caller leads and commits what has
// gathered, in one synced batch, for itself and for those who wait, and then
// passes the lead to the next of them.
type writer struct {
	l *List

	mu      sync.Mutex // protects everything below
	waiting []*change  // the leader's own comes first
	leading bool
}

// change is a set of operations that are committed together.
type change struct {
	ops []op
	// alone replaces ops by something to be done while no change is under way.
	alone func() error

	err  error
	done chan struct{} // closed when err is set
	lead chan struct{} // closed when the change is to lead
}

// maxCommit bounds the rows of one commit.
const maxCommit = 4096

func (w *writer) do(c *change) error {
	c.done, c.lead = make(chan struct{}), make(chan struct{})
	w.mu.Lock()
	w.waiting = append(w.waiting, c)
	leading := w.leading
	w.leading = true
	w.mu.Unlock()
	if leading {
		select {
		case <-c.done:
			return c.err
		case <-c.lead:
		}
	}
	round := w.take()
	var err error
	if c.alone != nil {
		err = c.alone()
	} else {
		err = w.l.apply(round)
	}
	for _, c := range round {
		c.err = err
		close(c.done)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) > 0 {
		close(w.waiting[0].lead)
	} else {
		w.leading = false
	}
	return err
}

// take removes the next round from those who wait.
func (w *writer) take() []*change {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, rows := 1, len(w.waiting[0].ops)
	if w.waiting[0].alone == nil {
		for n < len(w.waiting) && w.waiting[n].alone == nil && rows+len(w.waiting[n].ops) <= maxCommit {
			rows += len(w.waiting[n].ops)
			n++
		}
	}
	round := w.waiting[:n:n]
	w.waiting = append([]*change(nil), w.waiting[n:]...)
	return round
}

// op is one row to merge or to remove.
type op struct {
	row
	key    subject
	remove bool
	actor  Actor
	quiet  bool // no event
	err    error
	fresh  bool // the row was not there, or no longer held
}

// apply commits a round of changes. REQUIRES: no other apply is running.
func (l *List) apply(round []*change) error {
	b := l.db.NewBatch(0)
	defer b.Close()
	now := l.c.Now()
	seen := map[string]*row{} // what this batch has made of rows; nil is removed
	var added []subject
	var events []*outgoing
	var key, value []byte
	for _, c := range round {
		for i := range c.ops {
			o := &c.ops[i]
			key = store.SuppressionKey(key[:0], o.Tenant, o.Stream, o.SID)
			old, ok := seen[string(key)]
			if !ok {
				var err error
				if f := l.filter.Load(); f == nil || f.has(o.key) {
					if old, err = l.get(o.Tenant, o.Stream, o.SID); err != nil {
						return err
					}
				}
			}
			if o.remove {
				if o.err = mayRemove(old, o.actor, now); o.err != nil {
					continue
				}
				b.Delete(key)
				seen[string(key)] = nil
				o.Reason = old.Reason
			} else {
				o.fresh = old == nil || old.expired(now)
				merged := l.merge(old, &o.row, now)
				value = merged.encode(value[:0])
				b.Set(key, value)
				seen[string(key)] = merged
				added = append(added, o.key)
				if merged.Reason == Erasure {
					if err := l.forget(b, seen, merged); err != nil {
						return err
					}
				}
			}
			if l.c.Publish != nil && !o.quiet && (o.remove || o.fresh) {
				ev := &outgoing{seq: b.Reserve(1), event: o.event(now)}
				b.Set(store.OutboxKey(nil, ev.seq), encodeEvent(ev.event))
				events = append(events, ev)
			}
		}
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("suppression: commit: %w", err)
	}
	l.noteAdded(added)
	l.publish(events)
	return nil
}

// noteAdded lets the filters know of rows just committed.
func (l *List) noteAdded(added []subject) {
	if len(added) == 0 {
		return
	}
	// building is asked first. If there is none, either the rebuild has yet to
	// take its snapshot, which then holds our rows, or it has put its filter in
	// use already, where the second look finds it.
	next := l.building.Load()
	f := l.filter.Load()
	for _, s := range added {
		if f != nil {
			f.add(s)
		}
		if next != nil && next != f {
			next.add(s)
		}
	}
	if f != nil && f.crowded() {
		select {
		case l.crowded <- struct{}{}:
		default:
		}
	}
}

// merge returns what becomes of a row when a new one for the same address
// comes: the stronger reason, the longer hold, the first and the last evidence.
func (l *List) merge(old, add *row, now time.Time) *row {
	m := *add
	if old != nil && !old.expired(now) {
		m.First, m.FirstEvent = old.First, old.FirstEvent
		if old.Last.After(m.Last) {
			m.Last, m.LastEvent = old.Last, old.LastEvent
		}
		if m.First.After(add.First) { // an import may tell of earlier times
			m.First, m.FirstEvent = add.First, add.FirstEvent
		}
		if m.LastEvent.IsZero() {
			m.LastEvent = old.LastEvent
		}
		if old.Reason.strength() > add.Reason.strength() {
			m.Reason, m.Source = old.Reason, old.Source
		}
		if old.Expires.IsZero() || add.Expires.IsZero() {
			m.Expires = time.Time{}
		} else if old.Expires.After(m.Expires) {
			m.Expires = old.Expires
		}
		if len(m.sealed) == 0 {
			m.sealed = old.sealed
		}
	}
	if m.FirstEvent.IsZero() {
		m.FirstEvent = m.LastEvent
	}
	if m.Reason.Permanent() {
		m.Expires = time.Time{}
	}
	if m.Reason == Erasure {
		m.sealed, m.Source = nil, ""
	}
	return &m
}

// byExpiry is in whose name Purge removes.
const byExpiry Actor = 255

func mayRemove(old *row, by Actor, now time.Time) error {
	switch {
	case old == nil, by == byExpiry && !old.expired(now):
		return ErrNotFound
	case by == byExpiry:
		return nil
	case by == ByPerson:
		return nil
	case old.Reason.Permanent(), by == ByTenant && old.Tenant == "":
		return ErrForbidden
	}
	return nil
}

// forget takes the sealed address out of the other rows of an erased person:
// those of the tenant's streams, or of everyone's when all tenants are meant.
func (l *List) forget(b *store.Batch, seen map[string]*row, erased *row) error {
	span := store.SuppressionSpan(erased.Tenant)
	if erased.Tenant == "" {
		span = store.SuppressionsSpan()
	}
	it, err := l.db.NewIter(span)
	if err != nil {
		return err
	}
	defer it.Close()
	// From stream to stream: tenants have few streams and many rows.
	for ok := it.First(); ok; {
		tenant, stream, _, err := store.ParseSuppressionKey(it.Key())
		if err != nil {
			return err
		}
		sid := l.secrets.sid(appendSubject(nil, tenant, erased.Address))
		key := store.SuppressionKey(nil, tenant, stream, sid)
		r, done := seen[string(key)]
		if !done {
			if r, err = l.get(tenant, stream, sid); err != nil {
				return err
			}
		}
		if r != nil && len(r.sealed) > 0 {
			bare := *r
			bare.sealed = nil
			b.Set(key, bare.encode(nil))
			seen[string(key)] = &bare
		}
		behind := key[: len(key)-len(sid) : len(key)-len(sid)]
		for range len(sid) + 1 {
			behind = append(behind, 0xFF)
		}
		ok = it.SeekGE(behind)
	}
	return it.Error()
}

// Addition is what Add is told.
type Addition struct {
	Tenant  string
	Stream  string
	Address message.Address
	Reason  Reason
	// At is when the reason was given; zero means now.
	At time.Time
	// Evidence is the id of the event that shows it, if there is one.
	Evidence message.ID
	// Expires overrides the policy; zero means the policy's. Permanent reasons
	// ignore both.
	Expires time.Time
	Source  string
}

// Add suppresses addresses, all or none, and returns when that is durable and
// every later Check knows it. Where a suppression exists the stronger reason,
// the longer hold and the earliest and latest evidence are kept. Each address
// that could be mailed before gives a suppression.added event. Errors about
// the arguments wrap ErrBadEntry.
func (l *List) Add(as ...Addition) error {
	c := &change{ops: make([]op, len(as))}
	for i := range as {
		if err := l.prepare(&c.ops[i], &as[i]); err != nil {
			return err
		}
	}
	if len(as) == 0 {
		return nil
	}
	if err := l.write.do(c); err != nil {
		return err
	}
	for i := range c.ops {
		l.metrics.added.WithLabelValues(c.ops[i].Entry.Reason.String()).Inc()
	}
	return nil
}

func (l *List) prepare(o *op, a *Addition) error {
	if a.Address.IsZero() {
		return fmt.Errorf("%w: no address", ErrBadEntry)
	}
	if a.Reason == NoReason || int(a.Reason) >= len(reasonNames) {
		return fmt.Errorf("%w: no reason", ErrBadEntry)
	}
	if err := checkScope(a.Tenant, a.Stream); err != nil {
		return err
	}
	if a.Tenant == "" && a.Stream != "" {
		return fmt.Errorf("%w: a stream belongs to a tenant", ErrBadEntry)
	}
	if len(a.Source) > maxSource {
		return fmt.Errorf("%w: source longer than %d bytes", ErrBadEntry, maxSource)
	}
	at := a.At
	if at.IsZero() {
		at = l.c.Now()
	}
	at = at.UTC().Truncate(time.Second)
	expires := a.Expires
	if expires.IsZero() {
		expires = l.c.Policy.expires(a.Reason, at)
	}
	if a.Reason.Permanent() {
		expires = time.Time{}
	}
	place := l.secrets.place(a.Address)
	o.key = makeSubject(place, l.secrets.tenant(a.Tenant))
	var buf [512]byte
	sid := l.secrets.sid(appendSubject(buf[:0], a.Tenant, a.Address))
	o.row = row{masked: place ^ l.secrets.mask(sid[:]), Entry: Entry{
		Tenant: a.Tenant, Stream: a.Stream, SID: sid, Address: a.Address,
		Reason: a.Reason, First: at, Last: at, FirstEvent: a.Evidence, LastEvent: a.Evidence,
		Expires: expires, Source: a.Source,
	}}
	if l.c.KeepAddresses && a.Reason != Erasure {
		o.sealed = l.secrets.sealAddress(o.SID, a.Address)
	}
	return nil
}

// Remove lifts the suppression for exactly this tenant and stream, in the name
// of by, and returns when that is durable. It returns ErrForbidden where by may
// not, ErrNotFound where there is nothing to lift.
func (l *List) Remove(by Actor, tenant, stream string, a message.Address, source string) error {
	if len(source) > maxSource {
		return fmt.Errorf("%w: source longer than %d bytes", ErrBadEntry, maxSource)
	}
	if err := checkScope(tenant, stream); err != nil {
		return err
	}
	sid := l.secrets.sid(appendSubject(nil, tenant, a))
	c := &change{ops: []op{{remove: true, actor: by, key: l.secrets.subject(tenant, a), row: row{
		Entry: Entry{Tenant: tenant, Stream: stream, SID: sid, Address: a, Source: source},
	}}}}
	if err := l.write.do(c); err != nil {
		return err
	}
	if err := c.ops[0].err; err != nil {
		return err
	}
	l.metrics.removed.Inc()
	return nil
}
