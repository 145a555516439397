package throttle

import (
	"cmp"
	"slices"
	"time"
)

// WarmupPlan is the forecast of one source at one provider.
type WarmupPlan struct {
	Source   string    `json:"source"`
	Provider string    `json:"provider"` // "" for those it has not sent to yet
	Site     string    `json:"site,omitempty"`
	Schedule string    `json:"schedule"` // the name of its [warmup.NAME]
	Days     []PlanDay `json:"days"`     // today first; empty when it is over
}

// WarmupPlans forecasts up to most coming days of every warm-up that goes on or
// would begin for one of the sources.
func (e *Engine) WarmupPlans(now time.Time, sources []string, most int) []WarmupPlan {
	r := e.rules.Load()
	at := e.ns(now)
	var out []WarmupPlan
	add := func(g *group, source string, w warmState) {
		p := WarmupPlan{Source: source}
		var v *Value
		if g != nil {
			p.Provider, p.Site = g.name, g.site
			v = r.effective(r.byName[g.name], "", source).val[KeyWarmup]
		} else {
			v = r.effective(nil, "", source).val[KeyWarmup]
		}
		if v == nil || r.warmups[v.Name] == nil {
			return
		}
		p.Schedule, p.Days = v.Name, w.forecast(r.warmups[v.Name], at, most)
		out = append(out, p)
	}
	for _, g := range e.allGroups() {
		g.mu.Lock()
		for _, sn := range g.sources {
			if sn.warm != nil {
				add(g, sn.src.name, *sn.warm)
			}
		}
		g.mu.Unlock()
	}
	for _, s := range sources {
		add(nil, s, warmState{date: at / nsPerDay})
	}
	slices.SortFunc(out, func(a, b WarmupPlan) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Site, b.Site))
	})
	return out
}

// forecast lists the coming days of a schedule, today first, if mail is sent on
// each of them.
func (w warmState) forecast(plan *warmup, now int64, most int) []PlanDay {
	w.roll(plan, now)
	var out []PlanDay
	for d := w.day; d < len(plan.volumes) && len(out) < most; d++ {
		out = append(out, PlanDay{
			Date: time.Unix(0, (w.date+int64(d-w.day))*nsPerDay).UTC(), Day: d + 1, Volume: plan.volumes[d],
		})
	}
	if len(out) > 0 {
		out[0].Sent = w.sent
	}
	return out
}
