package suppression

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Format of an import or export.
type Format uint8

// Formats.
const (
	// CSV has a header line that names the columns: address (or email), reason,
	// stream, first (or created_at), expires, source. Only the address is
	// needed; unknown columns are ignored.
	CSV Format = iota
	// NDJSON has one object a line with members of the same names.
	NDJSON
)

const (
	maxLine      = 64 << 10
	importRound  = 4096 // rows a commit
	maxBadLines  = 100  // described in a Summary
	exportBuffer = 64 << 10
)

// ImportOptions say where imported rows belong.
type ImportOptions struct {
	Tenant string
	Stream string // where a row names none
	Format Format
	// Reason where a row names none; zero means Import.
	Reason Reason
	Source string
	// Progress is called after every commit; may be nil.
	Progress func(Summary)
}

// Summary counts what an import has done.
type Summary struct {
	Lines int // read, the header not counted
	Added int // rows added or confirmed
	Bad   int // lines passed over
	// Errors describes the first hundred bad lines.
	Errors []LineError
}

// LineError says what is wrong with one line.
type LineError struct {
	Line int // from 1, the header counted
	Err  error
}

func (e LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// ErrHeader reports a CSV without a usable header line.
var ErrHeader = errors.New("suppression: the first line names no column address or email")

// Import reads rows from r and adds them, some thousands a commit, holding no
// more than that in memory. An existing suppression is never weakened or
// lifted by an import (SUP-2): the stronger reason and the longer hold stay.
// Bad lines are counted and passed over. Imported rows give no events. When
// Import returns early, with an error, the rows of the summary are in.
func (l *List) Import(ctx context.Context, r io.Reader, o ImportOptions) (Summary, error) {
	if o.Reason == NoReason {
		o.Reason = Import
	}
	in := importer{l: l, o: o}
	var err error
	if o.Format == NDJSON {
		err = in.ndjson(ctx, r)
	} else {
		err = in.csv(ctx, r)
	}
	if err == nil {
		err = in.flush()
	}
	return in.sum, err
}

// importer gathers rows into commits.
type importer struct {
	l   *List
	o   ImportOptions
	sum Summary
	ops []op
}

// record is one row of an import or export. Times are RFC 3339, or a date.
type record struct {
	Address string `json:"address,omitempty"`
	Email   string `json:"email,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Stream  string `json:"stream,omitempty"`
	First   string `json:"first,omitempty"`
	Created string `json:"created_at,omitempty"`
	Last    string `json:"last,omitempty"`
	Expires string `json:"expires,omitempty"`
	Source  string `json:"source,omitempty"`
	Hash    string `json:"hash,omitempty"`
}

func (in *importer) bad(line int, err error) {
	in.sum.Bad++
	if len(in.sum.Errors) < maxBadLines {
		in.sum.Errors = append(in.sum.Errors, LineError{line, err})
	}
}

func (in *importer) add(line int, rec *record) error {
	a, err := in.addition(rec)
	if err == nil {
		in.ops = append(in.ops, op{quiet: true})
		if err = in.l.prepare(&in.ops[len(in.ops)-1], a); err != nil {
			in.ops = in.ops[:len(in.ops)-1]
		}
	}
	if err != nil {
		in.bad(line, err)
		return nil
	}
	if len(in.ops) >= importRound {
		return in.flush()
	}
	return nil
}

func (in *importer) addition(rec *record) (*Addition, error) {
	a := &Addition{Tenant: in.o.Tenant, Stream: in.o.Stream, Reason: in.o.Reason, Source: in.o.Source}
	var err error
	if a.Address, err = message.ParseAddress(strings.TrimSpace(first(rec.Address, rec.Email))); err != nil {
		return nil, err
	}
	if rec.Reason != "" {
		if a.Reason, err = ParseReason(rec.Reason); err != nil {
			return nil, err
		}
	}
	if rec.Stream != "" {
		a.Stream = rec.Stream
	}
	if rec.Source != "" {
		a.Source = rec.Source
	}
	if s := first(rec.First, rec.Created); s != "" {
		if a.At, err = parseTime(s); err != nil {
			return nil, err
		}
	}
	if rec.Expires != "" {
		if a.Expires, err = parseTime(rec.Expires); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func parseTime(s string) (time.Time, error) {
	for _, layout := range [...]string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil && t.Year() >= 1970 && t.Year() < 10000 {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%w: %.40q is not a time such as 2026-11-22T10:00:00Z", ErrBadEntry, s)
}

func (in *importer) flush() error {
	if len(in.ops) == 0 {
		return nil
	}
	c := &change{ops: in.ops}
	if err := in.l.write.do(c); err != nil {
		return err
	}
	in.sum.Added += len(in.ops)
	in.l.metrics.added.WithLabelValues(Import.String()).Add(float64(len(in.ops)))
	in.ops = in.ops[:0]
	if in.o.Progress != nil {
		in.o.Progress(in.sum)
	}
	return nil
}

// lines calls fn with each line of r that is not blank. Lines too long are bad
// lines, not an end.
func (in *importer) lines(ctx context.Context, r io.Reader, fn func(line int, text []byte) error) error {
	br := bufio.NewReaderSize(r, maxLine)
	for n := 1; ; n++ {
		if n%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		text, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = br.ReadSlice('\n')
			}
			in.sum.Lines++
			in.bad(n, fmt.Errorf("%w: line longer than %d bytes", ErrBadEntry, maxLine))
			text = nil
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("suppression: import: %w", err)
		}
		if n == 1 {
			text = bytes.TrimPrefix(text, []byte("\xEF\xBB\xBF")) // spreadsheets put it there
		}
		if text = bytes.TrimSpace(text); len(text) > 0 {
			if err := fn(n, text); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

func (in *importer) ndjson(ctx context.Context, r io.Reader) error {
	return in.lines(ctx, r, func(line int, text []byte) error {
		in.sum.Lines++
		var rec record
		if err := json.Unmarshal(text, &rec); err != nil {
			in.bad(line, err)
			return nil
		}
		return in.add(line, &rec)
	})
}

// csv reads line by line: no column of ours holds a line break, and one stray
// quote must not swallow the rest of ten million rows.
func (in *importer) csv(ctx context.Context, r io.Reader) error {
	var columns []*string
	var rec record
	err := in.lines(ctx, r, func(line int, text []byte) error {
		fields, err := splitCSV(text)
		if columns == nil {
			if columns = rec.columns(fields); err != nil || columns == nil {
				return ErrHeader
			}
			return nil
		}
		in.sum.Lines++
		if err != nil {
			in.bad(line, err)
			return nil
		}
		rec = record{}
		for i, f := range fields {
			if i < len(columns) && columns[i] != nil {
				*columns[i] = strings.TrimSpace(f)
			}
		}
		return in.add(line, &rec)
	})
	if err == nil && columns == nil && in.sum.Bad > 0 {
		return ErrHeader
	}
	return err
}

// columns maps the names of a header to members of rec, or returns nil when
// there is no address among them.
func (rec *record) columns(names []string) []*string {
	known := map[string]*string{"address": &rec.Address, "email": &rec.Email, "reason": &rec.Reason, "stream": &rec.Stream,
		"first": &rec.First, "created_at": &rec.Created, "expires": &rec.Expires, "source": &rec.Source}
	out := make([]*string, len(names))
	ok := false
	for i, n := range names {
		n = strings.ToLower(strings.TrimSpace(n))
		out[i] = known[n]
		ok = ok || n == "address" || n == "email"
	}
	if !ok {
		return nil
	}
	return out
}

func splitCSV(line []byte) ([]string, error) {
	if bytes.IndexByte(line, '"') < 0 {
		return strings.Split(string(line), ","), nil
	}
	r := csv.NewReader(bytes.NewReader(line))
	r.FieldsPerRecord = -1
	return r.Read()
}

// exportColumns are the columns of a CSV export, in order.
var exportColumns = [...]string{"address", "hash", "reason", "stream", "first", "last", "expires", "source"}

// Export writes the suppressions of a tenant (the empty one: of all tenants
// alike) as they stand, streaming. Where the address is not kept its place is
// empty and only the hash tells rows apart. The result can be imported again.
func (l *List) Export(ctx context.Context, w io.Writer, tenant string, f Format) (rows int, err error) {
	if err := checkScope(tenant, ""); err != nil {
		return 0, err
	}
	bw := bufio.NewWriterSize(w, exportBuffer)
	cw := csv.NewWriter(bw)
	if f == CSV {
		if err := cw.Write(exportColumns[:]); err != nil {
			return 0, err
		}
	}
	// A page at a time, so that a slow reader does not pin a snapshot.
	for cursor, more := "", true; more; more = cursor != "" {
		if err := ctx.Err(); err != nil {
			return rows, err
		}
		var page []Entry
		if page, cursor, err = l.List(tenant, cursor, 1000); err != nil {
			return rows, err
		}
		for i := range page {
			e := &page[i]
			rec := record{Address: e.Address.String(), Hash: fmt.Sprintf("%x", e.SID), Reason: e.Reason.String(), Stream: e.Stream,
				First: e.First.Format(time.RFC3339), Last: e.Last.Format(time.RFC3339), Source: e.Source}
			if !e.Expires.IsZero() {
				rec.Expires = e.Expires.Format(time.RFC3339)
			}
			if f == CSV {
				err = cw.Write([]string{rec.Address, rec.Hash, rec.Reason, rec.Stream, rec.First, rec.Last, rec.Expires, rec.Source})
			} else if line, merr := json.Marshal(rec); merr != nil {
				err = merr
			} else {
				_, err = bw.Write(append(line, '\n'))
			}
			if err != nil {
				return rows, fmt.Errorf("suppression: export: %w", err)
			}
			rows++
		}
	}
	cw.Flush()
	if err := errors.Join(cw.Error(), bw.Flush()); err != nil {
		return rows, fmt.Errorf("suppression: export: %w", err)
	}
	return rows, nil
}
