package throttle

import (
	"strconv"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Observation is what came of a transaction, or of a try to open a connection.
type Observation struct {
	Stage  message.Stage  // used when Reply has none
	Reply  *message.Reply // nil: nobody answered
	Result message.Result
	// Closed says that the server closed the connection without a word, after
	// Sent transactions.
	Closed bool
	Sent   int

	Domain       string
	Tenant       string
	Campaign     string
	SenderDomain string
	DKIMDomain   string
	MessageID    message.ID
	Recipients   int
	// UnknownUser says that the recipient does not exist, as the bounce rules
	// see it; the brakes count it.
	UnknownUser bool
}

// ActionKind is what a caller has to do.
type ActionKind uint8

// Action kinds.
const (
	ActNone      ActionKind = iota // a rule is about the reply; the ordinary retry or bounce applies
	ActDefer                       // defer the message until the time, plus a random part of Spread
	ActRetryAt                     // try this recipient or message again at the time
	ActTemporary                   // a 5xx that means later: defer by the ordinary schedule, never suppress
	ActBounce                      // a 4xx that means never
	ActReconnect                   // close this connection and open another at once; not a failure
	ActClose                       // close the connections of Scope and Key when their transaction is over
	ActSplit                       // repeat with one recipient per transaction; not a failure
	ActSuspend                     // mail of Scope and Key is stopped until the time
	ActDisable                     // mail of Scope and Key is stopped until an operator resumes it
	ActThrottle                    // mail of Scope and Key goes slower
	ActResume                      // mail of Scope and Key is back to normal
	ActAlert                       // tell an operator
	numActions
)

var actionNames = [numActions]string{
	"none", "defer-until", "retry-at", "treat-temporary", "bounce", "reconnect",
	"close", "split-recipients", "suspend", "disable", "throttle", "resume",
	"alert",
}

func (k ActionKind) String() string {
	if k < numActions {
		return actionNames[k]
	}
	return "action(" + strconv.Itoa(int(k)) + ")"
}

// Action is one thing the caller has to do, or has to tell.
type Action struct {
	Kind   ActionKind
	Scope  Scope
	Key    string    // what is meant at that scope: a source, domain, tenant, ...
	Until  time.Time // zero: no time
	Spread time.Duration
	Rule   string
	Origin *Origin
	// Event is set where the journal should hear of it: egress.throttled,
	// egress.suspended or egress.resumed.
	Event *message.Event
}

// Observe feeds back what came of a transaction and returns what to do, the
// fate of the message first. Most often that is nothing.
func (l *Lane) Observe(now time.Time, o *Observation) []Action {
	g, at := l.lock(now)
	var out []Action
	var woken []notice
	if w := l.sn.warm; w != nil && (o.Result == message.Delivered || o.Reply != nil) {
		w.tried++
		if o.Result != message.Delivered && o.Reply.Temporary() {
			w.deferred++
		}
	}
	switch {
	case o.Result == message.Delivered:
		if len(g.holds) > 0 {
			var grown bool
			if out, grown = l.accepted(g, at, o); grown {
				woken = g.drain(FreedAll)
			}
		}
	case o.Closed && o.Reply == nil:
		if o.Sent > 0 && l.eff.Bool(KeySilentClose, false) {
			out = []Action{{Kind: ActReconnect, Scope: ScopeConnection, Origin: &l.eff.val[KeySilentClose].Origin}}
		}
	case o.Reply != nil && !o.Reply.Positive():
		out = l.answered(g, at, o)
	}
	g.mu.Unlock()
	wake(woken)
	return l.e.brake.observe(l, at, o, out)
}

// mail is the observation as the permit saw it.
func (o *Observation) mail() *Mail {
	return &Mail{
		Domain: o.Domain, Tenant: o.Tenant, Campaign: o.Campaign,
		SenderDomain: o.SenderDomain, DKIMDomain: o.DKIMDomain,
	}
}

// accepted moves the holds on that this mail was sent under, and reports whether
// one of them allows more now. REQUIRES: g.mu.
func (l *Lane) accepted(g *group, now int64, o *Observation) (out []Action, grown bool) {
	for _, k := range holdKeys(l, o.mail()) {
		h := g.holds[k]
		if h == nil || k.key == "" {
			continue
		}
		open := h.busy
		switch k.scope {
		case ScopeSource:
			open = l.sn.busy
		case ScopeNetblock:
			open = g.netblockBusy(k.key)
		}
		was := h.cap
		over := h.accepted(now, open)
		grown = grown || over || h.cap > was
		if !over {
			continue
		}
		delete(g.holds, k)
		h.enter(StateNormal, now)
		out = append(out, l.action(g, ActResume, h, now, message.EventEgressResumed))
	}
	return out, grown
}

// Ruled reports whether a rule is about a reply to mail for domain.
func (l *Lane) Ruled(domain string, reply *message.Reply) bool {
	g := l.g.Load()
	g.mu.Lock()
	p, r := l.p, l.rules
	g.mu.Unlock()
	return r.find(p, domain, reply) != nil
}

// answered looks for the rule about a reply and does what it says. REQUIRES:
// g.mu.
func (l *Lane) answered(g *group, now int64, o *Observation) []Action {
	reply := o.Reply
	if reply.Stage == message.StageNone && o.Stage != message.StageNone {
		staged := *reply
		staged.Stage = o.Stage
		reply = &staged
	}
	rule := l.rules.find(l.p, o.Domain, reply)
	if rule == nil {
		return nil
	}
	keys := l.held(rule.Scope, o)
	fate := Action{Kind: ActNone, Scope: rule.Scope, Rule: rule.Name, Origin: &rule.Origin}
	if !reply.Temporary() && !rule.permanent(reply) {
		fate.Kind = ActTemporary
	}
	out := []Action{fate}
	if rule.Trigger > 1 && !g.triggered(rule, keys, now) {
		return out
	}
	if rule.Alert || rule.Action == VerbAlert {
		out = append(out, Action{Kind: ActAlert, Scope: rule.Scope, Rule: rule.Name, Origin: &rule.Origin})
	}
	switch rule.Action {
	case VerbReconnect:
		out[0].Kind = ActReconnect
	case VerbSplit:
		out[0].Kind = ActSplit
	case VerbBounce:
		out[0].Kind = ActBounce
	case VerbTemporary, VerbRetry:
		if reply.Temporary() || rule.Temporary || rule.Action == VerbTemporary {
			if rule.For > 0 {
				out[0].Kind, out[0].Until = ActRetryAt, l.e.time(now+int64(rule.For))
			}
		}
	case VerbRecover, VerbSuspend, VerbBackoff, VerbConnections, VerbDisable:
		for _, k := range keys {
			out = l.adapt(g, now, rule, k, reply, out)
		}
	}
	return out
}
