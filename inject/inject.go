// Package inject is the one door into the MTA. Whatever comes in, over SMTP or
// HTTP, or is made by the MTA itself, passes here once: its header is scanned
// once, its bytes are checked and normalised, control headers are read and
// removed, recipients are checked against suppression, tracking and VERP are
// applied, and the result is handed to the store.
//
// It promises that bytes it accepts are CRLF lines of at most 998 octets
// without NUL, with exactly one From, a Date and a Message-ID; that Accept
// returns only after the commit; and that every refusal is an *Error which
// names the field, for SMTP and HTTP alike. Authentication and the right to
// relay are the callers' business.
package inject

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/message"
)

// Submission is what the Accepter is given; see message.Submission.
type Submission = message.Submission

// ErrBusy and ErrFull are what an Accepter wraps when it cannot take mail now.
var (
	ErrBusy = message.ErrBusy
	ErrFull = message.ErrFull
)

// Accepter makes submissions durable.
type Accepter interface {
	// Accept stores all of subs in one batch and returns after the durable
	// commit. An error means that none of them was accepted; it wraps ErrBusy
	// or ErrFull when trying later may help. It may keep what it was given.
	Accept(ctx context.Context, subs []*Submission) error
}

// Config is what an operator may set. The zero value is usable but for
// Hostname.
type Config struct {
	// Hostname stands in Received fields. Required.
	Hostname string
	// NoReceived leaves out our Received field. Loops can then be noticed
	// only by hosts that do add one. Default: false.
	NoReceived bool
	// HideClient leaves the client's name and address out of our Received
	// field, so that a recipient does not learn where the sender sits.
	// Default: false.
	HideClient bool
	// RefuseSuppressed refuses suppressed recipients instead of accepting and
	// settling them as message.suppressed. Default: false.
	RefuseSuppressed bool

	// Verp is what becomes of the envelope sender where neither the message nor
	// its tenant says. Default: VerpRecipient. Without Deps.ReturnPath it means
	// nothing.
	Verp Verp
	// Unsubscribe says that Deps.Fields adds List-Unsubscribe to bulk mail that
	// has none: each recipient then gets a message of their own, as long as the
	// copies stay below 64 MiB. Default: false.
	Unsubscribe bool

	// MaxSize is the size of a message in octets, as stored. Default: 50 MiB.
	MaxSize int
	// MaxRecipients is the number of recipients of one envelope. Default: 10,000.
	MaxRecipients int
	// MaxReceived is the number of Received fields a message may come with;
	// one with more is taken for looping. Default: 50.
	MaxReceived int
	// MaxAge is how long after it is due a message is tried, unless its tenant
	// says otherwise. Default: 72 h.
	MaxAge time.Duration
	// MaxDelay is how far ahead a message may be scheduled. Default: 30 days.
	MaxDelay time.Duration
}

func (c Config) withDefaults() Config {
	setDefault(&c.MaxSize, 50<<20)
	setDefault(&c.MaxRecipients, 10_000)
	setDefault(&c.MaxReceived, 50)
	setDefault(&c.MaxAge, 72*time.Hour)
	setDefault(&c.MaxDelay, 30*24*time.Hour)
	return c
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Tenant is what the door must know about a tenant.
type Tenant struct {
	// Pool is used when a message asks for none.
	Pool string
	// Pools are the pools and sources the tenant may ask for; empty allows any.
	Pools []string
	// SenderDomains are the domains, with everything below them, that may
	// stand in From and, unless it is null, in the envelope sender; empty allows
	// any.
	SenderDomains []string
	// MaxAge replaces Config.MaxAge when it is not zero.
	MaxAge time.Duration
	// Rewrite asks for Deps.Rewrite on every message that is not of class
	// security. Each recipient then has a message of their own.
	Rewrite bool
	// Verp replaces Config.Verp unless it is VerpUnset.
	Verp Verp
	// Suspended tenants are refused with a temporary error.
	Suspended bool
	// MaxQueued is how many recipients may wait, for whoever stores the mail;
	// 0 means no limit.
	MaxQueued int
}

// Deps are the things outside the package that the door asks. Only IDs is
// required.
type Deps struct {
	IDs *message.IDSource
	// Now defaults to time.Now.
	Now func() time.Time
	// Tenant looks a tenant up. Nil accepts every name with the zero Tenant.
	// An error that wraps ErrBusy is temporary.
	Tenant func(name string) (t Tenant, known bool, err error)
	// Suppressed says whether addr must not be mailed, and why. An error is
	// temporary: mail late is better than mail to one who objected. Nil means
	// that nobody is suppressed.
	Suppressed func(ctx context.Context, tenant, campaign string, addr message.Address) (reason string, hit bool, err error)
	// Rewrite gives the bytes that one recipient shall have: links, pixel,
	// List-Unsubscribe. It must not write to body, and may return it.
	Rewrite func(m *message.Message, r *message.Recipient, t Track, body []byte) ([]byte, error)
	// ReturnPath mints the envelope sender toward r (VERP), or toward all
	// recipients when r is nil; the zero Address keeps the message's own. It is
	// not asked for mail with a null sender.
	ReturnPath func(m *message.Message, r *message.Recipient) message.Address
	// MessageID makes the left side of a Message-ID for mail that came without;
	// r is nil when several recipients share the message. Nil, or "", means the
	// message's id.
	MessageID func(m *message.Message, r *message.Recipient) string
	// Fields makes header fields to add, whole lines with CRLF, for r or, when
	// it is nil, for all recipients. Fields that has names must not be added.
	Fields func(m *message.Message, r *message.Recipient, has Present) []byte
	// Metrics takes the package's metrics; nil means none.
	Metrics prometheus.Registerer
}

// Injector is the door. It is safe for concurrent use.
type Injector struct {
	cfg    Config
	queue  Accepter
	deps   Deps
	metric metrics
	dates  dates
	fronts sync.Pool // *[]byte: our fields of one message on their way in front of it
}

// New makes a door that hands what it accepts to queue.
func New(cfg Config, queue Accepter, deps Deps) (*Injector, error) {
	switch {
	case cfg.Hostname == "":
		return nil, errors.New("inject: hostname is not set")
	case queue == nil:
		return nil, errors.New("inject: no accepter")
	case deps.IDs == nil:
		return nil, errors.New("inject: no source of ids")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	m, err := newMetrics(deps.Metrics)
	if err != nil {
		return nil, err
	}
	i := &Injector{cfg: cfg.withDefaults(), queue: queue, deps: deps, metric: m}
	i.fronts.New = func() any { b := make([]byte, 0, 1<<10); return &b }
	return i, nil
}

// MaxSize is the size limit in force, for SMTP's SIZE.
func (i *Injector) MaxSize() int { return i.cfg.MaxSize }

// MaxRecipients is the recipient limit in force.
func (i *Injector) MaxRecipients() int { return i.cfg.MaxRecipients }
