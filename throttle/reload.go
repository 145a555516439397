package throttle

import "slices"

// Reload puts new rules in force, at one instant for all lanes: if they moved
// one by one, a provider that got a new name would be counted in two places
// for a while. Connections already open stay and keep being counted; nothing
// new is granted until it fits. Holds, suspensions and warm-up counters stay
// with their provider's name; so do the transactions that a tenant or domain
// has under way, for the seconds they last.
func (e *Engine) Reload(r *Rules) {
	now := e.ns(e.opt.Now())
	e.mu.Lock()
	e.rules.Store(r)
	locked := map[*group]bool{}
	lock := func(g *group) {
		if !locked[g] {
			g.mu.Lock()
			locked[g] = true
		}
	}
	for _, g := range e.groups {
		lock(g)
	}
	for _, l := range e.lanes {
		p := r.provider(l.hosts, l.addrs, l.domain)
		to := e.groupOf(p, l.key.site)
		lock(to) // it may be new
		l.move(to, p, r, now)
	}
	// What they wait for may have come with the new rules.
	woken := make([]notice, 0, len(e.lanes))
	for _, l := range e.lanes {
		woken = append(woken, notice{l, FreedAll})
	}
	for g := range locked {
		for _, h := range g.holds {
			h.underRules(r, g.name)
		}
		g.mu.Unlock()
	}
	e.mu.Unlock()
	wake(woken)
}

// underRules takes over the limits at which the hold ends, where they changed.
// What was learned below the old ones is forgotten: whoever changed them may
// know better.
func (h *hold) underRules(r *Rules, provider string) {
	source := ""
	if h.key.scope == ScopeSource {
		source = h.key.key
	}
	most, ceiling := r.effective(r.byName[provider], "", source).holdLimits()
	if most == h.max && ceiling == h.ceiling {
		return
	}
	h.forget()
	h.max, h.ceiling = most, ceiling
	h.cap = min(h.cap, most)
	if h.interval > 0 {
		h.interval = max(h.interval, ceiling)
	}
}

// move puts a lane under rules, in the group they lead it to. REQUIRES: e.mu and
// the mutexes of both groups. Groups are locked together only under e.mu, so
// their order does not matter.
func (l *Lane) move(to *group, p *Provider, r *Rules, now int64) {
	g := l.g.Load()
	l.resection(r)
	if l.waiting != 0 {
		l.waiting = 0
		g.waiting = slices.DeleteFunc(g.waiting, func(w *Lane) bool { return w == l })
	}
	if to == g {
		l.p, l.rules = p, r
		l.eff = r.effective(p, "", l.key.source)
		return
	}
	l.sending.leave()
	l.connecting.leave()
	l.sn.busy -= l.n.busy
	g.all.busy -= l.n.busy
	g.lanes--
	to.now = max(to.now, now, g.now)
	l.join(to, p, r)
}

// resection sorts the domains seen by whether the new rules have a section for
// them. REQUIRES: the group's mutex.
func (l *Lane) resection(r *Rules) {
	n := len(l.sections)
	l.sections = slices.DeleteFunc(l.sections, func(d string) bool { return r.domains[d] == nil })
	if len(l.sections) < n || len(r.domains) == 0 {
		l.plain = true
	}
}

// wake calls the lanes' notify functions. REQUIRES: no lock is held.
func wake(list []notice) {
	for _, n := range list {
		if fns := n.lane.notify.Load(); fns != nil {
			for _, fn := range *fns {
				(*fn)(n.what)
			}
		}
	}
}

// Rules returns the rules in force.
func (e *Engine) Rules() *Rules { return e.rules.Load() }
