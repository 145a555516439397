package dkim

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"strings"
)

// What a header may hold at most. Beyond these nobody reads a mail's header,
// and everybody who verifies it would have to pay for it.
const (
	maxFields      = 1000
	maxFieldBytes  = 64 << 10
	maxHeaderBytes = 256 << 10
	maxNameBytes   = 126 // so that "name:" and a fold fit into a line of h=
)

// ErrHeader is wrapped by every error about a header that cannot be signed:
// too large, a line that is no field, no From.
var ErrHeader = errors.New("dkim: header cannot be signed")

// DefaultHeaders are the fields that are signed when present, every instance
// of them: what a reader sees, what a mail program acts upon, and what
// feedback loops and one-click unsubscribe ask to be covered (RFC 6376, 5.4.1;
// RFC 8058, 4; RFC 9477, 3.1).
func DefaultHeaders() []string {
	return []string{
		"From", "To", "Cc", "Subject", "Date", "Message-ID", "Reply-To", "Sender",
		"MIME-Version", "Content-Type", "Content-Transfer-Encoding",
		"In-Reply-To", "References",
		"List-Id", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Subscribe",
		"List-Help", "List-Post", "List-Owner", "List-Archive",
		"Feedback-ID", "CFBL-Address", "CFBL-Feedback-ID", "X-Report-Ref",
	}
}

// DefaultOversign are the fields listed in h= once more than they are present,
// so that nobody can add one to a signed message and have it still verify
// (RFC 6376, 8.15).
func DefaultOversign() []string {
	return []string{
		"From", "To", "Cc", "Subject", "Date", "Message-ID", "Reply-To",
		"MIME-Version", "Content-Type", "Content-Transfer-Encoding",
		"List-Unsubscribe", "List-Unsubscribe-Post",
	}
}

// fieldNames is the list of names to sign, in the order of h=.
type fieldNames struct {
	spelled  []string       // as written into h=
	relaxed  []string       // lower case, with the colon
	oversign []bool         // one more than present
	index    map[string]int // by lower-case name
	from     int
}

func newFieldNames(headers, oversign []string) (*fieldNames, error) {
	f := &fieldNames{index: make(map[string]int)}
	add := func(name string) (int, error) {
		if !validFieldName(name) || len(name) > maxNameBytes {
			return 0, fmt.Errorf("dkim: %q is not a header field name", name)
		}
		low := strings.ToLower(name)
		if low == "dkim-signature" {
			return 0, errors.New("dkim: DKIM-Signature may not be listed as a header to sign (RFC 6376, 5.4)")
		}
		if i, ok := f.index[low]; ok {
			return i, nil
		}
		i := len(f.spelled)
		f.index[low] = i
		f.spelled = append(f.spelled, name)
		f.relaxed = append(f.relaxed, low+":")
		f.oversign = append(f.oversign, false)
		return i, nil
	}
	var errs []error
	for _, name := range headers {
		if _, err := add(name); err != nil {
			errs = append(errs, err)
		}
	}
	for _, name := range oversign {
		i, err := add(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		f.oversign[i] = true
	}
	if len(f.spelled) > maxFields {
		errs = append(errs, fmt.Errorf("dkim: more than %d header names to sign", maxFields))
	}
	var ok bool
	if f.from, ok = f.index["from"]; !ok {
		errs = append(errs, errors.New("dkim: From is not among the headers to sign (RFC 6376, 5.4)"))
	}
	return f, errors.Join(errs...)
}

// validFieldName checks ftext, RFC 5322, 3.6.8, less the semicolon, which
// would end h= (RFC 6376, 3.5).
func validFieldName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7F || c == ':' || c == ';' {
			return false
		}
	}
	return name != ""
}

// header is a message's header cut into the fields that may be signed, and
// its canonical form. It is reused from message to message.
type header struct {
	fields []field
	last   []int // by name: the lowest instance in the message, -1 for none
	canon  []byte
	h      []string // the names for h=, in signing order
}

// field is one field that may be signed.
type field struct {
	value []byte // after the colon, folds and the final CRLF included
	above int    // the next instance up, -1 for none
}

// split cuts msg into header and body, and the header into fields. Signed
// instances are later taken from the bottom up (RFC 6376, 5.4.2). A message
// without the empty line is all header.
func (hd *header) split(msg []byte, names *fieldNames) (body []byte, err error) {
	hd.fields = hd.fields[:0]
	hd.last = hd.last[:0]
	for range names.spelled {
		hd.last = append(hd.last, -1)
	}
	count := 0
	for at := 0; at < len(msg); count++ {
		if bytes.HasPrefix(msg[at:], crlf) {
			body = msg[at+2:]
			break
		}
		if count == maxFields {
			return nil, fmt.Errorf("%w: more than %d fields", ErrHeader, maxFields)
		}
		// One field: lines up to the first that does not begin with white
		// space.
		end := at
		for {
			n := bytes.IndexByte(msg[end:], '\n')
			if n < 0 {
				return nil, fmt.Errorf("%w: it does not end in CRLF", ErrHeader)
			}
			if n == 0 || bytes.IndexByte(msg[end:end+n], '\r') != n-1 {
				return nil, fmt.Errorf("%w in field %d of the header", ErrLineEnd, count+1)
			}
			end += n + 1
			if end-at > maxFieldBytes {
				return nil, fmt.Errorf("%w: field %d is longer than %d bytes", ErrHeader, count+1, maxFieldBytes)
			}
			if end > maxHeaderBytes {
				return nil, fmt.Errorf("%w: longer than %d bytes", ErrHeader, maxHeaderBytes)
			}
			if end == len(msg) || (msg[end] != ' ' && msg[end] != '\t') {
				break
			}
		}
		if err := hd.add(msg[at:end], names); err != nil {
			return nil, fmt.Errorf("%w: field %d", err, count+1)
		}
		at = end
	}
	if hd.last[names.from] < 0 {
		return nil, fmt.Errorf("%w: no From field", ErrHeader)
	}
	return body, nil
}

var crlf = []byte("\r\n")

// add notes a field under its name, when that is one to sign.
func (hd *header) add(raw []byte, names *fieldNames) error {
	var low [maxNameBytes]byte
	n := 0
	for ; n < len(raw) && raw[n] > ' ' && raw[n] < 0x7F && raw[n] != ':'; n++ {
		c := raw[n]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if n < len(low) {
			low[n] = c
		}
	}
	// RFC 5322, 4.5.3 lets white space stand before the colon; relaxed form
	// drops it.
	colon := n
	for colon < len(raw) && (raw[colon] == ' ' || raw[colon] == '\t') {
		colon++
	}
	if n == 0 || colon == len(raw) || raw[colon] != ':' {
		return badName(raw)
	}
	if n > len(low) {
		return nil // longer than any name we sign
	}
	i, ok := names.index[string(low[:n])]
	if !ok {
		return nil
	}
	hd.fields = append(hd.fields, field{value: raw[colon+1:], above: hd.last[i]})
	hd.last[i] = len(hd.fields) - 1
	return nil
}

// badName says what is wrong with the name of a field.
func badName(raw []byte) error {
	colon := bytes.IndexByte(raw, ':')
	switch {
	case colon < 1:
		return fmt.Errorf("%w: a line without a field name", ErrHeader)
	case len(bytes.TrimRight(raw[:colon], " \t")) == 0:
		return fmt.Errorf("%w: an empty field name", ErrHeader)
	}
	return fmt.Errorf("%w: a field name with bytes that may not stand in one", ErrHeader)
}

// canonicalize writes the fields to sign in relaxed form into hd.canon, and
// their names, and those that shall stay absent, into hd.h.
func (hd *header) canonicalize(names *fieldNames) {
	hd.canon, hd.h = hd.canon[:0], hd.h[:0]
	for i, name := range names.spelled {
		for j := hd.last[i]; j >= 0; j = hd.fields[j].above {
			hd.canon = append(hd.canon, names.relaxed[i]...)
			hd.canon = appendRelaxedValue(hd.canon, hd.fields[j].value)
			hd.canon = append(hd.canon, '\r', '\n')
			hd.h = append(hd.h, name)
		}
		if names.oversign[i] {
			hd.h = append(hd.h, name)
		}
	}
}

// appendRelaxedValue appends what follows the colon of a field in relaxed
// form, without the final CRLF (RFC 6376, 3.4.2): unfolded, runs of white
// space made one space, none at either end.
func appendRelaxedValue(dst, value []byte) []byte {
	start, gap := len(dst), false
	for i := 0; i < len(value); {
		switch value[i] {
		case ' ', '\t', '\r', '\n':
			gap = true
			i++
			continue
		}
		if gap && len(dst) > start {
			dst = append(dst, ' ')
		}
		gap = false
		// Up to what relaxed form changes, or may change. A space at the end is
		// left to the next round, for it may be the first of several.
		end := i + 1
		if end < len(value) && value[end] >= ' ' {
			for end+9 <= len(value) {
				if m := unusual(value[end:]); m != 0 {
					end += bits.TrailingZeros64(m) / 8
					break
				}
				end += 8
			}
			for end < len(value) && value[end] > ' ' {
				end++
			}
			if value[end-1] == ' ' {
				end--
			}
		}
		dst = append(dst, value[i:end]...)
		i = end
	}
	return dst
}
