package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// unknownField finds a member of the JSON value b that t has no field for, and
// says where it is and what could stand there. It is asked only when the
// decoder has refused b, whose error knows neither.
func unknownField(b []byte, t reflect.Type) (path, names string, ok bool) {
	var v any
	if json.Unmarshal(b, &v) != nil {
		return "", "", false
	}
	return findUnknown(v, t, "")
}

// findUnknown walks v beside t. The nesting of v has been bounded.
func findUnknown(v any, t reflect.Type, path string) (string, string, bool) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case map[string]any:
		switch t.Kind() {
		case reflect.Struct:
			return unknownMember(v, t, path)
		case reflect.Slice: // one where a list may stand
			return findUnknown(v, t.Elem(), path)
		}
	case []any:
		if t.Kind() != reflect.Slice {
			break
		}
		for i, e := range v {
			if at, names, ok := findUnknown(e, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); ok {
				return at, names, true
			}
		}
	}
	return "", "", false
}

func unknownMember(v map[string]any, t reflect.Type, path string) (string, string, bool) {
	fields := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	for _, key := range slices.Sorted(maps.Keys(v)) {
		at := strings.TrimPrefix(path+"."+key, ".")
		field := fields[key]
		for name, typ := range fields {
			if field == nil && strings.EqualFold(name, key) { // as the decoder does
				field = typ
			}
		}
		if field == nil {
			return at, strings.Join(slices.Sorted(maps.Keys(fields)), ", "), true
		}
		if at, names, ok := findUnknown(v[key], field, at); ok {
			return at, names, true
		}
	}
	return "", "", false
}
