package queue

import (
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/store"
)

// Postpone ends the lease of items without an attempt: they wait on disk until
// at, out of the way of what lies behind them in their queue. Nothing is
// promised by it, so the commit is not waited for: should it be lost, the items
// are still ready.
// REQUIRES: at is before the items expire.
func (m *Manager) Postpone(items []*Item, at time.Time) error {
	b := m.db.NewBatch(512 * len(items))
	defer b.Close()
	var kbuf, lbuf [128]byte
	var vbuf [1024]byte
	for _, it := range items {
		b.Delete(it.appendPlace(kbuf[:0]))
		k := store.DueKey(kbuf[:0], at, it.ID, it.Recipient.N)
		b.Set(k, appendDue(vbuf[:0], it.key, it))
		b.Set(store.LocatorKey(lbuf[:0], it.ID, it.Recipient.N), k)
	}
	b.AfterCommit(func(err error) {
		if err != nil {
			return
		}
		for _, it := range items {
			m.dropBody(it)
			if it.queue != nil {
				it.queue.settled(1)
			}
		}
		m.wakeDue(at)
	})
	if err := b.CommitLazy(); err != nil {
		return fmt.Errorf("queue: postpone: %w", err)
	}
	return nil
}
