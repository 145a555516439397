package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// report gathers what is measured and writes it down.
type report struct {
	*options
	machine       machine
	postfixMain   string
	postfixMaster string
	cells         []cell
	Samples       []*sample
	Findings      []finding
	Stages        []share
	Profiles      map[string]string // what pprof prints, by kind
	Notes         []string
	skipped       map[string][]string // cell -> "relay: why"
	waiting       int                 // recipients in the backlog, if it was made here
	order         []string            // of the relays
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
	progress(format, args...)
}

// matrix runs every cell on every relay that can, round by round.
func (r *report) matrix(ctx context.Context, relays []relay) error {
	r.skipped = map[string][]string{}
	if r.backlog == "" && r.wants("backlog") {
		var err error
		if r.backlog, r.waiting, err = r.fillBacklog(ctx); err != nil {
			return fmt.Errorf("backlog: %w", err)
		}
	}
	for _, x := range relays {
		r.order = append(r.order, x.label())
		if t, ok := x.(*tradewind); ok {
			t.backlog = r.backlog
		}
	}
	for _, c := range matrix() {
		if !r.wants(c.name) || (r.quick && !c.quick) {
			continue
		}
		if c.backlog && r.waiting > 0 {
			c.what = fmt.Sprintf("10 KiB beside %d waiting for next week", r.waiting)
		}
		r.cells = append(r.cells, c)
		for round := range r.rounds {
			for i := range relays {
				x := relays[(i+round)%len(relays)] // nobody is always first
				why := x.can(&c)
				if why == "" && r.short && x.slow() && len(r.cells) > 1 {
					why = "the short run is to be short"
				}
				if why != "" {
					if round == 0 {
						r.skipped[c.name] = append(r.skipped[c.name], x.label()+": "+why)
					}
					continue
				}
				s, err := measure(ctx, x, &c, round, c.count(x, r.scale), 0)
				if err != nil {
					return err
				}
				progress("%-14s %-14s round %d: %6.0f msg/s, %5.0f µs of CPU a message", c.name, s.Relay, round+1, s.rate(), s.cpu())
				r.Samples = append(r.Samples, s)
			}
		}
	}
	return nil
}

func (r *report) of(cell, relay string) (list []*sample) {
	for _, s := range r.Samples {
		if s.Cell == cell && s.Relay == relay {
			list = append(list, s)
		}
	}
	return list
}

// peak is Tradewind's best rate in a cell; 0 when it was not measured.
func (r *report) peak(cell string) (best float64) {
	for _, s := range r.of(cell, nameTradewind) {
		best = max(best, s.rate())
	}
	return best
}

// spread is the median of some figures, with the least and the most.
type spread struct{ median, least, most float64 }

func spreadOf(list []float64) spread {
	if len(list) == 0 {
		return spread{}
	}
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return spread{(list[(n-1)/2] + list[n/2]) / 2, list[0], list[n-1]}
}

func (s spread) text(digits int) string {
	if s.least == s.most {
		return fmt.Sprintf("%.*f", digits, s.median)
	}
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, s.median, digits, s.least, digits, s.most)
}

func collect(list []*sample, f func(*sample) float64) spread {
	var v []float64
	for _, s := range list {
		v = append(v, f(s))
	}
	return spreadOf(v)
}

// ratio compares two relays round by round.
func (r *report) ratio(cell, a, b string, f func(*sample) float64) spread {
	var v []float64
	for _, x := range r.of(cell, a) {
		for _, y := range r.of(cell, b) {
			if x.Round == y.Round && f(y) > 0 {
				v = append(v, f(x)/f(y))
			}
		}
	}
	return spreadOf(v)
}

func ms(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", seconds*1000)
	case d < 10*time.Second:
		return fmt.Sprintf("%.0f ms", seconds*1000)
	}
	return fmt.Sprintf("%.1f s", seconds)
}

// markdown is the report as it goes into a page; plots lie in dir beside it.
func (r *report) markdown(dir string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	m := &r.machine
	p("Written by `make bench` on %s.\n\n", m.Date.Format("2006-01-02 15:04 UTC"))
	p("| | |\n|---|---|\n")
	for _, row := range [][2]string{
		{"machine", fmt.Sprintf("%s, %d cores, %s of memory; source and sink run on the same cores", m.CPU, m.Cores, m.Memory)},
		{"kernel, file system", m.Kernel + ", " + m.FileSystem},
		{"fsync after 10 KiB", fmt.Sprintf("median %s, 99th percentile %s", ms(m.FsyncP50.Seconds()), ms(m.FsyncP99.Seconds()))},
		{"versions", m.Tradewind + "; Postfix " + orNone(m.Postfix) + "; " + m.OpenSSL},
		{"`openssl speed rsa2048`", fmt.Sprintf("%d µs of CPU a signature", m.RSA.Microseconds())},
		{"load average", m.LoadBefore + " before, " + m.LoadAfter + " after: a quiet machine shows at most the benchmark's own processes"},
		{"rounds", fmt.Sprint(r.rounds)},
	} {
		p("| %s | %s |\n", row[0], row[1])
	}
	p("\nEvery message acknowledged was delivered exactly once, in every run. CPU is user and system time of the relay's processes alone. Figures are the median of the rounds (least–most).\n\n")
	p("| | relay | messages/s | CPU a message, µs | memory, MiB | written a message, KiB | accept p50 / p99 / p99.9 | delivered p50 / p99 / p99.9 |\n|---|---|---|---|---|---|---|---|\n")
	for _, c := range r.cells {
		for _, name := range r.order {
			list := r.of(c.name, name)
			if len(list) == 0 {
				continue
			}
			q := func(f func(*sample) quantiles) string {
				get := func(g func(quantiles) float64) string {
					return ms(collect(list, func(s *sample) float64 { return g(f(s)) }).median)
				}
				if f(list[0]) == (quantiles{}) {
					return "–"
				}
				return get(func(x quantiles) float64 { return x.P50 }) + " / " + get(func(x quantiles) float64 { return x.P99 }) + " / " + get(func(x quantiles) float64 { return x.P999 })
			}
			p("| %s | %s | %s | %s | %s | %s | %s | %s |\n", c.what, name,
				collect(list, (*sample).rate).text(0), collect(list, (*sample).cpu).text(0),
				collect(list, func(s *sample) float64 { return float64(s.Memory) / (1 << 20) }).text(0),
				collect(list, func(s *sample) float64 { return s.written() / 1024 }).text(1),
				q(func(s *sample) quantiles { return s.Accept }), q(func(s *sample) quantiles { return s.Arrive }))
		}
	}
	r.ratios(p)
	if len(r.Findings) > 0 {
		p("\n| | measured |\n|---|---|\n")
		for _, f := range r.Findings {
			p("| %s | %s |\n", f.What, f.Result)
		}
	}
	b.WriteString(r.stagesTable())
	for _, plot := range r.plots() {
		p("\n![%s](%s)\n", plot.title, filepath.ToSlash(filepath.Join(dir, plot.name)))
	}
	if len(r.skipped)+len(r.Notes) > 0 {
		p("\nNot measured:\n\n")
		for _, n := range r.Notes {
			p("- %s\n", n)
		}
		for _, c := range r.cells {
			for _, why := range r.skipped[c.name] {
				p("- %s, %s.\n", c.what, why)
			}
		}
	}
	if r.postfixMain != "" {
		p("\nPostfix's settings (`{dir}` is a directory of its own):\n\n```\n%s```\n", strings.ReplaceAll(r.postfixMain, filepath.Join(r.work, "postfix"), "{dir}"))
	}
	p("\nTradewind's settings, beside the defaults: `queue.retry = [\"2s\"]`, `delivery.lane_connections = 2000`, one route to the sink without TLS.\n")
	return b.String()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func (r *report) ratios(p func(string, ...any)) {
	var rows []string
	for _, c := range r.cells {
		for _, other := range r.order[1:] {
			if v := r.ratio(c.name, other, nameTradewind, (*sample).cpu); v.median > 0 {
				rows = append(rows, fmt.Sprintf("| %s | CPU of %s / CPU of Tradewind | %s |\n", c.what, other, v.text(2)))
			}
		}
	}
	beside, empty := collect(r.of("backlog", nameTradewind), (*sample).rate), collect(r.of("10k", nameTradewind), (*sample).rate)
	if beside.median > 0 && empty.median > 0 {
		rows = append(rows, fmt.Sprintf("| 10 KiB | messages/s beside the backlog / with an empty queue | %.2f |\n", beside.median/empty.median))
	}
	for _, pair := range [][3]string{{"10k-rsa", "10k", "10 KiB"}, {"1k-rsa", "1k", "1 KiB"}, {"100k-rsa", "100k", "100 KiB"}, {"10k-ed25519", "10k", "10 KiB"}} {
		signed, plain := collect(r.of(pair[0], nameTradewind), (*sample).cpu), collect(r.of(pair[1], nameTradewind), (*sample).cpu)
		if signed.median == 0 || plain.median == 0 {
			continue
		}
		extra := signed.median - plain.median
		if strings.HasSuffix(pair[0], "ed25519") {
			rows = append(rows, fmt.Sprintf("| %s | Ed25519: CPU more than unsigned | %.0f µs |\n", pair[2], extra))
		} else {
			rows = append(rows, fmt.Sprintf("| %s | RSA-2048: CPU more than unsigned, / `openssl speed` | %.0f µs, %.2f |\n", pair[2], extra, extra/float64(max(r.machine.RSA.Microseconds(), 1))))
		}
	}
	if len(rows) > 0 {
		p("\n| | ratio | |\n|---|---|---|\n%s", strings.Join(rows, ""))
	}
}

// write puts the report where the flags say, and on standard output.
func (r *report) write() error {
	fmt.Println(r.markdown("."))
	if r.out == "" {
		return nil
	}
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(map[string]any{"machine": r.machine, "samples": r.Samples, "findings": r.Findings, "stages": r.Stages}, "", " ")
	if err != nil {
		return err
	}
	files := map[string][]byte{"results.json": append(raw, '\n')}
	for _, plot := range r.plots() {
		files[plot.name] = plot.svg
	}
	for name, text := range r.Profiles {
		files["profile-"+name+".txt"] = []byte(text)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(r.out, name), data, 0o644); err != nil {
			return err
		}
	}
	if r.doc == "" {
		return os.WriteFile(filepath.Join(r.out, "report.md"), []byte(r.markdown(".")), 0o644)
	}
	page, err := os.ReadFile(r.doc)
	if err != nil {
		return err
	}
	dir, err := filepath.Rel(filepath.Dir(r.doc), r.out)
	if err != nil {
		return err
	}
	text, err := replaceRegion(string(page), r.markdown(dir))
	if err != nil {
		return fmt.Errorf("%s: %w", r.doc, err)
	}
	return os.WriteFile(r.doc, []byte(text), 0o644)
}

// The marks between which a page is rewritten.
const (
	regionStart = "<!-- bench: written by make bench -->\n"
	regionEnd   = "<!-- bench: end -->\n"
)

func replaceRegion(page, text string) (string, error) {
	head, rest, ok := strings.Cut(page, regionStart)
	_, tail, ok2 := strings.Cut(rest, regionEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("has no region between %q and %q", strings.TrimSpace(regionStart), strings.TrimSpace(regionEnd))
	}
	return head + regionStart + "\n" + text + "\n" + regionEnd + tail, nil
}
