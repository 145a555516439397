package message

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRepliesAreReadAsPeoplePasteThem(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Reply{
		"250":                                 {Code: 250},
		"250 OK":                              {Code: 250, Text: "OK"},
		"421 4.7.28 slow down":                {Code: 421, Enhanced: Enhanced{4, 7, 28}, Text: "slow down"},
		"550-5.1.1 no\r\n550 5.1.1 such user": {Code: 550, Enhanced: Enhanced{5, 1, 1}, Text: "no\nsuch user"},
		"550 5.1.1":                           {Code: 550, Enhanced: Enhanced{5, 1, 1}},
		"  451 4.3.0 later \n":                {Code: 451, Enhanced: Enhanced{4, 3, 0}, Text: "later"},
		"550 5.1 is no code":                  {Code: 550, Text: "5.1 is no code"},
		"550 9.1.1 nor this":                  {Code: 550, Text: "9.1.1 nor this"},
		"550 5.1.1234 nor this":               {Code: 550, Text: "5.1.1234 nor this"},
		"550 5.1.1x nor this":                 {Code: 550, Text: "5.1.1x nor this"},
	} {
		got, err := ParseReply(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if diff := cmp.Diff(want.Code, got.Code) + cmp.Diff(want.Enhanced, got.Enhanced) + cmp.Diff(want.Text, got.Text); diff != "" {
			t.Errorf("%q (-want +got):\n%s", in, diff)
		}
	}
	for _, bad := range []string{"", "x", "25", "199 x", "600 x", "2500", "250x", "abc def", "250 a\nb", "250-a\n25"} {
		if r, err := ParseReply(bad); err == nil {
			t.Errorf("%q: %+v", bad, r)
		}
	}
}

func TestOnlyFiveHundredsArePermanent(t *testing.T) {
	t.Parallel()
	for code, temporary := range map[int]bool{0: true, 250: true, 354: true, 421: true, 499: true, 500: false, 554: false, 599: false, 600: true, -1: true} {
		r := &Reply{Code: code}
		if r.Temporary() != temporary {
			t.Errorf("%d: temporary %v", code, r.Temporary())
		}
		if r.Positive() != (code >= 200 && code < 400) {
			t.Errorf("%d: positive %v", code, r.Positive())
		}
	}
}

func TestReplyTravelsAsAnError(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("mta: deliver: %w", &Reply{Code: 550, Enhanced: Enhanced{5, 1, 1}, Text: "no\r\nsuch\x1b[2J user", Stage: StageRcpt})
	var r *Reply
	if !errors.As(err, &r) {
		t.Fatal("lost on the way")
	}
	if got, want := r.Error(), "rcpt: 550 5.1.1 no  such [2J user"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := (&Reply{Text: "connection refused", Stage: StageConnect, Local: true}).Error(); got != "connect: connection refused" {
		t.Errorf("%q", got)
	}
}

func TestNamesComeBack(t *testing.T) {
	t.Parallel()
	for s := StageNone; s <= StageQuit; s++ {
		if ParseStage(s.String()) != s {
			t.Errorf("stage %d, %q", s, s)
		}
	}
	for c := BadConfiguration; c <= Canceled; c++ {
		if got, err := ParseCategory(c.String()); err != nil || got != c {
			t.Errorf("category %d, %q: %v %v", c, c, got, err)
		}
		if p, err := ParseCategory(c.PMTA()); err != nil || p > VirusRelated {
			t.Errorf("category %s has the foreign name %q", c, c.PMTA())
		}
	}
	for c := Bulk; c <= Security; c++ {
		if got, err := ParseClass(c.String()); err != nil || got != c {
			t.Errorf("class %d, %q: %v %v", c, c, got, err)
		}
	}
	for e := EventAccepted; e <= EventEgressResumed; e++ {
		var got EventType
		if b, _ := e.MarshalText(); got.UnmarshalText(b) != nil || got != e {
			t.Errorf("event %d, %q: %v", e, e, got)
		}
	}
	for _, bad := range []string{"", "x", "Bulk"} {
		if _, err := ParseClass(bad); err == nil {
			t.Errorf("class %q", bad)
		}
		if _, err := ParseCategory(bad); err == nil {
			t.Errorf("category %q", bad)
		}
		if _, err := ParseEventType(bad); err == nil {
			t.Errorf("event %q", bad)
		}
	}
	for _, far := range []string{Stage(200).String(), Category(200).String(), Class(200).String(), EventType(200).String(), Result(200).String()} {
		if far == "" {
			t.Error("a value out of range has no name")
		}
	}
}

func FuzzParseReply(f *testing.F) {
	for _, s := range []string{"250 OK", "550-5.1.1 no\r\n550 5.1.1 user", "421", "450 4.7.1 \xff\x00", "250-\n250 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReply(s)
		if err != nil {
			return
		}
		if r.Code < 200 || r.Code > 599 {
			t.Fatalf("%q: code %d", s, r.Code)
		}
		line := string(r.AppendText(nil))
		if strings.ContainsFunc(line, func(c rune) bool { return c < ' ' || c == 0x7F }) {
			t.Fatalf("%q prints as %q", s, line)
		}
		again, err := ParseReply(line)
		if err != nil || again.Code != r.Code {
			t.Fatalf("%q prints as %q, which reads as %+v, %v", s, line, again, err)
		}
		if r.Enhanced != (Enhanced{}) && again.Enhanced != r.Enhanced {
			t.Fatalf("%q: %v becomes %v", s, r.Enhanced, again.Enhanced)
		}
	})
}

func FuzzParseEnhanced(f *testing.F) {
	f.Add("5.1.1 no such user")
	f.Add("4.999.999")
	f.Fuzz(func(t *testing.T, s string) {
		e, rest, ok := ParseEnhanced(s)
		if !ok {
			if rest != s || e != (Enhanced{}) {
				t.Fatalf("%q: %v, %q", s, e, rest)
			}
			return
		}
		if again, _, ok := ParseEnhanced(e.String()); !ok || again != e {
			t.Fatalf("%q: %v comes back as %v", s, e, again)
		}
	})
}
