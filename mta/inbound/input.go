package inbound

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// Errors of readLine and fill that are not the network's.
var (
	errLineTooLong = errors.New("inbound: line too long")
	errLineEnding  = errors.New("inbound: line not ended by CRLF alone")
	errDraining    = errors.New("inbound: shutting down")
)

// readLine returns the next command line without its CRLF, valid until the
// next read.
func (c *Conn) readLine() ([]byte, error) {
	limit := c.srv.cfg.MaxLineLength
	scan := c.pos
	var begun time.Time
	for {
		if i := bytes.IndexByte(c.in[scan:c.end], '\n'); i >= 0 {
			line := c.in[c.pos : scan+i]
			c.pos = scan + i + 1
			if len(line)+1 > limit {
				return nil, errLineTooLong
			}
			// Only CRLF ends a line. Whoever relays to us and sees lines
			// elsewhere must not be believed about what follows.
			n := len(line) - 1
			if n < 0 || bytes.IndexByte(line, '\r') != n || bytes.IndexByte(line, 0) >= 0 {
				return nil, errLineEnding
			}
			return line[:n], nil
		}
		if c.end-c.pos >= limit {
			return nil, errLineTooLong
		}
		scan = c.end - c.pos
		c.settle()
		if c.end > 0 && begun.IsZero() {
			begun = c.srv.now()
		}
		if err := c.fillLine(begun); err != nil {
			return nil, err
		}
	}
}

// settle moves what is left of the input to the front of a command-sized
// buffer.
func (c *Conn) settle() {
	n := c.end - c.pos
	if small := max(1<<minClass, c.srv.cfg.MaxLineLength); len(c.in) >= 2*small && n <= small/2 {
		if buf := c.srv.bufs.get(small); buf != nil {
			copy(buf, c.in[c.pos:c.end])
			c.srv.bufs.put(c.in)
			c.in, c.pos, c.end = buf, 0, n
			return
		}
	}
	if c.pos > 0 {
		copy(c.in, c.in[c.pos:c.end])
		c.pos, c.end = 0, n
	}
}

// fillLine reads more of a command line that began at begun, or has not begun
// if that is zero.
func (c *Conn) fillLine(begun time.Time) error {
	cfg := &c.srv.cfg
	now := c.srv.now()
	if len(c.out) > 0 {
		// Not under the deadline of the read to come, which may be next to
		// nothing: the acknowledgement of a message may be among the replies.
		if c.deadline.Sub(now) < cfg.CommandTimeout {
			c.arm(now.Add(cfg.IdleTimeout))
		}
		if err := c.flush(); err != nil {
			return err
		}
	}
	if begun.IsZero() {
		total := cfg.TotalTimeout
		if c.tx != nil {
			total *= 2 // a transaction may finish, but not last for ever
		}
		c.armCoarse(now, max(min(cfg.IdleTimeout, c.start.Add(total).Sub(now)), 0))
	} else if at := begun.Add(cfg.CommandTimeout); c.deadline.After(at) {
		c.arm(at)
	}
	return c.fill()
}

// fill writes pending replies and reads once into the free end of in.
func (c *Conn) fill() error {
	if err := c.flush(); err != nil {
		return err
	}
	n, err := c.read(c.in[c.end:])
	c.end += n
	return err
}

// read reads at least one octet, or says why not.
func (c *Conn) read(p []byte) (int, error) {
	if c.readErr != nil {
		return 0, c.readErr
	}
	idle := c.tx == nil
	if idle {
		// Either we see that draining has begun, or Shutdown sees that we wait
		// and interrupts: the two flags are set and read in opposite order.
		c.waiting.Store(true)
		defer c.waiting.Store(false)
		if c.srv.draining.Load() {
			return 0, errDraining
		}
	}
	for range 100 {
		n, err := c.nc.Read(p)
		if n > 0 {
			c.readErr = err
			return n, nil
		}
		if err == nil {
			continue
		}
		if isTimeout(err) && c.srv.draining.Load() {
			if idle {
				return 0, errDraining
			}
			// Interrupted a moment after it stopped being idle: let the
			// transaction finish.
			if now := c.srv.now(); now.Before(c.deadline) {
				c.raw.SetDeadline(c.deadline)
				continue
			}
		}
		return 0, err
	}
	return 0, io.ErrNoProgress
}

// interrupt wakes a connection that waits outside a transaction. It may be
// called from any goroutine.
func (c *Conn) interrupt() {
	if c.waiting.Load() {
		c.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// arm sets the deadline for reads and writes.
func (c *Conn) arm(at time.Time) {
	c.deadline = at
	c.raw.SetDeadline(at)
}

// armCoarse makes sure that the deadline lies between wait and 9/8 wait from
// now. On a busy connection it nearly always does already, and the timer is
// left alone.
func (c *Conn) armCoarse(now time.Time, wait time.Duration) {
	left := c.deadline.Sub(now)
	if left < wait || left > wait+wait/8 {
		c.arm(now.Add(wait + wait/8))
	}
}
