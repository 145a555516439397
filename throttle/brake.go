package throttle

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// brake watches each tenant or campaign and stops the one whose mail goes
// wrong, so that it does not spoil the addresses it shares with others.
type brake struct {
	name     string
	origin   Origin
	campaign bool // watches campaigns, not tenants

	bounces    float64 // shares above which it acts; 0: not watched
	unknown    float64
	complaints float64
	sample     int64 // outcomes it takes before a share means anything
	within     time.Duration

	action brakeAction
	length time.Duration
	rate   *Value
}

// brakeAction is what a brake does.
type brakeAction uint8

const (
	brakeSlow  brakeAction = iota // hold the key to a rate for a time
	brakePause                    // stop it for a time
	brakeHold                     // stop it until an operator resumes
)

var brakeActions = []string{"slow", "pause", "hold"}

// Report is a fact about mail sent earlier: a complaint, or a bounce that came
// as a message of its own.
type Report struct {
	Tenant, Campaign string
	Complaint        bool
	Bounce           bool
	UnknownUser      bool
}

// maxBrakeKeys bounds what the brakes count at once.
const maxBrakeKeys = 100_000

// brakeKey names the counters of one brake for one tenant or campaign.
type brakeKey struct{ brake, key string }

// brakeCount counts outcomes in two halves of the brake's period, so that what
// is older than the period is forgotten without keeping every time.
type brakeCount struct {
	half [2]tally
	from int64 // start of half[0], the newer
}

type tally struct {
	Sent       int64 `json:"sent"` // outcomes: delivered or bounced
	Bounces    int64 `json:"bounces,omitempty"`
	Unknown    int64 `json:"unknown,omitempty"`
	Complaints int64 `json:"complaints,omitempty"`
}

// BrakeState is what a brake has counted for one key.
type BrakeState struct {
	Brake string    `json:"brake"`
	Key   []string  `json:"key"` // tenant, or tenant and campaign
	From  time.Time `json:"from"`
	New   tally     `json:"new"`
	Old   tally     `json:"old"`
	// SlowUntil is set while the key is held to the brake's rate.
	SlowUntil time.Time `json:"slow_until,omitzero"`
}

// brakes is the state of all brakes. Its mutex comes after a group's.
type brakes struct {
	slowing atomic.Int64 // entries of slow; zero spares the hot path the lock

	mu     sync.Mutex // protects everything below
	counts map[brakeKey]*brakeCount
	slow   map[holdKey]*slowed
}

// slowed is a key held to a rate over all destinations.
type slowed struct {
	by    *brake
	until int64
	meter meter
}

// observe counts the outcome of a transaction.
func (b *brakes) observe(l *Lane, now int64, o *Observation, out []Action) []Action {
	list := l.e.rules.Load().brakes
	if len(list) == 0 {
		return out
	}
	var t tally
	switch o.Result {
	case message.Delivered:
		t.Sent = 1
	case message.Failed:
		t.Sent, t.Bounces = 1, 1
		if o.UnknownUser {
			t.Unknown = 1
		}
	default:
		return out
	}
	return b.add(l.e, list, now, o.Tenant, o.Campaign, t, out)
}

// Report feeds facts that arrive later to the brakes and returns what they
// cause.
func (e *Engine) Report(now time.Time, r Report) []Action {
	var t tally
	if r.Complaint {
		t.Complaints = 1
	}
	if r.Bounce {
		t.Bounces = 1
	}
	if r.UnknownUser {
		t.Unknown = 1
	}
	return e.brake.add(e, e.rules.Load().brakes, e.ns(now), r.Tenant, r.Campaign, t, nil)
}

// add counts for every brake that watches the tenant or campaign, and acts.
func (b *brakes) add(e *Engine, list []*brake, now int64, tenant, campaign string, t tally, out []Action) []Action {
	for _, br := range list {
		key := tenant
		if br.campaign {
			key = campaignKey(tenant, campaign)
		}
		if tenant == "" || br.campaign && campaign == "" {
			continue
		}
		if why := b.count(br, key, now, t); why != "" {
			out = append(out, b.act(e, br, tenant, campaign, now, why)...)
		}
	}
	return out
}

// count adds to one counter and says which share is too high, if any. The
// counter then starts anew: the same outcomes must not be punished twice.
func (b *brakes) count(br *brake, key string, now int64, t tally) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := brakeKey{br.name, key}
	c := b.counts[k]
	if c == nil {
		if len(b.counts) >= maxBrakeKeys {
			b.prune(now)
		}
		if b.counts == nil {
			b.counts = map[brakeKey]*brakeCount{}
		}
		c = &brakeCount{from: now}
		b.counts[k] = c
	}
	if half := int64(br.within / 2); now-c.from >= half {
		c.half[1] = c.half[0]
		if now-c.from >= 2*half {
			c.half[1] = tally{}
		}
		c.half[0], c.from = tally{}, now
	}
	h := &c.half[0]
	h.Sent += t.Sent
	h.Bounces += t.Bounces
	h.Unknown += t.Unknown
	h.Complaints += t.Complaints
	why := br.judge(c)
	if why != "" {
		c.half = [2]tally{}
	}
	return why
}

// judge compares the shares with the thresholds.
func (br *brake) judge(c *brakeCount) string {
	sent := c.half[0].Sent + c.half[1].Sent
	if sent < br.sample {
		return ""
	}
	for _, w := range []struct {
		what  string
		n     int64
		limit float64
	}{
		{"complaints", c.half[0].Complaints + c.half[1].Complaints, br.complaints},
		{"unknown users", c.half[0].Unknown + c.half[1].Unknown, br.unknown},
		{"bounces", c.half[0].Bounces + c.half[1].Bounces, br.bounces},
	} {
		if w.limit > 0 && float64(w.n) > w.limit*float64(sent) {
			return fmt.Sprintf("%d %s of %d, above %g%%", w.n, w.what, sent, 100*w.limit)
		}
	}
	return ""
}

// prune forgets counters that nothing was added to for a day, or all of them:
// a brake that starts counting anew acts later, never wrongly.
func (b *brakes) prune(now int64) {
	for k, c := range b.counts {
		if now-c.from > nsPerDay {
			delete(b.counts, k)
		}
	}
	if len(b.counts) >= maxBrakeKeys {
		clear(b.counts)
	}
}

// act stops or slows a key and builds the event and the alert.
func (b *brakes) act(e *Engine, br *brake, tenant, campaign string, now int64, why string) []Action {
	a := Action{Kind: ActSuspend, Scope: ScopeTenant, Key: tenant, Rule: br.name, Origin: &br.origin}
	sel := Selector{Tenant: tenant}
	if br.campaign {
		a.Scope, a.Key, sel.Campaign = ScopeCampaign, campaignKey(tenant, campaign), campaign
	}
	e.metrics.brakes.WithLabelValues(brakeActions[br.action]).Inc()
	reason := fmt.Sprintf("brake %s: %s (%s)", br.name, why, br.origin)
	event := message.EventEgressSuspended
	var until time.Time
	if br.action != brakeHold {
		until = e.time(now + int64(br.length))
	}
	if br.action == brakeSlow {
		a.Kind, event = ActThrottle, message.EventEgressThrottled
		b.mu.Lock()
		if b.slow == nil {
			b.slow = map[holdKey]*slowed{}
		}
		b.slow[holdKey{a.Scope, a.Key}] = &slowed{by: br, until: now + int64(br.length)}
		b.slowing.Store(int64(len(b.slow)))
		b.mu.Unlock()
	} else {
		e.Suspend(sel, until, reason)
	}
	a.Until = until
	a.Event = stopEvent(event, e.time(now), Suspension{Selector: sel, Until: until, Reason: reason})
	return []Action{a, {Kind: ActAlert, Scope: a.Scope, Key: a.Key, Rule: br.name, Origin: &br.origin}}
}

// take checks and charges the rates of slowed tenants and campaigns, last of
// all limits and in one step, as takeMX does for addresses. REQUIRES: the
// group's mutex.
func (b *brakes) take(v *verdict, now int64, m *Mail, dry bool) {
	if b.slowing.Load() == 0 || v.limit != LimitNone {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.slowedKey(holdKey{ScopeTenant, m.Tenant}, now)
	c := b.slowedKey(holdKey{ScopeCampaign, campaignKey(m.Tenant, m.Campaign)}, now)
	if t != nil {
		v.meter(&t.meter, t.by.rate, now, 1, LimitTenant)
	}
	if c != nil {
		v.meter(&c.meter, c.by.rate, now, 1, LimitCampaign)
	}
	if v.limit != LimitNone || dry {
		return
	}
	if t != nil {
		t.meter.take(t.by.rate, now, 1)
	}
	if c != nil {
		c.meter.take(c.by.rate, now, 1)
	}
}

// slowedKey returns the entry of a key, dropping it when its time is over.
// REQUIRES: b.mu.
func (b *brakes) slowedKey(k holdKey, now int64) *slowed {
	s := b.slow[k]
	if s != nil && now >= s.until {
		delete(b.slow, k)
		b.slowing.Store(int64(len(b.slow)))
		return nil
	}
	return s
}

func (b *brakes) snapshot(e *Engine) []BrakeState {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []BrakeState
	for k, c := range b.counts {
		s := BrakeState{Brake: k.brake, Key: splitKey(k.key), From: e.time(c.from), New: c.half[0], Old: c.half[1]}
		scope := ScopeTenant
		if len(s.Key) > 1 {
			scope = ScopeCampaign
		}
		if sl := b.slow[holdKey{scope, k.key}]; sl != nil && sl.by.name == k.brake {
			s.SlowUntil = e.time(sl.until)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y BrakeState) int {
		return cmp.Or(cmp.Compare(x.Brake, y.Brake), slices.Compare(x.Key, y.Key))
	})
	return out
}

func (b *brakes) restore(e *Engine, states []BrakeState) {
	list := e.rules.Load().brakes
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range states {
		i := slices.IndexFunc(list, func(br *brake) bool { return br.name == s.Brake })
		if i < 0 || len(s.Key) == 0 || len(b.counts) >= maxBrakeKeys {
			continue
		}
		if b.counts == nil {
			b.counts, b.slow = map[brakeKey]*brakeCount{}, map[holdKey]*slowed{}
		}
		key := joinKey(s.Key)
		b.counts[brakeKey{s.Brake, key}] = &brakeCount{half: [2]tally{s.New, s.Old}, from: e.ns(s.From)}
		if !s.SlowUntil.IsZero() && list[i].rate != nil {
			scope := ScopeTenant
			if list[i].campaign {
				scope = ScopeCampaign
			}
			b.slow[holdKey{scope, key}] = &slowed{by: list[i], until: e.ns(s.SlowUntil)}
		}
	}
	b.slowing.Store(int64(len(b.slow)))
}
