// Package zonetest is a small DNS for tests and demonstrations: an in-memory
// zone that holds any names, written in zone-file syntax, with switches that
// make it fail in the ways real servers fail. The same zone answers in virtual
// time, as the Exchange function of a resolver, and on real sockets.
//
//	zone := zonetest.New()
//	zone.Set("example.com.", "MX 10 mx1.example.com.", "60 TXT hello")
//	zone.Set("mx1.example.com.", "A 192.0.2.1", "AAAA 2001:db8::1")
//	zone.Fail("example.org.", zonetest.ServFail)
//	resolver, err := mx.New(mx.Config{AllowNets: zonetest.Nets()}, mx.Deps{Exchange: zone.Exchange})
//
// It behaves like a recursive resolver: CNAMEs are followed within the zone, a
// name without the type asked for is NODATA, an unknown name is NXDOMAIN, both
// with an SOA, and what does not fit the client's buffer is truncated. A name
// "*.example.com." stands for all names below that do not exist. Syntax errors
// in what a test writes panic.
package zonetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Mode is a way to fail.
type Mode int

// Modes. Those that concern an answer leave it otherwise as it is.
const (
	OK            Mode = iota // answer normally again
	ServFail                  // SERVFAIL, as when the domain's own servers are unreachable
	Refused                   // REFUSED
	NXDomain                  // NXDOMAIN, whatever the zone holds
	Timeout                   // no answer
	Unreachable               // the exchange fails at once; on sockets like Timeout
	Truncate                  // over UDP only the TC flag; whole over TCP
	TruncateTCP               // the TC flag over TCP too
	WrongQuestion             // an answer to a question nobody asked
	WrongID                   // an answer with another id
	NotResponse               // the query bounced back, QR bit clear
	WrongOwner                // the records under another name
	Huge                      // nearly 64 KB of records of the type asked for
	NoEDNS                    // FORMERR for a query with EDNS
)

// DefaultTTL is the TTL of records that give none, NegativeTTL that of
// negative answers, in seconds.
const (
	DefaultTTL  = 300
	NegativeTTL = 60
)

// Query is one question the zone was asked.
type Query struct {
	Name    string // lower case, with final dot
	Type    string // "MX"
	Network string // "udp" or "tcp"
	Server  string // as the resolver named it
}

// Zone is an in-memory DNS. The zero value is empty and ready; it is safe for
// concurrent use, and can be changed at any time.
type Zone struct {
	mu      sync.Mutex // protects everything below
	records map[string][]dns.RR
	modes   map[rule]Mode
	servers map[string]Mode
	delays  map[string]time.Duration
	queries []Query
}

// rule is what a mode applies to; typ 0 is every type.
type rule struct {
	name string
	typ  uint16
}

// New returns a zone that holds the given zone-file texts; see Load.
func New(texts ...string) *Zone {
	z := &Zone{}
	for _, t := range texts {
		z.Load(t)
	}
	return z
}

// Nets are the documentation networks of RFC 5737 and RFC 3849, for tests to
// allow (mx.Config.AllowNets) and use as the addresses of their mail hosts.
func Nets() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("192.0.2.0/24"),
		netip.MustParsePrefix("198.51.100.0/24"),
		netip.MustParsePrefix("203.0.113.0/24"),
		netip.MustParsePrefix("2001:db8::/32"),
	}
}

// Load adds the records of a zone-file text: "owner [ttl] [IN] type rdata" a
// line, $ORIGIN and $TTL allowed, names without final dot relative to the
// origin, which is the root at first.
func (z *Zone) Load(text string) {
	rrs := parse(text)
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, rr := range rrs {
		z.add(rr)
	}
}

// Set replaces all records of name by records, each "[ttl] type rdata". Without
// records, name exists and has none.
func (z *Zone) Set(name string, records ...string) {
	name = fqdn(name)
	var rrs []dns.RR
	for _, r := range records {
		rrs = append(rrs, parse(name+" "+r)...)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.records == nil {
		z.records = make(map[string][]dns.RR)
	}
	z.records[name] = nil
	for _, rr := range rrs {
		z.add(rr)
	}
}

// Remove makes name not exist.
func (z *Zone) Remove(name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.records, fqdn(name))
}

// Fail makes questions about name fail as mode says, those for the given types
// ("A", "MX") or, without types, all. OK ends it.
func (z *Zone) Fail(name string, mode Mode, types ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.modes == nil {
		z.modes = make(map[rule]Mode)
	}
	if len(types) == 0 {
		z.modes[rule{fqdn(name), 0}] = mode
		return
	}
	for _, t := range types {
		typ, ok := dns.StringToType[t]
		if !ok {
			panic("zonetest: no DNS type " + t)
		}
		z.modes[rule{fqdn(name), typ}] = mode
	}
}

// FailServer makes all questions put to one server, as the resolver names it,
// fail as mode says. It goes before Fail. A Server goes by its Addr.
func (z *Zone) FailServer(server string, mode Mode) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.servers == nil {
		z.servers = make(map[string]Mode)
	}
	z.servers[server] = mode
}

// Latency delays answers about name; "" delays all others.
func (z *Zone) Latency(name string, d time.Duration) {
	if name != "" {
		name = fqdn(name)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.delays == nil {
		z.delays = make(map[string]time.Duration)
	}
	z.delays[name] = d
}

// Queries returns what was asked so far, in order. The zone remembers at most
// 100,000 questions.
func (z *Zone) Queries() []Query {
	z.mu.Lock()
	defer z.mu.Unlock()
	return append([]Query(nil), z.queries...)
}

// Count returns how often name was asked for the given type, or for any when
// typ is "".
func (z *Zone) Count(name, typ string) int {
	name = fqdn(name)
	n := 0
	for _, q := range z.Queries() {
		if q.Name == name && (typ == "" || q.Type == typ) {
			n++
		}
	}
	return n
}

// ErrUnreachable is what Exchange returns in mode Unreachable.
var ErrUnreachable = errors.New("zonetest: server unreachable")

// Exchange answers q as a server would; it fits mx.Deps. In mode Timeout it
// returns when ctx ends.
func (z *Zone) Exchange(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error) {
	mode, delay := z.arrive(q, network, server)
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	switch mode {
	case Timeout:
		<-ctx.Done()
		return nil, context.Cause(ctx)
	case Unreachable:
		return nil, ErrUnreachable
	}
	return z.respond(q, network, mode), nil
}

// arrive notes a question and says how to treat it.
func (z *Zone) arrive(q *dns.Msg, network, server string) (Mode, time.Duration) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(q.Question) != 1 {
		return Refused, 0
	}
	name, typ := fqdn(q.Question[0].Name), q.Question[0].Qtype
	if len(z.queries) < 100_000 {
		z.queries = append(z.queries, Query{Name: name, Type: dns.TypeToString[typ], Network: network, Server: server})
	}
	delay, ok := z.delays[name]
	if !ok {
		delay = z.delays[""]
	}
	if mode := z.servers[server]; mode != OK {
		return mode, delay
	}
	if mode, ok := z.modes[rule{name, typ}]; ok {
		return mode, delay
	}
	return z.modes[rule{name, 0}], delay
}

// REQUIRES: z.mu is held, or z is not shared yet.
func (z *Zone) add(rr dns.RR) {
	if z.records == nil {
		z.records = make(map[string][]dns.RR)
	}
	name := fqdn(rr.Header().Name)
	z.records[name] = append(z.records[name], rr)
}

func parse(text string) []dns.RR {
	p := dns.NewZoneParser(strings.NewReader(text+"\n"), ".", "")
	p.SetDefaultTTL(DefaultTTL)
	var rrs []dns.RR
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		rrs = append(rrs, rr)
	}
	if err := p.Err(); err != nil {
		panic(fmt.Sprintf("zonetest: %v in %q", err, text))
	}
	return rrs
}

func fqdn(name string) string { return strings.ToLower(dns.Fqdn(name)) }
