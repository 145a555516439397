package suppression

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
)

func TestImportOfAnOldListBringsNobodyBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.add("acme", "", "gone@example.com", Unsubscribe)
	w.add("acme", "", "erased@example.com", Erasure)
	in := "email,reason,expires\ngone@example.com,manual,2026-11-23\nerased@example.com,import,2026-11-23\nnew@example.com,,2026-11-23\n"
	sum, err := w.Import(t.Context(), strings.NewReader(in), ImportOptions{Tenant: "acme"})
	if err != nil || sum.Added != 3 || sum.Bad != 0 {
		t.Fatalf("got %+v, %v", sum, err)
	}
	w.want("acme", "", "new@example.com", Import)
	w.clock.advance(10 * 365 * 24 * time.Hour)
	w.want("acme", "", "gone@example.com", Unsubscribe)
	w.want("acme", "", "erased@example.com", Erasure)
	w.want("acme", "", "new@example.com", NoReason)
}

func TestImportPassesOverBadLinesAndSaysWhich(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		f  Format
		in string
	}{
		"csv": {CSV, "\xEF\xBB\xBFAddress,Reason,Stream,First,x\r\n" +
			"a@example.com,hard-bounce,news,2020-01-02T03:04:05Z,ignored\r\n" +
			"not an address,,,,\r\n" +
			"\r\n" +
			"\"b@example.com\",\"unsubscribe\"\r\n" +
			"c@example.com,because,,,\r\n" +
			"\"d@example.com,manual,,,\r\n" +
			"e@example.com,,,yesterday,\r\n" +
			strings.Repeat("x", 2*maxLine) + "\r\n" +
			"f@example.com"},
		"ndjson": {NDJSON, `{"address":"a@example.com","reason":"hard-bounce","stream":"news","created_at":"2020-01-02T03:04:05Z","x":1}` + "\n" +
			`{"email":"not an address"}` + "\n\n" +
			`{"email":"b@example.com","reason":"unsubscribe"}` + "\n" +
			`{"email":"c@example.com","reason":"because"}` + "\n" +
			`{"email":"d@example.com"` + "\n" +
			`{"email":"e@example.com","first":"yesterday"}` + "\n" +
			`{"email":"` + strings.Repeat("x", 2*maxLine) + "\n" +
			`{"email":"f@example.com"}`},
	} {
		w := newWorld(t, Config{})
		sum, err := w.Import(t.Context(), strings.NewReader(tc.in), ImportOptions{Tenant: "acme", Format: tc.f})
		if err != nil || sum.Lines != 8 || sum.Added != 3 || sum.Bad != 5 || len(sum.Errors) != 5 {
			t.Errorf("%s: got %+v, %v", name, sum, err)
		}
		w.want("acme", "news", "a@example.com", HardBounce)
		w.want("acme", "", "b@example.com", Unsubscribe)
		w.want("acme", "", "f@example.com", Import)
		if e, err := w.Get("acme", "news", message.MustAddress("a@example.com")); err != nil || e.First.Year() != 2020 {
			t.Errorf("%s: first seen %v, %v", name, e.First, err)
		}
	}
}

func TestImportWithoutAddressColumnIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	for _, in := range []string{"name,reason\na@example.com,manual\n", "a@example.com\nb@example.com\n", strings.Repeat("x", 2*maxLine)} {
		if _, err := w.Import(t.Context(), strings.NewReader(in), ImportOptions{Tenant: "acme"}); !errors.Is(err, ErrHeader) {
			t.Errorf("got %v for %.20q, want ErrHeader", err, in)
		}
	}
}

func TestImportReportsProgressAndStopsWhenTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	ctx, stop := context.WithCancel(t.Context())
	calls := 0
	sum, err := w.Import(ctx, addresses(100_000), ImportOptions{Tenant: "acme", Progress: func(s Summary) {
		if calls++; calls == 2 {
			stop()
		}
	}})
	if !errors.Is(err, context.Canceled) || sum.Added < 2*importRound || sum.Added > 6*importRound {
		t.Errorf("got %d added, %v", sum.Added, err)
	}
}

func TestExportCanBeImportedElsewhere(t *testing.T) {
	t.Parallel()
	for _, f := range []Format{CSV, NDJSON} {
		w := newWorld(t, Config{KeepAddresses: true, Policy: Policy{Manual: 48 * time.Hour}})
		w.add("acme", "news", `"odd, \"one\""@example.com`, Unsubscribe)
		w.add("acme", "", "bob@example.com", Manual)
		w.add("other", "", "eve@example.com", Manual)
		var out bytes.Buffer
		rows, err := w.Export(t.Context(), &out, "acme", f)
		if err != nil || rows != 2 {
			t.Fatalf("exported %d rows, %v", rows, err)
		}
		w2 := newWorld(t, Config{KeepAddresses: true})
		if sum, err := w2.Import(t.Context(), &out, ImportOptions{Tenant: "acme", Format: f}); err != nil || sum.Bad != 0 {
			t.Fatalf("got %+v, %v", sum, err)
		}
		w2.want("acme", "news", `"odd, \"one\""@example.com`, Unsubscribe)
		w2.want("acme", "", "bob@example.com", Manual)
		w2.want("other", "", "eve@example.com", NoReason)
		w2.clock.advance(49 * time.Hour)
		w2.want("acme", "", "bob@example.com", NoReason)
	}
}

func FuzzImport(f *testing.F) {
	f.Add([]byte("address,reason\na@example.com,manual\n\"b@example.com\",\n"), false)
	f.Add([]byte(`{"email":"a@example.com","expires":"2027-01-01"}`), true)
	f.Add([]byte("email\n\"a\n\"@x.com\n"), false)
	db := openLedger(f, vfs.NewMem())
	f.Cleanup(func() { closeDB(f, db) })
	l := newList(f, db, Config{})
	f.Fuzz(func(t *testing.T, in []byte, ndjson bool) {
		o := ImportOptions{Tenant: "acme"}
		if ndjson {
			o.Format = NDJSON
		}
		sum, err := l.Import(t.Context(), bytes.NewReader(in), o)
		if err != nil && !errors.Is(err, ErrHeader) {
			t.Fatal(err)
		}
		if sum.Added+sum.Bad != sum.Lines && err == nil {
			t.Fatalf("%d lines, but %d added and %d bad", sum.Lines, sum.Added, sum.Bad)
		}
	})
}

// addresses is a CSV of n addresses.
func addresses(n int) io.Reader {
	r, w := io.Pipe()
	go func() {
		buf := []byte("address\n")
		for i := range n {
			buf = fmt.Appendf(buf, "subscriber%d@mail%d.example.com\n", i, i%50)
			if len(buf) > 60<<10 {
				if _, err := w.Write(buf); err != nil {
					return
				}
				buf = buf[:0]
			}
		}
		w.Write(buf)
		w.Close()
	}()
	return r
}
