package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/store"
)

// farAhead is how much later than anything can be due an item must be before the
// clock is blamed for it.
const farAhead = 24 * time.Hour

// latest is when an item that is put off now may be due at the latest.
func (c *Config) latest(now time.Time) time.Time {
	longest := c.MaxSchedule
	for _, d := range c.Retry {
		longest = max(longest, 2*d)
	}
	return now.Add(max(longest, c.MaxAge) + farAhead)
}

// bringBack makes items due that a clock which was far ahead has put off to a time
// far from now: as soon as the shortest retry, spread over the longest. Without
// this they would wait until that time comes, and expire then.
func (m *Manager) bringBack(ctx context.Context) error {
	cfg := m.Config()
	for total := 0; ; {
		now := m.deps.Now()
		n, err := m.bringBackSome(now, cfg.latest(now), total)
		if err != nil {
			return fmt.Errorf("queue: bring back what is due too late: %w", err)
		}
		if total += n; n < promoteChunk {
			if total > 0 {
				m.deps.Logger.Error("the clock was ahead when items were put off; they are brought back", "items", total)
			}
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (m *Manager) bringBackSome(now, from time.Time, done int) (n int, err error) {
	cfg := m.Config()
	first, last := cfg.Retry[0], cfg.Retry[len(cfg.Retry)-1]
	b := m.db.NewBatch(0)
	defer b.Close()
	m.moves.Lock()
	b.OnVisible(m.moves.Unlock)
	earliest := now.Add(first)
	_, err = m.db.EachReadable(store.DueFrom(from), func(k, v []byte) (bool, error) {
		_, id, number, err := store.ParseDueKey(k)
		if err != nil {
			return false, err
		}
		// Spread as evenly as a short counter does it; nobody can know how many
		// there are.
		due := earliest.Add(last * time.Duration((done+n)%1009) / 1009)
		at := store.DueKey(nil, due, id, number)
		b.Delete(k)
		b.Set(at, v)
		b.Set(store.LocatorKey(nil, id, number), at)
		n++
		return n < promoteChunk, nil
	})
	if err != nil || n == 0 {
		return 0, err
	}
	b.AfterCommit(func(err error) {
		if err == nil {
			m.wakeDue(earliest)
		}
	})
	return n, b.Commit()
}
