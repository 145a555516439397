package throttle

import (
	"strconv"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// maxTriggers bounds the counters of rules that need several replies.
const maxTriggers = 4096

// triggerKey names the counter of one rule for one key.
type triggerKey struct {
	rule string
	key  holdKey
}

// trigger remembers when the last replies came, newest last.
type trigger struct{ at []int64 }

// hit counts one reply and reports whether n came within the period.
func (t *trigger) hit(now int64, n int, within time.Duration) bool {
	keep := t.at[:0]
	for _, at := range t.at {
		if now-at < int64(within) {
			keep = append(keep, at)
		}
	}
	if t.at = append(keep, now); len(t.at) < n {
		return false
	}
	t.at = t.at[:0]
	return true
}

// held lists the keys that a rule's scope means for this mail. A scope the mail
// has nothing for falls back to the source: the provider meant something, and
// the source is what it certainly saw.
func (l *Lane) held(s Scope, o *Observation) []holdKey {
	src := holdKey{ScopeSource, l.src.name}
	one := func(s Scope, key string) []holdKey {
		if key == "" {
			return []holdKey{src}
		}
		return []holdKey{{s, key}}
	}
	switch s {
	case ScopeSource:
		return []holdKey{src}
	case ScopeNetblock:
		return one(s, l.netblock)
	case ScopeSenderDomain:
		return one(s, o.SenderDomain)
	case ScopeDKIMDomain:
		if o.DKIMDomain == "" {
			// Unsigned mail: its MAIL FROM domain is what is left of its
			// identity, and the source must not pay for it.
			return one(ScopeSenderDomain, o.SenderDomain)
		}
		return one(s, o.DKIMDomain)
	case ScopeTenant:
		return one(s, o.Tenant)
	case ScopeDomain:
		return one(s, o.Domain)
	case ScopeCampaign:
		if o.Campaign == "" {
			// Without a campaign nothing but the message carries the URL.
			return nil
		}
		return one(s, campaignKey(o.Tenant, o.Campaign))
	case ScopeIdentity:
		keys := []holdKey{src}
		if o.DKIMDomain != "" {
			keys = append(keys, holdKey{ScopeDKIMDomain, o.DKIMDomain})
		}
		if o.SenderDomain != "" {
			keys = append(keys, holdKey{ScopeSenderDomain, o.SenderDomain})
		}
		return keys
	}
	return nil
}

// triggered counts a reply towards a rule's threshold. REQUIRES: g.mu.
func (g *group) triggered(rule *Rule, keys []holdKey, now int64) bool {
	k := triggerKey{rule: rule.Name}
	if len(keys) > 0 {
		k.key = keys[0]
	}
	t := g.counts[k]
	if t == nil {
		if len(g.counts) >= maxTriggers {
			// Losing counts only delays a reaction; keeping them all would
			// let a hostile server fill memory.
			clear(g.counts)
		}
		if g.counts == nil {
			g.counts = map[triggerKey]*trigger{}
		}
		t = &trigger{}
		g.counts[k] = t
	}
	return t.hit(now, rule.Trigger, rule.Within)
}

// adapt puts a rule into force for one key. REQUIRES: g.mu.
func (l *Lane) adapt(g *group, now int64, rule *Rule, k holdKey, reply *message.Reply, out []Action) []Action {
	h := g.holds[k]
	if h == nil {
		if len(g.holds) >= maxHolds {
			return append(out, Action{Kind: ActAlert, Scope: k.scope, Key: k.key, Rule: rule.Name, Origin: &rule.Origin})
		}
		h = &hold{key: k, m: g.m, began: now}
		if g.holds == nil {
			g.holds = map[holdKey]*hold{}
		}
		g.holds[k] = h
	}
	h.configure(l, rule)
	changed, kind, event := false, ActThrottle, message.EventEgressThrottled
	switch rule.Action {
	case VerbRecover, VerbSuspend:
		switch h.state {
		case StateNormal, StateSlowed:
			h.interval = 0
			h.pause(now, h.base)
			changed = true
		default:
			changed = h.deferred(now, l.minute(k, now))
		}
		if rule.Action == VerbSuspend {
			kind, event = ActSuspend, message.EventEgressSuspended
		}
	case VerbBackoff:
		switch h.state {
		case StateNormal, StateSlowed:
			changed = h.slow(now, l.sn.pace(now), l.sn.busy, int64(rule.For))
		default:
			changed = h.deferred(now, l.minute(k, now))
		}
	case VerbConnections:
		changed = h.fewer(now, rule)
	case VerbDisable:
		changed = h.state != StateDisabled
		h.enter(StateDisabled, now)
		h.until, h.cap = 0, 0
		kind, event = ActDisable, message.EventEgressSuspended
	}
	if h.state == StateHeld && !rule.permanent(reply) && l.e.time(h.until).After(out[0].Until) {
		// The message waits with the last of its keys: coming back earlier
		// would only burn an attempt.
		out[0] = Action{
			Kind: ActDefer, Scope: k.scope, Key: k.key, Until: l.e.time(h.until),
			Spread: time.Duration(h.until-now) / 10, Rule: rule.Name, Origin: &rule.Origin,
		}
	}
	if !changed {
		return out
	}
	h.reply = clip(reply)
	if h.state == StateHeld || h.state == StateDisabled {
		out = append(out, Action{Kind: ActClose, Scope: k.scope, Key: k.key, Rule: rule.Name, Origin: &rule.Origin})
	}
	a := l.action(g, kind, h, now, event)
	a.Event.Reply = reply
	return append(out, a)
}

// configure takes the settings for a hold from the rule and the lane.
func (h *hold) configure(l *Lane, rule *Rule) {
	h.rule = rule
	base := l.eff.duration(KeyRecoveryHold, defaultRecoveryHold)
	if rule.For > 0 {
		base = rule.For
	}
	h.base = int64(base)
	h.longest = int64(max(l.eff.duration(KeyRecoveryMax, defaultRecoveryMax), base))
	h.step = int64(l.eff.duration(KeyRecoveryStep, defaultRecoveryStep))
	h.max, h.ceiling = l.eff.holdLimits()
}

// holdLimits are the connections and the interval between transactions at
// which a hold ends.
func (e *Effective) holdLimits() (connections, interval int64) {
	connections = defaultConnections
	for _, k := range []Key{KeyConnections, KeySourceConnections, KeyProviderConnections} {
		if n, ok := e.Count(k); ok {
			connections = n
			break
		}
	}
	if n, ok := e.Count(KeySourceConnections); ok {
		connections = min(connections, n)
	}
	interval = int64(time.Second) / 100
	for _, k := range []Key{KeyRate, KeySourceRate} {
		if v := e.val[k]; v != nil {
			interval = max(int64(float64(time.Second)/slowest(v)), 1)
		}
	}
	return connections, interval
}

// fewer holds connections down to what the rule says for its time; then one
// more at a time, as in a ramp.
func (h *hold) fewer(now int64, rule *Rule) bool {
	d := int64(rule.For)
	if d == 0 {
		d = int64(time.Hour)
	}
	if h.state == StateHeld || h.state == StateProbe || h.state == StateDisabled {
		return false // already stricter
	}
	if h.learned.cap > 0 && now-h.hit < int64(cohort) {
		return false // an echo of what we have gone back from
	}
	if h.refusedConnections(now) {
		return true
	}
	n := int64(rule.Connections)
	if h.state == StateRamp || h.state == StateSlowed {
		n = min(n, h.cap)
	}
	changed := h.state != StateRamp || n < h.cap
	if h.state != StateSlowed {
		h.enter(StateRamp, now)
	}
	h.cap, h.until = n, now+d
	return changed
}

// action builds the action and event for a change of a hold.
func (l *Lane) action(g *group, kind ActionKind, h *hold, now int64, t message.EventType) Action {
	a := Action{
		Kind: kind, Scope: h.key.scope, Key: h.key.key, Until: l.e.time(h.until),
		Rule: h.rule.Name, Origin: &h.rule.Origin,
	}
	if h.state == StateDisabled || kind == ActResume {
		a.Until = time.Time{}
	}
	var d strings.Builder
	d.WriteString(h.key.scope.String() + " " + showKey(h.key.key))
	d.WriteString(": " + h.state.String())
	if h.cap > 0 && kind != ActResume {
		d.WriteString(", " + strconv.FormatInt(h.cap, 10) + " connections")
	}
	if h.interval > 0 && kind != ActResume {
		d.WriteString(", " + perSecond(h.interval))
	}
	if learned := h.refusedAt(); learned != "" {
		d.WriteString(", " + learned)
	}
	if !a.Until.IsZero() {
		d.WriteString(", until " + a.Until.UTC().Format(time.RFC3339))
	}
	d.WriteString(" (" + h.rule.Origin.String() + ")")
	a.Event = &message.Event{
		Type: t, Time: l.e.time(now), Detail: d.String(),
		Egress: message.Egress{Source: l.src.name, Pool: l.pool, Provider: g.name, Site: l.key.site},
	}
	return a
}

// clip returns a reply on one line of bounded length.
func clip(r *message.Reply) string {
	const most = 512
	b := r.AppendText(make([]byte, 0, 128))
	return string(b[:min(len(b), most)])
}

// pace is the present interval between two transactions of a source, measured
// over the last full window or the running one, whichever is faster.
func (sn *sourceNode) pace(now int64) int64 {
	sn.roll(now)
	n := max(sn.current, sn.before[0])
	if n == 0 {
		return slowestPace
	}
	return window / n
}

// minute is how many transactions were granted in the last minute under a hold
// of this key, 0 if only the source's are counted and the key is another.
func (l *Lane) minute(k holdKey, now int64) int64 {
	if k.scope != ScopeSource {
		return 0
	}
	l.sn.roll(now)
	n := l.sn.current
	for _, earlier := range l.sn.before {
		n += earlier
	}
	return n
}

// roll starts a new window when the last one is over.
func (sn *sourceNode) roll(now int64) {
	age := now - sn.begun
	if age < window {
		return
	}
	empty := min(age/window-1, int64(len(sn.before)))
	copy(sn.before[min(empty+1, int64(len(sn.before))):], sn.before[:])
	clear(sn.before[:empty])
	if empty < int64(len(sn.before)) {
		sn.before[empty] = sn.current
	}
	sn.current, sn.begun = 0, now
}
