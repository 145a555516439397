package inject

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"mime/quotedprintable"
	"strings"
	"testing"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"
	"github.com/google/go-cmp/cmp"
)

// leaves reads a message with an independent parser and returns what each of
// its leaves decodes to, with its type.
func leaves(t testing.TB, raw []byte) []string {
	t.Helper()
	e, err := message.Read(bytes.NewReader(raw))
	if err != nil && !message.IsUnknownCharset(err) {
		t.Fatalf("go-message: %v in %q", err, raw)
	}
	var out []string
	err = e.Walk(func(path []int, e *message.Entity, err error) error {
		if err != nil && !message.IsUnknownCharset(err) {
			return err
		}
		kind, _, _ := e.Header.ContentType()
		if strings.HasPrefix(kind, "multipart/") {
			return nil
		}
		b, err := io.ReadAll(e.Body)
		out = append(out, kind+": "+string(b))
		return err
	})
	if err != nil {
		t.Fatalf("go-message: %v in %q", err, raw)
	}
	return out
}

func TestReencodedMessageSaysTheSame(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("word ", 300) + "end"
	for name, in := range map[string]string{
		"8-bit text":    "From: a@b\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nGrüße = \n.\ntrailing \n",
		"long html":     "From: a@b\nMIME-Version: 1.0\nContent-Type: text/html; charset=us-ascii\n\n<p>" + long + "</p>\n",
		"8-bit base64":  "From: a@b\nMIME-Version: 1.0\nContent-Type: image/png\nContent-Transfer-Encoding: binary\n\n" + strings.Repeat("\xff\xfe", 800) + "\n",
		"long base64":   "From: a@b\nMIME-Version: 1.0\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\n" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1, 2, 3}, 500)) + "\n",
		"long qp":       "From: a@b\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n" + long + "=C3=BC\n",
		"mixed":         "From: a@b\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"x y\"\nContent-Transfer-Encoding: 8bit\n\npreamble ü\n--x y\nContent-Type: text/plain; charset=utf-8\n\nü\n--x y\nContent-Type: multipart/alternative; boundary=xy\n\n--xy\n\nplain\n--xy\nContent-Type: text/html; charset=utf-8\n\n" + long + "\n--xy--\n\n--x y--\nepilogue ü\n",
		"folded header": "From: a@b\nMIME-Version: 1.0\nContent-Type: text/plain;\n\tcharset=utf-8\nContent-Transfer-Encoding:\n 8bit\n\nü\n",
	} {
		raw := crlf(in)
		got, err := Reencode(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s, err := measure(got[headerEnd(got):]); err != nil || s.eightBit || s.long {
			t.Errorf("%s: still %+v %v:\n%s", name, s, err, got)
		}
		want := leaves(t, raw)
		if strings.Contains(in, "base64\n") || strings.Contains(in, "binary\n") {
			for k := range want {
				want[k] = strings.TrimRight(want[k], "\r\n")
			}
		}
		have := leaves(t, got)
		for k := range have {
			if strings.Contains(have[k], "image/") {
				have[k] = strings.TrimRight(have[k], "\r\n")
			}
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s: content (-want +got):\n%s", name, diff)
		}
		again, err := Reencode(got)
		if err != nil || &again[0] != &got[0] {
			t.Errorf("%s: a second pass changed it again (%v)", name, err)
		}
	}
}

func TestAttachedMessageIsReencodedInside(t *testing.T) {
	t.Parallel()
	raw := crlf("From: a@b\nMIME-Version: 1.0\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nFrom: c@d\nSubject: inner\n\nGrüße\n")
	got, err := Reencode(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := string(crlf("From: a@b\nMIME-Version: 1.0\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 7bit\n\nContent-Type: text/plain; charset=utf-8\nFrom: c@d\nSubject: inner\nMIME-Version: 1.0\nContent-Transfer-Encoding: quoted-printable\n\nGr=C3=BC=C3=9Fe\n"))
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUntouchableMessagesAreRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		in   string
		want error
	}{
		"signed":         {"Content-Type: multipart/signed; boundary=b\n\n--b\n\nü\n--b--\n", ErrSigned},
		"signed inside":  {"Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/signed; boundary=b\n\n--b\n\nü\n--b--\n\n--a--\n", ErrSigned},
		"encrypted":      {"Content-Type: multipart/encrypted; boundary=b\n\n--b\n\nü\n--b--\n", ErrSigned},
		"not closed":     {"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nü\n", ErrNested},
		"no boundary":    {"Content-Type: multipart/mixed\n\n--b\n\nü\n--b--\n", ErrNested},
		"partial":        {"Content-Type: message/partial; id=1\n\nü\n", ErrNested},
		"8-bit header":   {"Content-Type: multipart/mixed; boundary=b\n\n--b\nX: ü\n\nü\n--b--\n", ErrNested},
		"two types":      {"Content-Type: text/plain\nContent-Type: text/html\n\nü\n", ErrNested},
		"odd encoding":   {"Content-Transfer-Encoding: x-uuencode\n\nü\n", ErrNested},
		"too deep":       {strings.Repeat("Content-Type: message/rfc822\n\n", 40) + "ü\n", ErrNested},
		"too many parts": {"Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n\nü\n", 1001) + "--b--\n", ErrNested},
	} {
		if _, err := Reencode(crlf(tt.in)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

func TestUntouchedPartsKeepTheirBytesBesideOthers(t *testing.T) {
	t.Parallel()
	signed := "Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n\r\nodd  spacing \r\n--s\r\nContent-Type: application/pgp-signature\r\n\r\nxyz\r\n--s--"
	raw := "Content-Type: multipart/mixed; boundary=m\r\n\r\n--m\r\n" + signed + "\r\n--m\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nü\r\n--m--\r\n"
	got, err := Reencode([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(got), signed) {
		t.Errorf("the signed part changed:\n%s", got)
	}
}

func TestLinesAroundTheLimitLeaveTheDoorLegal(t *testing.T) {
	t.Parallel()
	for n := 997; n <= 1001; n++ {
		i, q := newDoor(t, Config{NoReceived: true}, Deps{})
		raw := append(crlf(plain), []byte(strings.Repeat("x", n)+"\r\n")...)
		if _, err := i.Raw(t.Context(), envelope("bob@example.net"), raw); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		changed := string(q.subs[0].Body) != string(raw)
		if changed != (n > 998) {
			t.Errorf("a line of %d octets: changed %v", n, changed)
		}
		if got := leaves(t, q.subs[0].Body)[0]; !strings.Contains(got, "\r\n"+strings.Repeat("x", n)+"\r\n") {
			t.Errorf("a line of %d octets reads %q", n, got)
		}
	}
}

func FuzzReencode(f *testing.F) {
	f.Add(crlf("Content-Type: multipart/mixed; boundary=b\n\n--b\n\nü\n--b--\n"))
	f.Add(crlf("Content-Type: message/rfc822\n\nContent-Transfer-Encoding: base64\n\n" + strings.Repeat("AAAA", 300) + "\n"))
	f.Add(crlf("Content-Transfer-Encoding: quoted-printable\n\n" + strings.Repeat("a", 2000) + "=\nü\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := measure(raw); err != nil {
			return
		}
		got, err := Reencode(raw)
		if err != nil {
			return
		}
		if s, err := measure(got[headerEnd(got):]); err != nil || s.eightBit || s.long {
			t.Fatalf("%q became %q: %+v %v", raw, got, s, err)
		}
	})
}

func FuzzQuotedPrintable(f *testing.F) {
	f.Add([]byte("Grüße = \r\n.\r\n \t\r\n" + strings.Repeat("x", 200) + " \r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		text = bytes.ReplaceAll(bytes.ReplaceAll(text, []byte("\r"), nil), []byte("\n"), []byte("\r\n"))
		enc := AppendQuotedPrintable(nil, text)
		for line := range strings.SplitSeq(string(enc), "\r\n") {
			if len(line) > maxEncoded || strings.HasSuffix(line, " ") || strings.HasSuffix(line, "\t") {
				t.Fatalf("%q gave the line %q", text, line)
			}
		}
		got, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(enc)))
		if err != nil || !bytes.Equal(got, text) {
			t.Fatalf("%q became %q: %v", text, got, err)
		}
	})
}

func BenchmarkReencode10KB(b *testing.B) {
	raw := append(crlf("From: a@b\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n"), bytes.Repeat([]byte("Grüße aus Tübingen, wo die Sonne scheint\r\n"), 230)...)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Reencode(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func TestPlainRunEndsWhereAnOctetDoesNotStandForItself(t *testing.T) {
	t.Parallel()
	b := bytes.Repeat([]byte("x"), 40)
	for at := range b {
		for c := range 256 {
			b[at] = byte(c)
			want := len(b)
			if !qpPlain[c] {
				want = at
			}
			if got := plainRun(b); got != want {
				t.Fatalf("%#x at %d: got %d, want %d", c, at, got, want)
			}
			for cut := range at + 1 {
				if got := plainRun(b[:cut]); got != cut {
					t.Fatalf("%#x at %d: %d of %d", c, at, got, cut)
				}
			}
		}
		b[at] = 'x'
	}
}
