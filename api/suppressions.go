package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Suppression is one address that must not be mailed.
type Suppression struct {
	Address message.Address `json:"email"`
	// Stream limits it to a campaign; empty is all mail of the tenant.
	Stream   string    `json:"stream,omitempty"`
	Reason   string    `json:"reason"`
	Source   string    `json:"source,omitempty"` // api, bounce, complaint, ...
	Evidence string    `json:"evidence,omitempty"`
	Created  time.Time `json:"created_at,omitzero"`
	Expires  time.Time `json:"expires_at,omitzero"`
}

// Suppressions keeps the suppression lists. The empty tenant is the list that
// holds for all.
type Suppressions interface {
	// List returns up to limit entries after the opaque cursor, in a stable
	// order, and the next cursor, "" at the end. A zero address lists all.
	List(ctx context.Context, tenant string, addr message.Address, after string, limit int) ([]Suppression, string, error)
	// Add stores entries durably, in one batch; one that exists is replaced.
	Add(ctx context.Context, tenant string, entries []Suppression) error
	// Remove takes an address off the list, or off one stream of it. ErrNotFound:
	// it was not there. ErrForbidden: the person asked for it themselves.
	Remove(ctx context.Context, tenant string, addr message.Address, stream string) error
}

const maxSuppressions = 10_000 // a request

func (a *api) getSuppressions(w http.ResponseWriter, r *http.Request, p *Principal) error {
	q, err := query(r, "email", "after", "limit")
	if err != nil {
		return err
	}
	limit, err := limitOf(q)
	if err != nil {
		return err
	}
	var addr message.Address
	if s := q["email"]; s != "" {
		if addr, err = message.ParseAddress(s); err != nil {
			return fieldProblem("email", "address", "%v", err)
		}
	}
	list, next, err := a.deps.Suppressions.List(r.Context(), p.Tenant, addr, q["after"], limit)
	if err != nil {
		return err
	}
	if list == nil {
		list = []Suppression{}
	}
	return writeJSON(w, http.StatusOK, struct {
		Suppressions []Suppression `json:"suppressions"`
		Next         string        `json:"next,omitempty"`
	}{list, next})
}

type suppressionRequest struct {
	Email   string `json:"email"`
	Stream  string `json:"stream"`
	Reason  string `json:"reason"`
	Expires string `json:"expires_at"`
}

func (a *api) postSuppressions(w http.ResponseWriter, r *http.Request, p *Principal) error {
	var body struct {
		suppressionRequest
		List []suppressionRequest `json:"suppressions"`
	}
	if err := a.readJSON(r, &body); err != nil {
		return err
	}
	list, at := body.List, func(i int, field string) string { return fmt.Sprintf("suppressions[%d].%s", i, field) }
	switch {
	case len(list) == 0:
		list, at = []suppressionRequest{body.suppressionRequest}, func(_ int, field string) string { return field }
	case body.suppressionRequest != suppressionRequest{}:
		return fieldProblem("suppressions", "conflict", "cannot stand beside email")
	case len(list) > maxSuppressions:
		return fieldProblem("suppressions", "limit", "more than %d entries", maxSuppressions)
	}
	var f faults
	now := a.deps.Now()
	entries := make([]Suppression, len(list))
	for i, in := range list {
		addr, err := message.ParseAddress(in.Email)
		if err != nil {
			f.add(at(i, "email"), "address", "%v", err)
		}
		for _, v := range [...]struct{ field, value string }{{"reason", in.Reason}, {"stream", in.Stream}} {
			if why := badName(v.value); why != "" {
				f.add(at(i, v.field), "invalid", "%s", why)
			}
		}
		if in.Reason == "" {
			in.Reason = "manual"
		}
		e := Suppression{Address: addr, Stream: in.Stream, Reason: in.Reason, Source: "api:" + p.Name, Created: now}
		e.Expires = parseTime(at(i, "expires_at"), in.Expires, &f)
		if !e.Expires.IsZero() && !e.Expires.After(now) {
			f.add(at(i, "expires_at"), "invalid", "lies in the past")
		}
		entries[i] = e
	}
	if err := f.err(); err != nil {
		return err
	}
	if err := a.deps.Suppressions.Add(r.Context(), p.Tenant, entries); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]int{"added": len(entries)})
}

func (a *api) deleteSuppressions(w http.ResponseWriter, r *http.Request, p *Principal) error {
	q, err := query(r, "email", "stream")
	if err != nil {
		return err
	}
	addr, err := message.ParseAddress(q["email"])
	if err != nil {
		return fieldProblem("email", "address", "%v", err)
	}
	if err := a.deps.Suppressions.Remove(r.Context(), p.Tenant, addr, q["stream"]); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readJSON reads a small JSON body.
func (a *api) readJSON(r *http.Request, v any) error {
	kind, err := contentType(r)
	if err != nil {
		return err
	}
	if kind != "" && kind != "application/json" {
		return problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "send application/json")
	}
	l := &loan{from: &a.memory}
	defer l.giveBack()
	b, err := readBody(r, min(a.cfg.MaxBody, 8<<20), l)
	if err != nil {
		return err
	}
	return decodeJSON(b, v, l)
}

// Webhook is an endpoint that events are posted to.
type Webhook struct {
	ID      string              `json:"id"`
	URL     string              `json:"url"`
	Types   []message.EventType `json:"types,omitempty"` // none: all
	Created time.Time           `json:"created_at,omitzero"`
	// Secret signs what is posted. It is told once, when the webhook is made.
	Secret string `json:"secret,omitempty"`
	// State is running, retrying, parked (its retries are used up), disabled (it
	// answered 410) or broken.
	State string `json:"state,omitempty"`
	// Error is why the last try failed.
	Error      string  `json:"error,omitempty"`
	LagSeconds float64 `json:"lag_seconds,omitempty"`
}

// Webhooks keeps a tenant's endpoints.
type Webhooks interface {
	List(ctx context.Context, tenant string) ([]Webhook, error)
	// Add stores w and returns it with id and secret.
	Add(ctx context.Context, tenant string, w Webhook) (Webhook, error)
	// Remove forgets an endpoint, or returns ErrNotFound.
	Remove(ctx context.Context, tenant, id string) error
	// Replay has an endpoint try again at once, and sends it everything behind
	// after (again) unless that is nil; or it returns ErrNotFound.
	Replay(ctx context.Context, tenant, id string, after *uint64) error
}

func (a *api) getWebhooks(w http.ResponseWriter, r *http.Request, p *Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	list, err := a.deps.Webhooks.List(r.Context(), p.Tenant)
	if err != nil {
		return err
	}
	out := make([]Webhook, len(list))
	for i := range list {
		out[i] = list[i]
		out[i].Secret = ""
	}
	return writeJSON(w, http.StatusOK, map[string][]Webhook{"webhooks": out})
}

func (a *api) postWebhooks(w http.ResponseWriter, r *http.Request, p *Principal) error {
	var body struct {
		URL   string   `json:"url"`
		Types []string `json:"types"`
	}
	if err := a.readJSON(r, &body); err != nil {
		return err
	}
	var f faults
	// Where the URL may lead is decided when it is dialled, address by
	// address; a name checked now could point elsewhere by then.
	u, err := url.Parse(body.URL)
	if err != nil || len(body.URL) > 2000 || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || u.Fragment != "" {
		f.add("url", "invalid", "must be an http or https URL without user or fragment")
	}
	h := Webhook{URL: body.URL, Created: a.deps.Now()}
	for i, name := range body.Types {
		t, err := message.ParseEventType(name)
		if err != nil {
			f.add(fmt.Sprintf("types[%d]", i), "invalid", "is not an event type")
		}
		h.Types = append(h.Types, t)
	}
	if err := f.err(); err != nil {
		return err
	}
	h, err = a.deps.Webhooks.Add(r.Context(), p.Tenant, h)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, h)
}

func (a *api) replayWebhook(w http.ResponseWriter, r *http.Request, p *Principal) error {
	var body struct {
		After *string `json:"after"`
	}
	if err := a.readJSON(r, &body); err != nil {
		return err
	}
	var after *uint64
	if body.After != nil {
		n, err := parseCursor(*body.After)
		if err != nil {
			return err
		}
		after = &n
	}
	if err := a.deps.Webhooks.Replay(r.Context(), p.Tenant, r.PathValue("id"), after); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *api) deleteWebhook(w http.ResponseWriter, r *http.Request, p *Principal) error {
	if err := a.deps.Webhooks.Remove(r.Context(), p.Tenant, r.PathValue("id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
