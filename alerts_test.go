package tradewind_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The rule file keeps to the few lines of YAML that this test understands, so
// that it can be held against the metrics without a YAML library. Expressions
// are for Prometheus to parse: promtool check rules docs/alerts.yml.
func TestAlertsWatchMetricsThereAreAndAreExplained(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("docs/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(tradewind_[a-z_]+)` \\| ([^|]*) \\|").FindAllStringSubmatch(pages(t)["docs/METRICS.md"], -1) {
		labels[m[1]] = strings.Split(strings.ReplaceAll(m[2], "`", ""), ", ")
	}
	operations := pages(t)["docs/OPERATIONS.md"]
	text := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(data), "")
	head, list, found := strings.Cut(text, "    rules:\n")
	if !found || head != "groups:\n  - name: tradewind\n" {
		t.Fatalf("the file begins with %q", head)
	}
	rule := regexp.MustCompile(`^      - alert: ([A-Za-z]+)\n        expr: (.+)\n(?:        for: [0-9]+[mh]\n)?        labels: \{severity: (?:page|ticket)\}\n`)
	n := 0
	for ; list != ""; n++ {
		m := rule.FindStringSubmatch(list)
		if m == nil {
			t.Fatalf("not a rule as this file has them:\n%s", list[:min(len(list), 200)])
		}
		list = list[len(m[0]):]
		name, expr := m[1], m[2]
		if !strings.Contains(operations, "\n| "+name+" | ") {
			t.Errorf("%s: docs/OPERATIONS.md does not say what to do", name)
		}
		if strings.Count(expr, "(") != strings.Count(expr, ")") || strings.ContainsAny(expr, "#") || strings.Contains(expr, ": ") {
			t.Errorf("%s: %s would not be read as it stands", name, expr)
		}
		selectors := regexp.MustCompile(`(tradewind_[a-z_]+)(?:\{([^}]*)\})?`).FindAllStringSubmatch(expr, -1)
		if len(selectors) == 0 {
			t.Errorf("%s watches nothing", name)
		}
		for _, s := range selectors {
			has, known := labels[s[1]]
			if !known {
				t.Errorf("%s: there is no metric %s", name, s[1])
			}
			for _, l := range regexp.MustCompile(`([a-z]+)=~?"`).FindAllStringSubmatch(s[2], -1) {
				if !slices.Contains(has, l[1]) {
					t.Errorf("%s: %s has no label %s", name, s[1], l[1])
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d rules found", n)
	}
}
