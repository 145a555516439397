package suppression

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// MinKey is the least length of Config.Key in bytes.
const MinKey = 32

// secrets are the keys derived from the operator's one.
type secrets struct {
	sip  sipKey
	seal cipher.AEAD // random nonces, prepended
	macs sync.Pool   // of hash.Hash: HMAC-SHA256 under the key of sids
}

func newSecrets(key []byte) (*secrets, error) {
	if len(key) < MinKey {
		return nil, fmt.Errorf("suppression: key has %d bytes, want at least %d", len(key), MinKey)
	}
	derive := func(purpose string) ([]byte, error) {
		return hkdf.Key(sha256.New, key, nil, "tradewind suppression "+purpose, 32)
	}
	sid, err := derive("sid")
	if err != nil {
		return nil, err
	}
	sip, err := derive("filter")
	if err != nil {
		return nil, err
	}
	seal, err := derive("seal")
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(seal)
	if err != nil {
		return nil, err
	}
	s := &secrets{sip: sipKey{binary.LittleEndian.Uint64(sip), binary.LittleEndian.Uint64(sip[8:])}}
	if s.seal, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		return nil, err
	}
	s.macs.New = func() any { return hmac.New(sha256.New, sid) }
	return s, nil
}

// appendKey appends Address.Key, without allocating for ordinary addresses.
func appendKey(b []byte, a message.Address) []byte {
	local := a.Local()
	start := len(b)
	for i := range len(local) {
		c := local[i]
		if c >= 0x80 || c == '"' {
			return append(b[:start], a.Key()...)
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	b = append(b, '@')
	return append(b, a.Domain()...)
}

// appendSubject appends what is hashed for an address: tenant, NUL, address.
// With the tenant in it, the rows of two tenants cannot be joined by whoever
// reads the store without the key.
func appendSubject(b []byte, tenant string, a message.Address) []byte {
	return appendKey(append(append(b, tenant...), 0), a)
}

// place hashes an address for the filter. It allocates nothing for ordinary
// addresses: with tenant and a look, this is all that most checks cost.
func (s *secrets) place(a message.Address) uint64 {
	var buf [320]byte
	return s.sip.sum(appendKey(buf[:0], a))
}

// tenant hashes the tenant of a subject.
func (s *secrets) tenant(name string) uint64 {
	var buf [maxScope]byte
	return s.sip.sum(append(buf[:0], name...))
}

func makeSubject(place, tenant uint64) subject { return subject{place, mix(place ^ tenant)} }

// subject is what the filter knows the address by.
func (s *secrets) subject(tenant string, a message.Address) subject {
	return makeSubject(s.place(a), s.tenant(tenant))
}

// mask hides and reveals the place that a row holds, so that the rows of two
// tenants for one address look unrelated without the key.
func (s *secrets) mask(sid []byte) uint64 { return s.sip.sum(sid) }

// sid is the keyed hash that stands for a subject in keys.
func (s *secrets) sid(subject []byte) (sid [16]byte) {
	m := s.macs.Get().(hash.Hash)
	m.Reset()
	m.Write(subject)
	var sum [sha256.Size]byte
	copy(sid[:], m.Sum(sum[:0]))
	s.macs.Put(m)
	return sid
}

// row is an entry as it is stored.
type row struct {
	Entry
	// masked is the place of the address in the filter, from which that is
	// built anew, masked with the sid.
	masked uint64
	// sealed is the address, encrypted and bound to its sid; empty when the
	// address is not kept.
	sealed []byte
}

const (
	rowVersion = 1

	hasFirstEvent = 1 << 0
	hasLastEvent  = 1 << 1
)

var errRow = errors.New("suppression: malformed row")

// encode appends the value of the row: version, reason, flags, masked place,
// first, last and expiry in seconds, the later two as distances from first (an
// expiry of 0 means never), events, source, and the sealed address to the end.
func (r *row) encode(b []byte) []byte {
	var flags byte
	if !r.FirstEvent.IsZero() {
		flags |= hasFirstEvent
	}
	if !r.LastEvent.IsZero() && r.LastEvent != r.FirstEvent {
		flags |= hasLastEvent
	}
	b = append(b, rowVersion, byte(r.Reason), flags)
	b = binary.BigEndian.AppendUint64(b, r.masked)
	first := r.First.Unix()
	b = binary.AppendVarint(b, first)
	b = binary.AppendVarint(b, r.Last.Unix()-first)
	if r.Expires.IsZero() {
		b = append(b, 0)
	} else if d := r.Expires.Unix() - first; d != 0 {
		b = binary.AppendVarint(b, d)
	} else {
		b = binary.AppendVarint(b, -1) // over before it began; 0 is taken
	}
	if flags&hasFirstEvent != 0 {
		b = append(b, r.FirstEvent[:]...)
	}
	if flags&hasLastEvent != 0 {
		b = append(b, r.LastEvent[:]...)
	}
	b = append(b, byte(len(r.Source)))
	b = append(b, r.Source...)
	return append(b, r.sealed...)
}

// decode reads the value v of a row; it keeps nothing of v.
func (r *row) decode(v []byte) error {
	if len(v) < 11 || v[0] != rowVersion {
		return errRow
	}
	r.Reason = Reason(v[1])
	if r.Reason == NoReason || int(r.Reason) >= len(reasonNames) {
		return errRow
	}
	flags := v[2]
	r.masked = binary.BigEndian.Uint64(v[3:])
	v = v[11:]
	var secs [3]int64
	for i := range secs {
		n, size := binary.Varint(v)
		if size <= 0 {
			return errRow
		}
		secs[i], v = n, v[size:]
	}
	r.First = time.Unix(secs[0], 0).UTC()
	r.Last = time.Unix(secs[0]+secs[1], 0).UTC()
	r.Expires = time.Time{}
	if secs[2] != 0 {
		r.Expires = time.Unix(secs[0]+secs[2], 0).UTC()
	}
	r.FirstEvent, r.LastEvent = message.ID{}, message.ID{}
	if flags&hasFirstEvent != 0 {
		if len(v) < 16 {
			return errRow
		}
		r.FirstEvent, v = message.ID(v[:16]), v[16:]
		r.LastEvent = r.FirstEvent
	}
	if flags&hasLastEvent != 0 {
		if len(v) < 16 {
			return errRow
		}
		r.LastEvent, v = message.ID(v[:16]), v[16:]
	}
	// encode leaves out an event that is not there, so none says it is zero.
	if flags&hasFirstEvent != 0 && r.FirstEvent.IsZero() || flags&hasLastEvent != 0 && r.LastEvent.IsZero() {
		return errRow
	}
	if len(v) < 1 || len(v) < 1+int(v[0]) {
		return errRow
	}
	r.Source = string(v[1 : 1+v[0]])
	r.sealed = append([]byte(nil), v[1+v[0]:]...)
	return nil
}

// expired reports whether the row no longer holds at t.
func (r *row) expired(t time.Time) bool {
	return !r.Reason.Permanent() && !r.Expires.IsZero() && !t.Before(r.Expires)
}

func (s *secrets) sealAddress(sid [16]byte, a message.Address) []byte {
	if a.IsZero() {
		return nil
	}
	return s.seal.Seal(nil, nil, a.Append(nil), sid[:])
}

// open unseals the address of r, if it has one.
func (s *secrets) open(r *row) error {
	if len(r.sealed) == 0 {
		return nil
	}
	plain, err := s.seal.Open(nil, nil, r.sealed, r.SID[:])
	if err != nil {
		return fmt.Errorf("suppression: address of %x does not open: is it another key?", r.SID)
	}
	return r.Address.UnmarshalText(plain)
}
