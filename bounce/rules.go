package bounce

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/tradewind-mta/tradewind/message"
)

// ruleFile is the form of configs/bounce.toml.
type ruleFile struct {
	Version int        `toml:"version"`
	Rules   []ruleSpec `toml:"rule"`
}

// ruleSpec is one rule as written. All conditions given must hold; within one
// condition any of the list will do.
type ruleSpec struct {
	Name       string `toml:"name"`
	Category   string `toml:"category"`
	Permanent  string `toml:"permanent"`  // yes, no, or code: as the reply code says
	Suppress   bool   `toml:"suppress"`   // enough, alone, to stop mailing the address
	Confidence int    `toml:"confidence"` // per cent; 0 means 80

	Text   []string `toml:"text"`   // substrings, lower case
	Regexp []string `toml:"regexp"` // RE2 over the normal form of the text
	Unless []string `toml:"unless"` // substrings that speak against the rule

	Code     []string `toml:"code"`     // "550", "5xx"
	Enhanced []string `toml:"enhanced"` // "5.1.1", "*.7.*"
	Stage    []string `toml:"stage"`    // names of message.Stage
	MX       []string `toml:"mx"`       // suffixes of the host's name, on label boundaries

	Match []string `toml:"match"` // replies this rule must decide
	Not   []string `toml:"not"`   // replies it must leave alone
}

type permanence uint8

const (
	byCode permanence = iota
	always
	never
)

// rule is a ruleSpec made ready.
type rule struct {
	spec       ruleSpec
	verdict    Verdict // Permanent and Suppress still depend on the code
	permanence permanence
	regexps    []*regexp.Regexp
	texts      []uint16
	unless     []uint16
	codes      []codePattern
	enhanced   []enhancedPattern
	stages     uint32 // bit per message.Stage; 0 is any
}

func (r *rule) hasPattern() bool { return len(r.spec.Text)+len(r.spec.Regexp) > 0 }

// unconditional reports whether the text alone decides.
func (r *rule) unconditional() bool {
	return len(r.codes) == 0 && len(r.enhanced) == 0 && r.stages == 0 && len(r.spec.MX) == 0 && len(r.spec.Unless) == 0
}

// codePattern is a range of reply codes.
type codePattern struct{ low, high int }

func parseCodePattern(s string) (codePattern, error) {
	if len(s) != 3 || s[0] < '2' || s[0] > '5' {
		return codePattern{}, fmt.Errorf("code %q is not like 550 or 5xx", s)
	}
	low, err1 := strconv.Atoi(strings.ReplaceAll(s, "x", "0"))
	high, err2 := strconv.Atoi(strings.ReplaceAll(s, "x", "9"))
	if err := errors.Join(err1, err2); err != nil {
		return codePattern{}, fmt.Errorf("code %q is not like 550 or 5xx", s)
	}
	return codePattern{low, high}, nil
}

// enhancedPattern is an enhanced code with -1 for "any".
type enhancedPattern [3]int

func parseEnhancedPattern(s string) (p enhancedPattern, err error) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return p, fmt.Errorf("enhanced %q is not like 5.1.1 or *.7.*", s)
	}
	for i, part := range parts {
		if part == "*" {
			p[i] = -1
			continue
		}
		n, err := strconv.ParseUint(part, 10, 10)
		if err != nil {
			return p, fmt.Errorf("enhanced %q is not like 5.1.1 or *.7.*", s)
		}
		p[i] = int(n)
	}
	return p, nil
}

func (p enhancedPattern) matches(e message.Enhanced) bool {
	if e == (message.Enhanced{}) {
		return false
	}
	for i := range p {
		if p[i] >= 0 && p[i] != int(e[i]) {
			return false
		}
	}
	return true
}

// literalTable gives each distinct string one id.
type literalTable struct {
	ids   map[string]uint16
	list  []string
	rules [][]uint16 // by literal: the rules it makes candidates
}

func (t *literalTable) id(s string) uint16 {
	if id, ok := t.ids[s]; ok {
		return id
	}
	id := uint16(len(t.list))
	t.ids[s] = id
	t.list = append(t.list, s)
	t.rules = append(t.rules, nil)
	return id
}

// add notes that the literal s makes rule number n a candidate.
func (t *literalTable) add(s string, n int) uint16 {
	id := t.id(s)
	t.rules[id] = append(t.rules[id], uint16(n))
	return id
}

// parseRules reads and checks a rule file. All mistakes are reported at once,
// because an operator who edits rules should not find them one by one.
func parseRules(data []byte) ([]rule, *literalTable, error) {
	var file ruleFile
	meta, err := toml.Decode(string(data), &file)
	if err != nil {
		return nil, nil, fmt.Errorf("bounce: rules: %w", err)
	}
	var errs []error
	for _, key := range meta.Undecoded() {
		errs = append(errs, fmt.Errorf("unknown key %q", key.String()))
	}
	if file.Version != 1 {
		errs = append(errs, fmt.Errorf("version is %d, want 1", file.Version))
	}
	if len(file.Rules) > maxRules {
		return nil, nil, fmt.Errorf("bounce: rules: %d rules, at most %d", len(file.Rules), maxRules)
	}
	table := &literalTable{ids: map[string]uint16{}}
	rules := make([]rule, 0, len(file.Rules))
	names := map[string]bool{}
	bare := "" // the first rule without a pattern
	for n, spec := range file.Rules {
		r, err := compileRule(spec, n, table)
		if names[spec.Name] {
			err = errors.Join(err, errors.New("name is used twice"))
		}
		names[spec.Name] = true
		if !r.hasPattern() && bare == "" {
			bare = spec.Name
		} else if r.hasPattern() && bare != "" {
			err = errors.Join(err, fmt.Errorf("stands after rule %q, which has no pattern: words come before codes", bare))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("rule %d %q: %w", n+1, spec.Name, err))
		}
		rules = append(rules, r)
	}
	if len(table.list) > maxLiterals {
		errs = append(errs, fmt.Errorf("%d different strings, at most %d", len(table.list), maxLiterals))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, fmt.Errorf("bounce: rules: %w", err)
	}
	return rules, table, nil
}

func compileRule(spec ruleSpec, n int, table *literalTable) (rule, error) {
	r := rule{spec: spec}
	var errs []error
	if spec.Name == "" {
		errs = append(errs, errors.New("has no name"))
	}
	category, err := message.ParseCategory(spec.Category)
	if err != nil {
		errs = append(errs, err)
	}
	switch spec.Permanent {
	case "yes":
		r.permanence = always
	case "no":
		r.permanence = never
	case "code", "":
	default:
		errs = append(errs, fmt.Errorf("permanent is %q, want yes, no or code", spec.Permanent))
	}
	if spec.Suppress && r.permanence == never {
		errs = append(errs, errors.New("suppresses although it is never permanent"))
	}
	if spec.Confidence < 0 || spec.Confidence > 100 {
		errs = append(errs, fmt.Errorf("confidence %d is not 0 to 100", spec.Confidence))
	}
	confidence := spec.Confidence
	if confidence == 0 {
		confidence = 80
	}
	r.verdict = Verdict{Category: category, Suppress: spec.Suppress, Rule: spec.Name, Confidence: uint8(confidence)}

	for _, s := range spec.Text {
		if err := checkLiteral(s); err != nil {
			errs = append(errs, err)
		}
		r.texts = append(r.texts, table.add(s, n))
	}
	for _, s := range spec.Unless {
		if err := checkLiteral(s); err != nil {
			errs = append(errs, err)
		}
		r.unless = append(r.unless, table.id(s))
	}
	for _, s := range spec.Regexp {
		re, literals, err := compilePattern(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r.regexps = append(r.regexps, re)
		for _, literal := range literals {
			table.add(literal, n)
		}
	}
	for _, s := range spec.Code {
		p, err := parseCodePattern(s)
		if err != nil {
			errs = append(errs, err)
		}
		r.codes = append(r.codes, p)
	}
	for _, s := range spec.Enhanced {
		p, err := parseEnhancedPattern(s)
		if err != nil {
			errs = append(errs, err)
		}
		r.enhanced = append(r.enhanced, p)
	}
	for _, s := range spec.Stage {
		stage := message.ParseStage(s)
		if stage == message.StageNone {
			errs = append(errs, fmt.Errorf("stage %q is unknown", s))
		}
		r.stages |= 1 << stage
	}
	return r, errors.Join(errs...)
}

// checkLiteral refuses a string that the normal form of a text can never
// contain: a rule that looks right and is dead.
func checkLiteral(s string) error {
	if len(s) < 3 {
		return fmt.Errorf("text %q is shorter than three bytes", s)
	}
	normal := string(normalise(nil, strings.Trim(s, " ")))
	if normal != strings.Trim(s, " ") {
		return fmt.Errorf("text %q is not in normal form, write %q", s, normal)
	}
	return nil
}

// compilePattern compiles an RE2 and finds strings of which one must occur
// wherever it matches; only then is the expression tried at all.
func compilePattern(s string) (*regexp.Regexp, []string, error) {
	tree, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return nil, nil, fmt.Errorf("regexp %q: %w", s, err)
	}
	literals := requiredLiterals(tree)
	if shortest(literals) < 3 {
		return nil, nil, fmt.Errorf("regexp %q contains no strings of three bytes or more of which it always needs one", s)
	}
	re, err := regexp.Compile(s)
	return re, literals, err
}

// requiredLiterals returns strings of which every match of re contains at least
// one, and chooses them as long as it can; nil when there are none.
func requiredLiterals(re *syntax.Regexp) []string {
	switch re.Op {
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase == 0 {
			return []string{string(re.Rune)}
		}
	case syntax.OpCapture, syntax.OpPlus:
		return requiredLiterals(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return requiredLiterals(re.Sub[0])
		}
	case syntax.OpConcat:
		var best []string
		for _, sub := range re.Sub {
			if s := requiredLiterals(sub); shortest(s) > shortest(best) {
				best = s
			}
		}
		return best
	case syntax.OpAlternate:
		var all []string
		for _, sub := range re.Sub {
			s := requiredLiterals(sub)
			if s == nil {
				return nil
			}
			all = append(all, s...)
		}
		return all
	}
	return nil
}

// shortest returns the length of the shortest string, 0 for none.
func shortest(list []string) int {
	n := 0
	for i, s := range list {
		if i == 0 || len(s) < n {
			n = len(s)
		}
	}
	return n
}
