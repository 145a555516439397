package mx

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

func TestNXDomainNeedsASecondLook(t *testing.T) {
	t.Parallel()
	const exists = true
	tests := []struct {
		name    string
		servers []string
		a, b    zonetest.Mode
		exists  bool
		want    string
		asked   string // order of servers
	}{
		{"the only server says so twice", []string{"a"}, zonetest.OK, zonetest.OK, !exists, "550 5.1.2", "a a"},
		{"both servers say so", []string{"a", "b"}, zonetest.OK, zonetest.OK, !exists, "550 5.1.2", "a b"},
		{"the other knows the name", []string{"a", "b"}, zonetest.NXDomain, zonetest.OK, exists, "10 m.example", "a b"},
		{"the other fails", []string{"a", "b"}, zonetest.OK, zonetest.ServFail, !exists, "451 4.4.3", "a b a a"},
		{"the first fails", []string{"a", "b"}, zonetest.ServFail, zonetest.OK, !exists, "451 4.4.3", "a b b b"},
		{"the other refuses us", []string{"a", "b"}, zonetest.OK, zonetest.Refused, !exists, "550 5.1.2", "a b a"},
		{"the other is silent", []string{"a", "b"}, zonetest.OK, zonetest.Timeout, !exists, "550 5.1.2", "a b a"},
		{"the other talks nonsense", []string{"a", "b"}, zonetest.OK, zonetest.WrongID, !exists, "550 5.1.2", "a b a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				zone := zonetest.New()
				if tt.exists {
					zone.Set("example.com.", "MX 10 m.example.")
				}
				zone.FailServer("a", tt.a)
				zone.FailServer("b", tt.b)
				r := newResolver(t, zone, func(c *Config, _ *Deps) { c.Servers = tt.servers })
				if got := ask(t, r); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
				if got := serversAsked(zone); got != tt.asked {
					t.Errorf("asked %q, want %q", got, tt.asked)
				}
			})
		})
	}
}

func serversAsked(zone *zonetest.Zone) string {
	var s []string
	for _, q := range zone.Queries() {
		s = append(s, q.Server)
	}
	return strings.Join(s, " ")
}

func TestServerThatFailsIsPassedOverAndComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("*.example.", "MX 10 m.example.")
		zone.FailServer("a", zonetest.Timeout)
		reg := prometheus.NewRegistry()
		r := newResolver(t, zone, func(c *Config, d *Deps) {
			c.Servers = []string{"a", "b"}
			d.Registerer = reg
		})
		look := func(name, want string) {
			t.Helper()
			before := len(zone.Queries())
			if _, rep := r.Route(t.Context(), name+".example"); rep != nil {
				t.Fatalf("%s: got %v", name, rep)
			}
			var got []string
			for _, q := range zone.Queries()[before:] {
				got = append(got, q.Server)
			}
			if g := strings.Join(got, " "); g != want {
				t.Errorf("%s: asked %q, want %q", name, g, want)
			}
		}
		look("first", "a b")
		look("second", "a b")
		look("third", "b") // two failures in a row: set aside
		if got := gauge(t, reg, "tradewind_dns_servers_down"); got != 1 {
			t.Errorf("got %v servers down, want 1", got)
		}
		advance(5 * time.Second)
		look("fourth", "a b") // tried again, still silent
		look("fifth", "b")
		advance(5 * time.Second)
		look("sixth", "b") // set aside for longer
		zone.FailServer("a", zonetest.OK)
		advance(5 * time.Second)
		look("seventh", "a")
		look("eighth", "a")
		if got := gauge(t, reg, "tradewind_dns_servers_down"); got != 0 {
			t.Errorf("got %v servers down, want 0", got)
		}
	})
}

func gauge(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestServersThatAreAllDownAreStillAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("*.example.", "MX 10 m.example.")
		zone.FailServer("a", zonetest.Unreachable)
		zone.FailServer("b", zonetest.Unreachable)
		r := newResolver(t, zone, func(c *Config, _ *Deps) { c.Servers = []string{"a", "b"} })
		if _, rep := r.Route(t.Context(), "one.example"); reply(rep) != "451 4.4.3" {
			t.Errorf("got %v, want 451 4.4.3", rep)
		}
		zone.FailServer("b", zonetest.OK)
		if _, rep := r.Route(t.Context(), "two.example"); rep != nil {
			t.Errorf("got %v from a server that is back", rep)
		}
	})
}

func TestServFailIsNotHeldAgainstTheServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zone := zonetest.New()
		zone.Set("good.example.", "MX 10 m.example.")
		for _, name := range []string{"a", "b", "c", "d"} {
			zone.Fail(name+".bad.", zonetest.ServFail)
		}
		r := newResolver(t, zone, func(c *Config, _ *Deps) { c.Servers = []string{"a", "b"} })
		for _, name := range []string{"a", "b", "c", "d"} {
			r.Route(t.Context(), name+".bad")
		}
		before := len(zone.Queries())
		if before != 8 {
			t.Errorf("got %d queries, want each server asked once a name", before)
		}
		r.Route(t.Context(), "good.example")
		if got := zone.Queries()[before:]; len(got) != 1 || got[0].Server != "a" {
			t.Errorf("asked %v, want the first server", got)
		}
	})
}

func TestCNAMEChainIsFollowedThroughSeveralAnswers(t *testing.T) {
	t.Parallel()
	steps := map[string]string{
		"example.com.": "example.com. 60 CNAME one.example.",
		"one.example.": "one.example. 60 CNAME two.example.",
		"two.example.": "two.example. 60 MX 10 m.example.",
	}
	var asked []string
	r := newResolver(t, zonetest.New(), func(_ *Config, d *Deps) {
		d.Exchange = func(_ context.Context, q *dns.Msg, _, _ string) (*dns.Msg, error) {
			name := q.Question[0].Name
			asked = append(asked, name)
			m := new(dns.Msg)
			m.SetReply(q)
			rr, err := dns.NewRR(steps[name])
			m.Answer = []dns.RR{rr}
			return m, err
		}
	})
	if got := ask(t, r); got != "10 m.example" {
		t.Errorf("got %q", got)
	}
	if got, want := strings.Join(asked, " "), "example.com. one.example. two.example."; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
}

func TestForgedRecordsBesideTheAnswerAreIgnored(t *testing.T) {
	t.Parallel()
	r := newResolver(t, zonetest.New(), func(_ *Config, d *Deps) {
		d.Exchange = func(_ context.Context, q *dns.Msg, _, _ string) (*dns.Msg, error) {
			m := new(dns.Msg)
			m.SetReply(q)
			for _, s := range []string{
				"other.example. 60 MX 1 evil.example.",
				"x.example.com. 60 MX 2 evil.example.",
				"example.com. 60 CH TXT evil.example.",
				"EXAMPLE.com. 60 MX 10 m.example.",
				"other.example. 60 CNAME example.com.",
			} {
				rr, err := dns.NewRR(s)
				if err != nil {
					return nil, err
				}
				m.Answer = append(m.Answer, rr)
			}
			chaos, err := dns.NewRR("example.com. 60 MX 3 evil.example.")
			chaos.Header().Class = dns.ClassCHAOS
			m.Answer = append(m.Answer, chaos)
			extra, _ := dns.NewRR("example.com. 60 MX 4 evil.example.")
			m.Extra = append(m.Extra, extra)
			return m, err
		}
	})
	if got := ask(t, r); got != "10 m.example" {
		t.Errorf("got %q, want only the record of the name asked for", got)
	}
}

func TestOnlyTheFirstHundredRecordsAreRead(t *testing.T) {
	t.Parallel()
	m := new(dns.Msg)
	for range maxRecords {
		m.Answer = append(m.Answer, &dns.MX{Hdr: dns.RR_Header{Name: "example.com.", Rrtype: dns.TypeMX, Class: dns.ClassINET, Ttl: 60}, Preference: 10, Mx: "a.example."})
	}
	m.Answer = append(m.Answer, &dns.MX{Hdr: m.Answer[0].(*dns.MX).Hdr, Preference: 1, Mx: "late.example."})
	f, again, err := newChain("example.com").read(m, dns.TypeMX)
	if err != nil || again || len(f.rrs) != maxRecords {
		t.Errorf("got %d records, %v, %v, want %d", len(f.rrs), again, err, maxRecords)
	}
}

func TestTTLWithTheTopBitSetIsZero(t *testing.T) {
	t.Parallel()
	m := new(dns.Msg)
	m.Answer = []dns.RR{&dns.MX{Hdr: dns.RR_Header{Name: "example.com.", Rrtype: dns.TypeMX, Class: dns.ClassINET, Ttl: 1 << 31}, Mx: "a.example."}}
	f, _, err := newChain("example.com").read(m, dns.TypeMX)
	if err != nil || f.ttl != 0 {
		t.Errorf("got %s, %v, want 0s", f.ttl, err)
	}
}

func TestConfigIsCheckedByNew(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{
		{Family: "ipv4"},
		{Servers: []string{"dns.example"}},
		{Servers: []string{"192.0.2.1:0"}},
		{Servers: []string{"192.0.2.1:x"}},
	} {
		if r, err := New(cfg, Deps{}); err == nil {
			r.Close()
			t.Errorf("%+v: got no error", cfg)
		}
	}
	r, err := New(Config{Servers: []string{"192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]:53"}}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := []string{"192.0.2.1:53", "192.0.2.1:5353", "[2001:db8::1]:53", "[2001:db8::1]:53"}
	for i, s := range r.servers {
		if s.addr != want[i] {
			t.Errorf("server %d: got %s, want %s", i, s.addr, want[i])
		}
	}
}

func TestMatchesChecksIdQuestionAndDirection(t *testing.T) {
	t.Parallel()
	q := newQuery("example.com", dns.TypeMX, true)
	tests := []struct {
		name   string
		change func(m *dns.Msg)
		ok     bool
	}{
		{"the answer", func(m *dns.Msg) {}, true},
		{"case of the name", func(m *dns.Msg) { m.Question[0].Name = "Example.COM." }, true},
		{"id", func(m *dns.Msg) { m.Id ^= 1 }, false},
		{"direction", func(m *dns.Msg) { m.Response = false }, false},
		{"operation", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, false},
		{"name", func(m *dns.Msg) { m.Question[0].Name = "example.org." }, false},
		{"type", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA }, false},
		{"class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, false},
		{"no question", func(m *dns.Msg) { m.Question = nil }, false},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, false},
	}
	for _, tt := range tests {
		m := new(dns.Msg)
		m.SetReply(q)
		tt.change(m)
		if err := matches(q, m); (err == nil) != tt.ok || (err != nil && !errors.Is(err, errMismatch)) {
			t.Errorf("%s: got %v, want ok %v", tt.name, err, tt.ok)
		}
	}
	if err := matches(q, nil); err == nil {
		t.Error("no message: got no error")
	}
}
