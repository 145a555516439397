package mx

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/tradewind-mta/tradewind/message"
)

// Route says where the mail of a domain goes. It is shared: do not modify it
// or its Hosts.
type Route struct {
	Domain string // as asked, lower-case A-labels or an address literal
	Site   string // see SiteOf; an address literal is its own site
	Hosts  []Host // in the order to try
	// Implicit is set when the domain has no MX record and is its own host
	// (RFC 5321, 5.1).
	Implicit bool
	Expires  time.Time // ask again after this; zero for an address literal
}

// Host is one mail host of a route.
type Host struct {
	Name string
	Pref uint16 // lower is tried first
	// Addrs is set in what Resolve returns and for address literals; otherwise
	// ask Resolver.Addrs when the host's turn comes.
	Addrs []netip.Addr
}

// routeAnd4 lets a shuffled copy of a usual route cost one allocation.
type routeAnd4 struct {
	Route
	hosts [4]Host
}

// Route returns the mail hosts of domain, those of equal preference shuffled
// anew in each call (RFC 5321, 5.1). Domain is what message.ParseDomain
// returned; other spellings are folded to it, and what it refuses fails with
// 5.1.2. Either the route or the reply is nil. The reply is
//
//   - 550 5.1.2, permanent: no such domain, on two looks;
//   - 556 5.1.10, permanent: a null MX (RFC 7505);
//   - 550 5.4.4, permanent: neither MX nor address, or an address literal that
//     Check refuses;
//   - 451 4.4.4, temporary: MX records, and not one with a usable host name;
//   - 451 4.4.3, temporary: anything else, time-outs and ctx included.
func (r *Resolver) Route(ctx context.Context, domain string) (*Route, *message.Reply) {
	if !plain(domain) {
		name, err := message.ParseDomain(domain)
		if err != nil {
			return nil, local(550, message.Enhanced{5, 1, 2}, "not a domain name")
		}
		domain = name
		if ip, ok := message.Literal(domain); ok {
			return r.literalRoute(domain, ip)
		}
	}
	ans := r.get(ctx, key{domain, askRoute})
	if ans.reply != nil {
		return nil, clone(ans.reply)
	}
	if !ans.equal {
		return ans.route, nil
	}
	if len(ans.route.Hosts) > 4 {
		rt := *ans.route
		rt.Hosts = slices.Clone(rt.Hosts)
		r.shuffle(rt.Hosts)
		return &rt, nil
	}
	c := &routeAnd4{Route: *ans.route}
	n := copy(c.hosts[:], ans.route.Hosts)
	c.Hosts = c.hosts[:n:n]
	r.shuffle(c.Hosts)
	return &c.Route, nil
}

// plain reports that domain needs no parsing to be a safe cache key and
// question: short, and only of lower-case letters, digits, hyphens and dots.
// What is left, such as empty labels, is found by findRoute.
func plain(domain string) bool {
	for i := range len(domain) {
		switch c := domain[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '.':
		default:
			return false
		}
	}
	return 0 < len(domain) && len(domain) <= 255
}

// clone lets a caller fill in a reply that others hold as well.
func clone(rep *message.Reply) *message.Reply {
	c := *rep
	return &c
}

// shuffle reorders hosts of equal preference among themselves.
func (r *Resolver) shuffle(hosts []Host) {
	for i := 0; i < len(hosts); {
		j := i + 1
		for j < len(hosts) && hosts[j].Pref == hosts[i].Pref {
			j++
		}
		for k := j - 1; k > i; k-- {
			l := i + r.rand(k-i+1)
			hosts[k], hosts[l] = hosts[l], hosts[k]
		}
		i = j
	}
}

func (r *Resolver) literalRoute(domain string, ip netip.Addr) (*Route, *message.Reply) {
	if err := r.Check(ip); err != nil {
		return nil, local(550, message.Enhanced{5, 4, 4}, err.Error())
	}
	h := Host{Name: domain, Addrs: []netip.Addr{ip}}
	return &Route{Domain: domain, Site: domain, Hosts: []Host{h}}, nil
}

// findRoute asks DNS where the mail of domain goes.
func (r *Resolver) findRoute(ctx context.Context, domain string) *answer {
	if d, err := message.ParseDomain(domain); err != nil || d != domain || len(domain) > maxName {
		return r.none(r.cfg.NegativeTTL, local(550, message.Enhanced{5, 1, 2}, "not a domain name"))
	}
	f, err := r.records(ctx, domain, dns.TypeMX)
	if err != nil {
		return failure(err)
	}
	if f.nxdomain {
		return r.none(f.ttl, local(550, message.Enhanced{5, 1, 2}, "domain "+domain+" does not exist"))
	}
	if len(f.rrs) == 0 {
		return r.implicitRoute(ctx, domain, f)
	}
	hosts, null, _ := mxHosts(f.rrs)
	if null {
		return r.none(f.ttl, local(556, message.Enhanced{5, 1, 10}, "domain "+domain+" does not accept mail (null MX)"))
	}
	if len(hosts) == 0 {
		// Published by mistake, and mistakes get mended: RFC 3463, X.4.4.
		return &answer{reply: local(451, message.Enhanced{4, 4, 4}, "no MX record of "+domain+" names a host")}
	}
	return r.routeAnswer(&Route{Domain: domain, Hosts: hosts}, r.clamp(f.ttl))
}

// implicitRoute makes the domain its own host if it has an address, after a
// definite answer that it has no MX.
func (r *Resolver) implicitRoute(ctx context.Context, domain string, f found) *answer {
	a := r.get(ctx, key{domain, askAddrs})
	if a.failed() {
		return &answer{reply: a.reply}
	}
	if a.reply != nil {
		return r.none(f.ttl, local(550, message.Enhanced{5, 4, 4}, "domain "+domain+" has neither MX nor address records"))
	}
	return r.routeAnswer(&Route{Domain: domain, Hosts: []Host{{Name: domain}}, Implicit: true}, min(r.clampNegative(f.ttl), a.ttl))
}

func (r *Resolver) routeAnswer(rt *Route, ttl time.Duration) *answer {
	names := make([]string, len(rt.Hosts))
	equal := false
	for i, h := range rt.Hosts {
		names[i] = h.Name
		equal = equal || (i > 0 && h.Pref == rt.Hosts[i-1].Pref)
	}
	rt.Site = SiteOf(names)
	rt.Expires = r.now().Add(ttl)
	return &answer{route: rt, equal: equal, ttl: ttl}
}

// Addrs returns the addresses of a mail host in the order to try: the
// preferred family first, shuffled within each, at most five, of which two are
// of the other family if it has as many. Addresses that Check refuses are left
// out. Either the addresses or the reply is nil. The reply is 550 5.4.4,
// permanent, when the host definitely has no address; 451 4.4.4, temporary,
// when it has none that may be used; 451 4.4.6 when that is because one is our
// own; and 451 4.4.3 when DNS does not tell; its RemoteHost is host. Whether
// that fails the message depends on the other hosts: see Unreachable.
func (r *Resolver) Addrs(ctx context.Context, host string) ([]netip.Addr, *message.Reply) {
	name, err := message.ParseDomain(host)
	if err != nil {
		return nil, local(451, message.Enhanced{4, 4, 4}, "not a host name")
	}
	if ip, ok := message.Literal(name); ok {
		if err := r.Check(ip); err != nil {
			return nil, local(550, message.Enhanced{5, 4, 4}, err.Error())
		}
		return []netip.Addr{ip}, nil
	}
	ans := r.get(ctx, key{name, askAddrs})
	addrs, rep := []netip.Addr(nil), ans.reply
	if rep == nil {
		addrs, rep = r.usable(name, ans.addrs)
	}
	if rep != nil {
		rep = clone(rep)
		rep.RemoteHost = name
	}
	return addrs, rep
}

// Lookup returns the addresses of a host that an operator has named, as a next
// hop, in the order to try. Unlike Addrs it does not apply Check.
func (r *Resolver) Lookup(ctx context.Context, host string) ([]netip.Addr, *message.Reply) {
	name, err := message.ParseDomain(host)
	if err != nil {
		return nil, local(451, message.Enhanced{4, 4, 4}, "not a host name")
	}
	ans := r.get(ctx, key{name, askAddrs})
	if ans.reply != nil {
		return nil, clone(ans.reply)
	}
	return ans.addrs, nil
}

// usable picks and orders the addresses of one host to connect to.
func (r *Resolver) usable(host string, all []netip.Addr) ([]netip.Addr, *message.Reply) {
	var first, second []netip.Addr
	var refused error
	own := false
	for _, a := range all {
		if err := r.Check(a); err != nil {
			refused = err
			own = own || r.isOwn(a)
			continue
		}
		if a.Is4() == (r.cfg.Family == Prefer4 || r.cfg.Family == Only4) {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	if own && len(first)+len(second) == 0 {
		return nil, local(451, message.Enhanced{4, 4, 6}, "mail host "+host+" is this host")
	}
	if len(first)+len(second) == 0 {
		return nil, local(451, message.Enhanced{4, 4, 4}, "mail host "+host+": "+refused.Error())
	}
	r.mix(first)
	r.mix(second)
	first = first[:min(len(first), maxAddrs-min(len(second), otherAddrs))]
	second = second[:min(len(second), maxAddrs-len(first))]
	return append(first, second...), nil
}

func (r *Resolver) mix(addrs []netip.Addr) {
	for i := len(addrs) - 1; i > 0; i-- {
		j := r.rand(i + 1)
		addrs[i], addrs[j] = addrs[j], addrs[i]
	}
}

// Resolve returns the hosts of a route that have addresses, those filled in,
// looking them all up at once. Where one of the hosts is ourselves, it and all
// of its preference and beyond are left out, for they would send the mail back
// (RFC 5321, 5.1). When nothing is left, hosts is nil and the reply is that of
// Unreachable.
func (r *Resolver) Resolve(ctx context.Context, rt *Route) (hosts []Host, rep *message.Reply) {
	replies := make([]*message.Reply, len(rt.Hosts))
	hosts = slices.Clone(rt.Hosts)
	var wg sync.WaitGroup
	for i := range hosts {
		if hosts[i].Addrs == nil {
			wg.Go(func() { hosts[i].Addrs, replies[i] = r.Addrs(ctx, hosts[i].Name) })
		}
	}
	wg.Wait()
	self := slices.IndexFunc(replies, func(rep *message.Reply) bool {
		return rep != nil && rep.Enhanced == message.Enhanced{4, 4, 6}
	})
	if self >= 0 {
		pref := hosts[self].Pref
		for i := range hosts {
			if hosts[i].Pref >= pref {
				hosts[i].Addrs, replies[i] = nil, replies[self]
			}
		}
	}
	hosts = slices.DeleteFunc(hosts, func(h Host) bool { return len(h.Addrs) == 0 })
	if len(hosts) == 0 {
		return nil, Unreachable(replies...)
	}
	return hosts, nil
}

// findAddrs asks DNS for the addresses of host, in the families in use.
func (r *Resolver) findAddrs(ctx context.Context, host string) *answer {
	var types []uint16
	if r.cfg.Family != Only6 {
		types = append(types, dns.TypeA)
	}
	if r.cfg.Family != Only4 {
		types = append(types, dns.TypeAAAA)
	}
	got := make([]found, len(types))
	errs := make([]error, len(types))
	var wg sync.WaitGroup
	for i, t := range types {
		wg.Go(func() { got[i], errs[i] = r.records(ctx, host, t) })
	}
	wg.Wait()

	var addrs []netip.Addr
	var err error
	ttl, negative := r.cfg.MaxTTL, r.cfg.NegativeTTL
	for i, f := range got {
		if errs[i] != nil {
			err = errs[i]
			continue
		}
		if a := hostAddrs(f.rrs); len(a) > 0 {
			addrs = append(addrs, a...)
			ttl = min(ttl, f.ttl)
		} else {
			negative = min(negative, f.ttl)
		}
	}
	switch {
	case len(addrs) > 0:
		slices.SortFunc(addrs, netip.Addr.Compare)
		if err != nil {
			ttl = min(ttl, r.cfg.ServFailTTL) // half an answer: look again soon
		}
		return &answer{addrs: addrs, ttl: r.clamp(ttl)}
	case err != nil:
		return failure(err)
	}
	return r.none(negative, local(550, message.Enhanced{5, 4, 4}, "mail host "+host+" has no address"))
}
