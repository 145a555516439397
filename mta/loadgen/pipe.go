package loadgen

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipeBuffer is what one direction of a Pipe holds before writing blocks, as
// the window of a TCP connection does.
const pipeBuffer = 64 << 10

// Pipe returns the two ends of a connection in memory. Unlike net.Pipe's, each
// direction is buffered: pipelined commands and their replies may cross. What
// was written before Close can still be read. It blocks in a way that
// testing/synctest understands.
func Pipe() (net.Conn, net.Conn) {
	ab, ba := newHalf(), newHalf()
	return &pipeConn{in: ba, out: ab}, &pipeConn{in: ab, out: ba}
}

// half is one direction.
type half struct {
	mu            sync.Mutex // protects everything below
	wake          *sync.Cond
	buf           []byte
	size          int
	writerGone    bool // EOF after what is buffered
	readerGone    bool // writing makes no sense any more
	readBy        time.Time
	writeBy       time.Time
	readT, writeT *time.Timer
}

func newHalf() *half {
	h := &half{size: pipeBuffer}
	h.wake = sync.NewCond(&h.mu)
	return h
}

func late(by time.Time) bool { return !by.IsZero() && !time.Now().Before(by) }

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.readerGone:
			return 0, net.ErrClosed
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[:copy(h.buf, h.buf[n:])]
			h.wake.Broadcast()
			return n, nil
		case h.writerGone:
			return 0, io.EOF
		case late(h.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		}
		h.wake.Wait()
	}
}

// errReset is what a writer gets whose peer has closed.
var errReset = errors.New("connection reset by peer")

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.writerGone:
			return n, net.ErrClosed
		case h.readerGone:
			return n, errReset
		case late(h.writeBy):
			return n, os.ErrDeadlineExceeded
		case len(p) == 0:
			return n, nil
		}
		if room := h.size - len(h.buf); room > 0 {
			k := min(room, len(p))
			h.buf = append(h.buf, p[:k]...)
			p, n = p[k:], n+k
			h.wake.Broadcast()
			continue
		}
		h.wake.Wait()
	}
}

// arm sets a deadline and sees to it that whoever waits notices.
func (h *half) arm(by *time.Time, t **time.Timer, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*by = at
	if *t != nil {
		(*t).Stop()
		*t = nil
	}
	if d := time.Until(at); !at.IsZero() && d > 0 {
		*t = time.AfterFunc(d, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.wake.Broadcast()
		})
	}
	h.wake.Broadcast()
}

func (h *half) end(gone *bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*gone = true
	for _, t := range []*time.Timer{h.readT, h.writeT} {
		if t != nil {
			t.Stop()
		}
	}
	h.wake.Broadcast()
}

type pipeConn struct{ in, out *half }

func (c *pipeConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *pipeConn) Write(p []byte) (int, error) { return c.out.write(p) }

func (c *pipeConn) Close() error {
	c.in.end(&c.in.readerGone)
	c.out.end(&c.out.writerGone)
	return nil
}

// CloseWrite ends what the peer reads, as the FIN of a TCP connection does.
func (c *pipeConn) CloseWrite() error {
	c.out.end(&c.out.writerGone)
	return nil
}

func (c *pipeConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *pipeConn) SetReadDeadline(t time.Time) error {
	c.in.arm(&c.in.readBy, &c.in.readT, t)
	return nil
}

func (c *pipeConn) SetWriteDeadline(t time.Time) error {
	c.out.arm(&c.out.writeBy, &c.out.writeT, t)
	return nil
}

func (c *pipeConn) LocalAddr() net.Addr  { return pipeAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// Listener accepts connections in memory. Its Dial has the signature of
// net.Dialer.DialContext and always comes out at Accept.
type Listener struct {
	queue  chan net.Conn // unbuffered: Dial returns once accepted
	closed chan struct{}
	once   sync.Once
}

// Listen returns a Listener.
func Listen() *Listener {
	return &Listener{queue: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept waits for the next Dial.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Dial connects to the listener, whatever the address.
func (l *Listener) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	a, b := Pipe()
	select {
	case l.queue <- b:
		return a, nil
	case <-l.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends Accept and Dial; connections stay.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns a placeholder.
func (l *Listener) Addr() net.Addr { return pipeAddr{} }
