package bounce

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// plain is text as the lists of words are written: lower case, without accents
// on Latin and Greek letters, with straight apostrophes and ordinary spaces. Servers write
// "n'a pas pu être", "n’a pas pu etre" and "N'A PAS PU ETRE" and mean the same.
// The result may be shorter or longer than s.
func plain(s string) string {
	i := 0
	for i < len(s) && s[i] < utf8.RuneSelf {
		i++
	}
	if i == len(s) {
		return asciiToLower(s)
	}
	var b strings.Builder
	b.Grow(len(s) + 8)
	for _, r := range s {
		switch r = unicode.ToLower(r); {
		case r < utf8.RuneSelf:
			b.WriteByte(byte(r))
		case r == 0x2018 || r == 0x2019 || r == 0xB4 || r == 0x2032 || r == 0xFF07:
			b.WriteByte('\'')
		case r == 0xA0 || r == 0x3000 || r == 0x202F || r == 0x2009:
			b.WriteByte(' ')
		case r == 0xDF:
			b.WriteString("ss")
		case r >= 0xFF01 && r <= 0xFF5E: // full-width forms of ASCII
			b.WriteByte(lowerByte(byte(r - 0xFF01 + '!')))
		case r >= 0xC0 && r < 0x250 || r >= 0x1E00 && r < 0x1F00 || r >= 0x386 && r < 0x3D0:
			b.WriteRune(baseLetter(r))
		case unicode.Is(unicode.Mn, r) && r < 0x370: // combining accents
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// asciiToLower is strings.ToLower for ASCII, which returns s itself where it can.
func asciiToLower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			return strings.ToLower(s)
		}
	}
	return s
}

// baseLetter takes the accent off a small Latin or Greek letter.
func baseLetter(r rune) rune {
	var buffer [16]byte
	first, _ := utf8.DecodeRune(norm.NFD.AppendString(buffer[:0], string(r)))
	switch first { // what Unicode does not take apart
	case 'ø':
		return 'o'
	case 'ł':
		return 'l'
	case 'ı':
		return 'i'
	case 'đ':
		return 'd'
	}
	return first
}
