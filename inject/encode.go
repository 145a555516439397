package inject

import (
	"encoding/base64"
	"encoding/binary"
	"math/bits"
)

// maxEncoded is the length of an encoded line (RFC 2045, 6.7 and 6.8).
const maxEncoded = 76

const hexDigits = "0123456789ABCDEF"

// AppendQuotedPrintable appends text, in CRLF lines, as quoted-printable (RFC
// 2045, 6.7). Line breaks of the text stay line breaks.
func AppendQuotedPrintable(dst, text []byte) []byte { return appendQP(dst, text, true) }

// appendQP encodes line breaks too unless isText is set. One pass, no writer
// in between: it runs for every recipient of a personalised mailing.
func appendQP(dst, src []byte, isText bool) []byte {
	col := 0
	for i := 0; i < len(src); {
		// A run of octets that stand for themselves.
		n := plainRun(src[i:min(len(src), i+max(maxEncoded-1-col, 0))])
		if n > 0 {
			dst = append(dst, src[i:i+n]...)
			col += n
			i += n
			if i == len(src) {
				break
			}
		}
		c := src[i]
		if isText && c == '\r' && i+1 < len(src) && src[i+1] == '\n' {
			dst = hideTrailingSpace(dst, col)
			dst = append(dst, '\r', '\n')
			col = 0
			i += 2
			continue
		}
		width := 3
		if qpPlain[c] {
			width = 1
		}
		if col+width > maxEncoded-1 { // one column is kept for the soft break
			dst = append(dst, "=\r\n"...)
			col = 0
		}
		// A dot alone would be stuffed and "From " quoted by old relays; both
		// are harmless to us, so only what the grammar demands is encoded.
		if width == 1 {
			dst = append(dst, c)
		} else {
			dst = append(dst, '=', hexDigits[c>>4], hexDigits[c&15])
		}
		col += width
		i++
	}
	return hideTrailingSpace(dst, col)
}

// plainRun is how many octets b begins with that stand for themselves.
func plainRun(b []byte) int {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	n := 0
	for n+8 <= len(b) {
		// Eight at a time: octets above 0x7F, below ' ', equal to '=' or to DEL have
		// the high bit in odd, of which the lowest is right: (x - ones) &^ x marks the
		// octets of x that are 0, and some above the first of them.
		w := binary.LittleEndian.Uint64(b[n:])
		equals, del := w^'='*ones, w^0x7F*ones
		odd := (w | (w-' '*ones)&^w | (equals-ones)&^equals | (del-ones)&^del) & high
		if odd == 0 {
			n += 8
			continue
		}
		n += bits.TrailingZeros64(odd) / 8
		if b[n] != '\t' {
			return n
		}
		n++
	}
	for n < len(b) && qpPlain[b[n]] {
		n++
	}
	return n
}

// hideTrailingSpace encodes a space or tab at the end of the line of col
// columns that dst ends with, where relays may remove it.
func hideTrailingSpace(dst []byte, col int) []byte {
	n := len(dst)
	if col == 0 || (dst[n-1] != ' ' && dst[n-1] != '\t') {
		return dst
	}
	c := dst[n-1]
	dst = dst[:n-1]
	if col+2 > maxEncoded {
		dst = append(dst, "=\r\n"...)
	}
	return append(dst, '=', hexDigits[c>>4], hexDigits[c&15])
}

// qpPlain are the octets that stand for themselves: printable ASCII but '=',
// space and tab.
var qpPlain = func() (t [256]bool) {
	for c := ' '; c <= '~'; c++ {
		t[c] = c != '='
	}
	t['\t'] = true
	return t
}()

// AppendBase64 appends data in base64 lines of 76 characters, each with its
// CRLF (RFC 2045, 6.8).
func AppendBase64(dst, data []byte) []byte { return appendBase64(dst, data) }

func appendBase64(dst, src []byte) []byte {
	const octets = maxEncoded / 4 * 3
	for len(src) > octets {
		dst = append(base64.StdEncoding.AppendEncode(dst, src[:octets]), "\r\n"...)
		src = src[octets:]
	}
	if len(src) > 0 {
		dst = append(base64.StdEncoding.AppendEncode(dst, src), "\r\n"...)
	}
	return dst
}
