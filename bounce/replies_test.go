package bounce

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

// TestRepliesOfManyServers holds each reply of testdata/replies.txt to what it
// must come to. A reply that wrongly ends a subscription fails the test, and so
// does any other that is not read.
func TestRepliesOfManyServers(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/replies.txt")
	if err != nil {
		t.Fatal(err)
	}
	n, wrong, missed, held := 0, 0, 0, 0
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		n++
		category, rest, _ := strings.Cut(line, " ")
		fate, reply, _ := strings.Cut(rest, " ")
		r, _ := parseExample(reply)
		// As a bounce hands it over, and as the sending side does.
		w := readWords(reply)
		for source, v := range map[string]Verdict{"inline": shipped(t).Classify(r, ""), "bounce": shipped(t).Classify(w.reply(), "")} {
			gone := v.Permanent && (v.Category == message.BadMailbox || v.Category == message.BadDomain)
			switch {
			case fate == "gone" && !gone:
				missed++
				t.Errorf("%s: %q is not gone: %s by %q", source, reply, v.Category, v.Rule)
			case fate == "stays" && (gone || v.Suppress):
				held++
				t.Errorf("%s: %q is held for gone: %s by %q", source, reply, v.Category, v.Rule)
			case !slices.Contains(strings.Split(category, "|"), v.Category.String()):
				wrong++
				t.Errorf("%s: %q is %s by %q, want %s", source, reply, v.Category, v.Rule, category)
			}
		}
	}
	t.Logf("%d replies read in two ways: %d missed, %d wrongly gone, %d in another category", n, missed, held, wrong)
}
