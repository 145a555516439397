package bounce

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

// invented is one line of testdata/more/expected.jsonl: mail written after the
// formats of servers that the published corpus does not show, or shows once.
type invented struct {
	File         string `json:"file"`
	Kind         string `json:"kind"`
	FeedbackType string `json:"feedback_type"`
	Recipients   []struct {
		Address  string `json:"address"`
		Category string `json:"category"` // "" leaves it open
		Hard     *bool  `json:"hard"`     // null leaves it open
	} `json:"recipients"`
}

func TestInventedMailOfManyServers(t *testing.T) {
	t.Parallel()
	c := shipped(t)
	f, err := os.Open("testdata/more/expected.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var want invented
		if err := json.Unmarshal(s.Bytes(), &want); err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(want.File, ".eml"), func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(filepath.Join("testdata/more", want.File))
			if err != nil {
				t.Fatal(err)
			}
			checkInvented(t, Parse(raw, Options{Classifier: c}), want)
		})
	}
}

func checkInvented(t *testing.T, r *Report, want invented) {
	t.Helper()
	if got := r.Kind.String(); got != want.Kind {
		t.Errorf("kind %s, want %s: %s", got, want.Kind, r.JSON(""))
	}
	if want.FeedbackType != "" && r.FeedbackType != want.FeedbackType {
		t.Errorf("feedback type %q, want %q", r.FeedbackType, want.FeedbackType)
	}
	if len(r.Recipients) != len(want.Recipients) {
		t.Errorf("%d recipients, want %d: %s", len(r.Recipients), len(want.Recipients), r.JSON(""))
	}
	for _, w := range want.Recipients {
		i := slices.IndexFunc(r.Recipients, func(got Recipient) bool { return got.Address == w.Address })
		if i < 0 {
			t.Errorf("recipient %s not found: %s", w.Address, r.JSON(""))
			continue
		}
		got := r.Recipients[i]
		if w.Category != "" && got.Category.String() != w.Category {
			t.Errorf("%s: category %s by rule %q, want %s: %q", w.Address, got.Category, got.Rule, w.Category, got.Diagnostic)
		}
		gone := got.Permanent && (got.Category == message.BadMailbox || got.Category == message.BadDomain)
		if w.Hard != nil && gone != *w.Hard {
			t.Errorf("%s: held for gone %v, want %v: %s %s rule %q: %q", w.Address, gone, *w.Hard, got.Category, got.Status, got.Rule, got.Diagnostic)
		}
		if w.Hard != nil && !*w.Hard && got.Suppress {
			t.Errorf("%s: falsely suppressed by rule %q", w.Address, got.Rule)
		}
	}
}
