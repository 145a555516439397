package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/tradewind-mta/tradewind/inject"
)

// FieldError is one thing wrong with a request.
type FieldError struct {
	Field   string `json:"field"` // "recipients[3].email"
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Problem is an error as the client sees it (RFC 9457).
type Problem struct {
	Type      string       `json:"type"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Detail    string       `json:"detail,omitempty"`
	Code      string       `json:"code"`
	Errors    []FieldError `json:"errors,omitempty"`
	RequestID string       `json:"request_id,omitempty"`

	retryAfter time.Duration
	cause      error // for our log
}

func (p *Problem) Error() string {
	s := fmt.Sprintf("%d %s: %s", p.Status, p.Code, p.Detail)
	for _, e := range p.Errors {
		s += fmt.Sprintf("; %s: %s", e.Field, e.Message)
	}
	if p.cause != nil {
		s += ": " + p.cause.Error()
	}
	return s
}

func (p *Problem) Unwrap() error { return p.cause }

func problem(status int, code, format string, args ...any) *Problem {
	return &Problem{Status: status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// fieldProblem is a 422 for one field.
func fieldProblem(field, code, format string, args ...any) *Problem {
	return invalid([]FieldError{{field, code, fmt.Sprintf(format, args...)}})
}

func invalid(errs []FieldError) *Problem {
	p := problem(http.StatusUnprocessableEntity, "invalid_request", "the request has a field that cannot be used")
	p.Errors = errs
	return p
}

// unavailable is a 503 with a time to come back.
func unavailable(code string, cause error) *Problem {
	return &Problem{Status: http.StatusServiceUnavailable, Code: code, Detail: "try again later", retryAfter: 5 * time.Second, cause: cause}
}

// asProblem translates whatever a handler returned.
func asProblem(err error) *Problem {
	var p *Problem
	var in *inject.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &in):
		return fromInject(in)
	case errors.As(err, &tooLarge):
		return problem(http.StatusRequestEntityTooLarge, "too_large", "the request is larger than %d octets", tooLarge.Limit)
	case errors.Is(err, ErrNotFound):
		return problem(http.StatusNotFound, "not_found", "there is no such thing")
	case errors.Is(err, ErrForbidden):
		return problem(http.StatusForbidden, "forbidden", "only the person can lift this suppression: they asked for it themselves")
	case errors.Is(err, ErrConflict):
		return problem(http.StatusConflict, "conflict", "that can no longer be done")
	case errors.Is(err, ErrCursorGone):
		return problem(http.StatusGone, "cursor_gone", "the cursor is older than the events kept; begin again without it")
	}
	return unavailable("unavailable", err)
}

// fromInject translates a refusal at the door.
func fromInject(e *inject.Error) *Problem {
	fe := []FieldError{{fieldName(e.Field), e.Code, e.Message}}
	switch {
	case e.Code == inject.CodeForbidden && e.Temporary():
		// A tenant that is suspended today may send again tomorrow: a client
		// that hears 403 throws its mail away.
		p := unavailable(e.Code, e)
		p.Detail, p.Errors = e.Message, fe
		return p
	case e.Code == inject.CodeForbidden, e.Code == inject.CodeUnknownTenant:
		return &Problem{Status: http.StatusForbidden, Code: e.Code, Detail: e.Message, Errors: fe, cause: errors.Unwrap(e)}
	case e.Code == inject.CodeTooLarge:
		return &Problem{Status: http.StatusRequestEntityTooLarge, Code: e.Code, Detail: e.Message, Errors: fe}
	case e.Code == inject.CodeLimit:
		return invalid(fe)
	case e.Temporary():
		return unavailable(e.Code, e)
	}
	return invalid(fe)
}

// fieldName says in the words of a request what the door says in those of a
// mail.
func fieldName(f string) string {
	switch f {
	case "From":
		return "from"
	case "sender":
		return "return_path"
	case "body", "header":
		return "raw"
	}
	return f
}

func (a *api) writeProblem(w http.ResponseWriter, r *http.Request, err error) {
	p := *asProblem(err)
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		return // nobody is listening
	}
	p.RequestID = w.Header().Get("X-Request-Id")
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	h := w.Header()
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retryAfter+time.Second-1)/time.Second)))
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="tradewind"`)
	}
	if p.Status >= 500 && p.cause != nil {
		a.deps.Log.WarnContext(r.Context(), "request failed", "request_id", p.RequestID, "code", p.Code, "err", p.cause)
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Del("Content-Length")
	w.WriteHeader(p.Status)
	b, _ := json.Marshal(&p) // strings and numbers only: cannot fail
	w.Write(b)               // a client that went away is no error of ours
}

// writeJSON answers with v.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("api: answer: %w", err)
	}
	writeBytes(w, status, b)
	return nil
}

func writeBytes(w http.ResponseWriter, status int, b []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b) // a client that went away is no error of ours
}
