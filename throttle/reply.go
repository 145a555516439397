package throttle

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Scope says what a reply is about: what is slowed or stopped, and what goes
// on untouched.
type Scope uint8

// Scopes. All but the last three are at the provider that answered.
const (
	ScopeNone         Scope = iota
	ScopeSource             // the source address
	ScopeNetblock           // every source of ours in its /24 or /64
	ScopeSenderDomain       // the MAIL FROM domain
	ScopeDKIMDomain         // the d= of our signature
	ScopeIdentity           // source, MAIL FROM domain and DKIM domain, each
	ScopeTenant
	ScopeCampaign
	ScopeDomain     // the recipient domain: its queues
	ScopeConnection // this connection only
	ScopeRecipient  // this recipient only
	ScopeMessage    // this message only
	numScopes
)

var scopeNames = [numScopes]string{
	"", "source", "netblock", "sender-domain", "dkim-domain", "identity",
	"tenant", "campaign", "domain", "connection", "recipient", "message",
}

func (s Scope) String() string {
	if s < numScopes {
		return scopeNames[s]
	}
	return fmt.Sprintf("scope(%d)", uint8(s))
}

// MarshalText writes the name.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a name.
func (s *Scope) UnmarshalText(b []byte) error {
	i := slices.Index(scopeNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("throttle: %q is not a scope", b)
	}
	*s = Scope(i)
	return nil
}

// held reports whether a scope names something that can be held.
func (s Scope) held() bool { return s >= ScopeSource && s <= ScopeDomain }

// Verb is what a reply rule does.
type Verb uint8

// Verbs.
const (
	VerbNone        Verb = iota // recognised, nothing to do here: the ordinary retry or bounce applies
	VerbRecover                 // hold, probe with one connection, add one at a time
	VerbSuspend                 // hold for the rule's time, then as recover
	VerbBackoff                 // halve rate and connections, then add step by step
	VerbConnections             // hold the number of connections down for a time
	VerbReconnect               // close the connection and open another at once
	VerbSplit                   // one recipient, or one domain, per transaction
	VerbRetry                   // try again after the rule's time
	VerbTemporary               // a 5xx that means later
	VerbBounce                  // a 4xx that will never get better
	VerbDisable                 // stop until an operator resumes
	VerbAlert                   // tell an operator
	numVerbs
)

var verbNames = [numVerbs]string{
	"none", "recover", "suspend", "backoff", "connections", "reconnect",
	"split", "retry", "temporary", "bounce", "disable", "alert",
}

func (v Verb) String() string {
	if v < numVerbs {
		return verbNames[v]
	}
	return fmt.Sprintf("verb(%d)", uint8(v))
}

// MarshalText writes the name.
func (v Verb) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Rule says what to do about a kind of reply.
type Rule struct {
	Name   string
	Origin Origin

	Patterns []string // RE2, any of them, case ignored
	Texts    []string // substrings, any of them, case ignored
	Codes    []int    // basic codes, or 4 and 5 for a whole class
	Enhanced []string // "4.7.28", "5.7.*", or "5.7.606-649" for a range
	Stages   []message.Stage

	Scope       Scope
	Action      Verb
	Temporary   bool          // with any action: the 5xx reply defers instead of bouncing
	Alert       bool          // with any action: tell an operator
	For         time.Duration // 0: the action's own default
	Connections int           // for VerbConnections
	Trigger     int           // how many replies it takes, at least 1
	Within      time.Duration // in which time
	Match, Not  []string      // example replies

	re  []*regexp.Regexp
	enh []enhancedRange
}

// enhancedRange is a set of enhanced codes that differ in the detail only.
type enhancedRange struct {
	class, subject, low, high uint16
	anySubject                bool
}

func (r enhancedRange) has(e message.Enhanced) bool {
	return e[0] == r.class && (r.anySubject || e[1] == r.subject && r.low <= e[2] && e[2] <= r.high)
}

// Matches reports whether the rule is about the reply. Everything the rule
// names has to fit: code, enhanced code, stage and text. A reply without a
// stage, as pasted into a tool, fits any.
func (r *Rule) Matches(reply *message.Reply) bool {
	return r.matches(reply, strings.ToLower(flatten(reply.Text)))
}

// flatten joins the lines of a reply, so that a pattern need not know where
// the server broke them.
func flatten(text string) string {
	if strings.IndexByte(text, '\n') < 0 {
		return text
	}
	return strings.ReplaceAll(text, "\n", " ")
}

// matches is Matches for a text already flattened and in lower case.
func (r *Rule) matches(reply *message.Reply, lower string) bool {
	if len(r.Codes) > 0 && !slices.Contains(r.Codes, reply.Code) && !slices.Contains(r.Codes, reply.Code/100) {
		return false
	}
	if len(r.Stages) > 0 && reply.Stage != message.StageNone && !slices.Contains(r.Stages, reply.Stage) {
		return false
	}
	if len(r.enh) > 0 && !slices.ContainsFunc(r.enh, func(e enhancedRange) bool { return e.has(reply.Enhanced) }) {
		return false
	}
	if len(r.Texts) == 0 && len(r.re) == 0 {
		return true
	}
	for _, t := range r.Texts {
		if strings.Contains(lower, t) {
			return true
		}
	}
	for _, re := range r.re {
		if re.MatchString(lower) {
			return true
		}
	}
	return false
}

// find returns the first rule about a reply: of the domain, then of the
// provider, then the default ones.
func (r *Rules) find(p *Provider, domain string, reply *message.Reply) *Rule {
	lower := strings.ToLower(flatten(reply.Text))
	if s := r.domains[domain]; s != nil {
		if rule := firstMatch(s.rules, reply, lower); rule != nil {
			return rule
		}
	}
	if p != nil {
		if rule := firstMatch(p.rules, reply, lower); rule != nil {
			return rule
		}
	}
	return firstMatch(r.def.rules, reply, lower)
}

func firstMatch(rules []*Rule, reply *message.Reply, lower string) *Rule {
	for _, rule := range rules {
		if rule.matches(reply, lower) {
			return rule
		}
	}
	return nil
}

// ReplyExplanation says what a reply would cause.
type ReplyExplanation struct {
	Provider string        `json:"provider"`
	Rule     string        `json:"rule,omitempty"` // empty: no rule is about it
	Origin   Origin        `json:"origin"`
	Scope    Scope         `json:"scope,omitempty"`
	Action   Verb          `json:"action"`
	For      time.Duration `json:"for_ns,omitempty"`
	Trigger  string        `json:"trigger,omitempty"`
	Alert    bool          `json:"alert,omitempty"`
	// Permanent says whether the message would bounce.
	Permanent bool `json:"permanent"`
}

// ExplainReply says which rule is about a reply that a host, or the mail
// servers of a domain, gave. Host and domain may be empty; without a host the
// provider is found by the domain.
func (r *Rules) ExplainReply(reply *message.Reply, mxhost, domain string) ReplyExplanation {
	p := r.provider([]string{mxhost}, nil, domain)
	x := ReplyExplanation{Provider: DefaultProvider, Permanent: !reply.Temporary()}
	if p != nil {
		x.Provider = p.Name
	}
	rule := r.find(p, domain, reply)
	if rule == nil {
		return x
	}
	x.Rule, x.Origin, x.Scope, x.Action = rule.Name, rule.Origin, rule.Scope, rule.Action
	x.For, x.Alert = rule.For, rule.Alert || rule.Action == VerbAlert
	if rule.Trigger > 1 {
		x.Trigger = strconv.Itoa(rule.Trigger) + "/" + rule.Within.String()
	}
	x.Permanent = rule.permanent(reply)
	return x
}

// permanent reports whether a reply the rule is about bounces the message.
func (r *Rule) permanent(reply *message.Reply) bool {
	switch {
	case r.Temporary || r.Action == VerbTemporary:
		return false
	case r.Action == VerbBounce:
		return true
	}
	return !reply.Temporary()
}
