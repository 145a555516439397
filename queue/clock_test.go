package queue

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
)

func TestMailPutOffByAClockTenYearsAheadIsBroughtBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		fs := vfs.NewCrashableMem()
		w := newWorld(t, fs, cfg)
		const years = 10 * 365 * 24 * time.Hour
		for range 5 {
			s := w.submission("acme", "a@one.example")
			w.accept(s)
			it := w.lease()
			w.settle(it, message.EventDeferred, time.Now().Add(years))
		}
		far := w.submission("acme", "b@one.example")
		far.Message.NotBefore = time.Now().Add(cfg.MaxSchedule) // which is allowed
		w.accept(far)
		w.stop()
		w = newWorld(t, fs, cfg)
		defer w.stop()
		time.Sleep(cfg.Retry[0] + cfg.Retry[len(cfg.Retry)-1] + time.Minute)
		for i := range 5 {
			if w.lease() == nil {
				t.Fatalf("only %d of 5 items were brought back", i)
			}
		}
		if w.lease() != nil {
			t.Error("scheduled mail was handed out before its time")
		}
		w.verify()
	})
}
