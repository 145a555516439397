package mx

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

// ask returns the route of example.com in short form.
func ask(t *testing.T, r *Resolver) string {
	t.Helper()
	rt, rep := r.Route(t.Context(), "example.com")
	if rep != nil {
		return reply(rep)
	}
	if !r.now().Before(rt.Expires) {
		t.Errorf("got a route that expired at %s, now is %s", rt.Expires, r.now())
	}
	return describe(rt)
}

func TestAnswerIsKeptForItsClampedLife(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		zone  func(z *zonetest.Zone)
		want  time.Duration
		looks int // queries each lookup makes
	}{
		{"as published", func(z *zonetest.Zone) { z.Set("example.com.", "300 MX 10 a.example.") }, 5 * time.Minute, 1},
		{"zero is raised", func(z *zonetest.Zone) { z.Set("example.com.", "0 MX 10 a.example.") }, 5 * time.Second, 1},
		{"a week is cut", func(z *zonetest.Zone) { z.Set("example.com.", "604800 MX 10 a.example.") }, time.Hour, 1},
		{"the shortest of a set", func(z *zonetest.Zone) {
			z.Set("example.com.", "300 MX 10 a.example.", "100 MX 10 b.example.")
		}, 100 * time.Second, 1},
		{"a CNAME's if shorter", func(z *zonetest.Zone) {
			z.Set("example.com.", "20 CNAME b.example.")
			z.Set("b.example.", "300 MX 10 a.example.")
		}, 20 * time.Second, 1},
		{"no such domain", func(z *zonetest.Zone) {}, time.Minute, 2},
		{"null MX", func(z *zonetest.Zone) { z.Set("example.com.", "300 MX 0 .") }, time.Minute, 1},
		{"failure", func(z *zonetest.Zone) { z.Fail("example.com.", zonetest.ServFail) }, 30 * time.Second, 1},
		{"no usable name", func(z *zonetest.Zone) { z.Set("example.com.", "300 MX 10 192.0.2.1.") }, 30 * time.Second, 1},
		{"implicit: that of no MX", func(z *zonetest.Zone) { z.Set("example.com.", "300 A 192.0.2.1") }, time.Minute, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				zone := zonetest.New()
				tt.zone(zone)
				r := newResolver(t, zone, nil)
				first := ask(t, r)
				advance(tt.want - time.Millisecond)
				if got := ask(t, r); got != first {
					t.Errorf("got %q, then %q", first, got)
				}
				if got := zone.Count("example.com.", "MX"); got != tt.looks {
					t.Errorf("got %d queries just before %s, want %d", got, tt.want, tt.looks)
				}
				advance(time.Millisecond)
				ask(t, r)
				if got := zone.Count("example.com.", "MX"); got != 2*tt.looks {
					t.Errorf("got %d queries after %s, want %d", got, tt.want, 2*tt.looks)
				}
			})
		})
	}
}

func TestExpiredAnswerServesAnHourWhileDNSFails(t *testing.T) {
	t.Parallel()
	for _, mode := range []zonetest.Mode{zonetest.ServFail, zonetest.Unreachable, zonetest.WrongQuestion, zonetest.Timeout} {
		synctest.Test(t, func(t *testing.T) {
			zone := zonetest.New()
			zone.Set("example.com.", "300 MX 10 a.example.")
			r := newResolver(t, zone, nil)
			start := time.Now()
			want := ask(t, r)
			zone.Fail("example.com.", mode)
			advance(300 * time.Second)
			for time.Since(start) < 300*time.Second+58*time.Minute {
				if got := ask(t, r); got != want {
					t.Fatalf("mode %d, after %s: got %q, want %q", mode, time.Since(start), got, want)
				}
				advance(10 * time.Second)
			}
			if got := zone.Count("example.com.", "MX"); got > 1+3*117 {
				t.Errorf("mode %d: got %d queries, want no more than one round of tries every 30 s", mode, got)
			}
			advance(2 * time.Minute)
			if got := ask(t, r); got != "451 4.4.3" {
				t.Errorf("mode %d, over an hour late: got %q, want 451 4.4.3", mode, got)
			}
			zone.Fail("example.com.", zonetest.OK)
			advance(30 * time.Second)
			if got := ask(t, r); got != want {
				t.Errorf("mode %d, after the failure: got %q, want %q", mode, got, want)
			}
		})
	}
}

func TestStaleAnswerGivesWayToADefiniteOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("example.com.", "60 MX 10 a.example.")
		r := newResolver(t, zone, nil)
		ask(t, r)
		zone.Remove("example.com.")
		advance(time.Minute)
		if got := ask(t, r); got != "550 5.1.2" {
			t.Errorf("got %q, want 550 5.1.2", got)
		}
	})
}

func TestPermanentAnswersAreNeverServedStale(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		r := newResolver(t, zone, nil)
		if got := ask(t, r); got != "550 5.1.2" {
			t.Fatalf("got %q, want 550 5.1.2", got)
		}
		zone.Fail("example.com.", zonetest.ServFail)
		advance(time.Minute)
		if got := ask(t, r); got != "451 4.4.3" {
			t.Errorf("got %q, want 451 4.4.3: the domain may exist by now", got)
		}
	})
}

func TestManyAskersShareOneLookup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("example.com.", "MX 10 a.example.")
		zone.Latency("example.com.", time.Second)
		r := newResolver(t, zone, nil)
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				if got := ask(t, r); got != "10 a.example" {
					t.Errorf("got %q", got)
				}
			})
		}
		wg.Wait()
		if got := zone.Count("example.com.", ""); got != 1 {
			t.Errorf("got %d queries, want 1", got)
		}
	})
}

func TestLookupOutlivesTheAskerWhoStartedIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("example.com.", "MX 10 a.example.")
		zone.Latency("example.com.", 3*time.Second)
		r := newResolver(t, zone, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, rep := r.Route(ctx, "example.com"); reply(rep) != "451 4.4.3" {
			t.Errorf("got %v, want 451 4.4.3 for the impatient", rep)
		}
		if got := ask(t, r); got != "10 a.example" {
			t.Errorf("got %q for the patient", got)
		}
		if got := zone.Count("example.com.", ""); got != 1 {
			t.Errorf("got %d queries, want 1", got)
		}
	})
}

func TestImpatientAskerGetsTheExpiredAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("example.com.", "60 MX 10 a.example.")
		r := newResolver(t, zone, nil)
		want := ask(t, r)
		zone.Latency("example.com.", 3*time.Second)
		advance(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		rt, rep := r.Route(ctx, "example.com")
		if rep != nil || describe(rt) != want {
			t.Errorf("got %v, %v, want %s", rt, rep, want)
		}
	})
}

func TestLookupThatNeverReturnsWedgesNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("example.com.", "MX 10 a.example.")
		var stuck atomic.Bool
		stuck.Store(true)
		release := make(chan struct{})
		r := newResolver(t, zone, func(_ *Config, d *Deps) {
			d.Exchange = func(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error) {
				if stuck.Load() {
					<-release // deaf to ctx
				}
				return zone.Exchange(ctx, q, network, server)
			}
		})
		defer close(release)
		start := time.Now()
		if got := ask(t, r); got != "451 4.4.3" {
			t.Errorf("got %q, want 451 4.4.3", got)
		}
		if took := time.Since(start); took != 30*time.Second {
			t.Errorf("got a reply after %s, want 30s", took)
		}
		stuck.Store(false)
		advance(30 * time.Second)
		if got := ask(t, r); got != "10 a.example" {
			t.Errorf("got %q from the next lookup", got)
		}
	})
}

func TestWholeResolutionEndsWithinThirtySeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// Every step of a CNAME chain comes late, from a server that gives one
		// step at a time, after another that says nothing.
		zone := zonetest.New()
		r := newResolver(t, zone, func(c *Config, d *Deps) {
			c.Servers = []string{"silent", "slow"}
			d.Exchange = func(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error) {
				if server == "silent" {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				advance(4900 * time.Millisecond)
				m := new(dns.Msg)
				m.SetReply(q)
				rr, err := dns.NewRR(q.Question[0].Name + " 60 CNAME x." + q.Question[0].Name)
				m.Answer = []dns.RR{rr}
				return m, err
			}
		})
		start := time.Now()
		if got := ask(t, r); got != "451 4.4.3" {
			t.Errorf("got %q, want 451 4.4.3", got)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("got a reply after %s, want one within 30s", took)
		}
	})
}

func TestCacheForgetsTheLeastRecentlyUsed(t *testing.T) {
	t.Parallel()
	zone := zonetest.New()
	zone.Set("*.example.", "MX 10 a.example.")
	r := newResolver(t, zone, func(c *Config, _ *Deps) { c.CacheEntries = 3 })
	for _, name := range []string{"a", "b", "c", "a", "d", "a", "b"} {
		if _, rep := r.Route(t.Context(), name+".example"); rep != nil {
			t.Fatal(rep)
		}
	}
	for name, want := range map[string]int{"a": 1, "b": 2, "c": 1, "d": 1} {
		if got := zone.Count(name+".example.", ""); got != want {
			t.Errorf("%s: got %d queries, want %d", name, got, want)
		}
	}
	if got := len(r.cache.byKey); got != 3 {
		t.Errorf("got %d entries, want 3", got)
	}
}

func TestQueriesOnTheWireAreCapped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("*.example.", "MX 10 a.example.")
		zone.Latency("", time.Second)
		var now, most atomic.Int32
		r := newResolver(t, zone, func(c *Config, d *Deps) {
			c.Lookups = 3
			d.Exchange = func(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error) {
				n := now.Add(1)
				defer now.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				return zone.Exchange(ctx, q, network, server)
			}
		})
		var failed, served atomic.Int32
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				_, rep := r.Route(t.Context(), fmt.Sprintf("d%d.example", i))
				switch reply(rep) {
				case "":
					served.Add(1)
				case "451 4.4.3":
					failed.Add(1)
				default:
					t.Errorf("got %v", rep)
				}
			})
		}
		wg.Wait()
		if got := most.Load(); got != 3 {
			t.Errorf("got %d queries at a time, want 3", got)
		}
		// 16 lookups for each place on the wire may wait; the rest is told so.
		if served.Load() != 48 || failed.Load() != 12 {
			t.Errorf("got %d served and %d refused, want 48 and 12", served.Load(), failed.Load())
		}
	})
}

func TestCloseEndsLookupsAndKeepsWhatIsCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("cached.example.", "MX 10 a.example.")
		zone.Fail("example.com.", zonetest.Timeout)
		r := newResolver(t, zone, nil)
		if _, rep := r.Route(t.Context(), "cached.example"); rep != nil {
			t.Fatal(rep)
		}
		got := make(chan string, 1)
		go func() { got <- ask(t, r) }()
		synctest.Wait()
		r.Close()
		if g := <-got; g != "451 4.4.3" {
			t.Errorf("got %q, want 451 4.4.3", g)
		}
		if g := ask(t, r); g != "451 4.4.3" {
			t.Errorf("got %q after Close, want 451 4.4.3", g)
		}
		if _, rep := r.Route(t.Context(), "cached.example"); rep != nil {
			t.Errorf("got %v for a cached domain after Close", rep)
		}
	})
}

func TestZoneFlipsUnderLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("*.example.", "0 MX 10 a.example.", "0 A 192.0.2.1")
		zone.Latency("", 20*time.Millisecond)
		r := newResolver(t, zone, func(c *Config, d *Deps) {
			c.CacheEntries = 8
			d.Rand = nil
		})
		modes := []zonetest.Mode{zonetest.OK, zonetest.ServFail, zonetest.Unreachable, zonetest.Truncate, zonetest.Huge, zonetest.WrongID, zonetest.OK}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(300 * time.Millisecond):
					zone.Fail(fmt.Sprintf("d%d.example.", i%12), modes[i%len(modes)])
				}
			}
		})
		var askers sync.WaitGroup
		for i := range 24 {
			askers.Go(func() {
				for j := range 100 {
					rt, rep := r.Route(t.Context(), fmt.Sprintf("d%d.example", (i+j)%12))
					if rep != nil && !rep.Temporary() {
						t.Errorf("got %v: a failing DNS bounced mail", rep)
					}
					if rt != nil && !time.Now().Before(rt.Expires) {
						t.Errorf("got a route that expired at %s, now is %s", rt.Expires, time.Now())
					}
					r.Addrs(t.Context(), fmt.Sprintf("d%d.example", j%12))
					advance(time.Duration(100+10*i) * time.Millisecond)
				}
			})
		}
		askers.Wait()
		close(stop)
		wg.Wait()
		if n := len(r.flights); n != 0 {
			t.Errorf("got %d lookups left behind", n)
		}
		if n := len(r.cache.byKey); n > 8 {
			t.Errorf("got %d cache entries, want at most 8", n)
		}
	})
}

func TestAddressesAreCachedApartFromRoutes(t *testing.T) {
	t.Parallel()
	zone := zonetest.New()
	zone.Set("example.com.", "MX 10 example.com.", "A 192.0.2.1")
	r := newResolver(t, zone, nil)
	for range 3 {
		rt, rep := r.Route(t.Context(), "example.com")
		if rep != nil || rt.Implicit {
			t.Fatalf("got %v, %v", rt, rep)
		}
		addrs, rep := r.Addrs(t.Context(), "example.com")
		if rep != nil || len(addrs) != 1 || addrs[0] != netip.MustParseAddr("192.0.2.1") {
			t.Fatalf("got %v, %v", addrs, rep)
		}
	}
	if got := len(zone.Queries()); got != 3 {
		t.Errorf("got %d queries, want one each for MX, A and AAAA", got)
	}
}

// advance moves the virtual time of a synctest bubble.
// REQUIRES: the caller is in a bubble.
func advance(d time.Duration) { time.Sleep(d) }
