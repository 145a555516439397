package outbound

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Bounds of a reply. RFC 5321, 4.5.3.1.5 asks for 512 octets a line; we read
// four times that and keep what the RFC promises.
const (
	maxLine  = 2 << 10  // octets of a line, its end included
	maxKept  = 512      // octets kept of a line's text
	maxLines = 128      // lines of one reply
	maxReply = 16 << 10 // octets of one reply, as received
)

// reply is what the server said, in memory that the next read reuses.
type reply struct {
	code     int
	enhanced message.Enhanced
	text     []byte // without codes; lines joined by '\n'
}

// replyParser gathers the lines of one reply.
type replyParser struct {
	reply
	lines, octets int
}

// add takes one line without its line end and reports whether it was the
// reply's last. The grammar is that of RFC 5321, 4.2: three digits from 200 to
// 599, then a space or a hyphen or nothing, the same code on every line. An
// error says what was wrong; the reply is then worth nothing.
func (p *replyParser) add(line []byte) (last bool, err error) {
	p.lines++
	p.octets += len(line) + 2
	if p.lines > maxLines {
		return false, fmt.Errorf("reply of more than %d lines", maxLines)
	}
	if p.octets > maxReply {
		return false, fmt.Errorf("reply of more than %d octets", maxReply)
	}
	if len(line) < 3 || !digit(line[0]) || !digit(line[1]) || !digit(line[2]) {
		return false, fmt.Errorf("%q is not a reply", clip(line, 64))
	}
	code := int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if code < 200 || code > 599 {
		return false, fmt.Errorf("reply code %d", code)
	}
	if p.lines == 1 {
		p.code = code
	} else if code != p.code {
		return false, fmt.Errorf("reply code changes from %d to %d", p.code, code)
	}
	rest := line[3:]
	last = true
	if len(rest) > 0 {
		switch rest[0] {
		case ' ':
		case '-':
			last = false
		default:
			return false, fmt.Errorf("%q is not a reply", clip(line, 64))
		}
		rest = rest[1:]
	}
	// A CR here would be a line end to some reader down the road, a NUL the
	// end of the text. Other controls stay: whoever shows them escapes them.
	if bytes.IndexByte(rest, '\r') >= 0 || bytes.IndexByte(rest, 0) >= 0 {
		return false, fmt.Errorf("control character in reply %q", clip(line, 64))
	}
	if p.lines > 1 {
		p.text = append(p.text, '\n')
	}
	if len(rest) >= 5 && rest[1] == '.' && (rest[0] == '2' || rest[0] == '4' || rest[0] == '5') {
		head := string(clip(rest, 12)) // the longest code and what ends it
		if e, after, ok := message.ParseEnhanced(head); ok {
			p.enhanced = e
			rest = rest[len(head)-len(after):]
		}
	}
	p.text = append(p.text, clip(rest, maxKept)...)
	return last, nil
}

func digit(b byte) bool { return '0' <= b && b <= '9' }

func clip(b []byte, n int) []byte {
	if len(b) > n {
		return b[:n]
	}
	return b
}

// read reads one reply within limit. A failure is ours to report and leaves the
// conversation in a state nobody knows: the caller gives it up.
//
// The clock is set once, when the reply is not there yet: replies that came
// together cost one timer, and a drip does not extend anything.
func (c *Conn) read(stage message.Stage, limit time.Duration) (reply, *message.Reply) {
	var p replyParser
	p.text = c.buf.text[:0]
	armed := limit <= 0 // sendWatched minds the clock itself
	for {
		line, err := c.line(limit, &armed)
		if err != nil {
			var bad protocolError
			if errors.As(err, &bad) {
				return reply{}, c.local(stage, status450, "protocol error: "+string(bad))
			}
			return reply{}, c.lost(stage, err, "waiting for the reply")
		}
		if c.traced() {
			c.opts.Trace('<', line)
		}
		last, err := p.add(line)
		if err != nil {
			return reply{}, c.local(stage, status450, "protocol error: "+err.Error())
		}
		c.buf.text = p.text
		if last {
			return p.reply, nil
		}
	}
}

type protocolError string

func (e protocolError) Error() string { return string(e) }

// line returns the next line without its end. CRLF ends a line; so does a bare
// LF, which some servers send and which no other reading of a reply could take
// for anything else.
func (c *Conn) line(limit time.Duration, armed *bool) ([]byte, error) {
	b := c.buf.read[:]
	scanned := c.r
	for {
		if i := bytes.IndexByte(b[scanned:c.w], '\n'); i >= 0 {
			end := scanned + i
			line := b[c.r:end]
			if len(line) >= maxLine {
				return nil, protocolError(fmt.Sprintf("reply line of more than %d octets", maxLine))
			}
			c.r = end + 1
			if n := len(line); n > 0 && line[n-1] == '\r' {
				line = line[:n-1]
			}
			return line, nil
		}
		if c.w-c.r >= maxLine {
			return nil, protocolError(fmt.Sprintf("reply line of more than %d octets", maxLine))
		}
		if c.r > 0 {
			c.w = copy(b, b[c.r:c.w])
			c.r = 0
		}
		scanned = c.w
		if !*armed {
			*armed = true
			until := time.Now().Add(limit)
			if !c.latest.IsZero() && c.latest.Before(until) {
				until = c.latest
			}
			c.raw.SetReadDeadline(until)
		}
		n, err := c.nc.Read(b[c.w:])
		c.w += n
		if n == 0 && err != nil {
			return nil, err
		}
	}
}
