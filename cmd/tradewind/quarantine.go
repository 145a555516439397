package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tradewind-mta/tradewind/report"
)

// bounceQuarantine lists reports that were not believed, or prints one.
func bounceQuarantine(ctx context.Context, c *call) error {
	cl := c.client()
	asJSON := c.flags.Bool("json", false, "print JSON")
	if err := c.parse(); err != nil {
		return err
	}
	switch {
	case len(c.args) == 1 && c.args[0] == "list":
		return cl.quarantined(ctx, c.stdout, *asJSON)
	case len(c.args) == 2 && c.args[0] == "show":
		return cl.get(ctx, c.stdout, cl.admin+"/v1/quarantine/"+url.PathEscape(c.args[1]))
	}
	return usageError("say list, or show ID")
}

func (cl *client) quarantined(ctx context.Context, w io.Writer, asJSON bool) error {
	for after := ""; ; {
		var page struct {
			Reports []report.Held `json:"reports"`
			Next    string        `json:"next"`
		}
		if err := cl.do(ctx, "GET", cl.admin+"/v1/quarantine?after="+url.QueryEscape(after), nil, &page); err != nil {
			return err
		}
		for i := range page.Reports {
			h := &page.Reports[i]
			if asJSON {
				if err := printJSON(w, h); err != nil {
					return err
				}
				continue
			}
			// What a stranger wrote is quoted: it may hold anything.
			fmt.Fprintf(w, "%-8d %s %-11s %-11s %7d bytes  from %s at %s to %s\n",
				h.ID, h.Time.Format(time.RFC3339), h.Kind, h.Reason, h.Size, strconv.Quote(h.From), h.Client, strconv.Quote(h.To))
		}
		if after = page.Next; after == "" {
			return nil
		}
	}
}

// get copies an answer that is no JSON.
func (cl *client) get(ctx context.Context, w io.Writer, target string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", target, nil)
	if err != nil {
		return err
	}
	resp, err := cl.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp)
	}
	_, err = io.Copy(w, resp.Body)
	return err
}
