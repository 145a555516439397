package throttle

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options of an Engine.
type Options struct {
	// Now is the clock, used for reloads and for the start of time; permits
	// are given the time by their callers. Default: time.Now.
	Now func() time.Time
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
	// Pools are what Pick chooses from; SetPools changes them.
	Pools []Pool
	// Reserve is called when a warm-up needs volume that is written down before
	// it is used: the caller saves a snapshot that Engine.Reserve has raised, and
	// then calls Engine.Reserved. It must not block, nor call the engine. Nil
	// means that nobody writes anything down, and nothing is waited for.
	Reserve func()
	// MaxKeys bounds, per provider, how many tenants, campaigns, domains and
	// sender domains are counted at once. Beyond it a permit that needs a new
	// counter waits. Default: 65536.
	MaxKeys int
}

// Engine grants permits under a set of rules. It is safe for concurrent use.
type Engine struct {
	opt     Options
	start   time.Time
	base    int64 // start in ns since 1970
	metrics *metrics
	rules   atomic.Pointer[Rules]

	stops stops // operators' and brakes' suspensions
	pick  picker
	brake brakes

	mu     sync.RWMutex // protects everything below
	lanes  map[laneKey]*Lane
	groups map[string]*group // by provider name, or "\x00"+site
	srcs   map[string]*source
	// restored are the rates of lanes that have not come back yet.
	restored map[laneKey][levelLaneRecipients + 1]meter

	mxMu sync.Mutex // protects everything below
	mx   map[netip.Addr]*mxNode
}

// laneKey names a lane.
type laneKey struct{ source, site string }

// source is one of our addresses, shared by its lanes.
type source struct{ name string }

// mxNode counts the connections open to one address of a receiving host.
type mxNode struct {
	busy    int64
	waiting []*Lane
}

// group is everything that shares a provider's limits: its lanes, and the
// counters they have in common. A group never changes its name.
type group struct {
	name string // provider, or DefaultProvider
	site string // the one site of a default group
	m    *providerMetrics

	mu      sync.Mutex // protects everything below
	now     int64      // latest time seen: callers may be late by a few µs
	all     node       // over all sources
	sources []*sourceNode
	shares  map[shareKey]*node
	pruned  int64 // when idle shares were last dropped for want of room
	holds   map[holdKey]*hold
	counts  map[triggerKey]*trigger
	waiting []*Lane
	lanes   int
}

// sourceNode counts one source over all sites of the group.
type sourceNode struct {
	node
	src      *source
	netblock string     // its /24 or /64
	warm     *warmState // nil until a warm-up applies

	// Transactions granted in the running window, which began at begun, and in
	// those of the minute before it, latest first.
	current, begun int64
	before         [int64(time.Minute)/window - 1]int64
}

// shareKey names a counter that is neither lane, source nor provider.
type shareKey struct {
	scope Scope
	key   string
}

// Lane is one source address towards one site: the thing permits are given to.
// Its methods are safe for concurrent use.
type Lane struct {
	e    *Engine
	key  laneKey
	src  *source
	g    atomic.Pointer[group] // changes only under Engine.mu and both groups' mutexes
	refs int                   // guarded by Engine.mu

	notify atomic.Pointer[[]*func(Freed)] // replaced under Engine.mu

	// What the provider was found by, kept for reloads.
	hosts    []string
	addrs    []netip.Addr
	domain   string
	netblock string
	pool     string

	// The group's mutex guards everything below.
	p          *Provider
	eff        *Effective
	rules      *Rules
	sn         *sourceNode
	n          node
	recipients meter
	waiting    Freed    // what it waits for in the group's list of waiting lanes
	plain      bool     // a domain without a section of its own uses the lane
	sections   []string // domains with one that do
	since      int64    // time of the first of a run of refusals, 0: none
	lost       Limit    // the limit of that run
	sending    turn     // in line for a transaction
	connecting turn     // in line for a connection
}

// Target is a destination as seen from one source.
type Target struct {
	Source     string     // name of the source
	SourceAddr netip.Addr // its address; tells the netblock
	Pool       string     // the pool the source was picked from; for events only
	Site       string     // key of the site: the same MX set, the same site
	Hosts      []string   // MX host names, most preferred first
	Addrs      []netip.Addr
	Domain     string // recipient domain, lower-case A-labels
}

// New returns an engine under rules.
func New(rules *Rules, opt Options) *Engine {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.MaxKeys <= 0 {
		opt.MaxKeys = 1 << 16
	}
	e := &Engine{
		opt: opt, start: opt.Now(), metrics: newMetrics(opt.Registerer),
		lanes: map[laneKey]*Lane{}, groups: map[string]*group{},
		srcs: map[string]*source{}, mx: map[netip.Addr]*mxNode{},
	}
	e.base = e.start.UnixNano()
	e.rules.Store(rules)
	e.SetPools(opt.Pools)
	return e
}

// ns is t on the engine's own scale, which keeps to the monotonic clock where
// t has one: a step of the wall clock must neither stop mail nor release a
// burst.
func (e *Engine) ns(t time.Time) int64 {
	// Sub saturates at 292 years; halved, nothing computed from it overflows.
	const far = int64(1) << 61
	return e.base + min(max(int64(t.Sub(e.start)), -far), far)
}

// time is the reverse of ns; zero stays zero.
func (e *Engine) time(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return e.start.Add(time.Duration(ns - e.base))
}

// Lane returns the lane of a target, cached by source and site. Call it for
// every domain that is going to use the lane, and Close when done; counters
// survive until they are idle.
func (e *Engine) Lane(t Target) *Lane {
	key := laneKey{t.Source, t.Site}
	e.mu.Lock()
	l := e.lanes[key]
	if l == nil {
		l = e.newLane(key, t)
	}
	l.refs++
	r := e.rules.Load()
	moved := false
	if l.g.Load().site != "" && r.byDomain[t.Domain] != nil {
		// Nobody claims the hosts, but somebody this domain: the provider's
		// rules hold for all that goes there, whichever domain came first.
		l.domain = strings.Clone(t.Domain)
		p := r.provider(l.hosts, l.addrs, l.domain)
		from, to := l.g.Load(), e.groupOf(p, key.site)
		from.mu.Lock()
		to.mu.Lock()
		l.move(to, p, r, e.ns(e.opt.Now()))
		to.mu.Unlock()
		from.mu.Unlock()
		moved = true
	}
	if len(r.domains) > 0 {
		g := l.g.Load()
		g.mu.Lock()
		l.note(r, t.Domain)
		g.mu.Unlock()
	}
	e.mu.Unlock()
	if moved {
		wake([]notice{{l, FreedAll}})
	}
	return l
}

// newLane makes a lane. REQUIRES: e.mu.
func (e *Engine) newLane(key laneKey, t Target) *Lane {
	src := e.sourceNamed(t.Source)
	r := e.rules.Load()
	key = laneKey{src.name, strings.Clone(key.site)}
	l := &Lane{e: e, key: key, src: src, hosts: slices.Clone(t.Hosts), addrs: slices.Clone(t.Addrs), domain: strings.Clone(t.Domain)}
	l.plain = len(r.domains) == 0
	p := r.provider(t.Hosts, t.Addrs, t.Domain)
	g := e.groupOf(p, key.site)
	g.mu.Lock()
	l.netblock, l.pool = netblock(t.SourceAddr), t.Pool
	l.join(g, p, r)
	if used, ok := e.restored[key]; ok {
		l.n.messages, l.n.connects, l.recipients = used[levelLane], used[levelLaneConnects], used[levelLaneRecipients]
		delete(e.restored, key)
	}
	g.mu.Unlock()
	e.lanes[key] = l
	return l
}

// sourceNamed returns what lanes of one source share. REQUIRES: e.mu.
func (e *Engine) sourceNamed(name string) *source {
	src := e.srcs[name]
	if src == nil {
		src = &source{name: strings.Clone(name)}
		e.srcs[src.name] = src
	}
	return src
}

// netblock is the /24 or /64 around an address: what receivers that rate
// netblocks are taken to mean unless they name one.
func netblock(a netip.Addr) string {
	a = a.Unmap()
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}

// groupOf returns the group of a provider, or that of a site of its own.
// REQUIRES: e.mu.
func (e *Engine) groupOf(p *Provider, site string) *group {
	key, name := "\x00"+site, DefaultProvider
	if p != nil {
		key, name, site = p.Name, p.Name, ""
	}
	g := e.groups[key]
	if g == nil {
		g = &group{name: name, site: site, m: e.metrics.provider(name)}
		e.groups[key] = g
	}
	return g
}

// join makes l a member of g. REQUIRES: e.mu and g.mu.
func (l *Lane) join(g *group, p *Provider, r *Rules) {
	l.p, l.rules = p, r
	l.eff = r.effective(p, "", l.key.source)
	l.sn = g.source(l.src)
	if l.sn.netblock == "" {
		l.sn.netblock = l.netblock
	}
	l.sn.busy += l.n.busy
	g.all.busy += l.n.busy
	g.lanes++
	l.g.Store(g)
}

// source returns the counter of a source. REQUIRES: g.mu. A group has as many
// as there are sources, a few dozen, and only new lanes look.
func (g *group) source(src *source) *sourceNode {
	for _, sn := range g.sources {
		if sn.src == src {
			return sn
		}
	}
	sn := &sourceNode{src: src}
	g.sources = append(g.sources, sn)
	return sn
}

// note remembers which kind of domain uses the lane. REQUIRES: the group's
// mutex.
func (l *Lane) note(r *Rules, domain string) {
	if r.domains[domain] == nil {
		l.plain = true
	} else if !slices.Contains(l.sections, domain) {
		l.sections = append(l.sections, domain)
	}
}

// lock locks the lane's group and returns it with the time not before any time
// seen there.
func (l *Lane) lock(now time.Time) (*group, int64) {
	for {
		g := l.g.Load()
		g.mu.Lock()
		if l.g.Load() == g {
			g.now = max(g.now, l.e.ns(now))
			return g, g.now
		}
		g.mu.Unlock() // a reload moved the lane meanwhile
	}
}

// Close gives a lane back. REQUIRES: one call for each call of Engine.Lane.
func (l *Lane) Close() {
	l.e.mu.Lock()
	l.refs--
	l.e.mu.Unlock()
}

// Provider is the name of the provider the lane leads to, DefaultProvider if
// no rules claim it.
func (l *Lane) Provider() string { return l.g.Load().name }

// Limits returns the settings in force for mail to a domain through the lane.
func (l *Lane) Limits(domain string) *Effective {
	g := l.g.Load()
	g.mu.Lock()
	p, eff, r := l.p, l.eff, l.rules
	g.mu.Unlock()
	if r.domains[domain] == nil {
		return eff
	}
	return r.effective(p, domain, l.key.source)
}

// MaxRecipients is how many recipients one transaction to domain may carry: at
// least 1, and 0 if nothing limits it.
func (l *Lane) MaxRecipients(domain string) int {
	eff := l.Limits(domain)
	n, _ := eff.Count(KeyRecipients)
	if v := eff.val[KeyRecipientRate]; v != nil {
		for _, r := range v.Rates {
			if n == 0 || r.Burst < n {
				n = r.Burst
			}
		}
	}
	return int(n)
}

// TLS is what the rules ask of connections for mail to domain, and where.
func (l *Lane) TLS(domain string) (TLS, *Origin) {
	if v := l.Limits(domain).val[KeyTLS]; v != nil {
		return v.TLS, &v.Origin
	}
	return TLSUnset, nil
}

// Freed says which kinds of permit a lane may ask for again.
type Freed uint8

// Kinds of permit.
const (
	FreedTransaction Freed = 1 << iota // Lane.Send
	FreedConnection                    // Lane.Connect
	FreedAll         = FreedTransaction | FreedConnection
)

// Notify adds a function that is called, without locks held, when a lane whose
// permit was refused without a time may ask again, once per run of refusals, or
// when one that was told a time may ask sooner. It must not block. The lane may
// have several users, such as pools that have the source in common. Stop ends
// it; a call may be under way then.
func (l *Lane) Notify(fn func(Freed)) (stop func()) {
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	l.setNotify(append(l.notified(), &fn))
	return func() {
		l.e.mu.Lock()
		defer l.e.mu.Unlock()
		l.setNotify(slices.DeleteFunc(l.notified(), func(f *func(Freed)) bool { return f == &fn }))
	}
}

// notified returns a copy of the functions to call.
func (l *Lane) notified() []*func(Freed) {
	if list := l.notify.Load(); list != nil {
		return slices.Clone(*list)
	}
	return nil
}

func (l *Lane) setNotify(list []*func(Freed)) { l.notify.Store(&list) }

// Policy is what the rules ask of connections that carry mail for a domain to
// these hosts, before a source is chosen. It changes with a reload.
func (e *Engine) Policy(hosts []string, domain string) TLS {
	r := e.rules.Load()
	if v := r.effective(r.provider(hosts, nil, domain), domain, "").val[KeyTLS]; v != nil {
		return v.TLS
	}
	return TLSUnset
}

// PipelineMessages reports whether mail for domain may be begun behind another
// message.
func (l *Lane) PipelineMessages(domain string) bool {
	return l.Limits(domain).Bool(KeyPipelineMessages, false)
}

// IPv6 reports whether mail for domain may go over IPv6.
func (l *Lane) IPv6(domain string) bool { return l.Limits(domain).Bool(KeyIPv6, true) }

// ProviderOf names the provider that hosts, or failing them a domain, belong to.
func (e *Engine) ProviderOf(hosts []string, domain string) string {
	if p := e.rules.Load().provider(hosts, nil, domain); p != nil {
		return p.Name
	}
	return DefaultProvider
}
