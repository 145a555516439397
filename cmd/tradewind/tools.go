package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/dkim"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
)

// client talks to a running engine.
type client struct {
	api, admin, key string
	http            http.Client
}

// client adds the flags that say which engine is meant.
func (c *call) client() *client {
	cl := &client{}
	c.flags.StringVar(&cl.api, "api", "http://127.0.0.1:8025", "`URL` of the engine's API")
	c.flags.StringVar(&cl.admin, "admin", "http://127.0.0.1:9025", "`URL` of the engine's admin listener")
	c.flags.StringVar(&cl.key, "key", os.Getenv("TRADEWIND_KEY"), "API `key`; the default is $TRADEWIND_KEY")
	return cl
}

// do sends a request and decodes the answer into out, unless that is nil.
func (cl *client) do(ctx context.Context, method, target string, body, out any) error {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, rd)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := cl.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return refusal(resp)
	}
	if out == nil {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, out)
}

// send sends a request with the key.
func (cl *client) send(req *http.Request) (*http.Response, error) {
	if cl.key != "" {
		req.Header.Set("Authorization", "Bearer "+cl.key)
	}
	resp, err := cl.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("is the engine running? %w", err)
	}
	return resp, nil
}

// refusal says why the engine would not.
func refusal(resp *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	var p api.Problem
	if json.Unmarshal(data, &p) != nil || p.Title == "" {
		return errors.New(resp.Status)
	}
	text := fmt.Sprintf("%s: %s %s", resp.Status, p.Code, p.Detail)
	for _, e := range p.Errors {
		if p.Detail == e.Field+": "+e.Message {
			continue
		}
		text += fmt.Sprintf("; %s: %s", e.Field, e.Message)
	}
	return errors.New(text)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// one returns the only plain argument.
func (c *call) one(what string) (string, error) {
	if len(c.args) != 1 {
		return "", usageError("give exactly one " + what)
	}
	return c.args[0], nil
}

func queueList(ctx context.Context, c *call) error {
	cl := c.client()
	asJSON := c.flags.Bool("json", false, "print JSON")
	if err := c.parse(); err != nil {
		return err
	}
	var out struct {
		Waiting int64 `json:"waiting"`
		Active  int   `json:"active_queues"`
		Sites   []struct {
			Pool, Site string
			Queues     int
			Lanes      []struct {
				Source, Provider string
				Runners          int
				Until            time.Time `json:"held_until"`
				Why              string    `json:"held_by"`
			}
		}
	}
	var raw json.RawMessage
	if err := cl.do(ctx, "GET", cl.admin+"/v1/queues", nil, &raw); err != nil {
		return err
	}
	if *asJSON {
		return printJSON(c.stdout, raw)
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "%d recipients wait; %d queues in memory\n", out.Waiting, out.Active)
	for _, s := range out.Sites {
		for _, l := range s.Lanes {
			held := ""
			if !l.Until.IsZero() {
				held = fmt.Sprintf("  held by %s until %s", l.Why, l.Until.Format(time.RFC3339))
			}
			fmt.Fprintf(c.stdout, "%-40s %-10s %-12s %4d queues %4d connections%s\n", s.Site, l.Source, l.Provider, s.Queues, l.Runners, held)
		}
	}
	return nil
}

func queueShow(ctx context.Context, c *call) error {
	cl := c.client()
	if err := c.parse(); err != nil {
		return err
	}
	id, err := c.one("message id")
	if err != nil {
		return err
	}
	var out json.RawMessage
	if err := cl.do(ctx, "GET", cl.api+"/v1/messages/"+url.PathEscape(id), nil, &out); err != nil {
		return err
	}
	return printJSON(c.stdout, out)
}

func queueWhy(ctx context.Context, c *call) error {
	cl := c.client()
	if err := c.parse(); err != nil {
		return err
	}
	id, err := c.one("message id")
	if err != nil {
		return err
	}
	var out struct {
		Recipients []struct {
			Email       string `json:"email"`
			State       string `json:"state"`
			Attempt     int    `json:"attempt"`
			NextAttempt string `json:"next_attempt"`
			Reply       string `json:"reply"`
			Holding     string `json:"holding"`
		} `json:"recipients"`
	}
	if err := cl.do(ctx, "GET", cl.api+"/v1/messages/"+url.PathEscape(id), nil, &out); err != nil {
		return err
	}
	for _, r := range out.Recipients {
		fmt.Fprintf(c.stdout, "%s: %s", r.Email, r.State)
		if r.Attempt > 0 {
			fmt.Fprintf(c.stdout, " after %d attempts", r.Attempt)
		}
		if r.NextAttempt != "" {
			fmt.Fprintf(c.stdout, "; next attempt %s", r.NextAttempt)
		}
		if r.Holding != "" {
			fmt.Fprintf(c.stdout, "; held: %s", r.Holding)
		}
		if r.Reply != "" {
			fmt.Fprintf(c.stdout, "\n  last reply: %s", r.Reply)
		}
		fmt.Fprintln(c.stdout)
	}
	return nil
}

func queueCancel(ctx context.Context, c *call) error {
	cl := c.client()
	yes := c.flags.Bool("yes", false, "do it; without this, only show what would be done")
	if err := c.parse(); err != nil {
		return err
	}
	id, err := c.one("message id")
	if err != nil {
		return err
	}
	if !*yes {
		fmt.Fprintln(c.stdout, "would cancel what waits of this message (give --yes to do it):")
		var out json.RawMessage
		if err := cl.do(ctx, "GET", cl.api+"/v1/messages/"+url.PathEscape(id), nil, &out); err != nil {
			return err
		}
		return printJSON(c.stdout, out)
	}
	var out json.RawMessage
	if err := cl.do(ctx, "DELETE", cl.api+"/v1/messages/"+url.PathEscape(id), nil, &out); err != nil {
		return err
	}
	return printJSON(c.stdout, out)
}

// queueVerify checks a spool offline.
func queueVerify(_ context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	if err := c.parse(); err != nil {
		return err
	}
	var report *queue.Report
	err := withSpool(*file, func(db *store.DB) (err error) {
		report, err = queue.Verify(db)
		return err
	})
	if err != nil {
		return err
	}
	if err := printJSON(c.stdout, report); err != nil {
		return err
	}
	if n := len(report.Problems); n > 0 {
		return countProblems(n)
	}
	return nil
}

// tailEvery is how often a tail asks for more once it has everything.
const tailEvery = 500 * time.Millisecond

func eventsTail(ctx context.Context, c *call) error {
	cl := c.client()
	types := c.flags.String("type", "", "only these `types`, comma separated")
	after := c.flags.String("after", "", "begin behind this `cursor`; the default is what the journal still holds")
	once := c.flags.Bool("once", false, "stop at the end instead of waiting for more")
	if err := c.parse(); err != nil {
		return err
	}
	cursor := *after
	for {
		q := url.Values{"limit": {"1000"}}
		if cursor != "" {
			q.Set("after", cursor)
		}
		if *types != "" {
			q.Set("type", *types)
		}
		var out struct {
			Events []json.RawMessage `json:"events"`
			Next   string            `json:"next"`
		}
		if err := cl.do(ctx, "GET", cl.api+"/v1/events?"+q.Encode(), nil, &out); err != nil {
			return err
		}
		for _, e := range out.Events {
			fmt.Fprintf(c.stdout, "%s\n", e)
		}
		moved := out.Next != "" && out.Next != cursor
		if moved {
			cursor = out.Next
		}
		if len(out.Events) > 0 && moved {
			continue
		}
		if *once {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tailEvery):
		}
	}
}

// explainReply says what a reply means to us.
func explainReply(_ context.Context, c *call) error {
	mxHost := c.flags.String("mx", "", "`host` that said it")
	file := c.flags.String("c", "", "configuration `file`; the default is what is shipped")
	asJSON := c.flags.Bool("json", false, "print JSON")
	if err := c.parse(); err != nil {
		return err
	}
	text, err := c.one("reply, in quotes")
	if err != nil {
		return err
	}
	reply, err := message.ParseReply(text)
	if err != nil {
		return err
	}
	cfg := configs.Default()
	if *file != "" {
		loaded, err := configs.Load(*file)
		if err != nil {
			return err
		}
		cfg = *loaded
	}
	shaping, problems := cfg.ShapingRules()
	if len(problems) > 0 {
		return errors.New(problems[0].String())
	}
	v, err := app.ExplainReply(&cfg, shaping, reply, *mxHost)
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(c.stdout, v)
	}
	x := v.Shaping
	fmt.Fprintf(c.stdout, "category:   %s (PowerMTA: %s)\n", v.Category, v.PMTA)
	fmt.Fprintf(c.stdout, "permanent:  %t\nsuppress:   %t\n", v.Permanent, v.Suppress)
	if v.BounceRule != "" {
		fmt.Fprintf(c.stdout, "rule:       %s (bounce rules, confidence %d %%)\n", v.BounceRule, v.Confidence)
	}
	fmt.Fprintf(c.stdout, "provider:   %s\n", x.Provider)
	if x.Rule == "" {
		fmt.Fprintln(c.stdout, "shaping:    no rule is about it; the ordinary retry applies")
		return nil
	}
	fmt.Fprintf(c.stdout, "shaping:    %s: %v %s", x.Rule, x.Action, x.Scope)
	if x.For > 0 {
		fmt.Fprintf(c.stdout, " for %v", x.For)
	}
	if x.Trigger != "" {
		fmt.Fprintf(c.stdout, " after %s", x.Trigger)
	}
	fmt.Fprintf(c.stdout, " (%s)\n", x.Origin)
	if x.Origin.Basis != "" {
		fmt.Fprintf(c.stdout, "basis:      %s\n", x.Origin.Basis)
	}
	return nil
}

// bounceParse reads report files.
func bounceParse(_ context.Context, c *call) error {
	if err := c.parse(); err != nil {
		return err
	}
	if len(c.args) == 0 {
		return usageError("name at least one file")
	}
	cfg := configs.Default()
	rules, err := app.BounceRules(&cfg)
	if err != nil {
		return err
	}
	var failed error
	for _, name := range c.args {
		raw, err := os.ReadFile(name)
		if err != nil {
			fmt.Fprintln(c.stderr, err)
			failed = errors.New("some files could not be read")
			continue
		}
		if _, err := fmt.Fprintf(c.stdout, "%s\n", bounce.Parse(raw, bounce.Options{Classifier: rules}).JSON(name)); err != nil {
			return err
		}
	}
	return failed
}

func dkimKeygen(_ context.Context, c *call) error {
	kind := c.flags.String("type", "rsa2048", "rsa2048, rsa3072 or ed25519")
	domain := c.flags.String("domain", "", "signing `domain`")
	selector := c.flags.String("selector", "", "`selector`")
	out := c.flags.String("out", "", "`file` to write the private key to; the default is standard output")
	if err := c.parse(); err != nil {
		return err
	}
	if *domain == "" || *selector == "" {
		return usageError("--domain and --selector are needed for the DNS record")
	}
	if _, err := message.ParseDomain(*domain); err != nil {
		return err
	}
	key, txt, err := dkim.GenerateKey(*kind)
	if err != nil {
		return err
	}
	if *out != "" {
		f, err := os.OpenFile(*out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if _, err := f.Write(key); err != nil {
			return errors.Join(err, f.Close())
		}
		if err := f.Close(); err != nil {
			return err
		}
		fmt.Fprintf(c.stderr, "private key written to %s\n", *out)
	} else {
		fmt.Fprint(c.stdout, string(key))
	}
	fmt.Fprint(c.stdout, dkim.ZoneLines(*selector+"._domainkey."+*domain, strings.Join(txt, "")))
	return nil
}

func dkimCheck(ctx context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	if err := c.parse(); err != nil {
		return err
	}
	cfg, err := loadConfig(*file)
	if err != nil {
		return err
	}
	ring, err := dkim.New(app.SigningConfig(cfg), dkim.Deps{})
	if err != nil {
		return err
	}
	resolver := &net.Resolver{}
	if len(cfg.DNS.Servers) > 0 {
		server := cfg.DNS.Servers[0]
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(server, "53")
		}
		resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, server)
		}}
	}
	bad := 0
	for _, k := range ring.Keys() {
		r, err := dkim.Check(ctx, resolver.LookupTXT, k)
		if err != nil {
			bad++
			fmt.Fprintf(c.stdout, "%s: %v\n  publish: %s\n", k.RecordName(), err, k.Record)
			continue
		}
		fmt.Fprintf(c.stdout, "%s: ok\n", r.Name)
		for _, w := range append(r.Warnings, k.Warnings...) {
			fmt.Fprintf(c.stdout, "  note: %s\n", w)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d keys would not verify", bad, len(ring.Keys()))
	}
	return nil
}

// keyAccess runs fn on the keys of an engine that is not running, or remote
// against one that is.
func (c *call) keyAccess(file string, cl *client, local func(*api.KeyStore) error, remote func() error) error {
	if file == "" {
		return remote()
	}
	cfg, err := configs.Load(file)
	if err != nil {
		return err
	}
	lock, err := store.Lock(cfg.DataDir, nil)
	if err != nil {
		// A running engine holds the store: ask it.
		if cfg.HTTP.Admin != "" {
			cl.admin = "http://" + cfg.HTTP.Admin
		}
		return remote()
	}
	defer lock.Close()
	db, err := store.Open(cfg.DataDir, store.Ledger, store.Options{})
	if err != nil {
		return err
	}
	return errors.Join(local(api.NewKeyStore(db, time.Now)), db.Close())
}

func keyCreate(ctx context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	cl := c.client()
	var rec api.KeyRecord
	c.flags.StringVar(&rec.Name, "name", "", "`name` of the key")
	c.flags.StringVar(&rec.Tenant, "tenant", configs.DefaultTenant, "`tenant` it belongs to; \"\" with scope admin sees all")
	c.flags.BoolVar(&rec.Test, "test", false, "the key only ever sends in sandbox mode")
	c.flags.TextVar(&rec.Durability, "durability", message.Synced, "`what` the answer to mail waits for: fsync, or os, which a power cut may undo")
	scopes := c.flags.String("scopes", "inject", "inject, events, suppression, admin; comma separated")
	if err := c.parse(); err != nil {
		return err
	}
	for _, s := range strings.Split(*scopes, ",") {
		rec.Scopes = append(rec.Scopes, api.Scope(strings.TrimSpace(s)))
	}
	var secret string
	err := c.keyAccess(*file, cl, func(k *api.KeyStore) (err error) {
		secret, err = k.Create(rec)
		return err
	}, func() error {
		var out struct{ Key string }
		err := cl.do(ctx, "POST", cl.admin+"/v1/keys", rec, &out)
		secret = out.Key
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(c.stdout, secret)
	fmt.Fprintln(c.stderr, "The key is shown once and not stored. As an SMTP login, the user name is the tenant and the key the password.")
	return nil
}

func keyList(ctx context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	cl := c.client()
	asJSON := c.flags.Bool("json", false, "print JSON")
	if err := c.parse(); err != nil {
		return err
	}
	var list []api.KeyRecord
	err := c.keyAccess(*file, cl, func(k *api.KeyStore) (err error) {
		list, err = k.List()
		return err
	}, func() error {
		var out struct{ Keys []api.KeyRecord }
		err := cl.do(ctx, "GET", cl.admin+"/v1/keys", nil, &out)
		list = out.Keys
		return err
	})
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(c.stdout, list)
	}
	for _, k := range list {
		state := "active"
		if !k.Revoked.IsZero() {
			state = "revoked " + k.Revoked.Format(time.DateOnly)
		}
		fmt.Fprintf(c.stdout, "%-20s %-12s %-12s %v %s\n", k.Name, k.Prefix+"…", k.Tenant, k.Scopes, state)
	}
	return nil
}

func keyRevoke(ctx context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	cl := c.client()
	if err := c.parse(); err != nil {
		return err
	}
	name, err := c.one("key name or prefix")
	if err != nil {
		return err
	}
	return c.keyAccess(*file, cl, func(k *api.KeyStore) error {
		n, err := k.Revoke(name)
		if err == nil && n == 0 {
			err = fmt.Errorf("no active key is called %q", name)
		}
		return err
	}, func() error {
		return cl.do(ctx, "DELETE", cl.admin+"/v1/keys/"+url.PathEscape(name), nil, nil)
	})
}
