package suppression

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

var testKey = bytes.Repeat([]byte{7}, 32)

func openLedger(t testing.TB, fs vfs.FS) *store.DB {
	t.Helper()
	db, err := store.Open("data", store.Ledger, store.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func closeDB(t testing.TB, db *store.DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// clock is a clock set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// journal takes events in memory, or refuses them.
type journal struct {
	mu     sync.Mutex
	down   bool
	events []*message.Event
}

var errJournal = errors.New("journal is down")

func (j *journal) publish(evs ...*message.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.down {
		return errJournal
	}
	j.events = append(j.events, evs...)
	return nil
}

func (j *journal) told() (out []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		out = append(out, fmt.Sprintf("%s %s/%s %s %s", e.Type, e.Tenant, e.Campaign, e.Recipient, e.Detail))
	}
	return out
}

func newList(t testing.TB, db *store.DB, c Config) *List {
	t.Helper()
	if c.Key == nil {
		c.Key = testKey
	}
	l, err := New(db, c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// world is a list over a new store.
type world struct {
	*List
	t     testing.TB
	clock *clock
	log   *journal
}

func newWorld(t testing.TB, c Config) *world {
	t.Helper()
	db := openLedger(t, vfs.NewMem())
	t.Cleanup(func() { closeDB(t, db) })
	w := &world{t: t, clock: newClock(), log: &journal{}}
	c.Now, c.Publish = w.clock.Now, w.log.publish
	w.List = newList(t, db, c)
	return w
}

func (w *world) add(tenant, stream, address string, r Reason) {
	w.t.Helper()
	if err := w.Add(Addition{Tenant: tenant, Stream: stream, Address: message.MustAddress(address), Reason: r}); err != nil {
		w.t.Fatal(err)
	}
}

// reason returns why an address is suppressed, NoReason if it is not.
func (w *world) reason(tenant, stream, address string) Reason {
	w.t.Helper()
	return reasonOf(w.t, w.List, tenant, stream, address)
}

func reasonOf(t testing.TB, l *List, tenant, stream, address string) Reason {
	t.Helper()
	hit, ok, err := l.Check(tenant, stream, message.MustAddress(address))
	if err != nil {
		t.Fatal(err)
	}
	if ok != (hit.Reason != NoReason) {
		t.Fatalf("Check says %v and %v", ok, hit.Reason)
	}
	return hit.Reason
}

func (w *world) want(tenant, stream, address string, r Reason) {
	w.t.Helper()
	if got := w.reason(tenant, stream, address); got != r {
		w.t.Errorf("%s/%s %s: got %q, want %q", tenant, stream, address, got, r)
	}
}
