package mx

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

// inOrder is a Deps.Rand that shuffles nothing.
func inOrder(n int) int { return n - 1 }

// newResolver returns a resolver over zone that may use documentation
// addresses and shuffles nothing.
func newResolver(t testing.TB, zone *zonetest.Zone, change func(*Config, *Deps)) *Resolver {
	t.Helper()
	cfg := Config{AllowNets: zonetest.Nets()}
	deps := Deps{Exchange: zone.Exchange, Rand: inOrder}
	if change != nil {
		change(&cfg, &deps)
	}
	r, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// reply is a short form of a reply, "" for none.
func reply(rep *message.Reply) string {
	if rep == nil {
		return ""
	}
	if !rep.Local || rep.Stage != message.StageResolve {
		return "not a local reply of the resolve stage: " + rep.Error()
	}
	return strconv.Itoa(rep.Code) + " " + rep.Enhanced.String()
}

func TestRouteOfDomain(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		zone   func(z *zonetest.Zone)
		family Family
		want   string // hosts as "pref name", or the reply
	}{
		{"hosts are ordered by preference", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 20 b.example.net.", "MX 5 c.example.net.", "MX 10 a.example.net.")
		}, "", "5 c.example.net, 10 a.example.net, 20 b.example.net"},
		{"host names are folded", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 10 MX1.Example.NET.")
		}, "", "10 mx1.example.net"},
		{"a host listed twice counts once, at its best", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 20 a.example.net.", "MX 10 A.example.net.")
		}, "", "10 a.example.net"},
		{"no MX, an address: implicit", func(z *zonetest.Zone) {
			z.Set("example.com.", "A 192.0.2.1")
		}, "", "implicit 0 example.com"},
		{"no MX, an IPv6 address: implicit", func(z *zonetest.Zone) {
			z.Set("example.com.", "AAAA 2001:db8::1")
		}, "", "implicit 0 example.com"},
		{"no MX, no address", func(z *zonetest.Zone) {
			z.Set("example.com.", "TXT x")
		}, "", "550 5.4.4"},
		{"no MX, an IPv6 address, IPv4 only", func(z *zonetest.Zone) {
			z.Set("example.com.", "AAAA 2001:db8::1")
		}, Only4, "550 5.4.4"},
		{"no MX, an IPv4 address, IPv6 only", func(z *zonetest.Zone) {
			z.Set("example.com.", "A 192.0.2.1")
		}, Only6, "550 5.4.4"},
		{"only a name below exists", func(z *zonetest.Zone) {
			z.Set("www.example.com.", "A 192.0.2.1")
		}, "", "550 5.4.4"},
		{"no such domain", func(z *zonetest.Zone) {}, "", "550 5.1.2"},
		{"null MX, with an address that must not be used", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 0 .", "A 192.0.2.1")
		}, "", "556 5.1.10"},
		{"null MX of another preference", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 10 .")
		}, "", "556 5.1.10"},
		{"null MX beside a real one is ignored", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 0 .", "MX 10 a.example.net.")
		}, "", "10 a.example.net"},
		{"null MX beside a bad one fails nothing for good", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 0 .", "MX 10 192.0.2.1.")
		}, "", "451 4.4.4"},
		{"MX that is an address", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 10 192.0.2.1.", "A 192.0.2.1")
		}, "", "451 4.4.4"},
		{"odd bytes in host names", func(z *zonetest.Zone) {
			z.Set("example.com.", `MX 5 a\032b.example.net.`, `MX 6 a\010b.example.net.`, `MX 7 a\.b.example.net.`, `MX 8 $x.example.net.`, `MX 9 \[192.0.2.1\].`, "MX 10 ok.example.net.")
		}, "", "10 ok.example.net"},
		{"MX SERVFAIL does not fall back to the address", func(z *zonetest.Zone) {
			z.Set("example.com.", "A 192.0.2.1")
			z.Fail("example.com.", zonetest.ServFail, "MX")
		}, "", "451 4.4.3"},
		{"MX refused", func(z *zonetest.Zone) {
			z.Set("example.com.", "A 192.0.2.1")
			z.Fail("example.com.", zonetest.Refused, "MX")
		}, "", "451 4.4.3"},
		{"MX times out", func(z *zonetest.Zone) {
			z.Set("example.com.", "A 192.0.2.1")
			z.Fail("example.com.", zonetest.Timeout, "MX")
		}, "", "451 4.4.3"},
		{"server unreachable", func(z *zonetest.Zone) {
			z.Fail("example.com.", zonetest.Unreachable)
		}, "", "451 4.4.3"},
		{"implicit, A fails and AAAA is none", func(z *zonetest.Zone) {
			z.Set("example.com.", "TXT x")
			z.Fail("example.com.", zonetest.ServFail, "A")
		}, "", "451 4.4.3"},
		{"implicit, A fails and AAAA answers", func(z *zonetest.Zone) {
			z.Set("example.com.", "AAAA 2001:db8::1")
			z.Fail("example.com.", zonetest.ServFail, "A")
		}, "", "implicit 0 example.com"},
		{"answer to another question", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 10 a.example.net.")
			z.Fail("example.com.", zonetest.WrongQuestion)
		}, "", "451 4.4.3"},
		{"answer with another id", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 10 a.example.net.")
			z.Fail("example.com.", zonetest.WrongID)
		}, "", "451 4.4.3"},
		{"the query comes back", func(z *zonetest.Zone) {
			z.Fail("example.com.", zonetest.NotResponse)
		}, "", "451 4.4.3"},
		{`records of another name are not "no MX"`, func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 10 a.example.net.", "A 192.0.2.1")
			z.Fail("example.com.", zonetest.WrongOwner, "MX")
		}, "", "451 4.4.3"},
		{"truncated over UDP, whole over TCP", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 10 a.example.net.")
			z.Fail("example.com.", zonetest.Truncate)
		}, "", "10 a.example.net"},
		{"truncated over TCP too", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 10 a.example.net.")
			z.Fail("example.com.", zonetest.TruncateTCP)
		}, "", "451 4.4.3"},
		{"a server without EDNS", func(z *zonetest.Zone) {
			z.Set("example.com.", "MX 10 a.example.net.")
			z.Fail("example.com.", zonetest.NoEDNS)
		}, "", "10 a.example.net"},
		{"domain is a CNAME", func(z *zonetest.Zone) {
			z.Set("example.com.", "CNAME www.example.org.")
			z.Set("www.example.org.", "MX 10 a.example.net.")
		}, "", "10 a.example.net"},
		{"domain is a CNAME to nothing", func(z *zonetest.Zone) {
			z.Set("example.com.", "CNAME www.example.org.")
		}, "", "550 5.1.2"},
		{"domain is a CNAME to a name without MX", func(z *zonetest.Zone) {
			z.Set("example.com.", "CNAME www.example.org.")
			z.Set("www.example.org.", "A 192.0.2.1")
		}, "", "implicit 0 example.com"},
		{"eight CNAMEs", func(z *zonetest.Zone) {
			cnames(z, "example.com.", 8).Set("end.example.", "MX 10 a.example.net.")
		}, "", "10 a.example.net"},
		{"nine CNAMEs", func(z *zonetest.Zone) {
			cnames(z, "example.com.", 9).Set("end.example.", "MX 10 a.example.net.")
		}, "", "451 4.4.3"},
		{"CNAME to itself", func(z *zonetest.Zone) {
			z.Set("example.com.", "CNAME example.com.")
		}, "", "451 4.4.3"},
		{"CNAMEs in a ring", func(z *zonetest.Zone) {
			z.Set("example.com.", "CNAME a.example.")
			z.Set("a.example.", "CNAME b.example.")
			z.Set("b.example.", "CNAME example.com.")
		}, "", "451 4.4.3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				zone := zonetest.New()
				tt.zone(zone)
				r := newResolver(t, zone, func(c *Config, _ *Deps) { c.Family = tt.family })
				rt, rep := r.Route(t.Context(), "example.com")
				got := reply(rep)
				if rt != nil {
					got = describe(rt)
					if rt.Domain != "example.com" || rt.Site == "" || rt.Expires.IsZero() {
						t.Errorf("got an incomplete route %+v", rt)
					}
				}
				if got != tt.want {
					t.Errorf("got %q, want %q (%v)", got, tt.want, rep)
				}
			})
		})
	}
}

func describe(rt *Route) string {
	var hosts []string
	for _, h := range rt.Hosts {
		hosts = append(hosts, strconv.Itoa(int(h.Pref))+" "+h.Name)
	}
	s := strings.Join(hosts, ", ")
	if rt.Implicit {
		s = "implicit " + s
	}
	return s
}

// cnames puts n CNAMEs between name and end.example.
func cnames(z *zonetest.Zone, name string, n int) *zonetest.Zone {
	for i := range n - 1 {
		next := "c" + strconv.Itoa(i) + ".example."
		z.Set(name, "CNAME "+next)
		name = next
	}
	z.Set(name, "CNAME end.example.")
	return z
}

func TestRouteOfOddDomains(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("abcdefghi.", 25) + "com" // 253 octets
	zone := zonetest.New()
	zone.Set("example.com.", "MX 10 a.example.net.")
	zone.Set("xn--bcher-kva.example.", "MX 10 a.example.net.")
	zone.Set(long+".", "MX 10 a.example.net.")
	r := newResolver(t, zone, nil)
	tests := []struct{ domain, want string }{
		{"EXAMPLE.com", "10 a.example.net"},
		{"bücher.example", "10 a.example.net"},
		{long, "10 a.example.net"},
		{"", "550 5.1.2"},
		{".", "550 5.1.2"},
		{"a..example", "550 5.1.2"},
		{"-a.example", "550 5.1.2"},
		{"a.example.", "550 5.1.2"},
		{"exa\x00mple.com", "550 5.1.2"},
		{"example.com\r\n", "550 5.1.2"},
		{"192.0.2.1", "550 5.1.2"},
		{"x." + long, "550 5.1.2"},
		{strings.Repeat("a", 300) + ".com", "550 5.1.2"},
		{"[192.0.2.1", "550 5.1.2"},
		{"[192.0.2.1]", "0 [192.0.2.1]"},
		{"[IPv6:2001:db8::1]", "0 [IPv6:2001:db8::1]"},
		{"[127.0.0.1]", "550 5.4.4"},
		{"[IPv6:::1]", "550 5.4.4"},
		{"[IPv6:::ffff:10.0.0.1]", "550 5.4.4"},
	}
	for _, tt := range tests {
		rt, rep := r.Route(t.Context(), tt.domain)
		got := reply(rep)
		if rt != nil {
			got = describe(rt)
		}
		if got != tt.want {
			t.Errorf("%q: got %q, want %q (%v)", tt.domain, got, tt.want, rep)
		}
	}
	for _, q := range zone.Queries() {
		if strings.Contains(q.Name, "[") || len(q.Name) > 254 {
			t.Errorf("asked DNS for %q", q.Name)
		}
	}
}

func TestAddressLiteralIsItsOwnSiteAndHost(t *testing.T) {
	t.Parallel()
	r := newResolver(t, zonetest.New(), nil)
	got, rep := r.Route(t.Context(), "[ipv6:2001:DB8::1]")
	if rep != nil {
		t.Fatal(rep)
	}
	name := "[IPv6:2001:db8::1]"
	want := &Route{Domain: name, Site: name, Hosts: []Host{{Name: name, Addrs: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}}}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Error(d)
	}
}

func TestHostsOfEqualPreferenceAreShuffledInEachCall(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 6} { // both ways of copying
		zone := zonetest.New()
		records := []string{"MX 1 first.example.net.", "MX 99 last.example.net."}
		for i := range n {
			records = append(records, "MX 10 m"+strconv.Itoa(i)+".example.net.")
		}
		zone.Set("example.com.", records...)
		r := newResolver(t, zone, func(_ *Config, d *Deps) { d.Rand = nil })
		places := map[string]map[int]bool{}
		for range 400 {
			rt, rep := r.Route(t.Context(), "example.com")
			if rep != nil {
				t.Fatal(rep)
			}
			if len(rt.Hosts) != n+2 || rt.Hosts[0].Name != "first.example.net" || rt.Hosts[n+1].Name != "last.example.net" {
				t.Fatalf("got %s: preference not kept", describe(rt))
			}
			for i, h := range rt.Hosts[1 : n+1] {
				if places[h.Name] == nil {
					places[h.Name] = map[int]bool{}
				}
				places[h.Name][i] = true
			}
		}
		for i := range n {
			if name := "m" + strconv.Itoa(i) + ".example.net"; len(places[name]) != n {
				t.Errorf("%s was seen at %d of %d places", name, len(places[name]), n)
			}
		}
		if got := zone.Count("example.com.", ""); got != 1 {
			t.Errorf("got %d queries, want 1", got)
		}
	}
}

func TestHugeAnswerIsCutToTwentyHosts(t *testing.T) {
	t.Parallel()
	zone := zonetest.New()
	zone.Fail("example.com.", zonetest.Huge)
	r := newResolver(t, zone, nil)
	rt, rep := r.Route(t.Context(), "example.com")
	if rep != nil {
		t.Fatal(rep)
	}
	if len(rt.Hosts) != maxHosts || len(rt.Site) > maxSite {
		t.Errorf("got %d hosts and a site of %d octets, want %d and at most %d", len(rt.Hosts), len(rt.Site), maxHosts, maxSite)
	}
	if !slices.IsSortedFunc(rt.Hosts, func(a, b Host) int { return int(a.Pref) - int(b.Pref) }) {
		t.Errorf("got %s: not in order of preference", describe(rt))
	}
	if got := zone.Queries(); len(got) != 2 || got[1].Network != "tcp" {
		t.Errorf("got queries %v, want one over UDP and one over TCP", got)
	}
}
