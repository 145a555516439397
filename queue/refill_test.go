package queue

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

func (w *world) only() *Queue {
	w.t.Helper()
	w.m.mu.RLock()
	defer w.m.mu.RUnlock()
	if len(w.m.queues) != 1 {
		w.t.Fatalf("%d queues in memory, want 1", len(w.m.queues))
	}
	for _, q := range w.m.queues {
		return q
	}
	return nil
}

func TestRefillFetchesNoMoreThanTheWindowHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Window, cfg.MaxItems = 10, 10
		fs := vfs.NewCrashableMem()
		w := newWorld(t, fs, cfg)
		for range 50 {
			w.accept(w.submission("acme", "a@one.example"))
		}
		w.stop()
		w = newWorld(t, fs, cfg) // everything is on disk now
		defer w.stop()
		if n, more := w.only().Len(); n != cfg.Window || !more {
			t.Errorf("after a refill the window holds %d (more: %v), its size is %d", n, more, cfg.Window)
		}
	})
}

func TestRefillGoesOnWhenAllItReadIsBeingCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Window, cfg.MaxItems = 2, 2
		w := newWorld(t, vfs.NewCrashableMem(), cfg)
		defer w.stop()
		for range 2 * refillChunk {
			w.accept(w.submission("acme", "a@one.example"))
		}
		q := w.only()
		// The moment in which a refill has read items whose deletion has become
		// visible meanwhile.
		q.mu.Lock()
		q.window, q.refilling = nil, true
		q.removing = map[uint64]bool{}
		marked := 0
		err := w.db.Each(store.ReadySpan(&q.key, q.cursor, ^uint64(0)), func(k, _ []byte) (bool, error) {
			_, seq, err := store.ParseReadyKey(k)
			q.removing[seq] = true
			marked++
			return marked < refillChunk, err
		})
		q.mu.Unlock()
		if err := errors.Join(err, w.m.refill(q)); err != nil {
			t.Fatal(err)
		}
		if n, more := q.Len(); n == 0 && more {
			t.Error("the window is empty, more lies on disk, and nobody is refilling")
		}
	})
}

// TestFirstMailOfANewStoreIsNotLeftBehind has the queue look at the disk when
// nothing at all has been committed yet and something is on its way.
func TestFirstMailOfANewStoreIsNotLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), DefaultConfig())
		defer w.stop()
		slow := w.db.NewBatch(0)
		slow.Reserve(1)
		if _, fits := w.m.adopt(&store.QueueKey{Domain: "one.example", Tenant: "acme"}); !fits {
			t.Fatal("no room for the first queue")
		}
		synctest.Wait()
		w.accept(w.submission("acme", "a@one.example"))
		slow.Close()
		it := w.lease()
		if it == nil {
			t.Fatal("the first mail stays on disk")
		}
		w.settle(it, message.EventDelivered, time.Time{})
		w.verify()
	})
}

func TestItemIsNotTakenThroughAQueueThatHasLeftMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Window, cfg.MaxItems = 1, 1
		w := newWorld(t, vfs.NewCrashableMem(), cfg)
		defer w.stop()
		for range 3 {
			w.accept(w.submission("acme", "a@one.example"))
		}
		q := w.only()
		key := q.Key()
		if !evictNow(w.m, q) {
			t.Fatal("not evicted")
		}
		// Whoever found q before it was evicted would claim an item in a queue
		// that no lane asks any more.
		var last uint64
		err := w.db.Each(store.ReadySpan(&key, 0, ^uint64(0)), func(k, _ []byte) (bool, error) {
			_, seq, err := store.ParseReadyKey(k)
			last = seq
			return true, err
		})
		if err != nil {
			t.Fatal(err)
		}
		if q.take(last) == takeDone {
			t.Error("an item was taken through a queue that has left memory")
		}
	})
}
