package mta

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/outbound"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/throttle"
)

// targetKey asks where a pool's mail for a domain goes.
type targetKey struct{ pool, domain string }

// target remembers the answer. MTA.mu protects it.
type target struct {
	site      *site
	expires   time.Time
	resolving bool
	waiting   []*queue.Queue
}

// maxTargets bounds the answers that are remembered: a queue that goes through a
// million domains within a route's life must not keep one for each.
const maxTargets = 50_000

// forgetTargets makes room when there are too many, for an eighth of them at a
// time, wherever the map begins. They are found again when they are asked for.
// REQUIRES: MTA.mu.
func (m *MTA) forgetTargets() {
	if len(m.targets) < maxTargets {
		return
	}
	n := maxTargets / 8
	for key, t := range m.targets {
		if n == 0 {
			return
		}
		if !t.resolving {
			delete(m.targets, key)
			n--
		}
	}
}

// routeLife is how long a [[route]] is remembered; a reload forgets it anyway.
const routeLife = time.Hour

// routeHost stands behind the next hops of every route, so that the shaping
// rules can tell them (provider "route") from strangers' mail exchangers.
const routeHost = "next-hop.route.invalid"

// holdUnresolved is how long a queue rests after DNS failed for its domain.
const holdUnresolved = time.Minute

// resolve finds the site of a target and gives it the queues that wait.
func (m *MTA) resolve(key targetKey, t *target) {
	s, expires, reply := m.findSite(key)
	m.mu.Lock()
	t.site, t.expires = s, expires
	waiting := t.waiting
	t.waiting, t.resolving = nil, false
	m.mu.Unlock()
	for _, q := range waiting {
		if s != nil {
			s.add(q)
			continue
		}
		m.wg.Go(func() { m.unreachable(q, reply) })
	}
}

// hop is one explicit next hop.
type hop struct {
	host string
	addr netip.Addr // valid when host is an address
	port uint16
}

// destination is where mail for a domain goes: the key of its site without a
// pool, the names of its hosts, and the next hops if a route says so.
func (m *MTA) destination(ctx context.Context, domain string) (sk siteKey, hosts []string, to where, reply *message.Reply) {
	set := m.set.Load()
	now := m.deps.Now()
	policy := set.Config.TLS
	for i := range set.Routes {
		r := &set.Routes[i]
		if !r.matches(domain) {
			continue
		}
		if r.TLS != "" {
			policy = r.TLS
		}
		to.expires = now.Add(routeLife)
		to.hops = make([]hop, 0, len(r.NextHops))
		for _, h := range r.NextHops {
			host, port, err := splitHop(h, set.Config.Port)
			if err != nil {
				continue // Validate refused it
			}
			ip, _ := netip.ParseAddr(host)
			to.hops = append(to.hops, hop{host: host, addr: ip, port: port})
			hosts = append(hosts, host)
		}
		hosts = append(hosts, routeHost)
		return siteKey{site: "route:" + strings.Join(r.NextHops, ","), tls: m.policy(policy, hosts, domain)}, hosts, to, nil
	}
	route, reply := m.deps.Resolver.Route(ctx, domain)
	if reply != nil {
		return siteKey{}, nil, where{expires: now}, reply
	}
	for _, h := range route.Hosts {
		hosts = append(hosts, h.Name)
	}
	if to.expires = route.Expires; to.expires.IsZero() {
		to.expires = now.Add(routeLife)
	}
	return siteKey{site: route.Site, tls: m.policy(policy, hosts, domain)}, hosts, to, nil
}

// where is the way to a destination, and how long that is known.
type where struct {
	hops    []hop // nil: the MX of the domain
	expires time.Time
}

// findSite returns the site that mail of a pool for a domain goes to.
func (m *MTA) findSite(key targetKey) (*site, time.Time, *message.Reply) {
	sk, hosts, to, reply := m.destination(m.soft, key.domain)
	if reply != nil {
		return nil, to.expires, reply
	}
	sk.pool = key.pool
	return m.site(sk, key.domain, hosts, to.hops), to.expires, nil
}

// policy is the stricter of the policy configured for a destination and what
// the shaping rules ask for mail to domain there. Connections are shared only
// under one policy, so a domain that asks for more has a site of its own.
func (m *MTA) policy(name string, hosts []string, domain string) outbound.TLSPolicy {
	p := mustPolicy(name)
	if t := m.deps.Throttle.Policy(hosts, domain); t != throttle.TLSUnset {
		p = stricter(p, shapingPolicy(t))
	}
	return p
}

// shapingPolicy is what a shaping rule asks for, in our terms.
func shapingPolicy(t throttle.TLS) outbound.TLSPolicy {
	switch t {
	case throttle.TLSOff:
		return outbound.Off
	case throttle.TLSRequired:
		return outbound.Required
	case throttle.TLSVerify:
		return outbound.Verify
	}
	return outbound.Opportunistic
}

// stricter returns the policy that leaves less open. Opportunistic asks for
// nothing, so it yields to everything, to off as well: whoever writes that knows
// of a STARTTLS that does not work.
func stricter(a, b outbound.TLSPolicy) outbound.TLSPolicy { return max(a, b) }

// mustPolicy reads a policy that Validate has accepted.
func mustPolicy(name string) outbound.TLSPolicy {
	p, err := outbound.ParseTLSPolicy(name)
	if err != nil {
		return outbound.Opportunistic
	}
	return p
}

// unreachable settles mail for a domain that has no site. A permanent answer
// ends every item of the queue; after a temporary one a single message is
// deferred, so that its sender hears of it, and the queue rests.
func (m *MTA) unreachable(q *queue.Queue, reply *message.Reply) {
	for !m.ending() {
		items := q.Lease(100)
		if len(items) == 0 {
			return // more may come from disk; Ready says so
		}
		t := &txn{q: q, items: items}
		if m.prepare(t) {
			outcomes := make([]message.Outcome, len(t.items))
			for i := range outcomes {
				outcomes[i] = message.Outcome{Reply: reply, Attempted: true}
				if !reply.Temporary() {
					outcomes[i].Result = message.Failed
				}
			}
			m.settle(nil, nil, t, outcomes)
		}
		if reply.Temporary() {
			m.after(holdUnresolved, func() { m.Ready(q) })
			return
		}
	}
}

// after runs fn later, unless the engine stops before.
func (m *MTA) after(d time.Duration, fn func()) {
	m.wg.Go(func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			fn()
		case <-m.soft.Done():
		}
	})
}
