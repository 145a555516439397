package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// memory is a queue that keeps everything in a slice, and idempotency records
// with it.
type memory struct {
	mu      sync.Mutex // protects everything below
	subs    []*inject.Submission
	records map[[32]byte]*message.Idempotency
	batches int
	err     error
	status  map[message.ID]*MessageStatus
}

func (m *memory) Accept(_ context.Context, subs []*inject.Submission) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.batches++
	m.subs = append(m.subs, subs...)
	for _, s := range subs {
		if s.Idempotency != nil {
			if m.records == nil {
				m.records = map[[32]byte]*message.Idempotency{}
			}
			m.records[s.Idempotency.Key] = s.Idempotency
		}
	}
	return nil
}

func (m *memory) Replay(_ context.Context, key [32]byte) (*message.Idempotency, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records[key], nil
}

// owned finds the messages of a tenant, as the queue must.
func (m *memory) owned(tenant string, id message.ID) bool {
	for _, s := range m.subs {
		if s.Message.ID == id && (tenant == "" || s.Message.Tenant == tenant) {
			return true
		}
	}
	return false
}

func (m *memory) Status(_ context.Context, tenant string, id message.ID) (*MessageStatus, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.owned(tenant, id) {
		return nil, fmt.Errorf("queue: %w", ErrNotFound)
	}
	if st := m.status[id]; st != nil {
		return st, nil
	}
	return nil, ErrNotFound
}

func (m *memory) Cancel(_ context.Context, tenant string, id message.ID, _ uint32, _ bool) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.owned(tenant, id) {
		return 0, ErrNotFound
	}
	if m.status[id] == nil {
		return 0, ErrConflict
	}
	return len(m.status[id].Recipients), nil
}

// journal is a list of events.
type journal struct{ events []message.Event }

func (j *journal) Read(_ context.Context, after uint64, f EventFilter, limit int) ([]message.Event, uint64, error) {
	if after > 1<<60 {
		return nil, 0, ErrCursorGone
	}
	var out []message.Event
	next := after
	for _, e := range j.events {
		switch {
		case e.Seq <= after, f.Tenant != "" && e.Tenant != f.Tenant, !f.Message.IsZero() && e.MessageID != f.Message:
			continue
		case !f.Recipient.IsZero() && e.Recipient != f.Recipient.String():
			continue
		}
		match := len(f.Types) == 0
		for _, t := range f.Types {
			match = match || t == e.Type
		}
		if match && len(out) < limit {
			out = append(out, e)
			next = e.Seq
		}
	}
	return out, next, nil
}

// keys are API keys in clear, for tests.
type keys map[string]*Principal

func (k keys) Lookup(_ context.Context, secret string) (*Principal, error) {
	if secret == "broken" {
		return nil, errors.New("no store")
	}
	if p := k[secret]; p != nil {
		return p, nil
	}
	return nil, ErrUnknownKey
}

// lists are suppressions by tenant.
type lists struct {
	mu sync.Mutex // protects by
	by map[string][]Suppression
}

func (l *lists) List(_ context.Context, tenant string, addr message.Address, _ string, limit int) ([]Suppression, string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Suppression
	for _, s := range l.by[tenant] {
		if (addr.IsZero() || s.Address == addr) && len(out) < limit {
			out = append(out, s)
		}
	}
	return out, "", nil
}

func (l *lists) Add(_ context.Context, tenant string, entries []Suppression) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = map[string][]Suppression{}
	}
	l.by[tenant] = append(l.by[tenant], entries...)
	return nil
}

func (l *lists) Remove(_ context.Context, tenant string, addr message.Address, _ string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, s := range l.by[tenant] {
		if s.Address == addr && s.Reason == "unsubscribe" {
			return fmt.Errorf("lists: %w", ErrForbidden)
		}
		if s.Address == addr {
			l.by[tenant] = append(l.by[tenant][:i:i], l.by[tenant][i+1:]...)
			return nil
		}
	}
	return ErrNotFound
}

// hooks are webhooks by tenant.
type hooks map[string][]Webhook

func (h hooks) List(_ context.Context, tenant string) ([]Webhook, error) { return h[tenant], nil }

func (h hooks) Add(_ context.Context, tenant string, w Webhook) (Webhook, error) {
	w.ID, w.Secret = fmt.Sprint("wh", len(h[tenant])), "whsec_x"
	h[tenant] = append(h[tenant], w)
	return w, nil
}

func (h hooks) Remove(_ context.Context, tenant, id string) error {
	for i, w := range h[tenant] {
		if w.ID == id {
			h[tenant] = append(h[tenant][:i:i], h[tenant][i+1:]...)
			return nil
		}
	}
	return ErrNotFound
}

// Replay notes that it was asked for, and from where.
func (h hooks) Replay(_ context.Context, tenant, id string, after *uint64) error {
	for i, w := range h[tenant] {
		if w.ID == id {
			h[tenant][i].Error = "replay"
			if after != nil {
				h[tenant][i].LagSeconds = float64(*after)
			}
			return nil
		}
	}
	return ErrNotFound
}

// world is one API with everything behind it in memory.
type world struct {
	t       testing.TB
	api     *api
	handler http.Handler
	queue   *memory
	journal *journal
	lists   *lists
	hooks   hooks
}

func newWorld(t testing.TB, cfg Config, door inject.Deps) *world {
	t.Helper()
	w := &world{t: t, queue: &memory{}, journal: &journal{}, lists: &lists{}, hooks: hooks{}}
	now := func() time.Time { return noon }
	door.IDs, door.Now = &message.IDSource{}, now
	in, err := inject.New(inject.Config{Hostname: "mta1.example.com", HideClient: true}, w.queue, door)
	if err != nil {
		t.Fatal(err)
	}
	every := []Scope{ScopeInject, ScopeEvents, ScopeSuppression}
	deps := Deps{
		Inject: in, Replays: w.queue, Queue: w.queue, Journal: w.journal, Suppressions: w.lists, Webhooks: w.hooks, Now: now,
		Keys: keys{
			"k":      {Name: "k", Tenant: "acme", Scopes: every},
			"k2":     {Name: "k2", Tenant: "acme", Scopes: every},
			"rival":  {Name: "rival", Tenant: "rival", Scopes: every},
			"reader": {Name: "reader", Tenant: "acme", Scopes: []Scope{ScopeEvents}},
			"hasty":  {Name: "hasty", Tenant: "acme", Scopes: every, Durability: message.Written},
			"test":   {Name: "test", Tenant: "acme", Scopes: every, Test: true},
			"root":   {Name: "root", Scopes: []Scope{ScopeAdmin}},
		},
	}
	a, mux, err := newAPI(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	w.api, w.handler = a, a.wrap(mux)
	return w
}

type response struct {
	*httptest.ResponseRecorder
	t testing.TB
}

// problem checks that the answer is a problem document with status and code.
func (r response) problem(status int, code string) *Problem {
	r.t.Helper()
	p := &Problem{}
	if err := json.Unmarshal(r.Body.Bytes(), p); err != nil {
		r.t.Fatalf("%d %q: %v", r.Code, r.Body, err)
	}
	if r.Code != status || p.Status != status || p.Code != code || p.Title == "" || p.Type == "" || p.RequestID == "" {
		r.t.Errorf("got %d %s, want %d %s", r.Code, r.Body, status, code)
	}
	if got := r.Header().Get("Content-Type"); got != "application/problem+json" {
		r.t.Errorf("content type %q", got)
	}
	if (status == 429 || status == 503) && r.Header().Get("Retry-After") == "" {
		r.t.Errorf("%d without Retry-After", status)
	}
	return p
}

// field checks that the answer is a 422 that names field.
func (r response) field(field string) {
	r.t.Helper()
	p := r.problem(422, "invalid_request")
	for _, e := range p.Errors {
		if e.Field == field && e.Code != "" && e.Message != "" {
			return
		}
	}
	r.t.Errorf("got %s, want the field %q named", r.Body, field)
}

func (r response) into(status int, v any) {
	r.t.Helper()
	if r.Code != status {
		r.t.Fatalf("got %d %s, want %d", r.Code, r.Body, status)
	}
	if err := json.Unmarshal(r.Body.Bytes(), v); err != nil {
		r.t.Fatal(err)
	}
}

// call sends a request; headers are name, value, name, value...
func (w *world) call(method, target, body string, headers ...string) response {
	w.t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer k")
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
		if headers[i+1] == "" {
			r.Header.Del(headers[i])
		}
	}
	rec := httptest.NewRecorder()
	w.handler.ServeHTTP(rec, r)
	return response{rec, w.t}
}

func (w *world) post(body string, headers ...string) response {
	w.t.Helper()
	return w.call("POST", "/v1/messages", body, headers...)
}

// with is a valid message with some fields replaced; nil removes one.
func with(fields map[string]any) string {
	m := map[string]any{"from": "news@example.com", "to": "bob@example.net", "subject": "hello", "text": "hi"}
	for k, v := range fields {
		m[k] = v
		if v == nil {
			delete(m, k)
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(bytes.ReplaceAll(b, []byte("\\u003c"), []byte("<")))
}

func TestMessageIsAcceptedAfterTheCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	var got accepted
	res := w.post(with(nil))
	res.into(202, &got)
	if len(w.queue.subs) != 1 || got.Accepted != 1 || got.ID != w.queue.subs[0].Message.ID.String() || got.Recipients[0].ID != got.ID+".0" {
		t.Errorf("answer %s, %d stored", res.Body, len(w.queue.subs))
	}
	if res.Header().Get("X-Request-Id") == "" || res.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers %v", res.Header())
	}
	s := w.queue.subs[0]
	if s.Message.From.String() != "news@example.com" || s.Message.Tenant != "acme" || s.Message.Origin != "http:k" {
		t.Errorf("message %+v", s.Message)
	}
	w.queue.err = fmt.Errorf("queue: %w", inject.ErrFull)
	w.post(with(nil)).problem(503, "full")
}

func TestEveryFieldReachesTheMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	res := w.post(with(map[string]any{
		"return_path": "bounce@example.com", "campaign": "spring", "pool": "p", "class": "transactional", "tags": []string{"a"},
		"metadata": map[string]int{"o": 1}, "send_at": "2026-11-22T13:00:00Z", "expires_at": "2026-11-22T14:00:00Z", "sandbox": true,
		"cc": []string{"c@example.net"}, "bcc": map[string]string{"email": "secret@example.net"},
	}))
	res.into(202, &accepted{})
	m := w.queue.subs[0].Message
	if m.From.String() != "bounce@example.com" || m.Campaign != "spring" || m.Pool != "p" || m.Class != message.Transactional || len(m.Tags) != 1 ||
		string(m.Metadata) != `{"o":1}` || !m.NotBefore.Equal(noon.Add(time.Hour)) || !m.Expires.Equal(noon.Add(2*time.Hour)) || !m.Sandbox {
		t.Errorf("message %+v", m)
	}
	if b := string(w.queue.subs[0].Body); strings.Contains(b, "secret") || !strings.Contains(b, "Cc: c@example.net\r\n") || len(w.queue.subs[0].Recipients) != 3 {
		t.Errorf("body %s", b)
	}
	w.post(with(nil), "Authorization", "Bearer test").into(202, &accepted{})
	if !w.queue.subs[1].Message.Sandbox {
		t.Error("a test key sent for real")
	}
}
