package throttle

import "slices"

// meter is the state of one rate key: a list of up to maxRates rates that all
// have to agree.
type meter struct {
	v    *Value // the setting t belongs to
	t    [maxRates]tat
	line line // who waits for a permit, if several may
}

// next returns the earliest time at which n more fit; not after now means at
// once.
func (m *meter) next(v *Value, now, n int64) int64 {
	if v == nil {
		return 0
	}
	if m.v != v {
		m.adopt(v, now)
	}
	var at int64
	for i := range v.Rates {
		at = max(at, m.t[i].next(&v.Rates[i], n))
	}
	return at
}

// take charges n. REQUIRES: next(v, now, n) was not after now, or v is nil.
func (m *meter) take(v *Value, now, n int64) {
	if v == nil {
		return
	}
	for i := range v.Rates {
		m.t[i].take(&v.Rates[i], now, n)
	}
}

// adopt takes over new rates after a reload, or the first after a restart.
// What was sent under the old ones still counts, but no longer than it could
// have under the new ones: leaving a limit of one per day must not stop the
// lane for a day.
func (m *meter) adopt(v *Value, now int64) {
	latest := tat(0)
	if m.v != nil {
		latest = slices.Max(m.t[:])
	}
	for i := range v.Rates {
		r := &v.Rates[i]
		m.t[i] = min(max(latest, m.t[i]), tat(now+r.tau+r.interval))
	}
	clear(m.t[len(v.Rates):])
	m.v = v
	for m.line.first != nil {
		m.line.first.leave() // what they were told was under the old rates
	}
}

// idle reports whether the meter would grant its whole burst at now, so that
// forgetting it changes nothing.
func (m *meter) idle(now int64) bool { return int64(slices.Max(m.t[:])) <= now }

// node is one place where connections or transactions, and rates, are counted.
type node struct {
	busy     int64 // connections open, or transactions under way
	messages meter
	connects meter
}

func (n *node) idle(now int64) bool {
	return n.busy == 0 && n.messages.idle(now) && n.connects.idle(now)
}

// verdict gathers what the limits say. A full slot outranks a time: the lane
// is notified when the slot is free, asks again, and is told the time then.
type verdict struct {
	full  bool
	at    int64
	limit Limit
	rule  *Origin
	scope Scope // of a hold or a suspension
	max   int64 // recipients that would do
	line  *line // of the rate that at comes from, if lanes share it
}

// time records that a rate or hold has room only at the given time.
func (v *verdict) time(at, now int64, l Limit, rule *Origin) {
	v.held(at, now, l, rule, ScopeNone)
}

// held is time for a hold or a suspension of some scope.
func (v *verdict) held(at, now int64, l Limit, rule *Origin, scope Scope) {
	if at > now && at > v.at && !v.full {
		v.at, v.limit, v.rule, v.scope, v.line = at, l, rule, scope, nil
	}
}

// stop records that nothing goes until somebody says so.
func (v *verdict) stop(l Limit, rule *Origin, scope Scope) {
	if !v.full {
		v.full, v.limit, v.rule, v.scope, v.line = true, l, rule, scope, nil
	}
}

// meter records what a rate setting says.
func (v *verdict) meter(m *meter, set *Value, now, n int64, l Limit) {
	if set != nil {
		v.time(m.next(set, now, n), now, l, &set.Origin)
	}
}

// shared is meter for a rate that other lanes use as well: they stand in line.
func (v *verdict) shared(m *meter, set *Value, now int64, l Limit, t *turn, dry bool) {
	if set == nil {
		return
	}
	at := m.next(set, now, 1)
	if at <= now {
		at = m.line.free(t, now, set.grace(), dry)
	}
	if v.time(at, now, l, &set.Origin); at > now && v.at == at && !v.full {
		v.line = &m.line
	}
}

// settle ends or keeps the lane's place in line, as the verdict came out.
func (v *verdict) settle(t *turn) {
	if v.line == nil {
		t.leave()
		return
	}
	t.wait(v.line, v.at)
}

// slot records that busy of a count are in use.
func (v *verdict) slot(busy int64, set *Value, l Limit) {
	if set != nil && busy >= set.N {
		v.stop(l, &set.Origin, ScopeNone)
	}
}
