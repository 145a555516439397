package inject

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"strings"
	"unicode/utf8"
)

// Reasons why Reencode must leave a message alone.
var (
	// ErrSigned reports a part that is signed: another encoding of it would
	// break the signature (RFC 1847, 2.1).
	ErrSigned = errors.New("a signed or encrypted part may not be changed")
	// ErrNested reports a MIME structure that cannot be re-encoded: too deep,
	// not closed, or with 8-bit or overlong lines where no encoding is allowed.
	ErrNested = errors.New("the MIME structure cannot be re-encoded")
)

// Bounds on MIME structure. Real mail stays below 10 levels.
const (
	maxDepth = 32
	maxParts = 1000
)

// Reencode returns msg with every part that holds octets above 0x7F or lines
// above 998 octets in quoted-printable or base64, so that a server without
// 8BITMIME can take it (RFC 6152, 3). Parts that need nothing keep their
// bytes, and so does the header of the message but for the MIME fields. If
// nothing needs to change it returns msg itself. The error wraps ErrSigned or
// ErrNested.
//
// REQUIRES: msg consists of CRLF lines. An existing DKIM signature over the
// body does not survive; sign afterwards.
func Reencode(msg []byte) ([]byte, error) {
	s, err := measure(msg[headerEnd(msg):])
	if err != nil {
		return nil, err
	}
	if !s.eightBit && !s.long {
		return msg, nil
	}
	e := encoder{out: make([]byte, 0, len(msg)+len(msg)/4+256)}
	if err := e.entity(msg, 0, true); err != nil {
		return nil, fmt.Errorf("inject: re-encode: %w", err)
	}
	return e.out, nil
}

type encoder struct {
	out   []byte
	parts int
}

// mimeHeader is what one entity's header says about its body.
type mimeHeader struct {
	kind     string            // media type in lower case, "text/plain" if none
	params   map[string]string // of the media type
	encoding string            // in lower case, "" if none
	typ      span              // Content-Type field, with name and CRLF
	enc      span              // Content-Transfer-Encoding field
	version  bool              // MIME-Version is there
	end      int
}

func readMIMEHeader(b []byte) (mimeHeader, error) {
	h := mimeHeader{kind: "text/plain", end: headerEnd(b)}
	for pos := 0; pos < h.end; {
		end, ferr := fieldEnd(b[:h.end], pos)
		if ferr != nil {
			return h, fmt.Errorf("%w: %s", ErrNested, ferr.Message)
		}
		name, value, _ := bytes.Cut(b[pos:end], []byte{':'})
		v := strings.ReplaceAll(strings.TrimSpace(string(value)), "\r\n", "")
		switch strings.ToLower(strings.TrimSpace(string(name))) {
		case "content-type":
			if h.typ != (span{}) {
				return h, fmt.Errorf("%w: two Content-Type fields", ErrNested)
			}
			h.typ = span{pos, end}
			kind, params, err := mime.ParseMediaType(v)
			if err != nil && kind == "" {
				// RFC 2045, 5.2 leaves broken types open; as opaque octets
				// nobody can misread them.
				kind = "application/octet-stream"
			}
			h.kind, h.params = kind, params
		case "content-transfer-encoding":
			if h.enc != (span{}) {
				return h, fmt.Errorf("%w: two Content-Transfer-Encoding fields", ErrNested)
			}
			h.enc = span{pos, end}
			h.encoding = strings.ToLower(v)
		case "mime-version":
			h.version = true
		}
		pos = end
	}
	return h, nil
}

// entity appends the entity b, header and body, re-encoded where needed.
// isMessage tells a whole message from a part of one.
func (e *encoder) entity(b []byte, depth int, isMessage bool) error {
	if e.parts++; depth > maxDepth || e.parts > maxParts {
		return fmt.Errorf("%w: too many parts", ErrNested)
	}
	h, err := readMIMEHeader(b)
	if err != nil {
		return err
	}
	body := bytes.TrimPrefix(b[h.end:], []byte("\r\n"))
	s, bad := measure(body)
	if bad != nil {
		return bad
	}
	if depth > 0 && HasEightBit(b[:h.end]) {
		// The header of a part, or of an attached message, has no encoding of
		// its own; the parts of RFC 6532 mail need SMTPUTF8, not this.
		return fmt.Errorf("%w: the header of a part is not ASCII", ErrNested)
	}
	switch {
	case !s.eightBit && !s.long && !is8bitLabel(h.encoding):
		e.out = append(e.out, b...)
		return nil
	case !s.eightBit && !s.long:
		// Nothing but the label says 8bit, and the label alone is enough for
		// a strict server to refuse.
		if h.kind == "multipart/signed" || h.kind == "multipart/encrypted" {
			e.out = append(e.out, b...)
			return nil
		}
		e.header(b, h, "7bit", isMessage)
		e.out = append(e.out, body...)
		return nil
	case h.kind == "multipart/signed", h.kind == "multipart/encrypted":
		return ErrSigned
	case strings.HasPrefix(h.kind, "multipart/"):
		e.header(b, h, "7bit", isMessage)
		return e.multipart(body, h.params["boundary"], depth)
	case h.kind == "message/rfc822", h.kind == "message/global":
		e.header(b, h, "7bit", isMessage)
		return e.entity(body, depth+1, true)
	case strings.HasPrefix(h.kind, "message/"):
		// RFC 2046, 5.2: other message types must be 7bit as they are.
		return fmt.Errorf("%w: %s may not be encoded", ErrNested, h.kind)
	}
	return e.leaf(b, h, body, isMessage)
}

func is8bitLabel(encoding string) bool { return encoding == "8bit" || encoding == "binary" }

// header appends the header of b with its encoding replaced, and the empty
// line.
func (e *encoder) header(b []byte, h mimeHeader, encoding string, isMessage bool) {
	if h.enc == (span{}) {
		e.out = append(e.out, b[:h.end]...)
		if !bytes.HasSuffix(e.out, []byte("\r\n")) && h.end > 0 {
			e.out = append(e.out, "\r\n"...)
		}
	} else {
		e.out = append(e.out, b[:h.enc.start]...)
		e.out = append(e.out, b[h.enc.end:h.end]...)
	}
	if isMessage && !h.version {
		e.out = append(e.out, "MIME-Version: 1.0\r\n"...)
	}
	e.out = append(e.out, "Content-Transfer-Encoding: "...)
	e.out = append(e.out, encoding...)
	e.out = append(e.out, "\r\n\r\n"...)
}

// leaf appends a part that has no parts, encoded anew.
func (e *encoder) leaf(b []byte, h mimeHeader, body []byte, isMessage bool) error {
	content := body
	switch h.encoding {
	case "", "7bit", "8bit", "binary":
	case "quoted-printable":
		// The decoder passes stray 8-bit octets on, which is what the writer
		// of such a part meant.
		d, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(body)))
		if err != nil {
			return fmt.Errorf("%w: bad quoted-printable", ErrNested)
		}
		content = d
	case "base64":
		d := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
		n, err := base64.StdEncoding.Decode(d, body)
		if err != nil {
			return fmt.Errorf("%w: bad base64", ErrNested)
		}
		content = d[:n]
	default:
		return fmt.Errorf("%w: encoding %q", ErrNested, h.encoding)
	}
	isText := strings.HasPrefix(h.kind, "text/")
	if h.typ == (span{}) && HasEightBit(content) {
		// RFC 2045, 5.2: no type means us-ascii text, which this is not. A
		// guess other than UTF-8 would be worse than saying that we do not
		// know (RFC 1428).
		charset := "unknown-8bit"
		if utf8.Valid(content) {
			charset = "utf-8"
		}
		e.out = append(e.out, "Content-Type: text/plain; charset="+charset+"\r\n"...)
	}
	if h.encoding != "base64" && (isText || mostlyASCII(content)) {
		e.header(b, h, "quoted-printable", isMessage)
		e.out = appendQP(e.out, content, isText)
		return nil
	}
	e.header(b, h, "base64", isMessage)
	e.out = appendBase64(e.out, content)
	return nil
}

// mostlyASCII guesses which encoding is shorter: quoted-printable costs two
// octets for each 8-bit octet, base64 a third of the whole.
func mostlyASCII(b []byte) bool {
	n := 0
	for _, c := range b {
		if c >= 0x7F || (c < ' ' && c != '\t' && c != '\r' && c != '\n') {
			n++
		}
	}
	return n*6 <= len(b)
}

// multipart appends the parts of body. What stands before the first and after
// the last boundary is for readers without MIME and is left out.
func (e *encoder) multipart(body []byte, boundary string, depth int) error {
	if boundary == "" {
		return fmt.Errorf("%w: no boundary", ErrNested)
	}
	delim := []byte("--" + boundary)
	start := -1 // of the current part
	for pos := 0; pos < len(body); {
		n := bytes.IndexByte(body[pos:], '\n') + 1
		if n == 0 {
			n = len(body) - pos
		}
		line := body[pos : pos+n]
		if rest, ok := bytes.CutPrefix(line, delim); ok {
			last := bytes.HasPrefix(rest, []byte("--"))
			if last {
				rest = rest[2:]
			}
			if len(bytes.Trim(rest, " \t\r\n")) == 0 {
				if start >= 0 {
					// The CRLF before a boundary belongs to it (RFC 2046, 5.1.1).
					part := body[start:pos]
					if err := e.entity(bytes.TrimSuffix(part, []byte("\r\n")), depth+1, false); err != nil {
						return err
					}
					e.out = append(e.out, "\r\n"...)
				}
				e.out = append(e.out, delim...)
				if last {
					e.out = append(e.out, "--\r\n"...)
					return nil
				}
				e.out = append(e.out, "\r\n"...)
				start = pos + n
			}
		}
		pos += n
	}
	return fmt.Errorf("%w: the last boundary is missing", ErrNested)
}
