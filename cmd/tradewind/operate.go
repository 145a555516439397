package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/throttle"
)

// selection is the flags of an operation on waiting mail.
type selection struct {
	cl   *client
	body map[string]*string
	yes  *bool
	json *bool
}

// selection adds the flags that say which mail is meant.
func (c *call) selection(more ...string) *selection {
	s := &selection{cl: c.client(), body: map[string]*string{}}
	for name, usage := range map[string]string{
		"domain": "mail for this recipient `domain`", "provider": "mail for this `provider` of the shaping rules",
		"tenant": "mail of this `tenant`", "campaign": "mail of this `campaign`",
		"source": "mail from this `source`", "reason": "`text` for the events",
	} {
		s.body[name] = c.flags.String(name, "", usage)
	}
	for i := 0; i < len(more); i += 2 {
		s.body[more[i]] = c.flags.String(more[i], "", more[i+1])
	}
	s.yes = c.flags.Bool("yes", false, "do it; without this, only show what it would be about")
	s.json = c.flags.Bool("json", false, "print JSON")
	return s
}

// request is the body of the request.
func (s *selection) request() map[string]string {
	out := map[string]string{}
	for k, v := range s.body {
		if *v != "" {
			out[k] = *v
		}
	}
	return out
}

// outcome is what the engine answers.
type outcome struct {
	Applied    bool           `json:"applied"`
	Recipients *queue.Tally   `json:"recipients"`
	Until      time.Time      `json:"until"`
	Selector   map[string]any `json:"selector"`
}

// mail names the mail that was meant.
func (o *outcome) mail() string {
	var list []string
	for _, field := range slices.Sorted(maps.Keys(o.Selector)) {
		list = append(list, fmt.Sprintf("%s %v", field, o.Selector[field]))
	}
	return strings.Join(list, ", ")
}

// send asks the engine and prints what came of it; what is the verb.
func (s *selection) send(ctx context.Context, c *call, method, path, what string) error {
	if len(c.args) > 0 {
		return usageError("it takes no arguments; say what is meant by flags")
	}
	target := s.cl.admin + path
	if *s.yes {
		target += "?apply=true"
	}
	var raw json.RawMessage
	if err := s.cl.do(ctx, method, target, s.request(), &raw); err != nil {
		return err
	}
	if *s.json {
		return printJSON(c.stdout, raw)
	}
	var out outcome
	if err := json.Unmarshal(raw, &out); err != nil {
		return err
	}
	verb := "would " + what
	if out.Applied {
		verb = "done: " + what
	}
	fmt.Fprintf(c.stdout, "%s mail of %s", verb, out.mail())
	if !out.Until.IsZero() {
		fmt.Fprintf(c.stdout, " until %s", out.Until.Format(time.RFC3339))
	}
	printTally(c.stdout, out.Recipients)
	if !out.Applied {
		fmt.Fprintln(c.stdout, "give --yes to do it")
	}
	return nil
}

func printTally(w io.Writer, t *queue.Tally) {
	if t == nil {
		fmt.Fprintln(w)
		return
	}
	fmt.Fprintf(w, ": %d recipients (%d ready in %d queues, %d waiting for their time)\n", t.Total(), t.Ready, t.Queues, t.Waiting)
}

func queueSuspend(ctx context.Context, c *call) error {
	s := c.selection("for", "how `long`, such as 2h; the default is until it is resumed", "until", "until this `time` (RFC 3339)")
	if err := c.parse(); err != nil {
		return err
	}
	return s.send(ctx, c, http.MethodPost, "/v1/suspensions", "suspend")
}

func queueResume(ctx context.Context, c *call) error {
	s := c.selection()
	if err := c.parse(); err != nil {
		return err
	}
	return s.send(ctx, c, http.MethodDelete, "/v1/suspensions", "resume")
}

func queueSuspensions(ctx context.Context, c *call) error {
	cl := c.client()
	asJSON := c.flags.Bool("json", false, "print JSON")
	if err := c.parse(); err != nil {
		return err
	}
	var raw json.RawMessage
	if err := cl.do(ctx, http.MethodGet, cl.admin+"/v1/suspensions", nil, &raw); err != nil {
		return err
	}
	if *asJSON {
		return printJSON(c.stdout, raw)
	}
	var out struct {
		Suspensions []throttle.Suspension `json:"suspensions"`
		Holds       []throttle.HoldState  `json:"holds"`
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return err
	}
	for _, s := range out.Suspensions {
		until := "until resumed"
		if !s.Until.IsZero() {
			until = "until " + s.Until.Format(time.RFC3339)
		}
		fmt.Fprintf(c.stdout, "suspended %s, %s, since %s (%s)\n", s.Selector, until, s.Since.Format(time.RFC3339), s.Reason)
	}
	for _, h := range out.Holds {
		printHold(c.stdout, h)
	}
	return nil
}

func printHold(w io.Writer, h throttle.HoldState) {
	fmt.Fprintf(w, "%s at %s%s: %s %s", h.State, h.Provider, h.Site, h.Scope, h.Key)
	if !h.Until.IsZero() {
		fmt.Fprintf(w, ", until %s", h.Until.Format(time.RFC3339))
	}
	if h.Connections > 0 {
		fmt.Fprintf(w, ", %d of %d connections", h.Connections, h.Max)
	}
	if pace := h.Pace(); pace != "" {
		fmt.Fprintf(w, ", %s", pace)
	}
	fmt.Fprintf(w, " (%s)\n  %s\n", h.Origin, h.Reply)
	if learned := h.Learned(); learned != "" {
		fmt.Fprintf(w, "  %s\n", learned)
	}
}

func queueBounce(ctx context.Context, c *call) error { return queueOperation(ctx, c, "bounce", false) }
func queueDelete(ctx context.Context, c *call) error { return queueOperation(ctx, c, "delete", false) }
func queueReroute(ctx context.Context, c *call) error {
	return queueOperation(ctx, c, "reroute", true)
}

// queueOperation changes what waits, and shows the progress.
func queueOperation(ctx context.Context, c *call, kind string, pool bool) error {
	s := c.selection("message", "recipients of the message with this `id`")
	if err := c.parse(); err != nil {
		return err
	}
	if pool {
		name, err := c.one("pool")
		if err != nil {
			return err
		}
		s.body["pool"], c.args = &name, nil
	}
	if !*s.yes {
		return s.send(ctx, c, http.MethodPost, "/v1/queues/"+kind, kind)
	}
	if len(c.args) > 0 {
		return usageError("it takes no arguments; say what is meant by flags")
	}
	return s.stream(ctx, c, "/v1/queues/"+kind+"?apply=true")
}

// stream prints the progress of an operation as it goes on.
func (s *selection) stream(ctx context.Context, c *call, path string) error {
	body, err := json.Marshal(s.request())
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.cl.admin+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if s.cl.key != "" {
		req.Header.Set("Authorization", "Bearer "+s.cl.key)
	}
	resp, err := s.cl.http.Do(req)
	if err != nil {
		return fmt.Errorf("is the engine running? %w", err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	if resp.StatusCode >= 300 {
		var p api.Problem
		if dec.Decode(&p) == nil && p.Code != "" {
			return fmt.Errorf("%s: %s %s", resp.Status, p.Code, p.Detail)
		}
		return errors.New(resp.Status)
	}
	for {
		var line struct {
			Done    int    `json:"done"`
			Applied bool   `json:"applied"`
			Error   string `json:"error,omitempty"`
		}
		if err := dec.Decode(&line); err != nil {
			return fmt.Errorf("the engine stopped telling its progress: %w", err)
		}
		switch {
		case line.Error != "":
			return fmt.Errorf("%d recipients done, then: %s", line.Done, line.Error)
		case line.Applied && *s.json:
			return printJSON(c.stdout, line)
		case line.Applied:
			fmt.Fprintf(c.stdout, "done: %d recipients\n", line.Done)
			return nil
		default:
			fmt.Fprintf(c.stderr, "%d recipients…\n", line.Done)
		}
	}
}

// explainAddress asks the engine where mail for an address goes.
func explainAddress(ctx context.Context, c *call) error {
	cl := c.client()
	pool := c.flags.String("pool", "", "as sent from this `pool`; the default is the default pool")
	file := c.offline()
	asJSON := c.flags.Bool("json", false, "print JSON")
	if err := c.parse(); err != nil {
		return err
	}
	addr, err := c.one("address")
	if err != nil {
		return err
	}
	if *file != "" {
		return withPlan(*file, func(p *app.Plan) error {
			d, err := p.Address(ctx, *pool, addr)
			switch {
			case err != nil:
				return err
			case *asJSON:
				return printJSON(c.stdout, d)
			}
			printDestination(c.stdout, &d)
			fmt.Fprintf(c.stdout, "\nby %s alone: what an engine has open, held, suspended or used up is not in it\n", *file)
			return nil
		})
	}
	q := url.Values{"address": {addr}}
	if *pool != "" {
		q.Set("pool", *pool)
	}
	var raw json.RawMessage
	if err := cl.do(ctx, http.MethodGet, cl.admin+"/v1/explain?"+q.Encode(), nil, &raw); err != nil {
		return orFile(err)
	}
	if *asJSON {
		return printJSON(c.stdout, raw)
	}
	var d mta.Destination
	if err := json.Unmarshal(raw, &d); err != nil {
		return err
	}
	printDestination(c.stdout, &d)
	return nil
}

func printDestination(w io.Writer, d *mta.Destination) {
	fmt.Fprintf(w, "domain:   %s\nsite:     %s\nprovider: %s\ntls:      %s\n", d.Domain, d.Site, d.Provider, d.TLS)
	if d.Failure != "" {
		fmt.Fprintf(w, "failure:  %s\n", d.Failure)
	}
	for _, h := range d.Hosts {
		fmt.Fprintf(w, "host:     %s %v\n", h.Name, h.Addrs)
	}
	for _, x := range d.Sources {
		fmt.Fprintf(w, "\nfrom source %s:\n", x.Source)
		for _, s := range x.Settings {
			fmt.Fprintf(w, "  %-26s %-16s %s", s.Key, s.Value, s.Origin)
			if s.Origin.Basis != "" {
				fmt.Fprintf(w, " (%s)", s.Origin.Basis)
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "  open now: %d to the site, %d from the source, %d at the provider\n", x.Open.Lane, x.Open.Source, x.Open.Provider)
		fmt.Fprintf(w, "  a connection now: %s\n  a message now:    %s\n", words(x.Connect), words(x.Send))
		if x.MaxRateBy != nil {
			fmt.Fprintf(w, "  at most %.4g messages/s, by %s\n", x.MaxRate, x.MaxRateBy)
		} else {
			fmt.Fprintln(w, "  no limit of the rate; connections and replies decide")
		}
		if d := x.Warmup; d != nil {
			fmt.Fprintf(w, "  warming up, day %d: %d recipients today, %d sent\n", d.Day, d.Volume, d.Sent)
		}
		for _, h := range x.Holds {
			fmt.Fprint(w, "  ")
			printHold(w, h)
		}
		for _, s := range x.Suspensions {
			fmt.Fprintf(w, "  suspended: %+v (%s)\n", s.Selector, s.Reason)
		}
	}
}

func words(a throttle.Answer) string {
	switch {
	case a.OK:
		return "yes"
	case a.At.IsZero():
		return fmt.Sprintf("not now: %s, until something changes %s", a.Limit, a.Rule)
	}
	return fmt.Sprintf("at %s: %s %s", a.At.Format(time.RFC3339), a.Limit, a.Rule)
}

// warmupPlan shows the coming days of warm-ups.
func warmupPlan(ctx context.Context, c *call) error {
	cl := c.client()
	days := c.flags.Int("days", 14, "how many `days` to show")
	file := c.offline()
	asJSON := c.flags.Bool("json", false, "print JSON")
	if err := c.parse(); err != nil {
		return err
	}
	if *days < 1 {
		return usageError("--days has to be at least 1")
	}
	if *file != "" {
		return withPlan(*file, func(p *app.Plan) error {
			plans := p.Warmups()
			if *asJSON {
				return printJSON(c.stdout, plans)
			}
			printWarmups(c.stdout, plans, *days)
			fmt.Fprintf(c.stdout, "by %s alone: what an engine has sent already is not in it\n", *file)
			return nil
		})
	}
	var out struct {
		Plans []throttle.WarmupPlan `json:"plans"`
	}
	if err := cl.do(ctx, http.MethodGet, cl.admin+"/v1/warmup", nil, &out); err != nil {
		return orFile(err)
	}
	if *asJSON {
		return printJSON(c.stdout, out.Plans)
	}
	printWarmups(c.stdout, out.Plans, *days)
	return nil
}

// offline adds the flag for an answer without an engine.
func (c *call) offline() *string {
	return c.flags.String("c", "", "ask this configuration `file` instead of an engine")
}

// orFile says what else there is when no engine could be asked.
func orFile(err error) error {
	if _, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("%w; -c FILE asks a configuration instead", err)
	}
	return err
}

// withPlan asks a configuration what an engine would do.
func withPlan(file string, ask func(*app.Plan) error) error {
	cfg, err := configs.Load(file)
	if err != nil {
		return err
	}
	p, err := app.NewPlan(cfg, app.Options{})
	if err != nil {
		return err
	}
	defer p.Close()
	return ask(p)
}

func printWarmups(w io.Writer, plans []throttle.WarmupPlan, days int) {
	if len(plans) == 0 {
		fmt.Fprintln(w, "nothing is warming up: no source has a warmup in the shaping rules")
	}
	for _, p := range plans {
		where := p.Provider + " " + p.Site
		if p.Provider == "" {
			where = "any provider it has not sent to yet"
		}
		fmt.Fprintf(w, "%s at %s (schedule %s)\n", p.Source, where, p.Schedule)
		if len(p.Days) == 0 {
			fmt.Fprintln(w, "  warm: nothing limits it any more")
		}
		for _, d := range p.Days[:min(len(p.Days), days)] {
			fmt.Fprintf(w, "  %s  day %3d  %10d recipients", d.Date.Format(time.DateOnly), d.Day, d.Volume)
			if d.Sent > 0 {
				fmt.Fprintf(w, "  (%d sent)", d.Sent)
			}
			fmt.Fprintln(w)
		}
	}
}
