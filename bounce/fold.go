package bounce

import (
	"strings"
	"unicode/utf8"
)

// printable replaces what may not stand in the part: control bytes always, and
// everything outside ASCII unless the part is UTF-8.
func printable(s string, utf8Allowed bool) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r < ' ' || r == 0x7F:
			b.WriteByte(' ')
		case r < 0x7F:
			b.WriteRune(r)
		case utf8Allowed && r != utf8.RuneError && (r < 0x80 || r > 0x9F):
			b.WriteRune(r)
		default:
			b.WriteByte('?')
		}
	}
	return strings.TrimSpace(b.String())
}

// fold breaks s at spaces into pieces of at most width bytes where it can, and
// anywhere within a character's bounds where a word alone is beyond the limit
// of a line (RFC 5322, 2.1.1).
func fold(s string, width int) []string {
	if width < 30 {
		width = 30
	}
	var lines []string
	for len(s) > width {
		cut := strings.LastIndexByte(s[:width+1], ' ')
		if cut <= 0 {
			cut = strings.IndexByte(s, ' ')
		}
		if cut <= 0 || cut > 900 {
			if len(s) <= 900 {
				break
			}
			cut = 900
			for cut > 890 && !utf8.RuneStart(s[cut]) {
				cut--
			}
			lines, s = append(lines, s[:cut]), s[cut:]
			continue
		}
		lines, s = append(lines, s[:cut]), strings.TrimLeft(s[cut:], " ")
	}
	return append(lines, s)
}
