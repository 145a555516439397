package message

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// corpusCase is one line of testdata/addresses.tsv.
type corpusCase struct {
	line                     int
	ok                       bool
	category, address, canon string
}

func addressCorpus(t testing.TB) []corpusCase {
	t.Helper()
	b, err := os.ReadFile("testdata/addresses.tsv")
	if err != nil {
		t.Fatal(err)
	}
	var out []corpusCase
	for n, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) < 3 || (f[0] != "ok" && f[0] != "bad") {
			t.Fatalf("line %d: %q", n+1, line)
		}
		c := corpusCase{line: n + 1, ok: f[0] == "ok", category: f[1]}
		if c.address, err = strconv.Unquote(f[2]); err != nil {
			t.Fatalf("line %d: %v", n+1, err)
		}
		c.canon = c.address
		if len(f) > 3 {
			if c.canon, err = strconv.Unquote(f[3]); err != nil {
				t.Fatalf("line %d: %v", n+1, err)
			}
		}
		out = append(out, c)
	}
	return out
}

func TestAddressCorpus(t *testing.T) {
	t.Parallel()
	corpus := addressCorpus(t)
	if len(corpus) < 160 {
		t.Fatalf("the corpus has shrunk to %d cases", len(corpus))
	}
	for _, c := range corpus {
		a, err := ParseAddress(c.address)
		switch {
		case c.ok && err != nil:
			t.Errorf("line %d (%s): %q is refused: %v", c.line, c.category, c.address, err)
		case !c.ok && err == nil:
			t.Errorf("line %d (%s): %q is taken as %q", c.line, c.category, c.address, a)
		case !c.ok && !errors.Is(err, ErrBadAddress):
			t.Errorf("line %d (%s): %v does not wrap ErrBadAddress", c.line, c.category, err)
		case !c.ok && !a.IsZero():
			t.Errorf("line %d (%s): %q is refused and returned", c.line, c.category, a)
		case c.ok && a.String() != c.canon:
			t.Errorf("line %d (%s): %q prints as %q, want %q", c.line, c.category, c.address, a, c.canon)
		}
		if err == nil {
			checkAddress(t, a)
		}
	}
}

// checkAddress holds a to the promises of its type.
func checkAddress(t testing.TB, a Address) {
	t.Helper()
	s := a.String()
	again, err := ParseAddress(s)
	if err != nil || again != a {
		t.Fatalf("%q parses, prints and parses as %q, %v", s, again, err)
	}
	if len(s) > 254 || len(a.Local()) > 64 || !utf8.ValidString(s) {
		t.Fatalf("%q is too long or not UTF-8", s)
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7F {
			t.Fatalf("%q holds a control octet", s)
		}
	}
	for i := range len(a.Domain()) {
		if c := a.Domain()[i]; c >= utf8.RuneSelf || c <= ' ' || c == '>' || c == '@' {
			t.Fatalf("the domain %q holds %q", a.Domain(), c)
		}
	}
	if d := a.Domain(); d[0] != '[' && d != strings.ToLower(d) {
		t.Fatalf("the domain %q is not folded", d)
	}
	// Outside of quotes nothing may end the path on the wire.
	if a.Local()[0] != '"' && strings.ContainsAny(a.Local(), " <>,;:\\\"()[]@") {
		t.Fatalf("the local part %q is bare", a.Local())
	}
	// The key is a fixed point: what it names, it names again.
	k, err := ParseAddress(a.Key())
	if err != nil && len(a.Key()) <= 254 {
		t.Fatalf("the key %q of %q is no address: %v", a.Key(), s, err)
	}
	if err == nil && k.Key() != a.Key() {
		t.Fatalf("the key of %q is %q, and its key %q", s, a.Key(), k.Key())
	}
	if string(a.Append(nil)) != s {
		t.Fatalf("Append and String differ on %q", s)
	}
	var viaText Address
	b, _ := a.MarshalText()
	if err := viaText.UnmarshalText(b); err != nil || viaText != a {
		t.Fatalf("%q comes back from text as %q, %v", s, viaText, err)
	}
}

func TestKeysFoldWhatMailboxesCannotTellApart(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Bob@Example.com":        "bob@example.com",
		`"bob"@example.com`:      "bob@example.com",
		`"b\ob"@example.com`:     "bob@example.com",
		`"a b"@example.com`:      `"a b"@example.com`,
		`"A@B"@example.com`:      `"a@b"@example.com`,
		"bob+tag@example.com":    "bob+tag@example.com",
		"b.o.b@example.com":      "b.o.b@example.com",
		`".bob"@example.com`:     `".bob"@example.com`,
		`""@example.com`:         `""@example.com`,
		`"\"x\""@example.com`:    `"\"x\""@example.com`,
		"bob@BÜCHER.example":     "bob@xn--bcher-kva.example",
		"BOB@[IPv6:2001:DB8::1]": "bob@[IPv6:2001:db8::1]",
		`"a\ b"@example.com`:     `"a b"@example.com`,
	} {
		if got := MustAddress(in).Key(); got != want {
			t.Errorf("%s: key %s, want %s", in, got, want)
		}
	}
}

func TestZeroAddressIsTheNullPath(t *testing.T) {
	t.Parallel()
	var a Address
	if !a.IsZero() || a.String() != "" || len(a.Append(nil)) != 0 || a.UTF8() {
		t.Errorf("%+v", a)
	}
	b := MustAddress("a@b")
	if err := b.UnmarshalText(nil); err != nil || !b.IsZero() {
		t.Errorf("empty text gives %q, %v", b, err)
	}
	if err := b.UnmarshalText([]byte("x")); err == nil || !b.IsZero() {
		t.Errorf("bad text gives %q, %v", b, err)
	}
}

func TestOnlyLocalPartsAskForSMTPUTF8(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]bool{"a@b": false, "a@bücher.example": false, "jörg@example.com": true, `"ü"@example.com`: true} {
		if got := MustAddress(in).UTF8(); got != want {
			t.Errorf("%s: %v, want %v", in, got, want)
		}
	}
}

func TestLiteralFindsTheAddress(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"[192.0.2.1]": "192.0.2.1", "[IPv6:2001:db8::1]": "2001:db8::1", "example.com": "", "": "", "[": "", "[]": ""} {
		ip, ok := Literal(in)
		if ok != (want != "") || (ok && ip != netip.MustParseAddr(want)) {
			t.Errorf("%q: %v, %v", in, ip, ok)
		}
	}
}

// AllocsPerRun forbids t.Parallel.
func TestMegabyteIsRefusedCheaply(t *testing.T) {
	for _, unit := range []string{"a", ".", `"`, "@", "é", "xn--", `\`} {
		s := strings.Repeat(unit, 1<<20/len(unit))
		n := testing.AllocsPerRun(1, func() {
			if _, err := ParseAddress(s); err == nil {
				t.Errorf("a megabyte of %q is an address", unit)
			}
			if _, err := ParseDomain(s); err == nil {
				t.Errorf("a megabyte of %q is a domain", unit)
			}
		})
		if n > 20 {
			t.Errorf("%q: %v allocations to refuse it", unit, n)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, c := range addressCorpus(f) {
		f.Add(c.address)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			if !errors.Is(err, ErrBadAddress) || !a.IsZero() {
				t.Fatalf("%q: %q, %v", s, a, err)
			}
			return
		}
		checkAddress(t, a)
	})
}

func BenchmarkParseAddress(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseAddress("some.recipient@mail.example.com"); err != nil {
			b.Fatal(err)
		}
	}
}
