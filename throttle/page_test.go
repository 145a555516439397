package throttle

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestShapingPageIsTrue loads what docs/SHAPING.md shows, over what is shipped,
// and looks for every word of the language there.
func TestShapingPageIsTrue(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/SHAPING.md")
	if err != nil {
		t.Fatal(err)
	}
	shippedFile, err := os.ReadFile("../configs/shaping.toml")
	if err != nil {
		t.Fatal(err)
	}
	var doc strings.Builder
	for _, m := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		if !strings.HasPrefix(m[1], "# tradewind.toml") {
			doc.WriteString(m[1])
		}
	}
	r, problems := Load(File{Name: "shaping.toml", Data: shippedFile}, File{Name: "page", Data: []byte(doc.String())})
	for _, p := range append(problems, r.Check()...) {
		t.Errorf("%v\n%s", p, doc.String())
	}
	if len(r.brakes) != 3 || r.byName["acme"] == nil || len(r.byName["acme"].rules) != 2 {
		t.Error("the page does not show three brakes and a provider with two rules")
	}
	var words []string
	for _, k := range keyTable {
		words = append(words, k.name)
	}
	words = append(append(append(words, scopeNames[1:]...), verbNames[:]...), brakeActions...)
	words = append(append(words, brakeKeys...), ruleKeys...)
	for _, w := range words {
		if !regexp.MustCompile(`\b` + w + `\b`).Match(page) {
			t.Errorf("the page says nothing of %q", w)
		}
	}
}
