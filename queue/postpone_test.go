package queue

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
)

func TestPostponedItemLetsOthersPassAndComesBackAtItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), DefaultConfig())
		defer w.stop()
		w.accept(w.submission("acme", "a@one.example"))
		w.accept(w.submission("acme", "b@one.example"))
		first := w.lease()
		if err := w.m.Postpone([]*Item{first}, time.Now().Add(10*time.Minute)); err != nil {
			t.Fatal(err)
		}
		if it := w.lease(); it == nil || it.Recipient.Address.String() != "b@one.example" {
			t.Fatalf("leased %v, want the one behind", it)
		} else {
			w.settle(it, message.EventDelivered, time.Time{})
		}
		w.verify()
		time.Sleep(9 * time.Minute)
		if it := w.lease(); it != nil {
			t.Fatalf("%s came back early", it.Recipient.Address)
		}
		time.Sleep(2 * time.Minute)
		it := w.lease()
		if it == nil || it.Attempt != 0 {
			t.Fatalf("leased %+v, want the postponed one, without an attempt", it)
		}
		w.settle(it, message.EventDelivered, time.Time{})
		if r := w.verify(); r.Recipients != 0 {
			t.Errorf("%d recipients are left over", r.Recipients)
		}
	})
}
