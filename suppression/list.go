package suppression

import (
	"context"
	"encoding/base64"
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

// Config is what a List needs besides its store.
type Config struct {
	// Key is the operator's secret, from a file outside the database, at least
	// MinKey bytes. With another key the whole list is unreadable: Check would
	// find nothing, so New refuses a key that did not write the store.
	Key    []byte
	Policy Policy
	// KeepAddresses stores addresses sealed beside the hash, so that List and
	// Export can show them. Never for erasures.
	KeepAddresses bool
	// Publish journals events durably; nil means nobody wants to know.
	//
	// The journal lies in another store than the list, so one fact takes two
	// commits, in this order: the row together with its event in an outbox,
	// then the event in the journal, then the outbox is emptied. A crash in
	// between leaves the suppression in force and the event in the outbox, to
	// be published when Run starts. An event may thus be journalled twice, with
	// different ids but the same time, tenant, recipient and detail, and is
	// never lost.
	Publish func(evs ...*message.Event) error

	Now        func() time.Time      // nil means time.Now
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil means none
}

// List is the suppression list, in the ledger store. It is safe for concurrent
// use.
//
// Lock order: rebuild, then softMu, then writer.mu.
type List struct {
	db      *store.DB
	c       Config
	secrets *secrets
	metrics metrics
	write   writer

	everyone uint64 // hash of the empty tenant

	// filter answers most misses; nil until it is built, which means "ask the
	// store". building is the one a rebuild is filling: whoever adds a row adds
	// it to both, after the commit, so that the rebuild's snapshot or the
	// adder itself has it.
	filter   atomic.Pointer[filter]
	building atomic.Pointer[filter]
	soft     atomic.Pointer[filter] // of subjects with soft bounces counted
	softNext atomic.Pointer[filter]

	rebuild sync.Mutex // one rebuild at a time
	crowded chan struct{}
	softMu  [64]sync.Mutex // by sid: one counts at a time
}

// keyCheck is the name of the state that tells whether the key is the one the
// list was written with.
const keyCheck = "suppression.key"

// New returns the list in db, which must be the ledger. It reads nothing but
// the mark of the key: the filter is built by Run, and until it is, Check asks
// the store.
func New(db *store.DB, c Config) (*List, error) {
	s, err := newSecrets(c.Key)
	if err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Policy = c.Policy.withDefaults()
	l := &List{db: db, c: c, secrets: s, metrics: newMetrics(c.Registerer), crowded: make(chan struct{}, 1)}
	l.write.l = l
	l.everyone = s.tenant("")
	return l, l.checkKey()
}

// ErrWrongKey reports a list that was written with another key.
var ErrWrongKey = errors.New("suppression: the key is not the one this list was written with")

func (l *List) checkKey() error {
	want := l.secrets.sid([]byte(keyCheck))
	got, err := l.db.Get(store.StateKey(nil, keyCheck))
	switch {
	case err != nil:
		return err
	case got == nil:
		b := l.db.NewBatch(0)
		defer b.Close()
		b.Set(store.StateKey(nil, keyCheck), want[:])
		return b.Commit()
	case string(got) != string(want[:]):
		return ErrWrongKey
	}
	return nil
}

// Check reports whether a may be sent mail of the tenant's stream: it returns
// the suppression that forbids it, if there is one. The order is: all tenants,
// the tenant, the tenant's stream. On an error nothing is known, and the mail
// has to wait.
func (l *List) Check(tenant, stream string, a message.Address) (hit Entry, suppressed bool, err error) {
	all, own := true, true // whether there may be rows for all tenants, for this one
	if f := l.filter.Load(); f != nil {
		place := l.secrets.place(a)
		all = f.has(makeSubject(place, l.everyone))
		own = tenant != "" && f.has(makeSubject(place, l.secrets.tenant(tenant)))
	}
	if !all && !own {
		return Entry{}, false, nil
	}
	if all {
		hit, suppressed, err = l.look("", []string{""}, a)
	}
	if own && tenant != "" && !suppressed && err == nil {
		streams := []string{"", stream}
		if stream == "" {
			streams = streams[:1]
		}
		hit, suppressed, err = l.look(tenant, streams, a)
	}
	return hit, suppressed, err
}

// look asks the store about an address in some of a tenant's streams.
func (l *List) look(tenant string, streams []string, a message.Address) (Entry, bool, error) {
	sid := l.secrets.sid(appendSubject(nil, tenant, a))
	for _, stream := range streams {
		r, err := l.get(tenant, stream, sid)
		if err != nil {
			l.metrics.errors.Inc()
			return Entry{}, false, err
		}
		if r != nil && !r.expired(l.c.Now()) {
			l.metrics.hits.Inc()
			return r.Entry, true, nil
		}
	}
	return Entry{}, false, nil
}

// get reads one row, or returns nil.
func (l *List) get(tenant, stream string, sid [16]byte) (*row, error) {
	var kb, vb [256]byte
	v, err := l.db.AppendGet(vb[:0], store.SuppressionKey(kb[:0], tenant, stream, sid))
	if err != nil || v == nil {
		return nil, err
	}
	r := &row{Entry: Entry{Tenant: tenant, Stream: stream, SID: sid}}
	if err := r.decode(v); err != nil {
		return nil, fmt.Errorf("suppression: row %x: %w", sid, err)
	}
	return r, nil
}

// Get returns the entry for exactly this tenant and stream, expired or not,
// with the address where it is kept. It returns ErrNotFound when there is none.
func (l *List) Get(tenant, stream string, a message.Address) (Entry, error) {
	r, err := l.get(tenant, stream, l.secrets.sid(appendSubject(nil, tenant, a)))
	if err != nil {
		return Entry{}, err
	}
	if r == nil {
		return Entry{}, ErrNotFound
	}
	err = l.secrets.open(r)
	return r.Entry, err
}

// ErrBadCursor reports a cursor that List did not return.
var ErrBadCursor = errors.New("suppression: bad cursor")

// List returns up to limit entries of a tenant behind cursor, in the order of
// stream and hash, and the cursor to go on from, which is empty at the end. The
// empty cursor begins at the start; the empty tenant lists what holds for all
// tenants. Expired entries are left out. A limit below 1 counts as 1.
func (l *List) List(tenant, cursor string, limit int) (entries []Entry, next string, err error) {
	limit = max(limit, 1)
	span := store.SuppressionSpan(tenant)
	if cursor != "" {
		after, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil || len(after) < 17 || len(after) > maxScope+17 {
			return nil, "", ErrBadCursor
		}
		span.Start = append(append(span.Start, after...), 0)
	}
	skip := len(store.SuppressionSpan(tenant).Start)
	now := l.c.Now()
	err = l.each(span, func(key []byte, r *row) (bool, error) {
		if r.expired(now) {
			return true, nil
		}
		if len(entries) == limit {
			last := store.SuppressionKey(nil, tenant, entries[limit-1].Stream, entries[limit-1].SID)
			next = base64.RawURLEncoding.EncodeToString(last[skip:])
			return false, nil
		}
		if err := l.secrets.open(r); err != nil {
			return false, err
		}
		entries = append(entries, r.Entry)
		return true, nil
	})
	return entries, next, err
}

// each calls fn with the rows of span, each in a row of its own.
func (l *List) each(span store.Span, fn func(key []byte, r *row) (bool, error)) error {
	return l.db.Each(span, func(key, value []byte) (bool, error) {
		r := &row{}
		var err error
		if r.Tenant, r.Stream, r.SID, err = store.ParseSuppressionKey(key); err != nil {
			return false, err
		}
		if err := r.decode(value); err != nil {
			return false, fmt.Errorf("suppression: row %x: %w", r.SID, err)
		}
		return fn(key, r)
	})
}

// Run publishes what a crash left in the outbox, builds the filter, and then
// keeps house until ctx ends: it grows the filter, and once a day removes what
// has expired and builds the filter without it. What fails is logged and tried
// again: without a filter, or with an old one, every answer is still right. It
// returns nil when ctx ends.
func (l *List) Run(ctx context.Context) error {
	l.keepHouse(ctx, "outbox", l.drainOutbox)
	l.keepHouse(ctx, "filter", l.Rebuild)
	daily := time.NewTicker(24 * time.Hour)
	defer daily.Stop()
	retry := time.NewTicker(time.Minute)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.crowded:
			l.keepHouse(ctx, "filter", l.Rebuild)
		case <-daily.C:
			l.keepHouse(ctx, "purge", l.Purge)
			l.keepHouse(ctx, "filter", l.Rebuild)
		case <-retry.C:
			l.keepHouse(ctx, "outbox", l.drainOutbox)
		}
	}
}

func (l *List) keepHouse(ctx context.Context, what string, do func(context.Context) error) {
	if err := do(ctx); err != nil && ctx.Err() == nil {
		l.c.Logger.Error("suppression housekeeping", "task", what, "err", err)
	}
}
