package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

const (
	// maxNesting is how deep JSON may nest. Ours needs 5; a decoder that
	// recurses pays for every level.
	maxNesting = 32
	// valueSize is about what one decoded value takes, however short its text:
	// an empty recipient is two octets and a structure.
	valueSize = 128
)

// decodeJSON reads exactly one JSON value into v, strictly: UTF-8, no unknown
// member, bounded nesting, nothing behind it. Memory for v is taken from l.
func decodeJSON(b []byte, v any, l *loan) error {
	if !utf8.Valid(b) {
		return problem(400, "invalid_utf8", "the body is not UTF-8")
	}
	values, ok := measureJSON(b)
	if !ok {
		return problem(400, "too_deep", "the JSON nests deeper than %d levels", maxNesting)
	}
	if err := l.take(decoded*len(b) + valueSize*values); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if path, names, ok := unknownField(b, reflect.TypeOf(v)); ok {
			return fieldProblem(path, "unknown_field", "there is no such field; there are: %s", names)
		}
		return badJSON(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return problem(400, "bad_json", "more follows the JSON value")
	}
	return nil
}

// decoded is how many times its own size a body takes beside itself: its
// strings, and attachments decoded and encoded again.
const decoded = 2

// measureJSON counts the values of b, roughly, and reports whether its nesting
// is within bounds.
func measureJSON(b []byte) (values int, ok bool) {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i += stringEnd(b[i+1:])
		case ',':
			values++
		case '{', '[':
			values++
			if depth++; depth > maxNesting {
				return values, false
			}
		case '}', ']':
			depth--
		}
	}
	return values, true
}

// stringEnd is how far it is to behind the quote that ends the string b begins in,
// or len(b). Most of a body is text: the search is the vectorised one of package
// bytes.
func stringEnd(b []byte) int {
	for i := 0; ; {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return len(b)
		}
		i += n
		escapes := 0
		for escapes < i && b[i-1-escapes] == '\\' {
			escapes++
		}
		i++
		if escapes%2 == 0 {
			return i
		}
	}
}

func badJSON(err error) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	var p *Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &syntax):
		return problem(400, "bad_json", "the JSON is broken at octet %d: %s", syntax.Offset, syntax.Error())
	case errors.As(err, &typ):
		return fieldProblem(typ.Field, "type", "a JSON %s cannot stand here", typ.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return problem(400, "bad_json", "the JSON ends too early")
	}
	if _, name, ok := strings.Cut(err.Error(), "unknown field "); ok {
		return fieldProblem(strings.Trim(name, `"`), "unknown_field", "there is no such field")
	}
	return problem(400, "bad_json", "the JSON cannot be used")
}

// person is a mailbox with an optional name: "a@b", "Name <a@b>" or
// {"email": "a@b", "name": "Name"}.
type person struct {
	Email string `json:"email"`
	Name  string `json:"name"`
}

func (p *person) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		p.Email = s
		if n := strings.LastIndexByte(s, '<'); n >= 0 && strings.HasSuffix(s, ">") {
			p.Email = s[n+1 : len(s)-1]
			p.Name = strings.TrimSpace(s[:n])
			if q := p.Name; len(q) >= 2 && q[0] == '"' && q[len(q)-1] == '"' {
				p.Name = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(q[1 : len(q)-1])
			}
		}
		return nil
	}
	type plain person
	return strict(b, (*plain)(p))
}

// strict decodes inside of UnmarshalJSON, where DisallowUnknownFields does not
// reach.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// persons is one person or a list of them.
type persons []person

func (ps *persons) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[]person)(ps))
	}
	if string(b) == "null" {
		return nil
	}
	*ps = persons{{}}
	return json.Unmarshal(b, &(*ps)[0])
}

// scalar is the value of a substitution: a string, number or boolean. Anything
// with a structure would ask for a language to take it apart.
type scalar string

func (s *scalar) UnmarshalJSON(b []byte) error {
	switch b[0] {
	case '"':
		if bytes.IndexByte(b, '\\') < 0 && utf8.Valid(b) {
			*s = scalar(b[1 : len(b)-1]) // as most are; whoever calls has checked that it is JSON
			return nil
		}
		return json.Unmarshal(b, (*string)(s))
	case '{', '[':
		return fieldProblem("substitutions", "type", "a substitution is a string, a number or a boolean")
	case 'n':
		*s = ""
		return nil
	}
	*s = scalar(b)
	return nil
}

// faults collects what is wrong with a request, up to a bound.
type faults struct {
	errs []FieldError
}

const maxFaults = 50

func (f *faults) add(field, code, format string, args ...any) {
	if len(f.errs) < maxFaults {
		f.errs = append(f.errs, FieldError{field, code, fmt.Sprintf(format, args...)})
	}
}

func (f *faults) err() error {
	if len(f.errs) == 0 {
		return nil
	}
	return invalid(f.errs)
}
