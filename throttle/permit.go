package throttle

import (
	"net/netip"
	"slices"
	"time"
)

// Grant is the answer to a request for a permit. It is a value; keep it for as
// long as the permit is used and Release it once.
type Grant struct {
	// OK reports that everything was charged and the caller may go ahead.
	OK bool
	// At is when to ask again after a refusal. Zero means that no time is
	// known: the lane's Notify function will be called, or, with
	// LimitMessagesPerConnection, a new connection is wanted, or, with
	// LimitRecipients, fewer recipients.
	At time.Time
	// Limit says which kind of limit refused.
	Limit Limit
	// Rule is where that limit was written; nil if it was not in a file.
	Rule *Origin
	// Scope says what the hold or the suspension that refused is about: the
	// whole lane with ScopeSource and ScopeNetblock, otherwise only some of its
	// mail. ScopeNone with every other limit.
	Scope Scope
	// Max is how many recipients would do, with LimitRecipients, or with
	// LimitWarmup when some of today's volume is left.
	Max int

	lane *Lane
	g    *group // whose mutex guards the counters below
	conn bool
	mx   netip.Addr
	// What a transaction occupies; nil where nothing is limited.
	tenant, campaign, domain *node
	holds                    *heldBy
}

// in is 1 if the permit is in use and occupies a place at n, else 0. REQUIRES:
// the group's mutex.
func (gr *Grant) in(n *node) int64 {
	if gr != nil && gr.lane != nil && (gr.domain == n || gr.tenant == n || gr.campaign == n) {
		return 1
	}
	return 0
}

// pass counts another permit at n, which takes over the place of this one if it
// has one there. REQUIRES: the group's mutex.
func (gr *Grant) pass(n *node) {
	if gr.in(n) == 0 {
		n.busy++
		return
	}
	for _, own := range []**node{&gr.domain, &gr.tenant, &gr.campaign} {
		if *own == n {
			*own = nil
		}
	}
}

// under is 1 if the permit is in use and counts against h, else 0. REQUIRES: the
// group's mutex.
func (gr *Grant) under(h *hold) int64 {
	if gr != nil && gr.lane != nil && gr.holds != nil && slices.Contains(gr.holds.by[:gr.holds.n], h) {
		return 1
	}
	return 0
}

// heldBy lists the holds a permit counts against. They are rare, so a permit
// pays for them only when there are any.
type heldBy struct {
	n  int
	by [maxHeld]*hold
}

// maxHeld is how many holds can apply to one permit: source, netblock, sender
// domain, DKIM domain, tenant, campaign and domain.
const maxHeld = 7

// refuse builds the refusal of a verdict about a permit of a kind and, if it
// names no time, notes that the lane waits. REQUIRES: g.mu.
func (l *Lane) refuse(g *group, now int64, v *verdict, kind Freed, dry bool) Grant {
	if dry {
		grant := Grant{OK: v.limit == LimitNone, Limit: v.limit, Rule: v.rule, Scope: v.scope, Max: int(v.max)}
		if !v.full {
			grant.At = l.e.time(v.at)
		}
		return grant
	}
	if l.since == 0 {
		l.since = now
	}
	l.lost = v.limit
	g.m.refused(v.limit)
	grant := Grant{Limit: v.limit, Rule: v.rule, Scope: v.scope, Max: int(v.max)}
	if !v.full {
		grant.At = l.e.time(v.at)
		return grant
	}
	if v.limit != LimitMXConnections {
		if l.waiting == 0 {
			g.waiting = append(g.waiting, l)
		}
		l.waiting |= kind
	}
	return grant
}

// granted ends a run of refusals. REQUIRES: g.mu.
func (l *Lane) granted(g *group, now int64) {
	if l.since != 0 {
		g.m.lost(l.lost, time.Duration(now-l.since))
		l.since = 0
	}
}

// Release gives a permit back. Calling it again, or on a refusal, does nothing;
// calling it on two copies of one grant is a mistake.
func (gr *Grant) Release() {
	l := gr.lane
	if l == nil {
		return
	}
	gr.lane = nil
	held := gr.tenant != nil || gr.campaign != nil || gr.domain != nil || gr.holds != nil
	if !gr.conn && !held {
		return
	}
	var woken []notice
	if gr.conn {
		if gr.mx.IsValid() {
			woken = l.e.releaseMX(gr.mx)
		}
		for {
			// Connections are counted in the group the lane is in now.
			g := l.g.Load()
			g.mu.Lock()
			if l.g.Load() != g {
				g.mu.Unlock()
				continue
			}
			l.n.busy--
			l.sn.busy--
			g.all.busy--
			woken = append(woken, g.drain(FreedConnection)...)
			g.mu.Unlock()
			break
		}
	}
	if held {
		g := gr.g
		g.mu.Lock()
		for _, n := range [...]*node{gr.tenant, gr.campaign, gr.domain} {
			if n != nil {
				n.busy--
			}
		}
		gr.holds.release()
		woken = append(woken, g.drain(FreedTransaction)...)
		g.mu.Unlock()
	}
	wake(woken)
}

// notice is what a lane is told by its notify functions.
type notice struct {
	lane *Lane
	what Freed
}

// drain takes the lanes that wait for what is free off the list. All are woken:
// which of them could use the slot depends on work only they know, and one that
// lets it pass must not leave the others asleep. REQUIRES: g.mu.
func (g *group) drain(what Freed) []notice {
	var woken []notice
	keep := g.waiting[:0]
	for _, l := range g.waiting {
		if now := l.waiting & what; now != 0 {
			woken = append(woken, notice{l, now})
			l.waiting &^= now
		}
		if l.waiting != 0 {
			keep = append(keep, l)
		}
	}
	clear(g.waiting[len(keep):])
	g.waiting = keep
	return woken
}
