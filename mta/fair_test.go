package mta_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// TestSmallTenantIsNotHeldUpByABigOne sends 100 messages behind a backlog to the
// same provider, through the whole of delivery. The backlog is 30,000 instead of
// a million: all that matters is that it is far more than is sent meanwhile.
func TestSmallTenantIsNotHeldUpByABigOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, worldConfig{
			shaping: "[provider.p]\nmx_suffix = [\".p.example\"]\nprovider_rate = \"50/s\"\n",
			zone:    limitsZone, settings: sources(2),
		})
		defer w.end()
		var mu sync.Mutex
		var small int
		var last, began time.Time
		sent := make(map[string]int) // by source, with and after the small tenant's
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			w.host(addr, loadgen.SinkConfig{Latency: 20 * time.Millisecond, OnMessage: func(m *loadgen.Received) {
				mu.Lock()
				defer mu.Unlock()
				if !began.IsZero() {
					sent[m.Client]++
				}
				if readSender(m.From).tenant == "small" {
					small++
					last = time.Now()
				}
			}})
		}
		mails := func(tenant string, n int) []mail {
			list := make([]mail, n)
			for i := range list {
				list[i] = mail{from: tenant + ".c.a@s0.example", tenant: tenant, to: []string{fmt.Sprintf("r%d@a0.example", i)}}
			}
			return list
		}
		big, rest := 30_000, int64(20_000)
		if brief() {
			big, rest = 7_000, 1_000
		}
		w.accept(mails("big", big)...)
		time.Sleep(20 * time.Second)
		mu.Lock()
		began = time.Now()
		mu.Unlock()
		w.accept(mails("small", 100)...)
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		fair := 2 * 100 * time.Second / 50 // half of the rate
		if took := last.Sub(began); small != 100 || took > fair*12/10 {
			t.Errorf("%d of the small tenant's messages after %v, want 100 within 1.2 x %v", small, took, fair)
		}
		if a, b := sent["ip1"], sent["ip2"]; min(a, b) < 50*60*48/100 {
			t.Errorf("sources of the same weight sent %d and %d of 3,000", a, b)
		}
		if w.queue.Stats().Waiting < rest {
			t.Error("the backlog is gone: the test tests less than it says")
		}
	})
}
