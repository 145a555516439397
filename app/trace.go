package app

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/mta"
)

// traceTimeout is how long a watcher of dialogues may take to read.
const traceTimeout = 30 * time.Second

// getTrace streams the dialogues that source and host of the query choose, a
// JSON object a line, until the client goes or the engine stops.
func (a *App) getTrace(w http.ResponseWriter, r *http.Request, _ *api.Principal) error {
	q := r.URL.Query()
	lines, stop := a.mta.Watch(mta.TraceFilter{Source: q.Get("source"), Host: q.Get("host")})
	if lines == nil {
		w.Header().Set("Retry-After", "5")
		return &api.Problem{Status: http.StatusTooManyRequests, Code: "too_many_traces", Detail: "too many follow dialogues already; end one of them"}
	}
	defer stop()
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for {
		// Errors of deadline and flush show at the next write.
		rc.SetWriteDeadline(time.Now().Add(traceTimeout)) // the kernel's clock
		rc.Flush()
		select {
		case <-r.Context().Done():
			return nil
		case <-a.closing:
			return nil
		case l := <-lines:
			if enc.Encode(l) != nil {
				return nil
			}
			for range len(lines) {
				if enc.Encode(<-lines) != nil {
					return nil
				}
			}
		}
	}
}
