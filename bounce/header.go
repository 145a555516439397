package bounce

import (
	"bytes"
	"io"
	"mime"
	"strings"
)

// Bounds on one header. Fields beyond are skipped; what follows maxHeader is
// taken for the body.
const (
	maxFields     = 500
	maxFieldBytes = 16 << 10
	maxHeader     = 512 << 10
)

// Field is one header field, unfolded.
type Field struct{ Name, Value string }

// Header is the fields of a header in their order.
type Header []Field

// Get returns the first value of name, or "".
func (h Header) Get(name string) string {
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			return h[i].Value
		}
	}
	return ""
}

// Values returns every value of name.
func (h Header) Values(name string) []string {
	var all []string
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			all = append(all, h[i].Value)
		}
	}
	return all
}

// nextLine cuts the first line off b, without its LF.
func nextLine(b []byte) (line, rest []byte) {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

// splitHeader reads the header that b begins with and returns the body. Lines
// have LF ends. It takes what it gets: lines that are no fields are skipped,
// and a boundary line ends a header whose blank line was lost.
func splitHeader(b []byte) (h Header, body []byte) {
	total := len(b)
	for len(b) > 0 && total-len(b) < maxHeader {
		line, rest := nextLine(b)
		if len(bytes.TrimRight(line, " \t")) == 0 {
			return h, rest
		}
		if bytes.HasPrefix(line, []byte("--")) && len(line) > 10 {
			return h, b
		}
		b = rest
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !isFieldName(name) {
			continue
		}
		var folded []byte
		for len(b) > 0 && total-len(b) < maxHeader && (b[0] == ' ' || b[0] == '\t') {
			line, rest = nextLine(b)
			if len(bytes.TrimSpace(line)) == 0 {
				break // white space alone is the blank line, bent in transport
			}
			if len(folded) < maxFieldBytes {
				if folded == nil {
					folded = append(folded, value...)
				}
				folded = append(append(folded, ' '), bytes.TrimSpace(line)...)
			}
			b = rest
		}
		if folded != nil {
			value = folded
		}
		if len(h) < maxFields {
			if len(value) > maxFieldBytes {
				value = value[:maxFieldBytes]
			}
			h = append(h, Field{string(bytes.TrimRight(name, " \t")), string(bytes.TrimSpace(value))})
		}
	}
	return h, b
}

// isFieldName reports whether b can stand before the colon of a field.
func isFieldName(b []byte) bool {
	b = bytes.TrimRight(b, " \t")
	if len(b) == 0 || len(b) > 76 {
		return false
	}
	for _, c := range b {
		if c <= ' ' || c >= 0x7F || c == '<' || c == '>' || c == '@' {
			return false
		}
	}
	return true
}

// decodeWords decodes RFC 2047 words and leaves what it cannot decode.
func decodeWords(s string) string {
	if !strings.Contains(s, "=?") {
		return toUTF8([]byte(s), "")
	}
	d := mime.WordDecoder{CharsetReader: func(charset string, r io.Reader) (io.Reader, error) {
		b, err := io.ReadAll(io.LimitReader(r, maxFieldBytes))
		return strings.NewReader(toUTF8(b, charset)), err
	}}
	out, err := d.DecodeHeader(s)
	if err != nil {
		return s
	}
	return out
}

// mediaType reads a Content-Type, however broken, into its lower-case type and
// the parameters we use.
func mediaType(v string) (kind, boundary, charset string, report string) {
	kind, params, _ := strings.Cut(v, ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	for params != "" {
		var p string
		p, params = nextParam(params)
		name, value, _ := strings.Cut(p, "=")
		value = strings.TrimSpace(value)
		if len(value) > 1 && value[0] == '"' {
			value = strings.TrimSuffix(value[1:], `"`)
		}
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "boundary":
			boundary = value
		case "charset":
			charset = strings.ToLower(value)
		case "report-type":
			report = strings.ToLower(value)
		}
	}
	return kind, boundary, charset, report
}

// nextParam cuts at the next semicolon outside quotes.
func nextParam(s string) (p, rest string) {
	quoted := false
	for i := range len(s) {
		switch s[i] {
		case '"':
			quoted = !quoted
		case ';':
			if !quoted {
				return s[:i], s[i+1:]
			}
		}
	}
	return s, ""
}
