package zonetest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// lookup asks for name and returns code and answers in short form.
func lookup(t *testing.T, z *Zone, name string, qtype uint16) string {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, qtype)
	m, err := z.Exchange(t.Context(), q, "udp", "server")
	if err != nil {
		return err.Error()
	}
	return short(m)
}

func short(m *dns.Msg) string {
	parts := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		parts = append(parts, strings.Join(strings.Fields(rr.String()), " "))
	}
	if m.Truncated {
		parts = append(parts, "TC")
	}
	return strings.Join(parts, "; ")
}

func TestZoneAnswersLikeAResolver(t *testing.T) {
	t.Parallel()
	z := New(`
$ORIGIN example.com.
$TTL 60
@        MX 10 mx
mx       A  192.0.2.1
         AAAA 2001:db8::1
alias    CNAME mx
dangling CNAME none
a.b.c    TXT deep
*.wild   MX 5 mx
x.wild   TXT here
`)
	z.Set("example.org", "MX 10 mx.example.com.")
	z.Set("empty.example.org")
	z.Set("gone.example.org", "A 192.0.2.9")
	z.Remove("gone.example.org")
	tests := []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"example.com.", dns.TypeMX, "NOERROR; example.com. 60 IN MX 10 mx.example.com."},
		{"EXAMPLE.com.", dns.TypeMX, "NOERROR; example.com. 60 IN MX 10 mx.example.com."},
		{"mx.example.com.", dns.TypeAAAA, "NOERROR; mx.example.com. 60 IN AAAA 2001:db8::1"},
		{"mx.example.com.", dns.TypeMX, "NOERROR"},
		{"alias.example.com.", dns.TypeA, "NOERROR; alias.example.com. 60 IN CNAME mx.example.com.; mx.example.com. 60 IN A 192.0.2.1"},
		{"alias.example.com.", dns.TypeCNAME, "NOERROR; alias.example.com. 60 IN CNAME mx.example.com."},
		{"dangling.example.com.", dns.TypeA, "NXDOMAIN; dangling.example.com. 60 IN CNAME none.example.com."},
		{"b.c.example.com.", dns.TypeTXT, "NOERROR"},
		{"any.wild.example.com.", dns.TypeMX, "NOERROR; any.wild.example.com. 60 IN MX 5 mx.example.com."},
		{"deep.any.wild.example.com.", dns.TypeMX, "NOERROR; deep.any.wild.example.com. 60 IN MX 5 mx.example.com."},
		{"x.wild.example.com.", dns.TypeMX, "NOERROR"},
		{"y.x.wild.example.com.", dns.TypeMX, "NXDOMAIN"},
		{"example.org.", dns.TypeMX, "NOERROR; example.org. 300 IN MX 10 mx.example.com."},
		{"empty.example.org.", dns.TypeA, "NOERROR"},
		{"gone.example.org.", dns.TypeA, "NXDOMAIN"},
		{"none.example.", dns.TypeA, "NXDOMAIN"},
	}
	for _, tt := range tests {
		if got := lookup(t, z, tt.name, tt.qtype); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.name, dns.TypeToString[tt.qtype], got, tt.want)
		}
	}
}

func TestModesFailAsNamed(t *testing.T) {
	t.Parallel()
	z := New("example.com. MX 10 mx.example.com.\n")
	const good = "NOERROR; example.com. 300 IN MX 10 mx.example.com."
	ask := func(network string, edns bool) (*dns.Msg, *dns.Msg) {
		q := new(dns.Msg)
		q.SetQuestion("example.com.", dns.TypeMX)
		if edns {
			q.SetEdns0(1232, false)
		}
		m, err := z.Exchange(t.Context(), q, network, "server")
		if err != nil {
			t.Fatal(err)
		}
		return q, m
	}
	for mode, want := range map[Mode]string{
		OK:            good,
		ServFail:      "SERVFAIL",
		Refused:       "REFUSED",
		NXDomain:      "NXDOMAIN",
		Truncate:      "NOERROR; TC",
		TruncateTCP:   "NOERROR; TC",
		WrongQuestion: good,
		WrongID:       good,
		NotResponse:   good,
		WrongOwner:    "NOERROR; wrong.example.com. 300 IN MX 10 mx.example.com.",
		NoEDNS:        "FORMERR",
	} {
		z.Fail("example.com", mode)
		q, m := ask("udp", true)
		if got := short(m); got != want {
			t.Errorf("mode %d: got %q, want %q", mode, got, want)
		}
		if (m.Id != q.Id) != (mode == WrongID) || m.Response != (mode != NotResponse) || (m.Question[0].Name != "example.com.") != (mode == WrongQuestion) {
			t.Errorf("mode %d: got the header and question %v", mode, m)
		}
		_, m = ask("tcp", true)
		if m.Truncated != (mode == TruncateTCP) {
			t.Errorf("mode %d over TCP: got truncated %v", mode, m.Truncated)
		}
	}
	z.Fail("example.com", NoEDNS)
	if _, m := ask("udp", false); short(m) != good {
		t.Errorf("without EDNS: got %q, want %q", short(m), good)
	}

	z.Fail("example.com", Huge)
	if _, m := ask("udp", true); !m.Truncated || m.Len() > 1232 {
		t.Errorf("huge over UDP: got %d octets, truncated %v", m.Len(), m.Truncated)
	}
	_, m := ask("tcp", true)
	b, err := m.Pack()
	if err != nil || len(b) < 65_000 || len(b) > 65_535 {
		t.Errorf("huge over TCP: got %d octets, %v", len(b), err)
	}

	z.Fail("example.com", OK)
	z.Fail("example.com", ServFail, "A")
	if got := lookup(t, z, "example.com.", dns.TypeA); got != "SERVFAIL" {
		t.Errorf("A: got %q, want SERVFAIL", got)
	}
	if got := lookup(t, z, "example.com.", dns.TypeMX); got != good {
		t.Errorf("MX: got %q, want %q", got, good)
	}
	z.FailServer("server", Unreachable)
	if got := lookup(t, z, "example.com.", dns.TypeMX); got != ErrUnreachable.Error() {
		t.Errorf("got %q, want %q", got, ErrUnreachable)
	}
}

func TestLatencyAndSilencePassInVirtualTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		z := New("slow.example. A 192.0.2.1\nother.example. A 192.0.2.1\n")
		z.Latency("slow.example.", time.Hour)
		z.Latency("", time.Minute)
		start := time.Now()
		lookup(t, z, "slow.example.", dns.TypeA)
		lookup(t, z, "other.example.", dns.TypeA)
		if got := time.Since(start); got != time.Hour+time.Minute {
			t.Errorf("got %s, want 1h1m", got)
		}
		z.Fail("slow.example.", Timeout)
		z.Latency("slow.example.", 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		q := new(dns.Msg)
		q.SetQuestion("slow.example.", dns.TypeA)
		if _, err := z.Exchange(ctx, q, "udp", ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the end of the context", err)
		}
	})
}

func TestQueriesAreRemembered(t *testing.T) {
	t.Parallel()
	z := New()
	lookup(t, z, "Example.com.", dns.TypeMX)
	lookup(t, z, "example.com.", dns.TypeA)
	want := []Query{{"example.com.", "MX", "udp", "server"}, {"example.com.", "A", "udp", "server"}}
	if d := cmp.Diff(want, z.Queries()); d != "" {
		t.Error(d)
	}
	if z.Count("example.com", "") != 2 || z.Count("example.com", "MX") != 1 || z.Count("example.org", "") != 0 {
		t.Error("the counts do not agree with the queries")
	}
}

func TestServerAnswersOverUDPAndTCP(t *testing.T) {
	t.Parallel()
	z := New("example.com. MX 10 mx.example.com.\n")
	z.Fail("silent.example.", Timeout)
	s, err := z.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: 5 * time.Second}
		q := new(dns.Msg)
		q.SetQuestion("example.com.", dns.TypeMX)
		m, _, err := c.Exchange(q, s.Addr())
		if err != nil || short(m) != "NOERROR; example.com. 300 IN MX 10 mx.example.com." {
			t.Errorf("%s: got %v, %v", network, m, err)
		}
		c.Timeout = 20 * time.Millisecond
		q.SetQuestion("silent.example.", dns.TypeMX)
		if m, _, err := c.Exchange(q, s.Addr()); err == nil {
			t.Errorf("%s: got %v from a silent name", network, m)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestSyntaxErrorsPanic(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(z *Zone){
		"record": func(z *Zone) { z.Set("example.com.", "MX ten mx.example.com.") },
		"text":   func(z *Zone) { z.Load("example.com. NOSUCH x\n") },
		"type":   func(z *Zone) { z.Fail("example.com.", ServFail, "NOSUCH") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f(New())
		}()
	}
}
