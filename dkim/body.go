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

	some bool // something has been hashed
	bare bool // a CR or LF stood alone

	// Small pieces are gathered here, for a call of the digest costs more than
	// hashing a word.
	n   int
	buf [512]byte
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
	// Relaxing changes little of most bodies, so stretches that stay as they
	// are go to the hash in one call: p[from:i] is such a stretch. step serves
	// the places that cannot be judged from within p.
	i := 0
	for i < len(p) {
		for i < len(p) && h.pending() {
			h.step(p[i])
			i++
		}
		from := i
		for i < len(p) {
			if i = text(p, i); i == len(p) {
				break
			}
			end, ends, space, same := gap(p, i)
			if end < 0 {
				break
			}
			if !same {
				h.emit(p[from:i])
				h.ends, h.space = ends, space
				h.flush()
				from = end
			}
			i = end + 1 // the byte that ended the gap is text
		}
		h.emit(p[from:i])
		if i < len(p) {
			h.step(p[i])
			i++
		}
	}
	return len(p), nil
}

// text returns the index of the next SP, TAB, CR or LF in p from i on, or
// len(p). A single space between two bytes of text counts as text.
func text(p []byte, i int) int {
	const ones = 0x0101010101010101
	for {
		for i+8 <= len(p) {
			// The top bit of each byte that is at most 0x20; borrows can mark
			// bytes above such a byte, never below, and the lowest is taken.
			w := binary.LittleEndian.Uint64(p[i:])
			if m := (w - ones*0x21) &^ w & (ones * 0x80); m != 0 {
				i += bits.TrailingZeros64(m) / 8
				break
			}
			i += 8
		}
		for i < len(p) && p[i] > ' ' {
			i++
		}
		switch {
		case i == len(p):
			return i
		case p[i] == ' ':
			if i+1 == len(p) || p[i+1] <= ' ' {
				return i
			}
			i += 2
		case p[i] == '\t' || p[i] == '\r' || p[i] == '\n':
			return i
		default:
			i++
		}
	}
}

// gap reads white space and line ends from i on, up to a byte of text at end.
// It makes the line ends and the space that relaxed form leaves of them, which
// may be the same as what is there. end is -1 if no text follows in p, or a
// bare CR or LF does.
func gap(p []byte, i int) (end, ends int, space, same bool) {
	start, tab := i, false
	for ; i < len(p); i++ {
		switch p[i] {
		case ' ':
			space = true
			continue
		case '\t':
			space, tab = true, true
			continue
		case '\r':
			if i+1 == len(p) || p[i+1] != '\n' {
				return -1, 0, false, false
			}
			ends++
			space = false
			i++
			continue
		case '\n':
			return -1, 0, false, false
		}
		left := 2 * ends
		if space {
			left++
		}
		return i, ends, space, !tab && left == i-start
	}
	return -1, 0, false, false
}

func (h *BodyHasher) pending() bool { return h.ends > 0 || h.space || h.cr }

// step takes one byte through the rules of RFC 6376, 3.4.4.
func (h *BodyHasher) step(c byte) {
	if h.cr {
		h.cr = false
		if c == '\n' {
			h.space = false
			h.ends++
			return
		}
		h.bare = true
		h.flush()
		h.emitByte('\r')
	}
	switch c {
	case ' ', '\t':
		h.space = true
	case '\r':
		h.cr = true
	case '\n':
		h.bare = true
		fallthrough
	default:
		h.flush()
		h.emitByte(c)
	}
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
	h.some = true
}

func (h *BodyHasher) emit(p []byte) {
	if len(p) == 0 {
		return
	}
	h.some = true
	if len(p) <= len(h.buf)-h.n && len(p) < len(h.buf)/4 {
		h.n += copy(h.buf[h.n:], p)
		return
	}
	h.drain()
	h.digest.Write(p)
}

func (h *BodyHasher) drain() {
	h.digest.Write(h.buf[:h.n])
	h.n = 0
}

// Sum returns the hash of everything written. A last line without CRLF counts
// as a line; line ends after the last text, and white space before a line end,
// do not count. An empty body hashes as no bytes at all. The error is
// ErrLineEnd or nil. Call Reset before writing again.
func (h *BodyHasher) Sum() (BodyHash, error) {
	if h.digest == nil {
		h.digest = sha256.New()
	}
	if h.cr {
		h.cr, h.bare = false, true
		h.flush()
		h.emitByte('\r')
	}
	if h.some {
		h.emitByte('\r')
		h.emitByte('\n')
	}
	h.drain()
	if h.bare {
		return BodyHash{}, ErrLineEnd
	}
	return BodyHash(h.digest.Sum(h.buf[:0])), nil
}
