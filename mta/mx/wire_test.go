package mx

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

// serve returns a resolver that asks zone over sockets on loopback.
func serve(t *testing.T, zone *zonetest.Zone, change func(*Config, *Deps)) *Resolver {
	t.Helper()
	s, err := zone.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return newResolver(t, zone, func(c *Config, d *Deps) {
		c.Servers = []string{s.Addr()}
		d.Exchange = nil
		if change != nil {
			change(c, d)
		}
	})
}

func TestRouteOverSockets(t *testing.T) {
	t.Parallel()
	zone := zonetest.New()
	zone.Set("example.com.", "MX 10 mx.example.com.")
	zone.Set("mx.example.com.", "A 192.0.2.1", "AAAA 2001:db8::1")
	zone.Set("truncated.example.", "MX 10 mx.example.com.")
	zone.Fail("truncated.example.", zonetest.Truncate)
	zone.Fail("huge.example.", zonetest.Huge)
	zone.Fail("broken.example.", zonetest.ServFail)
	zone.Set("old.example.", "MX 10 mx.example.com.")
	zone.Fail("old.example.", zonetest.NoEDNS)
	r := serve(t, zone, nil)
	for domain, want := range map[string]string{
		"example.com":       "10 mx.example.com",
		"truncated.example": "10 mx.example.com",
		"old.example":       "10 mx.example.com",
		"broken.example":    "451 4.4.3",
		"none.example":      "550 5.1.2",
	} {
		rt, rep := r.Route(t.Context(), domain)
		got := reply(rep)
		if rt != nil {
			got = describe(rt)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q (%v)", domain, got, want, rep)
		}
	}
	rt, rep := r.Route(t.Context(), "huge.example")
	if rep != nil || len(rt.Hosts) != maxHosts {
		t.Errorf("huge: got %v, %v, want %d hosts", rt, rep, maxHosts)
	}
	addrs, rep := r.Addrs(t.Context(), "mx.example.com")
	if rep != nil || join(addrs) != "192.0.2.1 2001:db8::1" {
		t.Errorf("got %v, %v", addrs, rep)
	}
}

func TestSilentServerOverSocketsIsATimeout(t *testing.T) {
	t.Parallel()
	zone := zonetest.New()
	for name, mode := range map[string]zonetest.Mode{"silent": zonetest.Timeout, "forged": zonetest.WrongID, "other": zonetest.WrongQuestion, "echo": zonetest.NotResponse} {
		zone.Fail(name+".example.", mode)
	}
	r := serve(t, zone, func(c *Config, _ *Deps) {
		c.Timeout = 30 * time.Millisecond
		c.Retries = 1
	})
	for _, name := range []string{"silent", "forged", "other", "echo"} {
		if _, rep := r.Route(t.Context(), name+".example"); reply(rep) != "451 4.4.3" {
			t.Errorf("%s: got %v, want 451 4.4.3", name, rep)
		}
	}
}

// hostileUDP answers each query with the packets that change makes of the true
// answer, one after the other.
func hostileUDP(t *testing.T, packets func(q, answer *dns.Msg) [][]byte) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	zone := zonetest.New()
	zone.Set("example.com.", "MX 10 a.example.")
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, peer, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if q.Unpack(buf[:n]) != nil {
				continue
			}
			m, err := zone.Exchange(context.Background(), q, "udp", "")
			if err != nil {
				continue
			}
			for _, p := range packets(q, m) {
				pc.WriteTo(p, peer)
			}
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
	return pc.LocalAddr().String()
}

func pack(t *testing.T, m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return b
}

func TestForgedPacketsDoNotKeepTheTrueAnswerOut(t *testing.T) {
	t.Parallel()
	addr := hostileUDP(t, func(q, answer *dns.Msg) [][]byte {
		id, question, direction, broken := answer.Copy(), answer.Copy(), answer.Copy(), pack(t, answer)
		id.Id++
		question.Question[0].Name = "example.org."
		direction.Response = false
		return [][]byte{{}, {0}, []byte("not DNS at all"), pack(t, id), pack(t, question), pack(t, direction), broken[:13], pack(t, answer)}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	m, err := exchange(ctx, newQuery("example.com", dns.TypeMX, true), "udp", addr)
	if err != nil || len(m.Answer) != 1 {
		t.Errorf("got %v, %v, want the true answer", m, err)
	}
}

func TestFloodOfForgedPacketsEndsTheExchange(t *testing.T) {
	t.Parallel()
	addr := hostileUDP(t, func(q, answer *dns.Msg) [][]byte {
		answer.Id++
		p := pack(t, answer)
		var all [][]byte
		for range 100 {
			all = append(all, p)
		}
		return all
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := exchange(ctx, newQuery("example.com", dns.TypeMX, true), "udp", addr); !errors.Is(err, errMismatch) {
		t.Errorf("got %v, want it given up as no answer", err)
	}
}

func TestMalformedAnswerIsAnErrorAndATruncatedOneIsNot(t *testing.T) {
	t.Parallel()
	for _, truncated := range []bool{false, true} {
		addr := hostileUDP(t, func(q, answer *dns.Msg) [][]byte {
			answer.Truncated = truncated
			p := pack(t, answer)
			return [][]byte{p[:len(p)-15]} // ends within the record
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		m, err := exchange(ctx, newQuery("example.com", dns.TypeMX, false), "udp", addr)
		cancel()
		if truncated && (err != nil || !m.Truncated) {
			t.Errorf("got %v, %v, want a truncated answer", m, err)
		}
		if !truncated && !errors.Is(err, errMismatch) {
			t.Errorf("got %v, %v, want an error", m, err)
		}
	}
}

func TestEachQueryHasItsOwnPortAndID(t *testing.T) {
	t.Parallel()
	ports, ids := map[string]bool{}, map[uint16]bool{}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	buf := make([]byte, 4096)
	const n = 30
	for range n {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			exchange(ctx, newQuery("example.com", dns.TypeMX, true), "udp", pc.LocalAddr().String())
		}()
		k, peer, err := pc.ReadFrom(buf)
		if err != nil || k < 12 {
			t.Fatalf("got %d octets, %v", k, err)
		}
		ports[peer.String()] = true
		ids[uint16(buf[0])<<8|uint16(buf[1])] = true
		cancel()
		<-done
	}
	if len(ports) < n/2 || len(ids) < n/2 {
		t.Errorf("got %d ports and %d ids in %d queries", len(ports), len(ids), n)
	}
}

func TestExchangeEndsWhenItsContextDoes(t *testing.T) {
	t.Parallel()
	tcp, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for network, addr := range map[string]string{"tcp": tcp.Addr().String(), "udp": udp.LocalAddr().String()} {
		ctx, cancel := context.WithCancel(t.Context())
		stop := time.AfterFunc(20*time.Millisecond, cancel)
		if _, err := exchange(ctx, newQuery("example.com", dns.TypeMX, true), network, addr); err == nil {
			t.Errorf("%s: got an answer from nobody", network)
		}
		stop.Stop()
		cancel()
	}
}
