package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/dkim"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// demoSite is one mailbox provider of the demonstration.
type demoSite struct {
	domain  string
	profile string
	deferPct,
	rejectPct int

	sink   *loadgen.Sink
	signed atomic.Int64
}

// demoTimeout ends a demonstration that does not come to an end by itself.
const demoTimeout = 2 * time.Minute

// demo runs an engine and a few providers in this process, sends personalised
// mail over SMTP and HTTP, and checks that every count adds up.
func demo(ctx context.Context, c *call) error {
	smtpCount := c.flags.Int("smtp", 2000, "`messages` to submit over SMTP")
	httpCount := c.flags.Int("http", 2000, "`recipients` to submit over HTTP")
	if err := c.parse(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "tradewind-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &demonstration{call: c, dir: dir, sites: []*demoSite{
		{domain: "quick.example", profile: "accept"},
		{domain: "greylist.example", profile: "accept", deferPct: 20},
		{domain: "picky.example", profile: "accept", deferPct: 5, rejectPct: 5},
		{domain: "far.example", profile: "accept"},
	}}
	return d.run(ctx, *smtpCount, *httpCount)
}

type demonstration struct {
	*call
	dir   string
	sites []*demoSite
	cfg   *configs.Config
	api   string
}

func (d *demonstration) run(ctx context.Context, smtpCount, httpCount int) error {
	stop, err := d.startSinks()
	if err != nil {
		return err
	}
	defer stop()
	if err := d.configure(); err != nil {
		return err
	}
	a, err := app.New(d.cfg, app.Options{Logger: slog.New(slog.NewTextHandler(d.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		return err
	}
	engine, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- a.Run(engine) }()
	defer func() {
		end()
		<-done
	}()
	d.api = "http://" + a.HTTPAddr("api").String()
	if err := d.suppress(ctx); err != nil {
		return err
	}
	start := time.Now()
	var wg sync.WaitGroup
	var smtpErr, httpErr error
	var smtpSent loadgen.Report
	wg.Go(func() {
		smtpSent, smtpErr = loadgen.Source{
			Target: a.SMTPAddr(0).String(), Connections: 10, Messages: smtpCount, Size: 10 << 10,
			From: "news@sender.example", To: "user%d@d%d.example", Domains: len(d.sites),
		}.Run(ctx)
	})
	wg.Go(func() { httpErr = d.submitHTTP(ctx, httpCount) })
	submitted := make(chan struct{})
	go func() {
		wg.Wait()
		close(submitted)
	}()
	count, err := d.watch(ctx, submitted, smtpCount+httpCount+demoSuppressed)
	took := time.Since(start)
	<-submitted
	if err := errors.Join(smtpErr, httpErr, err); err != nil {
		return err
	}
	return d.table(count, smtpSent, httpCount, took)
}

// startSinks gives every provider a listener.
func (d *demonstration) startSinks() (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, fn := range stops {
			fn()
		}
	}
	for _, s := range d.sites {
		cfg := loadgen.SinkConfig{
			Profile: s.profile, DeferPercent: s.deferPct, RejectPercent: s.rejectPct, KeepBody: true,
			OnMessage: func(r *loadgen.Received) {
				if r.Accepted && bytes.HasPrefix(r.Body, []byte("DKIM-Signature:")) {
					s.signed.Add(int64(len(r.To)))
				}
			},
		}
		if s.domain == "far.example" {
			cfg.Latency = 40 * time.Millisecond
		}
		if s.sink, err = loadgen.New(cfg); err != nil {
			stop()
			return nil, err
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			stop()
			return nil, err
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			s.sink.Serve(l)
		}()
		stops = append(stops, func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			s.sink.Shutdown(ctx)
			<-served
		})
		s.domain = l.Addr().String() + " " + s.domain // where, for configure
	}
	return stop, nil
}

// configure writes the configuration the demonstration runs by.
func (d *demonstration) configure() error {
	key, _, err := dkim.GenerateKey("rsa2048")
	if err != nil {
		return err
	}
	keyFile := filepath.Join(d.dir, "sender.example.pem")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return err
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "hostname = \"mta.demo.example\"\ndata_dir = %q\n", filepath.Join(d.dir, "data"))
	fmt.Fprintf(&text, "[[smtp]]\nlisten = \"127.0.0.1:0\"\nrelay_from = [\"127.0.0.0/8\"]\n")
	fmt.Fprintf(&text, "[http]\napi = \"127.0.0.1:0\"\ntrust_loopback = true\n")
	fmt.Fprintf(&text, "[queue]\nretry = [\"1s\", \"2s\"]\njitter = 0.0\n")
	fmt.Fprintf(&text, "[[dkim]]\ndomain = \"sender.example\"\nselector = \"demo\"\nkey_file = %q\n", keyFile)
	for i, s := range d.sites {
		var addr string
		fmt.Sscanf(s.domain, "%s %s", &addr, &s.domain)
		// The load source numbers its domains.
		fmt.Fprintf(&text, "[[route]]\ndomains = [\"d%d.example\", %q]\nnext_hops = [%q]\ntls = \"off\"\n", i, s.domain, addr)
	}
	d.cfg, err = configs.Parse("demo", text.Bytes())
	return err
}

// demoSuppressed is how many recipients are suppressed before the start.
const demoSuppressed = 25

func (d *demonstration) suppress(ctx context.Context) error {
	list := make([]map[string]string, demoSuppressed)
	for i := range list {
		list[i] = map[string]string{"email": fmt.Sprintf("gone%d@quick.example", i), "reason": "manual"}
	}
	return d.post(ctx, "/v1/suppressions", map[string]any{"suppressions": list})
}

// submitHTTP sends personalised mail in requests of 500 recipients, and one to
// those who are suppressed.
func (d *demonstration) submitHTTP(ctx context.Context, n int) error {
	recipient := func(name, domain string) map[string]any {
		return map[string]any{"email": name + "@" + domain, "substitutions": map[string]string{"name": name}}
	}
	var batch []map[string]any
	send := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := d.post(ctx, "/v1/messages", map[string]any{
			"from": "Demo <news@sender.example>", "subject": "Hello {{name}}", "campaign": "demo",
			"text": "Dear {{name}},\nthis is for you alone.\n", "html": "<p>Dear <b>{{name}}</b>, this is for you alone.</p>",
			"recipients": batch,
		})
		batch = nil
		return err
	}
	for i := range n {
		batch = append(batch, recipient(fmt.Sprintf("person%d", i), d.sites[i%len(d.sites)].domain))
		if len(batch) == 500 {
			if err := send(); err != nil {
				return err
			}
		}
	}
	if err := send(); err != nil {
		return err
	}
	for i := range demoSuppressed {
		batch = append(batch, recipient(fmt.Sprintf("gone%d", i), "quick.example"))
	}
	return send()
}

func (d *demonstration) post(ctx context.Context, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	cl := client{}
	return cl.do(ctx, http.MethodPost, d.api+path, json.RawMessage(b), nil)
}

// demoCount is what the events say.
type demoCount struct {
	accepted, delivered, deferred, bounced, suppressed, other int
}

func (c *demoCount) final() int { return c.delivered + c.bounced + c.suppressed + c.other }

// watch follows the events until every recipient has a final one, showing how
// far things are.
func (d *demonstration) watch(ctx context.Context, submitted <-chan struct{}, want int) (count demoCount, err error) {
	cl := client{}
	cursor := ""
	shown := time.Time{}
	all := false
	for {
		select {
		case <-submitted:
			all = true
		default:
		}
		var out struct {
			Events []struct {
				Type     message.EventType
				Terminal bool
			}
			Next string
		}
		target := d.api + "/v1/events?limit=1000"
		if cursor != "" {
			target += "&after=" + cursor
		}
		if err := cl.do(ctx, http.MethodGet, target, nil, &out); err != nil {
			return count, err
		}
		cursor = out.Next
		for _, e := range out.Events {
			switch e.Type {
			case message.EventAccepted:
				count.accepted++
			case message.EventDelivered:
				count.delivered++
			case message.EventDeferred:
				count.deferred++
			case message.EventBounced:
				count.bounced++
			case message.EventSuppressed:
				count.suppressed++
			default:
				if e.Terminal {
					count.other++
				}
			}
		}
		done := all && count.final() >= want
		if time.Since(shown) > 200*time.Millisecond || done {
			shown = time.Now()
			fmt.Fprintf(d.stderr, "\raccepted %5d   delivered %5d   deferred %4d   bounced %4d   suppressed %3d ",
				count.accepted, count.delivered, count.deferred, count.bounced, count.suppressed)
		}
		if done {
			fmt.Fprintln(d.stderr)
			return count, nil
		}
		if len(out.Events) == 0 {
			select {
			case <-ctx.Done():
				fmt.Fprintln(d.stderr)
				return count, fmt.Errorf("not every message came to an end in time: %w", ctx.Err())
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// table prints what happened and fails unless it adds up.
func (d *demonstration) table(count demoCount, smtp loadgen.Report, httpCount int, took time.Duration) error {
	var received, signed int64
	for _, s := range d.sites {
		received += s.sink.Counts().Recipients
		signed += s.signed.Load()
	}
	want := int(smtp.Accepted) + httpCount + demoSuppressed
	fmt.Fprintf(d.stdout, "\n  %-34s %8d\n", "submitted over SMTP", smtp.Accepted)
	fmt.Fprintf(d.stdout, "  %-34s %8d\n", "submitted over HTTP, recipients", httpCount+demoSuppressed)
	for _, row := range []struct {
		name string
		n    int
	}{
		{"accepted", count.accepted}, {"delivered", count.delivered}, {"deferred (and tried again)", count.deferred},
		{"bounced", count.bounced}, {"suppressed", count.suppressed}, {"received by the providers", int(received)}, {"of them signed", int(signed)},
	} {
		fmt.Fprintf(d.stdout, "  %-34s %8d\n", row.name, row.n)
	}
	fmt.Fprintf(d.stdout, "  %-34s %8.0f\n\n", "messages a second, end to end", float64(count.delivered)/took.Seconds())
	switch {
	case count.accepted != want:
		return fmt.Errorf("accepted %d, want %d", count.accepted, want)
	case count.final() != want:
		return fmt.Errorf("%d recipients came to an end, want %d", count.final(), want)
	case count.suppressed != demoSuppressed:
		return fmt.Errorf("suppressed %d, want %d", count.suppressed, demoSuppressed)
	case int(received) != count.delivered:
		return fmt.Errorf("the providers received %d, the events say %d", received, count.delivered)
	case signed != received:
		return fmt.Errorf("%d of %d were signed", signed, received)
	}
	fmt.Fprintln(d.stdout, "  Every count adds up.")
	return nil
}
