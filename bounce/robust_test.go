package bounce

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tradewind-mta/tradewind/message"
)

// allMail is every mail under testdata.
func allMail(t testing.TB) map[string][]byte {
	t.Helper()
	mails := map[string][]byte{}
	for _, dir := range []string{"corpus", "more"} {
		files, err := filepath.Glob(filepath.Join("testdata", dir, "*.eml"))
		if err != nil || len(files) == 0 {
			t.Fatal(err, len(files))
		}
		for _, f := range files {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			mails[filepath.Base(f)] = raw
		}
	}
	return mails
}

// checkReport holds r to what is promised of every report, whatever the mail.
func checkReport(t *testing.T, r *Report) {
	t.Helper()
	if !utf8.Valid(r.JSON("x")) {
		t.Fatal("the JSON is not UTF-8")
	}
	if len(r.Recipients) > maxRecipients {
		t.Fatalf("%d recipients", len(r.Recipients))
	}
	for _, x := range r.Recipients {
		if x.Suppress && (!x.Permanent || x.Action != ActionFailed || r.Kind != KindBounce) {
			t.Fatalf("suppresses without cause: %s %+v", r.Kind, x)
		}
		if r.Kind == KindAutoReply && x.Category != message.AutoReply || r.Kind == KindComplaint && x.Category != message.Complaint {
			t.Fatalf("%s holds %s", r.Kind, x.Category)
		}
		if strings.ContainsAny(x.Address, "\r\n\x00") || len(x.Address) > 400 || len(x.Diagnostic) > 2100 {
			t.Fatalf("unbounded or unclean: %q %d", x.Address, len(x.Diagnostic))
		}
	}
}

// summary is what must not change when only line ends do.
func summary(r *Report) string {
	var b strings.Builder
	fmt.Fprint(&b, r.Kind)
	for _, x := range r.Recipients {
		fmt.Fprintf(&b, " %s/%s/%v", x.Address, x.Category, x.Suppress)
	}
	return b.String()
}

func TestLineEndsDoNotMatter(t *testing.T) {
	t.Parallel()
	o := Options{Classifier: shipped(t)}
	for name, raw := range allMail(t) {
		plain := bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n"))
		if bytes.IndexByte(plain, '\r') >= 0 {
			continue // mixed already
		}
		want := summary(Parse(plain, o))
		for kind, end := range map[string]string{"CRLF": "\r\n", "CR": "\r", "CR CR LF": "\r\r\n"} {
			if got := summary(Parse(bytes.ReplaceAll(plain, []byte("\n"), []byte(end)), o)); got != want {
				t.Errorf("%s with %s: %s, with LF %s", name, kind, got, want)
			}
		}
	}
}

func TestTruncatedMailIsReadAsFarAsItGoes(t *testing.T) {
	t.Parallel()
	o := Options{Classifier: shipped(t)}
	whole, kept := 0, 0
	for _, raw := range allMail(t) {
		if len(raw) > 12000 {
			raw = raw[:12000]
		}
		want := Parse(raw, o)
		for n := 0; n < len(raw); n += 1 + len(raw)/23 {
			checkReport(t, Parse(raw[:n], o))
		}
		if want.Kind == KindBounce {
			whole++
			// Two thirds are enough to know a bounce for one in nearly all.
			if got := Parse(raw[:len(raw)*2/3], o); got.Kind == KindBounce || got.Kind == KindDelay {
				kept++
			}
		}
	}
	if kept*100 < whole*90 {
		t.Errorf("%d of %d bounces are recognised when cut at two thirds, want 90 %%", kept, whole)
	}
}

func TestDamagedMailNeverPanicsOrHangs(t *testing.T) {
	t.Parallel()
	o := Options{Classifier: shipped(t)}
	random := rand.New(rand.NewPCG(7, 11))
	for _, raw := range allMail(t) {
		if len(raw) > 12000 {
			raw = raw[:12000]
		}
		for range 12 {
			bad := bytes.Clone(raw)
			for range 1 + random.IntN(40) {
				bad[random.IntN(len(bad))] = byte(random.Uint32())
			}
			checkReport(t, Parse(bad, o))
		}
		for _, charset := range []string{"utf-7", "utf-16", "iso-2022-jp", "gb18030", "x-unknown", "euc-kr", "utf-8", strings.Repeat("x", 300)} {
			bad := bytes.ReplaceAll(raw, []byte("us-ascii"), []byte(charset))
			bad = bytes.ReplaceAll(bad, []byte("7bit"), []byte("base64"))
			checkReport(t, Parse(bad, o))
		}
	}
}

// hostile makes mail that is meant to cost time or memory.
func hostile() map[string][]byte {
	repeat := func(head, s string, n int) []byte {
		return []byte("From: MAILER-DAEMON@x\nSubject: Undelivered mail\nReturn-Path: <>\n" + head + strings.Repeat(s, n))
	}
	nested := &strings.Builder{}
	nested.WriteString("From: MAILER-DAEMON@x\nSubject: failure notice\n")
	for i := range 5000 {
		fmt.Fprintf(nested, "Content-Type: multipart/mixed; boundary=\"b%d\"\n\n--b%d\n", i, i)
	}
	forwarded := strings.Repeat("Content-Type: message/rfc822\nFrom: MAILER-DAEMON@x\nSubject: failure notice\n\n", 50000)
	mixed := "MIME-Version: 1.0\nContent-Type: multipart/report; boundary=b\n\n--b\n"
	return map[string][]byte{
		"a million header lines":        repeat("", "X-A: b\n", 1_000_000),
		"a million folded lines":        repeat("X-A: b\n", " c\n", 1_000_000),
		"a million lines without colon": repeat("", "abc\n", 1_000_000),
		"25 MB in one line":             repeat("\n", "550 user unknown <a@b.example> ", 25<<20/31),
		"25 MB of lines":                repeat("\n", "<a@b.example>: 550 5.1.1 user unknown\n\n", 25<<20/39),
		"a million parts":               repeat(mixed, "\n--b\nContent-Type: text/plain\n\nx\n", 300_000),
		"lines that look like borders":  repeat(mixed, "--c\n", 3_000_000),
		"5,000 levels":                  []byte(nested.String()),
		"messages in messages":          []byte(forwarded),
		"a million recipients":          repeat("Content-Type: message/delivery-status\n\n", "Final-Recipient: rfc822; a@b.example\nAction: failed\nStatus: 5.1.1\n\n", 150_000),
		"recipients in DSN parts":       repeat(mixed+"Content-Type: message/delivery-status\n\n", "Final-Recipient: rfc822; a@b.example\nAction: failed\n\n", 200_000),
		"recipients without reasons":    reasonless(),
		"recipients on crowded lines":   crowded(),
		"a million fields of one name":  []byte(strings.Repeat("Return-Path: <a@b.example>\n", 1_000_000)),
		"boundaries of boundaries":      nestedBoundaries(),
		"parts in no known charset":     repeat(mixed, "Content-Type: text/plain; charset=x-unknown\n\n"+strings.Repeat("\xe9\xa4\x82\xb1 \xc4\xe3", 9000)+"\n--b\n", 150),
		"fields in no known charset":    repeat("", "Subject: "+strings.Repeat("\xe9\xa4\x82", 4000)+"\n", 400),
		"only at signs":                 repeat("\n", "@", 10<<20),
		"only angle brackets":           repeat("Content-Type: text/html\n\n", "<", 10<<20),
		"unclosed style":                repeat("Content-Type: text/html\n\n", "<style>", 1<<20),
		"quoted-printable equals":       repeat("Content-Transfer-Encoding: quoted-printable\n\n", "=", 10<<20),
		"base64 of nothing":             repeat("Content-Transfer-Encoding: base64\n\n", "=", 10<<20),
		"carriage returns":              repeat("\n", "\r", 10<<20),
		"encoded words":                 repeat("Subject: "+strings.Repeat("=?utf-8?q?=41?= ", 100000)+"\n\n", "x", 10),
		"quotes":                        repeat("\n", `"a"@`, 3<<20),
		"json braces":                   repeat("\n", `{"notificationType":`, 1<<18),
		"colons":                        repeat("\n", "a: b\n", 2<<20),
		"copy markers":                  repeat("\n", "----- original message -----\n", 300_000),
		"addresses everywhere":          repeat("\n", "a@b.example c@d.example rcpt to e@f.example\n\n", 200_000),
		"escape sequences":              repeat("Content-Type: text/plain; charset=iso-2022-jp\n\n", "\x1b$B!!\x1b(B", 1<<20),
	}
}

// reasonless makes a report with a thousand recipients whose reasons must all
// be looked for in the text.
func reasonless() []byte {
	var text, status strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&text, "<u%d@b.example>: see below rcpt to u%d@b.example\n", i, i+1)
		fmt.Fprintf(&status, "\nFinal-Recipient: rfc822; u%d@b.example\nAction: failed\n", i)
	}
	return []byte("From: MAILER-DAEMON@x\nContent-Type: multipart/report; boundary=b\n\n--b\n\n" + text.String() +
		"\n--b\nContent-Type: message/delivery-status\n\n" + status.String() + "\n--b--\n")
}

func TestHostileMailIsBounded(t *testing.T) {
	// A hang meets the time limit of the test; BenchmarkHostile measures.
	t.Parallel()
	o := Options{Classifier: shipped(t)}
	for name, raw := range hostile() {
		r := Parse(raw, o)
		checkReport(t, r)
		if len(raw) > maxLook && !r.Truncated {
			t.Errorf("%s: not marked as truncated", name)
		}
	}
}

func BenchmarkHostile(b *testing.B) {
	o := Options{Classifier: shipped(b)}
	for name, raw := range hostile() {
		b.Run(strings.ReplaceAll(name, " ", "_"), func(b *testing.B) {
			b.ReportAllocs()
			done := cpuPerOp(b)
			for b.Loop() {
				Parse(raw, o)
			}
			done()
		})
	}
}

func FuzzParse(f *testing.F) {
	for name, raw := range allMail(f) {
		if len(raw) < 9000 && len(name)%3 == 0 {
			f.Add(raw)
		}
	}
	for i, x := range readFixtures(f, "*/*.txtar") {
		if len(x.raw) < 3000 && i%7 == 0 {
			f.Add(x.raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := Parse(raw, Options{Classifier: shipped(t)})
		checkReport(t, r)
		r.Tokens()
	})
}
