package tradewind_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/dkim"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/suppression"
	"github.com/tradewind-mta/tradewind/throttle"
)

var write = flag.Bool("write", false, "write the tables of docs/METRICS.md")

const (
	metricsBegin = "<!-- metrics: written by go test . -run MetricsPage -write -->\n"
	metricsEnd   = "<!-- end of metrics -->\n"
)

// engine runs an engine in memory, by configuration text, for one test.
func engine(t *testing.T, text string) *app.App {
	t.Helper()
	cfg, err := configs.Parse("test.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	a, err := app.New(cfg, app.Options{FS: vfs.NewMem(), Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return a
}

// keyFile writes a signing key.
func keyFile(t *testing.T) string {
	t.Helper()
	pem, _, err := dkim.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	name := t.TempDir() + "/key.pem"
	if err := os.WriteFile(name, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// metric is one family as its descriptions have it.
type metric struct {
	name, help string
	labels     []string
}

var description = regexp.MustCompile(`^Desc\{fqName: "([a-z_]+)", help: "(.*?)"(?:, unit: "[^"]*")?, constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// metrics asks a registry for everything it may ever show, whether or not it
// has been counted yet.
func metrics(t *testing.T, reg *prometheus.Registry) (list []metric) {
	t.Helper()
	descs := make(chan *prometheus.Desc, 1000)
	reg.Describe(descs)
	close(descs)
	for d := range descs {
		m := description.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("%s: not understood", d)
		}
		one := metric{name: m[1], help: strings.ReplaceAll(m[2], `\"`, `"`)}
		for _, l := range strings.Split(m[3]+","+m[4], ",") {
			if l, _, _ = strings.Cut(l, "="); l != "" {
				one.labels = append(one.labels, l)
			}
		}
		slices.Sort(one.labels)
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b metric) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(list, func(a, b metric) bool { return a.name == b.name })
}

func TestMetricsPageListsEveryMetric(t *testing.T) {
	t.Parallel()
	a := engine(t, fmt.Sprintf(`
hostname = "mta.example"
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.0/8"]
[http]
api = "127.0.0.1:0"
admin = "127.0.0.1:0"
[[dkim]]
domain = "example.com"
selector = "s"
key_file = %q
[bounce]
domain = "bounces.mta.example"
`, keyFile(t)))
	list := metrics(t, a.Metrics())
	if len(list) < 40 {
		t.Fatalf("only %d metrics found", len(list))
	}
	var b strings.Builder
	b.WriteString("\n| metric | labels | |\n|---|---|---|\n")
	for _, m := range list {
		if !strings.HasPrefix(m.name, "tradewind_") {
			t.Errorf("%s: the prefix is missing", m.name)
		}
		labels := ""
		if len(m.labels) > 0 {
			labels = "`" + strings.Join(m.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", m.name, labels, m.help)
	}
	b.WriteString("\n")

	const file = "docs/METRICS.md"
	text := pages(t)[file]
	head, rest, begins := strings.Cut(text, metricsBegin)
	got, tail, ends := strings.Cut(rest, metricsEnd)
	if !begins || !ends {
		t.Fatalf("%s: the comments around the metrics are gone", file)
	}
	if *write {
		if err := os.WriteFile(file, []byte(head+metricsBegin+b.String()+metricsEnd+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if d := cmp.Diff(b.String(), got); d != "" {
		t.Errorf("%s is not what the engine registers; run go test . -run MetricsPage -write (-engine +page):\n%s", file, d)
	}

	// What is named elsewhere must be there as well, and every label explained.
	known := map[string]bool{}
	for _, m := range list {
		known[m.name] = true
		for _, l := range m.labels {
			if !strings.Contains(tail, "\n| `"+l+"`") {
				t.Errorf("%s: label %s is not explained", m.name, l)
			}
		}
	}
	for page, text := range pages(t) {
		for _, name := range regexp.MustCompile(`\btradewind_[a-z_]+\b`).FindAllString(text, -1) {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				name = strings.TrimSuffix(name, suffix)
			}
			if !known[name] {
				t.Errorf("%s names %s, which no engine has", page, name)
			}
		}
	}
}

// names lists the values of an enumeration that begins behind its zero.
func names[T ~uint8](str func(T) string) string {
	var list []string
	for v := T(1); ; v++ {
		s := str(v)
		if strings.Contains(s, "(") {
			return "`" + strings.Join(list, "`, `") + "`"
		}
		list = append(list, s)
	}
}

func TestMetricsPageListsTheValuesOfLabels(t *testing.T) {
	t.Parallel()
	text := pages(t)["docs/METRICS.md"]
	for label, want := range map[string]string{
		"`category`":               names(message.Category.String),
		"`limit`":                  names(throttle.Limit.String),
		"`state` of holds":         names(throttle.State.String),
		"`stage`":                  names(message.Stage.String),
		"`reason` of suppressions": names(suppression.Reason.String),
	} {
		if row := "\n| " + label + " | " + want + " |\n"; !strings.Contains(text, row) {
			t.Errorf("docs/METRICS.md should have the row%s", row)
		}
	}
}
