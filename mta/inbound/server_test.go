package inbound

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// pipeListener hands out net.Pipe ends, so that connections live inside a
// synctest bubble.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

type addrConn struct {
	net.Conn
	remote net.Addr
}

func (c addrConn) RemoteAddr() net.Addr { return c.remote }

// dial connects from the given address.
func (l *pipeListener) dial(from string) net.Conn {
	a, b := net.Pipe()
	l.conns <- addrConn{b, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 4000))}
	return a
}

// client speaks SMTP by hand.
type client struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

func newClient(t *testing.T, nc net.Conn) *client {
	return &client{t, nc, bufio.NewReader(nc)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, s); err != nil {
		c.t.Errorf("send %q: %v", s, err)
	}
}

// expect reads one reply and checks what it begins with.
func (c *client) expect(prefix string) string {
	c.t.Helper()
	var all string
	for {
		line, err := c.r.ReadString('\n')
		all += line
		if err != nil {
			c.t.Errorf("got %q and %v, want %q", all, err, prefix)
			return all
		}
		if len(line) > 3 && line[3] == ' ' {
			if !strings.HasPrefix(line, prefix) {
				c.t.Errorf("got %q, want %q", all, prefix)
			}
			return all
		}
	}
}

func (c *client) expectClosed() {
	c.t.Helper()
	if b, err := io.ReadAll(c.r); len(b) > 0 || err != nil && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, io.ErrUnexpectedEOF) {
		c.t.Errorf("got %q and %v, want the connection closed", b, err)
	}
}

func (c *client) do(line, want string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	return c.expect(want)
}

// drip sends an octet a second until the connection is closed. The function it
// returns waits for that.
func (c *client) drip() (wait func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, err := c.nc.Write([]byte("x")); err != nil {
				return
			}
			pass(time.Second)
		}
	})
	return wg.Wait
}

// pass lets virtual time go by.
func pass(d time.Duration) { <-time.After(d) }

// start serves in the bubble and returns a way to end it.
func start(t *testing.T, cfg Config, b Backend, deps Deps) (*Server, *pipeListener, func()) {
	s := New(cfg, b, deps)
	l := newPipeListener()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	return s, l, func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		for i := range s.m.sessions {
			if n := s.m.sessions[i].Load(); n != 0 {
				t.Errorf("%d sessions left in state %s", n, phaseNames[i])
			}
		}
		if n := s.bufs.used.Load(); n != 0 {
			t.Errorf("%d octets of buffer left", n)
		}
		if len(s.adm.perAddr) > 0 || s.adm.conns != 0 {
			t.Errorf("connections left: %v", s.adm.perAddr)
		}
	}
}

func within(t *testing.T, began time.Time, least, most time.Duration) {
	t.Helper()
	if d := time.Since(began); d < least || d > most {
		t.Errorf("took %v, want %v to %v", d, least, most)
	}
}

func TestIdleClientIsSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l, stop := start(t, testConfig(), &mailbox{}, Deps{})
		defer stop()
		c := newClient(t, l.dial("192.0.2.1"))
		c.expect("220")
		c.do("EHLO x", "250")
		began := time.Now()
		c.expect("421 4.4.2")
		c.expectClosed()
		within(t, began, 5*time.Minute, 6*time.Minute)
	})
}

func TestBusyClientLeavesTheTimerAlone(t *testing.T) {
	t.Parallel()
	nc := &scriptConn{}
	chunks := []string{hello}
	for range 100 {
		chunks = append(chunks, envelope+"DATA\r\n", "x\r\n.\r\n")
	}
	m := &mailbox{}
	talkTo(New(testConfig(), m, Deps{}), nc, chunks...)
	if nc.armings > 3 || len(m.messages) != 100 {
		t.Errorf("deadline set %d times for %d messages", nc.armings, len(m.messages))
	}
}

func TestDrippingCommandIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l, stop := start(t, testConfig(), &mailbox{}, Deps{})
		defer stop()
		c := newClient(t, l.dial("192.0.2.1"))
		c.expect("220")
		began := time.Now()
		dripped := c.drip()
		c.expect("421 4.4.2")
		c.expectClosed()
		within(t, began, 30*time.Second, 31*time.Second)
		dripped()
	})
}

func TestDrippingMessageIsCutOffAndNothingTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mailbox{}
		_, l, stop := start(t, testConfig(), m, Deps{})
		for _, chunked := range []bool{false, true} {
			c := newClient(t, l.dial("192.0.2.1"))
			c.expect("220")
			c.do("EHLO x", "250")
			c.do("MAIL FROM:<>", "250")
			c.do("RCPT TO:<b@b.test>", "250")
			if chunked {
				c.send("BDAT 1000000 LAST\r\n")
			} else {
				c.do("DATA", "354")
			}
			began := time.Now()
			dripped := c.drip()
			c.expect("421 4.4.2")
			c.expectClosed()
			within(t, began, 3*time.Minute, 4*time.Minute)
			dripped()
		}
		stop()
		if len(m.messages) > 0 {
			t.Errorf("took %q", m.messages)
		}
	})
}

func TestSlowButHonestMessageIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mailbox{}
		_, l, stop := start(t, testConfig(), m, Deps{})
		c := newClient(t, l.dial("192.0.2.1"))
		c.expect("220")
		c.do("EHLO x", "250")
		c.do("MAIL FROM:<>", "250")
		c.do("RCPT TO:<b@b.test>", "250")
		c.do("DATA", "354")
		line := strings.Repeat("x", 598) + "\r\n"
		for range 1000 { // 600 octets a second for a quarter of an hour
			c.send(line)
			pass(time.Second)
		}
		c.do(".", "250")
		stop()
		if len(m.messages) != 1 || len(m.messages[0]) != 600_000 {
			t.Errorf("%d messages", len(m.messages))
		}
	})
}

// A commit that takes longer than every time-out of ours still has its
// acknowledgement delivered: the client must not send the message again.
func TestSlowBackendStillAcknowledges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mailbox{work: func() { pass(2 * time.Hour) }}
		_, l, stop := start(t, testConfig(), m, Deps{})
		defer stop()
		c := newClient(t, l.dial("192.0.2.1"))
		c.expect("220")
		c.do("EHLO x", "250")
		c.do("MAIL FROM:<>", "250")
		c.do("RCPT TO:<b@b.test>", "250")
		c.do("DATA", "354")
		c.do("x\r\n.", "250 2.0.0")
		c.expect("421 4.4.2") // older than an hour by now
		c.expectClosed()
	})
}

func TestOversizedMessageIsDrainedForAWhileOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MaxMessageBytes = 100_000
		_, l, stop := start(t, cfg, &mailbox{}, Deps{})
		defer stop()
		c := newClient(t, l.dial("192.0.2.1"))
		c.expect("220")
		c.do("EHLO x", "250")
		c.do("MAIL FROM:<>", "250")
		c.do("RCPT TO:<b@b.test>", "250")
		c.do("DATA", "354")
		c.send(strings.Repeat("0123456789\r\n", 9000))
		began := time.Now()
		c.expect("552 5.3.4")
		c.expectClosed()
		within(t, began, 10*time.Second, 11*time.Second)
	})
}

func TestOldConnectionIsClosedBetweenTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.TotalTimeout = 10 * time.Minute
		m := &mailbox{}
		_, l, stop := start(t, cfg, m, Deps{})
		defer stop()
		c := newClient(t, l.dial("192.0.2.1"))
		c.expect("220")
		c.do("EHLO x", "250")
		for range 3 {
			pass(3 * time.Minute)
			c.do("NOOP", "250")
		}
		c.do("MAIL FROM:<>", "250")
		pass(3 * time.Minute)
		c.do("RCPT TO:<b@b.test>", "250")
		c.do("DATA", "354")
		c.do("x\r\n.", "250")
		c.expect("421 4.4.2")
		c.expectClosed()
	})
}

func TestClientThatTalksBeforeTheBannerIsSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.BannerDelay = 2 * time.Second
		_, l, stop := start(t, cfg, &mailbox{}, Deps{})
		defer stop()
		rude := newClient(t, l.dial("192.0.2.1"))
		rude.send("EHLO x\r\n")
		rude.expect("554 5.5.0")
		rude.expectClosed()
		began := time.Now()
		polite := newClient(t, l.dial("192.0.2.1"))
		polite.expect("220")
		within(t, began, 2*time.Second, 3*time.Second)
		polite.do("EHLO x", "250")
		polite.nc.Close()
	})
}

func TestConnectionsAreLimitedInAllAndByAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MaxConns, cfg.MaxConnsPerAddr = 5, 2
		s, l, stop := start(t, cfg, &mailbox{}, Deps{})
		defer stop()
		open := func(from, want string) *client {
			c := newClient(t, l.dial(from))
			c.expect(want)
			if want != "220" {
				c.expectClosed()
			}
			return c
		}
		first := open("192.0.2.1", "220")
		open("192.0.2.1", "220")
		open("192.0.2.1", "421 4.7.0")
		open("192.0.2.2", "220")
		open("2001:db8::1", "220")
		open("2001:db8::2", "220")
		open("192.0.2.3", "421 4.7.0") // five in all
		first.do("QUIT", "221")
		first.expectClosed()
		synctest.Wait()
		open("2001:db8:0:0:ffff::3", "421 4.7.0") // the same /64
		open("2001:db8:0:1::3", "220")
		if n := testutil.ToFloat64(s.m.refusals[refusedAddrConns]); n != 2 {
			t.Errorf("%v refusals by address, want 2", n)
		}
	})
}

func TestPressureTurnsConnectionsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l, stop := start(t, testConfig(), &mailbox{}, Deps{Pressure: func() *smtp.SMTPError {
			return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "Disk full"}
		}})
		defer stop()
		c := newClient(t, l.dial("192.0.2.1"))
		c.expect("421 4.3.1 Disk full")
		c.expectClosed()
	})
}

func TestShutdownEndsIdleClientsAtOnceAndLetsTransactionsFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mailbox{}
		s := New(testConfig(), m, Deps{})
		l := newPipeListener()
		go s.Serve(l)
		idle := newClient(t, l.dial("192.0.2.1"))
		idle.expect("220")
		idle.do("EHLO x", "250")
		busy := newClient(t, l.dial("192.0.2.2"))
		busy.expect("220")
		busy.do("EHLO x", "250")
		busy.do("MAIL FROM:<>", "250")
		synctest.Wait()

		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- s.Shutdown(t.Context()) }()
		idle.expect("421 4.3.2")
		idle.expectClosed()
		within(t, began, 0, 0)
		pass(time.Minute)
		busy.do("RCPT TO:<b@b.test>", "250")
		busy.do("DATA", "354")
		busy.do("x\r\n.", "250")
		busy.expect("421 4.3.2")
		busy.expectClosed()
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if len(m.messages) != 1 {
			t.Errorf("%d messages, want 1", len(m.messages))
		}
		if err := s.Serve(newPipeListener()); !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve after Shutdown: %v", err)
		}
	})
}

func TestShutdownEndsStubbornTransactionsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mailbox{}
		s := New(testConfig(), m, Deps{})
		l := newPipeListener()
		go s.Serve(l)
		c := newClient(t, l.dial("192.0.2.1"))
		c.expect("220")
		c.do("EHLO x", "250")
		c.do("MAIL FROM:<>", "250")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		began := time.Now()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		within(t, began, 20*time.Second, 20*time.Second)
		if last := m.calls[len(m.calls)-1]; last != "LOGOUT" {
			t.Errorf("Shutdown returned before the session was over: %q", m.calls)
		}
	})
}

func TestMetricsFollowADialogue(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	s := New(testConfig(), &mailbox{}, Deps{Metrics: NewMetrics(reg)})
	talkTo(s, &scriptConn{}, hello, envelope+"DATA\r\n", "12345\r\n.\r\n", "WHAT\r\n")
	want := `
# HELP tradewind_inbound_message_bytes_total Octets of the messages taken over by SMTP.
# TYPE tradewind_inbound_message_bytes_total counter
tradewind_inbound_message_bytes_total 7
# HELP tradewind_inbound_messages_total Messages taken over by SMTP.
# TYPE tradewind_inbound_messages_total counter
tradewind_inbound_messages_total 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want),
		"tradewind_inbound_messages_total", "tradewind_inbound_message_bytes_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(s.m.refusals[refusedSyntax]); n != 1 {
		t.Errorf("%v syntax refusals, want 1", n)
	}
}

func TestServeOverLoopback(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mailbox{}
	s := New(testConfig(), m, Deps{})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c, err := smtp.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 3 {
		body := fmt.Sprintf("Subject: %d\r\n\r\n%s", i, strings.Repeat(".line\r\n", 50_000))
		if err := c.SendMail("a@a.test", []string{"b@b.test"}, strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
	if len(m.messages) != 3 || !strings.HasSuffix(m.messages[2], "\r\n.line\r\n") {
		t.Errorf("%d messages", len(m.messages))
	}
}
