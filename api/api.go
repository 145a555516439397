// Package api is HTTP: injection, message status, events, suppressions and
// webhooks for applications (API), and health, metrics and queue operations
// for operators (Admin), on separate listeners.
//
// It promises that a 202 is sent only after the durable commit, that no field
// of a request can add a header or a recipient to a mail, that every error is
// a problem document of RFC 9457 which names the field, and that a key sees
// only its own tenant. What is behind it is reached through the small
// interfaces of this package.
package api

import (
	"context"
	_ "embed"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

// Config is what an operator may set; the zero value is usable.
type Config struct {
	// TrustLoopback answers clients on a loopback address without a key, as
	// LoopbackTenant with every scope. Requests that name another Host than
	// loopback or Hosts, or that passed a proxy, are not trusted.
	// Default: false.
	TrustLoopback bool
	// LoopbackTenant is the tenant of trusted loopback clients.
	// Default: "default".
	LoopbackTenant string
	// Hosts are host names, without port, that requests may name beside
	// loopback ones where that is checked: on the admin listener and for
	// trusted loopback clients.
	Hosts []string

	// MaxBody is the size of a request body in octets, after decompression; a
	// streamed body has no such limit, but each of its lines has.
	// Default: 64 MiB.
	MaxBody int
	// MaxRecipients is the number of recipients of one request.
	// Default: 10,000.
	MaxRecipients int
	// MaxMemory is how many octets of request bodies and of mail built from
	// them may be in memory at once, over all requests; more is answered with
	// 503. Default: 512 MiB.
	MaxMemory int
	// ReplayFor is how long an Idempotency-Key is remembered. Default: 24 h.
	ReplayFor time.Duration
}

func (c Config) withDefaults() Config {
	if c.LoopbackTenant == "" {
		c.LoopbackTenant = "default"
	}
	for _, d := range [...]struct {
		v       *int
		initial int
	}{{&c.MaxBody, 64 << 20}, {&c.MaxRecipients, 10_000}, {&c.MaxMemory, 512 << 20}} {
		if *d.v <= 0 {
			*d.v = d.initial
		}
	}
	if c.ReplayFor <= 0 {
		c.ReplayFor = 24 * time.Hour
	}
	return c
}

// Deps is what stands behind the API. Inject is required; a route whose part
// is nil answers 501.
type Deps struct {
	Inject       *inject.Injector
	Keys         Keys
	Replays      Replays
	Queue        Queue
	Journal      Journal
	Suppressions Suppressions
	Transfers    Transfers
	Webhooks     Webhooks
	// Allow says how long a caller must wait before it may hand over n more
	// recipients; 0 lets it pass. Nil sets no limit.
	Allow func(p *Principal, n int) time.Duration

	Now     func() time.Time // nil means time.Now
	Log     *slog.Logger     // nil discards
	Metrics prometheus.Registerer
}

// Errors that the parts behind the API wrap.
var (
	// ErrNotFound is the answer to a name that means nothing, or that belongs
	// to another tenant: a caller must not learn which.
	ErrNotFound = errors.New("not found")
	// ErrCursorGone reports a cursor older than what the journal keeps.
	ErrCursorGone = errors.New("the cursor is older than the journal")
	// ErrConflict reports something that cannot be done in the present state,
	// such as cancelling what was delivered.
	ErrConflict = errors.New("conflict")
	// ErrForbidden reports a suppression that only the person can lift.
	ErrForbidden = errors.New("only the person can lift this suppression")
)

// Replays finds remembered requests; package queue stores them in the batch of
// the message (message.Submission).
type Replays interface {
	// Replay returns what was stored under key, or nil.
	Replay(ctx context.Context, key [32]byte) (*message.Idempotency, error)
}

// Queue answers for messages that are not settled. An empty tenant sees all.
type Queue interface {
	// Status returns what is waiting of a message, or ErrNotFound.
	Status(ctx context.Context, tenant string, id message.ID) (*MessageStatus, error)
	// Cancel takes recipient n of a message, or all of its recipients, out of
	// the queue and returns how many that were. ErrNotFound: no such message.
	// ErrConflict: there is nothing left to cancel.
	Cancel(ctx context.Context, tenant string, id message.ID, n uint32, all bool) (int, error)
}

// Journal reads events.
type Journal interface {
	// Read returns up to limit events after the cursor that pass f, in order,
	// and the cursor to go on with, which may move on without events. Zero is
	// the oldest event kept. ErrCursorGone: after is older than that.
	Read(ctx context.Context, after uint64, f EventFilter, limit int) (events []message.Event, next uint64, err error)
}

// EventFilter selects events; a zero field selects all.
type EventFilter struct {
	Tenant    string
	Types     []message.EventType
	Recipient message.Address
	Message   message.ID
}

//go:embed openapi.json
var openAPI []byte

type api struct {
	cfg     Config
	deps    Deps
	ids     message.IDSource // of requests
	memory  budget
	running running
	metric  *prometheus.CounterVec
	waits   sync.Mutex // held while a profile of waits is taken
	routes  []string   // patterns, for the test against openapi.json
}

// API makes the handler of the public API listener.
func API(cfg Config, deps Deps) (http.Handler, error) {
	a, mux, err := newAPI(cfg, deps)
	if err != nil {
		return nil, err
	}
	return a.wrap(mux), nil
}

func newAPI(cfg Config, deps Deps) (*api, *http.ServeMux, error) {
	if deps.Inject == nil {
		return nil, nil, errors.New("api: no injector")
	}
	if deps.Keys == nil && !cfg.TrustLoopback {
		return nil, nil, errors.New("api: no keys, and loopback is not trusted: nobody could call")
	}
	a, err := newBase(cfg, deps, "api")
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	for _, r := range [...]struct {
		pattern string
		scope   Scope
		present bool
		serve   handler
	}{
		{"POST /v1/messages", ScopeInject, true, a.postMessages},
		{"GET /v1/messages/{id}", ScopeEvents, deps.Queue != nil && deps.Journal != nil, a.getMessage},
		{"DELETE /v1/messages/{id}", ScopeInject, deps.Queue != nil, a.deleteMessage},
		{"GET /v1/events", ScopeEvents, deps.Journal != nil, a.getEvents},
		{"GET /v1/suppressions", ScopeSuppression, deps.Suppressions != nil, a.getSuppressions},
		{"POST /v1/suppressions", ScopeSuppression, deps.Suppressions != nil, a.postSuppressions},
		{"DELETE /v1/suppressions", ScopeSuppression, deps.Suppressions != nil, a.deleteSuppressions},
		{"POST /v1/suppressions/import", ScopeSuppression, deps.Transfers != nil, a.importSuppressions},
		{"GET /v1/suppressions/export", ScopeSuppression, deps.Transfers != nil, a.exportSuppressions},
		{"GET /v1/webhooks", ScopeEvents, deps.Webhooks != nil, a.getWebhooks},
		{"POST /v1/webhooks", ScopeEvents, deps.Webhooks != nil, a.postWebhooks},
		{"POST /v1/webhooks/{id}/replay", ScopeEvents, deps.Webhooks != nil, a.replayWebhook},
		{"DELETE /v1/webhooks/{id}", ScopeEvents, deps.Webhooks != nil, a.deleteWebhook},
	} {
		if !r.present {
			r.serve = notConfigured
		}
		a.handle(mux, r.pattern, r.scope, r.serve)
	}
	a.handleOpen(mux, "GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/json")
		_, err := w.Write(openAPI)
		return err
	})
	return a, mux, nil
}

func notConfigured(http.ResponseWriter, *http.Request, *Principal) error {
	return problem(http.StatusNotImplemented, "not_configured", "this instance does not serve that")
}

func newBase(cfg Config, deps Deps, listener string) (*api, error) {
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	a := &api{cfg: cfg.withDefaults(), deps: deps}
	a.memory.total = int64(a.cfg.MaxMemory)
	a.memory.free = a.memory.total
	// route: the registered patterns and "none"; code: 2xx, 4xx, 5xx.
	a.metric = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name:        "tradewind_http_requests_total",
		Help:        "HTTP requests by listener (api, admin), route and class of answer (2xx, 3xx, 4xx, 5xx).",
		ConstLabels: prometheus.Labels{"listener": listener},
	}, []string{"route", "code"})
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(a.metric); err != nil {
			return nil, err
		}
	}
	return a, nil
}
