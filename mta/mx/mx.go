// Package mx answers where mail for a domain goes: which hosts, in which
// order, at which addresses, and under which site name the destination is
// throttled. It owns the DNS client and its cache; nothing above it sees a DNS
// message.
//
// It promises:
//
//   - Only a definite answer fails mail. NXDOMAIN seen twice, a null MX, and
//     hosts that definitely have no address are permanent; SERVFAIL, time-outs,
//     refusals, mismatched and malformed answers are temporary, always.
//   - The implicit MX (the domain's own address, RFC 5321, 5.1) is used only
//     after a definite "no MX here", never after a failure.
//   - Nothing a name server says is unbounded or trusted: records count only
//     under the name asked for or its CNAME chain, and at most 100 records, 8
//     CNAMEs, 20 hosts, 5 addresses a host and 30 s in all are spent.
//   - Addresses that mail must never be sent to (loopback, private, our own,
//     see Check) are left out after resolution, and Control refuses them again
//     at the moment of dialling.
//   - One lookup per name is in flight, however many ask, and it ends by its
//     own time limit, whatever its askers do.
//
// It leaves to others: explicit routes, which replace the lookup, the TCP
// connection, and the roll-up of several sites into one provider, which rules
// about MX suffixes do.
//
// One mutex guards cache and flights and is never held during I/O; each
// server's health has its own, never taken together with the first.
package mx

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Bounds on what one answer may make us do.
const (
	maxRecords = 100 // of one answer section; the rest is not looked at
	maxCNAMEs  = 8
	maxName    = 253 // octets without final dot; RFC 1035, 2.3.4 less the framing
	maxHosts   = 20
	maxAddrs   = 5 // of one host, handed to a caller
	otherAddrs = 2 // of those, kept for the family that is not preferred
)

// Family says which IP versions are used, and which is tried first.
type Family string

// Families. The empty Family is Prefer4.
const (
	Prefer4 Family = "prefer4"
	Prefer6 Family = "prefer6"
	Only4   Family = "only4"
	Only6   Family = "only6"
)

// Config is what an operator may set. The zero value of a field is its default.
type Config struct {
	// Servers are the recursive resolvers in order of preference, "192.0.2.53",
	// "192.0.2.53:5353" or "[2001:db8::53]:53". Empty means those of ResolvConf.
	Servers []string
	// ResolvConf is the file read once, by New, when Servers is empty:
	// "/etc/resolv.conf" unless set. A file that names no server means the
	// local host.
	ResolvConf string
	Timeout    time.Duration // of one try at one server; 5 s
	Total      time.Duration // of a whole resolution, CNAMEs and retries included; 30 s, and not more
	Retries    int           // further rounds over the servers after time-outs; 2
	Lookups    int           // queries on the wire at one time; 256

	CacheEntries int           // answers remembered, least recently used go first; 50,000
	MinTTL       time.Duration // shorter lives are raised to it; 5 s
	MaxTTL       time.Duration // longer ones are cut to it; 1 h
	NegativeTTL  time.Duration // longest life of "there is none"; 60 s
	ServFailTTL  time.Duration // after a failure, no new try for this long; 30 s
	StaleTTL     time.Duration // an expired answer serves this much longer while DNS fails; 1 h

	Family Family
	// AllowNets are networks that may be mailed to although Check would refuse
	// them. Own addresses stay refused.
	AllowNets []netip.Prefix
	// OwnAddrs returns the addresses we listen on; sending there would loop. It
	// is called often and must be quick and safe for concurrent use. Nil means
	// none.
	OwnAddrs func() []netip.Addr
}

// Deps are the outside world. The zero value is the real one.
type Deps struct {
	// Exchange sends one query over network, "udp" or "tcp", and returns the
	// answer, unchecked. It must return when ctx ends. Nil means sockets.
	Exchange func(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error)
	Now      func() time.Time // time.Now
	// Rand returns a number in [0, n), and is safe for concurrent use. It
	// orders hosts of equal preference and the addresses of a host.
	Rand       func(n int) int       // math/rand/v2.IntN
	Registerer prometheus.Registerer // nil: no metrics
	Logger     *slog.Logger          // nil: silent
}

// Resolver looks up routes. It is safe for concurrent use.
type Resolver struct {
	cfg      Config
	exchange func(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error)
	now      func() time.Time
	rand     func(n int) int
	log      *slog.Logger
	metrics  *metrics
	servers  []*server
	slots    chan struct{} // one token per query on the wire; capacity Lookups

	base   context.Context // parent of every lookup; ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // lookups running

	mu      sync.Mutex // protects everything below
	cache   cache
	flights map[key]*flight
	closed  bool
}

// New returns a Resolver. It reads the system's resolver configuration when
// cfg names no server, and sends nothing. An error means cfg cannot be used.
// Close the Resolver when done.
func New(cfg Config, deps Deps) (*Resolver, error) {
	cfg = cfg.withDefaults()
	switch cfg.Family {
	case Prefer4, Prefer6, Only4, Only6:
	default:
		return nil, fmt.Errorf("mx: family %q is not one of prefer4, prefer6, only4, only6", cfg.Family)
	}
	addrs, err := cfg.serverAddrs(deps.Exchange != nil)
	if err != nil {
		return nil, err
	}
	r := &Resolver{
		cfg:      cfg,
		exchange: deps.Exchange,
		now:      deps.Now,
		rand:     deps.Rand,
		log:      deps.Logger,
		slots:    make(chan struct{}, cfg.Lookups),
		cache:    newCache(cfg.CacheEntries),
		flights:  make(map[key]*flight),
	}
	for _, a := range addrs {
		r.servers = append(r.servers, &server{addr: a})
	}
	if r.exchange == nil {
		r.exchange = exchange
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.rand == nil {
		r.rand = rand.IntN
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.metrics = newMetrics(deps.Registerer)
	r.base, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Close ends the lookups under way, which answer their callers with temporary
// failures, and waits for them. Later calls are answered from cache or with a
// temporary failure.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.Timeout, 5*time.Second)
	set(&c.Total, 30*time.Second)
	set(&c.MinTTL, 5*time.Second)
	set(&c.MaxTTL, time.Hour)
	set(&c.NegativeTTL, time.Minute)
	set(&c.ServFailTTL, 30*time.Second)
	set(&c.StaleTTL, time.Hour)
	c.Total = min(c.Total, 30*time.Second)
	c.MaxTTL = max(c.MaxTTL, c.MinTTL)
	if c.Retries <= 0 {
		c.Retries = 2
	}
	if c.Lookups <= 0 {
		c.Lookups = 256
	}
	if c.CacheEntries <= 0 {
		c.CacheEntries = 50_000
	}
	if c.Family == "" {
		c.Family = Prefer4
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	return c
}

// serverAddrs returns the servers as host:port. With an injected exchange they
// are only names, taken as they are.
func (c Config) serverAddrs(injected bool) ([]string, error) {
	if injected {
		if len(c.Servers) == 0 {
			return []string{"injected"}, nil
		}
		return c.Servers, nil
	}
	servers, port := c.Servers, "53"
	if len(servers) == 0 {
		conf, err := dns.ClientConfigFromFile(c.ResolvConf)
		if err != nil || len(conf.Servers) == 0 {
			// resolv.conf(5): without a nameserver line, the local host's.
			return []string{"127.0.0.1:53"}, nil
		}
		servers, port = conf.Servers, conf.Port
	}
	var addrs []string
	for _, s := range servers {
		if ip, err := netip.ParseAddr(s); err == nil {
			addrs = append(addrs, net.JoinHostPort(ip.String(), port))
			continue
		}
		ap, err := netip.ParseAddrPort(s)
		if err != nil || ap.Port() == 0 {
			return nil, fmt.Errorf("mx: DNS server %q is not an IP address, with or without a port", s)
		}
		addrs = append(addrs, ap.String())
	}
	return addrs, nil
}
