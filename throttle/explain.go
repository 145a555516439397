package throttle

import (
	"math"
	"net/netip"
	"time"
)

// Explanation says what a lane may do and why.
type Explanation struct {
	Source   string    `json:"source"`
	Site     string    `json:"site"`
	Provider string    `json:"provider"`
	Settings []Setting `json:"settings"`

	// Open counts the connections of the lane, of its source at the provider,
	// and of all sources there.
	Open OpenConnections `json:"open"`
	// Holds are those that could touch this source or domain; Suspensions
	// likewise.
	Holds       []HoldState  `json:"holds,omitempty"`
	Suspensions []Suspension `json:"suspensions,omitempty"`

	// Connect and Send are what a request made now would be told.
	Connect Answer `json:"connect"`
	Send    Answer `json:"send"`

	// MaxRate is the most that the settings allow, in messages per second, and
	// MaxRateBy the setting that binds; zero if nothing limits the rate.
	MaxRate   float64 `json:"max_rate,omitempty"`
	MaxRateBy *Origin `json:"max_rate_by,omitempty"`
	// Warmup is today's volume while the source warms up there.
	Warmup *PlanDay `json:"warmup,omitempty"`
}

// Setting is one value in force and where it came from.
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Origin Origin `json:"origin"`
}

// OpenConnections counts open connections at three levels.
type OpenConnections struct {
	Lane     int64 `json:"lane"`
	Source   int64 `json:"source"`
	Provider int64 `json:"provider"`
}

// Answer is a grant or refusal in words.
type Answer struct {
	OK    bool      `json:"ok"`
	Limit string    `json:"limit,omitempty"`
	Rule  string    `json:"rule,omitempty"`
	At    time.Time `json:"at,omitzero"` // zero with a refusal: when a slot is free, or on resume
}

func answer(g Grant) Answer {
	a := Answer{OK: g.OK, Limit: g.Limit.String(), At: g.At}
	if g.Rule != nil {
		a.Rule = g.Rule.String()
	}
	return a
}

// Explain says what holds for mail to a target at now, without changing
// anything that permits depend on.
func (e *Engine) Explain(t Target, now time.Time) Explanation {
	l := e.Lane(t)
	defer l.Close()
	eff := l.Limits(t.Domain)
	x := Explanation{
		Source: t.Source, Site: t.Site, Provider: l.Provider(),
		Connect: answer(l.WhyConnect(now, netip.Addr{})),
		Send:    answer(l.WhySend(now, Mail{Domain: t.Domain})),
	}
	for k, v := range eff.All {
		x.Settings = append(x.Settings, Setting{Key: k.String(), Value: v.String(), Origin: v.Origin})
	}
	x.MaxRate, x.MaxRateBy = eff.ceiling()
	if days := l.WarmupPlan(now); len(days) > 0 {
		x.Warmup = &days[0]
	}
	g, at := l.lock(now)
	x.Open = OpenConnections{Lane: l.n.busy, Source: l.sn.busy, Provider: g.all.busy}
	for _, h := range g.holds {
		h.settle(at)
		if h.concerns(l, t.Domain) {
			x.Holds = append(x.Holds, e.holdState(g, h))
		}
	}
	name := g.name
	g.mu.Unlock()
	sortHolds(x.Holds)
	for _, s := range e.Suspensions(now) {
		if s.Selector.touches(name, t.Source, t.Domain) {
			x.Suspensions = append(x.Suspensions, s)
		}
	}
	return x
}

// concerns reports whether a hold is about a source or recipient domain, or
// about some sender, which may be any.
func (h *hold) concerns(l *Lane, domain string) bool {
	switch h.key.scope {
	case ScopeSource:
		return h.key.key == l.src.name
	case ScopeNetblock:
		return h.key.key == l.netblock
	case ScopeDomain:
		return h.key.key == domain
	}
	return true
}

// touches reports whether a suspension can apply to a source, provider and
// domain.
func (s Selector) touches(provider, source, domain string) bool {
	fits := func(want, have string) bool { return want == "" || want == have }
	return fits(s.Provider, provider) && fits(s.Source, source) && fits(s.Domain, domain)
}

// ceiling is the strictest of the message rates, a connection rate times the
// messages per connection among them.
func (e *Effective) ceiling() (float64, *Origin) {
	least, by := math.Inf(1), (*Origin)(nil)
	lower := func(rate float64, o *Origin) {
		if rate < least {
			least, by = rate, o
		}
	}
	for _, k := range []Key{KeyRate, KeySourceRate, KeyProviderRate, KeyTenantRate, KeyCampaignRate, KeySenderDomainRate, KeyRecipientRate} {
		if v := e.val[k]; v != nil {
			lower(slowest(v), &v.Origin)
		}
	}
	if per, ok := e.Count(KeyMessagesPerConnection); ok {
		for _, k := range []Key{KeyConnectionRate, KeySourceConnectionRate, KeyProviderConnectionRate} {
			if v := e.val[k]; v != nil {
				lower(slowest(v)*float64(per), &v.Origin)
			}
		}
	}
	if by == nil {
		return 0, nil
	}
	return least, by
}
