package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/tradewind-mta/tradewind/mta"
)

// maxTraceJSON bounds one line of the stream.
const maxTraceJSON = 64 << 10

// trace prints dialogues until it is interrupted or has shown enough.
func trace(ctx context.Context, c *call) error {
	cl := c.client()
	host := c.flags.String("host", "", "only mail exchangers of this `name`, or below it")
	source := c.flags.String("source", "", "only connections from this `source`")
	limit := c.flags.Int("lines", 0, "stop after this many `lines`; 0 means never")
	asJSON := c.flags.Bool("json", false, "print a JSON object for each line")
	if err := c.parse(); err != nil {
		return err
	}
	q := url.Values{}
	for name, value := range map[string]string{"host": *host, "source": *source} {
		if value != "" {
			q.Set(name, value)
		}
	}
	body, err := cl.open(ctx, cl.admin+"/v1/trace?"+q.Encode())
	if err != nil {
		return err
	}
	defer body.Close()
	in := bufio.NewScanner(body)
	in.Buffer(nil, maxTraceJSON)
	for n := 0; (*limit == 0 || n < *limit) && in.Scan(); n++ {
		if *asJSON {
			fmt.Fprintf(c.stdout, "%s\n", in.Bytes())
			continue
		}
		var l mta.TraceLine
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			return fmt.Errorf("the engine sent something else than a trace: %w", err)
		}
		if l.Missed > 0 {
			fmt.Fprintf(c.stdout, "... %d lines were too fast\n", l.Missed)
		}
		fmt.Fprintf(c.stdout, "%s #%d %s %s %s %s\n", l.Time.Format("15:04:05.000"), l.Conn, l.Source, l.Host, l.Direction, visible(l.Text))
	}
	if err := in.Err(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// visible replaces what could play with a terminal: the text is a stranger's.
func visible(s string) string {
	b := []rune(s)
	for i, r := range b {
		if r < ' ' || r >= 0x7F && r < 0xA0 {
			b[i] = '?'
		}
	}
	return string(b)
}

// open sends a GET request and returns the body of an answer that may never end.
func (cl *client) open(ctx context.Context, target string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	resp, err := cl.send(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp.Body, nil
}
