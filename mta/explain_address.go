package mta

import (
	"context"
	"net/netip"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/throttle"
)

// Destination says where mail for a domain goes and what holds there.
type Destination struct {
	Domain   string `json:"domain"`
	Pool     string `json:"pool"`
	Site     string `json:"site"`
	Provider string `json:"provider"`
	TLS      string `json:"tls"`
	Route    bool   `json:"route,omitempty"` // a [[route]] says so, not DNS
	Hosts    []Host `json:"hosts"`
	// Failure is what DNS said when it knows no way.
	Failure string `json:"failure,omitempty"`
	// Sources are the ways there, one for each source of the pool.
	Sources []throttle.Explanation `json:"sources,omitempty"`
	// Lanes is what is going on there now.
	Lanes []LaneStatus `json:"lanes,omitempty"`
}

// Host is one host of a destination with the addresses that would be tried.
type Host struct {
	Name  string       `json:"name"`
	Addrs []netip.Addr `json:"addresses,omitempty"`
}

// Explain says where mail of a pool for a domain goes and what holds there; an
// empty pool is the default one. It asks DNS and changes nothing.
func (m *MTA) Explain(ctx context.Context, pool, domain string) Destination {
	if pool == "" {
		pool = DefaultPool
	}
	now := m.deps.Now()
	d := Destination{Domain: domain, Pool: pool}
	sk, names, to, reply := m.destination(ctx, domain)
	if reply != nil {
		d.Failure = reply.Error()
		return d
	}
	sk.pool = pool
	d.Site, d.TLS, d.Route = sk.site, sk.tls.String(), to.hops != nil
	d.Provider = m.deps.Throttle.ProviderOf(names, domain)
	d.Hosts, reply = m.hosts(ctx, domain, to.hops)
	if reply != nil {
		d.Failure = reply.Error()
	}
	for _, t := range m.ways(pool, sk.site, names, domain) {
		d.Sources = append(d.Sources, m.deps.Throttle.Explain(t, now))
	}
	m.mu.Lock()
	s := m.sites[sk]
	m.mu.Unlock()
	if s != nil {
		d.Lanes = s.status(now).Lanes
	}
	return d
}

// ways are what throttle knows the lanes of a pool to a site by.
func (m *MTA) ways(pool, site string, hosts []string, domain string) (list []throttle.Target) {
	for _, p := range m.set.Load().Pools {
		if p.Name != pool {
			continue
		}
		for _, ps := range p.Sources {
			src := m.source(ps.Source)
			list = append(list, throttle.Target{
				Source: src.Name, SourceAddr: src.IP(), Pool: pool, Site: site, Hosts: hosts, Domain: domain,
			})
		}
	}
	return list
}

// hosts are the hosts of a destination in the order they would be tried.
func (m *MTA) hosts(ctx context.Context, domain string, hops []hop) (list []Host, failed *message.Reply) {
	for _, h := range hops {
		host := Host{Name: h.host}
		if h.addr.IsValid() {
			host.Addrs = []netip.Addr{h.addr}
		} else if addrs, reply := m.hopAddrs(h.host); reply != nil {
			failed = reply
		} else {
			host.Addrs = addrs
		}
		list = append(list, host)
	}
	if hops != nil {
		return list, failed
	}
	route, reply := m.deps.Resolver.Route(ctx, domain)
	if reply != nil {
		return nil, reply
	}
	hosts, reply := m.deps.Resolver.Resolve(ctx, route)
	for _, h := range hosts[:min(len(hosts), maxHosts)] {
		list = append(list, Host{Name: h.Name, Addrs: h.Addrs})
	}
	return list, reply
}
