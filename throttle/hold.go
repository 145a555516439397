package throttle

import (
	"fmt"
	"slices"
	"time"
)

// State is where a hold stands.
type State uint8

// States. The recovery procedure goes held, probe, ramp, and back to held
// whenever the provider defers again; a key in no state is not held.
const (
	StateNormal   State = iota
	StateHeld           // nothing goes until the time is over
	StateProbe          // one connection, one transaction at a time
	StateRamp           // n connections, one more after each step that worked
	StateSlowed         // fewer connections and a pace, growing step by step
	StateDisabled       // nothing goes until an operator resumes
	numStates
)

var stateNames = [numStates]string{"normal", "held", "probe", "ramp", "slowed", "disabled"}

func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText writes the name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a name.
func (s *State) UnmarshalText(b []byte) error {
	i := slices.Index(stateNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("throttle: %q is not a state", b)
	}
	*s = State(i)
	return nil
}

// Defaults of the recovery settings and constants of the generic slow-down.
const (
	defaultRecoveryHold = 10 * time.Minute // Gmail: at least
	defaultRecoveryMax  = 4 * time.Hour
	defaultRecoveryStep = time.Minute
	defaultConnections  = 10 // where a ramp ends if no rule sets a limit

	// cohort is the time in which further deferrals are taken for echoes of
	// the first: they answer mail sent before we slowed down.
	cohort = 30 * time.Second
	// slowestPace is the interval that backing off never exceeds.
	slowestPace = int64(time.Minute)
	// paceSteps is how many steps of increase lead from nothing to the ceiling.
	paceSteps = 10
	// window is over which the present rate of a source is measured.
	window = int64(10 * time.Second)
	// maxHolds bounds the holds of one provider.
	maxHolds = 10_000
)

// holdKey names what is held at a provider.
type holdKey = shareKey

// hold is one thing a provider has asked us to slow down. The group's mutex
// guards it.
type hold struct {
	key     holdKey
	m       *providerMetrics
	state   State
	rule    *Rule
	reply   string // the words that caused it, cut to size
	began   int64  // when the present trouble started
	since   int64  // when the state was entered
	until   int64  // end of the hold, or of the present step
	base    int64  // length of the first hold
	longest int64
	step    int64
	max     int64 // connections at which the ramp ends
	cap     int64 // connections, and transactions under way, now
	busy    int64 // transactions under way
	repeats int   // holds in a row without a step that worked

	interval int64 // ns between two transactions; 0: no pace
	ceiling  int64 // the interval at which the hold ends
	next     int64 // when the next transaction may go
	hit      int64 // when we last went slower
	learned  lesson
}

// settle moves a hold on whose time is over.
func (h *hold) settle(now int64) {
	if h.state == StateHeld && now >= h.until {
		h.enter(StateProbe, now)
		h.cap, h.until = 1, 0
	}
}

func (h *hold) enter(s State, now int64) {
	was := h.learnedKinds()
	h.m.holds(h.state, s)
	h.state, h.since = s, now
	h.taught(was)
}

// pause starts a pause of at least d.
func (h *hold) pause(now, d int64) {
	h.enter(StateHeld, now)
	h.until, h.cap = now+d, 0
	h.learned.pace, h.learned.cap, h.learned.rest = 0, 0, false
}

// deferred notes that the provider deferred again for this key, whose source had
// so many transactions in the last minute, and reports whether that changed
// anything but the time.
func (h *hold) deferred(now, minute int64) bool {
	h.settle(now)
	switch h.state {
	case StateProbe, StateRamp:
		h.refusedRamp(minute)
		// The first failed probe waits as long again; later ones longer.
		d := h.base << min(max(h.repeats, 0), 20)
		if d <= 0 || d > h.longest {
			d = max(h.longest, h.base)
		}
		h.repeats++
		h.pause(now, d)
		return true
	case StateHeld:
		// An echo of mail already under way: ten minutes count from the last
		// deferral.
		h.until = max(h.until, now+h.base)
	}
	return false
}

// accepted notes that mail under this key was accepted while so many
// connections or transactions were open, and reports whether the hold is over.
func (h *hold) accepted(now, open int64) (over bool) {
	h.settle(now)
	h.learned.filled = h.learned.filled || open >= h.cap
	switch h.state {
	case StateProbe:
		h.enter(StateRamp, now)
		h.cap, h.until = min(2, max(h.max, 1)), now+h.step
	case StateRamp:
		// The step counts only if something went through during it, which
		// this very acceptance shows.
		if now < h.until {
			return false
		}
		h.repeats = 0
		return h.grow(now)
	case StateSlowed:
		return now >= h.until && h.grow(now)
	}
	return false
}

// slow halves rate and connections, after a rest of a minute: a limit by the
// minute is used up. pace is what was seen so far, in ns between transactions;
// it is used the first time only.
func (h *hold) slow(now, pace, busy, quiet int64) bool {
	if h.state == StateSlowed {
		if now-h.hit < int64(cohort) {
			return false
		}
		if h.refusedRate(now) {
			return true
		}
	}
	if h.state != StateSlowed {
		h.interval = max(pace, h.ceiling)
		h.cap = min(h.max, max(busy, 1))
	}
	h.enter(StateSlowed, now)
	h.hit, h.next = now, max(h.next, now+min(h.step, int64(time.Minute)))
	h.interval = min(h.interval*2, max(slowestPace, h.ceiling))
	h.cap = max(h.cap/2, 1)
	h.until = now + max(quiet, h.step)
	return true
}

// check adds what the hold says about a transaction, or about a connection. used
// are those under way.
func (h *hold) check(v *verdict, now, used int64, send bool) {
	h.settle(now)
	origin := &h.rule.Origin
	switch h.state {
	case StateHeld:
		v.held(h.until, now, LimitBackoff, origin, h.key.scope)
	case StateDisabled:
		v.stop(LimitSuspended, origin, h.key.scope)
	case StateProbe, StateRamp, StateSlowed:
		if used >= h.cap {
			v.stop(LimitBackoff, origin, h.key.scope)
		}
		if h.interval > 0 && send {
			v.held(h.next, now, LimitBackoff, origin, h.key.scope)
		}
	}
}

// take counts a permit against its holds, in the place of the one that it
// follows. REQUIRES: the group's mutex.
func (b *heldBy) take(now int64, follows *Grant) {
	if b == nil {
		return
	}
	for _, h := range b.by[:b.n] {
		if follows.under(h) == 0 {
			h.busy++
		} else {
			follows.holds.drop(h)
		}
		if h.interval > 0 {
			h.next = max(h.next, now) + h.interval
			h.learned.sent++
		}
	}
}

// drop takes a hold off the list.
func (b *heldBy) drop(h *hold) {
	i := slices.Index(b.by[:b.n], h)
	b.n--
	b.by[i], b.by[b.n] = b.by[b.n], nil
}

// release is the reverse of take. REQUIRES: the group's mutex.
func (b *heldBy) release() {
	if b == nil {
		return
	}
	for _, h := range b.by[:b.n] {
		h.busy--
	}
}

// heldConnect checks the holds on the lane's address. Connections are counted
// whether they were opened under the hold or before it. REQUIRES: g.mu.
func (g *group) heldConnect(v *verdict, now int64, l *Lane) {
	if h := g.holds[holdKey{ScopeSource, l.src.name}]; h != nil {
		h.check(v, now, l.sn.busy, false)
	}
	if h := g.holds[holdKey{ScopeNetblock, l.netblock}]; h != nil {
		h.check(v, now, g.netblockBusy(l.netblock), false)
	}
}

func (g *group) netblockBusy(block string) int64 {
	var n int64
	for _, sn := range g.sources {
		if sn.netblock == block {
			n += sn.busy
		}
	}
	return n
}

// heldSend checks every hold that mail could fall under and returns those that
// the permit has to be counted against. REQUIRES: g.mu.
func (g *group) heldSend(v *verdict, now int64, l *Lane, m *Mail) *heldBy {
	var b *heldBy
	for _, k := range holdKeys(l, m) {
		if k.key == "" {
			continue
		}
		h := g.holds[k]
		if h == nil {
			continue
		}
		h.check(v, now, h.busy-m.Follows.under(h), true)
		if b == nil {
			b = &heldBy{}
		}
		b.by[b.n] = h
		b.n++
	}
	return b
}

// holdKeys are the keys of everything a transaction could be held by.
func holdKeys(l *Lane, m *Mail) [maxHeld]holdKey {
	campaign := ""
	if m.Campaign != "" {
		campaign = campaignKey(m.Tenant, m.Campaign)
	}
	return [maxHeld]holdKey{
		{ScopeSource, l.src.name},
		{ScopeNetblock, l.netblock},
		{ScopeSenderDomain, m.SenderDomain},
		{ScopeDKIMDomain, m.DKIMDomain},
		{ScopeTenant, m.Tenant},
		{ScopeCampaign, campaign},
		{ScopeDomain, m.Domain},
	}
}
