package inbound

import (
	"bytes"
	"errors"
	"time"

	"github.com/emersion/go-smtp"
)

// data is DATA: 354, the message, and the one reply that counts.
func (c *Conn) data(arg []byte) {
	if c.refuseArg(arg) {
		return
	}
	if c.phase != phaseRcpt {
		c.protocolError(errNotNow)
		return
	}
	if e := c.srv.pressure(); e != nil {
		c.endTransaction()
		c.refused(refusedPressure, e)
		return
	}
	// DATA is the last command of a pipelined group (RFC 2920, 3.1). A client
	// that sends on has not seen our reply: had it been a refusal, its message
	// would now be run as commands.
	if c.talksEarly() {
		return
	}
	c.say(replyData)
	c.setPhase(phaseData)
	text, e, err := c.receive()
	if err != nil {
		c.brokenMessage(err)
		return
	}
	if c.closing {
		return
	}
	c.settleMessage(text, e)
}

// talksEarly ends the connection of a client that did not wait for a reply it
// had to wait for.
func (c *Conn) talksEarly() bool {
	if c.pos == c.end {
		return false
	}
	c.srv.m.refuse(refusedEarly)
	c.bye(replyEarly)
	return true
}

// brokenMessage ends the connection after a message that did not come whole.
// Whatever may still arrive is message text, and must not be run.
func (c *Conn) brokenMessage(err error) {
	if isTimeout(err) {
		c.srv.m.refuse(refusedTimeout)
	}
	c.bye(replyDataLost)
	c.linger = false
	c.srv.log.Debug("message cut short", "client", c.raw.RemoteAddr(), "err", err)
}

// settleMessage hands a message over, unless e refuses it already, answers,
// and ends the transaction.
func (c *Conn) settleMessage(text []byte, e *smtp.SMTPError) {
	switch e {
	case nil:
	case errTooBig:
		c.endTransaction()
		c.refused(refusedSize, e)
		return
	case errNoMemory:
		c.endTransaction()
		c.refused(refusedPressure, e)
		return
	default:
		c.endTransaction()
		c.reject(refusedFraming, e, &c.errorCount, c.srv.cfg.MaxErrors)
		return
	}
	// Earlier replies must not wait for the backend: the acknowledgement of
	// the message before this one may be among them.
	if err := c.flushBy(c.srv.cfg.CommandTimeout); err != nil {
		c.brokenMessage(err)
		return
	}
	// Without spare capacity: the client's next commands may lie behind the
	// text, and the backend may append to it.
	text = text[:len(text):len(text)]
	var words string
	var err error
	if c.bytesTo != nil {
		words, err = c.bytesTo.DataBytes(text, c.tx.plain)
	} else {
		err = c.session.Data(bytes.NewReader(text))
	}
	if err != nil {
		c.endTransaction()
		if _, ok := errors.AsType[*smtp.SMTPError](err); !ok {
			c.srv.log.Warn("message refused for an internal error", "err", err)
		}
		c.refused(refusedBackend, asSMTPError(err, errInternal))
		return
	}
	c.messages++
	c.errorCount, c.refusalCount, c.junkCount = 0, 0, 0
	c.srv.m.messages.Inc()
	c.srv.m.bytes.Add(float64(len(text)))
	c.say("250 2.0.0 ")
	if words == "" {
		words = "Ok: queued"
	}
	c.out = appendClean(c.out, words)
	c.say("\r\n")
	// Last, so that even a panic in Reset cannot take the reply back.
	c.endTransaction()
}

// receive reads to the end of the message. It returns the text, valid until
// the next read, or a refusal with the input standing behind the message; or
// an error, or c.closing, when the end was not reached.
func (c *Conn) receive() ([]byte, *smtp.SMTPError, error) {
	limit := c.srv.cfg.MaxMessageBytes
	// REQUIRES: pos == end, so the message begins at the front of the buffer.
	c.pos, c.end = 0, 0
	if !c.grow(c.firstBuffer()) {
		return c.drain(errNoMemory)
	}
	pace := c.newPace()
	var f framing
	for {
		if err := c.fillBody(&pace); err != nil {
			return nil, nil, err
		}
		end, done := f.feed(c.in[:c.end])
		if done {
			text := c.in[:f.line]
			c.pos = end
			if int64(len(text)-f.dots) > limit {
				return nil, errTooBig, nil
			}
			if !f.clean(text) {
				return nil, errBareLine, nil
			}
			if f.longest > c.srv.cfg.MaxTextLine {
				return nil, errLongLine, nil
			}
			c.tx.plain = f.dots == 0 && f.longest <= plainLine
			if f.dots > 0 {
				text = unstuff(text)
			}
			return text, nil, nil
		}
		// The line under way may yet turn out to be the end, ".CR" so far.
		if int64(c.end-f.dots-2) > limit {
			return c.drain(errTooBig)
		}
		if c.end == len(c.in) {
			factor := 2
			if c.end < freeBytes {
				factor = 4
			}
			if !c.grow(factor * c.end) {
				return c.drain(errNoMemory)
			}
		}
	}
}

// firstBuffer believes the client's SIZE up to a point.
func (c *Conn) firstBuffer() int {
	n := bodyHint
	if size := c.tx.mail.Size; size > 0 {
		n = int(min(size+size/64+64, maxHint))
	}
	return max(n, len(c.in))
}

// grow makes in at least n octets long. It reports false when the memory for
// that is not to be had.
func (c *Conn) grow(n int) bool {
	if n <= len(c.in) {
		return true
	}
	buf := c.srv.bufs.get(n)
	if buf == nil {
		return false
	}
	copy(buf, c.in[:c.end])
	c.srv.bufs.put(c.in)
	c.in = buf
	return true
}

// pace holds a client to the least speed of a message.
type pace struct {
	start time.Time
	got   int64
	reads int
}

func (c *Conn) newPace() pace { return pace{start: c.srv.now()} }

// armPace sets the deadline of the next read within a message. The first one
// keeps whatever the command phase left, if that gives time enough: most
// messages need no second, and setting timers shows in profiles.
func (c *Conn) armPace(p *pace) {
	cfg := &c.srv.cfg
	now := p.start
	if p.reads++; p.reads > 1 {
		now = c.srv.now()
	} else if left := c.deadline.Sub(now); left >= cfg.DataTimeout && left <= 2*cfg.IdleTimeout {
		return
	}
	wait := cfg.DataTimeout
	earned := time.Duration(p.got/int64(cfg.MinDataRate)+1) * time.Second
	if left := p.start.Add(cfg.DataTimeout + earned).Sub(now); left < wait {
		wait = max(left, 0)
	}
	c.armCoarse(now, wait)
}

// fillBody is fill for message text, kept to the pace.
func (c *Conn) fillBody(p *pace) error {
	c.armPace(p)
	if err := c.flush(); err != nil {
		return err
	}
	n, err := c.read(c.in[c.end:])
	c.end += n
	p.got += int64(n)
	return err
}

// drain reads on to the end of a message that is refused already, so that the
// client gets its reply and may go on; but not for more than twice the limit,
// nor for long.
func (c *Conn) drain(e *smtp.SMTPError) ([]byte, *smtp.SMTPError, error) {
	left := max(2*c.srv.cfg.MaxMessageBytes, freeBytes) - int64(c.end)
	c.arm(c.srv.now().Add(c.srv.cfg.DrainTimeout))
	for fresh := c.end == 0; left > 0; fresh = false {
		// What could be the beginning of the end is kept at the front.
		keep := min(c.end, len(dotEnd)-1)
		copy(c.in, c.in[c.end-keep:c.end])
		c.end = keep
		if fresh {
			c.end = copy(c.in, "\r\n") // an empty message has no CRLF of its own
		}
		from := c.end
		if err := c.fill(); err != nil {
			if isTimeout(err) {
				break
			}
			return nil, nil, err
		}
		left -= int64(c.end - from)
		if i := bytes.Index(c.in[:c.end], dotEnd); i >= 0 {
			c.pos = i + len(dotEnd)
			return nil, e, nil
		}
	}
	c.pos, c.end = 0, 0
	c.srv.m.refuse(refusedSize)
	c.sayError(e)
	c.closing, c.linger = true, true
	return nil, nil, nil
}
