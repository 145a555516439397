package throttle

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// BenchmarkSendObserve is the hot path: one transaction granted, observed as
// delivered and released, under the shipped rules for Gmail with every other
// kind of rate limited as well.
func BenchmarkSendObserve(b *testing.B) {
	for _, c := range []struct{ name, doc string }{
		{"shipped", ""},
		{"all-limits", "[default]\nsource_rate = \"1000000/s\"\nprovider_rate = \"1000000/s\"\ntenant_rate = \"1000000/s\"\ncampaign_rate = \"1000000/s\"\nsender_domain_rate = \"1000000/s\"\ntenant_concurrency = 1000\ncampaign_concurrency = 1000\n"},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := benchLane(b, c.doc)
			now := epoch
			m := Mail{Domain: "gmail.com", Tenant: "t", Campaign: "c", SenderDomain: "s.example", DKIMDomain: "s.example", Recipients: 1}
			o := &Observation{Result: message.Delivered, Domain: "gmail.com", Tenant: "t", Campaign: "c"}
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Second)
				g := l.Send(now, m)
				if !g.OK {
					b.Fatal(g.Limit)
				}
				l.Observe(now, o)
				g.Release()
			}
		})
	}
}

func benchLane(b *testing.B, doc string) *Lane {
	r := shipped(b)
	if doc != "" {
		r = mustLoad(b, doc+"[provider.gmail]\nmx_suffix = [\".google.com\"]\nrate = \"1000000/s\"\n")
	}
	e := New(r, Options{Now: func() time.Time { return epoch }})
	return e.Lane(Target{Source: "ip1", Site: "gmail", Hosts: []string{"gmail-smtp-in.l.google.com"}, Domain: "gmail.com"})
}

// BenchmarkSendContended lets 64 goroutines share one provider, each with a
// lane of its own, so that all meet at one mutex.
func BenchmarkSendContended(b *testing.B) {
	e := New(shipped(b), Options{Now: func() time.Time { return epoch }})
	b.SetParallelism(max(64/runtime.GOMAXPROCS(0), 1))
	var n, tick atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		i := n.Add(1)
		l := e.Lane(Target{Source: fmt.Sprint("ip", i), Site: "gmail", Hosts: []string{"gmail-smtp-in.l.google.com"}})
		o := &Observation{Result: message.Delivered}
		for pb.Next() {
			now := epoch.Add(time.Duration(tick.Add(1)) * time.Second)
			g := l.Send(now, Mail{Domain: "gmail.com", Tenant: "t"})
			l.Observe(now, o)
			g.Release()
		}
	})
}

// BenchmarkRefusal is what a lane pays that asks too early.
func BenchmarkRefusal(b *testing.B) {
	l := benchLane(b, "")
	l.Send(epoch, Mail{})
	b.ReportAllocs()
	for b.Loop() {
		if l.Send(epoch, Mail{}).OK {
			b.Fatal("granted")
		}
	}
}

// BenchmarkExplainReply is the cost of finding the rule about a failure.
func BenchmarkExplainReply(b *testing.B) {
	r := shipped(b)
	reply, _ := message.ParseReply("550 5.1.1 The email account that you tried to reach does not exist.")
	b.ReportAllocs()
	for b.Loop() {
		r.ExplainReply(reply, "aspmx.l.google.com", "")
	}
}

// BenchmarkLaneMemory reports bytes per lane with 100,000 sites active, each
// with a connection opened and a message sent.
func BenchmarkLaneMemory(b *testing.B) {
	const sites = 100_000
	r := shipped(b)
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		e := New(r, Options{Now: func() time.Time { return epoch }})
		for i := range sites {
			host := fmt.Sprintf("mx.site%d.example", i)
			l := e.Lane(Target{Source: "ip1", Site: host, Hosts: []string{host}})
			g := l.Connect(epoch, mxAddr)
			s := l.Send(epoch, Mail{})
			s.Release()
			g.Release()
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/sites, "B/lane")
		runtime.KeepAlive(e)
	}
}
