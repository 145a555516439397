package queue

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// TestSuspendedQueuesStayOnDiskUntilResumed suspends a tenant before and after
// its mail came, over a restart, and looks at what is in memory.
func TestSuspendedQueuesStayOnDiskUntilResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var suspended atomic.Bool
		with := func(d *Deps) {
			d.Suspended = func(k *store.QueueKey) bool { return suspended.Load() && k.Tenant == "held" }
		}
		w := newWorld(t, vfs.NewCrashableMem(), DefaultConfig(), with)
		w.accept(w.submission("held", "a@one.example"))
		suspended.Store(true)
		q := w.m.queue(&store.QueueKey{Domain: "one.example", Tenant: "held"})
		if q == nil || !w.m.Park(q) {
			t.Fatalf("queue %v cannot be parked", q)
		}
		for i := range 300 {
			w.accept(w.submission("held", fmt.Sprintf("b%d@one.example", i), fmt.Sprintf("b%d@two.example", i)))
		}
		w.accept(w.submission("free", "c@one.example"))
		if s := w.m.Stats(); s.Queues != 1 || s.InMemory != 1 || s.Waiting != 602 {
			t.Errorf("got %+v, want only the queue that is not suspended in memory", s)
		}
		w.stop()
		w = newWorld(t, w.fs, DefaultConfig(), with)
		defer w.stop()
		time.Sleep(time.Minute)
		free := w.lease()
		if free == nil {
			t.Fatal("the queue that is not suspended was not found")
		}
		w.settle(free, message.EventDelivered, time.Time{})
		suspended.Store(false)
		w.m.Unpark()
		n := 0
		for it := w.lease(); it != nil; it = w.lease() {
			n++
			w.settle(it, message.EventDelivered, time.Time{})
		}
		if n != 601 {
			t.Errorf("%d came back when resumed, want 601", n)
		}
		w.verify()
	})
}
