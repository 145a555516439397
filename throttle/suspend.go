package throttle

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Selector names mail: all fields that are set have to fit. Domain is the
// recipient domain.
type Selector struct {
	Domain   string `json:"domain,omitempty"`
	Provider string `json:"provider,omitempty"`
	Tenant   string `json:"tenant,omitempty"`
	Campaign string `json:"campaign,omitempty"`
	Source   string `json:"source,omitempty"`
}

// mask keeps the fields whose bit is set.
func (s Selector) mask(m uint8) Selector {
	var out Selector
	if m&1 != 0 {
		out.Domain = s.Domain
	}
	if m&2 != 0 {
		out.Provider = s.Provider
	}
	if m&4 != 0 {
		out.Tenant = s.Tenant
	}
	if m&8 != 0 {
		out.Campaign = s.Campaign
	}
	if m&16 != 0 {
		out.Source = s.Source
	}
	return out
}

// fields is the mask of the fields that are set.
func (s Selector) fields() uint8 {
	var m uint8
	for i, f := range []string{s.Domain, s.Provider, s.Tenant, s.Campaign, s.Source} {
		if f != "" {
			m |= 1 << i
		}
	}
	return m
}

// scope is what a suspension stops on a lane: all of it, or the mail of one
// queue.
func (s Selector) scope() Scope {
	if s.Domain == "" && s.Tenant == "" && s.Campaign == "" {
		return ScopeSource
	}
	return ScopeDomain
}

// Suspension stops mail until a time, or until it is resumed.
type Suspension struct {
	Selector Selector  `json:"selector"`
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until,omitzero"` // zero: until resumed
	Reason   string    `json:"reason,omitempty"`
}

// maxSuspensions bounds the table.
const maxSuspensions = 100_000

// stops are the suspensions in force. Readers take a snapshot; the rare writer
// copies the table.
type stops struct {
	table atomic.Pointer[stopTable]
	mu    sync.Mutex // serialises writers
}

type stopTable struct {
	masks []uint8 // which combinations of fields are in use
	by    map[Selector]stop
}

type stop struct {
	Suspension
	until int64 // on the engine's scale, 0: for ever
}

// covering yields the suspensions that cover the mail, past ones too.
func (s *stops) covering(mail Selector) iter.Seq[stop] {
	return func(yield func(stop) bool) {
		t := s.table.Load()
		if t == nil {
			return
		}
		for _, m := range t.masks {
			if st, ok := t.by[mail.mask(m)]; ok && !yield(st) {
				return
			}
		}
	}
}

// check adds the suspension that covers the mail, if any.
func (s *stops) check(v *verdict, now int64, mail Selector) {
	for st := range s.covering(mail) {
		switch {
		case st.until == 0:
			v.stop(LimitSuspended, nil, st.Selector.scope())
		default:
			v.held(st.until, now, LimitSuspended, nil, st.Selector.scope())
		}
	}
}

// Stopped reports whether a suspension covers the mail of one queue, tenant,
// campaign and domain, on its way from a source to a provider, and until when;
// the zero time means until it is resumed. It costs next to nothing while
// nothing is suspended, and asks for no permit.
func (e *Engine) Stopped(now time.Time, mail Selector) (until time.Time, stopped bool) {
	var v verdict
	e.stops.check(&v, e.ns(now), mail)
	if v.limit == LimitNone {
		return time.Time{}, false
	}
	if v.full {
		return time.Time{}, true
	}
	return e.time(v.at), true
}

// Suspended returns the suspension that stops the mail of one queue longest, on
// its way from a source to a provider.
func (e *Engine) Suspended(now time.Time, mail Selector) (longest Suspension, stopped bool) {
	for st := range e.stops.covering(mail) {
		if st.until != 0 && st.until <= e.ns(now) {
			continue
		}
		if !stopped || st.until == 0 || !longest.Until.IsZero() && st.Until.After(longest.Until) {
			longest, stopped = st.Suspension, true
		}
	}
	return longest, stopped
}

// String lists the fields that are set.
func (s Selector) String() string {
	var list []string
	for _, f := range [][2]string{{"domain", s.Domain}, {"provider", s.Provider}, {"tenant", s.Tenant}, {"campaign", s.Campaign}, {"source", s.Source}} {
		if f[1] != "" {
			list = append(list, f[0]+" "+f[1])
		}
	}
	return strings.Join(list, ", ")
}

// AnyStopped reports whether there is any suspension at all.
func (e *Engine) AnyStopped() bool { return e.stops.table.Load() != nil }

// NextResume is when the next suspension runs out, zero if none does.
func (e *Engine) NextResume() (next time.Time) {
	t := e.stops.table.Load()
	if t == nil {
		return next
	}
	for _, st := range t.by {
		if st.until != 0 && (next.IsZero() || st.Until.Before(next)) {
			next = st.Until
		}
	}
	return next
}

// edit replaces the table by a changed copy.
func (s *stops) edit(fn func(by map[Selector]stop)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &stopTable{by: map[Selector]stop{}}
	if old := s.table.Load(); old != nil {
		maps.Copy(t.by, old.by)
	}
	fn(t.by)
	for sel := range t.by {
		if m := sel.fields(); !slices.Contains(t.masks, m) {
			t.masks = append(t.masks, m)
		}
	}
	if len(t.by) == 0 {
		t = nil
	}
	s.table.Store(t)
}

// Suspend stops the mail a selector names until a time, or until Resume if
// until is zero. It takes the place of a suspension with the same selector. An
// empty selector, or one too many, is refused.
func (e *Engine) Suspend(sel Selector, until time.Time, reason string) bool {
	if sel == (Selector{}) {
		return false
	}
	st := stop{Suspension: Suspension{Selector: sel, Since: e.opt.Now(), Until: until, Reason: reason}}
	if !until.IsZero() {
		st.until = e.ns(until)
	}
	ok := true
	e.stops.edit(func(by map[Selector]stop) {
		if _, there := by[sel]; !there && len(by) >= maxSuspensions {
			ok = false
			return
		}
		by[sel] = st
	})
	return ok
}

// Resume ends the suspension with exactly this selector. If the selector names
// a provider, the holds there that it covers end as well, those of a disabled
// source among them. It reports whether there was anything to end.
func (e *Engine) Resume(sel Selector) bool {
	found := false
	e.stops.edit(func(by map[Selector]stop) {
		_, found = by[sel]
		delete(by, sel)
	})
	if sel.Provider != "" && e.release(sel) {
		found = true
	}
	if found {
		e.wakeAll()
	}
	return found
}

// release drops the holds at a provider that a selector covers.
func (e *Engine) release(sel Selector) bool {
	found := false
	for _, g := range e.allGroups() {
		if g.name != sel.Provider {
			continue
		}
		g.mu.Lock()
		for k, h := range g.holds {
			if covers(sel, k) {
				h.enter(StateNormal, g.now)
				delete(g.holds, k)
				found = true
			}
		}
		g.mu.Unlock()
	}
	return found
}

// covers reports whether a selector, apart from its provider, names a hold.
func covers(sel Selector, k holdKey) bool {
	switch k.scope {
	case ScopeSource:
		return sel.Source == k.key
	case ScopeTenant:
		return sel.Tenant == k.key && sel.Campaign == ""
	case ScopeCampaign:
		return campaignKey(sel.Tenant, sel.Campaign) == k.key
	case ScopeDomain, ScopeDKIMDomain, ScopeSenderDomain:
		return sel.Domain == k.key
	}
	return false
}

// allGroups returns the groups as they are now.
func (e *Engine) allGroups() []*group {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return slices.Collect(maps.Values(e.groups))
}

// wakeAll notifies every lane that waits without a time.
func (e *Engine) wakeAll() {
	var woken []notice
	for _, g := range e.allGroups() {
		g.mu.Lock()
		woken = append(woken, g.drain(FreedAll)...)
		g.mu.Unlock()
	}
	e.mxMu.Lock()
	for _, n := range e.mx {
		woken = append(woken, n.drain()...)
	}
	e.mxMu.Unlock()
	wake(woken)
}

// Suspensions returns those in force at now, in a stable order.
func (e *Engine) Suspensions(now time.Time) []Suspension {
	t := e.stops.table.Load()
	if t == nil {
		return nil
	}
	var out []Suspension
	for _, st := range t.by {
		if st.until == 0 || st.until > e.ns(now) {
			out = append(out, st.Suspension)
		}
	}
	slices.SortFunc(out, func(a, b Suspension) int { return compareSelectors(a.Selector, b.Selector) })
	return out
}

func compareSelectors(a, b Selector) int {
	return cmp.Or(
		cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Source, b.Source),
		cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Campaign, b.Campaign),
		cmp.Compare(a.Domain, b.Domain),
	)
}
