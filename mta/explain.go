package mta

import (
	"fmt"
	"sort"
	"time"

	"github.com/tradewind-mta/tradewind/store"
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
		if !l.until.After(now) {
			if l.capped {
				return fmt.Sprintf("%s: as many connections as the limits allow", l.source.Name)
			}
			return ""
		}
	}
	if len(s.lanes) == 0 {
		return ""
	}
	l := s.lanes[0]
	return fmt.Sprintf("%s: %s until %s", l.source.Name, l.why, l.until.UTC().Format(time.RFC3339))
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
		if l.until.After(now) {
			ls.Until, ls.Why = l.until, l.why
		}
		st.Lanes = append(st.Lanes, ls)
	}
	return st
}
