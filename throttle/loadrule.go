package throttle

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

var ruleKeys = []string{
	"name", "pattern", "text", "code", "enhanced", "stage", "scope", "action",
	"temporary", "alert", "for", "connections", "trigger", "match", "not",
	"basis", "drop",
}

// maxRules bounds the rules of one section and maxTrigger what one counts.
const (
	maxRules   = 2000
	maxTrigger = 100
)

// replyRules reads the [[...rule]] tables of a section in one file. They go
// before the rules of earlier files, but for those that take the place of an
// earlier one of the same name.
func (ld *loader) replyRules(path []string, v any, s *section) {
	tables, ok := v.([]map[string]any)
	if !ok {
		ld.problem(path, "must be an array of tables: [[%s]]", showPath(path))
		return
	}
	var added []*Rule
	for i, t := range tables {
		sub := at(path[:len(path)-1], "rule#"+strconv.Itoa(i))
		rule, drop := ld.replyRule(sub, t)
		if rule == nil {
			continue
		}
		rule.Origin.Section = s.name
		same := func(r *Rule) bool { return r.Name == rule.Name }
		if slices.ContainsFunc(added, same) {
			ld.problem(sub, "a rule named %q stands above in this file", rule.Name)
			continue
		}
		old := slices.IndexFunc(s.rules, same)
		switch {
		case drop && old < 0:
			ld.problem(at(sub, "drop"), "there is no rule %q to drop", rule.Name)
		case drop:
			s.rules = slices.Delete(slices.Clone(s.rules), old, old+1)
		case old >= 0:
			s.rules = slices.Clone(s.rules)
			s.rules[old] = rule
		default:
			added = append(added, rule)
		}
	}
	s.rules = append(added, s.rules...)
	if len(s.rules) > maxRules {
		ld.problem(path, "more than %d rules", maxRules)
		s.rules = s.rules[:maxRules]
	}
}

func (ld *loader) replyRule(path []string, t map[string]any) (rule *Rule, drop bool) {
	before := len(ld.problems)
	r := &Rule{Trigger: 1, Origin: Origin{File: ld.file, Line: ld.lineOf(path)}}
	for _, k := range slices.Sorted(maps.Keys(t)) {
		if !slices.Contains(ruleKeys, k) {
			ld.unknown(at(path, k), ruleKeys)
		}
	}
	r.Name, _ = t["name"].(string)
	if r.Name == "" {
		ld.problem(path, "has no name")
	}
	r.Origin.Key = r.Name
	drop = ld.flag(path, t, "drop")
	if drop {
		return r, true
	}
	r.Temporary, r.Alert = ld.flag(path, t, "temporary"), ld.flag(path, t, "alert")
	if b, ok := t["basis"]; ok {
		r.Origin.Basis = ld.basis(at(path, "basis"), b)
	}
	ld.patterns(path, t, r)
	ld.codes(path, t, r)
	for _, s := range ld.list(path, t, "stage") {
		st := message.ParseStage(s)
		if st == message.StageNone {
			ld.problem(at(path, "stage"), "%q is not a stage", s)
			continue
		}
		r.Stages = append(r.Stages, st)
	}
	r.Match, r.Not = ld.list(path, t, "match"), ld.list(path, t, "not")
	ld.doing(path, t, r)
	if len(ld.problems) > before {
		return nil, false // half a rule could match too much
	}
	return r, false
}

// patterns reads what the rule looks for in the text.
func (ld *loader) patterns(path []string, t map[string]any, r *Rule) {
	r.Patterns = ld.list(path, t, "pattern")
	for _, p := range r.Patterns {
		// The text is in lower case by then; (?i) folds the pattern.
		re, err := regexp.Compile("(?i)" + p)
		if err != nil {
			ld.problem(at(path, "pattern"), "%v", err)
			continue
		}
		r.re = append(r.re, re)
	}
	for _, s := range ld.list(path, t, "text") {
		if s = strings.ToLower(s); s == "" {
			ld.problem(at(path, "text"), "an empty text matches everything")
			continue
		}
		r.Texts = append(r.Texts, s)
	}
	if len(r.Patterns)+len(r.Texts) == 0 && t["enhanced"] == nil && t["code"] == nil {
		ld.problem(path, "needs at least one of pattern, text, code, enhanced")
	}
}

func (ld *loader) codes(path []string, t map[string]any, r *Rule) {
	codes, ok := t["code"].([]any)
	if c, single := t["code"].(int64); single {
		codes = []any{c}
	} else if t["code"] != nil && !ok {
		ld.problem(at(path, "code"), "must be a reply code or a list of them")
	}
	for _, c := range codes {
		n, ok := c.(int64)
		if !ok || n != 4 && n != 5 && (n < 200 || n > 599) {
			ld.problem(at(path, "code"), "%v is not a reply code, nor 4 or 5 for a class", c)
			continue
		}
		r.Codes = append(r.Codes, int(n))
	}
	r.Enhanced = ld.list(path, t, "enhanced")
	for _, s := range r.Enhanced {
		e, err := parseEnhancedRange(s)
		if err != nil {
			ld.problem(at(path, "enhanced"), "%v", err)
			continue
		}
		r.enh = append(r.enh, e)
	}
}

// parseEnhancedRange reads "4.7.28", "4.7.*", "4.*" or "5.7.606-649".
func parseEnhancedRange(s string) (enhancedRange, error) {
	bad := fmt.Errorf(`%q is not an enhanced code such as "4.7.28", "4.7.*" or "5.7.606-649"`, s)
	parts := strings.Split(s, ".")
	if len(parts) < 2 || len(parts) > 3 || parts[0] != "4" && parts[0] != "5" {
		return enhancedRange{}, bad
	}
	e := enhancedRange{class: uint16(parts[0][0] - '0'), high: 999}
	if len(parts) == 2 {
		e.anySubject = true
		if parts[1] != "*" {
			return e, bad
		}
		return e, nil
	}
	subject, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil || subject > 999 {
		return e, bad
	}
	e.subject = uint16(subject)
	if parts[2] == "*" {
		return e, nil
	}
	low, high, ranged := strings.Cut(parts[2], "-")
	if !ranged {
		high = low
	}
	a, err1 := strconv.ParseUint(low, 10, 16)
	b, err2 := strconv.ParseUint(high, 10, 16)
	if err1 != nil || err2 != nil || a > b || b > 999 {
		return e, bad
	}
	e.low, e.high = uint16(a), uint16(b)
	return e, nil
}

// doing reads what the rule does, and refuses combinations that would do
// nothing or do it to nobody.
func (ld *loader) doing(path []string, t map[string]any, r *Rule) {
	before := len(ld.problems)
	scope, _ := t["scope"].(string)
	if i := slices.Index(scopeNames[1:], scope); i >= 0 {
		r.Scope = Scope(i + 1)
	} else {
		ld.problem(at(path, "scope"), "must be one of %s", strings.Join(scopeNames[1:], ", "))
	}
	action, _ := t["action"].(string)
	if i := slices.Index(verbNames[:], action); i >= 0 {
		r.Action = Verb(i)
	} else {
		ld.problem(at(path, "action"), "must be one of %s", strings.Join(verbNames[:], ", "))
	}
	if v, ok := t["for"]; ok {
		s, _ := v.(string)
		d, err := parseDuration(s)
		if err != nil || d <= 0 {
			ld.problem(at(path, "for"), "must be a duration such as \"10m\"")
		}
		r.For = d
	}
	if v, ok := t["connections"]; ok {
		n, isInt := v.(int64)
		if !isInt || n < 1 || n > 10000 {
			ld.problem(at(path, "connections"), "must be a number from 1 to 10000")
		}
		r.Connections = int(n)
	}
	if v, ok := t["trigger"]; ok {
		s, _ := v.(string)
		n, per, _ := strings.Cut(s, "/")
		count, err := strconv.Atoi(n)
		within, err2 := parsePeriod(per)
		if err != nil || err2 != nil || count < 1 || count > maxTrigger || within <= 0 {
			ld.problem(at(path, "trigger"), `must be a number up to %d and a period, such as "3/1h"`, maxTrigger)
		}
		r.Trigger, r.Within = count, within
	}
	if len(ld.problems) > before {
		return // the rest is about what goes together
	}
	switch r.Action {
	case VerbRecover, VerbSuspend, VerbBackoff, VerbDisable:
		if !r.Scope.held() {
			ld.problem(at(path, "scope"), "%s cannot apply to a single %s", r.Action, r.Scope)
		}
	case VerbConnections:
		if r.Scope != ScopeSource && r.Scope != ScopeNetblock {
			ld.problem(at(path, "scope"), "connections belong to a source or a netblock")
		}
		if r.Connections == 0 {
			ld.problem(at(path, "connections"), "is missing")
		}
	case VerbReconnect:
		if r.Scope != ScopeConnection {
			ld.problem(at(path, "scope"), "reconnect concerns a connection")
		}
	}
	if r.Action == VerbSuspend && r.For == 0 {
		ld.problem(at(path, "for"), "suspend needs a duration")
	}
	if r.Action == VerbRecover && r.For != 0 && r.For < minRecoveryHold {
		ld.problem(at(path, "for"), "recover holds for at least %v", minRecoveryHold)
	}
}

func (ld *loader) flag(path []string, t map[string]any, key string) bool {
	v, ok := t[key]
	b, isBool := v.(bool)
	if ok && !isBool {
		ld.problem(at(path, key), "must be true or false")
	}
	return b
}

func (ld *loader) list(path []string, t map[string]any, key string) []string {
	v, ok := t[key]
	if !ok {
		return nil
	}
	return ld.strings(at(path, key), v)
}

// minRecoveryHold is the shortest pause of the recovery procedure: Gmail asks
// for ten minutes or more.
const minRecoveryHold = 10 * time.Minute
