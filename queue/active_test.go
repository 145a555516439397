package queue

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
)

// Mail to one new domain after the other, each delivered at once, needs no room
// for more queues than are busy: none of it may go by way of the disk.
func TestQueuesThatAreDoneMakeRoomBeforeOthersArePushedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.MaxActive = 40
		w := newWorld(t, vfs.NewCrashableMem(), cfg)
		defer w.stop()
		start := time.Now()
		for i := range 20 * cfg.MaxActive {
			w.accept(w.submission("acme", fmt.Sprintf("u@d%d.example", i)))
			it := w.lease()
			if it == nil {
				t.Fatalf("message %d is not in memory", i)
			}
			w.settle(it, message.EventDelivered, time.Time{})
			synctest.Wait()
			w.m.wake(w.m.crowded) // by one who came while the room was being made
			synctest.Wait()
			if n := w.m.Stats().Queues; n > cfg.MaxActive {
				t.Fatalf("%d queues in memory, the limit is %d", n, cfg.MaxActive)
			}
		}
		if d := time.Since(start); d >= reapEvery {
			t.Errorf("it took %v: the regular clearing had its part in it", d)
		}
		w.m.mu.RLock()
		left := w.m.left
		w.m.mu.RUnlock()
		if left != 1 {
			t.Errorf("items were left on disk %d times, want never", left-1)
		}
		w.verify()
	})
}
