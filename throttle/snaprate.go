package throttle

import (
	"cmp"
	"slices"
	"time"
)

// RateState is how much of a slow rate is used up. Without it a restart would
// grant an hourly or daily burst a second time.
type RateState struct {
	Provider string    `json:"provider,omitempty"` // empty for those of a lane
	Site     string    `json:"site,omitempty"`     // for destinations without a provider
	Level    rateLevel `json:"level"`
	Scope    Scope     `json:"scope,omitempty"` // of a share
	Key      []string  `json:"key,omitempty"`   // source and site, source, or the parts of a share
	// Used are the times until which each rate of the setting is used up.
	Used []time.Time `json:"used"`
}

// rateLevel says which counter a rate belongs to. The numbers are stored.
type rateLevel uint8

const (
	levelLane rateLevel = iota
	levelLaneConnects
	levelLaneRecipients
	levelSource
	levelSourceConnects
	levelAll
	levelAllConnects
	levelShare
)

// worthKeeping is how far ahead of now a rate has to be used up to be kept:
// what a second gives back is not worth the space.
const worthKeeping = int64(time.Second)

// rateStates copies the meters that are worth keeping.
func (e *Engine) rateStates(now time.Time) []RateState {
	at := e.ns(now)
	var out []RateState
	keep := func(g *group, m *meter, level rateLevel, scope Scope, key ...string) {
		if int64(slices.Max(m.t[:])) <= at+worthKeeping {
			return
		}
		s := RateState{Level: level, Scope: scope, Key: key}
		if level > levelLaneRecipients {
			s.Provider, s.Site = g.name, g.site
		}
		for _, t := range m.t {
			s.Used = append(s.Used, e.time(int64(t)))
		}
		out = append(out, s)
	}
	e.mu.RLock()
	for key, l := range e.lanes {
		g := l.g.Load()
		g.mu.Lock()
		keep(g, &l.n.messages, levelLane, ScopeNone, key.source, key.site)
		keep(g, &l.n.connects, levelLaneConnects, ScopeNone, key.source, key.site)
		keep(g, &l.recipients, levelLaneRecipients, ScopeNone, key.source, key.site)
		g.mu.Unlock()
	}
	for key, used := range e.restored {
		for level := range used { // not back yet, and the next restart comes
			keep(nil, &used[level], rateLevel(level), ScopeNone, key.source, key.site)
		}
	}
	for _, g := range e.groups {
		g.mu.Lock()
		keep(g, &g.all.messages, levelAll, ScopeNone)
		keep(g, &g.all.connects, levelAllConnects, ScopeNone)
		for _, sn := range g.sources {
			keep(g, &sn.messages, levelSource, ScopeNone, sn.src.name)
			keep(g, &sn.connects, levelSourceConnects, ScopeNone, sn.src.name)
		}
		for k, n := range g.shares {
			keep(g, &n.messages, levelShare, k.scope, splitKey(k.key)...)
		}
		g.mu.Unlock()
	}
	e.mu.RUnlock()
	slices.SortFunc(out, func(a, b RateState) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Site, b.Site),
			cmp.Compare(a.Level, b.Level), cmp.Compare(a.Scope, b.Scope), slices.Compare(a.Key, b.Key))
	})
	return out
}

// restoreRate puts one meter back. The rates it belongs to are adopted at the
// next request, which also bounds what nonsense could do. REQUIRES: e.mu.
func (e *Engine) restoreRate(s *RateState) {
	var m meter
	for i, t := range s.Used {
		if i < maxRates && !t.IsZero() {
			m.t[i] = tat(e.ns(t))
		}
	}
	need := map[rateLevel]int{levelLane: 2, levelLaneConnects: 2, levelLaneRecipients: 2, levelSource: 1, levelSourceConnects: 1, levelShare: 1}
	if s.Level > levelShare || len(s.Key) < need[s.Level] || s.Level == levelShare && !s.Scope.held() {
		return
	}
	if s.Level <= levelLaneRecipients {
		if e.restored == nil {
			e.restored = map[laneKey][levelLaneRecipients + 1]meter{}
		}
		key := laneKey{s.Key[0], s.Key[1]}
		used := e.restored[key]
		used[s.Level] = m
		e.restored[key] = used
		return
	}
	g := e.groupNamed(s.Provider, s.Site)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch s.Level {
	case levelSource:
		g.source(e.sourceNamed(s.Key[0])).messages = m
	case levelSourceConnects:
		g.source(e.sourceNamed(s.Key[0])).connects = m
	case levelAll:
		g.all.messages = m
	case levelAllConnects:
		g.all.connects = m
	case levelShare:
		if len(g.shares) >= e.opt.MaxKeys {
			return
		}
		if g.shares == nil {
			g.shares = map[shareKey]*node{}
		}
		g.shares[shareKey{s.Scope, joinKey(s.Key)}] = &node{messages: m}
	}
}
