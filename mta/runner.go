package mta

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/outbound"
	"github.com/tradewind-mta/tradewind/throttle"
)

// poolKey holds all that makes two open connections different.
type poolKey struct {
	source string
	site   siteKey
	// provider is whose limits the connection counts against.
	provider string
}

// loaded is a message in memory, and what becomes of it at delivery.
type loaded struct {
	msg    *message.Message
	body   []byte
	sig    []byte
	signed bool // sig is final for body
	dsn    bool // the server takes over the duty to report (RFC 3461)
}

// maxTries is how many used connections may turn out dead under one
// transaction before it counts as failed.
const maxTries = 3

// run serves a lane until there is nothing for it to do.
func (s *site) run(l *lane) {
	var c *outbound.Conn
	first := true
	for {
		if c == nil {
			c = s.m.conns.Get(s.poolKey(l))
		}
		t := s.take(l, first, c != nil)
		if t == nil {
			break
		}
		first = false
		for t != nil {
			trial := t.trial // t may be another runner's when serve has returned
			var ahead *txn
			c, ahead = s.serve(l, c, t)
			if trial {
				s.requeue(t) // in case it never came to its permit
			}
			t = s.goOn(ahead, c)
		}
	}
	if c != nil {
		s.m.conns.Put(s.poolKey(l), c)
		s.parked(l)
	}
	s.m.slots.offer() // in case it came for one and had no use for it
}

func (s *site) poolKey(l *lane) poolKey {
	return poolKey{source: l.source.Name, site: s.key, provider: l.permit.Provider()}
}

// serve carries out one transaction and returns a connection that can be used
// again, or nil, and a transaction that was taken to follow this one, or nil. A
// bug in here defers the message and drops the connection; it does not take the
// engine down.
func (s *site) serve(l *lane, c *outbound.Conn, t *txn) (next *outbound.Conn, ahead *txn) {
	defer func() {
		if r := recover(); r != nil {
			s.m.metrics.panics.Inc()
			s.m.deps.Logger.Error("delivery panicked; the message is deferred", "site", s.key.site, "msg_id", t.items[0].ID, "err", r)
			if c != nil {
				c.Drop()
			}
			t.q.Release(t.items)
			s.connectFailed(l, "internal error")
			next = nil
		}
	}()
	if t.envelope == nil { // or it was made ready while another went out
		if !s.m.prepare(t) {
			return c, nil
		}
		if t.load.msg.Sandbox {
			s.m.settle(s, l, t, sandboxed(t))
			return c, nil
		}
	}
	for {
		if c == nil {
			if c = s.m.conns.Get(s.poolKey(l)); c == nil {
				seen := l.notices.Load()
				var denied *throttle.Grant
				var reply *message.Reply
				if c, denied, reply = s.connect(l, t); c == nil {
					s.notConnected(l, t, denied, reply, seen)
					return nil, nil
				}
			}
		}
		again, done := s.attempt(l, c, t, &ahead)
		if done {
			return again, ahead
		}
		c = again
	}
}

// attempt sends t on c. done is false when it should be tried on another
// connection at once. ahead becomes the transaction that was taken to follow t.
func (s *site) attempt(l *lane, c *outbound.Conn, t *txn, ahead **txn) (next *outbound.Conn, done bool) {
	m := s.m
	if t.envelope == nil {
		if next, done, ok := s.ready(l, c, t); !ok {
			return next, done
		}
	}
	defer t.grant.Release()   // a bug further down must not keep it
	if m.queue.Err() != nil { // nothing could be recorded: it would be sent again
		t.q.Release(t.items)
		if t.begun {
			c.Drop()
			return nil, true
		}
		return c, true
	}
	t.envelope.Next = func() *outbound.Envelope { return s.follow(l, c, t, ahead) }
	start, begun := m.deps.Now(), t.begun
	result := c.Send(m.hard, t.envelope)
	t.envelope, t.begun = nil, false // another connection needs another
	t.grant.Release()
	m.metrics.transaction.Observe(m.deps.Now().Sub(start).Seconds())
	if *ahead != nil {
		(*ahead).begun = result.Next != nil
	}
	if result.Usable {
		next = c
	} else {
		c.Quit(m.hard)
	}
	domain := t.items[0].Recipient.Address.Domain()
	if begun && m.hard.Err() == nil && lostBehind(result) {
		s.cautious(l)
		if !result.Stale {
			return next, false
		}
	}
	if result.Stale && t.tries < maxTries && !l.ruled(domain, result.Outcomes) {
		t.tries++
		l.permit.Observe(m.deps.Now(), &throttle.Observation{Closed: true, Sent: t.sent, Stage: message.StageMail, Domain: domain})
		return nil, false
	}
	if m.hard.Err() != nil && allDeferred(result.Outcomes) {
		t.q.Release(t.items) // we cut it off ourselves: no attempt of theirs
		return nil, true
	}
	countAttempts(result.Outcomes)
	t.first, t.load.dsn = t.sent == 0, c.Caps().DSN
	if m.settle(s, l, t, result.Outcomes) && next != nil {
		next.Quit(m.hard)
		next = nil
	}
	if anyDelivered(result.Outcomes) {
		s.succeeded(l)
	}
	return next, true
}

// lostBehind reports what a server may do that does not bear a message begun
// behind another, although it offers PIPELINING: not answer it, or refuse MAIL for
// good. The message is then tried alone.
func lostBehind(r *outbound.Result) bool {
	reply := r.Outcomes[0].Reply
	if r.Stale {
		return reply.Local
	}
	return reply.Stage == message.StageMail && !reply.Temporary()
}

// ready signs t for c, gets its permit and makes its envelope. If it is not ok,
// next and done are the outcome of the attempt.
func (s *site) ready(l *lane, c *outbound.Conn, t *txn) (next *outbound.Conn, done, ok bool) {
	m := s.m
	if reply := m.finish(t, c.Caps()); reply != nil {
		m.settle(s, l, t, sameOutcome(t, message.Outcome{Reply: reply, Attempted: true, Result: resultOf(reply)}))
		return c, true, false
	}
	seen := l.notices.Load()
	grant := s.permit(l, c, t, nil)
	switch {
	case grant.OK:
		s.permitted(c, t, grant)
		return c, false, true
	case grant.Limit == throttle.LimitMessagesPerConnection:
		c.Quit(m.hard)
		return nil, false, false
	case grant.Max > 0 && grant.Max < len(t.items): // by LimitRecipients or LimitWarmup
		t.q.Release(t.items[grant.Max:])
		s.requeue(t)
		t.items = t.items[:grant.Max]
		return c, false, false
	}
	s.refused(l, t, &grant, seen)
	if laneHeld(&grant) && (grant.At.IsZero() || grant.At.Sub(m.deps.Now()) > m.set.Load().Config.IdleConnection) {
		c.Quit(m.hard) // it would lie idle, and the provider wants fewer
		return nil, true, false
	}
	return c, true, false
}

// permit asks whether t may be sent on c now, or directly after another
// transaction that has its permit.
func (s *site) permit(l *lane, c *outbound.Conn, t *txn, follows *throttle.Grant) throttle.Grant {
	it := t.items[0]
	return l.permit.Send(s.m.deps.Now(), throttle.Mail{
		Domain:       it.Recipient.Address.Domain(),
		Tenant:       t.load.msg.Tenant,
		Campaign:     t.load.msg.Campaign,
		SenderDomain: domainOf(t.load.msg.Sender(&it.Recipient)),
		DKIMDomain:   t.load.msg.HeaderFrom,
		Recipients:   len(t.items),
		Sent:         c.Messages(),
		Follows:      follows,
	})
}

// permitted makes the envelope of t, which has its permit and is signed for c.
func (s *site) permitted(c *outbound.Conn, t *txn, grant throttle.Grant) {
	s.granted(t)
	msg := t.load.msg
	t.grant, t.sent = grant, c.Messages()
	t.envelope = &outbound.Envelope{
		From: msg.Sender(&t.items[0].Recipient), EnvID: msg.EnvID, Ret: msg.Ret,
		EightBit: msg.EightBit, UTF8: msg.UTF8,
		Body: t.load.body, Plain: msg.Plain,
		To: make([]message.Recipient, len(t.items)),
	}
	if len(t.load.sig) > 0 {
		t.envelope.Header = [][]byte{t.load.sig}
	}
	for i, it := range t.items {
		t.envelope.To[i] = it.Recipient
	}
}

// follow takes the transaction that comes next on c, while present is about to
// be written, and returns its envelope. Nil means that none can be begun yet:
// ahead, if there is one, is then served like any other in its turn, which also
// deals with whatever was in its way here.
func (s *site) follow(l *lane, c *outbound.Conn, present *txn, ahead **txn) *outbound.Envelope {
	if *ahead != nil { // taken when present was tried before
		return nil
	}
	if !l.permit.PipelineMessages(present.items[0].Recipient.Address.Domain()) {
		return nil
	}
	t := s.spare(l)
	if t == nil {
		return nil
	}
	*ahead = t
	trial := t.trial
	if !s.m.prepare(t) {
		*ahead = nil
		if trial {
			s.requeue(t)
		}
		return nil
	}
	if t.load.msg.Sandbox || s.m.finish(t, c.Caps()) != nil {
		return nil
	}
	grant := s.permit(l, c, t, &present.grant)
	if !grant.OK {
		return nil
	}
	s.permitted(c, t, grant)
	return t.envelope
}

// goOn returns the transaction that was taken to follow another on c, if it can:
// without the connection it is given back to be chosen again.
func (s *site) goOn(t *txn, c *outbound.Conn) *txn {
	if t == nil {
		return nil
	}
	if t.envelope != nil && (c == nil || !t.begun) {
		t.grant.Release()
		t.envelope, t.begun = nil, false
	}
	if c != nil {
		return t
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handBack(t)
	s.kick(s.m.deps.Now())
	return nil
}

// ruled reports whether the shaping rules speak about what the server said: then
// its words count, although a 421 before it has looked at the message often means
// no more than that it is tired of the connection.
func (l *lane) ruled(domain string, list []message.Outcome) bool {
	return slices.ContainsFunc(list, func(o message.Outcome) bool {
		return o.Reply != nil && !o.Reply.Local && l.permit.Ruled(domain, o.Reply)
	})
}

// countAttempts marks the outcomes that are attempts although the server said
// nothing about the message: what cannot be sent to it at all, and everything
// when nobody was reached. Only recipients left over from a transaction that
// others were part of are given back; more would try for ever, without an event
// and at the pace of connections.
func countAttempts(list []message.Outcome) {
	any := false
	for i := range list {
		any = any || list[i].Attempted
	}
	for i := range list {
		o := &list[i]
		o.Attempted = o.Attempted || !any || o.Result == message.Failed
	}
}

func allDeferred(list []message.Outcome) bool {
	for _, o := range list {
		if o.Result != message.Deferred || (o.Reply != nil && !o.Reply.Local) {
			return false
		}
	}
	return true
}

func anyDelivered(list []message.Outcome) bool {
	for _, o := range list {
		if o.Result == message.Delivered {
			return true
		}
	}
	return false
}

func sameOutcome(t *txn, o message.Outcome) []message.Outcome {
	list := make([]message.Outcome, len(t.items))
	for i := range list {
		list[i] = o
	}
	return list
}

func resultOf(r *message.Reply) message.Result {
	if r.Temporary() {
		return message.Deferred
	}
	return message.Failed
}

// requeue puts the queue of recipients that were given back on the schedule.
func (s *site) requeue(t *txn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(t)
}

// notConnected settles or gives back a transaction for which there is no
// connection.
func (s *site) notConnected(l *lane, t *txn, denied *throttle.Grant, reply *message.Reply, seen uint64) {
	if denied != nil {
		if denied.At.IsZero() {
			s.makeRoom(l, denied.Limit)
		}
		s.undialled(l, t, denied, seen)
		return
	}
	if s.m.hard.Err() != nil {
		t.q.Release(t.items)
		return
	}
	s.m.metrics.unreached.WithLabelValues(l.permit.Provider(), reply.Stage.String()).Inc()
	s.connectFailed(l, reply.Error())
	// A host that turns us away at the door says nothing about the recipient:
	// only DNS can be final here.
	result := message.Deferred
	if reply.Stage == message.StageResolve {
		result = resultOf(reply)
	}
	s.m.settle(s, l, t, sameOutcome(t, message.Outcome{Reply: reply, Attempted: true, Result: result}))
}

// Bounds of one search for a host that answers.
const (
	maxHosts     = 20
	maxAddresses = 5 // tried in all
)

// candidate is one address to try.
type candidate struct {
	host string
	addr netip.AddrPort
}

// connect opens a connection for the lane: hosts in order of preference, each
// address with a permit of its own. All of conn, denied and reply but one are
// nil; denied means that a permit was refused before anything was tried.
func (s *site) connect(l *lane, t *txn) (conn *outbound.Conn, denied *throttle.Grant, reply *message.Reply) {
	m := s.m
	if denied := m.health.denies(l.source.Name, m.deps.Now()); denied != nil {
		return nil, denied, nil
	}
	domain := t.items[0].Recipient.Address.Domain()
	list, reply := s.candidates(domain)
	if reply != nil {
		return nil, nil, reply
	}
	if list, reply = l.reachable(list, domain); reply != nil {
		return nil, nil, reply
	}
	tried := 0
	for _, cand := range s.order(list) {
		if tried == maxAddresses || m.soft.Err() != nil {
			break
		}
		conn, grant, r := s.dial(l, cand, domain)
		if conn != nil {
			return conn, nil, nil
		}
		if grant != nil && grant.Limit == throttle.LimitMXConnections {
			denied = grant // another address may have room
			continue
		}
		if grant != nil && tried > 0 && s.pause(grant) {
			conn, grant, r = s.dial(l, cand, domain)
			if conn != nil {
				return conn, nil, nil
			}
		}
		if grant != nil {
			if tried == 0 {
				return nil, grant, nil
			}
			break
		}
		tried++
		reply = r
		s.avoid(cand.host)
	}
	if reply == nil && denied != nil {
		return nil, denied, nil
	}
	if reply == nil {
		reply = local(message.StageConnect, 451, message.Enhanced{4, 4, 1}, "no host could be tried")
	}
	return nil, nil, reply
}

// reachable drops the addresses that the lane's source cannot or must not use.
func (l *lane) reachable(list []candidate, domain string) ([]candidate, *message.Reply) {
	ip := l.source.IP()
	v6 := l.permit.IPv6(domain)
	keep := list[:0:0]
	for _, c := range list {
		a := c.addr.Addr().Unmap()
		if a.Is6() && !v6 || ip.IsValid() && ip.Unmap().Is4() != a.Is4() {
			continue
		}
		keep = append(keep, c)
	}
	switch {
	case len(keep) > 0:
		return keep, nil
	case !v6 && !slices.ContainsFunc(list, func(c candidate) bool { return c.addr.Addr().Unmap().Is4() }):
		return nil, local(message.StageConnect, 451, message.Enhanced{4, 4, 1}, "the hosts have IPv6 addresses only, and the shaping rules rule IPv6 out")
	}
	return nil, local(message.StageConnect, 451, message.Enhanced{4, 4, 1}, "the hosts have no address of the family of source "+l.source.Name)
}

// makeRoom says goodbye to an idle connection of some other site when it takes
// the place of the one that was refused.
func (s *site) makeRoom(l *lane, limit throttle.Limit) {
	provider := l.permit.Provider()
	s.m.conns.Shed(func(k poolKey) bool {
		switch limit {
		case throttle.LimitConnections, throttle.LimitSourceConnections:
			return k.source == l.source.Name && k.provider == provider
		case throttle.LimitProviderConnections:
			return k.provider == provider
		case throttle.LimitMXConnections:
			return true
		}
		return false
	})
}

// maxPause is how long a search for a host that answers waits for its next
// permit. Giving up earlier would put the message off by a whole retry interval
// because of a pace that is counted in fractions of a second.
const maxPause = 5 * time.Second

// pause waits until a refused permit may be had. It reports false when that is
// unknown, too far off, or the engine stops.
func (s *site) pause(g *throttle.Grant) bool {
	d := g.At.Sub(s.m.deps.Now())
	if g.At.IsZero() || d > maxPause {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.m.soft.Done():
		return false
	}
}

// candidates lists the addresses of the site in the order to try.
func (s *site) candidates(domain string) ([]candidate, *message.Reply) {
	if s.hops != nil {
		var list []candidate
		var last *message.Reply
		for _, h := range s.hops {
			if h.addr.IsValid() {
				list = append(list, candidate{host: h.host, addr: netip.AddrPortFrom(h.addr, h.port)})
				continue
			}
			addrs, reply := s.m.hopAddrs(h.host)
			if reply != nil {
				last = reply
				continue
			}
			for _, a := range addrs {
				list = append(list, candidate{host: h.host, addr: netip.AddrPortFrom(a, h.port)})
			}
		}
		if len(list) == 0 {
			return nil, last
		}
		return list, nil
	}
	route, reply := s.m.deps.Resolver.Route(s.m.soft, domain)
	if reply != nil {
		return nil, reply
	}
	hosts, reply := s.m.deps.Resolver.Resolve(s.m.soft, route)
	if reply != nil {
		return nil, reply
	}
	port := s.m.set.Load().Config.Port
	var list []candidate
	for _, h := range hosts[:min(len(hosts), maxHosts)] {
		for _, a := range h.Addrs {
			list = append(list, candidate{host: h.Name, addr: netip.AddrPortFrom(a, port)})
		}
	}
	return list, nil
}

// hopAddrs resolves the name of a next hop. Whoever writes a route may point it
// anywhere, so the addresses are not checked; "localhost" needs no DNS.
func (m *MTA) hopAddrs(host string) ([]netip.Addr, *message.Reply) {
	if host == "localhost" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	return m.deps.Resolver.Lookup(m.soft, host)
}

// order moves hosts that were down lately behind the others.
func (s *site) order(list []candidate) []candidate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.down) == 0 {
		return list
	}
	now := s.m.deps.Now()
	up := make([]candidate, 0, len(list))
	var down []candidate
	for _, c := range list {
		if until, ok := s.down[c.host]; ok && until.After(now) {
			down = append(down, c)
		} else {
			delete(s.down, c.host)
			up = append(up, c)
		}
	}
	return append(up, down...)
}

// avoid passes a host over for a while.
func (s *site) avoid(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.down) < 100 {
		s.down[host] = s.m.deps.Now().Add(s.m.set.Load().Config.HostDown)
	}
}

// dial opens one connection to one address.
func (s *site) dial(l *lane, cand candidate, domain string) (*outbound.Conn, *throttle.Grant, *message.Reply) {
	m := s.m
	set := m.set.Load()
	policy := s.key.tls
	if tls, _ := l.permit.TLS(domain); tls != throttle.TLSUnset {
		policy = stricter(policy, shapingPolicy(tls))
	}
	var failed *message.Reply // of the first try
	for retried := false; ; retried = true {
		if !m.slots.claim(l) {
			m.conns.Shed(func(poolKey) bool { return true })
			return nil, &throttle.Grant{Limit: throttle.LimitConnections}, nil
		}
		grant := l.permit.Connect(m.deps.Now(), cand.addr.Addr())
		if !grant.OK && retried && s.pause(&grant) {
			grant = l.permit.Connect(m.deps.Now(), cand.addr.Addr())
		}
		if !grant.OK {
			m.slots.free()
		}
		switch {
		case !grant.OK && retried:
			return nil, nil, failed
		case !grant.OK:
			return nil, &grant, nil
		}
		s.dialled(l)
		release := sync.OnceFunc(func() {
			m.slots.free()
			grant.Release()
		})
		var missing error
		opt := outbound.Options{
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := m.deps.Dial(ctx, l.source, network, addr, len(s.hops) == 0)
				if errors.Is(err, syscall.EADDRNOTAVAIL) {
					missing = err
				}
				return c, err
			},
			EHLO: l.source.EHLO, Host: cand.host, Addr: cand.addr, Source: l.source.Name,
			TLS: policy, Fallback: m.fallback, Timeouts: set.Config.Timeouts.outbound(),
			Buffers: &m.buffers, OnClose: release, Life: m.hard,
		}
		if opt.EHLO == "" {
			opt.EHLO = set.Hostname
		}
		opt.TLSConfig = m.deps.TLS
		m.tracer.conn(&opt, s.key.site)
		conn, reply := outbound.Dial(m.hard, opt)
		if reply == nil {
			m.metrics.connections.WithLabelValues(l.permit.Provider(), "ok").Inc()
			m.sourceWorks(l)
			return conn, nil, nil
		}
		release()
		if missing != nil {
			m.metrics.connections.WithLabelValues(l.permit.Provider(), "failed").Inc()
			return nil, m.sourceMissing(l, missing), nil
		}
		m.metrics.connections.WithLabelValues(l.permit.Provider(), "failed").Inc()
		m.apply(l, l.permit.Observe(m.deps.Now(), &throttle.Observation{Stage: reply.Stage, Reply: reply}))
		if reply.Stage == message.StageSTARTTLS && policy == outbound.Opportunistic && !retried {
			failed = reply
			continue // in clear, as Fallback remembers
		}
		return nil, nil, reply
	}
}
