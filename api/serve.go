package api

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// NewServer returns a server for h that no slow client can hold on to: headers
// within 10 s and 64 KiB, a body within 2 minutes (a stream gets that for each
// line), an answer within 5, idle connections for 2.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       2 * time.Minute,
		WriteTimeout:      5 * time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	if log != nil {
		s.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	}
	return s
}

// handler serves one route; an error it returns becomes a problem document.
type handler func(w http.ResponseWriter, r *http.Request, p *Principal) error

// handle registers a route that needs a key with scope.
func (a *api) handle(mux *http.ServeMux, pattern string, scope Scope, serve handler) {
	a.handleOpen(mux, pattern, func(w http.ResponseWriter, r *http.Request) error {
		p, err := a.authenticate(r)
		if err != nil {
			return err
		}
		if !p.Has(scope) {
			return problem(http.StatusForbidden, "forbidden", "the key lacks the scope %q", string(scope))
		}
		return serve(w, r, p)
	})
}

// handleOpen registers a route that needs no key.
func (a *api) handleOpen(mux *http.ServeMux, pattern string, serve func(http.ResponseWriter, *http.Request) error) {
	a.routes = append(a.routes, pattern)
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := serve(w, r); err != nil {
			a.writeProblem(w, r, err)
		}
	})
}

// wrap adds what every answer has.
func (a *api) wrap(mux *http.ServeMux) http.Handler {
	cross := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		h := rec.Header()
		h.Set("X-Request-Id", a.ids.New(a.deps.Now()).String())
		h.Set("X-Content-Type-Options", "nosniff")
		route := "none"
		switch _, pattern := mux.Handler(r); {
		case cross.Check(r) != nil:
			// A browser sends this for a page that is none of ours.
			a.writeProblem(rec, r, problem(http.StatusForbidden, "cross_site", "requests from other web sites are refused"))
		case pattern == "":
			a.notFound(rec, r, mux)
		default:
			route = pattern
			mux.ServeHTTP(rec, r)
		}
		a.metric.WithLabelValues(route, fmt.Sprintf("%dxx", rec.code()/100)).Inc()
	})
}

// notFound answers 404 or 405 as the mux would, as a problem document.
func (a *api) notFound(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	probe := &recorder{ResponseWriter: discard{http.Header{}}}
	mux.ServeHTTP(probe, r)
	switch status := probe.code(); {
	case status == http.StatusMethodNotAllowed:
		w.Header().Set("Allow", probe.Header().Get("Allow"))
		a.writeProblem(w, r, problem(status, "method_not_allowed", "allowed: %s", probe.Header().Get("Allow")))
	default:
		a.writeProblem(w, r, problem(http.StatusNotFound, "not_found", "there is no such path"))
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header       { return d.h }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// recorder remembers the status.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}

// Unwrap lets http.ResponseController through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// budget bounds the memory that all requests together hold.
type budget struct {
	total int64
	mu    sync.Mutex // protects free
	free  int64
}

// loan is what one request holds of a budget.
type loan struct {
	from *budget
	held int64
}

var errMemory = errors.New("too many octets in flight")

// take adds n octets to the loan. What could never be had is refused for good,
// so that nobody tries again in vain.
func (l *loan) take(n int) error {
	l.from.mu.Lock()
	defer l.from.mu.Unlock()
	if l.held+int64(n) > l.from.total {
		return problem(http.StatusRequestEntityTooLarge, "too_large", "the request needs more memory than there is for all; send fewer recipients at once")
	}
	if int64(n) > l.from.free {
		return unavailable("busy", errMemory)
	}
	l.from.free -= int64(n)
	l.held += int64(n)
	return nil
}

// giveBack returns all of it.
func (l *loan) giveBack() {
	l.from.mu.Lock()
	l.from.free += l.held
	l.held = 0
	l.from.mu.Unlock()
}

// contentType is the media type of a request body.
func contentType(r *http.Request) (string, error) {
	h := r.Header.Get("Content-Type")
	if h == "" {
		return "", nil
	}
	kind, params, err := mime.ParseMediaType(h)
	if err != nil {
		return "", problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "the Content-Type cannot be read")
	}
	if c := params["charset"]; c != "" && !strings.EqualFold(c, "utf-8") && strings.HasPrefix(kind, "application/") {
		return "", problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "only UTF-8 is understood")
	}
	return kind, nil
}

// bodyReader reads a request body, decompressed. The limit on what it yields
// is the caller's to keep.
func bodyReader(r *http.Request) (io.Reader, error) {
	switch e := strings.ToLower(r.Header.Get("Content-Encoding")); e {
	case "", "identity":
		return r.Body, nil
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(bufio.NewReader(r.Body))
		if err != nil {
			return nil, badBody(err)
		}
		return z, nil
	default:
		return nil, problem(http.StatusUnsupportedMediaType, "unsupported_encoding", "only gzip is understood as Content-Encoding")
	}
}

// badBody says why a body could not be read.
func badBody(err error) error {
	var slow net.Error
	var p *Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &slow) && slow.Timeout():
		return problem(http.StatusRequestTimeout, "timeout", "the body took too long to arrive")
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return problem(http.StatusBadRequest, "bad_gzip", "the body is not gzip, or is damaged")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return problem(http.StatusBadRequest, "truncated", "the body ends too early")
	}
	return problem(http.StatusBadRequest, "bad_body", "the body cannot be read")
}

// readBody reads a whole body of at most max octets, decompressed, and takes
// memory for it as it grows: a client is not believed about what it announces.
func readBody(r *http.Request, max int, l *loan) ([]byte, error) {
	tooLarge := problem(http.StatusRequestEntityTooLarge, "too_large", "the body is larger than %d octets", max)
	if r.ContentLength > int64(max) {
		return nil, tooLarge
	}
	in, err := bodyReader(r)
	if err != nil {
		return nil, err
	}
	step := 64 << 10
	if n := r.ContentLength; n > 0 && n < int64(step) && r.Header.Get("Content-Encoding") == "" {
		step = int(n) + 1 // one more, so that the end is seen without growing
	}
	if err := l.take(step); err != nil {
		return nil, err
	}
	b := make([]byte, 0, step)
	for {
		if len(b) == cap(b) {
			if err := l.take(cap(b)); err != nil {
				return nil, err
			}
			b = append(make([]byte, 0, 2*cap(b)), b...)
		}
		n, err := in.Read(b[len(b):min(cap(b), max+1)])
		b = b[:len(b)+n]
		if len(b) > max {
			return nil, tooLarge
		}
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, badBody(err)
		}
	}
}
