package mta

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/mta/outbound"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
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
	// paths are the lanes as they were made, also when the site has retired.
	paths []*lane

	mu      sync.Mutex // protects everything below
	sched   sched
	chosen  uint64 // transactions the schedule has chosen so far
	entries map[*queue.Queue]*entry
	lanes   []*lane
	turn    *lane                // chosen by weight, and not used yet
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
	quiet  func() // ends the notices of permit

	// site.mu protects everything below.
	buf      fifo[*txn] // leased, for this lane's runners
	asking   bool       // one of them is here, with a connection, for work
	runners  int        // goroutines with work or on their way to it
	starting int        // of them, those that have not taken their first work yet
	allowed  int        // runners there may be: grows with success
	stopped  bool       // nothing is begun until notified
	until    time.Time  // nothing is begun before then
	why      string     // what until or stopped waits for
	dialling dialling
	failures int // connection failures in a row
	// alone is until when no message is begun behind another.
	alone time.Time

	// notices counts notified. Whoever asks for a permit looks at it before, so
	// that a notice that comes between the refusal and what is done about it is
	// not lost: there will be no other.
	notices atomic.Uint64
}

// dialling says when a lane may open a further connection. Those that are open
// go on meanwhile: nothing that keeps a lane from dialling is about them.
type dialling struct {
	capped  bool      // not until notified
	until   time.Time // not before then
	limited bool      // until comes from a limit or a hold, and ends with it
	why     string    // what until waits for
	// narrow is set once a permit was refused: from then on one runner at a time
	// tries, and the next when that one has its permit. Otherwise all that have
	// work would come for what one of them can have.
	narrow, trying bool
}

// closed reports whether no connection may be opened now.
func (d *dialling) closed(now time.Time) bool { return d.capped || d.until.After(now) }

// open ends what a notice ends.
func (d *dialling) open() {
	d.capped = false
	if d.limited {
		d.until, d.limited = time.Time{}, false
	}
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
	trial bool   // its queue is off the schedule until it has its permit

	// envelope is set once it is signed for a connection and has its permit, begun
	// when the server has been told of it behind the message before.
	envelope *outbound.Envelope
	grant    throttle.Grant
	sent     int // messages on that connection before it
	begun    bool
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
	s.sched.share = func(tenant, campaign string) int { return m.set.Load().Tenants[tenant].Campaigns[campaign] }
	s.timer = time.AfterFunc(time.Hour, s.wake)
	s.timer.Stop()
	i := slices.IndexFunc(set.Pools, func(p Pool) bool { return p.Name == key.pool })
	for _, ps := range set.Pools[max(i, 0)].Sources {
		src := m.source(ps.Source)
		l := &lane{site: s, source: src, allowed: slowStart}
		l.permit = m.deps.Throttle.Lane(throttle.Target{
			Source: src.Name, SourceAddr: src.IP(), Pool: key.pool, Site: key.site, Hosts: hosts, Domain: domain,
		})
		l.quiet = l.permit.Notify(func(what throttle.Freed) { s.notified(l, what) })
		s.lanes = append(s.lanes, l)
	}
	s.paths = s.lanes
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
		l.quiet()
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

// notified is what throttle calls when a permit may be had again, or sooner than
// it said. It reports whether that brought the lane a runner.
func (s *site) notified(l *lane, what throttle.Freed) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.notices.Add(1)
	if what&throttle.FreedConnection != 0 {
		l.dialling.open()
	}
	if what&throttle.FreedTransaction != 0 {
		l.stopped, l.until = false, time.Time{}
		s.sched.release()
	}
	was := l.runners
	s.kick(s.m.deps.Now())
	return l.runners > was
}

// wakeBy makes sure that kick is called no later than t.
func (s *site) wakeBy(t time.Time) {
	if t.IsZero() || (!s.wakeAt.IsZero() && !t.Before(s.wakeAt)) || s.m.ending() {
		return
	}
	s.wakeAt = t
	s.timer.Reset(max(0, t.Sub(s.m.deps.Now())))
}

// kick hands out work and starts runners for it. A site that has retired has
// none, but a notice may still come. REQUIRES: s.mu.
func (s *site) kick(now time.Time) {
	if s.lanes == nil || s.m.ending() {
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
		if l.stopped {
			continue
		}
		s.start(l, now)
	}
}

// start starts runners for what is in the lane's buffer. REQUIRES: s.mu.
func (s *site) start(l *lane, now time.Time) {
	d := &l.dialling
	if d.until.After(now) && l.runners < l.limit() && (l.buf.len() > 0 || s.sched.size > 0) {
		s.wakeBy(d.until)
	}
	few, idle := d.narrow || d.closed(now), 0
	if few && l.buf.len() > l.starting {
		idle = l.idle()
	}
	for l.starting < l.buf.len() && l.runners < l.limit() {
		if few && l.starting >= idle {
			if d.closed(now) || d.trying {
				return
			}
			d.trying = true
		}
		l.runners++
		l.starting++
		s.m.begin(func() { s.run(l) })
	}
}

// idle is how many open connections of the lane nobody uses.
func (l *lane) idle() int { return l.site.m.conns.Idle(l.site.poolKey(l)) }

// limit is how many runners the lane may have now.
func (l *lane) limit() int {
	return min(l.allowed, l.site.m.set.Load().Config.LaneConnections)
}

// room reports whether the lane takes another transaction into its buffer: one
// for each runner that could be started, and one in hand. While it may open no
// connection, only what those that are open can take at once, and one more while
// it may open one at a time.
func (l *lane) room(now time.Time) bool {
	n, d := l.buf.len(), &l.dialling
	most := l.limit() - l.runners + l.starting
	switch {
	case l.until.After(now) || l.stopped:
		return false
	case d.closed(now):
		return l.asking && n == 0 || n < l.idle()
	case d.narrow:
		most = min(most, l.starting+l.idle()+1)
	}
	return n < max(1, most)
}

// fill leases work from the queues, in fair order, to lanes that have room for
// it. REQUIRES: s.mu.
func (s *site) fill(now time.Time) {
	passed := 0
	for {
		stops := s.m.deps.Throttle.AnyStopped()
		l := s.next(now, stops)
		if l == nil {
			return
		}
		e, next := s.sched.pop(now)
		if e == nil {
			s.wakeBy(next)
			return
		}
		if stops {
			var until time.Time
			var held bool
			if l, until, held = s.pick(e, now); held {
				s.suspend(e, until, now)
				continue
			}
		}
		if l == nil {
			// The lanes with room are those that are closed to this queue. It
			// keeps its turn among those that wait for the others.
			s.sched.pass(e)
			if passed++; passed > s.sched.size {
				return
			}
			continue
		}
		passed = 0
		items := e.q.Lease(s.transaction(e))
		s.sched.charge(&e.key, len(items))
		trial := e.trial
		if n, _ := e.q.Len(); n > 0 && !trial {
			s.sched.push(e)
		} else {
			// What comes later, from disk or from outside, comes with Ready.
			delete(s.entries, e.q)
		}
		if len(items) == 0 {
			continue
		}
		s.chosen++
		if l == s.turn {
			s.turn = nil
		}
		l.buf.push(&txn{q: e.q, items: items, order: s.chosen, trial: trial})
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

// pick chooses a lane with room for the next transaction of e, by the weights
// of the pool. It is nil when the lanes that e may use have none; held reports
// that it may use no lane before until, or before it is resumed when until is
// zero. REQUIRES: s.mu.
func (s *site) pick(e *entry, now time.Time) (l *lane, until time.Time, held bool) {
	open := make(map[*lane]bool, len(s.lanes))
	forever := true
	for _, l := range s.lanes {
		t, stopped := s.m.deps.Throttle.Stopped(now, throttle.Selector{
			Domain: e.key.Domain, Provider: l.permit.Provider(), Tenant: e.key.Tenant, Campaign: e.key.Campaign, Source: l.source.Name,
		})
		switch {
		case !stopped:
			open[l] = true
		case !t.IsZero() && (forever || t.Before(until)):
			forever, until = false, t
		}
	}
	if len(open) == 0 {
		return nil, until, true
	}
	return s.byWeight(func(l *lane) bool { return open[l] && l.room(now) }), time.Time{}, false
}

// next is the lane that the weights of the pool have chosen for the next
// transaction, or nil while it is merely busy: shares would come out wrong if a
// short queue at one source sent mail to another. Only a source that its limits
// or a hold keep from sending leaves its turn to the others. While there are
// suspensions, any lane with room will do, and pick chooses. REQUIRES: s.mu.
func (s *site) next(now time.Time, stops bool) *lane {
	if stops {
		if i := slices.IndexFunc(s.lanes, func(l *lane) bool { return l.room(now) }); i >= 0 {
			return s.lanes[i]
		}
		return nil
	}
	if s.turn == nil {
		s.turn = s.byWeight(func(l *lane) bool { return l.room(now) || l.free(now) })
	}
	switch {
	case s.turn == nil, s.turn.room(now):
		return s.turn
	case s.turn.free(now):
		return nil
	}
	return s.byWeight(func(l *lane) bool { return l.room(now) }) // its turn is kept for it
}

// free reports that nothing but its own work keeps the lane busy.
func (l *lane) free(now time.Time) bool {
	return !l.until.After(now) && !l.stopped && !l.dialling.closed(now)
}

// byWeight chooses among the lanes that fit by the weights of the pool; nil if
// none does. REQUIRES: s.mu.
func (s *site) byWeight(fits func(*lane) bool) *lane {
	if len(s.lanes) == 1 {
		if fits(s.lanes[0]) {
			return s.lanes[0]
		}
		return nil
	}
	find := func(name string) *lane {
		i := slices.IndexFunc(s.lanes, func(l *lane) bool { return l.source.Name == name && fits(l) })
		if i < 0 {
			return nil
		}
		return s.lanes[i]
	}
	name := s.m.deps.Throttle.Pick(s.key.pool, s.lanes[0].permit.Provider(), func(source string) bool { return find(source) != nil })
	if l := find(name); l != nil {
		return l
	}
	// The pool has changed since the site was made.
	if i := slices.IndexFunc(s.lanes, fits); i >= 0 {
		return s.lanes[i]
	}
	return nil
}

// take returns the lane's next transaction, or nil when there is nothing to do
// for a runner now; the runner then ends. first is set on a runner's first call,
// open when it has a connection: without one it is of no use to a lane that may
// not open any.
func (s *site) take(l *lane, first, open bool) *txn {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.m.deps.Now()
	if first {
		l.starting--
		l.dialling.trying = l.dialling.trying && !open
	}
	if !s.m.ending() && !l.until.After(now) && !l.stopped && (open || !l.dialling.closed(now)) {
		if l.buf.len() == 0 {
			l.asking = open
			s.fill(now)
			l.asking = false
		}
		if l.buf.len() > 0 {
			t := l.buf.pop()
			s.kick(now)
			return t
		}
	}
	l.runners--
	l.dialling.trying = l.dialling.trying && open
	switch {
	case s.m.ending():
		s.drain(l)
	case l.until.After(now) && l.buf.len() > 0:
		s.wakeBy(l.until)
	case !open:
		if l.runners == 0 && l.dialling.closed(now) && l.dialling.until.Sub(now) > inHand {
			s.empty(l)
		}
		s.kick(now)
	}
	return nil
}

// spare returns a transaction of the lane that no runner comes for and none can
// be started for, or nil: what follows on a connection waits until that has
// served the message before, and another connection would be sooner.
func (s *site) spare(l *lane) *txn {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.m.deps.Now()
	d := &l.dialling
	switch {
	case l.alone.After(now), s.m.ending(), l.until.After(now), l.stopped:
		return nil
	case l.runners < l.limit() && !d.closed(now) && !d.trying:
		return nil
	}
	if l.buf.len() <= l.starting {
		l.asking = true
		s.fill(now)
		l.asking = false
	}
	if l.buf.len() <= l.starting {
		return nil
	}
	t := l.buf.pop()
	s.kick(now)
	return t
}

// aloneFor is how long messages go one by one to a host that has lost one which
// was begun behind another, or refused it.
const aloneFor = time.Hour

// cautious begins no message of the lane behind another for a while.
func (s *site) cautious(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.alone = s.m.deps.Now().Add(aloneFor)
}

// parked is what a runner that ends calls when it has left its connection to
// the next one: a lane that may open no further connection can use that one.
func (s *site) parked(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.dialling.narrow {
		s.kick(s.m.deps.Now())
	}
}

// dialled is what a runner calls that has the permit for a connection: another
// may try.
func (s *site) dialled(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.dialling.narrow {
		l.dialling.trying = false
		s.kick(s.m.deps.Now())
	}
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

// refused gives a transaction back whose permit was refused, and sees to it that
// nobody asks again before there is a reason to: at the time the refusal names,
// or when the lane is notified. seen are the notices of the lane from before the
// permit was asked for. What the refusal is about decides what waits: some mail
// of a queue, a queue, new connections, or the lane.
func (s *site) refused(l *lane, t *txn, g *throttle.Grant, seen uint64) {
	s.m.metrics.held.WithLabelValues(l.permit.Provider(), g.Limit.String()).Inc()
	now := s.m.deps.Now()
	if mailScope(g) && g.At.Sub(now) > inHand && s.postpone(t, g, now) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	stale := g.At.IsZero() && l.notices.Load() != seen
	switch {
	case stale:
		s.handBack(t)
	case entryLimit(g):
		s.giveBack(t)
		s.holdEntry(t, g)
	case g.At.IsZero():
		l.stopped, l.why = true, g.Limit.String() // notified lifts it
		s.handBack(t)
		s.empty(l)
	default:
		if at := later(l.until, g.At); at != l.until {
			l.until, l.why = at, g.Limit.String()
		}
		if g.At.Sub(now) <= inHand {
			l.putBack(t)
		} else {
			s.handBack(t)
			s.empty(l)
		}
		s.wakeBy(l.until)
	}
	s.kick(now)
}

// undialled gives a transaction back for which no connection may be opened. The
// lane's open ones go on, and take it when they are free. seen are the notices
// from before the permit was asked for.
func (s *site) undialled(l *lane, t *txn, g *throttle.Grant, seen uint64) {
	s.m.metrics.held.WithLabelValues(l.permit.Provider(), g.Limit.String()).Inc()
	now := s.m.deps.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &l.dialling
	d.narrow, d.trying = true, false
	switch {
	case !g.At.IsZero():
		if at := later(d.until, g.At); at != d.until {
			d.until, d.why, d.limited = at, g.Limit.String(), true
		}
	case l.notices.Load() == seen:
		d.capped = true
	}
	if !g.At.IsZero() && g.At.Sub(now) <= inHand {
		l.putBack(t)
	} else {
		s.handBack(t)
	}
	s.kick(now)
}

// empty gives back what a lane that has to wait holds in its buffer: another
// source may send it meanwhile. REQUIRES: s.mu.
func (s *site) empty(l *lane) {
	for l.buf.len() > 0 {
		t := l.buf.pop()
		s.handBack(t)
	}
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
	s.sched.refund(&key, len(t.items))
}

// handBack gives a transaction back to be chosen again. REQUIRES: s.mu.
func (s *site) handBack(t *txn) {
	s.giveBack(t)
	s.keep(t)
}

// entryLimit reports refusals that concern one queue, or some of its mail, and
// not the lane.
func entryLimit(g *throttle.Grant) bool {
	switch g.Limit {
	case throttle.LimitDomain, throttle.LimitTenant, throttle.LimitCampaign, throttle.LimitSenderDomain:
		return true
	case throttle.LimitBackoff, throttle.LimitSuspended:
		return g.Scope != throttle.ScopeSource && g.Scope != throttle.ScopeNetblock
	}
	return false
}

// laneHeld reports refusals by a hold or a suspension of everything on the lane.
func laneHeld(g *throttle.Grant) bool {
	return (g.Limit == throttle.LimitBackoff || g.Limit == throttle.LimitSuspended) && !entryLimit(g)
}

// mailScope reports refusals that concern some mail of a queue and leave the
// rest of it free to go.
func mailScope(g *throttle.Grant) bool {
	return g.Scope == throttle.ScopeSenderDomain || g.Scope == throttle.ScopeDKIMDomain
}

// postpone moves the recipients of a transaction to the end of a hold that does
// not concern the mail behind them in their queue, spread out so that they do
// not come back in a burst. It reports false when they had to stay.
func (s *site) postpone(t *txn, g *throttle.Grant, now time.Time) bool {
	at := g.At.Add(time.Duration(s.m.deps.Rand() * float64(g.At.Sub(now)/10)))
	for _, it := range t.items {
		if !at.Before(it.Expires) {
			return false
		}
	}
	if err := s.m.queue.Postpone(t.items, at); err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := t.q.Key()
	s.sched.refund(&key, len(t.items))
	s.kick(now)
	return true
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

// suspend keeps an entry off the schedule until a suspension runs out, or until
// suspensions change when until is zero. REQUIRES: s.mu.
func (s *site) suspend(e *entry, until time.Time, now time.Time) {
	if (until.IsZero() || until.Sub(now) > parkFor) && s.m.queue.Park(e.q) {
		delete(s.entries, e.q) // on disk until SuspensionsChanged
		return
	}
	why := throttle.LimitSuspended.String()
	if until.IsZero() {
		s.sched.stop(e, why)
		return
	}
	s.sched.hold(e, until, why)
	s.wakeBy(until)
}

// parkFor is how long a suspended queue is worth keeping in memory.
const parkFor = time.Minute

// Stopped reports whether all mail of a queue is suspended, whichever source
// would carry it.
func (m *MTA) Stopped(key *store.QueueKey) bool {
	now := m.deps.Now()
	mail := throttle.Selector{Domain: key.Domain, Tenant: key.Tenant, Campaign: key.Campaign}
	if !m.deps.Throttle.AnyStopped() {
		return false
	}
	if _, stopped := m.deps.Throttle.Stopped(now, mail); stopped {
		return true
	}
	m.mu.Lock()
	t := m.targets[targetKey{pool: m.poolFor(key), domain: key.Domain}]
	var s *site
	if t != nil {
		s = t.site
	}
	m.mu.Unlock()
	if s == nil {
		return false
	}
	for _, l := range s.paths {
		mail.Provider, mail.Source = l.permit.Provider(), l.source.Name
		if _, stopped := m.deps.Throttle.Stopped(now, mail); !stopped {
			return false
		}
	}
	return len(s.paths) > 0
}

// SuspensionsChanged makes every site look again at what it may send: an
// operator or a brake has suspended or resumed something, or a time is over.
func (m *MTA) SuspensionsChanged() {
	m.queue.Unpark()
	m.mu.Lock()
	sites := slices.Collect(maps.Values(m.sites))
	m.mu.Unlock()
	for _, s := range sites {
		s.mu.Lock()
		for _, l := range s.lanes {
			l.notices.Add(1)
			l.stopped = false
			l.dialling.open()
		}
		s.sched.resume()
		s.kick(m.deps.Now())
		s.mu.Unlock()
	}
}

// holdEntry keeps the queue of a released transaction off the schedule until at,
// or until a permit of this lane may be had if at is zero. REQUIRES: s.mu.
func (s *site) holdEntry(t *txn, g *throttle.Grant) {
	at, why := g.At, g.Limit.String()
	if e := s.entries[t.q]; e != nil {
		e.dead = true
	}
	e := &entry{q: t.q, key: t.q.Key()}
	s.entries[t.q] = e
	switch {
	case !at.IsZero():
		s.sched.hold(e, at, why)
		s.wakeBy(at)
	case g.Limit == throttle.LimitSuspended:
		s.sched.stop(e, why)
	default:
		s.sched.wait(e, why, subject(&e.key, g))
	}
}

// subject names what an entry waits for whose permit was refused without a time.
func subject(key *store.QueueKey, g *throttle.Grant) string {
	switch {
	case g.Limit == throttle.LimitTenant, g.Scope == throttle.ScopeTenant:
		return "t" + key.Tenant
	case g.Limit == throttle.LimitCampaign, g.Scope == throttle.ScopeCampaign:
		return "c" + key.Tenant + "\x00" + key.Campaign
	case g.Limit == throttle.LimitDomain, g.Scope == throttle.ScopeDomain:
		return "d" + key.Domain
	}
	return "q" + key.String()
}

// granted is called when t has its permit: if it was on trial, its queue goes
// on, and others may try who wait for the same.
func (s *site) granted(t *txn) {
	if !t.trial {
		return
	}
	t.trial = false
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(t)
	s.sched.release()
	s.kick(s.m.deps.Now())
}

// connectFailed keeps the lane from dialling for a while after no host could be
// reached.
func (s *site) connectFailed(l *lane, reply string) {
	cfg := &s.m.set.Load().Config
	now := s.m.deps.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	pause := cfg.RetryConnection << min(l.failures, 10)
	if pause > cfg.MaxRetryConnection || pause <= 0 {
		pause = cfg.MaxRetryConnection
	}
	d := &l.dialling
	d.trying = false
	if d.limited || !d.until.After(now) { // the first of several runners that fail together
		l.failures++
		d.until, d.why, d.limited = later(d.until, now.Add(pause)), reply, false
	}
	l.allowed = slowStart
	s.empty(l)
	s.kick(now)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
