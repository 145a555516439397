package store

import (
	"errors"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// compactor says when compactions run: as many at a time as Pebble allows, none
// for a while after one that failed, and none any more when the store is dead.
// Pebble would try the same again at once, for ever, when the cause is damage in
// level 0. It has no goroutine that ticks, so that it can run in virtual time.
//
// Pebble calls TrySchedule and UpdateGetAllowedWithoutPermission with its own
// mutex held, and takes that in GetWaitingCompaction and Schedule: mu is never
// held there.
type compactor struct {
	db pebble.DBForCompaction // set once, before all other calls

	mu      sync.Mutex // protects everything below
	closed  bool
	running int
	offers  int           // calls of offer under way
	none    sync.Cond     // offers became 0
	busy    bool          // one of them talks to Pebble
	refused bool          // TrySchedule has said no since then
	wait    time.Duration // after the last failure
	resume  *time.Timer   // ends the wait; nil when there is none
}

// After a compaction that failed the next may begin after minCompactWait, and
// after twice as long each time, up to maxCompactWait.
const (
	minCompactWait = time.Second
	maxCompactWait = time.Minute
)

func newCompactor() *compactor {
	c := &compactor{}
	c.none.L = &c.mu
	return c
}

// Register is told of the database, once it is open.
func (c *compactor) Register(_ int, db pebble.DBForCompaction) { c.db = db }

// Unregister comes when the database is closed. It returns when nothing of c
// calls it any more.
func (c *compactor) Unregister() {
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.offers > 0 {
		c.none.Wait()
	}
}

// stop lets no compaction begin any more.
func (c *compactor) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.resume != nil {
		c.resume.Stop()
	}
}

// TrySchedule lets a compaction begin, or has Pebble wait for an offer.
func (c *compactor) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.roomLocked() {
		c.refused = true
		return false, nil
	}
	c.running++
	return true, c
}

func (c *compactor) roomLocked() bool {
	return !c.closed && c.resume == nil && c.running < c.db.GetAllowedWithoutPermission()
}

// UpdateGetAllowedWithoutPermission comes after each flush.
func (c *compactor) UpdateGetAllowedWithoutPermission() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offerLocked()
}

// Done comes at the end of a compaction.
func (c *compactor) Done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	c.offerLocked()
}

// Started, MeasureCPU and CumulativeStats are of no interest here.
func (c *compactor) Started()                                          {}
func (c *compactor) MeasureCPU(pebble.CompactionGoroutineKind)         {}
func (c *compactor) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// ended is told of every compaction before another is asked for.
func (c *compactor) ended(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.wait = 0
	case errors.Is(err, pebble.ErrCancelledCompaction):
	case c.resume == nil && !c.closed:
		c.wait = min(max(2*c.wait, minCompactWait), maxCompactWait)
		c.resume = time.AfterFunc(c.wait, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.resume = nil
			c.offerLocked()
		})
	}
}

// offerLocked asks Pebble, in a goroutine, for compactions that wait, while
// there is room for them.
func (c *compactor) offerLocked() {
	if !c.roomLocked() {
		return
	}
	c.offers++
	go func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for !c.busy && c.roomLocked() {
			c.busy, c.refused = true, false
			c.running++
			c.mu.Unlock()
			begun, _ := c.db.GetWaitingCompaction()
			if begun {
				begun = c.db.Schedule(c)
			}
			c.mu.Lock()
			c.busy = false
			if !begun {
				c.running--
				if !c.refused {
					break
				}
			}
		}
		if c.offers--; c.offers == 0 {
			c.none.Broadcast()
		}
	}()
}
