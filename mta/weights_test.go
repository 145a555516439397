package mta_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// TestSourcesShareTenThousandTinyQueuesByWeight sends 10,000 messages, each in a
// queue of its own, from two sources of weights 100 and 1.
func TestSourcesShareTenThousandTinyQueuesByWeight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		set := sources(2)
		set.Pools[0].Sources[0].Weight = 100
		w := newWorld(t, worldConfig{zone: limitsZone, settings: set})
		defer w.end()
		var light atomic.Int64
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			w.host(addr, loadgen.SinkConfig{Latency: 20 * time.Millisecond, OnMessage: func(m *loadgen.Received) {
				if m.Client == "ip2" {
					light.Add(1)
				}
			}})
		}
		count, least, most := 10_000, int64(97), int64(101)
		if brief() {
			count, least, most = 2_000, 19, 21
		}
		list := make([]mail, count)
		for i := range list {
			list[i] = mail{from: "a@s0.example", tenant: "t0", campaign: fmt.Sprint(i), to: []string{"r@a0.example"}}
		}
		w.accept(list...)
		time.Sleep(10 * time.Minute)
		if n := w.count(message.EventDelivered); n != len(list) {
			t.Fatalf("%d of %d delivered", n, len(list))
		}
		if n := light.Load(); n < least || n > most {
			t.Errorf("the light source sent %d of %d, want %d to %d", n, count, least, most)
		}
	})
}

// TestPoolsThatHaveASourceInCommonWaitForEachOther has two pools send from the
// same source to a provider that takes one connection from it: whichever waits
// learns that the other is done.
func TestPoolsThatHaveASourceInCommonWaitForEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		set := sources(1)
		set.Pools = append(set.Pools, mta.Pool{Name: "other", Sources: set.Pools[0].Sources})
		w := newWorld(t, worldConfig{
			shaping: "[provider.p]\nmx_suffix = [\".p.example\"]\nsource_connections = 1\nmessages_per_connection = 3\n",
			zone:    limitsZone, settings: set,
		})
		defer w.end()
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			w.host(addr, loadgen.SinkConfig{Latency: 20 * time.Millisecond})
		}
		mails := func(n int, pool string) (list []mail) {
			for i := range n {
				list = append(list, mail{from: "a@s0.example", tenant: "t0", pool: pool, to: []string{fmt.Sprintf("r%d@a0.example", i)}})
			}
			return list
		}
		w.accept(mails(1, "")...)
		time.Sleep(time.Minute)
		for range 5 {
			w.accept(mails(50, "other")...)
			time.Sleep(50 * time.Millisecond)
			w.accept(mails(50, "")...)
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(2 * time.Minute)
		if n := w.count(message.EventDelivered); n != 501 {
			t.Errorf("%d of 501 delivered", n)
		}
	})
}
