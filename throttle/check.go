package throttle

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// Check reports what loads but cannot be meant: reply rules that do not match
// their own examples, that can never be reached because an earlier rule takes
// all of them, or that come without any; providers nothing leads to; host
// names in a form that no host has; names that are not defined.
func (r *Rules) Check() []Problem {
	var out []Problem
	add := func(o Origin, format string, args ...any) {
		out = append(out, Problem{File: o.File, Line: o.Line, Key: o.Section + "." + o.Key, Message: fmt.Sprintf(format, args...)})
	}
	r.checkProviders(add)
	r.checkSection(&r.def, nil, "", add)
	for _, p := range r.providers {
		r.checkSection(&p.section, p, "", add)
		for _, name := range slices.Sorted(maps.Keys(p.sources)) {
			r.checkSection(p.sources[name], p, "", add)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.domains)) {
		r.checkSection(r.domains[name], nil, name, add)
	}
	for _, name := range slices.Sorted(maps.Keys(r.defSource)) {
		r.checkSection(r.defSource[name], nil, "", add)
	}
	return out
}

type reporter func(o Origin, format string, args ...any)

// checkProviders looks for providers that no destination can belong to.
func (r *Rules) checkProviders(add reporter) {
	for _, p := range r.providers {
		reachable := false
		claim := func(kind, name string, table map[string]*Provider) {
			if err := hostForm(kind, name); err != nil {
				add(p.Origin, "%s %q never matches: %v", kind, name, err)
				return
			}
			if owner := table[name]; owner != p {
				add(p.Origin, "%s %q already belongs to provider %s (%s:%d)", kind, name, owner.Name, owner.Origin.File, owner.Origin.Line)
				return
			}
			reachable = true
		}
		for _, s := range p.MXSuffix {
			claim("mx_suffix", s, r.bySuffix)
		}
		for _, h := range p.MXHost {
			claim("mx_host", h, r.byHost)
		}
		for _, d := range p.Domains {
			claim("domain", d, r.byDomain)
		}
		for _, a := range p.Addresses {
			i := slices.IndexFunc(r.byPrefix, func(pp prefixProvider) bool { return pp.prefix == a })
			if owner := r.byPrefix[i].p; owner != p {
				add(p.Origin, "address %v already belongs to provider %s", a, owner.Name)
				continue
			}
			reachable = true
		}
		if !reachable {
			add(p.Origin, "unreachable: no mx_suffix, mx_host, address or domain of its own leads to it")
		}
	}
}

// hostForm checks that a name is in the form that hosts are compared in.
func hostForm(kind, name string) error {
	bare := name
	if kind == "mx_suffix" {
		var ok bool
		if bare, ok = strings.CutPrefix(name, "."); !ok {
			return fmt.Errorf("a suffix begins with a dot")
		}
	}
	if strings.HasSuffix(name, ".") {
		return fmt.Errorf("it ends in a dot, which host names are stripped of")
	}
	if d, err := message.ParseDomain(bare); err != nil {
		return err
	} else if d != bare {
		return fmt.Errorf("write it as %q", d)
	}
	return nil
}

// checkSection checks the settings and reply rules of one section.
func (r *Rules) checkSection(s *section, p *Provider, domain string, add reporter) {
	for _, v := range s.val {
		if v == nil {
			continue
		}
		if v.key == KeyWarmup && !v.None && r.warmups[v.Name] == nil {
			add(v.Origin, "there is no [warmup.%s]", v.Name)
		}
		r.checkBasis(v.Origin, add)
	}
	for _, rule := range s.rules {
		r.checkBasis(rule.Origin, add)
		r.checkRule(rule, p, domain, add)
	}
}

// checkBasis checks that the reference a basis gives is one that is defined.
func (r *Rules) checkBasis(o Origin, add reporter) {
	words := strings.Fields(o.Basis)
	if len(words) < 2 || '0' <= words[1][0] && words[1][0] <= '9' {
		return
	}
	if _, ok := r.refs[words[1]]; !ok {
		add(o, "basis %q: %s is not in [reference]", o.Basis, words[1])
	}
}

// checkRule runs the examples of a rule.
func (r *Rules) checkRule(rule *Rule, p *Provider, domain string, add reporter) {
	if len(rule.Match) == 0 {
		add(rule.Origin, "has no example reply in match: nobody can tell whether it ever fires")
	}
	hit, taken := 0, (*Rule)(nil)
	for _, example := range rule.Match {
		reply, err := message.ParseReply(example)
		if err != nil {
			add(rule.Origin, "example %q: %v", example, err)
			continue
		}
		if len(rule.Stages) > 0 {
			reply.Stage = rule.Stages[0]
		}
		if !rule.Matches(reply) {
			add(rule.Origin, "does not match its example %q", example)
			continue
		}
		first := r.find(p, domain, reply)
		if first != rule {
			taken = first
			add(rule.Origin, "its example %q is taken by rule %s", example, first.Origin)
			continue
		}
		hit++
	}
	switch {
	case hit > 0 || len(rule.Match) == 0:
	case taken != nil:
		add(rule.Origin, "shadowed: every example is taken by an earlier rule, such as %s", taken.Origin)
	default:
		add(rule.Origin, "can never match: none of its examples does")
	}
	for _, example := range rule.Not {
		reply, err := message.ParseReply(example)
		if err != nil {
			add(rule.Origin, "example %q: %v", example, err)
		} else if rule.Matches(reply) {
			add(rule.Origin, "matches %q, which it must not", example)
		}
	}
}
