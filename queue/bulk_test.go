package queue

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// crowded is a queue with 1300 recipients of tenant big and 30 of tenant small,
// some of them deferred.
func crowded(t *testing.T) *world {
	w := newWorld(t, vfs.NewCrashableMem(), DefaultConfig())
	for i := range 26 {
		to := make([]string, 50)
		for r := range to {
			to[r] = fmt.Sprintf("r%d.%d@d%d.example", i, r, r%3)
		}
		w.accept(w.submission("big", to...))
	}
	for i := range 30 {
		w.accept(w.submission("small", fmt.Sprintf("s%d@d0.example", i)))
	}
	for range 40 {
		w.settle(w.lease(), message.EventDeferred, time.Now().Add(time.Hour))
	}
	return w
}

func ofTenant(name string) Filter {
	return Filter{Match: func(k *store.QueueKey) bool { return k.Tenant == name }}
}

func (w *world) tally(f Filter) Tally {
	w.t.Helper()
	n, err := w.m.Count(w.t.Context(), f)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) refuse(it *Item, _ *message.Message) Settlement {
	return Settlement{Item: it, Event: w.m.Event(it, message.EventBounced, time.Now())}
}

func TestBulkRemovalTakesWhatFitsInBoundedCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crowded(t)
		defer w.stop()
		leased := w.lease()
		if got := w.tally(ofTenant("big")); got.Total() != 1300 || got.Waiting == 0 || got.Queues != 3 {
			t.Fatalf("counted %+v, want 1300 in 3 queues, some of them waiting", got)
		}
		var steps []int
		done, err := w.m.RemoveAll(t.Context(), ofTenant("big"), w.refuse, func(n int) { steps = append(steps, n) })
		if err != nil || done != 1299 {
			t.Fatalf("removed %d, %v; want all but the one that is leased", done, err)
		}
		for i, n := range steps {
			if before := append([]int{0}, steps...)[i]; n-before > bulkChunk {
				t.Errorf("progress went from %d to %d, more than one commit may change", before, n)
			}
		}
		synctest.Wait()
		w.settle(leased, message.EventDelivered, time.Time{})
		if r := w.verify(); r.Recipients != 30 || r.Messages != 30 {
			t.Errorf("%d recipients of %d messages are left, want the 30 of the small tenant", r.Recipients, r.Messages)
		}
		if n := w.m.Stats().Waiting; n != 30 {
			t.Errorf("the manager counts %d, want 30", n)
		}
	})
}

func TestBulkOperationStopsBetweenCommitsWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crowded(t)
		defer w.stop()
		ctx, cancel := context.WithCancel(t.Context())
		done, err := w.m.RemoveAll(ctx, ofTenant("big"), w.refuse, func(int) { cancel() })
		if !errors.Is(err, context.Canceled) || done == 0 || done > bulkChunk {
			t.Errorf("removed %d, %v; want one commit's worth and the reason", done, err)
		}
		if got := w.tally(ofTenant("big")); got.Total() != 1300-done {
			t.Errorf("%d are left, want %d", got.Total(), 1300-done)
		}
		w.verify()
	})
}

func TestReroutedMailKeepsItsTimeAndGoesFromTheOtherPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crowded(t)
		before := w.tally(ofTenant("big"))
		done, err := w.m.Reroute(t.Context(), ofTenant("big"), "spare", func(int) {})
		if err != nil || done != 1300 {
			t.Fatalf("rerouted %d, %v; want 1300", done, err)
		}
		synctest.Wait()
		inSpare := Filter{Match: func(k *store.QueueKey) bool { return k.Pool == "spare" }}
		if d := cmp.Diff(before, w.tally(inSpare)); d != "" {
			t.Errorf("in the other pool (-want +got):\n%s", d)
		}
		w.verify()
		w.stop()
		w = newWorld(t, w.fs.CrashClone(vfs.CrashCloneCfg{}), DefaultConfig())
		defer w.stop()
		if d := cmp.Diff(before, w.tally(inSpare)); d != "" {
			t.Errorf("after a power cut (-want +got):\n%s", d)
		}
		time.Sleep(2 * time.Hour)
		seen := map[string]int{}
		for it := w.lease(); it != nil; it = w.lease() {
			key := it.Queue().Key()
			seen[key.Pool+"/"+key.Tenant]++
			w.settle(it, message.EventDelivered, time.Time{})
		}
		if d := cmp.Diff(map[string]int{"spare/big": 1300, "/small": 30}, seen); d != "" {
			t.Errorf("handed out (-want +got):\n%s", d)
		}
	})
}

func TestBulkOperationCanBeAboutOneMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), DefaultConfig())
		defer w.stop()
		one := w.submission("t", "a@x.example", "b@x.example", "c@y.example")
		w.accept(one, w.submission("t", "d@x.example"))
		f := Filter{Message: one.Message.ID, Match: func(k *store.QueueKey) bool { return k.Domain == "x.example" }}
		done, err := w.m.RemoveAll(t.Context(), f, w.refuse, func(int) {})
		if err != nil || done != 2 {
			t.Fatalf("removed %d, %v; want the two at x.example", done, err)
		}
		if r := w.verify(); r.Recipients != 2 {
			t.Errorf("%d recipients are left, want 2", r.Recipients)
		}
	})
}
