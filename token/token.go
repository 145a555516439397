// Package token seals what we must recognise when it comes back into text that
// nobody else can read, make or use for another purpose: the local part of a
// return path, a Message-ID, the id in a feedback header, an unsubscribe
// address or link, the pixel and the links of a tracked message.
//
// What it promises: a token opens only as the Kind and for the host it was
// made for, whole and unchanged; it shows neither tenant nor recipient to
// whoever lacks the key; the same claims give the same token, so that nothing
// has to be stored and a crash repeats nothing. Keys form a Ring: the first one
// seals, all of them open, so that mail sent before a rotation keeps working.
//
// What it leaves to others: how old a token may be (Claims.Sent tells), whether
// the message it names ever existed, and the file that keys lie in.
//
// # The construction
//
// Synthetic IV: the first 96 bits of HMAC-SHA256 over host and claims are both
// the tag and the nonce of AES-256 in counter mode, under separate keys that
// HKDF derives for each kind. A counter or a random nonce could repeat after a
// crash or a restored backup; a synthetic one repeats only for equal claims,
// where the token is equal as well. To open is to decrypt, compute the tag anew
// and compare in constant time. Forging one is a guess of 96 bits.
//
//	version and key (1) | tag (12) | encrypted claims
//
// Return paths, Message-IDs and addresses are written in lower-case base32 and
// opened in any case, because mail hosts change it; the rest in base64url.
package token

import (
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Kind is what a token is for. Each has keys of its own.
type Kind uint8

// The kinds. The numbers are part of the keys; append, never reorder.
const (
	// ReturnPath is the local part of an envelope sender, at most 63 octets, so
	// that a prefix of one still fits (RFC 5321, 4.5.3.1.1).
	ReturnPath Kind = iota + 1
	// MessageID is the left side of a Message-ID of ours.
	MessageID
	// FeedbackID stands in Feedback-ID and CFBL-Feedback-ID.
	FeedbackID
	// ReportRef is the header field that complaints are matched by.
	ReportRef
	// UnsubscribeAddress is the local part of a List-Unsubscribe address, as
	// short as a return path.
	UnsubscribeAddress
	// Unsubscribe stands in a List-Unsubscribe link, or in the subject of mail
	// to an UnsubscribeAddress, and works without the journal.
	Unsubscribe
	Open
	Click
	kinds
)

// short kinds leave out what can be looked up by the message.
func (k Kind) short() bool { return k <= FeedbackID || k == UnsubscribeAddress }

// folded kinds must survive a change of case.
func (k Kind) folded() bool { return k.short() }

// Claims is what a token says.
type Claims struct {
	Message message.ID
	// N is the recipient's number in the message. With All set the token speaks
	// of the message and of no recipient; N is 0 then.
	N   uint32
	All bool
	// Sent is the day the message was due, in UTC.
	Sent time.Time

	// Tenant and Address say whose recipient it is. Short kinds carry a hash of
	// the two alone: Open leaves them empty, and Ring.Confirms compares.
	Tenant  string
	Address message.Address
	// Campaign, and Extra (the destination of a click), are not in short kinds.
	Campaign string
	Extra    string

	who [whoLen]byte
	key uint8 // of the ring, that opened it
}

// Expired reports whether a token made for mail sent at c.Sent is older than
// life at now, to the day in the sender's favour.
func (c *Claims) Expired(now time.Time, life time.Duration) bool {
	return now.After(c.Sent.Add(24*time.Hour + life))
}

// Errors. ErrBad says no more than that, on purpose.
var (
	ErrBad      = errors.New("token: not one of ours")
	ErrTooLarge = errors.New("token: a claim is too large")
)

const (
	version  = 0 // the upper three bits of the first octet; the key's number is below
	keyBits  = 5
	tagLen   = 12
	whoLen   = 5 // tells two recipients of one message apart; the tag is the proof
	headLen  = 1 + tagLen
	fixedLen = 16 + 2 + whoLen
	maxShort = 39 // octets that base32 writes in 63 characters
	// maxN is the number of recipients a short token can name: three octets.
	maxN = 1<<21 - 2
	// maxClaim bounds a string in a token, maxText a token.
	maxClaim = 2 << 10
	maxText  = 8 << 10
)

// appendClaims encodes c for a kind. The encoding is the only one for c, and
// Open refuses any other.
func appendClaims(b []byte, k Kind, c *Claims, who []byte) ([]byte, error) {
	days := c.Sent.Unix() / 86400
	if days < 0 || days > math.MaxUint16 {
		return nil, ErrTooLarge
	}
	b = append(b, c.Message[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(days))
	b = append(b, who...)
	n := uint64(0)
	if !c.All {
		n = uint64(c.N) + 1
	}
	b = binary.AppendUvarint(b, n)
	if k.short() {
		if n > maxN+1 {
			return nil, ErrTooLarge
		}
		return b, nil
	}
	address := ""
	if !c.Address.IsZero() {
		address = c.Address.String()
	}
	for _, s := range [...]string{c.Tenant, c.Campaign, address, c.Extra} {
		if len(s) > maxClaim {
			return nil, ErrTooLarge
		}
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b, nil
}

// parseClaims is the reverse of appendClaims.
func parseClaims(b []byte, k Kind) (*Claims, bool) {
	if len(b) < fixedLen+1 {
		return nil, false
	}
	c := &Claims{Message: message.ID(b[:16])}
	c.Sent = time.Unix(int64(binary.BigEndian.Uint16(b[16:]))*86400, 0).UTC()
	copy(c.who[:], b[18:])
	n, b, ok := uvarint(b[fixedLen:])
	switch {
	case !ok || n > math.MaxUint32:
		return nil, false
	case n == 0:
		c.All = true
	default:
		c.N = uint32(n - 1)
	}
	if k.short() {
		return c, len(b) == 0
	}
	var address string
	for _, s := range [...]*string{&c.Tenant, &c.Campaign, &address, &c.Extra} {
		var size uint64
		if size, b, ok = uvarint(b); !ok || size > uint64(len(b)) {
			return nil, false
		}
		*s, b = string(b[:size]), b[size:]
	}
	if address != "" {
		a, err := message.ParseAddress(address)
		if err != nil {
			return nil, false
		}
		c.Address = a
	}
	return c, len(b) == 0
}

// uvarint takes a number off b.
func uvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, false
	}
	return v, b[n:], true
}

var (
	fold = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
	url  = base64.RawURLEncoding.Strict()
)

// write turns the octets of a token into text.
func write(k Kind, b []byte) string {
	if k.folded() {
		return fold.EncodeToString(b)
	}
	return url.EncodeToString(b)
}

// read is the reverse of write. Text that write would not have written, but for
// its case, is refused: one token has one spelling.
func read(k Kind, text string) ([]byte, bool) {
	if len(text) > maxText || k.short() && len(text) > 63 {
		return nil, false
	}
	if !k.folded() {
		// The decoder passes over line ends.
		b, err := url.DecodeString(text)
		return b, err == nil && len(text) == url.EncodedLen(len(b))
	}
	var buf [64]byte
	low := buf[:len(text)]
	for i := range len(text) {
		c := text[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		low[i] = c
	}
	b := make([]byte, fold.DecodedLen(len(low)))
	n, err := fold.Decode(b, low)
	if err != nil {
		return nil, false
	}
	var again [64]byte
	if size := fold.EncodedLen(n); size != len(low) {
		return nil, false
	}
	fold.Encode(again[:], b[:n])
	return b[:n], string(again[:len(low)]) == string(low)
}
