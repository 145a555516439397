// Package suppression answers whether an address may be mailed, and if not,
// why.
//
// What it promises: when Add has returned, no later Check lets the address
// through, crash or not (promise P4); what a person asked for themselves, by
// unsubscribing, complaining or demanding erasure, never expires and is lifted
// by nobody but that person; the address itself is stored only where it may
// be, sealed, and the list works without it. A miss costs one look at a filter
// in memory.
//
// What it leaves to others: deciding that a reply or report warrants a
// suppression (bounce), who may call (api), and the journal, which lies in
// another store: see Config.Publish for the order of the two commits.
package suppression

import (
	"errors"
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Reason says why an address is suppressed.
type Reason uint8

// Reasons. The numbers are stored; append, never reorder.
const (
	NoReason Reason = iota
	HardBounce
	SoftBounce // too many temporary failures in a row
	Complaint
	Unsubscribe
	Manual
	Erasure // the person asked to be forgotten
	Import
)

var reasonNames = [...]string{"", "hard-bounce", "soft-bounce", "complaint", "unsubscribe", "manual", "erasure", "import"}

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// ParseReason reads a reason's name.
func ParseReason(s string) (Reason, error) {
	for i, n := range reasonNames {
		if n == s && i > 0 {
			return Reason(i), nil
		}
	}
	return NoReason, fmt.Errorf("suppression: %q is not a reason", s)
}

// MarshalText writes the name.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a name.
func (r *Reason) UnmarshalText(b []byte) (err error) {
	*r, err = ParseReason(string(b))
	return err
}

// Permanent reports whether the reason is the person's own wish: it never
// expires, and neither a tenant nor an operator nor an import lifts it.
func (r Reason) Permanent() bool {
	return r == Complaint || r == Unsubscribe || r == Erasure
}

// strength orders the reasons: of two for one address the stronger one stays.
func (r Reason) strength() int {
	return [...]int{NoReason: 0, SoftBounce: 1, Import: 2, Manual: 3, HardBounce: 4, Unsubscribe: 5, Complaint: 6, Erasure: 7}[r]
}

// Policy says how long the reasons that may expire last, counted from the last
// time they were given. Zero means for ever.
type Policy struct {
	HardBounce time.Duration
	SoftBounce time.Duration
	Manual     time.Duration
	Import     time.Duration

	// An address is suppressed for SoftBounce when SoftCount temporary
	// failures fall into SoftWindow with no delivery in between. Zero counts
	// mean 5 in 14 days; a negative SoftCount means never. At most 50.
	SoftCount  int
	SoftWindow time.Duration
}

const maxSoftCount = 50

func (p Policy) withDefaults() Policy {
	if p.SoftCount == 0 {
		p.SoftCount = 5
	}
	p.SoftCount = min(p.SoftCount, maxSoftCount)
	if p.SoftWindow <= 0 {
		p.SoftWindow = 14 * 24 * time.Hour
	}
	return p
}

// expires is when a suppression given at t ends; the zero time means never.
func (p *Policy) expires(r Reason, t time.Time) time.Time {
	var d time.Duration
	switch r {
	case HardBounce:
		d = p.HardBounce
	case SoftBounce:
		d = p.SoftBounce
	case Manual:
		d = p.Manual
	case Import:
		d = p.Import
	}
	if d <= 0 {
		return time.Time{}
	}
	return t.Add(d)
}

// Entry is one suppression.
type Entry struct {
	// Tenant and Stream (a campaign or list) bound it; an empty tenant means
	// all tenants, an empty stream all mail of the tenant. Neither may hold a
	// NUL, and each is at most 200 bytes.
	Tenant string
	Stream string
	// SID is the keyed hash that stands for the address.
	SID [16]byte
	// Address is zero where it is not kept.
	Address message.Address
	Reason  Reason
	// First and Last are when a reason was given, to the second.
	First, Last time.Time
	// FirstEvent and LastEvent are the ids of the events that are the
	// evidence; zero where there is none.
	FirstEvent, LastEvent message.ID
	// Expires is zero for never.
	Expires time.Time
	// Source says who or what added it ("dsn", "one-click", a key's name), in
	// at most 64 bytes.
	Source string
}

// Actor is in whose name something is removed.
type Actor uint8

// Actors.
const (
	// ByTenant may lift what is not permanent, among the tenant's own rows.
	ByTenant Actor = iota
	// ByOperator may do the same to every row, those of all tenants included.
	ByOperator
	// ByPerson is the addressee, proven by a confirmed opt-in: the only one who
	// may lift what is permanent.
	ByPerson
)

// Errors.
var (
	ErrForbidden = errors.New("suppression: only the person can lift this")
	ErrNotFound  = errors.New("suppression: no such entry")
	ErrBadEntry  = errors.New("suppression: bad entry")
)

const (
	maxScope  = 200
	maxSource = 64
)

func checkScope(tenant, stream string) error {
	for _, s := range [...]string{tenant, stream} {
		if len(s) > maxScope {
			return fmt.Errorf("%w: tenant or stream longer than %d bytes", ErrBadEntry, maxScope)
		}
		for i := range len(s) {
			if s[i] == 0 {
				return fmt.Errorf("%w: NUL in tenant or stream", ErrBadEntry)
			}
		}
	}
	return nil
}
