package throttle

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// snapshotVersion is raised when the meaning of a field changes.
const snapshotVersion = 1

// Snapshot is everything that has to survive a restart, in a form that
// encoding/json keeps.
type Snapshot struct {
	Version     int           `json:"version"`
	Taken       time.Time     `json:"taken"`
	Holds       []HoldState   `json:"holds,omitempty"`
	Suspensions []Suspension  `json:"suspensions,omitempty"`
	Warmups     []WarmupState `json:"warmups,omitempty"`
	Picks       []PickState   `json:"picks,omitempty"`
	Brakes      []BrakeState  `json:"brakes,omitempty"`
	Rates       []RateState   `json:"rates,omitempty"`
}

// HoldState is one hold as operators see it and as it is kept.
type HoldState struct {
	Provider string    `json:"provider"`
	Site     string    `json:"site,omitempty"` // for destinations without a provider
	Scope    Scope     `json:"scope"`
	Key      string    `json:"key"` // a campaign is written tenant/campaign
	State    State     `json:"state"`
	Rule     string    `json:"rule"`
	Origin   Origin    `json:"origin"`
	Reply    string    `json:"reply"`
	Began    time.Time `json:"began"`
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until,omitzero"`
	// Connections is the cap now, and Max where the ramp ends.
	Connections int64 `json:"connections"`
	Max         int64 `json:"max"`
	Repeats     int   `json:"repeats,omitempty"`
	// Interval is the pace between two messages of this key, if there is one,
	// and Ceiling the pace at which the hold ends.
	Interval time.Duration `json:"interval_ns,omitempty"`
	Ceiling  time.Duration `json:"ceiling_ns,omitempty"`

	// TooFast and TooMany are the pace and the connections at which the provider
	// refused, if that is known; Worked and WorkedConnections what it took
	// before. Look is how long the hold rests below them before it tries again,
	// which it does at Until if it is Settled.
	TooFast           time.Duration `json:"too_fast_ns,omitempty"`
	TooMany           int64         `json:"too_many,omitempty"`
	Worked            time.Duration `json:"worked_ns,omitempty"`
	WorkedConnections int64         `json:"worked_connections,omitempty"`
	Look              time.Duration `json:"look_ns,omitempty"`
	Settled           bool          `json:"settled,omitempty"`
	Gain              int64         `json:"gain_percent,omitempty"` // by which the rate grows at Until

	Base    time.Duration `json:"base_ns"`
	Longest time.Duration `json:"longest_ns"`
	Step    time.Duration `json:"step_ns"`
	RawKey  []string      `json:"raw_key"` // Key in its parts
}

// WarmupState is where a source stands in its warm-up at a provider.
type WarmupState struct {
	Source   string `json:"source"`
	Provider string `json:"provider"`
	Site     string `json:"site,omitempty"`
	Day      int    `json:"day"`  // sending days completed
	Date     int64  `json:"date"` // UTC days since 1970
	Sent     int64  `json:"sent"`
	Reserved int64  `json:"reserved,omitempty"` // what may have been sent after this was saved
	Unsure   bool   `json:"unsure,omitempty"`   // nothing is known to have been sent on Date
	Tried    int64  `json:"tried,omitempty"`
	Deferred int64  `json:"deferred,omitempty"`
}

// PickState is where the round robin of a pool stands for a provider.
type PickState struct {
	Pool     string           `json:"pool"`
	Provider string           `json:"provider"`
	Current  map[string]int64 `json:"current"` // by source
}

// Holds returns the holds in force at now, by provider and key.
func (e *Engine) Holds(now time.Time) []HoldState {
	at := e.ns(now)
	var out []HoldState
	for _, g := range e.allGroups() {
		g.mu.Lock()
		for _, h := range g.holds {
			h.settle(at)
			out = append(out, e.holdState(g, h))
		}
		g.mu.Unlock()
	}
	sortHolds(out)
	return out
}

func sortHolds(hs []HoldState) {
	slices.SortFunc(hs, func(a, b HoldState) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Site, b.Site),
			cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Key, b.Key))
	})
}

// holdState copies a hold. REQUIRES: g.mu.
func (e *Engine) holdState(g *group, h *hold) HoldState {
	parts := splitKey(h.key.key)
	return HoldState{
		Provider: g.name, Site: g.site, Scope: h.key.scope, Key: showKey(h.key.key), RawKey: parts,
		State: h.state, Rule: h.rule.Name, Origin: h.rule.Origin, Reply: h.reply,
		Began: e.time(h.began), Since: e.time(h.since), Until: e.time(h.until),
		Connections: h.cap, Max: h.max, Repeats: h.repeats,
		Interval: time.Duration(h.interval), Ceiling: time.Duration(h.ceiling),
		TooFast: time.Duration(h.learned.fast), TooMany: h.learned.many,
		Worked: time.Duration(h.learned.pace), WorkedConnections: h.learned.cap,
		Look: time.Duration(h.learned.wait), Settled: h.learned.rest, Gain: h.learned.gain,
		Base: time.Duration(h.base), Longest: time.Duration(h.longest), Step: time.Duration(h.step),
	}
}

// Snapshot copies what has to survive a restart. It is consistent per
// provider.
func (e *Engine) Snapshot(now time.Time) *Snapshot {
	s := &Snapshot{Version: snapshotVersion, Taken: now, Holds: e.Holds(now), Suspensions: e.Suspensions(now)}
	for _, g := range e.allGroups() {
		g.mu.Lock()
		for _, sn := range g.sources {
			if w := sn.warm; w != nil {
				s.Warmups = append(s.Warmups, WarmupState{
					Source: sn.src.name, Provider: g.name, Site: g.site,
					Day: w.day, Date: w.date, Sent: w.sent, Unsure: w.sent > 0 && !w.began, Tried: w.tried, Deferred: w.deferred,
				})
			}
		}
		g.mu.Unlock()
	}
	slices.SortFunc(s.Warmups, func(a, b WarmupState) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Site, b.Site), cmp.Compare(a.Source, b.Source))
	})
	s.Rates = e.rateStates(now)
	s.Picks = e.pick.snapshot()
	s.Brakes = e.brake.snapshot(e)
	return s
}

// ErrSnapshot is wrapped by the errors of Restore.
var ErrSnapshot = errors.New("snapshot cannot be used")

// Restore puts a snapshot back. Call it after New and before the first permit.
// A snapshot of another version is refused and changes nothing; single entries
// that make no sense are left out.
func (e *Engine) Restore(s *Snapshot) error {
	if s.Version != snapshotVersion {
		return fmt.Errorf("throttle: %w: version %d, want %d", ErrSnapshot, s.Version, snapshotVersion)
	}
	e.mu.Lock()
	for i := range s.Holds {
		e.restoreHold(&s.Holds[i])
	}
	for _, w := range s.Warmups {
		if w.Source == "" || w.Day < 0 || w.Day > maxWarmupDays || w.Sent < 0 || w.Reserved < 0 {
			continue
		}
		g := e.groupNamed(w.Provider, w.Site)
		g.mu.Lock()
		g.source(e.sourceNamed(w.Source)).warm = &warmState{
			day: w.Day, date: w.Date, sent: max(w.Sent, w.Reserved), began: w.Sent > 0 && !w.Unsure, tried: w.Tried, deferred: w.Deferred,
		}
		g.mu.Unlock()
	}
	for i := range s.Rates {
		e.restoreRate(&s.Rates[i])
	}
	e.mu.Unlock()
	for _, sus := range s.Suspensions {
		e.restoreSuspension(sus)
	}
	e.pick.restore(s.Picks)
	e.brake.restore(e, s.Brakes)
	return nil
}

// groupNamed is groupOf for names read from a snapshot. REQUIRES: e.mu.
func (e *Engine) groupNamed(provider, site string) *group {
	if provider == DefaultProvider {
		return e.groupOf(nil, site)
	}
	return e.groupOf(&Provider{Name: provider}, "")
}

// restoreHold puts one hold back. REQUIRES: e.mu.
func (e *Engine) restoreHold(s *HoldState) {
	if !s.Scope.held() || s.State == StateNormal || s.State >= numStates || len(s.RawKey) == 0 || s.Interval < 0 || s.Ceiling < 0 ||
		s.Max < 0 || s.Connections < 0 || s.Repeats < 0 || s.Base <= 0 || s.Step <= 0 ||
		s.State == StateSlowed && (s.Interval <= 0 || s.Ceiling <= 0) ||
		s.TooFast < 0 || s.TooMany < 0 || s.Worked < 0 || s.WorkedConnections < 0 || s.Look < 0 || s.Gain < 0 || s.Gain > mostGain {
		return
	}
	g := e.groupNamed(s.Provider, s.Site)
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.holds) >= maxHolds {
		return
	}
	key := holdKey{s.Scope, joinKey(s.RawKey)}
	h := &hold{
		key: key, m: g.m, rule: e.ruleNamed(s), reply: s.Reply,
		began: e.ns(s.Began), max: s.Max, cap: s.Connections, repeats: s.Repeats,
		base: int64(s.Base), longest: int64(s.Longest), step: int64(s.Step),
		interval: int64(s.Interval), ceiling: int64(s.Ceiling),
	}
	if s.State != StateHeld && s.State != StateDisabled {
		h.cap = max(h.cap, 1) // with none allowed, none could ever succeed
	}
	h.learned = lesson{
		fast: int64(s.TooFast), many: s.TooMany, pace: int64(s.Worked), cap: s.WorkedConnections,
		wait: min(int64(s.Look), lastLook), rest: s.Settled, gain: s.Gain,
	}
	h.enter(s.State, e.ns(s.Since))
	if !s.Until.IsZero() {
		h.until = e.ns(s.Until)
	}
	h.underRules(e.rules.Load(), g.name)
	if g.holds == nil {
		g.holds = map[holdKey]*hold{}
	}
	g.holds[key] = h
}

// ruleNamed finds the rule a hold came from, or stands in for one that is gone.
func (e *Engine) ruleNamed(s *HoldState) *Rule {
	r := e.rules.Load()
	lists := [][]*Rule{r.def.rules}
	if p := r.byName[s.Provider]; p != nil {
		lists = append(lists, p.rules)
	}
	for _, rules := range lists {
		for _, rule := range rules {
			if rule.Name == s.Rule {
				return rule
			}
		}
	}
	return &Rule{Name: s.Rule, Origin: s.Origin}
}

// restoreSuspension puts one suspension back with the time it began.
func (e *Engine) restoreSuspension(s Suspension) {
	if s.Selector == (Selector{}) {
		return
	}
	st := stop{Suspension: s}
	if !s.Until.IsZero() {
		st.until = e.ns(s.Until)
	}
	e.stops.edit(func(by map[Selector]stop) {
		if len(by) < maxSuspensions {
			by[s.Selector] = st
		}
	})
}

// snapshot copies the state of the round robin.
func (p *picker) snapshot() []PickState {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []PickState
	for k, state := range p.state {
		cur := map[string]int64{}
		for i, s := range p.pools[k.pool] {
			cur[s.Name] = state[i]
		}
		out = append(out, PickState{Pool: k.pool, Provider: k.provider, Current: cur})
	}
	slices.SortFunc(out, func(a, b PickState) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Provider, b.Provider))
	})
	return out
}

// restore puts the state of the round robin back for the sources that still
// exist. A value that no run could have reached starts from zero.
func (p *picker) restore(states []PickState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range states {
		sources := p.pools[s.Pool]
		if len(sources) == 0 || len(p.state) >= maxPicks {
			continue
		}
		var total int64
		for _, src := range sources {
			total += max(src.Weight, 0)
		}
		state := make([]int64, len(sources))
		for i, src := range sources {
			if v := s.Current[src.Name]; v >= -total && v <= total {
				state[i] = v
			}
		}
		p.state[pickKey{s.Pool, s.Provider}] = state
	}
}
