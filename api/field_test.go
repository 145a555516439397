package api

import (
	"mime"
	"net/mail"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

// squeeze makes white space comparable: folding may move it.
func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

// checkField writes s as a Subject and as a display name and reads both with
// the standard library.
func checkField(t testing.TB, s string) {
	t.Helper()
	if badText(s) != "" {
		return
	}
	b, ok := appendField(nil, "Subject", s)
	if ok {
		for line := range strings.SplitSeq(strings.TrimSuffix(string(b), "\r\n"), "\r\n") {
			if len(line) > 998 || strings.TrimSpace(line) == "" {
				t.Fatalf("%q gives the line %q", s, line)
			}
		}
		m, err := mail.ReadMessage(strings.NewReader(string(b) + "\r\n"))
		if err != nil {
			t.Fatalf("%q written as %q: %v", s, b, err)
		}
		got, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
		if err != nil || squeeze(got) != squeeze(s) || len(m.Header) != 1 {
			t.Fatalf("%q written as %q reads as %q, %v", s, b, got, err)
		}
	}
	if s == "" || badName(s) != "" {
		return
	}
	b, ok = appendFolded(nil, "To", mailboxText(s, message.MustAddress("a@example.com")))
	if !ok {
		return
	}
	m, err := mail.ReadMessage(strings.NewReader(string(b) + "\r\n"))
	if err != nil {
		t.Fatalf("%q written as %q: %v", s, b, err)
	}
	list, err := m.Header.AddressList("To")
	if err != nil || len(list) != 1 || list[0].Address != "a@example.com" || squeeze(list[0].Name) != squeeze(s) {
		t.Fatalf("the name %q written as %q reads as %+v, %v", s, b, list, err)
	}
}

func TestHeaderTextComesBack(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "plain", "two  blanks", " lead", "trail ", "tab\there", "ü", "ü ü", "日本語 " + strings.Repeat("語", 200), strings.Repeat("word ", 400),
		"=?utf-8?q?=41?=", "a =?x?= b", "=?", "?=", "=", "=?utf-8?b?!!?=", "ü =?utf-8?q?=41?=", `"`, `\`, `a"b\c`, "a,b", "a;b:c", "a@b", "<x>", "(c)", "[d]", ".", "a.b", "Dr. No",
		"'", "_", "a_b", "ü_b", "\U0001F600", "é\u0301", "x\u200dy", "\ufffd", strings.Repeat("x", 900), strings.Repeat("=?", 40),
	} {
		checkField(t, s)
	}
}

func FuzzHeaderText(f *testing.F) {
	for _, s := range []string{"plain", "ü =?utf-8?q?=41?=", `a"b\c <x>`, "tab\t ü", strings.Repeat("語", 50), "=?=?="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkField(t, s) })
}

func FuzzTemplate(f *testing.F) {
	f.Add("Dear {{name}},\n<b>{{ x }}</b>", "<\"&'>\r\n{{x}}")
	f.Add("{{{", "\r")
	f.Fuzz(func(t *testing.T, text, value string) {
		tm, bad := parseTemplate("html", text, true)
		if bad != nil {
			return
		}
		tm.canonical()
		v := values{own: map[string]scalar{}}
		for _, n := range tm.names {
			v.own[n] = scalar(value)
		}
		out, err := tm.expand(nil, &v, asHTML, 1<<20)
		if err != nil {
			return
		}
		// What the value added is nothing that HTML would act on, and every
		// line break is one.
		literals := strings.Join(tm.literal, "")
		for _, c := range `<>"'` {
			if got, want := strings.Count(string(out), string(c)), strings.Count(literals, string(c)); got != want {
				t.Fatalf("%q with %q: %d of %q, want %d: %q", text, value, got, c, want, out)
			}
		}
		breaks := strings.ReplaceAll(string(out), "\r\n", "")
		// A literal that ends in CR and a value that begins with LF, or the
		// like, are two breaks of their own.
		if strings.ContainsAny(breaks, "\r\n") {
			t.Fatalf("%q with %q leaves bare line breaks: %q", text, value, out)
		}
	})
}
