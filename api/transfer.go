package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/tradewind-mta/tradewind/suppression"
)

// Transfers moves whole suppression lists; a *suppression.List does.
type Transfers interface {
	Import(ctx context.Context, r io.Reader, o suppression.ImportOptions) (suppression.Summary, error)
	Export(ctx context.Context, w io.Writer, tenant string, f suppression.Format) (rows int, err error)
}

// transferTypes are the media types of lists.
var transferTypes = map[string]suppression.Format{
	"text/csv": suppression.CSV, "application/x-ndjson": suppression.NDJSON, "application/ndjson": suppression.NDJSON,
}

// alive gives a transfer another lineTimeout with every read, or write.
type alive struct {
	r      io.Reader
	w      io.Writer
	extend func(time.Time) error
}

func (a alive) Read(p []byte) (int, error) {
	a.extend(time.Now().Add(lineTimeout)) // real time: it is the kernel's clock
	return a.r.Read(p)
}

func (a alive) Write(p []byte) (int, error) {
	a.extend(time.Now().Add(lineTimeout))
	return a.w.Write(p)
}

// importSuppressions reads a list of any length, holding some thousand rows of
// it at a time. What is already in force is never weakened by it.
func (a *api) importSuppressions(w http.ResponseWriter, r *http.Request, p *Principal) error {
	q, err := query(r, "stream", "reason")
	if err != nil {
		return err
	}
	kind, err := contentType(r)
	if err != nil {
		return err
	}
	format, ok := transferTypes[kind]
	if !ok {
		return problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "send text/csv or application/x-ndjson")
	}
	o := suppression.ImportOptions{Tenant: p.Tenant, Stream: q["stream"], Format: format, Source: "import"}
	if why := badName(o.Stream); why != "" {
		return fieldProblem("stream", "invalid", "%s", why)
	}
	if s := q["reason"]; s != "" {
		if o.Reason, err = suppression.ParseReason(s); err != nil {
			return fieldProblem("reason", "invalid", "is not a reason")
		}
	}
	in, err := bodyReader(r)
	if err != nil {
		return err
	}
	rc := http.NewResponseController(w)
	sum, err := a.deps.Transfers.Import(r.Context(), alive{r: in, extend: rc.SetReadDeadline}, o)
	rc.SetWriteDeadline(time.Now().Add(lineTimeout))
	switch {
	case errors.Is(err, suppression.ErrHeader):
		return fieldProblem("body", "header", "the first line names no column address or email")
	case errors.Is(err, suppression.ErrBadEntry):
		return fieldProblem("stream", "invalid", "%v", err)
	case err != nil && sum.Added == 0 && sum.Lines == 0:
		return badBody(err)
	}
	out := importAnswer{Lines: sum.Lines, Added: sum.Added, Bad: sum.Bad, Errors: []lineError{}}
	for _, e := range sum.Errors {
		out.Errors = append(out.Errors, lineError{e.Line, e.Err.Error()})
	}
	if err != nil {
		// What is in stays in, so the client must hear how far it came.
		out.Incomplete = "the import broke off; send the list again, nothing is counted twice"
		a.deps.Log.Warn("import of suppressions broke off", "tenant", p.Tenant, "err", err)
		return writeJSON(w, http.StatusBadRequest, out)
	}
	return writeJSON(w, http.StatusOK, out)
}

type lineError struct {
	Line    int    `json:"line"`
	Message string `json:"message"`
}

type importAnswer struct {
	Lines      int         `json:"lines"`
	Added      int         `json:"added"`
	Bad        int         `json:"bad"`
	Errors     []lineError `json:"errors"` // the first hundred
	Incomplete string      `json:"incomplete,omitempty"`
}

// exportSuppressions streams the tenant's list.
func (a *api) exportSuppressions(w http.ResponseWriter, r *http.Request, p *Principal) error {
	q, err := query(r, "format")
	if err != nil {
		return err
	}
	format, kind := suppression.CSV, "text/csv; charset=utf-8"
	switch q["format"] {
	case "", "csv":
	case "ndjson":
		format, kind = suppression.NDJSON, "application/x-ndjson"
	default:
		return fieldProblem("format", "invalid", "is not csv or ndjson")
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	if _, err := a.deps.Transfers.Export(r.Context(), alive{w: w, extend: rc.SetWriteDeadline}, p.Tenant, format); err != nil {
		// The status is sent. Breaking the connection is the only way left to
		// say that the list is not whole.
		a.deps.Log.Warn("export of suppressions broke off", "tenant", p.Tenant, "err", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}
