package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/suppression"
)

// listAccess is how a suppression command reaches the list: over the API of a
// running engine, or with -c in the store of a stopped one.
type listAccess struct {
	cl     *client
	file   string
	tenant string
}

func (c *call) listAccess() *listAccess {
	l := &listAccess{cl: c.client()}
	c.flags.StringVar(&l.file, "c", "", "configuration `file`: use the store of an engine that is not running")
	c.flags.StringVar(&l.tenant, "tenant", configs.DefaultTenant, "`tenant`, with -c; \"\" is the list that holds for all. Over the API it is the key's")
	return l
}

// offline runs fn on the list in the store.
func (l *listAccess) offline(fn func(*suppression.List) error) error {
	cfg, err := configs.Load(l.file)
	if err != nil {
		return err
	}
	if l.tenant != "" {
		if err := configs.CheckTenant(l.tenant); err != nil {
			return err
		}
	}
	list, closeAll, err := app.OpenSuppressions(cfg)
	if err != nil {
		return fmt.Errorf("%w (leave out -c to ask a running engine)", err)
	}
	return errors.Join(fn(list), closeAll())
}

func suppressionList(ctx context.Context, c *call) error {
	l := c.listAccess()
	email := c.flags.String("email", "", "only this `address`")
	asJSON := c.flags.Bool("json", false, "print a JSON object a line")
	if err := c.parse(); err != nil {
		return err
	}
	show := func(s *api.Suppression) error {
		if *asJSON {
			return json.NewEncoder(c.stdout).Encode(s)
		}
		expires := "never expires"
		if !s.Expires.IsZero() {
			expires = "expires " + s.Expires.Format(time.DateOnly)
		}
		address := "(address not kept)"
		if !s.Address.IsZero() {
			address = s.Address.String()
		}
		_, err := fmt.Fprintf(c.stdout, "%-40s %-12s %-12s since %s, %s, by %s\n", address, s.Reason, s.Stream, s.Created.Format(time.DateOnly), expires, s.Source)
		return err
	}
	if l.file != "" {
		return l.offline(func(list *suppression.List) error { return listOffline(list, l.tenant, *email, show) })
	}
	for after := ""; ; {
		q := url.Values{"limit": {"1000"}}
		if after != "" {
			q.Set("after", after)
		}
		if *email != "" {
			q.Set("email", *email)
		}
		var page struct {
			Suppressions []api.Suppression `json:"suppressions"`
			Next         string            `json:"next"`
		}
		if err := l.cl.do(ctx, "GET", l.cl.api+"/v1/suppressions?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		for i := range page.Suppressions {
			if err := show(&page.Suppressions[i]); err != nil {
				return err
			}
		}
		if after = page.Next; after == "" {
			return nil
		}
	}
}

func listOffline(list *suppression.List, tenant, email string, show func(*api.Suppression) error) error {
	print := func(e *suppression.Entry) error {
		return show(&api.Suppression{Address: e.Address, Stream: e.Stream, Reason: e.Reason.String(), Source: e.Source, Created: e.First, Expires: e.Expires})
	}
	if email != "" {
		a, err := message.ParseAddress(email)
		if err != nil {
			return err
		}
		e, err := list.Get(tenant, "", a)
		if errors.Is(err, suppression.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		e.Address = a
		return print(&e)
	}
	for cursor, more := "", true; more; more = cursor != "" {
		page, next, err := list.List(tenant, cursor, 1000)
		if err != nil {
			return err
		}
		for i := range page {
			if err := print(&page[i]); err != nil {
				return err
			}
		}
		cursor = next
	}
	return nil
}

func suppressionAdd(ctx context.Context, c *call) error {
	l := c.listAccess()
	reason := c.flags.String("reason", "manual", "`reason`: manual, hard-bounce, complaint, unsubscribe, erasure ...; the last three are for good")
	stream := c.flags.String("stream", "", "only for this `campaign`")
	if err := c.parse(); err != nil {
		return err
	}
	if len(c.args) == 0 {
		return usageError("name at least one address")
	}
	why, err := suppression.ParseReason(*reason)
	if err != nil {
		return usageError(err.Error())
	}
	var add []suppression.Addition
	var entries []map[string]string
	for _, text := range c.args {
		a, err := message.ParseAddress(text)
		if err != nil {
			return err
		}
		add = append(add, suppression.Addition{Tenant: l.tenant, Stream: *stream, Address: a, Reason: why, Source: "cli"})
		entries = append(entries, map[string]string{"email": a.String(), "stream": *stream, "reason": why.String()})
	}
	if l.file != "" {
		err = l.offline(func(list *suppression.List) error { return list.Add(add...) })
	} else {
		err = l.cl.do(ctx, "POST", l.cl.api+"/v1/suppressions", map[string]any{"suppressions": entries}, nil)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "%d suppressed\n", len(add))
	return nil
}

func suppressionRemove(ctx context.Context, c *call) error {
	l := c.listAccess()
	stream := c.flags.String("stream", "", "only for this `campaign`")
	if err := c.parse(); err != nil {
		return err
	}
	text, err := c.one("address")
	if err != nil {
		return err
	}
	a, err := message.ParseAddress(text)
	if err != nil {
		return err
	}
	if l.file != "" {
		return l.offline(func(list *suppression.List) error {
			return list.Remove(suppression.ByOperator, l.tenant, *stream, a, "cli")
		})
	}
	q := url.Values{"email": {a.String()}}
	if *stream != "" {
		q.Set("stream", *stream)
	}
	return l.cl.do(ctx, "DELETE", l.cl.api+"/v1/suppressions?"+q.Encode(), nil, nil)
}

func suppressionImport(ctx context.Context, c *call) error {
	l := c.listAccess()
	format := c.flags.String("format", "", "csv or ndjson; the default is by the file's name, or csv")
	reason := c.flags.String("reason", "", "`reason` of rows that name none; the default is import")
	stream := c.flags.String("stream", "", "`campaign` of rows that name none")
	if err := c.parse(); err != nil {
		return err
	}
	name, err := c.one("file, - for standard input")
	if err != nil {
		return err
	}
	kind, err := listFormat(*format, name)
	if err != nil {
		return err
	}
	o := suppression.ImportOptions{Tenant: l.tenant, Stream: *stream, Format: kind, Source: "import"}
	if *reason != "" {
		if o.Reason, err = suppression.ParseReason(*reason); err != nil {
			return usageError(err.Error())
		}
	}
	in := c.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	p := &progress{w: c.stderr, next: time.Now().Add(time.Second), r: in}
	var out importResult
	if l.file != "" {
		err = l.offline(func(list *suppression.List) error {
			// With a filter that grows along, new rows need no look at the store.
			house, stop := context.WithCancel(ctx)
			var keeping sync.WaitGroup
			keeping.Go(func() { list.Run(house) }) // returns nil, always
			sum, err := list.Import(ctx, p, o)
			stop()
			keeping.Wait()
			out.fill(&sum)
			return err
		})
	} else {
		err = l.cl.importList(ctx, p, &o, &out)
	}
	for _, e := range out.Errors {
		fmt.Fprintf(c.stderr, "line %d: %s\n", e.Line, e.Message)
	}
	fmt.Fprintf(c.stdout, "%d lines, %d suppressed, %d passed over\n", out.Lines, out.Added, out.Bad)
	return err
}

// importResult is what an import answers.
type importResult struct {
	Lines, Added, Bad int
	Errors            []struct {
		Line    int
		Message string
	}
	Incomplete string
}

func (r *importResult) fill(sum *suppression.Summary) {
	r.Lines, r.Added, r.Bad = sum.Lines, sum.Added, sum.Bad
	for _, e := range sum.Errors {
		r.Errors = append(r.Errors, struct {
			Line    int
			Message string
		}{e.Line, e.Err.Error()})
	}
}

func (cl *client) importList(ctx context.Context, in io.Reader, o *suppression.ImportOptions, out *importResult) error {
	q := url.Values{}
	if o.Stream != "" {
		q.Set("stream", o.Stream)
	}
	if o.Reason != suppression.NoReason {
		q.Set("reason", o.Reason.String())
	}
	req, err := http.NewRequestWithContext(ctx, "POST", cl.api+"/v1/suppressions/import?"+q.Encode(), in)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", map[suppression.Format]string{suppression.CSV: "text/csv", suppression.NDJSON: "application/x-ndjson"}[o.Format])
	resp, err := cl.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, out); err == nil && out.Incomplete != "" {
		return errors.New(out.Incomplete)
	}
	if resp.StatusCode >= 300 {
		resp.Body = io.NopCloser(bytes.NewReader(data))
		return refusal(resp)
	}
	return nil
}

func suppressionExport(ctx context.Context, c *call) error {
	l := c.listAccess()
	format := c.flags.String("format", "csv", "csv or ndjson")
	if err := c.parse(); err != nil {
		return err
	}
	kind, err := listFormat(*format, "")
	if err != nil {
		return err
	}
	if l.file != "" {
		return l.offline(func(list *suppression.List) error {
			_, err := list.Export(ctx, c.stdout, l.tenant, kind)
			return err
		})
	}
	return l.cl.get(ctx, c.stdout, l.cl.api+"/v1/suppressions/export?format="+url.QueryEscape(*format))
}

func listFormat(format, name string) (suppression.Format, error) {
	if format == "" && (strings.HasSuffix(name, ".ndjson") || strings.HasSuffix(name, ".jsonl")) {
		format = "ndjson"
	}
	switch format {
	case "", "csv":
		return suppression.CSV, nil
	case "ndjson":
		return suppression.NDJSON, nil
	}
	return 0, usageError(fmt.Sprintf("--format is csv or ndjson, not %q", format))
}

// progress says once a second how many lines have been read.
type progress struct {
	r     io.Reader
	w     io.Writer
	lines int
	next  time.Time
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.lines += bytes.Count(b[:n], []byte{'\n'})
	if now := time.Now(); now.After(p.next) {
		p.next = now.Add(time.Second)
		fmt.Fprintf(p.w, "%d lines\n", p.lines)
	}
	return n, err
}
