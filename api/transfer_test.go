package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/suppression"
)

// transferWorld is a world with a real list.
func transferWorld(t *testing.T) (*world, *suppression.List) {
	t.Helper()
	db, err := store.Open("data", store.Ledger, store.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	list, err := suppression.New(db, suppression.Config{Key: make([]byte, suppression.MinKey), KeepAddresses: true})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Config{}, inject.Deps{})
	w.api.deps.Transfers = list
	return w, list
}

func TestListsOfAnyLengthComeInAndGoOut(t *testing.T) {
	t.Parallel()
	w, list := transferWorld(t)
	mux := http.NewServeMux()
	w.api.handle(mux, "POST /import", ScopeSuppression, w.api.importSuppressions)
	w.api.handle(mux, "GET /export", ScopeSuppression, w.api.exportSuppressions)
	call := func(method, path, kind string, body io.Reader, key string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), method, path, body)
		r.Header.Set("Authorization", "Bearer "+key)
		if kind != "" {
			r.Header.Set("Content-Type", kind)
		}
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, r)
		return rec
	}
	var csv strings.Builder
	csv.WriteString("email,reason\n")
	for i := range 10_000 {
		fmt.Fprintf(&csv, "user%d@example.net,hard-bounce\n", i)
	}
	csv.WriteString("nobody,manual\n")
	if res := call("POST", "/import", "text/csv", strings.NewReader(csv.String()), "k"); res.Code != 200 || !strings.Contains(res.Body.String(), `"lines":10001,"added":10000,"bad":1,"errors":[{"line":10002,`) {
		t.Fatalf("%d %.300s", res.Code, res.Body)
	}
	if res := call("POST", "/import?reason=complaint&stream=spring", "application/x-ndjson", strings.NewReader(`{"address":"ann@example.net"}`), "k"); res.Code != 200 {
		t.Fatalf("%d %s", res.Code, res.Body)
	}
	if e, err := list.Get("acme", "spring", message.MustAddress("ann@example.net")); err != nil || e.Reason != suppression.Complaint {
		t.Errorf("%+v, %v", e, err)
	}
	for _, bad := range []struct {
		path, kind, body string
		want             int
	}{
		{"/import", "text/plain", "email\n", 415},
		{"/import", "text/csv", "name\nx\n", 422},
		{"/import?reason=whim", "text/csv", "email\n", 422},
		{"/import?tenant=rival", "text/csv", "email\n", 422},
	} {
		if res := call("POST", bad.path, bad.kind, strings.NewReader(bad.body), "k"); res.Code != bad.want {
			t.Errorf("%s as %s: %d %s, want %d", bad.path, bad.kind, res.Code, res.Body, bad.want)
		}
	}
	// A list that breaks off says how far it came.
	broken := io.MultiReader(strings.NewReader("email\nx@example.net\n"), iotestError{})
	if res := call("POST", "/import", "text/csv", broken, "k"); res.Code != 400 || !strings.Contains(res.Body.String(), "incomplete") {
		t.Errorf("broken list: %d %s", res.Code, res.Body)
	}
	if res := call("GET", "/export", "", nil, "k"); res.Code != 200 || strings.Count(res.Body.String(), "\n") != 10_002 {
		t.Errorf("export: %d, %d lines", res.Code, strings.Count(res.Body.String(), "\n"))
	}
	if res := call("GET", "/export?format=ndjson", "", nil, "rival"); res.Code != 200 || res.Body.Len() != 0 {
		t.Errorf("another tenant sees %s", res.Body)
	}
	if res := call("GET", "/export?format=xml", "", nil, "k"); res.Code != 422 {
		t.Errorf("export as xml: %d", res.Code)
	}
}

type iotestError struct{}

func (iotestError) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// brokenTransfers fails in the middle of an export.
type brokenTransfers struct{ *suppression.List }

func (brokenTransfers) Export(_ context.Context, w io.Writer, _ string, _ suppression.Format) (int, error) {
	io.WriteString(w, "address\n")
	return 0, errors.New("disk")
}

func TestExportThatFailsBreaksTheConnection(t *testing.T) {
	t.Parallel()
	w, list := transferWorld(t)
	w.api.deps.Transfers = brokenTransfers{list}
	defer func() {
		if p := recover(); p != http.ErrAbortHandler {
			t.Errorf("recovered %v, want the connection to be broken", p)
		}
	}()
	w.api.exportSuppressions(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/x", nil), &Principal{Tenant: "acme"})
	t.Error("a list that is not whole looks whole")
}
