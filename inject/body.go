package inject

import (
	"bytes"
	"encoding/binary"
)

// maxLine is the length of a line without its CRLF (RFC 5322, 2.1.1).
const maxLine = 998

// shape is what the transport must know about a run of lines.
type shape struct {
	eightBit bool // octets above 0x7F
	long     bool // a line above maxLine
}

// measure checks that b holds no NUL and that CR and LF occur in it only as
// CRLF, and reports its shape. Everything here runs on the vectorised searches
// of package bytes: every octet of every message passes.
func measure(b []byte) (shape, *Error) {
	var s shape
	if bytes.IndexByte(b, 0) >= 0 {
		return s, refuse("body", CodeNUL, "the message contains a NUL octet")
	}
	lines, pos := 0, 0
	for {
		n := bytes.IndexByte(b[pos:], '\r')
		if n < 0 {
			break
		}
		if pos+n+1 == len(b) || b[pos+n+1] != '\n' {
			return s, refuse("body", CodeBareNewline, "the message contains a CR without LF")
		}
		s.long = s.long || n > maxLine
		pos += n + 2
		lines++
	}
	// Each CR has its LF; an LF too many stands alone.
	if bytes.Count(b, []byte{'\n'}) != lines {
		return s, refuse("body", CodeBareNewline, "the message contains an LF without CR; lines must end in CRLF")
	}
	s.long = s.long || len(b)-pos > maxLine
	s.eightBit = HasEightBit(b)
	return s, nil
}

// HasEightBit reports whether b holds an octet above 0x7F.
func HasEightBit(b []byte) bool {
	const high = 0x8080808080808080
	for len(b) >= 32 {
		w := binary.LittleEndian.Uint64(b) | binary.LittleEndian.Uint64(b[8:]) |
			binary.LittleEndian.Uint64(b[16:]) | binary.LittleEndian.Uint64(b[24:])
		if w&high != 0 {
			return true
		}
		b = b[32:]
	}
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}
