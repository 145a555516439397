package mta_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// TestFewAreNotHeldUpByABigBacklog hands over a hundred messages behind a backlog
// for the same provider, through the whole of delivery: of another tenant, then of
// another campaign of the same one, then urgent mail of it.
func TestFewAreNotHeldUpByABigBacklog(t *testing.T) {
	t.Parallel()
	big := 1_000_000
	if testing.Short() {
		big = 30_000
	}
	if brief() {
		big = 12_000
	}
	synctest.Test(t, func(t *testing.T) {
		const rate, few, perMessage = 50, 100, 100
		w := newWorld(t, worldConfig{
			shaping: fmt.Sprintf("[provider.p]\nmx_suffix = [\".p.example\"]\nprovider_rate = \"%d/s\"\nrecipients = 1\n", rate),
			zone:    limitsZone, settings: sources(2),
		})
		defer w.end()
		var mu sync.Mutex
		came := map[string]int{}
		last := map[string]time.Time{}
		by := map[string]int{} // source
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			w.host(addr, loadgen.SinkConfig{Latency: 20 * time.Millisecond, OnMessage: func(m *loadgen.Received) {
				mu.Lock()
				defer mu.Unlock()
				s := readSender(m.From)
				came[s.tenant+" "+s.campaign]++
				last[s.tenant+" "+s.campaign] = time.Now()
				by[m.Client]++
			}})
		}
		for from := 0; from < big; from += perMessage {
			m := mail{from: "big.bulk.a@s0.example", tenant: "big", campaign: "bulk"}
			for i := range perMessage {
				m.to = append(m.to, fmt.Sprintf("r%d@a%d.example", from+i, i%2))
			}
			w.accept(m)
		}
		time.Sleep(20 * time.Second)
		behind := func(tenant, campaign string, class message.Class, n int) (took time.Duration) {
			began := time.Now()
			list := make([]mail, n)
			for i := range list {
				list[i] = mail{
					from: tenant + "." + campaign + ".a@s0.example", tenant: tenant, campaign: campaign, class: class,
					to: []string{fmt.Sprintf("r%d@a0.example", i)},
				}
			}
			w.accept(list...)
			time.Sleep(30 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			key := tenant + " " + campaign
			took = last[key].Sub(began)
			t.Logf("%d of %s (%v) behind %d after %v", came[key], key, class, w.queue.Stats().Waiting, took)
			if came[key] != n {
				t.Errorf("%d of %d of %s were delivered", came[key], n, key)
			}
			return took
		}
		fair := 2 * few * time.Second / rate // half of what the provider takes
		if took := behind("small", "c", message.Bulk, few); took > fair*12/10 {
			t.Errorf("a small tenant waited %v, want at most 1.2 x %v", took, fair)
		}
		if took := behind("big", "other", message.Bulk, few); took > fair*12/10 {
			t.Errorf("a small campaign waited %v, want at most 1.2 x %v", took, fair)
		}
		if took := behind("big", "code", message.Transactional, 1); took > time.Second {
			t.Errorf("urgent mail waited %v, want at most a second", took)
		}
		mu.Lock()
		defer mu.Unlock()
		if d := by["ip1"] - by["ip2"]; max(d, -d) > (by["ip1"]+by["ip2"])/50 {
			t.Errorf("sources of equal weight sent %v", by)
		}
		if rest := w.queue.Stats().Waiting; rest < int64(big/4) {
			t.Errorf("%d of %d wait: the test tests less than it says", rest, big)
		}
	})
}
