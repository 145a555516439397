package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// recordVersion begins every value in the journal. Version 1: the version, the
// event type, the JSON.
const recordVersion = 1

// errRecord reports a value in the journal that this release cannot read.
var errRecord = errors.New("event: unreadable journal record")

// Config is what a Journal needs besides its store.
type Config struct {
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger; nil discards.
	Logger *slog.Logger
	// Registerer for the metrics; nil means none.
	Registerer prometheus.Registerer
	Retention  Retention
}

// Journal is the log of everything that happened, in the spool store, so that
// an event and the change it explains share a batch. It is safe for concurrent
// use.
type Journal struct {
	db      *store.DB
	now     func() time.Time
	log     *slog.Logger
	keep    Retention
	metrics journalMetrics

	start    uint64        // horizon when the journal was opened
	buffers  sync.Pool     // *[]byte, for keys and JSON on their way into a batch
	appended atomic.Uint64 // bytes given to batches since the start
	late     sync.Mutex    // held by a Late until its batch is visible
}

// NewJournal returns the journal in db, which must be the spool.
func NewJournal(db *store.DB, c Config) *Journal {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	j := &Journal{db: db, now: c.Now, log: c.Logger, keep: c.Retention.withDefaults(), metrics: newJournalMetrics(c.Registerer), start: db.Sequence().Horizon()}
	j.buffers.New = func() any { b := make([]byte, 0, 2<<10); return &b }
	return j
}

// Append numbers the events and adds them to the batch, where they become true
// together with whatever else it holds. It sets Seq, and Time where that is
// zero. The events may be reused at once. Failures show when the batch is
// committed.
func (j *Journal) Append(b *store.Batch, evs ...*message.Event) {
	if len(evs) == 0 {
		return
	}
	first := b.Reserve(len(evs))
	bp := j.buffers.Get().(*[]byte)
	buf := *bp
	size := 0
	for i, e := range evs {
		e.Seq = first + uint64(i)
		if e.Time.IsZero() {
			e.Time = j.now()
		}
		buf = store.JournalKey(buf[:0], e.Seq)
		k := len(buf)
		buf = e.AppendJSON(append(buf, recordVersion, byte(e.Type)))
		b.Set(buf[:k], buf[k:])
		size += len(buf)
	}
	for _, e := range evs { // in order of their keys: see queue, where mail is accepted
		if !e.MessageID.IsZero() {
			buf = store.HistoryKey(buf[:0], e.MessageID, e.N, e.Seq)
			b.Set(buf, nil)
		}
	}
	*bp = buf
	j.buffers.Put(bp)
	j.appended.Add(uint64(size))
	j.metrics.appended.Add(float64(len(evs)))
}

// Horizon is the last place up to which the journal is complete.
func (j *Journal) Horizon() uint64 { return j.db.Sequence().Horizon() }

// Wait returns when the horizon is past after, or with ctx's error. Places are
// not only given to events, so there may still be nothing to read.
func (j *Journal) Wait(ctx context.Context, after uint64) error {
	return j.db.Sequence().Wait(ctx, after)
}

// Read calls fn with at most limit events behind place after, in order, and
// returns the place to go on from. It stops at the horizon: what lies beyond
// may still get predecessors. The JSON is good only during the call, and fn
// should be quick, since the store keeps its snapshot meanwhile. When fn
// returns an error, next is the place before that event.
//
// Records that cannot be read are counted, logged and passed over: one of them
// must not silence every sink for ever.
func (j *Journal) Read(after uint64, limit int, fn func(seq uint64, typ message.EventType, json []byte) error) (next uint64, err error) {
	horizon := j.Horizon()
	next = after
	if after >= horizon || limit <= 0 {
		return next, nil
	}
	n := 0
	whole, err := j.db.EachReadable(store.JournalSpan(after, horizon), func(key, value []byte) (bool, error) {
		seq, err := store.ParseJournalKey(key)
		if err != nil {
			return false, err
		}
		typ, json, err := parseRecord(value)
		if err != nil {
			j.metrics.unreadable.Inc()
			j.log.Error("journal record unreadable", "seq", seq, "err", err)
			next = seq
			return true, nil
		}
		if err := fn(seq, typ, json); err != nil {
			return false, err
		}
		next = seq
		n++
		return n < limit, nil
	})
	if err != nil {
		return next, err
	}
	if !whole {
		j.metrics.unreadable.Inc() // the store has named the file
	}
	if n < limit {
		next = horizon
	}
	return next, nil
}

func parseRecord(value []byte) (message.EventType, []byte, error) {
	if len(value) < 3 || value[0] != recordVersion {
		return message.NoEvent, nil, errRecord
	}
	return message.EventType(value[1]), value[2:], nil
}

// maxHistory bounds what History returns: a recipient with more events than
// this is a click bot's.
const maxHistory = 10_000

// History returns the events of recipient n of message id that the journal
// still holds, oldest first, at most 10,000.
func (j *Journal) History(id message.ID, n uint32) ([]*message.Event, error) {
	return j.history(id, &n)
}

// MessageHistory returns the events of all recipients of message id in the
// order they happened, with the same bound.
func (j *Journal) MessageHistory(id message.ID) ([]*message.Event, error) {
	return j.history(id, nil)
}

func (j *Journal) history(id message.ID, only *uint32) ([]*message.Event, error) {
	span := store.HistorySpan(id)
	if only != nil {
		span.Start = store.HistoryKey(nil, id, *only, 0)
		span.End = store.HistoryKey(nil, id, *only, ^uint64(0))
	}
	horizon := j.Horizon()
	var seqs []uint64
	err := j.db.Each(span, func(key, _ []byte) (bool, error) {
		_, _, seq, err := store.ParseHistoryKey(key)
		if err == nil && seq <= horizon {
			seqs = append(seqs, seq)
		}
		return len(seqs) < maxHistory, err
	})
	if err != nil {
		return nil, fmt.Errorf("event: history of %s: %w", id, err)
	}
	sortSeqs(seqs)
	var out []*message.Event
	var key, value []byte
	for _, seq := range seqs {
		key = store.JournalKey(key[:0], seq)
		value, err = j.db.AppendGet(value[:0], key)
		if store.IsDamage(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("event: history of %s: %w", id, err)
		}
		if value == nil {
			continue // retention has taken it; the index goes later
		}
		_, json, err := parseRecord(value)
		if err != nil {
			j.metrics.unreadable.Inc()
			continue
		}
		e, err := Parse(json)
		if err != nil {
			return nil, fmt.Errorf("event: history of %s: place %d: %w", id, seq, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// Tail calls fn with every event behind place after, those to come included,
// until ctx ends or fn returns an error, and returns that. fn may take its
// time: it holds up nobody, and nothing is buffered for it beyond a batch. The
// record's JSON is good only during the call.
func (j *Journal) Tail(ctx context.Context, after uint64, fn func(Record) error) error {
	var b batch
	for {
		if err := j.Wait(ctx, after); err != nil {
			return err
		}
		b.reset()
		next, err := j.fill(&b, after, MaxBatch, nil)
		if err != nil {
			return err
		}
		for _, r := range b.records() {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(r); err != nil {
				return err
			}
		}
		after = next
	}
}

// Follow is Tail for use inside the program (counters, the console): it begins
// with what happens after the call and hands out events already parsed, of the
// given types only; none given means all.
func (j *Journal) Follow(ctx context.Context, fn func(*message.Event) error, types ...message.EventType) error {
	wants := wantTypes(types)
	return j.Tail(ctx, j.Horizon(), func(r Record) error {
		if !wants(r.Type) {
			return nil
		}
		e, err := Parse(r.JSON)
		if err != nil {
			j.metrics.unreadable.Inc()
			j.log.Error("journal record unreadable", "seq", r.Seq, "err", err)
			return nil
		}
		return fn(e)
	})
}

// wantTypes returns whether a type is among types; none means all.
func wantTypes(types []message.EventType) func(message.EventType) bool {
	if len(types) == 0 {
		return func(message.EventType) bool { return true }
	}
	var set [256]bool
	for _, t := range types {
		set[t] = true
	}
	return func(t message.EventType) bool { return set[t] }
}

// Cursor returns how far the sink called name has come, and whether it has a
// cursor at all.
func (j *Journal) Cursor(name string) (after uint64, ok bool, err error) {
	v, err := j.db.Get(store.CursorKey(nil, name))
	if err != nil || v == nil {
		return 0, false, err
	}
	after, err = parseCursor(v)
	if err != nil {
		return 0, false, fmt.Errorf("event: cursor of sink %s: %w", name, err)
	}
	return after, true, nil
}
