package bounce

import (
	"errors"
	"math/bits"
	"strings"
	"sync"

	"github.com/tradewind-mta/tradewind/message"
)

// maxRules bounds a rule file, so that the set of candidate rules of one text
// is a small array.
const maxRules = 512

// Verdict is what a server's words come to.
type Verdict struct {
	Category message.Category
	// Permanent says that sending the same message to the same recipient again
	// will not help.
	Permanent bool
	// Suppress says that this reply alone proves the address or its domain
	// gone. It is never set without Permanent.
	Suppress bool
	// Rule is the name of the rule that decided, for `explain reply`; empty
	// when none did.
	Rule string
	// Confidence is in per cent, from 0 for a guess.
	Confidence uint8
}

// Classifier turns SMTP replies and the diagnostics of bounces into verdicts by
// an ordered list of rules. It is safe for concurrent use; a new rule file is a
// new Classifier.
type Classifier struct {
	rules     []rule
	literals  *literalTable
	matcher   *matcher
	firstBare int  // index of the first rule without a pattern
	suffixes  bool // some rule asks for the host's name

	cache verdictCache
}

// NewClassifier reads rules in the form of configs/bounce.toml. The error names
// every mistake in the file; nothing unknown is ignored. It does not run the
// rules' examples: SelfTest does.
func NewClassifier(rules []byte) (*Classifier, error) {
	list, table, err := parseRules(rules)
	if err != nil {
		return nil, err
	}
	m, err := newMatcher(table.list)
	if err != nil {
		return nil, errors.Join(errors.New("bounce: rules"), err)
	}
	c := &Classifier{rules: list, literals: table, matcher: m, firstBare: len(list)}
	for i := range list {
		c.suffixes = c.suffixes || len(list[i].spec.MX) > 0
		if !list[i].hasPattern() && c.firstBare == len(list) {
			c.firstBare = i
		}
	}
	c.cache.limit = 4096
	return c, nil
}

// Classify decides what reply means. host is the name of the server that said
// it, or "" when unknown; some providers use codes in ways of their own.
//
// The words decide first, then the enhanced code, then the basic code, because
// servers contradict themselves in that order of frequency. What no rule knows
// is category other, permanent only if the code says so, and never suppresses.
func (c *Classifier) Classify(reply *message.Reply, host string) Verdict {
	var buffer [maxText + 300]byte
	key := buffer[:0]
	key = append(key,
		byte(reply.Code>>8), byte(reply.Code), byte(reply.Stage),
		byte(reply.Enhanced[0]), byte(reply.Enhanced[1]>>8), byte(reply.Enhanced[1]),
		byte(reply.Enhanced[2]>>8), byte(reply.Enhanced[2]))
	if c.suffixes && len(host) < 256 {
		key = append(key, host...)
	} else {
		host = ""
	}
	key = append(key, 0)
	head := len(key)
	key = normalise(key, reply.Text)
	if v, ok := c.cache.get(key); ok {
		return v
	}
	whole := string(key)
	v := c.decide(reply, host, whole[head:])
	c.cache.put(whole, v)
	return v
}

// decide runs the rules over the normal form of the text.
func (c *Classifier) decide(reply *message.Reply, host, text string) Verdict {
	var seen literalSet
	if c.matcher.find(text, &seen) {
		var candidates [maxRules / 64]uint64
		for w, word := range seen {
			for ; word != 0; word &= word - 1 {
				id := w<<6 | bits.TrailingZeros64(word)
				for _, n := range c.literals.rules[id] {
					candidates[n>>6] |= 1 << (n & 63)
				}
			}
		}
		for w, word := range candidates {
			for ; word != 0; word &= word - 1 {
				r := &c.rules[w<<6|bits.TrailingZeros64(word)]
				if r.matchesText(text, &seen) && r.matchesReply(reply, host) {
					return r.settle(reply)
				}
			}
		}
	}
	for i := c.firstBare; i < len(c.rules); i++ {
		if r := &c.rules[i]; !anySeen(r.unless, &seen) && r.matchesReply(reply, host) {
			return r.settle(reply)
		}
	}
	return Verdict{Category: message.Other, Permanent: permanentByCode(reply)}
}

// matchesText checks the pattern conditions of a candidate.
func (r *rule) matchesText(text string, seen *literalSet) bool {
	if anySeen(r.unless, seen) {
		return false
	}
	if anySeen(r.texts, seen) {
		return true
	}
	for _, re := range r.regexps {
		if re.MatchString(text) {
			return true
		}
	}
	return false
}

func anySeen(ids []uint16, seen *literalSet) bool {
	for _, id := range ids {
		if seen.has(id) {
			return true
		}
	}
	return false
}

// matchesReply checks all conditions but the text.
func (r *rule) matchesReply(reply *message.Reply, host string) bool {
	if len(r.codes) > 0 {
		ok := false
		for _, p := range r.codes {
			ok = ok || p.low <= reply.Code && reply.Code <= p.high
		}
		if !ok {
			return false
		}
	}
	if len(r.enhanced) > 0 {
		ok := false
		for _, p := range r.enhanced {
			ok = ok || p.matches(reply.Enhanced)
		}
		if !ok {
			return false
		}
	}
	if r.stages != 0 && r.stages&(1<<reply.Stage) == 0 {
		return false
	}
	if len(r.spec.MX) == 0 {
		return true
	}
	host = strings.TrimSuffix(host, ".")
	for _, suffix := range r.spec.MX {
		if n := len(host) - len(suffix); n >= 0 && strings.EqualFold(host[n:], suffix) && (n == 0 || host[n-1] == '.') {
			return true
		}
	}
	return false
}

// settle fills in what depends on the code, and holds back a suppression that
// the reply as a whole does not support.
func (r *rule) settle(reply *message.Reply) Verdict {
	v := r.verdict
	switch {
	case reply.Code >= 400 && reply.Code < 500:
		// "No such user" with a 4xx code is a directory that is down or a
		// greylist in disguise: late is better than lost.
	case r.permanence == always:
		v.Permanent = true
	case r.permanence == byCode:
		v.Permanent = permanentByCode(reply)
	}
	// Before RCPT nothing is about the recipient.
	early := reply.Stage >= message.StageConnect && reply.Stage <= message.StageMail
	v.Suppress = v.Suppress && v.Permanent && !early
	return v
}

// permanentByCode reads the basic code first, because the class of the
// enhanced code contradicts it too often to be trusted.
func permanentByCode(reply *message.Reply) bool {
	if reply.Code >= 200 {
		return reply.Code >= 500
	}
	return reply.Enhanced[0] == 5
}

// verdictCache remembers verdicts by key in two generations: when the young
// one is full it becomes the old one, and what is asked for again moves back.
// That keeps what is used and costs no list to maintain.
type verdictCache struct {
	mu         sync.Mutex // protects everything below
	young, old map[string]Verdict
	limit      int // entries of one generation
}

func (c *verdictCache) get(key []byte) (Verdict, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.young[string(key)]
	if ok {
		return v, true
	}
	v, ok = c.old[string(key)]
	if ok {
		c.insert(string(key), v)
	}
	return v, ok
}

func (c *verdictCache) put(key string, v Verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.insert(key, v)
}

func (c *verdictCache) insert(key string, v Verdict) {
	if len(c.young) >= c.limit || c.young == nil {
		c.old, c.young = c.young, make(map[string]Verdict, c.limit/4)
	}
	c.young[key] = v
}
