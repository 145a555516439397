package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/tradewind-mta/tradewind/mta"
)

// top shows what the engine does, anew every interval.
func top(ctx context.Context, c *call) error {
	cl := c.client()
	every := c.flags.Duration("every", time.Second, "`interval` between looks")
	frames := c.flags.Int("frames", 0, "stop after this `many`; 0 means never")
	rows := c.flags.Int("rows", 20, "the most destinations shown")
	asJSON := c.flags.Bool("json", false, "print a JSON object for each look")
	if err := c.parse(); err != nil {
		return err
	}
	if *every < 100*time.Millisecond {
		return usageError("--every must be at least 100ms")
	}
	tick := time.NewTicker(*every)
	defer tick.Stop()
	before, err := look(ctx, cl)
	if err != nil {
		return err
	}
	for n := 0; *frames == 0 || n < *frames; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := look(ctx, cl)
		if err != nil {
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
		f := newFrame(before, now, *rows)
		before = now
		switch {
		case *asJSON:
			err = json.NewEncoder(c.stdout).Encode(f)
		case *frames == 1:
			err = f.print(c.stdout)
		default:
			// Home, draw, and clear what an earlier, longer frame left.
			fmt.Fprint(c.stdout, "\x1b[H\x1b[2J")
			err = f.print(c.stdout)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sample is one look at an engine.
type sample struct {
	at      time.Time
	metrics map[string]*dto.MetricFamily
	sites   []mta.SiteStatus
}

func look(ctx context.Context, cl *client) (*sample, error) {
	s := &sample{at: time.Now()}
	var queues struct {
		Sites []mta.SiteStatus `json:"sites"`
	}
	if err := cl.do(ctx, "GET", cl.admin+"/v1/queues", nil, &queues); err != nil {
		return nil, err
	}
	s.sites = queues.Sites
	body, err := cl.open(ctx, cl.admin+"/metrics")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if s.metrics, err = parser.TextToMetricFamilies(io.LimitReader(body, 64<<20)); err != nil {
		return nil, fmt.Errorf("read the engine's metrics: %w", err)
	}
	return s, nil
}

// sum adds up the samples of a metric whose labels are as given.
func (s *sample) sum(name string, labels ...string) float64 {
	total := 0.0
	family := s.metrics[name]
	if family == nil {
		return 0
	}
samples:
	for _, m := range family.Metric {
		for i := 0; i < len(labels); i += 2 {
			if label(m, labels[i]) != labels[i+1] {
				continue samples
			}
		}
		total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return total
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.Label {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// frame is what one look shows.
type frame struct {
	Time         time.Time     `json:"time"`
	Waiting      float64       `json:"waiting"`
	InMemory     float64       `json:"in_memory"`
	Queues       float64       `json:"queues"`
	Accepted     float64       `json:"accepted_per_second"`
	Delivered    float64       `json:"delivered_per_second"`
	Deferred     float64       `json:"deferred_per_second"`
	Bounced      float64       `json:"bounced_per_second"`
	Sessions     float64       `json:"smtp_sessions"`
	FreeBytes    float64       `json:"free_bytes"`
	Healthy      bool          `json:"storage_healthy"`
	SinksStopped float64       `json:"sinks_stopped"`
	SinkLag      float64       `json:"sink_lag_seconds"`
	Providers    []providerRow `json:"providers,omitempty"`
	Sites        []siteRow     `json:"destinations,omitempty"`
	More         int           `json:"more_destinations,omitempty"`
}

type providerRow struct {
	Provider  string  `json:"provider"`
	Delivered float64 `json:"delivered_per_second"`
	Deferred  float64 `json:"deferred_per_second"`
	Bounced   float64 `json:"bounced_per_second"`
	Holds     float64 `json:"holds"`
}

type siteRow struct {
	Site        string    `json:"site"`
	Pool        string    `json:"pool"`
	Source      string    `json:"source"`
	Provider    string    `json:"provider"`
	Queues      int       `json:"queues"`
	Connections int       `json:"connections"`
	HeldUntil   time.Time `json:"held_until,omitzero"`
	HeldBy      string    `json:"held_by,omitempty"`
}

func newFrame(before, now *sample, rows int) *frame {
	seconds := now.at.Sub(before.at).Seconds()
	rate := func(name string, labels ...string) float64 {
		return max(0, now.sum(name, labels...)-before.sum(name, labels...)) / seconds
	}
	const outcomes = "tradewind_delivery_outcomes_total"
	f := &frame{
		Time: now.at, Waiting: now.sum("tradewind_queue_recipients"), InMemory: now.sum("tradewind_queue_window_recipients"),
		Queues: now.sum("tradewind_queue_active"), Accepted: rate("tradewind_inject_messages_total", "result", "accepted"),
		Delivered: rate(outcomes, "result", "delivered"), Deferred: rate(outcomes, "result", "deferred"),
		Bounced: rate(outcomes, "result", "bounced"), Sessions: now.sum("tradewind_inbound_sessions"),
		FreeBytes: now.sum("tradewind_store_free_bytes"), Healthy: now.sum("tradewind_store_healthy") == 1,
		SinksStopped: now.sum("tradewind_sinks_stopped"),
	}
	if lag := now.metrics["tradewind_sink_lag_seconds"]; lag != nil {
		for _, m := range lag.Metric {
			f.SinkLag = max(f.SinkLag, m.GetGauge().GetValue())
		}
	}
	names := map[string]bool{}
	for _, metric := range []string{outcomes, "tradewind_throttle_holds"} {
		if family := now.metrics[metric]; family != nil {
			for _, m := range family.Metric {
				names[label(m, "provider")] = true
			}
		}
	}
	for name := range names {
		f.Providers = append(f.Providers, providerRow{
			Provider: name, Delivered: rate(outcomes, "provider", name, "result", "delivered"),
			Deferred: rate(outcomes, "provider", name, "result", "deferred"),
			Bounced:  rate(outcomes, "provider", name, "result", "bounced"), Holds: now.sum("tradewind_throttle_holds", "provider", name),
		})
	}
	slices.SortFunc(f.Providers, func(a, b providerRow) int {
		return cmp.Or(cmp.Compare(b.Delivered+b.Deferred+b.Bounced, a.Delivered+a.Deferred+a.Bounced), strings.Compare(a.Provider, b.Provider))
	})
	for _, s := range now.sites {
		for _, l := range s.Lanes {
			f.Sites = append(f.Sites, siteRow{
				Site: s.Site, Pool: s.Pool, Source: l.Source, Provider: l.Provider, Queues: s.Queues,
				Connections: l.Runners, HeldUntil: l.Until, HeldBy: l.Why,
			})
		}
	}
	if n := len(f.Sites) - rows; n > 0 {
		f.Sites, f.More = f.Sites[:rows], n
	}
	return f
}

// print draws the frame for people.
func (f *frame) print(w io.Writer) error {
	health := "storage ok"
	if !f.Healthy {
		health = "STORAGE HAS FAILED"
	}
	fmt.Fprintf(w, "%s  %s, %s free  %.0f SMTP sessions", f.Time.Format(time.TimeOnly), health, bytesText(f.FreeBytes), f.Sessions)
	if f.SinksStopped > 0 {
		fmt.Fprintf(w, "  %.0f SINKS STOPPED", f.SinksStopped)
	}
	if f.SinkLag >= 5 {
		fmt.Fprintf(w, "  sinks lag %.0f s", f.SinkLag)
	}
	fmt.Fprintf(w, "\nwaiting %.0f (%.0f in memory, %.0f queues)  in %.0f/s  delivered %.0f/s  deferred %.0f/s  bounced %.0f/s\n\n",
		f.Waiting, f.InMemory, f.Queues, f.Accepted, f.Delivered, f.Deferred, f.Bounced)
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "PROVIDER\tDELIVERED/S\tDEFERRED/S\tBOUNCED/S\tHOLDS")
	for _, p := range f.Providers {
		fmt.Fprintf(tw, "%s\t%.1f\t%.1f\t%.1f\t%.0f\n", p.Provider, p.Delivered, p.Deferred, p.Bounced, p.Holds)
	}
	fmt.Fprintln(tw, "\nDESTINATION\tPOOL\tSOURCE\tQUEUES\tCONNECTIONS\tHELD")
	for _, s := range f.Sites {
		held := ""
		if s.HeldBy != "" {
			held = visible(s.HeldBy)
			if !s.HeldUntil.IsZero() {
				held += " until " + s.HeldUntil.Local().Format(time.TimeOnly)
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%s\n", s.Site, s.Pool, s.Source, s.Queues, s.Connections, held)
	}
	if f.More > 0 {
		fmt.Fprintf(tw, "and %d more\n", f.More)
	}
	return tw.Flush()
}

func bytesText(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 1024 {
			return fmt.Sprintf("%.0f %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.1f TiB", n)
}
