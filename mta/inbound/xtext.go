package inbound

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of RFC 3461, 4.2 and 4.4, on the encoded form.
const (
	maxEnvID = 100
	maxORcpt = 500
)

// decodeXtext reads the xtext of RFC 3461, 4: graphic ASCII but "+" and "=",
// and "+XX" for any octet, with upper-case hexadecimal digits.
func decodeXtext(s string) (string, bool) {
	plus := strings.IndexByte(s, '+')
	if plus < 0 {
		return s, xchars(s)
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '+' {
			if !xchar(c) {
				return "", false
			}
			b = append(b, c)
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, ok1 := upperHex(s[i+1])
		lo, ok2 := upperHex(s[i+2])
		if !ok1 || !ok2 {
			return "", false
		}
		b = append(b, hi<<4|lo)
		i += 2
	}
	return string(b), true
}

// appendXtext appends the xtext form of s.
func appendXtext(dst []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; xchar(c) {
			dst = append(dst, c)
		} else {
			dst = append(dst, '+', hex[c>>4], hex[c&15])
		}
	}
	return dst
}

func xchar(c byte) bool { return c > ' ' && c <= '~' && c != '+' && c != '=' }

func xchars(s string) bool {
	for i := range len(s) {
		if !xchar(s[i]) {
			return false
		}
	}
	return true
}

func upperHex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// decodeUTF8Addr reads the utf-8-addr-xtext and utf-8-addr-unitext forms of
// RFC 6533, 3: octets as they are, and "\x{HEX}" for a code point.
func decodeUTF8Addr(s string) (string, bool) {
	if !utf8.ValidString(s) {
		return "", false
	}
	if strings.IndexByte(s, '\\') < 0 {
		return s, cleanText(s)
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 {
			b.WriteString(s)
			break
		}
		b.WriteString(s[:i])
		rest, ok := strings.CutPrefix(s[i:], `\x{`)
		if !ok {
			return "", false
		}
		end := strings.IndexByte(rest, '}')
		if end < 2 || end > 6 {
			return "", false
		}
		for j := range end {
			if _, ok := upperHex(rest[j]); !ok {
				return "", false
			}
		}
		v, err := strconv.ParseUint(rest[:end], 16, 32)
		if err != nil || !utf8.ValidRune(rune(v)) {
			return "", false
		}
		b.WriteRune(rune(v))
		s = rest[end+1:]
	}
	out := b.String()
	return out, cleanText(out)
}

// cleanText reports that s holds no control character or line separator: the
// decoded values end up in reports, one line each.
func cleanText(s string) bool {
	for _, r := range s {
		if r < ' ' || (r >= 0x7F && r < 0xA0) || r == 0x2028 || r == 0x2029 || r == utf8.RuneError {
			return false
		}
	}
	return true
}
