package inbound

import "bytes"

// framing follows the lines of a DATA body as it arrives. Each octet is looked
// at once, by bulk search for LF; what a line is made of is decided only by
// CRLF (RFC 5321, 2.3.8), so a line here may hold bare CRs and LFs, and
// "CRLF . CRLF" alone ends the message (4.1.1.4).
type framing struct {
	line    int // where the line under way begins: behind the last CRLF
	scan    int // up to here LF has been searched for
	lines   int // complete lines
	dots    int // of them, dot-stuffed
	longest int // octets, less CRLF and stuffing
	bare    bool
}

// feed looks at body, which is what it was given before and then some. When
// the end of the message is in it, feed returns the offset behind it; the text
// is then body[:f.line], still stuffed.
func (f *framing) feed(body []byte) (end int, done bool) {
	for {
		i := bytes.IndexByte(body[f.scan:], '\n')
		if i < 0 {
			f.scan = len(body)
			return 0, false
		}
		i += f.scan
		f.scan = i + 1
		if i == f.line || body[i-1] != '\r' {
			f.bare = true
			continue
		}
		n := i - 1 - f.line
		if n > 0 && body[f.line] == '.' {
			if n == 1 {
				return i + 1, true
			}
			f.dots++
			n--
		}
		f.longest = max(f.longest, n)
		f.lines++
		f.line = i + 1
	}
}

// clean reports that text, the complete lines of a message, holds no bare CR,
// bare LF or NUL: every LF ended a line, and there are as many CRs.
func (f *framing) clean(text []byte) bool {
	return !f.bare && bytes.Count(text, crByte) == f.lines && bytes.IndexByte(text, 0) < 0
}

var (
	crByte  = []byte{'\r'}
	crlfDot = []byte("\r\n.")
	dotEnd  = []byte("\r\n.\r\n")
)

// unstuff removes the dot that begins a stuffed line, in place (RFC 5321,
// 4.5.2). REQUIRES: text is clean and whole lines.
func unstuff(text []byte) []byte {
	r, w := 0, 0
	if len(text) > 0 && text[0] == '.' {
		r = 1
	}
	for {
		i := bytes.Index(text[r:], crlfDot)
		if i < 0 {
			w += copy(text[w:], text[r:])
			return text[:w]
		}
		w += copy(text[w:], text[r:r+i+2])
		r += i + 3
	}
}

// plainLine is the longest line that can be sent, in octets without its CRLF
// (RFC 5322, 2.1.1).
const plainLine = 998

// checkLines looks at a message that came without dot-stuffing, in chunks: the
// longest line, how many begin with a dot, and whether it is clean.
func checkLines(text []byte) (longest, dots int, clean bool) {
	lines := 0
	for rest := text; len(rest) > 0; lines++ {
		i := bytes.IndexByte(rest, '\n')
		if i < 1 || rest[i-1] != '\r' {
			return longest, dots, false
		}
		if rest[0] == '.' {
			dots++
		}
		longest = max(longest, i-1)
		rest = rest[i+1:]
	}
	return longest, dots, bytes.Count(text, crByte) == lines && bytes.IndexByte(text, 0) < 0
}
