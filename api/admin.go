package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/pprof"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// AdminDeps is what stands behind the admin listener.
type AdminDeps struct {
	Deps
	// Gatherer is served at /metrics; nil serves none.
	Gatherer prometheus.Gatherer
	// Ready are the conditions of /readyz by name; a nil error is good. They
	// must be quick and return when ctx ends.
	Ready map[string]func(ctx context.Context) error
	// Routes are the operations of other packages: queues, suspensions,
	// traces, explanations.
	Routes []AdminRoute
}

// AdminRoute is one operation for operators. Its caller has been found to hold
// the admin scope.
type AdminRoute struct {
	Pattern string // of http.ServeMux, with the method: "GET /v1/queues"
	// Serve answers. An error becomes a problem document: a *Problem as it is,
	// and ErrNotFound and ErrConflict as 404 and 409.
	Serve func(w http.ResponseWriter, r *http.Request, p *Principal) error
}

// Admin makes the handler of the admin listener. It answers only requests that
// name a loopback address or one of Config.Hosts, so that no web page can
// reach it by pointing a name of its own here. /healthz, /readyz and /metrics
// need no key; everything else needs the admin scope.
func Admin(cfg Config, deps AdminDeps) (http.Handler, error) {
	if deps.Keys == nil && !cfg.TrustLoopback && len(deps.Routes) > 0 {
		return nil, errors.New("api: no keys, and loopback is not trusted: nobody could operate")
	}
	a, err := newBase(cfg, deps.Deps, "admin")
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	a.handleOpen(mux, "GET /healthz", func(w http.ResponseWriter, _ *http.Request) error {
		return writeJSON(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	a.handleOpen(mux, "GET /readyz", func(w http.ResponseWriter, r *http.Request) error {
		return readyz(w, r, deps.Ready)
	})
	if deps.Gatherer != nil {
		h := promhttp.HandlerFor(deps.Gatherer, promhttp.HandlerOpts{})
		a.handleOpen(mux, "GET /metrics", func(w http.ResponseWriter, r *http.Request) error {
			h.ServeHTTP(w, r)
			return nil
		})
	}
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /debug/pprof/":        pprof.Index,
		"GET /debug/pprof/cmdline": pprof.Cmdline,
		"GET /debug/pprof/profile": pprof.Profile,
		"GET /debug/pprof/symbol":  pprof.Symbol,
		"GET /debug/pprof/trace":   pprof.Trace,
	} {
		a.handle(mux, pattern, ScopeAdmin, func(w http.ResponseWriter, r *http.Request, _ *Principal) error {
			h(w, r)
			return nil
		})
	}
	a.handle(mux, "GET /debug/pprof/block", ScopeAdmin, a.getWaits("block"))
	a.handle(mux, "GET /debug/pprof/mutex", ScopeAdmin, a.getWaits("mutex"))
	for _, r := range deps.Routes {
		a.handle(mux, r.Pattern, ScopeAdmin, r.Serve)
	}
	inner := a.wrap(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.knownHost(r.Host) {
			a.writeProblem(w, r, problem(http.StatusMisdirectedRequest, "unknown_host", "the request names a host that is not in the configured list"))
			return
		}
		// Reading is not harmless here, so unlike elsewhere GET is held to it
		// as well; a person who types the address sends "none".
		if s := r.Header.Get("Sec-Fetch-Site"); s != "" && s != "same-origin" && s != "none" {
			a.writeProblem(w, r, problem(http.StatusForbidden, "cross_site", "requests from other web sites are refused"))
			return
		}
		inner.ServeHTTP(w, r)
	}), nil
}

// How closely waits are looked at while a profile of them is taken.
const (
	waitsRate   = 10 * time.Microsecond // one wait is noted for so much of waiting
	waitsFrac   = 100                   // one in so many contentions of a mutex
	waitsFor    = 10                    // seconds
	waitsAtMost = 60
)

// getWaits serves the profile called name, of what goroutines wait for. The runtime
// keeps none by itself, because it costs: it does for the seconds that are asked for,
// one request at a time.
func (a *api) getWaits(name string) func(http.ResponseWriter, *http.Request, *Principal) error {
	return func(w http.ResponseWriter, r *http.Request, _ *Principal) error {
		q := r.URL.Query()
		if q.Get("seconds") == "" {
			q.Set("seconds", strconv.Itoa(waitsFor))
		}
		if n, err := strconv.Atoi(q.Get("seconds")); err != nil || n < 1 || n > waitsAtMost {
			return fieldProblem("seconds", "out_of_range", "seconds is a number from 1 to %d", waitsAtMost)
		}
		if !a.waits.TryLock() {
			return problem(http.StatusConflict, "busy", "a profile of waits is being taken; try again when it is done")
		}
		defer a.waits.Unlock()
		runtime.SetBlockProfileRate(int(waitsRate))
		defer runtime.SetBlockProfileRate(0)
		runtime.SetMutexProfileFraction(waitsFrac)
		defer runtime.SetMutexProfileFraction(0)
		r = r.Clone(r.Context())
		r.URL.RawQuery = q.Encode()
		pprof.Handler(name).ServeHTTP(w, r)
		return nil
	}
}

// readyz tells whether this instance should be given mail, and what is missing
// if not.
func readyz(w http.ResponseWriter, r *http.Request, checks map[string]func(context.Context) error) error {
	var missing []string
	for name, check := range checks {
		if err := check(r.Context()); err != nil {
			missing = append(missing, name+": "+err.Error())
		}
	}
	if len(missing) > 0 {
		sort.Strings(missing)
		return unavailableDetail("not_ready", strings.Join(missing, "; "))
	}
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

func unavailableDetail(code, detail string) *Problem {
	p := unavailable(code, nil)
	p.Detail = detail
	return p
}
