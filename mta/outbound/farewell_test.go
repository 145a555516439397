package outbound_test

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

// slowGoodbye is a server that closes a while after the client is done with it.
type slowGoodbye struct {
	greeting string
	after    time.Duration // 0: it never closes by itself
	closed   time.Time
}

func (s *slowGoodbye) serve(nc net.Conn) {
	defer nc.Close()
	rd := bufio.NewReader(nc)
	say := func(line string) { nc.Write([]byte(line + "\r\n")) }
	say(s.greeting)
	for {
		line, err := rd.ReadString('\n')
		if err != nil {
			break
		}
		if strings.HasPrefix(line, "QUIT") {
			say("221 bye")
			break
		}
		say("250 ok")
	}
	if s.after == 0 {
		for { // until the client has given up
			if _, err := nc.Write([]byte{'.'}); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	time.Sleep(s.after)
	s.closed = time.Now()
}

// TestPermitComesBackOnlyWhenTheServerHasClosed looks at every way in which a
// connection ends while the server still stands.
func TestPermitComesBackOnlyWhenTheServerHasClosed(t *testing.T) {
	t.Parallel()
	pooled := func(act func(*outbound.Pool[int])) func(context.Context, *outbound.Conn) {
		return func(ctx context.Context, c *outbound.Conn) {
			p := outbound.NewPool[int](outbound.PoolConfig{Max: 1, Idle: time.Second})
			p.Put(1, c)
			act(p)
			time.Sleep(10 * time.Second)
			p.Close(ctx)
		}
	}
	for name, end := range map[string]func(context.Context, *outbound.Conn){
		"quit":      func(ctx context.Context, c *outbound.Conn) { c.Quit(ctx) },
		"dropped":   func(_ context.Context, c *outbound.Conn) { c.Drop() },
		"both":      func(ctx context.Context, c *outbound.Conn) { c.Drop(); c.Quit(ctx) },
		"idle":      pooled(func(*outbound.Pool[int]) {}),
		"pool ends": pooled(func(p *outbound.Pool[int]) { p.Close(context.Background()) }),
	} {
		for _, server := range []slowGoodbye{
			{greeting: "220 hello", after: 300 * time.Millisecond},
			{greeting: "220 hello"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					checkGoodbye(t, server, end)
				})
			})
		}
	}
	for _, greeting := range []string{"554 go away", "421 too many connections"} {
		t.Run(greeting, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				checkGoodbye(t, slowGoodbye{greeting: greeting, after: 300 * time.Millisecond}, nil)
			})
		})
	}
}

func checkGoodbye(t *testing.T, server slowGoodbye, end func(context.Context, *outbound.Conn)) {
	ctx := t.Context()
	near, far := loadgen.Pipe()
	done := make(chan struct{})
	go func() { server.serve(far); close(done) }()
	var released []time.Time
	began := time.Now()
	c, fail := outbound.Dial(ctx, outbound.Options{
		EHLO: "mta.example", Host: "mx.example", Addr: netip.MustParseAddrPort("192.0.2.1:25"), TLS: outbound.Off,
		Dial:    func(context.Context, string, string) (net.Conn, error) { return near, nil },
		OnClose: func() { released = append(released, time.Now()) },
	})
	if (fail == nil) != (end != nil) {
		t.Fatalf("dial: %v", fail)
	}
	if end != nil {
		end(ctx, c)
	}
	<-done
	synctest.Wait()
	if len(released) != 1 {
		t.Fatalf("the permit came back %d times, want once", len(released))
	}
	if server.after > 0 && released[0].Before(server.closed) {
		t.Errorf("the permit came back %v before the server had closed", server.closed.Sub(released[0]))
	}
	if wait := released[0].Sub(began); server.after == 0 && (wait < 2*time.Second || wait > 4*time.Second) {
		t.Errorf("a server that never closes kept the permit for %v, want a short bounded time", wait)
	}
}
