package queue

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

func (w *world) waiting() map[string]int64 {
	list := map[string]int64{}
	w.m.counts.tenants.Range(func(name, n any) bool {
		list[name.(string)] = n.(*atomic.Int64).Load()
		return true
	})
	return list
}

func TestCountOfWaitingMailSurvivesAStopAndACrash(t *testing.T) {
	for _, crash := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			w := newWorld(t, fs, DefaultConfig())
			w.accept(w.submission("acme", "a@one.example", "b@two.example"), w.submission("bolt", "c@one.example"))
			later := w.submission("bolt", "d@one.example")
			later.Message.NotBefore = time.Now().Add(time.Hour)
			w.accept(later)
			it := w.lease()
			w.settle(it, message.EventDeferred, time.Now().Add(time.Hour))
			if crash {
				fs = fs.CrashClone(vfs.CrashCloneCfg{})
			}
			w.stop()
			if !crash {
				w = newWorld(t, fs, DefaultConfig())
				if v, err := w.db.Get(store.WaitingKey()); err != nil || v != nil {
					t.Errorf("a running queue leaves old counts on disk: %x, %v", v, err)
				}
			} else {
				w = newWorld(t, fs, DefaultConfig())
			}
			defer w.stop()
			got := w.waiting()
			if got["acme"] != 2 || got["bolt"] != 2 || w.m.Stats().Waiting != 4 {
				t.Errorf("crash %v: counted %v, %d in all; want 2 of each", crash, got, w.m.Stats().Waiting)
			}
		})
	}
}

func TestItemThatBecomesDueBeforeTheOthersIsFoundAtItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), DefaultConfig())
		defer w.stop()
		for _, in := range []time.Duration{5 * time.Hour, time.Minute, 3 * time.Hour, 2 * time.Minute} {
			s := w.submission("acme", "a@one.example")
			s.Message.NotBefore = time.Now().Add(in)
			w.accept(s)
			time.Sleep(time.Second)
		}
		time.Sleep(3 * time.Minute)
		for range 2 {
			if it := w.lease(); it == nil {
				t.Fatal("an item is not handed out although its time has come")
			}
		}
		if it := w.lease(); it != nil {
			t.Error("an item is handed out before its time")
		}
	})
}
