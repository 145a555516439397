package event

import "context"

// JSONLines is a sink that appends each event as one line of JSON to a file.
// A crash leaves duplicates at worst, never a gap and never part of a line:
// the file is repaired when it is opened.
type JSONLines struct {
	name string
	r    *rotating
	buf  []byte
}

// NewJSONLines opens the file, creating it if need be and cutting off what a
// crash left of a last line.
func NewJSONLines(name string, c FileConfig) (*JSONLines, error) {
	r, err := newRotating(c, nil)
	if err != nil {
		return nil, err
	}
	return &JSONLines{name: name, r: r}, nil
}

// Name is the name of the sink's cursor.
func (s *JSONLines) Name() string { return s.name }

// Deliver appends the batch.
func (s *JSONLines) Deliver(_ context.Context, batch []Record) error {
	if len(batch) == 0 {
		return nil
	}
	s.buf = s.buf[:0]
	for i := range batch {
		s.buf = append(s.buf, batch[i].JSON...)
		s.buf = append(s.buf, '\n')
	}
	return s.r.append(s.buf)
}

// Reopen makes the next delivery open the file anew, for a log rotation done
// by others; call it on SIGHUP. It returns at once and may be called at any
// time.
func (s *JSONLines) Reopen() { s.r.reopen() }

// Close waits until no rotated file is being compressed and closes the file.
// REQUIRES: no Deliver is running or follows.
func (s *JSONLines) Close() error { return s.r.close() }
