package outbound

import (
	"bytes"
	"errors"
	"net"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

const (
	maxText   = 998      // octets of a line without its CRLF (RFC 5322, 2.1.1)
	chunk     = 64 << 10 // what one deadline covers
	maxVec    = 256      // parts of one writev
	readAhead = 32 << 10 // longer messages are watched for an early reply while they are written
)

// Reasons why bytes may not go on the wire. Nothing is repaired here: the
// bytes are signed, and a repair would tell two receivers two different mails.
var (
	errNUL     = errors.New("NUL in the message")
	errBareCR  = errors.New("CR without LF in the message")
	errBareLF  = errors.New("LF without CR in the message")
	errLong    = errors.New("line of more than 998 octets in the message")
	errOpenEnd = errors.New("the message does not end with CRLF")
)

// checkLines reports whether p is a sequence of whole CRLF lines that may be
// sent, and how many of them begin with a dot.
func checkLines(p []byte) (dots int, err error) {
	lines := 0
	for rest := p; len(rest) > 0; lines++ {
		i := bytes.IndexByte(rest, '\n')
		switch {
		case i < 0:
			if len(rest) > maxText {
				return 0, errLong
			}
			return 0, errOpenEnd
		case i == 0 || rest[i-1] != '\r':
			return 0, errBareLF
		case i-1 > maxText:
			return 0, errLong
		}
		if rest[0] == '.' {
			dots++
		}
		rest = rest[i+1:]
	}
	// Every LF has its CR; as many CRs as lines means every CR has its LF.
	if bytes.Count(p, []byte{'\r'}) != lines {
		return 0, errBareCR
	}
	if bytes.IndexByte(p, 0) >= 0 {
		return 0, errNUL
	}
	return dots, nil
}

// bodyWriter writes a message behind 354: over TCP in gathered writes that copy
// nothing, otherwise in blocks of one TLS record.
type bodyWriter struct {
	c      *Conn
	by     time.Time       // the whole body must be out by then
	early  <-chan struct{} // closed when the server has spoken; nil: nobody listens
	gather bool
	queued int   // octets in buf.vec
	sent   int64 // octets handed to the connection
	end    int64 // of them, those up to the final dot; larger than any before that is known
}

func (c *Conn) newBodyWriter() bodyWriter {
	_, tcp := c.nc.(*net.TCPConn)
	c.buf.write = c.buf.write[:0]
	c.buf.vec = c.buf.vec[:0]
	return bodyWriter{c: c, by: time.Now().Add(c.opts.Timeouts.Body), gather: tcp}
}

// errEarly stops the writing because a reply has come.
var errEarly = errors.New("the server answered before the message was out")

// stuff adds p with a dot doubled wherever a line begins with one (RFC 5321,
// 4.5.2). REQUIRES: p is whole lines, dots of which begin with a dot.
func (b *bodyWriter) stuff(p []byte, dots int) error {
	if dots > 0 && p[0] == '.' {
		if err := b.add(dot); err != nil {
			return err
		}
		dots--
	}
	for ; dots > 0; dots-- {
		i := bytes.Index(p, crlfDot)
		if err := b.add(p[:i+3]); err != nil { // CRLF and the first dot
			return err
		}
		p = p[i+2:] // the dot again
	}
	return b.add(p)
}

var (
	dot     = []byte(".")
	crlfDot = []byte("\r\n.")
	theEnd  = []byte(".\r\n")
)

func (b *bodyWriter) add(p []byte) error {
	if !b.gather {
		return b.copy(p)
	}
	for len(p) > 0 {
		n := min(len(p), chunk-b.queued)
		b.c.buf.vec = append(b.c.buf.vec, p[:n])
		b.queued += n
		p = p[n:]
		if b.queued == chunk || len(b.c.buf.vec) == maxVec {
			if err := b.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bodyWriter) copy(p []byte) error {
	for len(p) > 0 {
		w := b.c.buf.write
		n := min(len(p), writeSize-len(w))
		b.c.buf.write = append(w, p[:n]...)
		p = p[n:]
		if len(b.c.buf.write) == writeSize {
			if err := b.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush writes what is gathered. When it returns nil all of it is with the
// connection; otherwise the last octet is not.
func (b *bodyWriter) flush() error {
	c := b.c
	if b.queued == 0 && len(c.buf.write) == 0 {
		return nil
	}
	until := time.Now().Add(c.opts.Timeouts.Block)
	if until.After(b.by) {
		until = b.by
	}
	c.raw.SetWriteDeadline(until)
	// The listener closes early first and shortens the deadline second; we set
	// the deadline first and look at early second. Either way we notice.
	select {
	case <-b.early:
		return errEarly
	default:
	}
	var n int64
	var err error
	if b.gather {
		c.vecw = c.buf.vec
		n, err = c.vecw.WriteTo(c.nc)
		c.vecw = nil
		clear(c.buf.vec) // hold on to no body
		c.buf.vec = c.buf.vec[:0]
		b.queued = 0
	} else {
		var m int
		m, err = c.nc.Write(c.buf.write)
		n = int64(m)
		c.buf.write = c.buf.write[:0]
	}
	b.sent += n
	return err
}

// appendXtext encodes s as RFC 3461, 4 asks. REQUIRES: s is printable ASCII.
func appendXtext(b []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7F || c == '+' || c == '=' {
			b = append(b, '+', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func appendNotify(b []byte, n message.Notify) []byte {
	b = append(b, " NOTIFY="...)
	if n&message.NotifyNever != 0 {
		return append(b, "NEVER"...) // stands alone (RFC 3461, 4.1)
	}
	start := len(b)
	for _, k := range [...]struct {
		bit  message.Notify
		name string
	}{{message.NotifySuccess, "SUCCESS"}, {message.NotifyFailure, "FAILURE"}, {message.NotifyDelay, "DELAY"}} {
		if n&k.bit == 0 {
			continue
		}
		if len(b) > start {
			b = append(b, ',')
		}
		b = append(b, k.name...)
	}
	return b
}
