package throttle

import "slices"

// Reload puts new rules in force. Connections already open stay and keep being
// counted; nothing new is granted until it fits. Holds, suspensions and warm-up
// counters stay with their provider's name.
func (e *Engine) Reload(r *Rules) {
	now := e.ns(e.opt.Now())
	var woken []*Lane
	e.mu.Lock()
	e.rules.Store(r)
	for _, l := range e.lanes {
		p := r.provider(l.hosts, l.addrs, l.domain)
		to := e.groupOf(p, l.key.site)
		g := l.g.Load()
		g.mu.Lock()
		if to != g {
			// A lane that changes provider takes its connections along.
			// Both locks are held so that no permit sees them counted twice
			// or not at all; only here are two held, under e.mu.
			to.mu.Lock()
			l.sn.busy -= l.n.busy
			g.all.busy -= l.n.busy
			g.lanes--
			l.join(to, p, r)
			to.now = max(to.now, now, g.now)
			to.mu.Unlock()
		} else {
			l.p, l.rules = p, r
			l.eff = r.effective(p, "", l.key.source)
		}
		l.resection(r)
		if l.waiting {
			// The slot it waits for may have come with the new rules.
			l.waiting = false
			woken = append(woken, l)
		}
		g.waiting = slices.DeleteFunc(g.waiting, func(w *Lane) bool { return w == l })
		g.mu.Unlock()
	}
	e.mu.Unlock()
	wake(woken)
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
func wake(lanes []*Lane) {
	for _, l := range lanes {
		if fn := l.notify.Load(); fn != nil {
			(*fn)()
		}
	}
}
