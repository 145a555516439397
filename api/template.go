package api

import (
	"errors"
	"fmt"
	"strings"
)

// A template is text with {{name}} in it. There is no logic to inject into:
// no conditions, loops, functions or nested lookups, and what is put in is
// never looked at again.
type template struct {
	literal []string // one more than names
	names   []string

	facts []facts // of the literals of a body template
	plain bool    // none of them keeps the text from being plain
}

const (
	maxVariable  = 64     // octets of a name
	maxVariables = 10_000 // in one template
)

// parseTemplate reads s. Without on, s is one literal, whatever it holds.
func parseTemplate(field, s string, on bool) (template, *FieldError) {
	t := template{}
	for on {
		before, rest, found := strings.Cut(s, "{{")
		if !found {
			break
		}
		name, after, closed := strings.Cut(rest, "}}")
		name = strings.TrimSpace(name)
		if !closed || !isVariable(name) {
			return t, &FieldError{field, "template", "only {{name}} is understood between braces, name being letters, digits, _, - and ."}
		}
		if len(t.names) == maxVariables {
			return t, &FieldError{field, "limit", fmt.Sprintf("holds more than %d variables", maxVariables)}
		}
		t.literal = append(t.literal, before)
		t.names = append(t.names, name)
		s = after
	}
	t.literal = append(t.literal, s)
	return t, nil
}

func isVariable(s string) bool {
	if s == "" || len(s) > maxVariable {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-', c == '.':
		default:
			return false
		}
	}
	return true
}

// values finds what stands for a variable.
type values struct {
	own, common map[string]scalar
	email, name string
	survey      *survey // of the body text they are put in; nil for none
}

func (v *values) get(name string) (string, bool) {
	if s, ok := v.own[name]; ok {
		return string(s), true
	}
	if s, ok := v.common[name]; ok {
		return string(s), true
	}
	switch name {
	case "email":
		return v.email, true
	case "name":
		return v.name, true
	}
	return "", false
}

// form says how a value is written where it is put in.
type form int

const (
	asText form = iota // line breaks become CRLF
	asHTML             // and the specials of HTML are escaped
	asLine             // as it is; the header encoder checks it
)

// errOverflow reports an expansion beyond its limit.
var errOverflow = errors.New("too large with its substitutions")

// missingValue reports a variable that has no value.
type missingValue string

func (m missingValue) Error() string { return fmt.Sprintf("{{%s}} has no value", string(m)) }

// expand appends t with its values. It stops soon after limit octets: a
// variable used often enough makes any value huge. The error is a missingValue
// or errOverflow.
func (t *template) expand(dst []byte, v *values, f form, limit int) ([]byte, error) {
	limit += len(dst)
	for i, name := range t.names {
		dst = append(dst, t.literal[i]...)
		start := len(dst)
		s, ok := v.get(name)
		switch {
		case !ok:
			return dst, missingValue(name)
		case len(s) > limit-len(dst):
			return dst, errOverflow
		}
		switch f {
		case asHTML:
			dst = appendHTML(dst, s)
		case asText:
			dst = appendLines(dst, s)
		default:
			dst = append(dst, s...)
		}
		if v.survey != nil {
			value := factsOf(dst[start:])
			v.survey.add(&t.facts[i])
			v.survey.add(&value)
		}
	}
	dst = append(dst, t.literal[len(t.literal)-1]...)
	if v.survey != nil {
		v.survey.add(&t.facts[len(t.names)])
	}
	if len(dst) > limit {
		return dst, errOverflow
	}
	return dst, nil
}

// appendHTML escapes s for element content and quoted attributes.
func appendHTML(dst []byte, s string) []byte {
	start := 0
	for i := range len(s) {
		var esc string
		switch s[i] {
		case '&':
			esc = "&amp;"
		case '<':
			esc = "&lt;"
		case '>':
			esc = "&gt;"
		case '"':
			esc = "&#34;"
		case '\'':
			esc = "&#39;"
		default:
			continue
		}
		dst = appendLines(dst, s[start:i])
		dst = append(dst, esc...)
		start = i + 1
	}
	return appendLines(dst, s[start:])
}

// appendLines appends s with every kind of line break as CRLF.
func appendLines(dst []byte, s string) []byte {
	for {
		n := strings.IndexAny(s, "\r\n")
		if n < 0 {
			return append(dst, s...)
		}
		dst = append(append(dst, s[:n]...), '\r', '\n')
		if s[n] == '\r' && n+1 < len(s) && s[n+1] == '\n' {
			n++
		}
		s = s[n+1:]
	}
}

// canonical gives the literals of a body template CRLF line breaks, once.
func (t *template) canonical() {
	for i, l := range t.literal {
		if strings.ContainsAny(l, "\r\n") {
			t.literal[i] = string(appendLines(make([]byte, 0, len(l)+len(l)/32), l))
		}
	}
}
