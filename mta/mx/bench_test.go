package mx

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

func benchRoute(b *testing.B, records ...string) {
	zone := zonetest.New()
	zone.Set("example.com.", records...)
	r := newResolver(b, zone, func(_ *Config, d *Deps) { d.Rand = nil })
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, rep := r.Route(ctx, "example.com"); rep != nil {
			b.Fatal(rep)
		}
	}
}

func BenchmarkRouteCached(b *testing.B) {
	b.Run("distinct", func(b *testing.B) { benchRoute(b, "MX 10 a.example.", "MX 20 b.example.") })
	b.Run("equal", func(b *testing.B) {
		benchRoute(b, "MX 10 a.example.", "MX 10 b.example.", "MX 10 c.example.", "MX 10 d.example.")
	})
}

// BenchmarkRouteCachedOfMany has a cache as large as it gets by default.
func BenchmarkRouteCachedOfMany(b *testing.B) {
	zone := zonetest.New()
	zone.Set("*.example.", "MX 10 a.example.")
	r := newResolver(b, zone, nil)
	names := make([]string, 50_000)
	for i := range names {
		names[i] = fmt.Sprintf("some-domain-%d.example", i)
		if _, rep := r.Route(b.Context(), names[i]); rep != nil {
			b.Fatal(rep)
		}
	}
	ctx := b.Context()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		r.Route(ctx, names[i*7919%len(names)])
		i++
	}
}

func BenchmarkRouteCachedParallel(b *testing.B) {
	zone := zonetest.New()
	zone.Set("example.com.", "MX 10 a.example.")
	r := newResolver(b, zone, nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Route(b.Context(), "example.com")
		}
	})
}

func BenchmarkAddrsCached(b *testing.B) {
	zone := zonetest.New()
	zone.Set("mx.example.", "A 192.0.2.1", "AAAA 2001:db8::1")
	r := newResolver(b, zone, func(_ *Config, d *Deps) { d.Rand = nil })
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, rep := r.Addrs(ctx, "mx.example"); rep != nil {
			b.Fatal(rep)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	r := newResolver(b, zonetest.New(), nil)
	for _, s := range []string{"8.8.8.8", "2a00:1450::1"} {
		addr := netip.MustParseAddr(s)
		b.Run(s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := r.Check(addr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSiteOf(b *testing.B) {
	hosts := []string{"gmail-smtp-in.l.google.com", "alt1.gmail-smtp-in.l.google.com", "alt2.gmail-smtp-in.l.google.com", "alt3.gmail-smtp-in.l.google.com", "alt4.gmail-smtp-in.l.google.com"}
	b.ReportAllocs()
	for b.Loop() {
		SiteOf(hosts)
	}
}

// BenchmarkRouteUncached is a whole lookup, over sockets on loopback.
func BenchmarkRouteUncached(b *testing.B) {
	zone := zonetest.New()
	zone.Set("*.example.", "MX 10 a.example.")
	s, err := zone.Listen("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	r := newResolver(b, zone, func(c *Config, d *Deps) {
		c.Servers = []string{s.Addr()}
		c.CacheEntries = 1000
		d.Exchange = nil
	})
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		if _, rep := r.Route(b.Context(), fmt.Sprintf("d%d.example", i)); rep != nil {
			b.Fatal(rep)
		}
	}
}
