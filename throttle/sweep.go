package throttle

import (
	"slices"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Sweep forgets what has nothing left to remember: lanes that were closed and
// are idle, counters that are full again, holds that nobody used for a day, or for
// three where a limit was learned, and suspensions that have run out; the last two
// are returned as egress.resumed events. Call it every minute or so. It takes time
// in proportion to what is kept, and holds no lock for longer than one group
// needs, but for the table of lanes.
func (e *Engine) Sweep(now time.Time) []*message.Event {
	at := e.ns(now)
	var events []*message.Event
	e.mu.Lock()
	for key, l := range e.lanes {
		if l.refs > 0 {
			continue
		}
		g := l.g.Load()
		g.mu.Lock()
		if l.n.idle(at) && l.recipients.idle(at) && l.waiting == 0 {
			delete(e.lanes, key)
			l.sending.leave()
			l.connecting.leave()
			g.lanes--
		}
		g.mu.Unlock()
	}
	for key, used := range e.restored {
		if used[levelLane].idle(at) && used[levelLaneConnects].idle(at) && used[levelLaneRecipients].idle(at) {
			delete(e.restored, key)
		}
	}
	for key, g := range e.groups {
		g.mu.Lock()
		events = append(events, e.forgetHolds(g, at)...)
		g.sweep(at)
		if g.lanes == 0 && len(g.sources)+len(g.shares)+len(g.holds)+len(g.counts) == 0 && g.all.idle(at) {
			delete(e.groups, key)
		}
		g.mu.Unlock()
	}
	e.mu.Unlock()
	return append(events, e.expire(now)...)
}

// forgetHolds ends the holds that no mail has gone under for days: whatever
// the provider was cross about, it has not seen us since. Holds that still
// wait for their time or for an operator stay. REQUIRES: g.mu.
func (e *Engine) forgetHolds(g *group, now int64) []*message.Event {
	var events []*message.Event
	for k, h := range g.holds {
		h.settle(now)
		keep, days := nsPerDay, "a day"
		if h.learned.learned() {
			keep, days = learnedFor, "three days"
		}
		if h.state == StateHeld || h.state == StateDisabled || h.busy > 0 || now-max(h.since, h.until) < keep {
			continue
		}
		h.enter(StateNormal, now)
		delete(g.holds, k)
		events = append(events, &message.Event{
			Type: message.EventEgressResumed, Time: e.time(now),
			Detail: k.scope.String() + " " + showKey(k.key) + ": no mail for " + days + " (" + h.rule.Origin.String() + ")",
			Egress: message.Egress{Provider: g.name, Site: g.site},
		})
	}
	return events
}

// sweep drops the idle counters of a group. REQUIRES: g.mu.
func (g *group) sweep(now int64) {
	for k, n := range g.shares {
		if n.idle(now) {
			delete(g.shares, k)
		}
	}
	for k, t := range g.counts {
		// No shipped rule counts over more than a day.
		if len(t.at) == 0 || now-t.at[len(t.at)-1] > nsPerDay {
			delete(g.counts, k)
		}
	}
	if g.lanes > 0 {
		return // lanes point at their source's counter
	}
	g.sources = slices.DeleteFunc(g.sources, func(sn *sourceNode) bool {
		return sn.warm == nil && sn.idle(now)
	})
}

// expire drops the suspensions that have run out.
func (e *Engine) expire(now time.Time) []*message.Event {
	t := e.stops.table.Load()
	if t == nil {
		return nil
	}
	at := e.ns(now)
	var over []Selector
	for sel, st := range t.by {
		if st.until != 0 && st.until <= at {
			over = append(over, sel)
		}
	}
	if len(over) == 0 {
		return nil
	}
	slices.SortFunc(over, compareSelectors)
	var events []*message.Event
	e.stops.edit(func(by map[Selector]stop) {
		for _, sel := range over {
			st, ok := by[sel]
			if !ok || st.until == 0 || st.until > at {
				continue // renewed meanwhile
			}
			delete(by, sel)
			events = append(events, stopEvent(message.EventEgressResumed, now, st.Suspension))
		}
	})
	return events
}

// stopEvent is the journal's view of a suspension.
func stopEvent(t message.EventType, now time.Time, s Suspension) *message.Event {
	return &message.Event{
		Type: t, Time: now, Tenant: s.Selector.Tenant, Campaign: s.Selector.Campaign, Detail: s.Reason,
		Egress: message.Egress{Source: s.Selector.Source, Provider: s.Selector.Provider, Site: s.Selector.Domain},
	}
}
