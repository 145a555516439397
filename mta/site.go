package mta

import (
	"slices"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/mta/outbound"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/throttle"
)

// siteKey names a site: one pool toward one destination under one TLS policy.
type siteKey struct {
	pool string
	site string
	tls  outbound.TLSPolicy
}

// site serves the queues that lead to one destination.
type site struct {
	m    *MTA
	key  siteKey
	hops []hop // explicit next hops; nil means the MX of the domain

	mu      sync.Mutex // protects everything below
	sched   sched
	chosen  uint64 // transactions the schedule has chosen so far
	entries map[*queue.Queue]*entry
	lanes   []*lane
	down    map[string]time.Time // hosts to pass over until then
	single  map[string]time.Time // domains that want one recipient per transaction until then
	timer   *time.Timer
	wakeAt  time.Time // what timer is set for; zero when it is not set
	idle    time.Time // since when there has been nothing to do
}

// lane is one source's way to the site.
type lane struct {
	site   *site
	source *Source
	permit *throttle.Lane

	// site.mu protects everything below.
	buf      fifo[*txn] // leased, for this lane's runners
	runners  int        // goroutines with work or on their way to it
	starting int        // of them, those that have not taken their first work yet
	allowed  int        // runners there may be: grows with success
	capped   bool       // no further connection until notified
	until    time.Time  // nothing is begun before then
	why      string     // what until waits for
	failures int        // connection failures in a row
}

// slowStart is how many connections a lane opens before any has succeeded.
const slowStart = 2

// txn is what goes into one transaction: recipients of one message.
type txn struct {
	q     *queue.Queue
	items []*queue.Item
	load  loaded
	order uint64 // when the site chose it
	tries int    // connections it was tried on without being looked at
	first bool   // it was the first message of its last connection
}

// site returns the site of this key, made on first use.
func (m *MTA) site(key siteKey, domain string, hosts []string, hops []hop) *site {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sites[key]; s != nil {
		return s
	}
	set := m.set.Load()
	s := &site{m: m, key: key, hops: hops, entries: make(map[*queue.Queue]*entry), down: make(map[string]time.Time)}
	s.sched.weight = func(tenant string) int { return m.set.Load().Tenants[tenant].Weight }
	s.timer = time.AfterFunc(time.Hour, s.wake)
	s.timer.Stop()
	i := slices.IndexFunc(set.Pools, func(p Pool) bool { return p.Name == key.pool })
	for _, ps := range set.Pools[max(i, 0)].Sources {
		src := m.source(ps.Source)
		l := &lane{site: s, source: src, allowed: slowStart}
		l.permit = m.deps.Throttle.Lane(throttle.Target{
			Source: src.Name, SourceAddr: src.IP(), Pool: key.pool, Site: key.site, Hosts: hosts, Domain: domain,
		})
		l.permit.Notify(func() { s.notified(l) })
		s.lanes = append(s.lanes, l)
	}
	m.sites[key] = s
	return s
}

// sweep drops sites that have had nothing to do for a while, and targets that
// have expired.
func (m *MTA) sweep() {
	now := m.deps.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, t := range m.targets {
		if !t.resolving && !now.Before(t.expires) {
			delete(m.targets, key)
		}
	}
	for key, s := range m.sites {
		if s.retire(now) {
			delete(m.sites, key)
			for tk, t := range m.targets {
				if t.site == s {
					delete(m.targets, tk)
				}
			}
		}
	}
}

// siteIdle is how long a site without work is remembered: its lanes have learnt
// how many connections the destination bears.
const siteIdle = 5 * time.Minute

// retire reports whether the site can be forgotten. REQUIRES: MTA.mu, so that
// nobody can find the site meanwhile.
func (s *site) retire(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	busy := len(s.entries) > 0
	for _, l := range s.lanes {
		busy = busy || l.runners > 0 || l.buf.len() > 0
	}
	if busy {
		s.idle = time.Time{}
		return false
	}
	if s.idle.IsZero() {
		s.idle = now
		return false
	}
	if now.Sub(s.idle) < siteIdle {
		return false
	}
	s.timer.Stop()
	for _, l := range s.lanes {
		l.permit.Close()
	}
	s.lanes = nil
	return true
}

// stopTimers ends all waiting.
func (m *MTA) stopTimers() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sites {
		s.mu.Lock()
		s.timer.Stop()
		s.mu.Unlock()
	}
}

// add puts a queue on the site's schedule.
func (s *site) add(q *queue.Queue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes == nil { // retired between lookup and here
		s.m.wg.Go(func() { s.m.Ready(q) })
		return
	}
	if s.entries[q] == nil {
		e := &entry{q: q, key: q.Key()}
		s.entries[q] = e
		s.sched.push(e)
	}
	s.kick(s.m.deps.Now())
}

// wake is what the timer does.
func (s *site) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeAt = time.Time{}
	s.kick(s.m.deps.Now())
}

// notified is what throttle calls when a permit may be had again.
func (s *site) notified(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.capped = false
	s.sched.release()
	s.kick(s.m.deps.Now())
}

// wakeBy makes sure that kick is called no later than t.
func (s *site) wakeBy(t time.Time) {
	if t.IsZero() || (!s.wakeAt.IsZero() && !t.Before(s.wakeAt)) || s.m.soft.Err() != nil {
		return
	}
	s.wakeAt = t
	s.timer.Reset(max(0, t.Sub(s.m.deps.Now())))
}

// kick hands out work and starts runners for it. REQUIRES: s.mu.
func (s *site) kick(now time.Time) {
	if s.m.soft.Err() != nil {
		return
	}
	s.fill(now)
	for _, l := range s.lanes {
		if l.until.After(now) {
			if l.buf.len() > 0 || s.sched.size > 0 {
				s.wakeBy(l.until)
			}
			continue
		}
		for l.starting < l.buf.len() && l.runners < l.limit() && (!l.capped || l.runners == 0) {
			l.runners++
			l.starting++
			s.m.wg.Go(func() { s.run(l) })
		}
	}
}

// limit is how many runners the lane may have now.
func (l *lane) limit() int {
	return min(l.allowed, l.site.m.set.Load().Config.LaneConnections)
}

// room reports whether the lane takes another transaction into its buffer: one
// for each runner that could be started, and one in hand.
func (l *lane) room(now time.Time) bool {
	return !l.until.After(now) && l.buf.len() < max(1, l.limit()-l.runners+l.starting)
}

// fill leases work from the queues, in fair order, to lanes that have room for
// it. REQUIRES: s.mu.
func (s *site) fill(now time.Time) {
	for {
		if !slices.ContainsFunc(s.lanes, func(l *lane) bool { return l.room(now) }) {
			return
		}
		e, next := s.sched.pop(now)
		if e == nil {
			s.wakeBy(next)
			return
		}
		items := e.q.Lease(s.transaction(e))
		s.sched.charge(e.key.Tenant, len(items))
		if n, _ := e.q.Len(); n > 0 {
			s.sched.push(e)
		} else {
			// What comes later, from disk or from outside, comes with Ready.
			delete(s.entries, e.q)
		}
		if len(items) == 0 {
			continue
		}
		l := s.pick(now)
		s.chosen++
		l.buf.push(&txn{q: e.q, items: items, order: s.chosen})
	}
}

// transaction is how many recipients one transaction for e may carry.
// REQUIRES: s.mu.
func (s *site) transaction(e *entry) int {
	n := 100
	if until, ok := s.single[e.key.Domain]; ok {
		if until.After(s.m.deps.Now()) {
			return 1
		}
		delete(s.single, e.key.Domain)
	}
	for _, l := range s.lanes {
		if limit := l.permit.MaxRecipients(e.key.Domain); limit > 0 {
			n = min(n, limit)
		}
	}
	return n
}

// splitFor is how long a domain that could not take several recipients in one
// transaction is given one at a time.
const splitFor = time.Hour

// split sends one recipient per transaction to domain from now on.
func (s *site) split(domain string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.single == nil || len(s.single) >= 1000 {
		s.single = make(map[string]time.Time)
	}
	s.single[domain] = s.m.deps.Now().Add(splitFor)
}

// pick chooses a lane for the next transaction by the weights of its pool.
// REQUIRES: s.mu, and a lane with room.
func (s *site) pick(now time.Time) *lane {
	if len(s.lanes) == 1 {
		return s.lanes[0]
	}
	find := func(name string) *lane {
		i := slices.IndexFunc(s.lanes, func(l *lane) bool { return l.source.Name == name })
		if i < 0 {
			return nil
		}
		return s.lanes[i]
	}
	name := s.m.deps.Throttle.Pick(s.key.pool, s.lanes[0].permit.Provider(), func(source string) bool {
		l := find(source)
		return l != nil && l.room(now)
	})
	if l := find(name); l != nil {
		return l
	}
	i := slices.IndexFunc(s.lanes, func(l *lane) bool { return l.room(now) })
	return s.lanes[i]
}

// take returns the lane's next transaction, or nil when there is nothing to do
// for a runner now; the runner then ends. first is set on a runner's first call.
func (s *site) take(l *lane, first bool) *txn {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.m.deps.Now()
	if first {
		l.starting--
	}
	if s.m.soft.Err() == nil && !l.until.After(now) {
		if l.buf.len() == 0 {
			s.fill(now)
		}
		if l.buf.len() > 0 {
			t := l.buf.pop()
			s.kick(now)
			return t
		}
	}
	l.runners--
	if l.until.After(now) && l.buf.len() > 0 {
		s.wakeBy(l.until)
	}
	if s.m.soft.Err() != nil {
		s.drain(l)
	}
	return nil
}

// drain gives back what a lane has in its buffer. REQUIRES: s.mu.
func (s *site) drain(l *lane) {
	for l.buf.len() > 0 {
		t := l.buf.pop()
		t.q.Release(t.items)
	}
}

// succeeded lets the lane grow: one runner more for each success doubles the
// connections in a round trip.
func (s *site) succeeded(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.failures = 0
	if l.runners >= l.allowed && l.allowed < s.m.set.Load().Config.LaneConnections {
		l.allowed++
	}
}

// refused gives a transaction back whose permit was refused, and says how long
// what was refused has to wait. An entry's own limits (its domain, tenant,
// campaign) hold the entry; everything else holds the lane.
func (s *site) refused(l *lane, t *txn, g *throttle.Grant) {
	s.m.metrics.held.WithLabelValues(l.permit.Provider(), g.Limit.String()).Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	why := g.Limit.String()
	if entryLimit(g.Limit) {
		s.giveBack(t)
		s.holdEntry(t, g.At, why)
		return
	}
	if g.At.IsZero() {
		l.capped = true // Notify lifts it
		s.giveBack(t)
		s.keep(t)
		return
	}
	l.until, l.why = later(l.until, g.At), why
	if g.At.Sub(s.m.deps.Now()) <= inHand {
		l.putBack(t)
	} else {
		s.giveBack(t)
		s.keep(t)
	}
	s.wakeBy(l.until)
}

// inHand is how long a lane keeps a transaction whose permit was refused. It has
// been chosen in fair order and may be signed already; choosing again at the
// pace of permits would let chance, or a rhythm that happens to fit, decide who
// is served. What has to wait longer goes back, so that it can be cancelled and
// overtaken.
const inHand = time.Second

// putBack returns a transaction to its place in the lane's buffer. REQUIRES:
// site.mu.
func (l *lane) putBack(t *txn) {
	l.buf.push(t)
	for i := l.buf.len() - 1; i > 0 && l.buf.at(i).order < l.buf.at(i-1).order; i-- {
		l.buf.swap(i, i-1)
	}
}

// giveBack returns the recipients of a transaction to their queue, and what its
// tenant was charged for them. REQUIRES: s.mu.
func (s *site) giveBack(t *txn) {
	t.q.Release(t.items)
	key := t.q.Key()
	s.sched.refund(key.Tenant, len(t.items))
}

// entryLimit reports limits that concern one queue and not the lane.
func entryLimit(l throttle.Limit) bool {
	switch l {
	case throttle.LimitDomain, throttle.LimitTenant, throttle.LimitCampaign, throttle.LimitSenderDomain, throttle.LimitSuspended:
		return true
	}
	return false
}

// keep makes sure that the queue of a released transaction is on the schedule.
// REQUIRES: s.mu.
func (s *site) keep(t *txn) {
	if s.entries[t.q] == nil {
		e := &entry{q: t.q, key: t.q.Key()}
		s.entries[t.q] = e
		s.sched.push(e)
	}
}

// holdEntry keeps the queue of a released transaction off the schedule until at,
// or until a permit of this lane may be had if at is zero. REQUIRES: s.mu.
func (s *site) holdEntry(t *txn, at time.Time, why string) {
	if e := s.entries[t.q]; e != nil {
		e.dead = true
	}
	e := &entry{q: t.q, key: t.q.Key()}
	s.entries[t.q] = e
	s.sched.hold(e, at, why)
	s.wakeBy(at)
}

// connectFailed rests the lane after no host could be reached.
func (s *site) connectFailed(l *lane, reply string) {
	cfg := &s.m.set.Load().Config
	now := s.m.deps.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	pause := cfg.RetryConnection << min(l.failures, 10)
	if pause > cfg.MaxRetryConnection || pause <= 0 {
		pause = cfg.MaxRetryConnection
	}
	if !l.until.After(now) { // the first of several runners that fail together
		l.failures++
		l.until, l.why = now.Add(pause), reply
	}
	l.allowed = slowStart
	for l.buf.len() > 0 {
		t := l.buf.pop()
		s.giveBack(t)
		s.keep(t)
	}
	s.wakeBy(l.until)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
