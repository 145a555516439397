package queue

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
)

// inMemory counts the queues in memory that pass.
func (w *world) inMemory(pass func(*Queue) bool) (n int) {
	w.m.mu.RLock()
	defer w.m.mu.RUnlock()
	for _, q := range w.m.queues {
		if pass(q) {
			n++
		}
	}
	return n
}

func belongsTo(name string) func(*Queue) bool {
	return func(q *Queue) bool { return q.key.Tenant == name }
}

func small(active int) Config {
	cfg := DefaultConfig()
	cfg.MaxActive, cfg.Window, cfg.MaxItems = active, 4, 4*active
	return cfg
}

// fill accepts mail of a tenant for n domains.
func (w *world) fill(tenant, campaign string, class message.Class, n int) {
	w.t.Helper()
	var subs []*message.Submission
	for i := range n {
		s := w.submission(tenant, fmt.Sprintf("u@d%d.example", i))
		s.Message.Campaign, s.Message.Class = campaign, class
		subs = append(subs, s)
	}
	w.accept(subs...)
}

func TestUrgentMailComesToMemoryAlthoughBulkFillsIt(t *testing.T) {
	for _, tenant := range []string{"other", "bulky"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, vfs.NewCrashableMem(), small(20))
			defer w.stop()
			w.fill("bulky", "", message.Bulk, 1000)
			s := w.submission(tenant, "u@urgent.example")
			s.Message.Class = message.Transactional
			w.accept(s)
			// No time has passed: it has not waited for anybody's turn to end.
			if n := w.inMemory(func(q *Queue) bool { return q.key.Domain == "urgent.example" }); n != 1 {
				t.Fatalf("%s: its queue is not in memory", tenant)
			}
			if n := w.m.Stats().Queues; n != 20 {
				t.Errorf("%s: %d queues in memory, want 20", tenant, n)
			}
			w.verify()
		})
	}
}

func TestTenantsShareMemoryEvenlyAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashableMem()
		w := newWorld(t, fs, small(20))
		w.fill("bulky", "", message.Bulk, 1000)
		w.fill("tiny", "", message.Bulk, 3)
		w.fill("zwei", "", message.Bulk, 500)
		w.stop()
		w = newWorld(t, fs, small(20))
		defer w.stop()
		bulky, tiny, zwei := w.inMemory(belongsTo("bulky")), w.inMemory(belongsTo("tiny")), w.inMemory(belongsTo("zwei"))
		if tiny != 3 || bulky+zwei != 17 || bulky-zwei > 2 || zwei-bulky > 2 {
			t.Errorf("bulky has %d places, zwei %d, tiny %d; want about 8, 8 and 3", bulky, zwei, tiny)
		}
	})
}

func TestCampaignsOfATenantShareItsMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), small(20))
		defer w.stop()
		w.fill("acme", "huge", message.Bulk, 1000)
		w.fill("acme", "late", message.Bulk, 50)
		late := w.inMemory(func(q *Queue) bool { return q.key.Campaign == "late" })
		if late < 9 || late > 11 {
			t.Errorf("the late campaign has %d of 20 places, want half", late)
		}
	})
}

func TestUrgentMailLeavesAQuarterOfItsTenantsMemoryToBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), small(20))
		defer w.stop()
		w.fill("acme", "", message.Bulk, 100)
		w.fill("acme", "", message.Transactional, 100)
		if n := w.inMemory(func(q *Queue) bool { return q.key.Class == message.Bulk }); n != 5 {
			t.Errorf("bulk has %d of 20 places, want a quarter", n)
		}
	})
}

func TestQueuesThatAreHeldUpGiveTheirPlacesToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), small(10))
		defer w.stop()
		w.fill("acme", "", message.Bulk, 50)
		// Nobody leases anything, as when no destination answers.
		seen := map[string]bool{}
		for range 60 {
			time.Sleep(reapEvery)
			synctest.Wait()
			w.inMemory(func(q *Queue) bool { seen[q.key.Domain] = true; return false })
		}
		if len(seen) != 50 {
			t.Errorf("%d of 50 queues had a place within ten minutes", len(seen))
		}
	})
}

func TestOneTenantsTinyQueuesDoNotDelayAnothersHundred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), small(20))
		defer w.stop()
		w.fill("bulky", "", message.Bulk, 2000)
		w.fill("small", "", message.Bulk, 100)
		// Every turn serves one item of each queue in memory; half of the places
		// are the small tenant's, so it needs ten turns and a few for its share.
		done := 0
		for turn := 1; done < 100; turn++ {
			if turn > 24 {
				t.Fatalf("after %d turns %d of 100 have left", turn, done)
			}
			w.m.mu.RLock()
			var list []*Queue
			for _, q := range w.m.queues {
				list = append(list, q)
			}
			w.m.mu.RUnlock()
			for _, q := range list {
				for _, it := range q.Lease(1) {
					w.settle(it, message.EventDelivered, time.Time{})
					if q.key.Tenant == "small" {
						done++
					}
				}
			}
			time.Sleep(reapEvery)
			synctest.Wait()
		}
	})
}
