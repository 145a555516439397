package outbound_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

type poolKey struct {
	source, site string
	tls          outbound.TLSPolicy
}

func TestPoolHandsOutOnlyWhatTheKeyNamesMostRecentFirst(t *testing.T) {
	t.Parallel()
	withSink(t, loadgen.SinkConfig{}, func(t *testing.T, s *loadgen.Sink, o outbound.Options) {
		ctx := context.Background()
		p := outbound.NewPool[poolKey](outbound.PoolConfig{})
		defer p.Close(ctx)
		a, b := poolKey{"ip1", "example.net", outbound.Off}, poolKey{"ip1", "example.net", outbound.Verify}
		c1, c2 := mustDial(t, o), mustDial(t, o)
		p.Put(a, c1)
		p.Put(a, c2)
		if got := p.Get(b); got != nil {
			t.Error("a connection crossed from one TLS policy to another")
		}
		if p.Get(a) != c2 || p.Get(a) != c1 || p.Get(a) != nil {
			t.Error("not most recent first")
		}
		c1.Quit(ctx)
		c2.Quit(ctx)
	})
}

func mustDial(t *testing.T, o outbound.Options) *outbound.Conn {
	t.Helper()
	c, fail := outbound.Dial(context.Background(), o)
	if fail != nil {
		t.Fatal(fail)
	}
	return c
}

func TestPoolClosesWhatIsIdleTooLongAndWhatIsTooMuch(t *testing.T) {
	t.Parallel()
	withSink(t, loadgen.SinkConfig{}, func(t *testing.T, s *loadgen.Sink, o outbound.Options) {
		ctx := context.Background()
		reg := prometheus.NewRegistry()
		p := outbound.NewPool[int](outbound.PoolConfig{Max: 3, Idle: 20 * time.Second, Registerer: reg})
		var closed atomic.Int64 // several farewells run at a time
		o.OnClose = func() { closed.Add(1) }
		for i := range 5 {
			p.Put(i, mustDial(t, o))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if p.Len() != 3 || closed.Load() != 2 || s.Counts().Open != 3 {
			t.Errorf("%d idle, %d closed, %d open at the sink; want 3, 2, 3", p.Len(), closed.Load(), s.Counts().Open)
		}
		if p.Get(0) != nil || p.Get(1) != nil {
			t.Error("the oldest were not the ones to go")
		}
		time.Sleep(16 * time.Second) // the third has now been idle for 19 s
		if p.Len() != 2 && p.Len() != 3 {
			t.Errorf("%d idle", p.Len())
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if p.Len() != 0 || closed.Load() != 5 || s.Counts().Open != 0 {
			t.Errorf("%d idle, %d closed, %d open; want 0, 5, 0", p.Len(), closed.Load(), s.Counts().Open)
		}
		if n := s.Counts().Replies[221]; n != 5 {
			t.Errorf("%d connections said QUIT, want 5", n)
		}
		want := map[string]float64{"full": 2, "idle": 3, "dead": 0, "spent": 0, "closed": 0}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != "tradewind_outbound_idle_closed_total" {
				continue
			}
			for _, m := range f.GetMetric() {
				reason := m.GetLabel()[0].GetValue()
				if got := m.GetCounter().GetValue(); got != want[reason] {
					t.Errorf("%s: %v, want %v", reason, got, want[reason])
				}
				delete(want, reason)
			}
		}
		if len(want) > 0 {
			t.Errorf("missing metrics %v", want)
		}
		p.Close(ctx)
	})
}

func TestPoolPassesOverConnectionsThePeerHasClosedOrSpokenOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		var servers []net.Conn
		o := testOptions(pipeTo(func(c net.Conn) {
			servers = append(servers, c)
			c.Write([]byte("220 hi\r\n"))
			c.Read(make([]byte, 100))
			c.Write([]byte("250 mx\r\n"))
		}))
		p := outbound.NewPool[int](outbound.PoolConfig{})
		closed := 0
		o.OnClose = func() { closed++ }
		for range 3 {
			p.Put(1, mustDial(t, o))
		}
		servers[2].Write([]byte("421 4.4.2 idle for too long\r\n"))
		servers[1].Close()
		c := p.Get(1)
		if c == nil || closed != 2 || p.Len() != 0 {
			t.Fatalf("got %v, %d closed, %d idle", c, closed, p.Len())
		}
		c.Close()
		p.Close(ctx)
	})
}

func TestPoolSeesARealSocketCloseOrSpeakWithoutWaiting(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	servers := make(chan net.Conn, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("220 hi\r\n"))
			c.Read(make([]byte, 100))
			c.Write([]byte("250 mx\r\n"))
			servers <- c
		}
	}()
	o := testOptions(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
	})
	p := outbound.NewPool[int](outbound.PoolConfig{})
	defer p.Close(context.Background())
	for name, act := range map[string]func(net.Conn){
		"closes": func(c net.Conn) { c.Close() },
		"speaks": func(c net.Conn) { c.Write([]byte("421 bye\r\n")) },
	} {
		c := mustDial(t, o)
		server := <-servers
		p.Put(1, c)
		got := p.Get(1)
		if got != c {
			t.Fatalf("%s: a living connection was dropped", name)
		}
		p.Put(1, c)
		act(server)
		// Loopback delivers at once but not in the same instant.
		for range 1_000_000 {
			if got = p.Get(1); got == nil {
				break
			}
			p.Put(1, got)
		}
		if got != nil {
			t.Errorf("%s: the connection was still handed out", name)
		}
		server.Close()
	}
}

func TestPoolSaysGoodbyeToConnectionsThatMayCarryNoMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s := parseScript(t, "greet LIMITS MAILMAX=1\n> MAIL FROM:<a@example.com>\n< 250 ok\n> RCPT TO:<b0@example.net>\n< 250 ok\n> DATA\n< 354 go\nbody\n< 250 ok")
		wrong := "not finished"
		done := make(chan struct{})
		o := testOptions(pipeTo(func(c net.Conn) { defer close(done); wrong = s.serve(c) }))
		c := mustDial(t, o)
		if res := c.Send(ctx, &s.e); res.Outcomes[0].Result != message.Delivered || res.Usable {
			t.Errorf("%v, usable %v", res.Outcomes[0].Reply, res.Usable)
		}
		p := outbound.NewPool[int](outbound.PoolConfig{})
		p.Put(1, c)
		if p.Len() != 0 || p.Get(1) != nil {
			t.Error("kept")
		}
		p.Close(ctx)
		<-done
		if wrong != "" {
			t.Error(wrong)
		}
	})
}

func TestPoolThatIsClosedKeepsNothing(t *testing.T) {
	t.Parallel()
	withSink(t, loadgen.SinkConfig{}, func(t *testing.T, s *loadgen.Sink, o outbound.Options) {
		p := outbound.NewPool[int](outbound.PoolConfig{})
		p.Put(1, mustDial(t, o))
		p.Close(context.Background())
		p.Put(1, mustDial(t, o))
		synctest.Wait()
		if p.Len() != 0 || s.Counts().Open != 0 {
			t.Errorf("%d idle, %d open", p.Len(), s.Counts().Open)
		}
	})
}

func TestPoolDoesNotWaitForeverForAFarewell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(pipeTo(func(c net.Conn) {
			c.Write([]byte("220 hi\r\n"))
			c.Read(make([]byte, 100))
			c.Write([]byte("250 mx\r\n")) // and never again
		}))
		p := outbound.NewPool[int](outbound.PoolConfig{})
		p.Put(1, mustDial(t, o))
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		start := time.Now()
		p.Close(ctx)
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("took %v, want the 2 s allowed", took)
		}
	})
}

func TestCancelledContextEndsASendAtOnce(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		script string
		want   message.Result
	}{
		{"greet PIPELINING\ndeaf", message.Deferred},
		{"greet\n> MAIL FROM:<a@example.com>\n< 250 ok\ndeaf", message.Deferred},
		{"set size 500000\ngreet\n> MAIL FROM:<a@example.com>\n< 250 ok\n> RCPT TO:<b0@example.net>\n< 250 ok\n> DATA\n< 354 go\nsleep 10s\ndeaf", message.Deferred},
		{"greet\n> MAIL FROM:<a@example.com>\n< 250 ok\n> RCPT TO:<b0@example.net>\n< 250 ok\n> DATA\n< 354 go\nbody\ndeaf", message.Unknown},
	} {
		for _, life := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				s := parseScript(t, tc.script)
				closed := 0
				done := make(chan struct{})
				o := testOptions(pipeTo(func(c net.Conn) { defer close(done); s.serve(c) }))
				o.OnClose = func() { closed++ }
				ctx, cancel := context.WithTimeout(context.Background(), 7*time.Second)
				defer cancel()
				if life {
					o.Life = ctx
				}
				start := time.Now()
				c := mustDial(t, o)
				res := c.Send(ctx, &s.e)
				if out := res.Outcomes[0]; out.Result != tc.want || res.Usable || res.Stale || closed != 1 || out.Finished.Sub(start) != 7*time.Second {
					t.Errorf("life %v: %v %v, usable %v, stale %v, closed %d, after %v", life, out.Result, out.Reply, res.Usable, res.Stale, closed, time.Since(start))
				}
				<-done
			})
		}
	}
}

func TestConnectionEndsWithItsLife(t *testing.T) {
	t.Parallel()
	withSink(t, loadgen.SinkConfig{}, func(t *testing.T, s *loadgen.Sink, o outbound.Options) {
		life, end := context.WithCancel(context.Background())
		o.Life = life
		idle, busy, gone := mustDial(t, o), mustDial(t, o), mustDial(t, o)
		gone.Quit(life)
		if res := busy.Send(life, envelope("b@example.net")); !res.Usable || res.Outcomes[0].Result != message.Delivered {
			t.Fatalf("got %v, usable %v", res.Outcomes[0].Reply, res.Usable)
		}
		end()
		synctest.Wait()
		if n := s.Counts().Open; n != 0 {
			t.Errorf("%d connections are open after the end of their life", n)
		}
		if res := idle.Send(context.Background(), envelope("b@example.net")); res.Usable || res.Outcomes[0].Result != message.Deferred {
			t.Errorf("a connection beyond its life sent: %v", res.Outcomes[0].Reply)
		}
	})
}
