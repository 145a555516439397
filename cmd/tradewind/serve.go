package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/dkim"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// serve runs the MTA until a signal ends it.
func serve(ctx context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	withSink := c.flags.String("with-sink", "", "also run a sink on this `address`, to stand in for the Internet")
	hints := c.flags.Bool("hints", false, "print first commands to try")
	if err := c.parse(); err != nil {
		return err
	}
	cfg, err := loadConfig(*file)
	if err != nil {
		return err
	}
	log := newLogger(c.stderr, cfg)
	a, err := app.New(cfg, app.Options{Logger: log})
	if err != nil {
		return err
	}
	if *withSink != "" {
		stop, err := startSink(*withSink, c.stdout)
		if err != nil {
			return err
		}
		defer stop()
	}
	if *hints {
		printHints(c.stdout, cfg)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				reload(a, *file, log)
			}
		}
	}()
	return a.Run(ctx)
}

// reload puts the file's present contents in force.
func reload(a *app.App, file string, log *slog.Logger) {
	cfg, err := configs.Load(file)
	if err != nil {
		log.Error("reload refused; the running configuration stays", "err", err)
		return
	}
	restart, err := a.Reload(cfg)
	if err != nil {
		log.Error("reload refused; the running configuration stays", "err", err)
		return
	}
	if len(restart) > 0 {
		log.Warn("reloaded; some changes take effect at the next restart", "tables", strings.Join(restart, ", "))
		return
	}
	log.Info("reloaded")
}

func newLogger(w io.Writer, cfg *configs.Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
		level = slog.LevelInfo // validated before
	}
	opt := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opt))
	}
	return slog.New(slog.NewTextHandler(w, opt))
}

// startSink runs a sink beside the engine.
func startSink(addr string, w io.Writer) (stop func(), err error) {
	s, err := loadgen.New(loadgen.SinkConfig{OnMessage: func(r *loadgen.Received) {
		fmt.Fprintf(w, "sink: %d bytes from <%s> to <%s>\n", r.Size, r.From, strings.Join(r.To, ">, <"))
	}})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	return func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Shutdown(ctx)
		<-done
	}, nil
}

func printHints(w io.Writer, cfg *configs.Config) {
	fmt.Fprintln(w, "Tradewind is running. Try:")
	if len(cfg.SMTP) > 0 {
		_, port, _ := net.SplitHostPort(cfg.SMTP[0].Listen)
		fmt.Fprintf(w, "  swaks --server %s --port %s --from me@example.com --to you@example.net\n", host(cfg.SMTP[0].Listen), port)
	}
	if cfg.HTTP.API != "" {
		fmt.Fprintf(w, `  curl -s http://%s/v1/messages -H 'Content-Type: application/json' -d '{"from":"me@example.com","to":["you@example.net"],"subject":"Hello","text":"Hi there"}'`+"\n", cfg.HTTP.API)
		fmt.Fprintf(w, "  curl -s http://%s/v1/events\n", cfg.HTTP.API)
	}
	if cfg.HTTP.Admin != "" {
		fmt.Fprintf(w, "  curl -s http://%s/metrics | grep tradewind_\n", cfg.HTTP.Admin)
	}
}

func host(addr string) string {
	h, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return h
}

// check reports every problem of a configuration.
func check(_ context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	if err := c.parse(); err != nil {
		return err
	}
	cfg, err := loadConfig(*file)
	if err != nil {
		return problems(c.stderr, err)
	}
	var found configs.Problems
	for i, l := range cfg.SMTP {
		if l.TLSCert == "" {
			continue
		}
		if _, err := tls.LoadX509KeyPair(l.TLSCert, l.TLSKey); err != nil {
			found = append(found, configs.Problem{File: *file, Key: fmt.Sprintf("smtp[%d].tls_cert", i), Text: fmt.Sprintf("%s and %s: %v", l.TLSCert, l.TLSKey, err)})
		}
	}
	if len(cfg.DKIM) > 0 {
		if _, err := dkim.New(app.SigningConfig(cfg), dkim.Deps{}); err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				found = append(found, configs.Problem{File: *file, Key: "dkim", Text: line})
			}
		}
	}
	rules, err := app.BounceRules(cfg)
	if err != nil {
		found = append(found, configs.Problem{File: *file, Key: "bounce.rules", Text: err.Error()})
	} else {
		for _, p := range rules.SelfTest() {
			found = append(found, configs.Problem{File: "bounce.toml", Key: p.Rule, Text: p.Text})
		}
	}
	if shaping, _ := cfg.ShapingRules(); shaping != nil {
		for _, p := range shaping.Check() {
			found = append(found, configs.Problem{File: fmt.Sprintf("%s:%d", p.File, p.Line), Key: p.Key, Text: p.Message})
		}
	}
	if len(found) > 0 {
		return problems(c.stderr, found)
	}
	fmt.Fprintf(c.stdout, "%s: ok\n", *file)
	if len(cfg.DKIM) == 0 {
		fmt.Fprintf(c.stdout, "%s: note: no [[dkim]] key is configured; mail is sent unsigned\n", *file)
	}
	return nil
}

// problems prints a line for each problem.
func problems(w io.Writer, err error) error {
	var ps configs.Problems
	if !errors.As(err, &ps) {
		return err
	}
	for _, p := range ps {
		fmt.Fprintln(w, p)
	}
	return countProblems(len(ps))
}

func countProblems(n int) error {
	if n == 1 {
		return errors.New("1 problem")
	}
	return fmt.Errorf("%d problems", n)
}
