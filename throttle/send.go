package throttle

import (
	"strings"
	"time"
)

// Mail is what is about to be sent in one SMTP transaction.
type Mail struct {
	Domain       string // recipient domain
	Tenant       string
	Campaign     string
	SenderDomain string // of MAIL FROM
	DKIMDomain   string // d= of our signature
	Recipients   int    // 0 counts as 1
	// Sent is how many transactions the connection has carried.
	Sent int
	// Follows is the permit of the transaction that is under way on the
	// connection, which this one comes directly after: where transactions are
	// counted that run at a time, it takes over the place of that one. Nil if
	// there is none.
	Follows *Grant
}

// Send asks to run one transaction on an open connection. Release the grant
// when it is over, well or badly.
func (l *Lane) Send(now time.Time, m Mail) Grant { return l.send(now, &m, false) }

// WhySend answers as Send would, and changes nothing: it tells what holds a
// message and until when.
func (l *Lane) WhySend(now time.Time, m Mail) Grant { return l.send(now, &m, true) }

func (l *Lane) send(now time.Time, m *Mail, dry bool) Grant {
	n := int64(max(m.Recipients, 1))
	g, at := l.lock(now)
	eff := l.eff
	section := false
	if len(l.rules.domains) > 0 && l.rules.domains[m.Domain] != nil {
		eff = l.rules.effective(l.p, m.Domain, l.key.source)
		section = true
	}
	if set := eff.val[KeyMessagesPerConnection]; set != nil && int64(m.Sent) >= set.N {
		g.mu.Unlock()
		return Grant{Limit: LimitMessagesPerConnection, Rule: &set.Origin}
	}
	if fits, set := fitRecipients(eff, n); set != nil {
		g.mu.Unlock()
		return Grant{Limit: LimitRecipients, Rule: &set.Origin, Max: int(fits)}
	}

	var v verdict
	l.e.stops.check(&v, at, Selector{
		Domain: m.Domain, Provider: g.name, Tenant: m.Tenant, Campaign: m.Campaign, Source: l.src.name,
	})
	grant := Grant{OK: true, lane: l, g: g}
	if len(g.holds) > 0 {
		grant.holds = g.heldSend(&v, at, l, m)
	}

	// A domain's looser rate takes the place of the lane's; a stricter one
	// comes on top of it, so that both hold.
	laneRate, domainRate := l.eff.val[KeyRate], (*Value)(nil)
	if section && eff.val[KeyRate] != laneRate {
		domainRate = eff.val[KeyRate]
		if looser(domainRate, laneRate) {
			laneRate = nil
		}
	}
	var domainConns *Value
	if section && eff.val[KeyConnections] != l.eff.val[KeyConnections] {
		domainConns = eff.val[KeyConnections]
	}
	v.meter(&l.n.messages, laneRate, at, 1, LimitRate)
	v.shared(&l.sn.messages, eff.val[KeySourceRate], at, LimitRate, &l.sending, dry)
	v.shared(&g.all.messages, eff.val[KeyProviderRate], at, LimitProviderRate, &l.sending, dry)
	v.meter(&l.recipients, eff.val[KeyRecipientRate], at, n, LimitRecipientRate)

	var shares [4]*node
	if domainRate != nil || domainConns != nil {
		d := l.e.share(g, &v, at, ScopeDomain, l.src.name+"\x00"+m.Domain, LimitDomain)
		if shares[0] = d; d != nil {
			v.meter(&d.messages, domainRate, at, 1, LimitDomain)
			v.slot(d.busy-m.Follows.in(d), domainConns, LimitDomain)
		}
	}
	tenantRate, tenantMax := eff.val[KeyTenantRate], eff.val[KeyTenantConcurrency]
	if (tenantRate != nil || tenantMax != nil) && m.Tenant != "" {
		t := l.e.share(g, &v, at, ScopeTenant, m.Tenant, LimitTenant)
		if shares[1] = t; t != nil {
			v.meter(&t.messages, tenantRate, at, 1, LimitTenant)
			v.slot(t.busy-m.Follows.in(t), tenantMax, LimitTenant)
		}
	}
	campaignRate, campaignMax := eff.val[KeyCampaignRate], eff.val[KeyCampaignConcurrency]
	if (campaignRate != nil || campaignMax != nil) && m.Campaign != "" {
		c := l.e.share(g, &v, at, ScopeCampaign, campaignKey(m.Tenant, m.Campaign), LimitCampaign)
		if shares[2] = c; c != nil {
			v.meter(&c.messages, campaignRate, at, 1, LimitCampaign)
			v.slot(c.busy-m.Follows.in(c), campaignMax, LimitCampaign)
		}
	}
	senderRate := eff.val[KeySenderDomainRate]
	if senderRate != nil && m.SenderDomain != "" {
		s := l.e.share(g, &v, at, ScopeSenderDomain, m.SenderDomain, LimitSenderDomain)
		if shares[3] = s; s != nil {
			v.meter(&s.messages, senderRate, at, 1, LimitSenderDomain)
		}
	}
	warm := l.warming(&v, at, n, dry)
	l.e.brake.take(&v, at, m, dry)

	if !dry {
		v.settle(&l.sending)
	}
	if v.limit != LimitNone || dry {
		grant := l.refuse(g, at, &v, FreedTransaction, dry)
		g.mu.Unlock()
		return grant
	}
	l.n.messages.take(laneRate, at, 1)
	l.sn.messages.take(eff.val[KeySourceRate], at, 1)
	g.all.messages.take(eff.val[KeyProviderRate], at, 1)
	l.recipients.take(eff.val[KeyRecipientRate], at, n)
	if d := shares[0]; d != nil {
		d.messages.take(domainRate, at, 1)
		m.Follows.pass(d)
		grant.domain = d
	}
	if t := shares[1]; t != nil {
		t.messages.take(tenantRate, at, 1)
		m.Follows.pass(t)
		grant.tenant = t
	}
	if c := shares[2]; c != nil {
		c.messages.take(campaignRate, at, 1)
		m.Follows.pass(c)
		grant.campaign = c
	}
	if s := shares[3]; s != nil {
		s.messages.take(senderRate, at, 1)
	}
	if warm != nil {
		warm.sent += n
		warm.began = true
	}
	grant.holds.take(at, m.Follows)
	l.sn.roll(at)
	l.sn.current++
	l.granted(g, at)
	g.mu.Unlock()
	return grant
}

// fitRecipients returns the setting that n recipients in one transaction are
// too many for, and how many would fit.
func fitRecipients(eff *Effective, n int64) (int64, *Value) {
	fits, by := n, (*Value)(nil)
	if set := eff.val[KeyRecipients]; set != nil && set.N < fits {
		fits, by = set.N, set
	}
	if set := eff.val[KeyRecipientRate]; set != nil {
		for i := range set.Rates {
			if set.Rates[i].Burst < fits {
				fits, by = set.Rates[i].Burst, set
			}
		}
	}
	return fits, by
}

// looser reports whether a domain's rate allows more than its lane's.
func looser(domain, lane *Value) bool {
	if domain == nil || lane == nil {
		return domain == nil
	}
	return slowest(domain) > slowest(lane)
}

func slowest(v *Value) float64 {
	least := v.Rates[0].PerSecond()
	for _, r := range v.Rates[1:] {
		least = min(least, r.PerSecond())
	}
	return least
}

// campaignKey names a campaign: two tenants may use the same name.
func campaignKey(tenant, campaign string) string { return tenant + "\x00" + campaign }

// share returns the counter of a tenant, campaign or domain, making it if need
// be. When there are too many it drops those that have nothing to remember; if
// all do, the permit is refused for a second rather than given uncounted.
// REQUIRES: g.mu.
func (e *Engine) share(g *group, v *verdict, now int64, s Scope, key string, l Limit) *node {
	k := shareKey{s, key}
	if n := g.shares[k]; n != nil {
		return n
	}
	if len(g.shares) >= e.opt.MaxKeys {
		if now-g.pruned >= int64(time.Second) { // it looks at all of them
			g.pruned = now
			for k, n := range g.shares {
				if n.idle(now) {
					delete(g.shares, k)
				}
			}
		}
		if len(g.shares) >= e.opt.MaxKeys {
			v.time(now+int64(time.Second), now, l, nil)
			return nil
		}
	}
	if g.shares == nil {
		g.shares = map[shareKey]*node{}
	}
	n := &node{}
	g.shares[k] = n
	return n
}

// splitKey, joinKey and showKey turn the key of a counter into its parts, back,
// and into something to read.
func splitKey(key string) []string { return strings.Split(key, "\x00") }

func joinKey(parts []string) string { return strings.Join(parts, "\x00") }

func showKey(key string) string { return strings.ReplaceAll(key, "\x00", "/") }
