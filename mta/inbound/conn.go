package inbound

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"
)

// Conn is one connection and its dialogue. A backend may keep it for the life
// of its session, and use it from the session's methods only.
type Conn struct {
	srv   *Server
	raw   net.Conn // as accepted
	nc    net.Conn // raw, or TLS over it
	key   netip.Prefix
	start time.Time

	// in[pos:end] is what was read and not used yet. During DATA, in[:end] is
	// the message so far.
	in       []byte
	pos, end int
	out      []byte // replies not written yet
	readErr  error  // came together with bytes; reported when those are used up
	deadline time.Time
	waiting  atomic.Bool // blocked in a read outside a transaction; see interrupt

	phase   phase
	tx      *transaction // nil unless phase is phaseMail or later
	session smtp.Session // nil before EHLO
	bytesTo BytesSession // session, if it takes bytes
	helo    string
	tls     *tls.Conn
	authed  bool
	closing bool // the last reply is in out; say no more
	linger  bool // the client may be mid-word: see finish

	messages     int
	authFailures int
	// Since the last accepted message:
	errorCount, refusalCount, junkCount int
}

func newConn(s *Server, nc net.Conn) *Conn {
	s.m.sessions[phaseGreeting].Add(1)
	return &Conn{srv: s, raw: nc, nc: nc, key: addrKey(nc.RemoteAddr()), start: s.now()}
}

// Hostname is the argument of EHLO or HELO: graphic ASCII, otherwise unchecked.
func (c *Conn) Hostname() string { return c.helo }

// RemoteAddr is the client's address.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// LocalAddr is the address the client connected to.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// TLSConnectionState describes the TLS layer; ok is false without one.
func (c *Conn) TLSConnectionState() (state tls.ConnectionState, ok bool) {
	if c.tls == nil {
		return tls.ConnectionState{}, false
	}
	return c.tls.ConnectionState(), true
}

// serve holds the dialogue from banner to close.
func (c *Conn) serve() {
	defer c.finish()
	if !c.greet() {
		return
	}
	for !c.closing {
		line, err := c.readLine()
		if err != nil {
			c.lost(err)
			return
		}
		c.command(line)
	}
}

// greet brings up TLS where it is implicit, and sends the banner.
func (c *Conn) greet() bool {
	cfg := &c.srv.cfg
	c.in = c.srv.bufs.get(max(1<<minClass, cfg.MaxLineLength))
	if cfg.ImplicitTLS {
		if !c.handshake() {
			return false
		}
	} else if cfg.BannerDelay > 0 && c.talksFirst() {
		return false
	}
	c.out = append(c.out, "220 "...)
	c.out = append(c.out, cfg.Hostname...)
	c.out = append(c.out, ' ')
	c.out = append(c.out, cfg.Banner...)
	c.out = append(c.out, '\r', '\n')
	return true
}

// talksFirst waits BannerDelay for a client that does not wait for us: a bot
// that pushes its script blindly, or a browser.
func (c *Conn) talksFirst() bool {
	c.arm(c.srv.now().Add(c.srv.cfg.BannerDelay))
	n, err := c.nc.Read(c.in)
	if n > 0 {
		c.srv.m.refuse(refusedEarly)
		c.bye(replyEarly)
		return true
	}
	if err != nil && !isTimeout(err) {
		return true
	}
	return false
}

// handshake turns the connection into a TLS one, or fails for good.
func (c *Conn) handshake() bool {
	tc := tls.Server(c.raw, c.srv.cfg.TLS)
	c.arm(c.srv.now().Add(c.srv.cfg.CommandTimeout))
	if err := tc.HandshakeContext(context.Background()); err != nil {
		c.srv.m.refuse(refusedTLS)
		c.srv.log.Debug("tls handshake failed", "client", c.raw.RemoteAddr(), "err", err)
		// Whatever the client speaks now, it is not what was agreed: not one
		// more word in clear.
		c.closing = true
		c.out = c.out[:0]
		return false
	}
	c.tls, c.nc = tc, tc
	return true
}

func (c *Conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	if cap(c.out) > 1<<10 {
		c.out = nil // an idle connection should not sit on a long EHLO reply
	}
	return err
}

// flushBy is flush with at least d to do it in.
func (c *Conn) flushBy(d time.Duration) error {
	if len(c.out) == 0 {
		return nil
	}
	if now := c.srv.now(); c.deadline.Sub(now) < d {
		c.arm(now.Add(d))
	}
	return c.flush()
}

func (c *Conn) say(reply string) { c.out = append(c.out, reply...) }

// sayError queues e, and ends the connection after it if its code is 421.
func (c *Conn) sayError(e *smtp.SMTPError) {
	c.out = appendError(c.out, e)
	if e.Code == 421 {
		c.closing, c.linger = true, true
	}
}

// bye queues the last reply. Input that is still in the buffer is dropped.
func (c *Conn) bye(reply string) {
	c.say(reply)
	c.closing, c.linger = true, true
}

// lost ends the dialogue after a failed read.
func (c *Conn) lost(err error) {
	switch {
	case errors.Is(err, errDraining):
		c.srv.m.refuse(refusedShutdown)
		c.say(replyShutdown)
	case errors.Is(err, errLineTooLong):
		c.srv.m.refuse(refusedSyntax)
		c.bye(replyLineLong)
	case errors.Is(err, errLineEnding):
		c.srv.m.refuse(refusedSyntax)
		c.bye(replyLineEnd)
	case isTimeout(err):
		c.srv.m.refuse(refusedTimeout)
		if c.age() >= c.srv.cfg.TotalTimeout {
			c.say(replyTotal)
		} else {
			c.say(replyIdle)
		}
	case !isClosed(err):
		c.srv.log.Debug("connection lost", "client", c.raw.RemoteAddr(), "err", err)
	}
	c.closing = true
}

func (c *Conn) age() time.Duration { return c.srv.now().Sub(c.start) }

// finish runs when the dialogue ends, in whatever way.
func (c *Conn) finish() {
	if v := recover(); v != nil {
		c.panicked(v)
	}
	if len(c.out) > 0 {
		c.arm(c.srv.now().Add(5 * time.Second))
		if c.flush() == nil && c.linger {
			c.drainBeforeClose()
		}
	}
	if c.tls != nil {
		c.tls.Close()
	}
	c.raw.Close()
	c.endTransaction()
	c.endSession()
	c.srv.bufs.put(c.in)
	c.in = nil
	c.srv.m.sessions[c.phase].Add(-1)
}

// drainBeforeClose reads for a moment what the client was still sending. TCP
// answers unread data with a reset, which would destroy the reply we just sent.
func (c *Conn) drainBeforeClose() {
	t, ok := c.raw.(*net.TCPConn)
	if !ok || c.tls != nil || len(c.in) == 0 {
		return
	}
	if t.CloseWrite() != nil {
		return
	}
	c.arm(c.srv.now().Add(time.Second))
	for total := 0; total < 1<<20; {
		n, err := t.Read(c.in)
		if err != nil {
			return
		}
		total += n
	}
}

// panicked is for our own bugs, and the backend's: this client is sent away,
// everyone else is served on. One a minute is logged with its stack.
func (c *Conn) panicked(v any) {
	c.srv.m.refuse(refusedPanic)
	c.say(replyBroken) // after the replies to what was done before
	c.closing = true
	now := c.srv.now().Unix()
	last := c.srv.lastPanic.Load()
	if (last != 0 && now-last < 60) || !c.srv.lastPanic.CompareAndSwap(last, now) {
		return
	}
	c.srv.log.LogAttrs(context.Background(), slog.LevelError, "panic in smtp session",
		slog.Any("err", v), slog.String("stack", string(debug.Stack())))
}

// endSession tells the backend that the session is over.
func (c *Conn) endSession() {
	s := c.session
	if s == nil {
		return
	}
	c.session, c.bytesTo = nil, nil
	defer func() {
		if v := recover(); v != nil {
			c.panicked(v)
		}
	}()
	if err := s.Logout(); err != nil {
		c.srv.log.Debug("logout failed", "err", err)
	}
}

func (c *Conn) setPhase(p phase) {
	if p == c.phase {
		return
	}
	c.srv.m.sessions[c.phase].Add(-1)
	c.srv.m.sessions[p].Add(1)
	c.phase = p
}

func isTimeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}
