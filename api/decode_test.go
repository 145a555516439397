package api

import (
	"encoding/json"
	"testing"
)

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

func TestScalarIsWhatItsJSONSays(t *testing.T) {
	for _, s := range []string{`""`, `"a"`, `"ü"`, `"\u00fc"`, `"\ud800"`, `"a\\b"`, `"\""`, `"\n"`, "\"\x80\"", `"\u0000"`, `"{{x}}"`, "\"\u2028\""} {
		var got scalar
		var want string
		err, wantErr := json.Unmarshal([]byte(s), &got), json.Unmarshal([]byte(s), &want)
		if string(got) != want || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: got %q, %v, want %q, %v", s, got, err, want, wantErr)
		}
	}
}
