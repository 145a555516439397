package throttle

import (
	"fmt"
	"time"
)

// warmup is a schedule: how many recipients a source may have at a provider on
// each sending day.
type warmup struct {
	volumes  []int64
	deferred float64 // share of deferrals above which a day is repeated
	sample   int64   // attempts it takes to judge a day
	origin   Origin
}

// maxWarmupDays bounds a schedule.
const maxWarmupDays = 366

// warmState is where a source stands at one provider. Days are counted in UTC,
// and a day counts only if mail was sent.
type warmState struct {
	day      int   // index into the volumes
	date     int64 // days since 1970 that sent belongs to
	sent     int64
	reserved int64 // up to where sent may go before more is written down
	wanted   bool  // more should be written down
	began    bool  // something was sent on this date for certain
	tried    int64 // attempts that had an answer
	deferred int64
}

const nsPerDay = int64(24 * time.Hour)

// roll moves the state to the day of now. A day with too many deferrals is
// repeated: the provider has said that it was too much.
func (w *warmState) roll(plan *warmup, now int64) {
	date := now / nsPerDay
	if date == w.date {
		return
	}
	bad := plan.sample > 0 && w.tried >= plan.sample && float64(w.deferred) > plan.deferred*float64(w.tried)
	if w.began && !bad {
		w.day++
	}
	*w = warmState{day: w.day, date: date}
}

// left is how much may still go today, and whether the schedule still limits.
func (w *warmState) left(plan *warmup) (int64, bool) {
	if w.day >= len(plan.volumes) {
		return 0, false
	}
	return max(plan.volumes[w.day]-w.sent, 0), true
}

// plan returns the schedule in force for the lane, nil if there is none.
func (l *Lane) plan() *warmup {
	v := l.eff.val[KeyWarmup]
	if v == nil {
		return nil
	}
	return l.rules.warmups[v.Name]
}

// warming checks today's volume for n more recipients and returns the state to
// charge. REQUIRES: the group's mutex.
func (l *Lane) warming(v *verdict, now, n int64, dry bool) *warmState {
	plan := l.plan()
	if plan == nil {
		return nil
	}
	w := l.sn.warm
	switch {
	case w == nil:
		w = &warmState{date: now / nsPerDay}
		if !dry {
			l.sn.warm = w
		}
	case dry:
		seen := *w
		w = &seen
	}
	w.roll(plan, now)
	left, limited := w.left(plan)
	switch {
	case !limited:
	case n > left:
		v.time((w.date+1)*nsPerDay, now, LimitWarmup, &plan.origin)
		if v.limit == LimitWarmup {
			v.max = left
		}
	case l.e.opt.Reserve != nil && !dry: // writing the volume down takes a moment only
		block := w.block(plan)
		if w.sent+n > w.reserved {
			v.stop(LimitWarmup, &plan.origin, ScopeNone)
		}
		if w.sent+n > w.reserved-block/2 && w.reserved < plan.volumes[w.day] {
			w.wanted = true
			l.e.opt.Reserve()
		}
	}
	return w
}

// minBlock is how much of a day's volume is written down at a time, at least.
const minBlock = 100

// block is how much of a day's volume is written down at a time, and so what a
// crash may waste of it: what was reserved counts as sent then.
func (w *warmState) block(plan *warmup) int64 {
	if w.day >= len(plan.volumes) {
		return 0
	}
	return max(minBlock, plan.volumes[w.day]/100)
}

// Reserve raises the volumes of warm-ups in a snapshot that is about to be
// saved: what is sent until the next save then counts from the start, so that no
// crash lets a day's volume be exceeded. Call Reserved when it is on stable
// storage.
func (e *Engine) Reserve(s *Snapshot) {
	e.eachWarmup(s, func(w *warmState, st *WarmupState, block int64) {
		if st.Reserved = w.reserved; w.wanted {
			st.Reserved = max(st.Reserved, w.sent+block)
		}
	})
}

// Reserved lets warm-ups use what a saved snapshot has reserved for them.
func (e *Engine) Reserved(s *Snapshot) {
	raised := false
	e.eachWarmup(s, func(w *warmState, st *WarmupState, _ int64) {
		if w.day == st.Day && w.date == st.Date && st.Reserved > w.reserved {
			w.reserved, w.wanted, raised = st.Reserved, false, true
		}
	})
	if raised {
		e.wakeAll()
	}
}

// eachWarmup calls fn for the warm-ups of a snapshot that still go on.
func (e *Engine) eachWarmup(s *Snapshot, fn func(w *warmState, st *WarmupState, block int64)) {
	rules := e.rules.Load()
	groups := map[[2]string]*group{}
	for _, g := range e.allGroups() {
		groups[[2]string{g.name, g.site}] = g
	}
	for i := range s.Warmups {
		st := &s.Warmups[i]
		g := groups[[2]string{st.Provider, st.Site}]
		if g == nil {
			continue
		}
		g.mu.Lock()
		for _, sn := range g.sources {
			v := rules.effective(rules.byName[g.name], "", sn.src.name).val[KeyWarmup]
			if sn.src.name != st.Source || sn.warm == nil || v == nil {
				continue
			}
			if plan := rules.warmups[v.Name]; plan != nil {
				fn(sn.warm, st, sn.warm.block(plan))
			}
		}
		g.mu.Unlock()
	}
}

// WarmupLeft is how many recipients a source may still have at a provider
// today, and whether a warm-up limits it at all. A caller that picks sources
// sends what is over through the warm ones.
func (l *Lane) WarmupLeft(now time.Time) (left int64, limited bool) {
	g, at := l.lock(now)
	defer g.mu.Unlock()
	plan := l.plan()
	if plan == nil {
		return 0, false
	}
	w := warmState{date: at / nsPerDay}
	if l.sn.warm != nil {
		w = *l.sn.warm
	}
	w.roll(plan, at)
	return w.left(plan)
}

// PlanDay is one day of a warm-up forecast.
type PlanDay struct {
	Date   time.Time `json:"date"`   // midnight UTC
	Day    int       `json:"day"`    // sending day, from 1
	Volume int64     `json:"volume"` // recipients
	Sent   int64     `json:"sent,omitempty"`
}

// WarmupPlan forecasts the coming days of a lane's warm-up, today first, if
// mail is sent on each of them. It is empty when there is no warm-up or it is
// over.
func (l *Lane) WarmupPlan(now time.Time) []PlanDay {
	g, at := l.lock(now)
	defer g.mu.Unlock()
	plan := l.plan()
	if plan == nil {
		return nil
	}
	w := warmState{date: at / nsPerDay}
	if l.sn.warm != nil {
		w = *l.sn.warm
	}
	return w.forecast(plan, at, maxWarmupDays)
}

// warmup reads a [warmup.NAME] table.
func (ld *loader) warmup(path []string, name string, t map[string]any) {
	w := &warmup{deferred: 1, origin: Origin{
		File: ld.file, Line: ld.lineOf(path), Section: "warmup." + name, Key: "volumes",
	}}
	for k, v := range t {
		sub := at(path, k)
		switch k {
		case "volumes":
			list, _ := v.([]any)
			if len(list) == 0 || len(list) > maxWarmupDays {
				ld.problem(sub, "must be a list of 1 to %d daily volumes", maxWarmupDays)
			}
			for _, e := range list {
				n, ok := e.(int64)
				if !ok || n < 1 {
					ld.problem(sub, "%v is not a daily volume", e)
					return
				}
				w.volumes = append(w.volumes, n)
			}
		case "hold_above_deferred":
			f, err := share(v)
			if err != nil {
				ld.problem(sub, "%v", err)
			}
			w.deferred = f
		case "sample":
			n, ok := v.(int64)
			if !ok || n < 1 {
				ld.problem(sub, "must be a positive number")
			}
			w.sample = n
		case "basis":
			w.origin.Basis = ld.basis(path, v)
		default:
			ld.unknown(sub, []string{"volumes", "hold_above_deferred", "sample", "basis"})
		}
	}
	if len(w.volumes) == 0 {
		ld.problem(path, "has no volumes")
		return
	}
	if w.sample == 0 {
		w.sample = 100
	}
	ld.rules.warmups[name] = w
}

// share reads a number between 0 and 1.
func share(v any) (float64, error) {
	f, ok := v.(float64)
	if n, isInt := v.(int64); isInt {
		f, ok = float64(n), true
	}
	if !ok || f < 0 || f > 1 || f != f {
		return 0, fmt.Errorf("must be a number from 0 to 1")
	}
	return f, nil
}
