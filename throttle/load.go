package throttle

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// File is one shaping file.
type File struct {
	Name string // as shown in problems and origins
	Data []byte
}

// Problem is something wrong with a shaping file.
type Problem struct {
	File    string
	Line    int // 0: the file as a whole
	Key     string
	Message string
}

// String is file:line key: message.
func (p Problem) String() string {
	return fmt.Sprintf("%s:%d %s: %s", p.File, p.Line, p.Key, p.Message)
}

// maxFile bounds a shaping file, and maxProblems what is reported of it.
const (
	maxFile     = 8 << 20
	maxProblems = 200
)

// Load reads shaping files, the shipped one first and the operator's laid over
// it: a later value replaces an earlier one, a later reply rule is tried before
// the earlier ones or replaces the one of its name. Problems name file, line
// and key, and for an unknown key the nearest known one. The rules are usable,
// as far as they were understood, even when there are problems; a caller that
// finds any should keep the rules it had.
func Load(files ...File) (*Rules, []Problem) {
	r := &Rules{
		def:       section{name: DefaultProvider},
		defSource: map[string]*section{},
		domains:   map[string]*section{},
		warmups:   map[string]*warmup{},
		refs:      map[string]string{},
		byName:    map[string]*Provider{},
	}
	var problems []Problem
	for _, f := range files {
		ld := &loader{rules: r, file: f.Name}
		ld.load(f.Data)
		problems = append(problems, ld.problems...)
		r.files = append(r.files, f.Name)
	}
	r.index()
	return r, problems
}

type loader struct {
	rules    *Rules
	file     string
	lines    map[string]int
	problems []Problem
}

// problem records a problem at the key with the given path, or at the nearest
// enclosing one whose line is known.
func (ld *loader) problem(path []string, format string, args ...any) {
	if len(ld.problems) >= maxProblems {
		return
	}
	ld.problems = append(ld.problems, Problem{
		File: ld.file, Line: ld.lineOf(path), Key: showPath(path), Message: fmt.Sprintf(format, args...),
	})
}

func (ld *loader) lineOf(path []string) int {
	for n := len(path); n > 0; n-- {
		if line, ok := ld.lines[strings.Join(path[:n], "\x00")]; ok {
			return line
		}
	}
	return 0
}

func showPath(path []string) string {
	out := make([]string, len(path))
	for i, p := range path {
		name, idx, _ := strings.Cut(p, "#")
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" || name == "" {
			name = fmt.Sprintf("%q", name)
		}
		if idx != "" {
			name += "[" + idx + "]"
		}
		out[i] = name
	}
	return strings.Join(out, ".")
}

// at extends a path without sharing its tail.
func at(path []string, more ...string) []string {
	return append(slices.Clip(path), more...)
}

func (ld *loader) load(data []byte) {
	if len(data) > maxFile {
		ld.problem(nil, "file is larger than %d bytes", maxFile)
		return
	}
	var doc map[string]any
	if _, err := toml.Decode(string(data), &doc); err != nil {
		p := Problem{File: ld.file, Message: err.Error()}
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			p.Line, p.Key, p.Message = pe.Position.Line, pe.LastKey, pe.Message
			if p.Message == "" {
				p.Message = pe.Error()
			}
		}
		ld.problems = append(ld.problems, p)
		return
	}
	ld.lines = positions(string(data))
	top := []string{"reference", "default", "provider", "domain", "source", "warmup", "brake"}
	for _, name := range slices.Sorted(maps.Keys(doc)) {
		path := []string{name}
		switch name {
		case "default":
			if t, ok := ld.table(path, doc[name]); ok {
				ld.section(path, t, &ld.rules.def, false, false)
			}
		case "reference":
			t, _ := ld.table(path, doc[name])
			for k, v := range t {
				s, ok := v.(string)
				if !ok {
					ld.problem(at(path, k), "must be a string")
				}
				ld.rules.refs[k] = s
			}
		case "provider":
			ld.each(path, doc[name], ld.provider)
		case "domain":
			ld.each(path, doc[name], ld.domain)
		case "source":
			ld.each(path, doc[name], func(path []string, name string, t map[string]any) {
				ld.source(path, name, t, ld.rules.defSource)
			})
		case "warmup":
			ld.each(path, doc[name], ld.warmup)
		case "brake":
			ld.each(path, doc[name], ld.brake)
		default:
			ld.unknown(path, top)
		}
	}
}

// table asserts that v is a table.
func (ld *loader) table(path []string, v any) (map[string]any, bool) {
	t, ok := v.(map[string]any)
	if !ok {
		ld.problem(path, "must be a table")
	}
	return t, ok
}

// each calls fn for every table inside the table v, in the order of the file
// so that "first mention" means what it says.
func (ld *loader) each(path []string, v any, fn func(path []string, name string, t map[string]any)) {
	t, ok := ld.table(path, v)
	if !ok {
		return
	}
	names := slices.Sorted(maps.Keys(t))
	slices.SortStableFunc(names, func(a, b string) int {
		return ld.firstLine(at(path, a)) - ld.firstLine(at(path, b))
	})
	for _, name := range names {
		sub := at(path, name)
		if st, ok := ld.table(sub, t[name]); ok {
			fn(sub, name, st)
		}
	}
}

// firstLine is the line of path itself, or 0 if only tables below it are
// written out.
func (ld *loader) firstLine(path []string) int { return ld.lines[strings.Join(path, "\x00")] }

func (ld *loader) provider(path []string, name string, t map[string]any) {
	if name == DefaultProvider || name == "" {
		ld.problem(path, "this name is reserved")
		return
	}
	p := ld.rules.byName[name]
	if p == nil {
		p = &Provider{Name: name, sources: map[string]*section{}}
		p.section.name = "provider." + name
		ld.rules.byName[name] = p
		ld.rules.providers = append(ld.rules.providers, p)
	}
	if b, ok := t["replace"]; ok {
		if yes, isBool := b.(bool); !isBool {
			ld.problem(at(path, "replace"), "must be true or false")
		} else if yes {
			*p = Provider{Name: name, sources: map[string]*section{}, section: section{name: p.section.name}}
		}
	}
	p.Origin = Origin{File: ld.file, Line: ld.lineOf(path), Section: p.section.name, Key: name}
	if v, ok := t["mx_suffix"]; ok {
		p.MXSuffix = ld.hostNames(at(path, "mx_suffix"), v)
	}
	if v, ok := t["mx_host"]; ok {
		p.MXHost = ld.hostNames(at(path, "mx_host"), v)
	}
	if v, ok := t["domain"]; ok {
		p.Domains = ld.hostNames(at(path, "domain"), v)
	}
	if v, ok := t["address"]; ok {
		p.Addresses = nil
		for _, s := range ld.strings(at(path, "address"), v) {
			prefix, err := netip.ParsePrefix(s)
			if err != nil {
				ld.problem(at(path, "address"), "%q is not an address range such as 192.0.2.0/24", s)
				continue
			}
			p.Addresses = append(p.Addresses, prefix.Masked())
		}
	}
	if v, ok := t["source"]; ok {
		ld.each(at(path, "source"), v, func(path []string, name string, t map[string]any) {
			ld.source(path, name, t, p.sources)
		})
	}
	ld.section(path, t, &p.section, false, false, "mx_suffix", "mx_host", "address", "domain", "source", "replace")
}

// hostNames reads names in lower case. A trailing dot is kept: Check reports
// it, because such an entry would never match.
func (ld *loader) hostNames(path []string, v any) []string {
	names := ld.strings(path, v)
	for i := range names {
		names[i] = strings.ToLower(names[i])
	}
	return names
}

func (ld *loader) domain(path []string, name string, t map[string]any) {
	name = strings.ToLower(name)
	s := ld.rules.domains[name]
	if s == nil {
		s = &section{name: "domain." + name}
		ld.rules.domains[name] = s
	}
	ld.section(path, t, s, true, false)
}

func (ld *loader) source(path []string, name string, t map[string]any, into map[string]*section) {
	s := into[name]
	if s == nil {
		s = &section{name: showPath(path)}
		into[name] = s
	}
	if _, ok := t["rule"]; ok {
		ld.problem(at(path, "rule"), "reply rules belong to default, a provider or a domain")
	}
	ld.section(path, t, s, false, true)
}

// section reads settings and reply rules into s. The names in also are keys
// the caller has dealt with.
func (ld *loader) section(path []string, t map[string]any, s *section, domain, source bool, also ...string) {
	for _, name := range slices.Sorted(maps.Keys(t)) {
		sub := at(path, name)
		if slices.Contains(also, name) {
			continue
		}
		if name == "rule" {
			if !source {
				ld.replyRules(sub, t[name], s)
			}
			continue
		}
		k, ok := parseKey(name)
		if !ok {
			known := append([]string{"rule"}, also...)
			for k := range numKeys {
				known = append(known, keyTable[k].name)
			}
			ld.unknown(sub, known)
			continue
		}
		switch {
		case domain && keyTable[k].noDomain:
			ld.problem(sub, "may not be set for a domain: it counts over all domains of a site")
			continue
		case source && keyTable[k].noSource:
			ld.problem(sub, "may not be set for a source: it counts over all sources")
			continue
		case !source && k == KeyWarmup:
			ld.problem(sub, "a warm-up belongs to a source")
			continue
		}
		if v := ld.value(sub, k, t[name]); v != nil {
			v.Origin.Section = s.name
			s.val[k] = v
		}
	}
}
