package mx

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/miekg/dns"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

// seeds are answers, true and otherwise, in wire form.
func seeds(f *testing.F) [][]byte {
	zone := zonetest.New(`
example.com.   300 MX 10 mx1.example.com.
example.com.   300 MX 10 MX2.example.com.
example.com.   0   MX 0 .
example.com.   300 A 192.0.2.1
example.com.   300 AAAA ::ffff:127.0.0.1
null.example.  300 MX 0 .
alias.example. 300 CNAME example.com.
loop.example.  300 CNAME loop.example.
odd.example.   300 MX 1 a\032b\.c.example.
odd.example.   300 MX 1 192.0.2.1.
`)
	var wires [][]byte
	for _, name := range []string{"example.com", "null.example", "alias.example", "loop.example", "odd.example", "none.example"} {
		for _, qtype := range []uint16{dns.TypeMX, dns.TypeA, dns.TypeAAAA} {
			for _, mode := range []zonetest.Mode{zonetest.OK, zonetest.WrongOwner, zonetest.Truncate} {
				zone.Fail(name+".", mode)
				m, err := zone.Exchange(context.Background(), newQuery(name, qtype, true), "udp", "")
				if err != nil {
					f.Fatal(err)
				}
				m.Compress = true
				b, err := m.Pack()
				if err != nil {
					f.Fatal(err)
				}
				wires = append(wires, b)
			}
		}
	}
	return wires
}

// FuzzAnswer lets a hostile server answer every question with the same bytes,
// under the id and question of the query, so that the rest of the message is
// what is tried.
func FuzzAnswer(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		first := new(dns.Msg)
		if len(wire) > dns.MaxMsgSize || first.Unpack(wire) != nil {
			return
		}
		domain := "example.com"
		if len(first.Question) > 0 {
			if d, err := message.ParseDomain(canonical(first.Question[0].Name)); err == nil {
				domain = d
			}
		}
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int32 // A and AAAA are asked for at once
			r := newResolver(t, zonetest.New(), func(c *Config, d *Deps) {
				c.AllowNets = nil
				d.Exchange = func(_ context.Context, q *dns.Msg, _, _ string) (*dns.Msg, error) {
					asked.Add(1)
					m := new(dns.Msg)
					if err := m.Unpack(wire); err != nil {
						return nil, err
					}
					m.Id, m.Response, m.Opcode = q.Id, true, q.Opcode
					m.Question = q.Question
					return m, nil
				}
			})
			rt, rep := r.Route(t.Context(), domain)
			if (rt == nil) == (rep == nil) {
				t.Fatalf("got %v and %v, want one of them", rt, rep)
			}
			if rt != nil {
				checkRoute(t, r, rt)
			}
			if rep != nil && (!rep.Local || rep.Stage != message.StageResolve || strings.ContainsAny(rep.Text, "\r\n\x00")) {
				t.Errorf("got the reply %+v", rep)
			}
			// MX, A and AAAA, eight CNAMEs each, three rounds, EDNS and TCP.
			if n := asked.Load(); n > 3*9*3*3*2 {
				t.Errorf("asked %d times", n)
			}
		})
	})
}

func checkRoute(t *testing.T, r *Resolver, rt *Route) {
	t.Helper()
	if n := len(rt.Hosts); n == 0 || n > maxHosts {
		t.Errorf("got %d hosts", n)
	}
	if len(rt.Site) == 0 || len(rt.Site) > maxSite {
		t.Errorf("got a site of %d octets", len(rt.Site))
	}
	if life := rt.Expires.Sub(r.now()); life < r.cfg.MinTTL || life > r.cfg.MaxTTL {
		t.Errorf("got a route that lives %s", life)
	}
	if !slices.IsSortedFunc(rt.Hosts, func(a, b Host) int { return int(a.Pref) - int(b.Pref) }) {
		t.Errorf("got %s, not in order", describe(rt))
	}
	for _, h := range rt.Hosts {
		if d, err := message.ParseDomain(h.Name); err != nil || d != h.Name {
			t.Errorf("got the host name %q", h.Name)
		}
		addrs, rep := r.Addrs(t.Context(), h.Name)
		if (len(addrs) == 0) == (rep == nil) || len(addrs) > maxAddrs {
			t.Errorf("%s: got %v and %v", h.Name, addrs, rep)
		}
		for _, a := range addrs {
			if err := r.Check(a); err != nil {
				t.Errorf("%s: got %v", h.Name, err)
			}
		}
	}
}

// FuzzRouteDomain tries what may be asked for: no name may reach DNS that is
// not a host name, and no spelling of an address may be routed if refused.
func FuzzRouteDomain(f *testing.F) {
	for _, s := range []string{"example.com", "EXAMPLE.com", "bücher.example", "[192.0.2.1]", "[IPv6:::1]", "a..b", "-", ".", "", "a\x00b", "xn--a", "127.0.0.1", strings.Repeat("a.", 127) + "a"} {
		f.Add(s)
	}
	zone := zonetest.New("*.com. MX 10 a.example.\n")
	r, err := New(Config{CacheEntries: 100}, Deps{Exchange: func(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error) {
		if name := canonical(q.Question[0].Name); len(name) > maxName {
			panic("asked for a name of " + name)
		} else if d, err := message.ParseDomain(name); err != nil || d != name {
			panic("asked for " + name)
		}
		return zone.Exchange(ctx, q, network, server)
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(r.Close)
	f.Fuzz(func(t *testing.T, domain string) {
		rt, rep := r.Route(t.Context(), domain)
		if (rt == nil) == (rep == nil) {
			t.Fatalf("%q: got %v and %v, want one of them", domain, rt, rep)
		}
		if rt == nil {
			return
		}
		if want, err := message.ParseDomain(domain); err != nil || rt.Domain != want {
			t.Errorf("%q: got a route for %q", domain, rt.Domain)
		}
		if ip, ok := message.Literal(rt.Domain); ok && r.Check(ip) != nil {
			t.Errorf("%q: got a route to a refused address", domain)
		}
	})
}
