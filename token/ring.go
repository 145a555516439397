package token

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"strings"
	"sync"

	"github.com/tradewind-mta/tradewind/message"
)

// SecretLen is the length of a key in octets.
const SecretLen = 32

// MaxKeys is how many keys a ring can hold: the numbers from 0 to 31.
const MaxKeys = 1 << keyBits

// Key is one secret of a ring.
type Key struct {
	// ID is its number, at most 31, which stands in its tokens.
	ID     uint8
	Secret [SecretLen]byte
}

// String keeps the secret out of logs.
func (k Key) String() string { return fmt.Sprintf("token key %d", k.ID) }

// GoString does the same for %#v.
func (k Key) GoString() string { return k.String() }

// Ring seals with its first key and opens with any. It is safe for concurrent
// use and never changes; a rotation makes another ring.
type Ring struct {
	first *ringKey
	byID  [MaxKeys]*ringKey
}

// ringKey is a key with what is derived from it.
type ringKey struct {
	id   uint8
	who  *keyed
	kind [kinds]kindKey
}

type kindKey struct {
	mac   *keyed
	block cipher.Block
}

// keyed is HMAC-SHA256 under one key, with its states kept for the next use.
type keyed struct {
	secret []byte
	pool   sync.Pool // of *state
}

type state struct {
	h   hash.Hash
	sum [sha256.Size]byte
	buf []byte
}

func newKeyed(secret []byte) *keyed {
	k := &keyed{secret: secret}
	k.pool.New = func() any {
		return &state{h: hmac.New(sha256.New, k.secret), buf: make([]byte, 0, 256)}
	}
	return k
}

func (k *keyed) get() *state {
	s := k.pool.Get().(*state)
	s.h.Reset()
	s.buf = s.buf[:0]
	return s
}

// NewRing derives the keys of every kind. The first of list seals.
func NewRing(list ...Key) (*Ring, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("token: a ring needs a key")
	}
	r := &Ring{}
	for i := range list {
		k := &list[i]
		if k.ID >= MaxKeys {
			return nil, fmt.Errorf("token: key number %d is not below %d", k.ID, MaxKeys)
		}
		if r.byID[k.ID] != nil {
			return nil, fmt.Errorf("token: key number %d is there twice", k.ID)
		}
		if k.Secret == [SecretLen]byte{} {
			return nil, fmt.Errorf("token: key number %d is empty", k.ID)
		}
		d, err := derive(k)
		if err != nil {
			return nil, err
		}
		r.byID[k.ID] = d
		if i == 0 {
			r.first = d
		}
	}
	return r, nil
}

func derive(k *Key) (*ringKey, error) {
	expand := func(purpose string, kind Kind, size int) ([]byte, error) {
		info := fmt.Sprintf("tradewind token v%d %s %d", version, purpose, kind)
		out, err := hkdf.Expand(sha256.New, k.Secret[:], info, size)
		if err != nil {
			return nil, fmt.Errorf("token: derive %s: %w", info, err)
		}
		return out, nil
	}
	d := &ringKey{id: k.ID}
	who, err := expand("who", 0, 32)
	if err != nil {
		return nil, err
	}
	d.who = newKeyed(who)
	for kind := Kind(1); kind < kinds; kind++ {
		mac, err := expand("mac", kind, 32)
		if err != nil {
			return nil, err
		}
		enc, err := expand("enc", kind, 32)
		if err != nil {
			return nil, err
		}
		block, err := aes.NewCipher(enc)
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		d.kind[kind] = kindKey{newKeyed(mac), block}
	}
	return d, nil
}

// Seal makes the token of c as kind for host: the domain its address or link
// stands at. It fails only for claims beyond what a token can hold.
func (r *Ring) Seal(kind Kind, host string, c *Claims) (string, error) {
	k := r.first
	s := k.kind[kind].mac.get()
	defer k.kind[kind].mac.pool.Put(s)
	who := k.whose(c.Tenant, c.Address, c.All)
	s.buf = appendHost(s.buf, host)
	head := len(s.buf)
	var err error
	if s.buf, err = appendClaims(s.buf, kind, c, who[:]); err != nil {
		return "", err
	}
	s.h.Write(s.buf)
	var out [256]byte
	b := append(out[:0], version<<keyBits|k.id)
	b = append(b, s.h.Sum(s.sum[:0])[:tagLen]...)
	at := len(b)
	b = append(b, s.buf[head:]...)
	crypt(k.kind[kind].block, b[1:headLen], b[at:])
	return write(kind, b), nil
}

// Open returns what a token of this kind for this host says, or ErrBad.
func (r *Ring) Open(kind Kind, host, text string) (*Claims, error) {
	b, ok := read(kind, text)
	if !ok || len(b) < headLen+fixedLen+1 || b[0]>>keyBits != version {
		return nil, ErrBad
	}
	k := r.byID[b[0]&(1<<keyBits-1)]
	if k == nil {
		return nil, ErrBad
	}
	crypt(k.kind[kind].block, b[1:headLen], b[headLen:])
	s := k.kind[kind].mac.get()
	defer k.kind[kind].mac.pool.Put(s)
	s.buf = append(appendHost(s.buf, host), b[headLen:]...)
	s.h.Write(s.buf)
	// Nothing in the claims is looked at before the tag has been found right.
	if !hmac.Equal(s.h.Sum(s.sum[:0])[:tagLen], b[1:headLen]) {
		return nil, ErrBad
	}
	c, ok := parseClaims(b[headLen:], kind)
	if !ok {
		return nil, ErrBad
	}
	c.key = k.id
	return c, nil
}

// Confirms reports whether the token that c was opened from was made for this
// recipient of this tenant. It is for short kinds, whose claims do not name
// them, and holds for the others as well.
func (r *Ring) Confirms(c *Claims, tenant string, a message.Address) bool {
	k := r.byID[c.key]
	if k == nil {
		return false
	}
	who := k.whose(tenant, a, c.All)
	return hmac.Equal(who[:], c.who[:])
}

// whose is the keyed hash of a tenant and, unless all are meant, an address.
func (k *ringKey) whose(tenant string, a message.Address, all bool) (out [whoLen]byte) {
	s := k.who.get()
	defer k.who.pool.Put(s)
	s.buf = appendHost(s.buf, tenant)
	if !all {
		s.buf = append(s.buf, strings.ToLower(a.Local())...)
		s.buf = append(append(s.buf, '@'), a.Domain()...)
	}
	s.h.Write(s.buf)
	copy(out[:], s.h.Sum(s.sum[:0]))
	return out
}

// appendHost appends a string so that what follows cannot be taken for a part
// of it. Host names are compared without case, as DNS does.
func appendHost(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

// crypt encrypts or decrypts b in place: AES in counter mode, with iv as the
// upper 96 bits of the counter. Two blocks are the usual length, for which the
// standard library's stream costs more to set up than to run.
func crypt(block cipher.Block, iv, b []byte) {
	var counter, pad [aes.BlockSize]byte
	copy(counter[:], iv)
	for n := uint32(0); len(b) > 0; n++ {
		binary.BigEndian.PutUint32(counter[tagLen:], n)
		block.Encrypt(pad[:], counter[:])
		i := min(len(b), aes.BlockSize)
		for j := range i {
			b[j] ^= pad[j]
		}
		b = b[i:]
	}
}
