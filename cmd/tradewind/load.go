package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// sink receives mail and counts it.
func sink(ctx context.Context, c *call) error {
	listen := c.flags.String("listen", "127.0.0.1:2599", "`address` to listen on")
	latency := c.flags.Duration("latency", 0, "wait before each batch of replies")
	deferPct := c.flags.Int("defer", 0, "`percent` of recipients greylisted at their first attempt")
	rejectPct := c.flags.Int("reject", 0, "`percent` of recipients refused for good")
	profile := c.flags.String("profile", "accept", "behaviour: "+strings.Join(loadgen.Profiles(), ", "))
	useTLS := c.flags.Bool("tls", false, "offer STARTTLS with a certificate made on the spot")
	verbose := c.flags.Bool("v", false, "print a line for each message")
	every := c.flags.Duration("report", 0, "print counts as JSON this often")
	if err := c.parse(); err != nil {
		return err
	}
	cfg := loadgen.SinkConfig{
		Profile: *profile, Latency: *latency, DeferPercent: *deferPct, RejectPercent: *rejectPct, TLS: *useTLS,
	}
	if *verbose {
		cfg.OnMessage = func(r *loadgen.Received) {
			fmt.Fprintf(c.stdout, "%s %d bytes from <%s> to <%s>: %d\n", r.Time.UTC().Format(time.RFC3339), r.Size, r.From, strings.Join(r.To, ">, <"), r.Code)
		}
	}
	s, err := loadgen.New(cfg)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "sink: listening on %s as %s\n", l.Addr(), *profile)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	var tick <-chan time.Time
	if *every > 0 {
		t := time.NewTicker(*every)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case err := <-done:
			return err
		case <-tick:
			json.NewEncoder(c.stdout).Encode(s.Counts())
			continue
		case <-ctx.Done():
		}
		break
	}
	stop, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s.Shutdown(stop)
	<-done
	return json.NewEncoder(c.stdout).Encode(s.Counts())
}

// injectLoad sends test mail and reports how it went.
func injectLoad(ctx context.Context, c *call) error {
	var s loadgen.Source
	c.flags.StringVar(&s.Target, "target", "127.0.0.1:2525", "`address` to send to")
	c.flags.IntVar(&s.Messages, "messages", 1000, "`number` of messages")
	c.flags.IntVar(&s.Connections, "connections", 10, "connections used at a time")
	c.flags.IntVar(&s.Size, "size", 10<<10, "size of each message in `bytes`")
	c.flags.Float64Var(&s.Rate, "rate", 0, "messages a `second` over all connections; 0: as fast as possible")
	c.flags.IntVar(&s.Recipients, "recipients", 1, "recipients of each message")
	c.flags.StringVar(&s.From, "from", "", "envelope `sender`")
	c.flags.StringVar(&s.To, "to", "", "recipient `pattern`, such as user%d@d%d.example")
	c.flags.IntVar(&s.Domains, "domains", 0, "domains the second %d goes through")
	c.flags.StringVar(&s.Body, "body", "", "text, html or dots")
	asJSON := c.flags.Bool("json", false, "print the report as JSON")
	if err := c.parse(); err != nil {
		return err
	}
	r, err := s.Run(ctx)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(c.stdout).Encode(r)
	}
	fmt.Fprintf(c.stdout, "sent %d, accepted %d, deferred %d, rejected %d, unknown %d in %v: %.0f messages/s, p50 %v, p99 %v\n",
		r.Sent, r.Accepted, r.Deferred, r.Rejected, r.Unknown, r.Elapsed.Round(time.Millisecond),
		float64(r.Accepted)/r.Elapsed.Seconds(), r.P50, r.P99)
	if r.Accepted != r.Sent {
		return fmt.Errorf("%d of %d messages were not accepted", r.Sent-r.Accepted, r.Sent)
	}
	return nil
}
