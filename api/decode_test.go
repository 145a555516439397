package api

import "testing"

// plainMeasure is measureJSON octet by octet.
func plainMeasure(b []byte) (values int, ok bool) {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == ',':
			values++
		case c == '{', c == '[':
			values++
			if depth++; depth > maxNesting {
				return values, false
			}
		case c == '}', c == ']':
			depth--
		}
	}
	return values, true
}

func FuzzMeasureJSON(f *testing.F) {
	for _, s := range []string{
		``, `"`, `"\"`, `"\\"`, `"\\\"`, `\"[`, `{"a":"b,[\"{","c":["\\",2]}`, `"\\\\\""[`, `"a""b"[,`, `[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		values, ok := measureJSON(b)
		if want, wantOK := plainMeasure(b); values != want || ok != wantOK {
			t.Errorf("%q: got %d, %v, want %d, %v", b, values, ok, want, wantOK)
		}
	})
}
