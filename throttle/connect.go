package throttle

import (
	"net/netip"
	"slices"
	"time"
)

// Connect asks to open one connection to a host's address. An invalid address
// (a proxy resolves it) is not counted per address. Release the grant when the
// connection is closed.
func (l *Lane) Connect(now time.Time, mx netip.Addr) Grant { return l.connect(now, mx, false) }

// WhyConnect answers as Connect would, and changes nothing.
func (l *Lane) WhyConnect(now time.Time, mx netip.Addr) Grant { return l.connect(now, mx, true) }

func (l *Lane) connect(now time.Time, mx netip.Addr, dry bool) Grant {
	g, at := l.lock(now)
	eff := l.eff
	var v verdict
	l.e.stops.check(&v, at, Selector{Provider: g.name, Source: l.src.name})
	if len(g.holds) > 0 {
		g.heldConnect(&v, at, l)
	}
	v.slot(l.n.busy, l.connections(), LimitConnections)
	v.slot(l.sn.busy, eff.val[KeySourceConnections], LimitSourceConnections)
	v.slot(g.all.busy, eff.val[KeyProviderConnections], LimitProviderConnections)
	v.meter(&l.n.connects, eff.val[KeyConnectionRate], at, 1, LimitConnectionRate)
	v.shared(&l.sn.connects, eff.val[KeySourceConnectionRate], at, LimitConnectionRate, &l.connecting, dry)
	v.shared(&g.all.connects, eff.val[KeyProviderConnectionRate], at, LimitConnectionRate, &l.connecting, dry)

	mx = mx.Unmap()
	if mx.IsValid() && v.limit == LimitNone {
		// Last, so that an address is charged only when all else has room.
		l.e.takeMX(&v, mx, eff.val[KeyMXConnections], l, dry)
	}
	if !dry {
		v.settle(&l.connecting)
	}
	if v.limit != LimitNone || dry {
		grant := l.refuse(g, at, &v, FreedConnection, dry)
		g.mu.Unlock()
		return grant
	}
	l.n.busy++
	l.sn.busy++
	g.all.busy++
	l.n.connects.take(eff.val[KeyConnectionRate], at, 1)
	l.sn.connects.take(eff.val[KeySourceConnectionRate], at, 1)
	g.all.connects.take(eff.val[KeyProviderConnectionRate], at, 1)
	l.granted(g, at)
	g.mu.Unlock()
	return Grant{OK: true, lane: l, g: g, conn: true, mx: mx}
}

// connections is the limit of connections for the lane. A domain's section
// raises it only where no domain without one shares the lane; where it lowers
// it, Send holds that domain's transactions to it.
func (l *Lane) connections() *Value {
	if l.plain || len(l.sections) == 0 {
		return l.eff.val[KeyConnections]
	}
	var loosest *Value
	for i, d := range l.sections {
		v := l.rules.effective(l.p, d, l.key.source).val[KeyConnections]
		if v == nil {
			return nil
		}
		if i == 0 || v.N > loosest.N {
			loosest = v
		}
	}
	return loosest
}

// takeMX counts a connection to an address unless that would be one too many.
// Addresses are counted over all lanes, whatever their provider, because hosts
// that serve many small sites show one address to all. REQUIRES: the group's
// mutex.
func (e *Engine) takeMX(v *verdict, mx netip.Addr, set *Value, l *Lane, dry bool) {
	e.mxMu.Lock()
	defer e.mxMu.Unlock()
	n := e.mx[mx]
	if n == nil && dry {
		return
	}
	if n == nil {
		n = &mxNode{}
		e.mx[mx] = n
	}
	if set != nil && n.busy >= set.N {
		v.stop(LimitMXConnections, &set.Origin, ScopeNone)
		if !dry && !slices.Contains(n.waiting, l) {
			n.waiting = append(n.waiting, l)
		}
		return
	}
	if !dry {
		n.busy++
	}
}

// drain empties the list of waiting lanes. REQUIRES: Engine.mxMu.
func (n *mxNode) drain() []notice {
	var woken []notice
	for _, l := range n.waiting {
		woken = append(woken, notice{l, FreedConnection})
	}
	n.waiting = nil
	return woken
}

// releaseMX gives a connection to an address back and returns who waited.
func (e *Engine) releaseMX(mx netip.Addr) []notice {
	e.mxMu.Lock()
	defer e.mxMu.Unlock()
	n := e.mx[mx]
	n.busy--
	woken := n.drain()
	if n.busy == 0 {
		delete(e.mx, mx)
	}
	return woken
}
