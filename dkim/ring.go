// Package dkim keeps the signing keys and makes DKIM-Signature fields: message
// bytes and a From domain go in, header fields come out (RFC 6376, 8301, 8463).
//
// It promises that a signature covers exactly the bytes it was given, that no
// field a reader trusts can be added to a signed message, that work grows no
// faster than the message, that a key never signs for a tenant it does not
// belong to, and that no private key is ever printed.
//
// It leaves to others what the bytes are: they must be final, with CRLF lines,
// before they come here. It always signs relaxed/relaxed with SHA-256 and never
// limits the body with l=. It does not verify anyone's mail.
package dkim

import (
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
)

// ErrNoKey is returned by Sign when no key fits the message and unsigned mail
// is not allowed. Someone must add a key; until then the mail has to wait.
var ErrNoKey = errors.New("dkim: no key for this domain")

// DefaultExpiry is how long after t= the tag x= lies when the operator does
// not say: longer than mail is retried, short enough to make replays stale.
const DefaultExpiry = 7 * 24 * time.Hour

// Config is what New makes a Ring from.
type Config struct {
	Keys []KeyConfig
	// Headers are the fields signed when present, Oversign those listed once
	// more than present. Nil means DefaultHeaders and DefaultOversign. From is
	// required in either.
	Headers  []string
	Oversign []string
	// Expiry sets x=, at whole seconds after t=. 0: no x=. See DefaultExpiry.
	Expiry time.Duration
	// Concurrency is how many messages are signed at one time; the others wait
	// in the order they came. Default: GOMAXPROCS.
	Concurrency int
	// AllowUnsigned lets Sign return nothing, instead of ErrNoKey, when no key
	// fits.
	AllowUnsigned bool
	// AllowReadableKeys takes key files that their group or others may read.
	AllowReadableKeys bool
}

// Deps are what a Ring needs from outside. The zero value works.
type Deps struct {
	Open func(name string) (fs.File, error) // default: os.Open
	Now  func() time.Time                   // measures Sign; default: time.Now
	// Log tells of keys that work but should be mended. Default: nobody.
	Log     *slog.Logger
	Metrics prometheus.Registerer // default: none
	// RSA replaces the implementation of RSA signatures. Its signers must make
	// PKCS #1 v1.5 signatures and be safe for concurrent use. Default: the
	// fastest there is, see Backend.
	RSA func(*rsa.PrivateKey) crypto.Signer
}

// Ring is a set of keys, ready to sign. It never changes: to reload, build
// another. All methods are safe for concurrent use.
type Ring struct {
	names         *fieldNames
	keys          []*key
	owners        map[owner][]*key // the first that matches signs
	additional    map[owner][]*key // all that match sign
	expiry        time.Duration
	allowUnsigned bool
	slots         *semaphore.Weighted
	now           func() time.Time
	metrics       *metrics
	scratch       sync.Pool // of *scratch
}

// owner is whose mail a key signs: that of a tenant, or "" for all, and from
// "example.com", ".example.com" for what is below it, or "" for anywhere. In
// this form every owner of a domain is a piece of the domain's own text.
type owner struct{ tenant, suffix string }

// New reads and checks all keys. The error names every problem there is, not
// just the first.
func New(cfg Config, deps Deps) (*Ring, error) {
	if deps.Open == nil {
		deps.Open = func(name string) (fs.File, error) { return os.Open(name) }
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.RSA == nil {
		deps.RSA = accelerator()
	}
	if cfg.Headers == nil {
		cfg.Headers = DefaultHeaders()
	}
	if cfg.Oversign == nil {
		cfg.Oversign = DefaultOversign()
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = runtime.GOMAXPROCS(0)
	}
	r := &Ring{
		owners:        make(map[owner][]*key),
		additional:    make(map[owner][]*key),
		expiry:        cfg.Expiry.Truncate(time.Second),
		allowUnsigned: cfg.AllowUnsigned,
		now:           deps.Now,
	}
	r.scratch.New = func() any { return new(scratch) }
	var errs []error
	if cfg.Concurrency < 0 {
		errs = append(errs, fmt.Errorf("dkim: concurrency %d is negative", cfg.Concurrency))
	}
	if cfg.Expiry < 0 || cfg.Expiry > 0 && r.expiry == 0 {
		errs = append(errs, fmt.Errorf("dkim: expiry %v is neither 0 nor a second or more", cfg.Expiry))
	}
	var err error
	if r.names, err = newFieldNames(cfg.Headers, cfg.Oversign); err != nil {
		errs = append(errs, err)
	}
	published := make(map[string]*key) // by name in DNS
	for i, c := range cfg.Keys {
		k, err := loadKey(c, cfg.AllowReadableKeys, deps.Open, deps.RSA)
		if err == nil {
			err = r.add(k, published)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("dkim: key %d (%s, selector %s): %w", i+1, c.Domain, c.Selector, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	r.slots = semaphore.NewWeighted(int64(cfg.Concurrency))
	r.warnEd25519Only()
	if deps.Log != nil {
		for _, k := range r.keys {
			for _, w := range k.info.Warnings {
				deps.Log.Warn("dkim key needs attention", "domain", k.info.Domain, "selector", k.selector, "tenant", k.info.Tenant, "problem", w)
			}
		}
	}
	r.metrics = newMetrics(deps.Metrics)
	return r, nil
}

// add takes a key in, unless another contradicts it.
func (r *Ring) add(k *key, published map[string]*key) error {
	if name := k.info.RecordName(); name != "" {
		if other := published[name]; other != nil && other.info.Record != k.info.Record {
			return fmt.Errorf("another key uses the same selector: %s can hold only one", name)
		}
		published[name] = k
	}
	o := owner{k.info.Tenant, strings.TrimPrefix(k.info.Domain, "*")}
	m := r.owners
	if k.info.Additional {
		m = r.additional
	}
	for _, other := range m[o] {
		if other.selector == k.selector && other.domain == k.domain {
			return errors.New("configured twice")
		}
	}
	m[o] = append(m[o], k)
	r.keys = append(r.keys, k)
	return nil
}

// warnEd25519Only marks keys that leave most receivers with nothing they can
// verify.
func (r *Ring) warnEd25519Only() {
	for _, group := range r.owners {
		rsaToo := false
		for _, k := range group {
			rsaToo = rsaToo || k.algorithm == RSASHA256
		}
		for _, k := range group {
			if !rsaToo {
				k.info.Warnings = append(k.info.Warnings, "Ed25519 without an RSA key: few receivers verify it")
			}
		}
	}
}

// pick appends the keys that sign for a domain and tenant to dst, and reports
// whether one of them is the message's own and not merely additional.
//
// The order is from the nearest to the farthest: the domain itself, a wildcard
// of its parent, of the parent's parent and so on, and "*" at last; a tenant's
// own key before everybody's at each step.
func (r *Ring) pick(dst []*key, domain, tenant string) (_ []*key, own bool) {
	for suffix := range suffixes(domain) {
		group := r.owners[owner{tenant, suffix}]
		if len(group) == 0 {
			group = r.owners[owner{"", suffix}]
		}
		if len(group) > 0 {
			dst, own = append(dst, group...), true
			break
		}
	}
	if len(r.additional) == 0 {
		return dst, own
	}
	for suffix := range suffixes(domain) {
		dst = append(dst, r.additional[owner{"", suffix}]...)
		if tenant != "" {
			dst = append(dst, r.additional[owner{tenant, suffix}]...)
		}
	}
	return dst, own
}

// suffixes yields "a.b.c", ".b.c", ".c" and "".
func suffixes(domain string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if !yield(domain) {
			return
		}
		for i := 1; i < len(domain); i++ {
			if domain[i] == '.' && !yield(domain[i:]) {
				return
			}
		}
		yield("")
	}
}

// Keys describes all keys in the order of the configuration.
func (r *Ring) Keys() []KeyInfo {
	infos := make([]KeyInfo, len(r.keys))
	for i, k := range r.keys {
		infos[i] = k.info
	}
	return infos
}

// Find describes the keys that sign mail from domain for tenant, in the order
// of their signatures. SigningDomain is filled in for all of them.
func (r *Ring) Find(domain, tenant string) []KeyInfo {
	domain, err := parseDomain(domain)
	if err != nil {
		return nil
	}
	keys, _ := r.pick(nil, domain, tenant)
	var infos []KeyInfo
	for _, k := range keys {
		info := k.info
		info.SigningDomain = k.signingDomain(domain)
		infos = append(infos, info)
	}
	return infos
}

// Expiry is how long a signature made now stays valid; 0 is for ever. A
// message that may still be sent after that needs a new one.
func (r *Ring) Expiry() time.Duration { return r.expiry }

func (k *key) signingDomain(from string) string {
	if k.domain == "" {
		return from
	}
	return k.domain
}
