package dkim

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"math/bits"
)

// ErrLineEnd reports a CR or LF that is not part of a CRLF. Such a message
// must not be signed: whoever repairs it on the way breaks the signature.
var ErrLineEnd = errors.New("dkim: bare CR or LF")

// BodyHash is the SHA-256 of a body in relaxed form (RFC 6376, 3.4.4): the
// value of bh=. Messages that share a body share its hash. The zero value
// means not computed.
type BodyHash [sha256.Size]byte

// HashBody hashes a body, everything after the empty line that ends the
// header. The error is ErrLineEnd or nil.
func HashBody(body []byte) (BodyHash, error) {
	var h BodyHasher
	h.Write(body)
	return h.Sum()
}

// BodyHasher computes a BodyHash in one pass over a body that arrives in
// pieces; where they are cut makes no difference. It holds no part of the
// body. The zero value is ready to use, by one goroutine at a time.
type BodyHasher struct {
	digest hash.Hash

	// Read but not hashed yet, in this order: line ends, which vanish when
	// nothing follows them; white space, which shrinks to one space, or
	// vanishes before a line end; a CR, which waits for its LF.
	ends  int
	space bool
	cr    bool

	some bool // the digest has been given something
	bare bool // a CR or LF stood alone

	// Small pieces are gathered here, for a call of the digest costs more than
	// hashing a word. It comes to whole blocks, which the digest need not keep.
	n   int
	buf [1024]byte
}

// Reset makes h ready for another body.
func (h *BodyHasher) Reset() {
	h.ends, h.space, h.cr, h.some, h.bare, h.n = 0, false, false, false, false, 0
	if h.digest != nil {
		h.digest.Reset()
	}
}

// Write adds the next piece of the body. It never fails.
func (h *BodyHasher) Write(p []byte) (int, error) {
	if h.digest == nil {
		h.digest = sha256.New()
	}
	if h.bare {
		return len(p), nil // nothing but the error can come of it
	}
	i := 0
	if h.cr && len(p) > 0 {
		h.cr = false
		if p[0] != '\n' {
			h.bare = true
			return len(p), nil
		}
		h.ends++
		h.space = false
		i = 1
	}
	for {
		i = h.hold(p, i)
		if i == len(p) || h.bare {
			return len(p), nil
		}
		h.flush()
		i = h.lines(p, i)
	}
}

// lines hashes from the byte of text at i on, and returns where it stopped:
// before line ends and white space that may have to be dropped, at a bare CR or
// LF, or at the end.
//
// Relaxing changes little of most bodies and lengthens none. So p[from:i] is a
// stretch that stays as it is, and goes to the hash in one call.
func (h *BodyHasher) lines(p []byte, i int) int {
	from := i
	for {
		i = text(p, i)
		if i == len(p) || p[i] == '\r' || p[i] == '\n' {
			break
		}
		end := white(p, i)
		if end == len(p) {
			break
		}
		lineEnd := p[end] == '\r' || p[end] == '\n'
		if lineEnd && p[i-1] == '\n' {
			break // a line of white space may be one of the last, like those before it
		}
		switch {
		case lineEnd:
			h.emit(p[from:i])
			from, i = end, end
		case p[i] == ' ':
			h.emit(p[from : i+1])
			from, i = end, end+1
		default:
			h.emit(p[from:i])
			h.emitByte(' ')
			from, i = end, end+1
		}
	}
	for i > from && isWhite(p[i-1]) {
		i--
	}
	h.emit(p[from:i])
	return i
}

// lanes are eight bytes each, to compare eight bytes of text with.
type lanes struct{ top, control, blank uint64 }

const ones = 0x0101010101010101

// ordinary is a variable because the compiler would load constants of this size
// anew for every word it looks at.
var ordinary = lanes{top: ones * 0x80, control: ones*0x20 - 1, blank: ones*0x21 - 1}

// text looks at the bytes of v and, for each, the one that follows it. It sets
// the top bit of all but control bytes and spaces with another space behind
// them. Now and then it leaves out the byte after such a one as well.
//
// That bit of x|(ones*C-1-x) says that x is at least C, except that a borrow
// from the byte below, which is there if that one is less than its C, makes it
// ask for one more. Of two bytes or'ed at most 0x20 is left if both are spaces,
// or one is a control byte and the other no more than a space.
func (l lanes) text(v, next uint64) uint64 {
	next |= v
	return (v | (l.control - v)) & (next | (l.blank - next))
}

// unusual marks the top bit of each of the first eight bytes of p, which has
// nine, that lanes.text leaves out.
func unusual(p []byte) uint64 {
	v, next := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[1:])
	return ^ordinary.text(v, next) & ordinary.top
}

// gather makes eight bits of the top bits of eight bytes, in the same order.
func gather(tops uint64) uint64 { return tops >> 7 * 0x0102040810204080 >> 56 }

// text returns the index from start on of the first byte that relaxed form may
// drop or change, which is white space that is a TAB or has white space or a
// line end after it, or of a CR or LF outside CRLF. If there is none it returns
// len(p), whatever white space p ends with.
//
// REQUIRES: p[start] is text, or a line end whose white space is dropped.
func text(p []byte, start int) int {
	l, q := ordinary, p[start:]
	for ; len(q) >= 17; q = q[16:] {
		v := l.text(binary.LittleEndian.Uint64(q), binary.LittleEndian.Uint64(q[1:]))
		w := l.text(binary.LittleEndian.Uint64(q[8:]), binary.LittleEndian.Uint64(q[9:]))
		if v&w&l.top == l.top {
			continue
		}
		// Most of the time this is the end of a line. The next sixteen bytes
		// do not depend on where it was, so the processor need not wait.
		at := len(p) - len(q)
		for m := gather(^v&l.top) | gather(^w&l.top)<<8; m != 0; {
			k := bits.TrailingZeros64(m) & 15
			c, next := q[k], q[k+1]
			if c == '\r' && next == '\n' && (at+k == start || p[at+k-1] != ' ') {
				m &^= 3 << k
				continue
			}
			if c == ' ' && next == ' ' {
				return at + k
			}
			if i, same := judge(p, start, at+k); !same {
				return i
			}
			m &= m - 1
		}
	}
	for i := len(p) - len(q); i < len(p); i++ {
		if p[i] <= ' ' {
			if i, same := judge(p, start, i); !same {
				return i
			}
		}
	}
	return len(p)
}

// judge reports whether the byte at i stays as it is, and if not, where the
// white space begins that it ends: one space may have passed as text before.
func judge(p []byte, start, i int) (int, bool) {
	switch p[i] {
	case ' ':
		return i, i+1 == len(p) || !isWhite(p[i+1])
	case '\n':
		return i, i > start && p[i-1] == '\r'
	case '\r', '\t':
		if i > start && p[i-1] == ' ' {
			return i - 1, false
		}
		return i, p[i] == '\r' && i+1 < len(p) && p[i+1] == '\n'
	}
	return i, true
}

// white returns the index of the first byte from i on that is neither SP nor
// TAB, or len(p).
func white(p []byte, i int) int {
	const spaces = 0x2020202020202020
	for i+8 <= len(p) { // mostly indentation
		if x := binary.LittleEndian.Uint64(p[i:]) ^ spaces; x != 0 {
			i += bits.TrailingZeros64(x) / 8
			break
		}
		i += 8
	}
	for i < len(p) && (p[i] == ' ' || p[i] == '\t') {
		i++
	}
	return i
}

func isWhite(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// hold reads white space and line ends from i on, up to a byte of text or a
// bare CR or LF, and notes what they come to.
//
// REQUIRES: no CR is pending.
func (h *BodyHasher) hold(p []byte, i int) int {
	for ; i < len(p); i++ {
		switch p[i] {
		case ' ', '\t':
			h.space = true
		case '\r':
			if i+1 == len(p) {
				h.cr = true
				return len(p)
			}
			if p[i+1] != '\n' {
				h.bare = true
				return i
			}
			h.ends++
			h.space = false
			i++
		case '\n':
			h.bare = true
			return i
		default:
			return i
		}
	}
	return i
}

// flush hashes what was held back, because text follows it.
func (h *BodyHasher) flush() {
	for ; h.ends > 0; h.ends-- {
		h.emitByte('\r')
		h.emitByte('\n')
	}
	if h.space {
		h.emitByte(' ')
		h.space = false
	}
}

func (h *BodyHasher) emitByte(c byte) {
	if h.n == len(h.buf) {
		h.drain()
	}
	h.buf[h.n] = c
	h.n++
}

func (h *BodyHasher) emit(p []byte) {
	if len(p) <= len(h.buf)-h.n {
		h.n += copy(h.buf[h.n:], p)
		return
	}
	h.emitLong(p)
}

// emitLong empties the buffer, and passes it by with whole blocks of a long p.
func (h *BodyHasher) emitLong(p []byte) {
	h.some = true
	if len(p) >= len(h.buf) {
		n := copy(h.buf[h.n:], p[:-h.n&(sha256.BlockSize-1)])
		h.n += n
		h.drain()
		p = p[n:]
		n = len(p) &^ (sha256.BlockSize - 1)
		h.digest.Write(p[:n])
		h.n = copy(h.buf[:], p[n:])
		return
	}
	n := copy(h.buf[h.n:], p)
	h.n += n
	h.drain()
	h.n = copy(h.buf[:], p[n:])
}

func (h *BodyHasher) drain() {
	if h.n > 0 {
		h.digest.Write(h.buf[:h.n])
		h.n, h.some = 0, true
	}
}

// Sum returns the hash of everything written. A last line without CRLF counts
// as a line; line ends after the last text, and white space before a line end,
// do not count. An empty body hashes as no bytes at all. The error is
// ErrLineEnd or nil. Call Reset before writing again.
func (h *BodyHasher) Sum() (BodyHash, error) {
	if h.digest == nil {
		h.digest = sha256.New()
	}
	if h.bare || h.cr {
		return BodyHash{}, ErrLineEnd
	}
	if h.some || h.n > 0 {
		h.emitByte('\r')
		h.emitByte('\n')
	}
	h.drain()
	return BodyHash(h.digest.Sum(h.buf[:0])), nil
}
