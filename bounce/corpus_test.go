package bounce

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

// expected is one line of expected.jsonl.
type expected struct {
	File         string              `json:"file"`
	Kind         string              `json:"kind"`
	FeedbackType string              `json:"feedback_type"`
	Recipients   []expectedRecipient `json:"recipients"`
}

type expectedRecipient struct {
	Address string `json:"address"`
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Hard    bool   `json:"hard"`
}

func (e *expected) correct(fix correction) {
	if fix.kind != "" {
		e.Kind = fix.kind
	}
	if fix.recipient != "" {
		if len(e.Recipients) == 0 {
			e.Recipients = []expectedRecipient{{}}
		}
		e.Recipients[0].Address = fix.recipient
	}
	if fix.hard != "" {
		e.Recipients[0].Hard = fix.hard == "yes"
	}
}

func readExpected(t testing.TB, dir string) []expected {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "expected.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []expected
	for s := bufio.NewScanner(f); s.Scan(); {
		var e expected
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	if len(list) == 0 {
		t.Fatal("no expectations")
	}
	return list
}

// correction replaces a label that is plainly wrong.
type correction struct {
	why       string
	kind      string // instead of the label's, if not ""
	recipient string // instead of the label's, if not ""
	hard      string // "yes" or "no" instead of the label's, if not ""
}

var wrongLabels = map[string]correction{
	"arf-24.eml":                   {why: "the label's address is a placeholder; the report names the recipient in X-HmXmrOriginalRecipient", recipient: "kijitora@example.com"},
	"lhost-gmail-06.eml":           {why: `the report says "THIS IS A WARNING MESSAGE ONLY" and that it goes on trying`, kind: "delay"},
	"lhost-googleworkspace-01.eml": {why: "X-Failed-Recipients and the text name another address than the header returned", recipient: "neko-nyaan-cat-meeting@google-groups.example.com"},
	"lhost-opensmtpd-12.eml":       {why: "Action is delayed, status 4.0.0, and the text says the message stays in the queue", kind: "delay", hard: "no"},
	"lhost-x1-04.eml":              {why: `"Warning--Could not send mail for past 8.5 hours" is a delay warning`, kind: "delay", recipient: "kijitora-neko@neko.example.go.jp"},
	"lhost-x2-07.eml":              {why: "a delivery failure with address and remote reply", kind: "bounce", recipient: "kijitora@example.co.jp"},
	"rfc3464-37.eml":               {why: `"mail failed, returning to sender" with address and reason`, kind: "bounce", recipient: "kijitora@neko.nyaan.example.com", hard: "yes"},
}

// score is how Parse does on labelled mail.
type score struct {
	files, kind                  int
	recipients, found            int
	hard, recognised, suppressed int
	falseSuppressions            int
	confusion                    map[string]int
}

func measure(t *testing.T, dir string, wrong map[string]correction) score {
	t.Helper()
	c := shipped(t)
	s := score{confusion: map[string]int{}}
	for _, e := range readExpected(t, dir) {
		if fix, ok := wrong[e.File]; ok {
			e.correct(fix)
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.File))
		if err != nil {
			t.Fatal(err)
		}
		r := Parse(raw, Options{Classifier: c})
		s.files++
		s.confusion[e.Kind+" as "+r.Kind.String()]++
		if r.Kind.String() == e.Kind {
			s.kind++
		} else {
			t.Logf("%s: kind %s, want %s: %s", e.File, r.Kind, e.Kind, r.JSON(""))
		}
		if e.FeedbackType != "" && r.FeedbackType != e.FeedbackType {
			t.Logf("%s: feedback type %q, want %q", e.File, r.FeedbackType, e.FeedbackType)
		}
		for _, want := range e.Recipients {
			s.recipients++
			i := slices.IndexFunc(r.Recipients, func(got Recipient) bool { return strings.EqualFold(got.Address, want.Address) })
			if i < 0 {
				t.Logf("%s: recipient %q not found: %s", e.File, want.Address, r.JSON(""))
				if want.Hard {
					s.hard++
				}
				continue
			}
			s.found++
			got := r.Recipients[i]
			s.note(t, e.File, got, want.Hard, want.Reason)
			if want.Code != 0 && want.Code != got.Code {
				t.Logf("%s: code %d, want %d: %s", e.File, got.Code, want.Code, got.Diagnostic)
			}
		}
	}
	return s
}

func (s *score) note(t *testing.T, file string, got Recipient, hard bool, reason string) {
	t.Helper()
	gone := got.Permanent && (got.Category == message.BadMailbox || got.Category == message.BadDomain)
	if hard {
		s.hard++
		if gone {
			s.recognised++
		} else {
			t.Logf("%s: hard (%s) not recognised: %s %v %s rule %s: %q", file, reason, got.Category, got.Permanent, got.Status, got.Rule, got.Diagnostic)
		}
		if got.Suppress {
			s.suppressed++
		}
		return
	}
	if gone {
		t.Logf("%s: soft (%s) held for gone, suppress %v: %s rule %s: %q", file, reason, got.Suppress, got.Category, got.Rule, got.Diagnostic)
	}
	if got.Suppress {
		s.falseSuppressions++
	}
	if testing.Verbose() && os.Getenv("BOUNCE_ALL") != "" {
		t.Logf("%s: %s -> %s rule %s: %q", file, reason, got.Category, got.Rule, got.Diagnostic)
	}
}

func percent(n, of int) string {
	return fmt.Sprintf("%d of %d, %.1f %%", n, of, 100*float64(n)/float64(max(of, 1)))
}

func (s *score) print(t *testing.T) {
	t.Helper()
	t.Logf("kind right:       %s", percent(s.kind, s.files))
	t.Logf("recipient found:  %s", percent(s.found, s.recipients))
	t.Logf("hard recognised:  %s (suppressed at once: %d)", percent(s.recognised, s.hard), s.suppressed)
	t.Logf("false suppressed: %d", s.falseSuppressions)
	for _, k := range slices.Sorted(maps.Keys(s.confusion)) {
		t.Logf("  %-24s %d", k, s.confusion[k])
	}
}

func TestCorpusIsReadAsLabelled(t *testing.T) {
	t.Parallel()
	s := measure(t, "testdata/corpus", wrongLabels)
	s.print(t)
	if s.kind < 172 || s.files != 172 {
		t.Errorf("kind right: %d of %d, want 172 of 172", s.kind, s.files)
	}
	if s.found < 180 || s.recipients != 180 {
		t.Errorf("recipients found: %d of %d, want 180 of 180", s.found, s.recipients)
	}
	// One label calls "550 5.2.1 <filtered@example.jp>... User Unknown" hard,
	// three others call the same words a filter's.
	if s.recognised < 54 || s.hard != 55 {
		t.Errorf("hard recognised: %d of %d, want 54 of 55", s.recognised, s.hard)
	}
	if s.falseSuppressions > 0 {
		t.Errorf("%d false suppressions", s.falseSuppressions)
	}
}

// TestCorpusAsPublished measures against the labels as they are, so that the
// corrections above cannot hide a loss.
func TestCorpusAsPublished(t *testing.T) {
	t.Parallel()
	s := measure(t, "testdata/corpus", nil)
	s.print(t)
	if s.kind < 167 || s.found < 175 || s.recognised < 53 || s.falseSuppressions > 0 {
		t.Errorf("kind %d, found %d, recognised %d, falsely suppressed %d: want at least 167, 175, 53 and none", s.kind, s.found, s.recognised, s.falseSuppressions)
	}
}
