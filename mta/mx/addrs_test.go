package mx

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

func TestAddressesOfHost(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		zone   func(z *zonetest.Zone)
		family Family
		want   string // addresses, or the reply
	}{
		{"IPv4 first by default", func(z *zonetest.Zone) {
			z.Set("mx.example.", "AAAA 2001:db8::1", "A 192.0.2.1")
		}, "", "192.0.2.1 2001:db8::1"},
		{"IPv6 first", func(z *zonetest.Zone) {
			z.Set("mx.example.", "AAAA 2001:db8::1", "A 192.0.2.1")
		}, Prefer6, "2001:db8::1 192.0.2.1"},
		{"IPv4 only", func(z *zonetest.Zone) {
			z.Set("mx.example.", "AAAA 2001:db8::1", "A 192.0.2.1")
		}, Only4, "192.0.2.1"},
		{"IPv6 only", func(z *zonetest.Zone) {
			z.Set("mx.example.", "AAAA 2001:db8::1", "A 192.0.2.1")
		}, Only6, "2001:db8::1"},
		{"five at most", func(z *zonetest.Zone) {
			z.Set("mx.example.", "A 192.0.2.1", "A 192.0.2.2", "A 192.0.2.3", "A 192.0.2.4", "A 192.0.2.5", "A 192.0.2.6", "A 192.0.2.7")
		}, "", "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4 192.0.2.5"},
		{"two of five for the other family", func(z *zonetest.Zone) {
			z.Set("mx.example.", "A 192.0.2.1", "A 192.0.2.2", "A 192.0.2.3", "A 192.0.2.4", "A 192.0.2.5",
				"AAAA 2001:db8::1", "AAAA 2001:db8::2", "AAAA 2001:db8::3")
		}, "", "192.0.2.1 192.0.2.2 192.0.2.3 2001:db8::1 2001:db8::2"},
		{"refused addresses are left out", func(z *zonetest.Zone) {
			z.Set("mx.example.", "A 127.0.0.1", "A 192.0.2.1", "AAAA ::1", "AAAA ::ffff:10.0.0.1")
		}, "", "192.0.2.1"},
		{"nothing but refused addresses", func(z *zonetest.Zone) {
			z.Set("mx.example.", "A 127.0.0.1", "A 0.0.0.0", "AAAA fe80::1")
		}, "", "451 4.4.4"},
		{"our own address", func(z *zonetest.Zone) {
			z.Set("mx.example.", "A 192.0.2.99")
		}, "", "451 4.4.6"},
		{"our own address beside another", func(z *zonetest.Zone) {
			z.Set("mx.example.", "A 192.0.2.99", "A 192.0.2.1")
		}, "", "192.0.2.1"},
		{"no such host", func(z *zonetest.Zone) {}, "", "550 5.4.4"},
		{"a host without address", func(z *zonetest.Zone) {
			z.Set("mx.example.", "TXT x")
		}, "", "550 5.4.4"},
		{"no A, and AAAA fails", func(z *zonetest.Zone) {
			z.Set("mx.example.", "TXT x")
			z.Fail("mx.example.", zonetest.ServFail, "AAAA")
		}, "", "451 4.4.3"},
		{"an A, and AAAA fails", func(z *zonetest.Zone) {
			z.Set("mx.example.", "A 192.0.2.1")
			z.Fail("mx.example.", zonetest.Timeout, "AAAA")
		}, "", "192.0.2.1"},
		{"a CNAME is tolerated", func(z *zonetest.Zone) {
			z.Set("mx.example.", "CNAME real.example.")
			z.Set("real.example.", "A 192.0.2.1")
		}, "", "192.0.2.1"},
		{"nine CNAMEs are not", func(z *zonetest.Zone) {
			cnames(z, "mx.example.", 9).Set("end.example.", "A 192.0.2.1")
		}, "", "451 4.4.3"},
		{`records of another name are not "no address"`, func(z *zonetest.Zone) {
			z.Set("mx.example.", "A 192.0.2.1")
			z.Fail("mx.example.", zonetest.WrongOwner, "A")
		}, "", "451 4.4.3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				zone := zonetest.New()
				tt.zone(zone)
				r := newResolver(t, zone, func(c *Config, _ *Deps) {
					c.Family = tt.family
					c.OwnAddrs = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.99")} }
				})
				addrs, rep := r.Addrs(t.Context(), "mx.example")
				got := reply(rep)
				if addrs != nil {
					got = join(addrs)
				}
				if rep != nil && rep.RemoteHost != "mx.example" {
					t.Errorf("got a reply about %q, want mx.example", rep.RemoteHost)
				}
				if got != tt.want {
					t.Errorf("got %q, want %q (%v)", got, tt.want, rep)
				}
			})
		})
	}
}

func join(addrs []netip.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

func TestResolveKeepsHostsThatCanBeReached(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		zone func(z *zonetest.Zone)
		want string
	}{
		{"all resolve", func(z *zonetest.Zone) {
			z.Set("a.example.", "A 192.0.2.1")
			z.Set("b.example.", "A 192.0.2.2")
			z.Set("c.example.", "A 192.0.2.3")
		}, "a.example=192.0.2.1 b.example=192.0.2.2 c.example=192.0.2.3"},
		{"the best does not exist", func(z *zonetest.Zone) {
			z.Set("b.example.", "A 192.0.2.2")
		}, "b.example=192.0.2.2"},
		{"none exists", func(z *zonetest.Zone) {}, "550 5.4.4"},
		{"none exists, but one is not known", func(z *zonetest.Zone) {
			z.Fail("b.example.", zonetest.ServFail)
		}, "451 4.4.3"},
		{"none exists, but one is refused", func(z *zonetest.Zone) {
			z.Set("c.example.", "A 127.0.0.1")
		}, "451 4.4.4"},
		{"we are a backup: only better hosts are tried", func(z *zonetest.Zone) {
			z.Set("a.example.", "A 192.0.2.1")
			z.Set("b.example.", "A 192.0.2.99")
			z.Set("c.example.", "A 192.0.2.3")
		}, "a.example=192.0.2.1"},
		{"we are the best host: nothing is tried", func(z *zonetest.Zone) {
			z.Set("a.example.", "A 192.0.2.99")
			z.Set("b.example.", "A 192.0.2.2")
		}, "451 4.4.6"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			zone := zonetest.New()
			tt.zone(zone)
			zone.Set("example.com.", "MX 10 a.example.", "MX 20 b.example.", "MX 20 c.example.")
			r := newResolver(t, zone, func(c *Config, _ *Deps) {
				c.OwnAddrs = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.99")} }
			})
			rt, rep := r.Route(t.Context(), "example.com")
			if rep != nil {
				t.Fatal(rep)
			}
			hosts, rep := r.Resolve(t.Context(), rt)
			got := reply(rep)
			for i, h := range hosts {
				if i > 0 {
					got += " "
				}
				got += h.Name + "=" + join(h.Addrs)
			}
			if got != tt.want {
				t.Errorf("got %q, want %q (%v)", got, tt.want, rep)
			}
			for _, h := range rt.Hosts {
				if h.Addrs != nil {
					t.Errorf("Resolve wrote into the shared route: %v", h)
				}
			}
		})
	}
}

func TestAddressesAreShuffledWithinTheirFamily(t *testing.T) {
	t.Parallel()
	zone := zonetest.New()
	zone.Set("mx.example.", "A 192.0.2.1", "A 192.0.2.2", "A 192.0.2.3", "AAAA 2001:db8::1", "AAAA 2001:db8::2")
	r := newResolver(t, zone, func(_ *Config, d *Deps) { d.Rand = nil })
	seen := map[string]bool{}
	for range 400 {
		addrs, rep := r.Addrs(t.Context(), "mx.example")
		if rep != nil {
			t.Fatal(rep)
		}
		seen[join(addrs)] = true
		for i, a := range addrs {
			if a.Is4() != (i < 3) {
				t.Fatalf("got %v, want IPv4 first", addrs)
			}
		}
	}
	if len(seen) != 12 {
		t.Errorf("got %d orders, want all 12", len(seen))
	}
}

func TestUnreachableIsPermanentOnlyIfEveryHostIs(t *testing.T) {
	t.Parallel()
	permanent, temporary := local(550, message.Enhanced{5, 4, 4}, "none"), unknown("SERVFAIL")
	tests := []struct {
		name string
		in   []*message.Reply
		want string
	}{
		{"nothing known", nil, "451 4.4.3"},
		{"one permanent", []*message.Reply{permanent}, "550 5.4.4"},
		{"all permanent", []*message.Reply{permanent, permanent}, "550 5.4.4"},
		{"one temporary", []*message.Reply{permanent, temporary, permanent}, "451 4.4.3"},
		{"one reachable", []*message.Reply{permanent, nil}, ""},
	}
	for _, tt := range tests {
		if got := reply(Unreachable(tt.in...)); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestCancelledCallerGetsATemporaryReply(t *testing.T) {
	t.Parallel()
	zone := zonetest.New()
	zone.Fail("mx.example.", zonetest.Timeout)
	r := newResolver(t, zone, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, rep := r.Addrs(ctx, "mx.example"); reply(rep) != "451 4.4.3" {
		t.Errorf("got %v, want 451 4.4.3", rep)
	}
}
