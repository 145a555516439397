package mta_test

import (
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// TestMissingSourceIsTakenOutAndComesBack takes the address of one of two
// sources away and gives it back later.
func TestMissingSourceIsTakenOutAndComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, worldConfig{
			shaping: "[default]\nrate = \"10/s\"\n", zone: limitsZone, settings: sources(2), keep: true,
		})
		defer w.end()
		var away atomic.Bool
		var tried, from2 atomic.Int64
		away.Store(true)
		w.refuse = func(src *mta.Source, _ string) error {
			if src.Name != "ip2" || !away.Load() {
				return nil
			}
			tried.Add(1)
			return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)}
		}
		for _, addr := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
			w.host(addr, loadgen.SinkConfig{OnMessage: func(m *loadgen.Received) {
				if m.Client == "ip2" {
					from2.Add(1)
				}
			}})
		}
		w.accept(backlog(400)...)
		time.Sleep(40 * time.Second)
		if n := w.count(message.EventDelivered); n != 400 {
			t.Errorf("%d of 400 delivered while one source was missing", n)
		}
		if w.count(message.EventDeferred) > 0 || tried.Load() > 6 {
			t.Errorf("%d deferrals, %d tries from the missing address; want no deferral and few tries", w.count(message.EventDeferred), tried.Load())
		}
		away.Store(false)
		time.Sleep(10 * time.Minute)
		w.accept(backlog(400)...)
		time.Sleep(time.Minute)
		if from2.Load() < 100 {
			t.Errorf("%d messages came from the source that is back, want a good share of 400", from2.Load())
		}
		if s, r := w.count(message.EventEgressSuspended), w.count(message.EventEgressResumed); s != 1 || r != 1 {
			t.Errorf("%d suspended and %d resumed events, want one each", s, r)
		}
	})
}
