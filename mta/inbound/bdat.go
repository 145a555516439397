package inbound

import (
	"bytes"

	"github.com/emersion/go-smtp"
)

// maxChunks is the most chunks of one message: at 50 MiB, 12 KiB each.
const maxChunks = 4096

// bdat is BDAT (RFC 3030, 2). The size is read before anything else is judged,
// so that a chunk that is refused can be eaten to the octet; a chunk whose size
// cannot be read ends the connection.
func (c *Conn) bdat(arg []byte) {
	word, rest, _ := bytes.Cut(bytes.TrimRight(arg, " "), []byte{' '})
	size, ok := parseSize(string(word))
	limit := c.srv.cfg.MaxMessageBytes
	if !ok || size > max(2*limit, freeBytes) {
		c.srv.m.refuse(refusedSyntax)
		if ok {
			c.bye(replyTooBigClose)
		} else {
			c.bye(replyChunkSize)
		}
		return
	}
	last := foldEq(string(rest), "LAST")
	tx := c.tx
	switch {
	case len(rest) > 0 && !last:
		c.eat(size, errBadSyntax, refusedSyntax)
	case c.phase != phaseRcpt && c.phase != phaseChunks:
		c.eat(size, errNotNow, refusedSyntax)
	case tx.chunks >= maxChunks:
		c.eat(size, errChunks, refusedSyntax)
	case int64(tx.size)+size > limit:
		c.eat(size, errTooBig, refusedSize)
	default:
		c.chunk(int(size), last)
	}
}

// chunk takes one chunk of a message, and the message with the last.
func (c *Conn) chunk(size int, last bool) {
	tx := c.tx
	if tx.chunks == 0 {
		if e := c.srv.pressure(); e != nil {
			c.eat(int64(size), e, refusedPressure)
			return
		}
	}
	if !c.room(tx.size + size + 2) {
		c.eat(int64(size), errNoMemory, refusedPressure)
		return
	}
	tx.chunks++
	c.setPhase(phaseData)
	pace := c.newPace()
	have := copy(tx.body[tx.size:tx.size+size], c.in[c.pos:c.end])
	c.pos += have
	for have < size {
		c.armPace(&pace)
		if err := c.flush(); err != nil {
			c.brokenMessage(err)
			return
		}
		n, err := c.read(tx.body[tx.size+have : tx.size+size])
		if err != nil {
			c.brokenMessage(err)
			return
		}
		have += n
		pace.got += int64(n)
	}
	tx.size += size
	if !last {
		c.setPhase(phaseChunks)
		c.say(replyChunk)
		return
	}
	text := tx.body[:tx.size]
	// A chunk need not end in CRLF, and what follows it is known by count, so
	// ending the last line changes nobody's idea of where the message ends.
	if n := len(text); n > 0 && text[n-1] != '\n' && text[n-1] != '\r' {
		text = append(text, '\r', '\n') // room has left space
	}
	longest, dots, clean := checkLines(text)
	switch {
	case !clean:
		c.settleMessage(nil, errBareLine)
	case longest > c.srv.cfg.MaxTextLine:
		c.settleMessage(nil, errLongLine)
	default:
		tx.plain = dots == 0 && longest <= plainLine
		c.settleMessage(text, nil)
	}
}

// room makes the transaction's body at least n octets long.
func (c *Conn) room(n int) bool {
	tx := c.tx
	if n <= len(tx.body) {
		return true
	}
	buf := c.srv.bufs.get(max(n, min(2*len(tx.body), 1<<pooledClass), c.firstBuffer()))
	if buf == nil {
		return false
	}
	copy(buf, tx.body[:tx.size])
	c.srv.bufs.put(tx.body)
	tx.body = buf
	return true
}

// eat reads a refused chunk and throws it away, drops the transaction and
// answers e. If the chunk does not come in time, the connection is closed.
func (c *Conn) eat(size int64, e *smtp.SMTPError, why refusal) {
	n := min(size, int64(c.end-c.pos))
	c.pos += int(n)
	size -= n
	if size > 0 {
		c.arm(c.srv.now().Add(c.srv.cfg.DrainTimeout))
	}
	for size > 0 {
		c.pos, c.end = 0, 0
		if err := c.flush(); err != nil {
			c.brokenMessage(err)
			return
		}
		n, err := c.read(c.in[:min(size, int64(len(c.in)))])
		if err != nil {
			c.brokenMessage(err)
			return
		}
		size -= int64(n)
	}
	c.endTransaction()
	if why == refusedSyntax {
		c.protocolError(e)
		return
	}
	c.refused(why, e)
}
