package dkim

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

var (
	wspAtEnd = regexp.MustCompile(`[ \t]+\r\n`)
	wsp      = regexp.MustCompile(`[ \t]+`)
	lastEnds = regexp.MustCompile(`^(\r\n)+$|(\r\n)+$`)
	foldMark = regexp.MustCompile(`\r\n([ \t])`)
)

// naiveBody is RFC 6376, 3.4.4, to the letter and without regard to cost.
func naiveBody(body string) string {
	if body != "" && !strings.HasSuffix(body, "\r\n") {
		body += "\r\n"
	}
	body = wspAtEnd.ReplaceAllString(body, "\r\n")
	body = wsp.ReplaceAllString(body, " ")
	return lastEnds.ReplaceAllStringFunc(body, func(end string) string {
		if len(end) == len(body) {
			return ""
		}
		return "\r\n"
	})
}

// naiveField is RFC 6376, 3.4.2.
func naiveField(field string) string {
	name, value, _ := strings.Cut(field, ":")
	value = strings.ReplaceAll(value, "\r\n", "")
	value = wsp.ReplaceAllString(value, " ")
	return strings.ToLower(strings.TrimRight(name, " \t")) + ":" + strings.Trim(value, " ") + "\r\n"
}

// bare reports a CR or LF outside CRLF.
func bare(body string) bool {
	return strings.ContainsAny(strings.ReplaceAll(body, "\r\n", ""), "\r\n")
}

// steppedBody is RFC 6376, 3.4.4, byte by byte, which is fast enough to be asked
// millions of times. ok is false for a CR or LF outside CRLF.
func steppedBody(body []byte) (relaxed []byte, ok bool) {
	ends, space := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case c == ' ' || c == '\t':
			space = true
		case c == '\r' && i+1 < len(body) && body[i+1] == '\n':
			ends, space = ends+1, false
			i++
		case c == '\r' || c == '\n':
			return nil, false
		default:
			for ; ends > 0; ends-- {
				relaxed = append(relaxed, "\r\n"...)
			}
			if space {
				relaxed = append(relaxed, ' ')
			}
			relaxed, space = append(relaxed, c), false
		}
	}
	if len(relaxed) > 0 {
		relaxed = append(relaxed, "\r\n"...)
	}
	return relaxed, true
}

// checkPieces compares the hasher with steppedBody, for a body in the pieces
// that next asks for.
func checkPieces(t *testing.T, h *BodyHasher, body []byte, next func(left int) int) {
	t.Helper()
	relaxed, ok := steppedBody(body)
	h.Reset()
	for rest := body; len(rest) > 0; {
		n := next(len(rest))
		h.Write(rest[:n])
		rest = rest[n:]
	}
	got, err := h.Sum()
	if want := BodyHash(sha256.Sum256(relaxed)); ok != (err == nil) || ok && got != want {
		t.Fatalf("body of %d octets, %.200q: got %x, %v; want %x, no error: %v", len(body), body, got, err, want, ok)
	}
}

// checkBody compares the hasher with the naive form, for body in one piece
// and cut at the places next asks for.
func checkBody(t *testing.T, body []byte, next func(left int) int) {
	t.Helper()
	want := BodyHash(sha256.Sum256([]byte(naiveBody(string(body)))))
	wantErr := bare(string(body))
	got, err := HashBody(body)
	if wantErr != errors.Is(err, ErrLineEnd) || (err == nil && got != want) {
		t.Fatalf("body %q: got %x, %v; want %x, a line end error: %v", body, got, err, want, wantErr)
	}
	var h BodyHasher
	h.Write([]byte("left over from before \t\r\n\r\n \t\r"))
	h.Reset()
	for rest := body; len(rest) > 0; {
		n := next(len(rest))
		h.Write(rest[:n])
		rest = rest[n:]
	}
	cut, cutErr := h.Sum()
	if cut != got || (cutErr == nil) != (err == nil) {
		t.Fatalf("body %q in pieces: got %x, %v; want %x, %v", body, cut, cutErr, got, err)
	}
}

func TestBodyHashEqualsTheLetterOfTheRFC(t *testing.T) {
	t.Parallel()
	// Every string over the bytes that matter, up to length 7, byte by byte.
	alphabet := []byte("\r\n \ta")
	var all func(prefix []byte)
	all = func(prefix []byte) {
		checkBody(t, prefix, func(int) int { return 1 })
		if len(prefix) < 6 {
			// The same amid text, which is read eight bytes at a time.
			amid := join([]byte("seven.."), prefix, []byte("Nine bytes and more\r\n"))
			checkBody(t, amid, func(left int) int { return min(left, 10) })
		}
		if len(prefix) == 7 {
			return
		}
		for _, c := range alphabet {
			all(append(prefix[:len(prefix):len(prefix)], c))
		}
	}
	all(nil)
}

// The hasher reads sixteen bytes at a time, then one by one. What it looks for
// must be found wherever it lies in them, or across two of them.
func TestBodyHashDoesNotDependOnWhereInAWordAByteLies(t *testing.T) {
	t.Parallel()
	const longest = 5
	rnd := rand.New(rand.NewPCG(5, 6))
	alphabet := []byte("a \t\r\n.\x80")
	before, after := []byte("seventeen letters"), []byte("enough for one more word")
	var h BodyHasher
	whole := func(left int) int { return left }
	random := func(left int) int { return 1 + rnd.IntN(left) }
	var all func(middle []byte)
	all = func(middle []byte) {
		first, last := 0, len(before)
		if len(middle) == longest {
			first = rnd.IntN(len(before) + 1) // these are many
			last = first
		}
		for pad := first; pad <= last; pad++ {
			body := join(before[:pad], middle, after)
			checkPieces(t, &h, body, whole)
			checkPieces(t, &h, body, random)
			checkPieces(t, &h, body[:pad+len(middle)], whole)
		}
		if len(middle) == longest {
			return
		}
		for _, c := range alphabet {
			all(append(middle[:len(middle):len(middle)], c))
		}
	}
	all(nil)
}

// The hasher hands the digest whole blocks, from its own memory or from the
// body's: no length is left out, with much to drop and with nothing.
func TestBodyHashOfEveryLength(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(7, 8))
	var h BodyHasher
	whole := func(left int) int { return left }
	for _, line := range []string{"a", "single spaces and words \r\n", "nothing to drop\r\n", "two  of them,\ta tab\r\n\r\n"} {
		text := []byte(strings.Repeat(line, 200<<10/len(line)))
		for n := range 4500 {
			checkPieces(t, &h, text[:n], whole)
			if n%7 == 0 {
				checkPieces(t, &h, text[:n], func(left int) int { return 1 + rnd.IntN(left) })
			}
		}
		for range 100 {
			n := rnd.IntN(len(text))
			checkPieces(t, &h, text[:n], whole)
			checkPieces(t, &h, text[:n], func(left int) int { return min(left, 1+rnd.IntN(3000)) })
		}
	}
}

func TestBodyHashOfRandomTextInRandomPieces(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	words := []string{"\r\n", "\r\n", "\r\n\r\n", " ", "  ", "\t", " \t", "a", "word", "\x00", "é", strings.Repeat("long", 200)}
	for range 3000 {
		var b strings.Builder
		for range rnd.IntN(60) {
			b.WriteString(words[rnd.IntN(len(words))])
		}
		if rnd.IntN(20) == 0 {
			b.WriteString([]string{"\r", "\n", "\n\r", "\r\r\n"}[rnd.IntN(4)])
			b.WriteString("x\r\n")
		}
		checkBody(t, []byte(b.String()), func(left int) int { return 1 + rnd.IntN(left) })
	}
}

func TestFieldsEqualTheLetterOfTheRFC(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 4))
	words := []string{"\r\n ", "\r\n\t", " ", "\t", "  ", "a", "B", ":", "word", "\x01", "é"}
	for range 20000 {
		value := ""
		for range rnd.IntN(12) {
			value += words[rnd.IntN(len(words))]
		}
		field := []string{"Subject:", "sUBJECT:", "Subject \t:"}[rnd.IntN(3)] + value + "\r\n"
		checkField(t, field)
	}
}

func checkField(t *testing.T, field string) {
	t.Helper()
	names, err := newFieldNames([]string{"From", "Subject"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var hd header
	if _, err := hd.split([]byte("From:a@b\r\n"+field), names); err != nil {
		t.Fatalf("field %q: %v", field, err)
	}
	hd.canonicalize(names)
	if got, want := string(hd.canon), "from:a@b\r\n"+naiveField(field); got != want {
		t.Fatalf("field %q: got %q, want %q", field, got, want)
	}
}

// RFC 6376, 3.4.5 shows what relaxed form makes of a small message.
func TestRelaxedFormOfTheRFCsExample(t *testing.T) {
	t.Parallel()
	names, err := newFieldNames([]string{"A", "B"}, []string{"From"})
	if err != nil {
		t.Fatal(err)
	}
	var hd header
	body, err := hd.split([]byte("From: x\r\nA: X\r\nB : Y\t\r\n\tZ  \r\n\r\n C \r\nD \t E\r\n\r\n\r\n"), names)
	if err != nil {
		t.Fatal(err)
	}
	hd.canonicalize(names)
	if got, want := string(hd.canon), "a:X\r\nb:Y Z\r\nfrom:x\r\n"; got != want {
		t.Errorf("header: got %q, want %q", got, want)
	}
	got, err := HashBody(body)
	if want := sha256.Sum256([]byte(" C\r\nD E\r\n")); got != want || err != nil {
		t.Errorf("body: got %x, %v, want %x", got, err, want)
	}
}

func TestBodyHashesKnownFromTheRFCs(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		// An empty body, by RFC 6376, 3.4.4.
		"": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
		// The message of RFC 6376, A.2, and that of RFC 8463, A.3.
		"Hi.\r\n\r\nWe lost the game. Are you hungry yet?\r\n\r\nJoe.\r\n":  "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=",
		"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n": "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=",
	} {
		got, err := HashBody([]byte(body))
		if s := base64.StdEncoding.EncodeToString(got[:]); s != want || err != nil {
			t.Errorf("%q: got %s, %v, want %s", body, s, err, want)
		}
	}
}

// FuzzBodyHash cuts a body where cuts says, and moves it by up to one step of
// the fast loop.
func FuzzBodyHash(f *testing.F) {
	f.Add([]byte("two  spaces, a\ttab \t at the end \t\r\n\r\n \r\n\t text \x80\x20\x20\xA0\r\n\r\n"), uint8(3), []byte{9, 1, 1, 30})
	f.Add([]byte("a line of text that goes on\r\nand another one of them\r\n  indented\r\n"), uint8(0), []byte{28, 1})
	f.Add([]byte("\x00 \x00  \x1F \r\n\x21 \x21\r\n\r\n.\r\n \r x"), uint8(16), []byte{})
	for _, msg := range corpus() {
		if len(msg) < 4096 {
			f.Add(msg, uint8(0), []byte{200, 100, 16, 17})
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, pad uint8, cuts []byte) {
		body = join([]byte("seventeen letters")[:pad%18], body)
		var h BodyHasher
		checkPieces(t, &h, body, func(left int) int { return left })
		checkPieces(t, &h, body, func(left int) int {
			if len(cuts) == 0 {
				return left
			}
			n := min(left, int(cuts[0])+1)
			cuts = cuts[1:]
			return n
		})
		if len(body) < 256 {
			checkBody(t, body, func(int) int { return 1 })
		}
	})
}

func FuzzCanonical(f *testing.F) {
	for _, msg := range corpus() {
		if len(msg) < 4096 {
			f.Add(msg, uint16(7))
		}
	}
	f.Add([]byte("From: a@b\r\n\r\na \r\n\r\n \r b\n\r\n"), uint16(1))
	names, err := newFieldNames(DefaultHeaders(), DefaultOversign())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, msg []byte, piece uint16) {
		var hd header
		body, err := hd.split(msg, names)
		if err != nil {
			return
		}
		checkBody(t, body, func(left int) int { return min(left, int(piece)+1) })
		hd.canonicalize(names)
		if len(hd.canon) > 2*len(msg)+maxNameBytes {
			t.Errorf("canonical header of %d bytes from a message of %d", len(hd.canon), len(msg))
		}
		var want []byte
		head := string(msg[:len(msg)-len(body)])
		for _, name := range names.spelled {
			for _, field := range fieldsFromBelow(head, name) {
				want = append(want, naiveField(field)...)
			}
		}
		if !bytes.Equal(hd.canon, want) {
			t.Errorf("header %q: got %q, want %q", head, hd.canon, want)
		}
	})
}

// fieldsFromBelow finds a field's instances, the lowest first.
func fieldsFromBelow(head, name string) (found []string) {
	head = strings.TrimSuffix(head, "\r\n\r\n")
	head = strings.TrimSuffix(head, "\r\n")
	head = foldMark.ReplaceAllString(head, "\x00FOLD$1")
	for line := range strings.SplitSeq(head, "\r\n") {
		n, _, _ := strings.Cut(line, ":")
		if strings.EqualFold(strings.TrimRight(n, " \t"), name) {
			found = append([]string{strings.ReplaceAll(line, "\x00FOLD", "\r\n") + "\r\n"}, found...)
		}
	}
	return found
}
