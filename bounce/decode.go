package bounce

import (
	"bytes"
	"encoding/base64"
	"html"
	"strings"
	"unicode/utf8"
)

// decodeBody undoes a Content-Transfer-Encoding, keeping what can be read of a
// damaged one.
func decodeBody(b []byte, encoding string) []byte {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "base64":
		return decodeBase64(b)
	case "quoted-printable":
		return decodeQuoted(b)
	case "", "7bit", "8bit", "binary":
		// A forwarded bounce may have lost the field that declares it encoded.
		if bytes.Contains(b, []byte("=20\n")) || bytes.Count(b, []byte("=\n")) > 1 && bytes.Contains(b, []byte("=3D")) {
			return decodeQuoted(b)
		}
	}
	return b
}

func decodeBase64(b []byte) []byte {
	clean := make([]byte, 0, len(b))
	for _, c := range b {
		if 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '+' || c == '/' {
			clean = append(clean, c)
		}
	}
	if len(clean)&3 == 1 {
		clean = clean[:len(clean)-1]
	}
	out := make([]byte, base64.RawStdEncoding.DecodedLen(len(clean)))
	n, _ := base64.RawStdEncoding.Decode(out, clean)
	return unifyLines(out[:n])
}

func decodeQuoted(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '=' {
			out = append(out, b[i])
			continue
		}
		j := i + 1
		for j < len(b) && (b[j] == ' ' || b[j] == '\t') {
			j++
		}
		if j >= len(b) || b[j] == '\n' {
			i = j
			continue
		}
		if i+2 < len(b) {
			hi, lo := unhex(b[i+1]), unhex(b[i+2])
			if hi >= 0 && lo >= 0 {
				out = append(out, byte(hi<<4|lo))
				i += 2
				continue
			}
		}
		out = append(out, '=')
	}
	return unifyLines(out)
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// unifyLines turns CRLF, CR CR LF and lone CR into LF. Text without CR, the
// usual thing in a mailbox file, is returned as it is.
func unifyLines(b []byte) []byte {
	i := bytes.IndexByte(b, '\r')
	if i < 0 {
		return b
	}
	out := make([]byte, i, len(b))
	copy(out, b)
	for i < len(b) {
		if b[i] != '\r' {
			j := bytes.IndexByte(b[i:], '\r')
			if j < 0 {
				return append(out, b[i:]...)
			}
			out = append(out, b[i:i+j]...)
			i += j
			continue
		}
		j := i
		for j < len(b) && b[j] == '\r' {
			j++
		}
		if j < len(b) && b[j] == '\n' {
			j++
			out = append(out, '\n')
		} else {
			out = append(out, "\n\n\n\n"[:min(j-i, 4)]...)
		}
		i = j
	}
	return out
}

// toUTF8 converts text whose charset is named, perhaps wrongly. The result is
// always valid UTF-8.
func toUTF8(b []byte, charset string) string {
	if strings.HasSuffix(charset, "utf-7") {
		b = decodeUTF7(b)
	}
	if charset == "hz-gb-2312" {
		if out, err := findCharset(charset).NewDecoder().Bytes(b); err == nil {
			b = out
		}
	}
	ascii := true
	for _, c := range b {
		if c >= 0x80 || c == 0x1B {
			ascii = false
			break
		}
	}
	if ascii {
		return string(b)
	}
	if utf8.Valid(b) && bytes.IndexByte(b, 0x1B) < 0 {
		return string(b)
	}
	if out, ok := decodeShifted(b); ok {
		return strings.ToValidUTF8(string(out), "\uFFFD")
	}
	if bytes.Contains(b, []byte("\x1b$")) {
		charset = "iso-2022-jp"
	}
	e := findCharset(charset)
	if e == nil {
		e = guessCharset(b)
	}
	out, err := e.NewDecoder().Bytes(b)
	if err != nil {
		out = b
	}
	return strings.ToValidUTF8(string(out), "\uFFFD")
}

// htmlText takes the words out of HTML: enough to find addresses and reasons,
// not to show it.
func htmlText(s string) string {
	var b strings.Builder
	closes := true // an end was found for the last element to be skipped
	for s != "" {
		i := strings.IndexByte(s, '<')
		if i < 0 {
			b.WriteString(s)
			break
		}
		b.WriteString(s[:i])
		s = s[i+1:]
		end := strings.IndexByte(s, '>')
		if end < 0 {
			b.WriteString(" <" + s)
			break
		}
		tag := s[:end]
		s = s[end+1:]
		name := strings.ToLower(strings.TrimLeft(tag, "/"))
		if k := strings.IndexAny(name, " \t\n/"); k >= 0 {
			name = name[:k]
		}
		switch name {
		case "style", "script", "head", "title":
			if tag[0] != '/' && closes {
				k := indexFold(s, "</"+name)
				// Without an end the rest is kept, and never searched again.
				if closes = k >= 0; closes {
					s = s[k:]
				}
			}
		case "br", "p", "div", "tr", "td", "li", "h1", "h2", "h3", "table", "pre", "ul", "blockquote", "dd", "dt", "hr":
			b.WriteByte('\n')
		default:
			// A bare <user@example.com> is an address, not a tag.
			if strings.Contains(tag, "@") && !strings.ContainsAny(tag, " =\"") {
				b.WriteString("<" + tag + ">")
			}
		}
	}
	return strings.ReplaceAll(html.UnescapeString(b.String()), "\u00a0", " ")
}

// indexFold finds an ASCII lower-case needle in s, whatever the case of s.
func indexFold(s, needle string) int {
	first := needle[:1]
	if 'a' <= needle[0] && needle[0] <= 'z' {
		first += string(needle[0] - 'a' + 'A')
	}
	for i := 0; i+len(needle) <= len(s); i++ {
		j := strings.IndexAny(s[i:], first)
		if j < 0 || i+j+len(needle) > len(s) {
			return -1
		}
		i += j
		if strings.EqualFold(s[i:i+len(needle)], needle) {
			return i
		}
	}
	return -1
}
