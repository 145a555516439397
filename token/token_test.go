package token

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tradewind-mta/tradewind/message"
)

func testRing(t testing.TB, ids ...uint8) *Ring {
	t.Helper()
	var keys []Key
	for _, id := range ids {
		k := Key{ID: id}
		copy(k.Secret[:], bytes.Repeat([]byte{id + 1}, SecretLen))
		keys = append(keys, k)
	}
	r, err := NewRing(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const host = "bounces.example.com"

func testClaims() *Claims {
	var ids message.IDSource
	at := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
	return &Claims{
		Message: ids.New(at), N: 7, Sent: at, Tenant: "acme", Address: message.MustAddress("Ann@example.net"),
		Campaign: "spring", Extra: "https://example.com/a?b=c",
	}
}

func allKinds() (list []Kind) {
	for k := Kind(1); k < kinds; k++ {
		list = append(list, k)
	}
	return list
}

func seal(t testing.TB, r *Ring, k Kind, c *Claims) string {
	t.Helper()
	s, err := r.Seal(k, host, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTokenSaysWhatWasSealed(t *testing.T) {
	t.Parallel()
	r := testRing(t, 3)
	for _, k := range allKinds() {
		want := testClaims()
		got, err := r.Open(k, "Bounces.Example.COM", seal(t, r, k, want))
		if err != nil {
			t.Fatalf("kind %d: %v", k, err)
		}
		if !r.Confirms(got, "acme", message.MustAddress("ann@EXAMPLE.net")) {
			t.Errorf("kind %d: does not confirm its own recipient", k)
		}
		want.Sent = want.Sent.Truncate(24 * time.Hour)
		if k.short() {
			want.Tenant, want.Campaign, want.Extra, want.Address = "", "", "", message.Address{}
		}
		if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Claims{}), cmp.Comparer(func(a, b message.Address) bool { return a == b })); d != "" {
			t.Errorf("kind %d (-want +got):\n%s", k, d)
		}
	}
}

func TestTokenSpeaksOfOneRecipientOfOneTenant(t *testing.T) {
	t.Parallel()
	r := testRing(t, 3)
	c, err := r.Open(ReturnPath, host, seal(t, r, ReturnPath, testClaims()))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ tenant, address string }{
		{"acme", "bob@example.net"}, {"acme", "ann@example.org"}, {"other", "ann@example.net"}, {"acmea", "nn@example.net"},
	} {
		if r.Confirms(c, x.tenant, message.MustAddress(x.address)) {
			t.Errorf("confirms %s of %s", x.address, x.tenant)
		}
	}
	all := testClaims()
	all.All, all.N, all.Address = true, 0, message.Address{}
	c, err = r.Open(ReturnPath, host, seal(t, r, ReturnPath, all))
	if err != nil || !c.All {
		t.Fatalf("token for all: %+v, %v", c, err)
	}
	if r.Confirms(c, "other", message.Address{}) || !r.Confirms(c, "acme", message.Address{}) {
		t.Error("a token for all recipients is not bound to its tenant")
	}
}

// A local part has 64 octets; ours begins with a letter.
func TestReturnPathFitsIntoALocalPart(t *testing.T) {
	t.Parallel()
	r := testRing(t, 31)
	for _, n := range []uint32{0, 126, 127, 9999, 16383, maxN} {
		c := testClaims()
		c.N = n
		c.Address = message.MustAddress(strings.Repeat("x", 64) + "@" + strings.Repeat("y", 60) + ".example.net")
		for _, k := range []Kind{ReturnPath, MessageID, UnsubscribeAddress} {
			s := seal(t, r, k, c)
			if len(s) > 63 {
				t.Errorf("kind %d, recipient %d: %d octets", k, n, len(s))
			}
			if strings.ToLower(s) != s || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") != "" {
				t.Errorf("kind %d: %q is not lower-case base32", k, s)
			}
			for _, spelled := range []string{strings.ToUpper(s), strings.ToUpper(s[:9]) + s[9:]} {
				if got, err := r.Open(k, host, spelled); err != nil || got.N != n {
					t.Errorf("kind %d in another case: %v", k, err)
				}
			}
		}
	}
	c := testClaims()
	c.N = maxN + 1
	if _, err := r.Seal(ReturnPath, host, c); !errors.Is(err, ErrTooLarge) {
		t.Errorf("recipient beyond the limit: %v, want ErrTooLarge", err)
	}
	c = testClaims()
	c.Extra = strings.Repeat("x", maxClaim+1)
	if _, err := r.Seal(Click, host, c); !errors.Is(err, ErrTooLarge) {
		t.Errorf("destination beyond the limit: %v, want ErrTooLarge", err)
	}
}

func TestEqualClaimsGiveEqualTokensAndOthersDoNot(t *testing.T) {
	t.Parallel()
	r := testRing(t, 3)
	seen := map[string]string{}
	id := testClaims().Message
	for _, k := range allKinds() {
		for name, change := range map[string]func(*Claims){
			"as it is":    func(*Claims) {},
			"recipient":   func(c *Claims) { c.N++ },
			"message":     func(c *Claims) { c.Message[15]++ },
			"day":         func(c *Claims) { c.Sent = c.Sent.Add(24 * time.Hour) },
			"address":     func(c *Claims) { c.Address = message.MustAddress("ann@example.org") },
			"tenant":      func(c *Claims) { c.Tenant = "other" },
			"for all":     func(c *Claims) { c.All = true },
			"first of it": func(c *Claims) { c.N = 0 },
		} {
			c, again := testClaims(), testClaims()
			c.Message, again.Message = id, id
			change(c)
			change(again)
			s := seal(t, r, k, c)
			if s != seal(t, r, k, again) {
				t.Errorf("kind %d, %s: two tokens for the same claims", k, name)
			}
			what := fmt.Sprintf("kind %d, %s", k, name)
			if other, ok := seen[s]; ok {
				t.Errorf("%s: the token of %s", what, other)
			}
			seen[s] = what
		}
	}
}

func TestChangedTokenIsRefused(t *testing.T) {
	t.Parallel()
	r := testRing(t, 3, 4)
	for _, k := range allKinds() {
		s := seal(t, r, k, testClaims())
		raw, ok := read(k, s)
		if !ok {
			t.Fatalf("kind %d: cannot be read", k)
		}
		for i := range raw {
			for bit := range 8 {
				bad := bytes.Clone(raw)
				bad[i] ^= 1 << bit
				if c, err := r.Open(k, host, write(k, bad)); !errors.Is(err, ErrBad) || c != nil {
					t.Fatalf("kind %d: opens with bit %d of octet %d flipped", k, bit, i)
				}
			}
		}
		// Any character replaced, dropped or doubled: one token, one spelling.
		for i := range s {
			for _, c := range "az27AZ-_ =\n." {
				x := s[:i] + string(c) + s[i+1:]
				if strings.EqualFold(x, s) && k.folded() || x == s {
					continue
				}
				if _, err := r.Open(k, host, x); !errors.Is(err, ErrBad) {
					t.Fatalf("kind %d: %q opens", k, x)
				}
			}
			for _, x := range []string{s[:i] + s[i+1:], s[:i], s[:i] + s[i:i+1] + s[i:], s[:i] + "\n" + s[i:]} {
				if _, err := r.Open(k, host, x); !errors.Is(err, ErrBad) {
					t.Fatalf("kind %d: %q opens", k, x)
				}
			}
		}
	}
}

func TestTokenOpensOnlyAsItsKindForItsHost(t *testing.T) {
	t.Parallel()
	r := testRing(t, 3)
	for _, made := range allKinds() {
		raw, _ := read(made, seal(t, r, made, testClaims()))
		for _, k := range allKinds() {
			_, err := r.Open(k, host, write(k, raw))
			if (err == nil) != (k == made) {
				t.Errorf("token of kind %d as kind %d: %v", made, k, err)
			}
		}
		for _, h := range []string{"", "example.com", "bounces.example.co", "bounces.example.comm"} {
			if _, err := r.Open(made, h, write(made, raw)); !errors.Is(err, ErrBad) {
				t.Errorf("token of kind %d opens at %q", made, h)
			}
		}
	}
}

func TestOldMailKeepsWorkingAfterARotation(t *testing.T) {
	t.Parallel()
	day := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	list, err := Keyring(nil).Rotate(day, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	ring := func() *Ring {
		t.Helper()
		back, err := ParseKeyring(list.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		r, err := back.Ring()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	old := seal(t, ring(), ReturnPath, testClaims())
	if list, err = list.Rotate(day.AddDate(0, 0, 30), day); err != nil {
		t.Fatal(err)
	}
	r := ring()
	c, err := r.Open(ReturnPath, host, old)
	if err != nil || !r.Confirms(c, "acme", testClaims().Address) {
		t.Fatalf("after a rotation: %v", err)
	}
	if now := seal(t, r, ReturnPath, testClaims()); now[:2] == old[:2] {
		t.Errorf("the new key does not seal: %q and %q", old, now)
	}
	// A key goes when the last token it sealed is too old to matter.
	if list, err = list.Rotate(day.AddDate(0, 0, 60), day.AddDate(0, 0, 45)); err != nil {
		t.Fatal(err)
	}
	if _, err := ring().Open(ReturnPath, host, old); !errors.Is(err, ErrBad) {
		t.Errorf("opens with a key that is gone: %v", err)
	}
	if len(list) != 2 || list[0].ID != 2 {
		t.Errorf("after three rotations: %v", list)
	}
	for range MaxKeys - 2 {
		if list, err = list.Rotate(day, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := list.Rotate(day, time.Time{}); err == nil || len(list) != MaxKeys {
		t.Errorf("ring of %d keys takes another: %v", len(list), err)
	}
}

func TestKeyFileIsReadWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	const good = "1 AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE= 2026-11-26\n"
	if l, err := ParseKeyring([]byte("# words\n\n" + good)); err != nil || len(l) != 1 || l[0].ID != 1 {
		t.Fatalf("good file: %v, %v", l, err)
	}
	for name, text := range map[string]string{
		"empty":        "",
		"words":        "# nothing\n",
		"number":       strings.Replace(good, "1 ", "32 ", 1),
		"short key":    "1 AQEB 2026-11-26\n",
		"no day":       "1 AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n",
		"bad day":      strings.Replace(good, "2026-11-26", "yesterday", 1),
		"twice":        good + good,
		"second bad":   good + "2 x 2026-11-26\n",
		"key of zeros": "1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= 2026-11-26\n",
		"huge":         strings.Repeat("#\n", maxKeyFile),
	} {
		if _, err := ParseKeyring([]byte(text)); !errors.Is(err, ErrKeyFile) {
			t.Errorf("%s: got %v, want ErrKeyFile", name, err)
		}
	}
	l, _ := ParseKeyring([]byte(good))
	for _, s := range []string{fmt.Sprint(l[0].Key), fmt.Sprintf("%#v", l[0].Key), fmt.Sprintf("%+v", l[0].Key)} {
		if strings.Contains(s, "1, 1") || strings.Contains(s, "AQEB") {
			t.Errorf("a key prints itself: %s", s)
		}
	}
}

func TestTokenExpiresByTheDayItsMessageWasSent(t *testing.T) {
	t.Parallel()
	c := testClaims()
	c.Sent = c.Sent.Truncate(24 * time.Hour)
	life := 17 * 24 * time.Hour
	for after, want := range map[time.Duration]bool{0: false, life: false, life + 24*time.Hour: false, life + 24*time.Hour + 1: true} {
		if got := c.Expired(c.Sent.Add(after), life); got != want {
			t.Errorf("after %v: expired %t, want %t", after, got, want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	r := testRing(f, 3, 4)
	for _, k := range allKinds() {
		f.Add(uint8(k), host, seal(f, r, k, testClaims()))
	}
	f.Add(uint8(1), "", "")
	f.Fuzz(func(t *testing.T, k uint8, at, text string) {
		kind := Kind(k%uint8(kinds-1)) + 1
		c, err := r.Open(kind, at, text)
		if err != nil {
			return
		}
		// Whatever opens was sealed by us, and is its only spelling.
		if back, ok := read(kind, text); !ok || !strings.EqualFold(write(kind, back), text) {
			t.Errorf("%q opens as %+v", text, c)
		}
	})
}

func FuzzParseKeyring(f *testing.F) {
	l, err := Keyring(nil).Rotate(time.Unix(1<<30, 0), time.Time{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(l.Append(nil))
	f.Add([]byte("1 x y"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseKeyring(b)
		if err != nil {
			return
		}
		again, err := ParseKeyring(l.Append(nil))
		if err != nil || len(again) != len(l) {
			t.Errorf("%d keys, written and read again: %d, %v", len(l), len(again), err)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	r, c := testRing(b, 3), testClaims()
	for _, k := range []Kind{ReturnPath, ReportRef} {
		b.Run(fmt.Sprintf("kind=%d", k), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Seal(k, host, c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	r := testRing(b, 3)
	good := seal(b, r, ReturnPath, testClaims())
	bad := good[:20] + string("ab"[bytes.IndexByte([]byte("a"), good[20])+1]) + good[21:]
	b.Run("good", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.Open(ReturnPath, host, good); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bad", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.Open(ReturnPath, host, bad); err == nil {
				b.Fatal("opens")
			}
		}
	})
}
