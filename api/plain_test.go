package api

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

// oddities are what a text or a value may hold that is not plain, or nearly so.
var oddities = []string{
	"", "a", ".", "..", "\n", "\r", "\r\n", "\n.", "\r\n.\r\n", ".\n", "\r\r", "ü", "\u2028", "\ufffd", "\x00", "\x7f", " ", "\t", "=", "<&\">", "'",
	strings.Repeat("x", maxPlainLine-3), strings.Repeat("x", maxPlainLine-2), strings.Repeat("x", maxPlainLine-1), strings.Repeat("x", maxPlainLine),
	strings.Repeat("x", maxPlainLine+1), strings.Repeat("y", maxPlainLine/2), strings.Repeat("<", maxPlainLine/8), strings.Repeat("z", 999),
	strings.Repeat("two words and a dot.\n", 60), strings.Repeat("語", 300), "From ", "{{", "{{nothing}}", "\xc3", "\xa9",
}

// checkText renders one text in the short way and in the long one.
func checkText(t *testing.T, text string, v *values, f form) {
	t.Helper()
	tm, bad := parseTemplate("text", text, true)
	if bad != nil || strings.Contains(text, "\x00") || strings.ToValidUTF8(text, "") != text {
		return // compile refuses it
	}
	tm.canonical()
	tm.know()
	p := &piece{text: &tm, field: "text", form: f}
	const before = "Content-Type: text/plain\r\n"
	s := &skeleton{limit: 3000}
	got, clean, gotErr := s.text([]byte(before), p, v)
	want, wantErr := s.encoded([]byte(before), p, v)
	if (gotErr == nil) != (wantErr == nil) || gotErr != nil && *gotErr != *wantErr {
		t.Fatalf("%q with %v: error %v, want %v", text, v.own, gotErr, wantErr)
	}
	if gotErr != nil {
		return
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%q with %v:\ngot  %q\nwant %q", text, v.own, got, want)
	}
	plain := true
	for line := range strings.SplitAfterSeq(string(want[len(before):]), "\n") {
		plain = plain && (line == "" || strings.HasSuffix(line, "\r\n") && len(line) <= 1000 && line[0] != '.' && isASCII(line) && strings.Count(line, "\r") == 1 && !strings.Contains(line, "\x00"))
	}
	if clean && !plain {
		t.Fatalf("%q with %v is said to be plain ASCII: %q", text, v.own, want)
	}
	if sevenBit := bytes.HasPrefix(want[len(before):], []byte("Content-Transfer-Encoding: 7bit")); sevenBit && plain && !clean {
		t.Fatalf("%q with %v is plain and not known to be: %q", text, v.own, want)
	}
}

func TestTextIsWhatItWouldBeWithoutForeknowledge(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		var text strings.Builder
		v := &values{own: map[string]scalar{}, common: map[string]scalar{"c": "\n."}, email: "a@b.example", name: "B"}
		for range r.IntN(8) {
			if r.IntN(2) == 0 {
				text.WriteString(oddities[r.IntN(len(oddities))])
				continue
			}
			name := fmt.Sprintf("v%d", r.IntN(3))
			text.WriteString("{{" + name + "}}")
			v.own[name] = scalar(oddities[r.IntN(len(oddities))] + oddities[r.IntN(len(oddities))])
		}
		checkText(t, text.String(), v, form(r.IntN(2)))
	}
}

func FuzzText(f *testing.F) {
	for _, s := range oddities {
		f.Add("Dear {{a}},\n{{b}}{{a}}\n", s, "b")
		f.Add(s+"{{a}}"+s+"{{b}}"+s, ".", s)
	}
	f.Fuzz(func(t *testing.T, text, a, b string) {
		v := &values{own: map[string]scalar{"a": scalar(a), "b": scalar(b)}}
		checkText(t, text, v, asText)
		checkText(t, text, v, asHTML)
	})
}

// TestKnownMailIsWhatTheDoorWouldHaveFound renders whole messages and hands them to
// the door with and without what is known of them.
func TestKnownMailIsWhatTheDoorWouldHaveFound(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	usable := slices.DeleteFunc(slices.Clone(oddities), func(s string) bool {
		return strings.ContainsAny(s, "\x00") || strings.ToValidUTF8(s, "") != s || strings.Contains(s, "{{")
	})
	some := func() string { return usable[r.IntN(len(usable))] }
	known := 0
	for range 2000 {
		q := &messageRequest{From: &person{Email: "news@example.com"}, Subject: "Hello {{v}}", Text: "Dear {{v}},\n" + some() + "{{w}}" + some()}
		if r.IntN(2) == 0 {
			q.HTML = some() + "<p>{{w}}" + some()
		}
		if r.IntN(3) == 0 {
			q.Attach = []attachment{{Filename: "a.txt", Content: "Li4uLg0KLg0K"}, {Content: "AAAA", ContentID: "c"}}
		}
		if r.IntN(3) == 0 {
			q.Headers = map[string]string{".Dot": some(), "X-Other": "x {{v}}"}
		}
		q.Recipients = []recipient{{Email: "a@b.example", Values: map[string]scalar{"v": "Bob", "w": scalar(some())}}}
		var f faults
		s := compile(q, 1<<20, &f)
		if f.err() != nil {
			continue
		}
		to, err := message.ParseAddress("a@b.example")
		if err != nil {
			t.Fatal(err)
		}
		b, ascii, bad := s.render(nil, &q.Recipients[0], to)
		if bad != nil {
			continue
		}
		var got [2]*inject.Prepared
		for k := range got {
			door, err := inject.New(inject.Config{Hostname: "mx.example.com"}, &memory{}, inject.Deps{IDs: &message.IDSource{}, Now: func() time.Time { return noon }})
			if err != nil {
				t.Fatal(err)
			}
			env := inject.Envelope{Door: inject.DoorHTTP, From: to, Recipients: []message.Recipient{{Address: to}}, ASCII: ascii && k == 0}
			if got[k], err = door.Prepare(context.Background(), env, b); err != nil {
				t.Fatalf("%q: %v", b, err)
			}
		}
		if !ascii {
			continue
		}
		known++
		a, z := got[0].Submissions[0], got[1].Submissions[0]
		strip := func(s *message.Submission) string { // the id stands in Received and Message-ID
			return strings.ReplaceAll(string(s.Body), s.Message.ID.String(), "ID")
		}
		if strip(a) != strip(z) {
			t.Fatalf("got %q\nwant %q", a.Body, z.Body)
		}
		if a.Message.EightBit != z.Message.EightBit || a.Message.UTF8 != z.Message.UTF8 || a.Message.Size != z.Message.Size {
			t.Fatalf("got %+v\nwant %+v", a.Message, z.Message)
		}
		dot := bytes.HasPrefix(a.Body, []byte(".")) || bytes.Contains(a.Body, []byte("\n."))
		if a.Message.Plain == dot {
			t.Fatalf("plain is %v: %q", a.Message.Plain, a.Body)
		}
	}
	if known < 200 {
		t.Fatalf("only %d messages were plain", known)
	}
}
