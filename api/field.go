package api

import (
	"mime"
	"strings"
	"unicode/utf8"

	"github.com/tradewind-mta/tradewind/message"
)

// maxHeaderValue is the length of one header value before it is encoded.
const maxHeaderValue = 8 << 10

// foldAt is where a header line is folded when it can be (RFC 5322, 2.1.1).
const foldAt = 78

// badText says why s cannot stand in a header, "" if it can. Everything that
// some reader takes for the end of a line is refused, and so is whatever is
// not a character.
func badText(s string) string {
	if len(s) > maxHeaderValue {
		return "is longer than 8192 octets"
	}
	if !utf8.ValidString(s) {
		return "is not UTF-8"
	}
	for _, r := range s {
		switch {
		case r == '\r' || r == '\n':
			return "contains a line break"
		case r < ' ' && r != '\t', r == 0x7F, r >= 0x80 && r < 0xA0, r == 0x2028, r == 0x2029:
			return "contains a control character"
		}
	}
	return ""
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// appendField appends a header field with unstructured text, as encoded words
// where it is not ASCII, folded. ok is false when a word is too long for a
// line.
// REQUIRES: badText(value) == "".
func appendField(dst []byte, name, value string) (out []byte, ok bool) {
	if !isASCII(value) || strings.Contains(value, "=?") {
		value = encodeWords(value)
	}
	return appendFolded(dst, name, value)
}

// encodeWords writes s as encoded words (RFC 2047), in the shorter of the two
// encodings.
func encodeWords(s string) string {
	high := 0
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			high++
		}
	}
	enc := mime.QEncoding
	if high*3 > len(s) {
		enc = mime.BEncoding
	}
	if high == 0 {
		// Text that looks like an encoded word and is none: the encoder would
		// pass it on, and a reader decode it.
		return hideWords(s)
	}
	return enc.Encode("utf-8", s)
}

// hideWords writes ASCII text octet for octet as encoded words; they hold what
// may stand in a phrase too (RFC 2047, 5).
func hideWords(s string) string {
	var b strings.Builder
	for k := 0; k < len(s); k += 20 {
		if k > 0 {
			b.WriteByte(' ') // readers drop the blank between two of them
		}
		b.WriteString("=?utf-8?q?")
		for _, c := range []byte(s[k:min(k+20, len(s))]) {
			b.Write([]byte{'=', upperHex[c>>4], upperHex[c&15]})
		}
		b.WriteString("?=")
	}
	return b.String()
}

const upperHex = "0123456789ABCDEF"

// appendFolded appends "name: value" with CRLF, folded at spaces. ok is false
// when some line stays longer than RFC 5322 allows.
func appendFolded(dst []byte, name, value string) (out []byte, ok bool) {
	value = strings.Trim(value, " \t")
	dst = append(append(dst, name...), ": "...)
	col, ok := len(name)+2, true
	for {
		// The next stretch: blanks, then a word.
		n := 0
		for n < len(value) && (value[n] == ' ' || value[n] == '\t') {
			n++
		}
		blanks := n
		for n < len(value) && value[n] != ' ' && value[n] != '\t' {
			n++
		}
		if n == 0 {
			return append(dst, "\r\n"...), ok
		}
		if blanks > 0 && col+n > foldAt {
			dst = append(dst, "\r\n"...)
			col = 0
		}
		dst = append(dst, value[:n]...)
		if col += n; col > 998 {
			ok = false
		}
		value = value[n:]
	}
}

// mailboxText is a person as From, To, Cc and Reply-To show them.
func mailboxText(name string, a message.Address) string {
	if name == "" {
		return a.String()
	}
	return phrase(name) + " <" + a.String() + ">"
}

// phrase is a display name (RFC 5322, 3.2.5): bare, quoted or encoded.
func phrase(s string) string {
	switch {
	case !isASCII(s):
		// In a phrase nothing but letters and digits is safe in an encoded
		// word (RFC 2047, 5), so base64 it is.
		return mime.BEncoding.Encode("utf-8", s)
	case strings.Contains(s, "=?"):
		return hideWords(s)
	}
	plain := true
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == ' ', c == '-', c == '_', c == '\'':
		default:
			plain = false
		}
	}
	if plain && strings.TrimSpace(s) == s && !strings.Contains(s, "  ") {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// reserved reports whether a header field is ours to write, or must not be
// written by a client (RFC 5322 trace and originator fields, RFC 6376, RFC
// 8617, MIME, and our control headers).
func reserved(name string) bool {
	n := strings.ToLower(name)
	switch n {
	case "from", "to", "cc", "bcc", "subject", "reply-to", "date", "return-path", "received", "mime-version",
		"dkim-signature", "authentication-results", "received-spf", "delivered-to", "x-virtual-mta", "x-job", "x-envid":
		return true
	}
	for _, p := range [...]string{"content-", "resent-", "arc-", "dkim-", "x-tradewind-"} {
		if strings.HasPrefix(n, p) {
			return true
		}
	}
	return false
}

// structured reports whether a field's value has a grammar in which an encoded
// word would mean something else.
func structured(name string) bool {
	n := strings.ToLower(name)
	switch n {
	case "message-id", "in-reply-to", "references", "sender", "precedence", "auto-submitted", "feedback-id", "require-recipient-valid-since":
		return true
	}
	return strings.HasPrefix(n, "list-")
}

// isFieldName reports whether s is a field name of RFC 5322, 2.2, of sane
// length.
func isFieldName(s string) bool {
	if s == "" || len(s) > 76 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7F || c == ':' {
			return false
		}
	}
	return true
}
