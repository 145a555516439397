package mta

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/throttle"
)

// BenchmarkActiveSites brings 100,000 destinations into memory, each with one
// lane, as mail for as many domains would, and reports what each costs: its
// memory, the time to make it and the time to let it go again.
func BenchmarkActiveSites(b *testing.B) {
	const sites = 100_000
	for b.Loop() {
		rules, problems := throttle.Load(throttle.File{Name: "bench.toml", Data: []byte("[default]\nconnections = 10\nrate = \"100/s\"\nconnection_rate = \"100/min\"\n")})
		if len(problems) > 0 {
			b.Fatal(problems[0])
		}
		now := time.Now()
		m, err := New(Settings{
			Config: DefaultConfig(), Hostname: "mta.example",
			Sources: []Source{{Name: "ip1", Address: "198.51.100.1"}},
			Pools:   []Pool{{Name: DefaultPool, Sources: []PoolMember{{Source: "ip1", Weight: 1}}}},
		}, Deps{Throttle: throttle.New(rules, throttle.Options{}), Now: func() time.Time { return now }})
		if err != nil {
			b.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		for i := range sites {
			host := fmt.Sprintf("mx%d.example", i)
			s := m.site(siteKey{pool: DefaultPool, site: host}, host, []string{host}, nil)
			s.paths[0].permit.Send(now, throttle.Mail{Domain: host, Tenant: "t"})
		}
		made := time.Since(start)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/sites, "B/lane")
		b.ReportMetric(float64(made.Nanoseconds())/sites, "ns/lane-made")
		start = time.Now()
		m.sweep()
		now = now.Add(siteIdle + time.Minute)
		m.sweep()
		m.deps.Throttle.Sweep(now)
		b.ReportMetric(float64(time.Since(start).Nanoseconds())/sites, "ns/lane-swept")
		if n := len(m.sites); n != 0 {
			b.Fatalf("%d sites are left", n)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/sites, "B/lane-left")
		runtime.KeepAlive(m)
	}
}

// BenchmarkTransactionThroughSchedule is what choosing a transaction costs a
// site: an entry popped, charged and put back, a lane picked.
func BenchmarkTransactionThroughSchedule(b *testing.B) {
	var s sched
	s.weight = func(string) int { return 1 }
	s.share = func(string, string) int { return 1 }
	for i := range 1000 {
		e := &entry{q: &queue.Queue{}}
		e.key.Tenant, e.key.Campaign = fmt.Sprint(i%20), fmt.Sprint(i)
		s.push(e)
	}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		e, _ := s.pop(now)
		s.charge(&e.key, 1)
		s.push(e)
	}
}
