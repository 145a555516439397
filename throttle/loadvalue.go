package throttle

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// value reads one setting: plain, or { value = ..., basis = "..." }.
func (ld *loader) value(path []string, k Key, raw any) *Value {
	v := &Value{key: k, Origin: Origin{File: ld.file, Line: ld.lineOf(path), Key: k.String()}}
	if t, ok := raw.(map[string]any); ok {
		for name := range t {
			if name != "value" && name != "basis" {
				ld.unknown(at(path, name), []string{"value", "basis"})
			}
		}
		if b, ok := t["basis"]; ok {
			v.Origin.Basis = ld.basis(path, b)
		}
		if raw, ok = t["value"]; !ok {
			ld.problem(path, "has no value")
			return nil
		}
	}
	if raw == "none" {
		v.None = true
		return v
	}
	var err error
	switch keyTable[k].kind {
	case kindCount:
		n, ok := raw.(int64)
		if !ok || n < 1 || n > 1_000_000_000 {
			err = errors.New(`must be a whole number from 1 to 1000000000, or "none"`)
		}
		v.N = n
	case kindBool:
		b, ok := raw.(bool)
		if !ok {
			err = errors.New("must be true or false")
		}
		v.Bool = b
	case kindTLS:
		s, _ := raw.(string)
		i := slices.Index(tlsNames[1:], s)
		if i < 0 {
			err = fmt.Errorf("must be one of %s", strings.Join(tlsNames[1:], ", "))
		}
		v.TLS = TLS(i + 1)
	case kindDuration:
		s, _ := raw.(string)
		v.Duration, err = parseDuration(s)
		if err == nil && k == KeyRecoveryHold && v.Duration < minRecoveryHold {
			err = fmt.Errorf("must be at least %v", minRecoveryHold)
		}
		if err == nil && v.Duration <= 0 {
			err = errors.New("must be positive")
		}
	case kindName:
		s, ok := raw.(string)
		if !ok || s == "" {
			err = errors.New("must be a name")
		}
		v.Name = s
	case kindRate:
		v.Rates, err = rates(raw)
	}
	if err != nil {
		ld.problem(path, "%v", err)
		return nil
	}
	return v
}

// maxRates is how many periods one rate key may limit at once: second, minute,
// hour, day.
const maxRates = 4

func rates(raw any) ([]Rate, error) {
	list, ok := raw.([]any)
	if !ok {
		list = []any{raw}
	}
	if len(list) == 0 || len(list) > maxRates {
		return nil, fmt.Errorf("must be a rate or a list of up to %d", maxRates)
	}
	out := make([]Rate, 0, len(list))
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			return nil, errors.New(`must be a rate such as "100/s"`)
		}
		r, err := ParseRate(s)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// basis reads "published|community|guess [KEY...] [YYYY-MM-DD]".
func (ld *loader) basis(path []string, v any) string {
	s, _ := v.(string)
	switch word, _, _ := strings.Cut(s, " "); word {
	case "published", "community", "guess":
		return s
	}
	ld.problem(at(path, "basis"), `must begin with "published", "community" or "guess"`)
	return ""
}

// strings reads a string or a list of them.
func (ld *loader) strings(path []string, v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				ld.problem(path, "must be a list of strings")
				return nil
			}
			out = append(out, s)
		}
		return out
	}
	ld.problem(path, "must be a string or a list of strings")
	return nil
}

// unknown reports a key nobody knows, with the nearest that somebody does.
func (ld *loader) unknown(path []string, known []string) {
	if near := nearest(path[len(path)-1], known); near != "" {
		ld.problem(path, "unknown key; did you mean %q?", near)
		return
	}
	ld.problem(path, "unknown key")
}

// nearest returns the name with the smallest edit distance, if it is small
// enough to be a slip.
func nearest(s string, names []string) string {
	best, limit := "", max(2, min(len(s), 40)/3)+1
	for _, n := range names {
		if d := distance(s, n); d < limit {
			best, limit = n, d
		}
	}
	return best
}

// distance is the Levenshtein distance; long strings are far from everything.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var row [65]int
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
