package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/store"
)

// counts is how many items wait, for each tenant. A queue that stops in order
// writes it down, so that the next start knows it at once; after a crash
// everything is counted, slowly, beside the work, as it was at the start. What
// comes and goes is added in either case.
type counts struct {
	total   atomic.Int64
	tenants sync.Map // name -> *atomic.Int64
	// backlog holds the due and ready keys as New found them, when the store
	// does not know the counts.
	backlog []*store.Iter
	known   atomic.Bool // the counts are whole
}

const countsVersion = 1

// tenant returns the counter of a tenant.
func (c *counts) tenant(name string) *atomic.Int64 {
	if n, ok := c.tenants.Load(name); ok {
		return n.(*atomic.Int64)
	}
	n, _ := c.tenants.LoadOrStore(name, new(atomic.Int64))
	return n.(*atomic.Int64)
}

func (c *counts) add(tenant string, n int64) {
	c.total.Add(n)
	c.tenant(tenant).Add(n)
}

// tenant is whose item it is, "" where damage hides that.
func (it *Item) tenant() string {
	if it.key == nil {
		return ""
	}
	return it.key.Tenant
}

// WaitingOf is how many items of a tenant wait. After a crash it is too low until
// they have been counted.
func (m *Manager) WaitingOf(tenant string) int {
	n, ok := m.counts.tenants.Load(tenant)
	if !ok {
		return 0
	}
	return int(n.(*atomic.Int64).Load())
}

// open reads the counts, or prepares to find them out. It must come before
// anything is accepted.
func (c *counts) open(db *store.DB) error {
	v, err := db.Get(store.WaitingKey())
	damaged := store.IsDamage(err)
	if err != nil && !damaged {
		return err
	}
	if v != nil || damaged { // what cannot be read is counted anew
		// It goes into the log ahead of every change that makes it untrue.
		b := db.NewBatch(0)
		defer b.Close()
		b.Delete(store.WaitingKey())
		if err := b.CommitLazy(); err != nil {
			return fmt.Errorf("queue: open counts: %w", err)
		}
	}
	if c.parse(v) {
		c.known.Store(true)
		return nil
	}
	for _, span := range []store.Span{store.DueSpan(time.Time{}), store.ReadyQueuesSpan(nil)} {
		it, err := db.NewIter(span)
		if err != nil {
			return errors.Join(err, c.close())
		}
		c.backlog = append(c.backlog, it)
	}
	return nil
}

// close drops what open has prepared.
func (c *counts) close() (err error) {
	for _, it := range c.backlog {
		if closing := it.Close(); !store.IsDamage(closing) { // it tells a failed read again
			err = errors.Join(err, closing)
		}
	}
	c.backlog = nil
	return err
}

// parse reads saved counts; false means that there are none.
func (c *counts) parse(v []byte) bool {
	r := &reader{b: v}
	if len(v) == 0 || r.byte() != countsVersion {
		return false
	}
	type count struct {
		tenant string
		n      uint64
	}
	var list []count
	for r.err == nil && len(r.b) > 0 {
		list = append(list, count{r.string(), r.uvarint()})
	}
	if r.err != nil {
		return false
	}
	for _, t := range list {
		c.add(t.tenant, int64(t.n))
	}
	return true
}

// A count of millions of items takes seconds of work. It is done in short spells,
// a fifth of the time at the most.
const (
	countSpell = 5 * time.Millisecond
	countRest  = 20 * time.Millisecond
)

// count finds out how many items waited at the start, unless that is known.
func (m *Manager) count(ctx context.Context) (err error) {
	c := &m.counts
	defer func() { err = errors.Join(err, c.close()) }()
	if c.known.Load() {
		return nil
	}
	rest := time.NewTimer(0)
	defer rest.Stop()
	began := time.Now()
	for _, it := range c.backlog {
		n := 0
		for ok := it.First(); ok; ok = it.Next() {
			tenant, err := tenantAt(it)
			if err != nil {
				continue // the promotion or a refill will set it aside
			}
			c.total.Add(1)
			counter, ok := c.tenants.Load(string(tenant))
			if !ok {
				counter = c.tenant(string(tenant))
			}
			counter.(*atomic.Int64).Add(1)
			if n++; n%256 != 0 || time.Since(began) < countSpell {
				continue
			}
			rest.Reset(countRest)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-rest.C:
			}
			began = time.Now()
		}
		if err := it.Error(); err != nil && !store.IsDamage(err) { // the store has told; the number is too low
			return fmt.Errorf("queue: count: %w", err)
		}
	}
	c.known.Store(true)
	return nil
}

// tenantAt returns the tenant of the item that it stands at.
func tenantAt(it *store.Iter) ([]byte, error) {
	if !store.IsDue(it.Key()) {
		return store.TenantOf(it.Key()[1:])
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return nil, err
	}
	n, w := binary.Uvarint(v)
	if w <= 0 || n > uint64(len(v)-w) {
		return nil, errRecord
	}
	return store.TenantOf(v[w:])
}

// saveCounts writes the counts down for the next start. REQUIRES: nothing
// changes the queue any more.
func (m *Manager) saveCounts() error {
	c := &m.counts
	if !c.known.Load() {
		return nil
	}
	v := []byte{countsVersion}
	whole := true
	c.tenants.Range(func(name, n any) bool {
		waiting := n.(*atomic.Int64).Load()
		whole = whole && waiting >= 0
		if waiting > 0 {
			v = binary.AppendUvarint(appendString(v, name.(string)), uint64(waiting))
		}
		return true
	})
	if !whole {
		return nil // the next start counts again
	}
	b := m.db.NewBatch(0)
	defer b.Close()
	b.Set(store.WaitingKey(), v)
	if err := b.CommitLazy(); err != nil && !errors.Is(err, store.ErrDead) {
		return fmt.Errorf("queue: save counts: %w", err)
	}
	return nil
}
