package loadgen_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

func TestHTTPSourceAccountsForEveryRequest(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen[string(b)]++
		n := len(seen)
		mu.Unlock()
		switch {
		case r.Header.Get("Authorization") != "Bearer k" || r.Header.Get("Content-Type") != "application/json":
			w.WriteHeader(http.StatusUnauthorized)
		case n%10 == 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case n%10 == 5:
			w.WriteHeader(http.StatusUnprocessableEntity)
		case n%50 == 1:
			panic(http.ErrAbortHandler) // no answer
		default:
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	defer srv.Close()
	acks := map[int]int{}
	rep, err := loadgen.HTTPSource{
		URL: srv.URL, Connections: 4, Messages: 200, Header: http.Header{"Authorization": {"Bearer k"}},
		Body: func(n int) []byte { return fmt.Appendf(nil, `{"n":%d}`, n) },
		OnAck: func(n, status int, _ []byte, _ time.Time) {
			mu.Lock()
			defer mu.Unlock()
			acks[n] = status
		},
	}.Run(t.Context())
	if err != nil || rep.Sent != 200 || rep.Accepted != 156 || rep.Deferred != 20 || rep.Rejected != 20 || rep.Unknown != 4 {
		t.Errorf("%+v, %v", rep, err)
	}
	if len(acks) != 200 || len(seen) != 200 {
		t.Errorf("%d acknowledged, %d arrived", len(acks), len(seen))
	}
}
