package mta

import (
	"time"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/throttle"
)

// verdict is what is done about one outcome.
type verdict struct {
	result   message.Result
	category message.Category
	suppress bool
	soon     time.Time // when a rule says that trying again is worth while
	hold     time.Time // before when a rule says that it is not
	again    bool      // not an attempt: give the recipient back
}

// settle records what came of a transaction, in one commit, and lets throttle
// and the lane learn from it. s and l are nil for mail that never had a lane.
// It reports whether the connection must be closed.
func (m *MTA) settle(s *site, l *lane, t *txn, outcomes []message.Outcome) (drop bool) {
	now := m.deps.Now()
	list := make([]queue.Settlement, 0, len(t.items))
	var again []*queue.Item
	var failed, late, relayed []report
	for i, it := range t.items {
		o := &outcomes[i]
		v, d := m.judge(l, t, it, o, now)
		drop = drop || d
		if v.again || !o.Attempted {
			again = append(again, it)
			continue
		}
		it.Attempt++
		if it.FirstAttempt.IsZero() {
			it.FirstAttempt = now
		}
		it.LastReply = o.Reply
		settlement := m.outcome(s, l, t, it, o, v, now)
		switch settlement.Event.Type {
		case message.EventBounced, message.EventExpired:
			failed = append(failed, report{it, o.Reply, bounce.ActionFailed})
		case message.EventDeferred:
			if m.isLate(t.load.msg, it, now) {
				it.DelayNotified = now
				late = append(late, report{it, o.Reply, bounce.ActionDelayed})
			}
		case message.EventDelivered:
			if !t.load.dsn {
				relayed = append(relayed, report{it, o.Reply, bounce.ActionRelayed})
			}
		}
		m.metrics.outcome(l, settlement.Event)
		list = append(list, settlement)
	}
	if len(list) > 0 {
		for _, reports := range [][]report{failed, late, relayed} {
			if sub := m.notice(t, reports, now); sub != nil {
				list[0].Spawn = append(list[0].Spawn, sub)
			}
		}
		m.commit(list)
	}
	if len(again) > 0 {
		t.q.Release(again)
		if s != nil {
			s.requeue(t)
		}
	}
	return drop
}

// commit settles; the only error there is means that storage has failed, and
// whoever owns the store ends the process for it.
func (m *MTA) commit(list []queue.Settlement) {
	if len(list) == 0 {
		return
	}
	if err := m.queue.Settle(list); err != nil && !isShutdown(err) {
		m.deps.Logger.Error("settle", "err", err)
	}
}

// judge decides what an outcome means: the shaping rules may overrule the
// reply's own class, and the bounce rules say what it was about.
func (m *MTA) judge(l *lane, t *txn, it *queue.Item, o *message.Outcome, now time.Time) (v verdict, drop bool) {
	v.result = o.Result
	if o.Result == message.Delivered {
		if l != nil {
			m.apply(l, l.permit.Observe(now, m.observation(t, it, o, v)))
		}
		return v, false
	}
	host := ""
	if o.Reply != nil {
		host = o.Reply.RemoteHost
		if rules := m.set.Load().Rules; rules != nil {
			b := rules.Classify(o.Reply, host)
			v.category, v.suppress = b.Category, b.Suppress
			if o.Result == message.Failed && !b.Permanent && !o.Reply.Local {
				v.result = message.Deferred // a 5xx that is known to mean "later"
			}
		}
	}
	if l == nil || o.Reply == nil || !o.Attempted {
		return v, false
	}
	actions := l.permit.Observe(now, m.observation(t, it, o, v))
	for _, a := range actions {
		switch a.Kind {
		case throttle.ActTemporary:
			v.result, v.suppress = message.Deferred, false
		case throttle.ActBounce:
			v.result = message.Failed
		case throttle.ActDefer:
			v.hold = a.Until.Add(time.Duration(m.deps.Rand() * float64(a.Spread)))
		case throttle.ActRetryAt:
			v.soon = a.Until.Add(time.Duration(m.deps.Rand() * float64(a.Spread)))
		case throttle.ActReconnect:
			// To the first message on a connection another one would be told
			// the same.
			v.again, drop = !t.first, true
		case throttle.ActSplit:
			v.again = len(t.items) > 1 // one alone cannot be split
			l.site.split(it.Recipient.Address.Domain())
		case throttle.ActClose:
			drop = true
			if a.Scope == throttle.ScopeSource {
				m.closeIdle(l)
			}
		}
	}
	m.apply(l, actions)
	return v, drop
}

func (m *MTA) observation(t *txn, it *queue.Item, o *message.Outcome, v verdict) *throttle.Observation {
	msg := t.load.msg
	ob := &throttle.Observation{
		Reply: o.Reply, Result: v.result, UnknownUser: v.category == message.BadMailbox,
		Domain: it.Recipient.Address.Domain(), Tenant: msg.Tenant, Campaign: msg.Campaign,
		SenderDomain: domainOf(msg.Sender(&it.Recipient)), DKIMDomain: msg.HeaderFrom,
		MessageID: msg.ID, Recipients: 1,
	}
	if o.Reply != nil {
		ob.Stage = o.Reply.Stage
	}
	return ob
}

// closeIdle closes the connections of a lane's source at its provider that lie
// idle: the provider wants none.
func (m *MTA) closeIdle(l *lane) {
	provider := l.permit.Provider()
	for m.conns.Shed(func(k poolKey) bool { return k.source == l.source.Name && k.provider == provider }) {
	}
}

// Report shows the brakes what became known after the delivery.
func (m *MTA) Report(r throttle.Report) {
	m.apply(nil, m.deps.Throttle.Report(m.deps.Now(), r))
}

// apply passes on what throttle wants told. l is nil when no lane is concerned.
func (m *MTA) apply(l *lane, actions []throttle.Action) {
	for _, a := range actions {
		if a.Event != nil {
			a.Event.Egress = l.egress()
			m.deps.Record(a.Event)
		}
		if a.Kind == throttle.ActAlert || a.Kind == throttle.ActDisable {
			e := l.egress()
			m.deps.Logger.Warn("a shaping rule asks for attention", "rule", a.Rule, "scope", a.Scope, "key", a.Key, "source", e.Source, "site", e.Site)
		}
	}
}

func (l *lane) egress() message.Egress {
	if l == nil {
		return message.Egress{}
	}
	return message.Egress{Source: l.source.Name, Pool: l.site.key.pool, Provider: l.permit.Provider(), Site: l.site.key.site}
}

// lastTry is how close to its expiry a recipient is not tried again.
const lastTry = 5 * time.Minute

// outcome makes the settlement of one recipient.
func (m *MTA) outcome(s *site, l *lane, t *txn, it *queue.Item, o *message.Outcome, v verdict, now time.Time) queue.Settlement {
	e := m.queue.Event(it, message.EventDelivered, now)
	e.Attempt = it.Attempt
	e.Reply = o.Reply
	e.Egress = l.egress()
	e.Category = v.category
	e.Size = t.load.msg.Size
	settlement := queue.Settlement{Item: it, Event: e}
	switch v.result {
	case message.Delivered:
		e.Category = message.NoCategory
		e.Duration = now.Sub(it.Accepted)
		if t.load.msg.Sandbox {
			e.Origin = "sandbox"
		}
	case message.Failed:
		e.Type = message.EventBounced
		e.Suppressing = v.suppress
		e.Duration = now.Sub(it.Accepted)
	default:
		e.Type = message.EventDeferred
		if v.result == message.Unknown {
			m.metrics.unknown.WithLabelValues(l.egress().Provider).Inc()
			e.Detail = "the connection was lost after the message was sent and before the reply"
			if o.Reply != nil && !o.Reply.Local {
				e.Detail = "the reply to the message could not be told from a stray one"
			}
		}
		settlement.Retry = m.nextTry(it, v, now)
		if settlement.Retry.IsZero() {
			e.Type = message.EventExpired
			e.Category = message.MessageExpired
			e.Duration = now.Sub(it.Accepted)
		}
	}
	return settlement
}

// nextTry is when a deferred recipient is due again, zero when it expires
// first. The last try falls just before the expiry.
func (m *MTA) nextTry(it *queue.Item, v verdict, now time.Time) time.Time {
	next := now.Add(m.queue.Config().NextRetry(it.Attempt, m.deps.Rand()))
	if v.soon.After(now) && v.soon.Before(next) {
		next = v.soon // the schedule may be hours by now, a greylist opens in minutes
	}
	next = later(next, v.hold)
	if next.Before(it.Expires) {
		return next
	}
	if last := it.Expires.Add(-time.Minute); last.Sub(now) > lastTry {
		return last
	}
	return time.Time{}
}

// Expired settles an item whose time has run out while it lay in the queue.
func (m *MTA) Expired(it *queue.Item, msg *message.Message) queue.Settlement {
	now := m.deps.Now()
	e := m.queue.EventOf(it, msg, message.EventExpired, now)
	e.Category = message.MessageExpired
	e.Reply = it.LastReply
	e.Duration = now.Sub(it.Accepted)
	settlement := queue.Settlement{Item: it, Event: e}
	t := &txn{items: []*queue.Item{it}, load: loaded{msg: msg}}
	if sub := m.notice(t, []report{{it, it.LastReply, bounce.ActionFailed}}, now); sub != nil {
		settlement.Spawn = append(settlement.Spawn, sub)
	}
	m.metrics.outcome(nil, e)
	return settlement
}

// sandboxed is the outcome of mail that is not to leave.
func sandboxed(t *txn) []message.Outcome {
	return sameOutcome(t, message.Outcome{
		Result: message.Delivered, Attempted: true,
		Reply: local(message.StageNone, 250, message.Enhanced{2, 0, 0}, "sandbox: not sent"),
	})
}
