// Package report takes in what comes back after mail was sent: bounces,
// complaints and requests to be left alone, by mail to the bounce domain. It
// decides who may send there, keeps what came until it has been read, and turns
// what can be believed into events.
//
// What it promises: mail is durable before it is acknowledged; a report changes
// something only for the recipient that a sealed token names, never for one
// that its text names; a complaint counts only if whoever reports it proves who
// they are; told twice, a fact is one event. What cannot be believed is counted,
// kept in a bounded quarantine for an operator to look at, and suppresses
// nobody. What waits is bounded, and so is the work for each report.
//
// What it leaves to others: the SMTP dialogue (mta/inbound), reading reports
// (bounce), tokens (token), and the suppression that follows an event: see
// Addition.
//
// # The way of a report
//
// Admit decides at RCPT. Take writes the mail into the spool and returns after
// the commit: parsing may take a tenth of a second for hostile mail and name
// servers may take many, too long for the sender and the fsync to wait for.
// Run then reads in batches, and one commit holds the events, the removal of
// what was read, and what went to quarantine, so that a crash repeats all of it
// or nothing. There are two lanes, one for what needs no name server; a
// complaint moves to the other, where it holds up nobody's bounces.
//
// Lock order: event.Late, then Mailbox.held, both until a batch is visible.
package report

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/suppression"
	"github.com/tradewind-mta/tradewind/token"
)

// Prefixes of our local parts at the bounce domain, before the token. Letters,
// because some hosts think little of addresses that begin with a digit.
const (
	BouncePrefix      = "b"
	UnsubscribePrefix = "u"
)

// Config is what an operator may set.
type Config struct {
	// Domain is the bounce domain, as message.ParseDomain returns it.
	Domain string
	// Feedback are the local parts that take complaints.
	Feedback []string
	// Life is how long after it was due mail may be bounced.
	Life time.Duration
	// Reporters may complain without the signature of their own From domain.
	Reporters Reporters
	// PerCampaign limits what a request to unsubscribe ends to the campaign
	// of the message; otherwise it ends all mail of the tenant.
	PerCampaign bool

	// MaxWaiting bounds the bytes of reports that wait; 0 means 1 GiB.
	MaxWaiting int64
	// MaxHeld and MaxHeldBytes bound the quarantine, MaxHeldAge how long
	// something stays there: 1000, 64 MiB and 28 days where they are 0.
	MaxHeld      int
	MaxHeldBytes int64
	MaxHeldAge   time.Duration
}

// Reporters are trusted to complain: networks by the client's address, domains
// by their signature.
type Reporters struct {
	Networks []netip.Prefix
	Domains  []string // lower-case A-labels; what is below them counts too
}

func (c Config) withDefaults() Config {
	if c.MaxWaiting <= 0 {
		c.MaxWaiting = 1 << 30
	}
	if c.MaxHeld <= 0 {
		c.MaxHeld = 1000
	}
	if c.MaxHeldBytes <= 0 {
		c.MaxHeldBytes = 64 << 20
	}
	if c.MaxHeldAge <= 0 {
		c.MaxHeldAge = 28 * 24 * time.Hour
	}
	return c
}

// Deps are what a Mailbox works with. Metrics and Logger may be nil.
type Deps struct {
	DB      *store.DB // the spool
	Journal *event.Journal
	List    *suppression.List
	// Ring and Rules are asked for each report, so that a reload is felt.
	Ring  func() *token.Ring
	Rules func() *bounce.Classifier
	// TXT looks up the keys of signatures.
	TXT     func(ctx context.Context, name string) ([]string, error)
	Now     func() time.Time // nil means time.Now
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// Mailbox is where reports come to. It is safe for concurrent use.
type Mailbox struct {
	c     Config
	d     Deps
	m     *metrics
	wake  [lanes]chan struct{}
	count atomic.Int64 // reports that wait
	bytes atomic.Int64 // and their size

	held      sync.Mutex // protects everything below, until a batch is visible
	heldCount int
	heldBytes int64
}

const lanes = 2

// New counts what waits and what is held, and reads nothing else.
func New(c Config, d Deps) (*Mailbox, error) {
	if c.Domain == "" || d.DB == nil || d.Journal == nil || d.List == nil || d.Ring == nil {
		return nil, errors.New("report: domain, store, journal, list or keys are missing")
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Mailbox{c: c.withDefaults(), d: d}
	for i := range m.wake {
		m.wake[i] = make(chan struct{}, 1)
	}
	for lane := range byte(lanes) {
		err := sizes(d.DB, store.ReportSpan(lane), func(k []byte) error {
			_, _, size, err := store.ParseReportKey(k)
			m.count.Add(1)
			m.bytes.Add(int64(size))
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	err := sizes(d.DB, store.HeldSpan(), func(k []byte) error {
		_, _, size, err := store.ParseHeldKey(k)
		m.heldCount++
		m.heldBytes += int64(size)
		return err
	})
	if err != nil {
		return nil, err
	}
	m.m = newMetrics(d.Metrics, m)
	return m, nil
}

// sizes walks keys without reading values.
func sizes(db *store.DB, s store.Span, fn func(key []byte) error) error {
	it, err := db.NewIter(s)
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if err := fn(it.Key()); err != nil {
			return err
		}
	}
	return it.Error()
}

// Errors of Admit and Take.
var (
	ErrUnknown = errors.New("report: no such address")
	ErrFull    = errors.New("report: too many reports wait")
)

// purpose is what an address of ours is for.
type purpose uint8

const (
	toNobody purpose = iota
	toBounce
	toFeedback
	toUnsubscribe
)

// Admit reports whether mail to a is taken: it must be a return path or an
// unsubscribe address with a token of ours, or a feedback address. Everything
// else is ErrUnknown, for whatever reason, so that nobody learns from it.
func (m *Mailbox) Admit(a message.Address) error {
	p, c, why := m.open(a)
	if p == toBounce && c.Expired(m.d.Now(), m.c.Life) {
		p, why = toNobody, refusedExpired
	}
	if p == toNobody {
		m.m.refused[why].Inc()
		return ErrUnknown
	}
	return nil
}

// open tells what an address is for, with the claims of its token.
func (m *Mailbox) open(a message.Address) (purpose, *token.Claims, refusal) {
	local := a.Local()
	if a.Domain() != m.c.Domain || local == "" {
		return toNobody, nil, refusedUnknown
	}
	for _, f := range m.c.Feedback {
		if strings.EqualFold(f, local) {
			return toFeedback, nil, 0
		}
	}
	kind, to := token.ReturnPath, toBounce
	switch strings.ToLower(local[:1]) {
	case BouncePrefix:
	case UnsubscribePrefix:
		kind, to = token.UnsubscribeAddress, toUnsubscribe
	default:
		return toNobody, nil, refusedUnknown
	}
	c, err := m.d.Ring().Open(kind, m.c.Domain, local[1:])
	if err != nil {
		return toNobody, nil, refusedToken
	}
	return to, c, 0
}
