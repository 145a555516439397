package mx

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

func TestSiteOfMailHosts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		hosts []string
		want  string
	}{
		{nil, ""},
		{[]string{"mx.example.com"}, "mx.example.com"},
		{[]string{"MX.Example.com."}, "mx.example.com"},
		{[]string{"mx.example.com", "mx.example.com."}, "mx.example.com"},
		{[]string{"example.com"}, "example.com"},
		{[]string{"localhost"}, "localhost"},
		{[]string{"mx2.example.com", "mx1.example.com"}, "(mx1|mx2).example.com"},
		{[]string{"mx.example.com", "example.com"}, "(|mx).example.com"},
		{[]string{"a.x.example.com", "b.example.com"}, "(a.x|b).example.com"},
		{[]string{"a.b.example.com", "b.example.com"}, "(|a).b.example.com"},
		{[]string{"ab.example.com", "b.example.com"}, "(ab|b).example.com"},
		{
			[]string{"gmail-smtp-in.l.google.com", "alt4.gmail-smtp-in.l.google.com", "alt3.gmail-smtp-in.l.google.com", "alt2.gmail-smtp-in.l.google.com", "alt1.gmail-smtp-in.l.google.com"},
			"(|alt1|alt2|alt3|alt4).gmail-smtp-in.l.google.com",
		},
		{[]string{"mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net", "mta7.am0.yahoodns.net"}, "(mta5|mta6|mta7).am0.yahoodns.net"},
		{[]string{"c.example.net", "b.example.com", "a.example.com"}, "(a|b).example.com,c.example.net"},
		{[]string{"mx1.mail.com", "mx2.mail.net"}, "mx1.mail.com,mx2.mail.net"},
		{[]string{"mx.foo.co.uk", "mx.bar.co.uk"}, "(mx.bar|mx.foo).co.uk"},
	}
	for _, tt := range tests {
		if got := SiteOf(tt.hosts); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.hosts, got, tt.want)
		}
		slices.Reverse(tt.hosts)
		if got := SiteOf(tt.hosts); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.hosts, got, tt.want)
		}
	}
}

func TestLongSitesAreCutAndStayDistinct(t *testing.T) {
	t.Parallel()
	var hosts []string
	for i := range 20 {
		hosts = append(hosts, fmt.Sprintf("a-mail-host-of-some-length-%d.example.com", i))
	}
	a := SiteOf(hosts)
	b := SiteOf(hosts[:19])
	if len(a) != maxSite || len(b) != maxSite || a == b || a[:200] != b[:200] {
		t.Errorf("got %q and %q, want 255 octets each that differ at the end only", a, b)
	}
}

func TestDomainsWithTheSameHostsShareASite(t *testing.T) {
	t.Parallel()
	zone := zonetest.New()
	zone.Set("one.example.", "MX 10 mx1.provider.example.", "MX 20 mx2.provider.example.")
	zone.Set("two.example.", "MX 5 MX2.provider.example.", "MX 5 mx1.Provider.example.")
	zone.Set("three.example.", "MX 10 mx1.provider.example.")
	zone.Set("provider.example.", "A 192.0.2.1")
	r := newResolver(t, zone, nil)
	sites := map[string]string{}
	for _, d := range []string{"one.example", "two.example", "three.example", "provider.example"} {
		rt, rep := r.Route(t.Context(), d)
		if rep != nil {
			t.Fatal(rep)
		}
		sites[d] = rt.Site
	}
	if sites["one.example"] != sites["two.example"] || sites["one.example"] != "(mx1|mx2).provider.example" {
		t.Errorf("got %q and %q, want the same", sites["one.example"], sites["two.example"])
	}
	if sites["three.example"] != "mx1.provider.example" || sites["provider.example"] != "provider.example" {
		t.Errorf("got %v", sites)
	}
}

func FuzzSiteOf(f *testing.F) {
	f.Add("mx1.example.com mx2.example.com")
	f.Add("a.b.example.com b.example.com example.com com")
	f.Add("c.example.net b.example.com a.example.com localhost")
	f.Add(".. . a..b .b")
	f.Add(strings.Repeat("long.example.com ", 3) + strings.Repeat("x", 300))
	f.Fuzz(func(t *testing.T, s string) {
		hosts := strings.Fields(s)
		site := SiteOf(hosts)
		if len(site) > maxSite {
			t.Errorf("%q: %d octets", hosts, len(site))
		}
		slices.Reverse(hosts)
		if again := SiteOf(append(hosts, hosts...)); again != site {
			t.Errorf("%q: got %q, then %q in another order", hosts, site, again)
		}
		// Taking a host away makes another site.
		set := map[string]bool{}
		for _, h := range hosts {
			set[canonical(h)] = true
		}
		if !strings.ContainsAny(s, "(|),~") && len(set) > 1 {
			var fewer []string
			for h := range set {
				if h != canonical(hosts[0]) {
					fewer = append(fewer, h)
				}
			}
			if SiteOf(fewer) == site {
				t.Errorf("%q and %q share the site %q", hosts, fewer, site)
			}
		}
	})
}
