package message

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync"
	"time"
)

// ID names one message we accepted, or one event. It is a ULID: 48 bits of
// Unix milliseconds, then 80 random bits, so identifiers sort by time of
// creation and carry no secret.
type ID [16]byte

// crockford is the ULID alphabet: no I, L, O or U.
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// ErrBadID reports text that is not a 26-character ULID.
var ErrBadID = errors.New("message: id is not a 26-character ULID")

// crockfordValue maps a byte to its 5-bit value, 0xFF for bytes outside the
// alphabet. Lower case and the look-alikes I, L and O are read as people mean
// them, as the ULID specification asks of decoders.
var crockfordValue = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xFF
	}
	for i := range len(crockford) {
		c := crockford[i]
		t[c] = byte(i)
		if c >= 'A' {
			t[c+'a'-'A'] = byte(i)
		}
	}
	t['I'], t['i'], t['L'], t['l'] = 1, 1, 1, 1
	t['O'], t['o'] = 0, 0
	return t
}()

// String returns the 26-character ULID form.
func (id ID) String() string { return string(id.Append(make([]byte, 0, 26))) }

// Append appends the 26-character ULID form to dst.
func (id ID) Append(dst []byte) []byte {
	hi := binary.BigEndian.Uint64(id[:8])
	lo := binary.BigEndian.Uint64(id[8:])
	var out [26]byte
	for i := 25; i >= 0; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return append(dst, out[:]...)
}

// ParseID reads the form that String writes. It returns ErrBadID for anything
// else, including values above 128 bits.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 26 || crockfordValue[s[0]] > 7 {
		return id, ErrBadID
	}
	var hi, lo uint64
	for i := range 26 {
		v := crockfordValue[s[i]]
		if v == 0xFF {
			return ID{}, ErrBadID
		}
		hi = hi<<5 | lo>>59
		lo = lo<<5 | uint64(v)
	}
	binary.BigEndian.PutUint64(id[:8], hi)
	binary.BigEndian.PutUint64(id[8:], lo)
	return id, nil
}

// Time is the moment the id was made, to the millisecond.
func (id ID) Time() time.Time {
	ms := binary.BigEndian.Uint64(id[:8]) >> 16
	return time.UnixMilli(int64(ms))
}

// IsZero reports whether id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText makes ids read as ULIDs in JSON and TOML.
func (id ID) MarshalText() ([]byte, error) { return id.Append(nil), nil }

// UnmarshalText is the reverse of MarshalText.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// IDSource makes ids. Within one source they are strictly increasing, even
// when the clock stands still or steps back; the zero value is ready to use.
type IDSource struct {
	mu   sync.Mutex // protects everything below
	last ID
	pool [480]byte // random bytes, so that the kernel is asked once per 48 ids
	left int
}

// New returns the next id for the moment now.
func (s *IDSource) New(now time.Time) ID {
	ms := uint64(now.UnixMilli()) & (1<<48 - 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := binary.BigEndian.Uint64(s.last[:8]) >> 16; ms <= last && !s.last.IsZero() {
		s.last.increment()
		return s.last
	}
	if s.left < 10 {
		rand.Read(s.pool[:]) // never fails: crypto/rand crashes the program instead
		s.left = len(s.pool)
	}
	var id ID
	binary.BigEndian.PutUint64(id[:8], ms<<16)
	copy(id[6:], s.pool[s.left-10:s.left])
	s.left -= 10
	// Leave head room, so that increments within one millisecond cannot
	// overflow into the time.
	id[6] &= 0x7F
	s.last = id
	return id
}

// increment adds one to the random part.
func (id *ID) increment() {
	lo := binary.BigEndian.Uint64(id[8:]) + 1
	binary.BigEndian.PutUint64(id[8:], lo)
	if lo != 0 {
		return
	}
	hi := binary.BigEndian.Uint64(id[:8]) + 1
	binary.BigEndian.PutUint64(id[:8], hi)
}
