package mta

import (
	"context"
	"fmt"
	"sort"
	"time"

	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/throttle"
)

// Holding says in a few words what a ready queue waits for, "" when it has its
// turn.
func (m *MTA) Holding(key store.QueueKey) string {
	if m.Stopped(&key) {
		return "suspended"
	}
	pool := m.poolFor(&key)
	m.mu.Lock()
	t := m.targets[targetKey{pool: pool, domain: key.Domain}]
	var s *site
	if t != nil {
		s = t.site
	}
	m.mu.Unlock()
	if s == nil {
		return "waiting for DNS"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := m.deps.Now()
	for q, e := range s.entries {
		if q.Key() != key || e.why == "" {
			continue
		}
		if e.until.IsZero() {
			return e.why
		}
		return fmt.Sprintf("%s until %s", e.why, e.until.UTC().Format(time.RFC3339))
	}
	for _, l := range s.lanes {
		if until, _ := l.held(now); !until.After(now) {
			if l.dialling.capped {
				return fmt.Sprintf("%s: as many connections as the limits allow", l.source.Name)
			}
			return ""
		}
	}
	if len(s.lanes) == 0 {
		return ""
	}
	l := s.lanes[0]
	until, why := l.held(now)
	return fmt.Sprintf("%s: %s until %s", l.source.Name, why, until.UTC().Format(time.RFC3339))
}

// held is until when the lane, or failing that its next connection, has to wait,
// and what for. REQUIRES: site.mu.
func (l *lane) held(now time.Time) (until time.Time, why string) {
	if l.until.After(now) {
		return l.until, l.why
	}
	return l.dialling.until, l.dialling.why
}

// HoldingMail names the hold or the suspension that keeps this mail of a queue
// back, whichever source would carry it, though the rest of the queue may be
// free to go; "" when there is none. It may ask DNS.
func (m *MTA) HoldingMail(ctx context.Context, key store.QueueKey, mail throttle.Mail) string {
	pool := m.poolFor(&key)
	sk, hosts, _, reply := m.destination(ctx, key.Domain)
	if reply != nil {
		return ""
	}
	now := m.deps.Now()
	first, said := throttle.Grant{}, ""
	for _, t := range m.ways(pool, sk.site, hosts, key.Domain) {
		l := m.deps.Throttle.Lane(t)
		g := l.WhySend(now, mail)
		provider := l.Provider()
		l.Close()
		if g.OK || g.Scope == throttle.ScopeNone && g.Limit != throttle.LimitSuspended {
			return ""
		}
		if said == "" || !g.At.IsZero() && (first.At.IsZero() || g.At.Before(first.At)) {
			first, said = g, m.heldMail(provider, t.Source, &g, &mail)
		}
	}
	return said
}

// heldMail tells of a hold or a suspension.
func (m *MTA) heldMail(provider, source string, g *throttle.Grant, mail *throttle.Mail) string {
	if g.Limit == throttle.LimitSuspended {
		s, ok := m.deps.Throttle.Suspended(m.deps.Now(), throttle.Selector{
			Domain: mail.Domain, Provider: provider, Tenant: mail.Tenant, Campaign: mail.Campaign, Source: source,
		})
		switch {
		case !ok: // disabled by a rule
		case s.Until.IsZero():
			return fmt.Sprintf("suspension of %s until it is resumed: %s", s.Selector, s.Reason)
		default:
			return fmt.Sprintf("suspension of %s until %s: %s", s.Selector, s.Until.UTC().Format(time.RFC3339), s.Reason)
		}
	}
	what := g.Limit.String()
	if g.Scope != throttle.ScopeNone {
		key := map[throttle.Scope]string{
			throttle.ScopeSource: source, throttle.ScopeNetblock: source, throttle.ScopeTenant: mail.Tenant, throttle.ScopeDomain: mail.Domain,
			throttle.ScopeSenderDomain: mail.SenderDomain, throttle.ScopeDKIMDomain: mail.DKIMDomain, throttle.ScopeCampaign: mail.Campaign,
		}[g.Scope]
		what = fmt.Sprintf("%s of %s %s", what, g.Scope, key)
	}
	if provider != "" {
		what += " at " + provider
	}
	if g.Rule != nil {
		what += fmt.Sprintf(" by %s", g.Rule)
	}
	switch {
	case !g.At.IsZero():
		return what + " until " + g.At.UTC().Format(time.RFC3339)
	case g.Limit == throttle.LimitSuspended:
		return what + " until it is resumed"
	}
	return what + " until a try that is under way has ended"
}

// SiteStatus is a destination as operators see it.
type SiteStatus struct {
	Pool   string       `json:"pool"`
	Site   string       `json:"site"`
	TLS    string       `json:"tls"`
	Queues int          `json:"queues"`
	Lanes  []LaneStatus `json:"lanes"`
}

// LaneStatus is one source's way to a site.
type LaneStatus struct {
	Source   string    `json:"source"`
	Provider string    `json:"provider"`
	Runners  int       `json:"runners"`
	Allowed  int       `json:"allowed"`
	Until    time.Time `json:"held_until,omitzero"`
	Why      string    `json:"held_by,omitempty"`
	Failures int       `json:"failures,omitempty"`
}

// Sites lists the destinations in memory, up to limit, those with most queues
// first.
func (m *MTA) Sites(limit int) []SiteStatus {
	m.mu.Lock()
	sites := make([]*site, 0, len(m.sites))
	for _, s := range m.sites {
		sites = append(sites, s)
	}
	m.mu.Unlock()
	now := m.deps.Now()
	list := make([]SiteStatus, 0, len(sites))
	for _, s := range sites {
		list = append(list, s.status(now))
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].Queues != list[j].Queues {
			return list[i].Queues > list[j].Queues
		}
		return list[i].Site+list[i].Pool < list[j].Site+list[j].Pool
	})
	return list[:min(limit, len(list))]
}

func (s *site) status(now time.Time) SiteStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := SiteStatus{Pool: s.key.pool, Site: s.key.site, TLS: s.key.tls.String(), Queues: len(s.entries)}
	for _, l := range s.lanes {
		ls := LaneStatus{
			Source: l.source.Name, Provider: l.permit.Provider(), Runners: l.runners, Allowed: l.allowed, Failures: l.failures,
		}
		if until, why := l.held(now); until.After(now) {
			ls.Until, ls.Why = until, why
		}
		st.Lanes = append(st.Lanes, ls)
	}
	return st
}
