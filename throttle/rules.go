package throttle

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// DefaultProvider is the name of the rules for destinations that match no
// provider.
const DefaultProvider = "default"

// Origin says where a value or rule was written.
type Origin struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Section string `json:"section,omitempty"` // "default", "provider.gmail", ...
	Key     string `json:"key,omitempty"`     // key, or the name of a reply rule
	Basis   string `json:"basis,omitempty"`   // "published G3 2026-02-15"
}

// String is file:line section.key.
func (o Origin) String() string {
	if o == (Origin{}) {
		return ""
	}
	return fmt.Sprintf("%s:%d %s.%s", o.File, o.Line, o.Section, o.Key)
}

// Value is one setting with the place it came from. Which field counts follows
// from the key.
type Value struct {
	None     bool // explicitly "none": unset what was inherited
	N        int64
	Rates    []Rate
	Bool     bool
	TLS      TLS
	Duration time.Duration
	Name     string
	Origin   Origin

	key Key
}

// grace is how many nanoseconds the first in line may come late: no later than
// does no harm to the rates, and no later than when the next permit is due.
func (v *Value) grace() int64 {
	least := int64(slack)
	for i := range v.Rates {
		least = min(least, lateness(v.Rates[i].Per), v.Rates[i].interval)
	}
	return least
}

// String is the value as it would read in the file.
func (v *Value) String() string {
	if v == nil || v.None {
		return "none"
	}
	switch keyTable[v.key].kind {
	case kindRate:
		s := make([]string, len(v.Rates))
		for i, r := range v.Rates {
			s[i] = r.String()
		}
		return strings.Join(s, ", ")
	case kindBool:
		return fmt.Sprint(v.Bool)
	case kindTLS:
		return v.TLS.String()
	case kindDuration:
		return v.Duration.String()
	case kindName:
		return v.Name
	}
	return fmt.Sprint(v.N)
}

// Effective is every setting in force for one lane and domain; a nil value
// means no limit. It is shared and must not be changed.
type Effective struct {
	val [numKeys]*Value
}

// Value returns the setting of k with its origin, nil if there is none.
func (e *Effective) Value(k Key) *Value {
	if e == nil || k >= numKeys {
		return nil
	}
	return e.val[k]
}

// All calls yield for every key that is set, in the order of the keys.
func (e *Effective) All(yield func(Key, *Value) bool) {
	for k := range numKeys {
		if e.val[k] != nil && !yield(k, e.val[k]) {
			return
		}
	}
}

// Count returns the number set for k and whether there is one.
func (e *Effective) Count(k Key) (int64, bool) {
	if v := e.val[k]; v != nil {
		return v.N, true
	}
	return 0, false
}

// Bool returns the setting of k, or otherwise if it is not set.
func (e *Effective) Bool(k Key, otherwise bool) bool {
	if v := e.val[k]; v != nil {
		return v.Bool
	}
	return otherwise
}

func (e *Effective) duration(k Key, otherwise time.Duration) time.Duration {
	if v := e.val[k]; v != nil {
		return v.Duration
	}
	return otherwise
}

// section is one table of settings with the reply rules that go with it.
type section struct {
	name  string
	val   [numKeys]*Value
	rules []*Rule
}

// Provider is one mailbox provider: how its hosts are recognised, its settings
// and its reply rules.
type Provider struct {
	Name      string
	Origin    Origin
	MXSuffix  []string // ".google.com": the name itself and everything below
	MXHost    []string // exact host names
	Addresses []netip.Prefix
	Domains   []string // recipient domains, where the MX says nothing

	section
	sources map[string]*section
}

// Rules is one loaded set of shaping files. It never changes.
type Rules struct {
	files     []string
	def       section
	defSource map[string]*section
	providers []*Provider // in the order of first mention
	domains   map[string]*section
	warmups   map[string]*warmup
	brakes    []*brake
	refs      map[string]string

	byName   map[string]*Provider
	byHost   map[string]*Provider
	bySuffix map[string]*Provider // with the leading dot
	byDomain map[string]*Provider
	byPrefix []prefixProvider

	// limits caches merged settings; it is bounded by the number of provider,
	// domain and source sections multiplied, of which few ever meet.
	limits sync.Map // limitsKey -> *Effective
}

type prefixProvider struct {
	prefix netip.Prefix
	p      *Provider
}

type limitsKey struct {
	p              *Provider
	domain, source string
}

// index builds the look-up tables.
func (r *Rules) index() {
	r.byName = map[string]*Provider{}
	r.byHost = map[string]*Provider{}
	r.bySuffix = map[string]*Provider{}
	r.byDomain = map[string]*Provider{}
	for _, p := range r.providers {
		r.byName[p.Name] = p
		for _, h := range p.MXHost {
			setFirst(r.byHost, h, p)
		}
		for _, s := range p.MXSuffix {
			setFirst(r.bySuffix, s, p)
		}
		for _, d := range p.Domains {
			setFirst(r.byDomain, d, p)
		}
		for _, a := range p.Addresses {
			r.byPrefix = append(r.byPrefix, prefixProvider{a, p})
		}
	}
	// The narrowest range wins.
	slices.SortStableFunc(r.byPrefix, func(a, b prefixProvider) int {
		return b.prefix.Bits() - a.prefix.Bits()
	})
}

// setFirst keeps the first owner of a key; Check reports the second.
func setFirst(m map[string]*Provider, key string, p *Provider) {
	if _, taken := m[key]; !taken {
		m[key] = p
	}
}

// provider finds who runs a destination: by exact host, then by longest MX
// suffix, of the first host that anyone claims; then by address; then by
// domain. The live MX goes before the domain because domains move between
// providers and their old profile would be wrong.
func (r *Rules) provider(hosts []string, addrs []netip.Addr, domain string) *Provider {
	for _, h := range hosts {
		if p := r.providerOfHost(h); p != nil {
			return p
		}
	}
	for _, a := range addrs {
		for _, pp := range r.byPrefix {
			if pp.prefix.Contains(a.Unmap()) {
				return pp.p
			}
		}
	}
	return r.byDomain[domain]
}

func (r *Rules) providerOfHost(host string) *Provider {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "" {
		return nil
	}
	if p := r.byHost[host]; p != nil {
		return p
	}
	if p := r.bySuffix["."+host]; p != nil {
		return p
	}
	for i := range len(host) {
		if host[i] == '.' {
			if p := r.bySuffix[host[i:]]; p != nil {
				return p
			}
		}
	}
	return nil
}

// Providers returns the names of all providers, in file order.
func (r *Rules) Providers() []string {
	names := make([]string, len(r.providers))
	for i, p := range r.providers {
		names[i] = p.Name
	}
	return names
}

// effective merges default, provider, domain and source, later ones winning
// and each able to unset.
func (r *Rules) effective(p *Provider, domain, source string) *Effective {
	key := limitsKey{p: p}
	if r.domains[domain] != nil {
		key.domain = domain
	}
	if r.defSource[source] != nil || p != nil && p.sources[source] != nil {
		key.source = source
	}
	if e, ok := r.limits.Load(key); ok {
		return e.(*Effective)
	}
	e := &Effective{val: r.def.val}
	if p != nil {
		e.overlay(&p.section)
	}
	e.overlay(r.domains[key.domain])
	e.overlay(r.defSource[key.source])
	if p != nil {
		e.overlay(p.sources[key.source])
	}
	for k, v := range e.val {
		if v != nil && v.None {
			e.val[k] = nil
		}
	}
	actual, _ := r.limits.LoadOrStore(key, e)
	return actual.(*Effective)
}

func (e *Effective) overlay(s *section) {
	if s == nil {
		return
	}
	for k, v := range s.val {
		if v != nil {
			e.val[k] = v
		}
	}
}
