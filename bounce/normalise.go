package bounce

import (
	"bytes"
	"slices"
)

// maxText is how much of a server's words the rules look at. Servers that say
// more put the reason first.
const maxText = 1000

// What normalise needs to know of a byte, in one word, because it runs for every
// reply of every recipient: the byte in lower case, its kind, and in the upper
// half a digit or an @ to be added up.
const (
	spaceByte uint32 = 1 << 8
	tokenByte uint32 = 1 << 9
	dotByte   uint32 = 1 << 10
	oneDigit  uint32 = 1 << 16
	oneAt     uint32 = 1 << 27
)

var byteTable = func() (table [256]uint32) {
	for i := range table {
		c := byte(i)
		switch {
		case 'A' <= c && c <= 'Z':
			table[i] = tokenByte | uint32(c+'a'-'A')
		case 'a' <= c && c <= 'z', c == '_', c == '-', c == '+', c == '=', c == '/', c == '%', c == '~':
			table[i] = tokenByte | uint32(c)
		case c == '.':
			table[i] = tokenByte | dotByte | uint32(c)
		case '0' <= c && c <= '9':
			table[i] = tokenByte | oneDigit | uint32(c)
		case c == '@':
			table[i] = tokenByte | oneAt | uint32(c)
		case c <= ' ' || c == 0x7F:
			table[i] = spaceByte | ' '
		default:
			table[i] = uint32(c)
		}
	}
	return table
}()

// normalise appends s to dst in the form the rules are matched against: plain,
// white space collapsed, and what differs from one mail to the next put
// aside, so that one cache entry serves all of them: mail addresses become
// "@", IPv4 addresses, long numbers and long identifiers become "#".
//
// Rules see only this form. That is what makes the cache exact: two texts with
// one normal form cannot have two verdicts.
func normalise(dst []byte, s string) []byte {
	if len(s) > maxText {
		s = s[:maxText]
	}
	for i := range len(s) {
		if s[i] >= 0x80 {
			s = plain(s)
			break
		}
	}
	// The result is never longer than s, so it is written by index: append
	// would check the capacity for every byte.
	first := len(dst)
	dst = slices.Grow(dst, len(s))[:first+len(s)]
	out, n := dst[first:], 0
	for i := 0; i < len(s); {
		e := byteTable[s[i]]
		if e&tokenByte == 0 {
			if e&spaceByte == 0 || n > 0 && out[n-1] != ' ' {
				out[n] = byte(e)
				n++
			}
			i++
			continue
		}
		start, sum := n, uint32(0)
		for {
			out[n] = byte(e)
			n++
			i++
			// An ellipsis joins nothing: "denied...7d39d5299584".
			if i >= len(s) || e&dotByte != 0 && s[i] == '.' {
				break
			}
			sum += e &^ 0xFFFF
			if e = byteTable[s[i]]; e&tokenByte == 0 {
				e = 0
				break
			}
		}
		sum += e &^ 0xFFFF
		if sum >= 4*oneDigit { // seldom: an ordinary word has no @ and fewer than four digits
			n = start + setAside(out[start:n], int(sum/oneDigit)&0x7FF, int(sum/oneAt))
		}
	}
	if n > 0 && out[n-1] == ' ' {
		n--
	}
	return dst[:first+n]
}

// setAside replaces a token that differs from mail to mail, and returns its new
// length.
func setAside(token []byte, digits, ats int) int {
	n := len(token)
	dots := bytes.Count(token, []byte{'.'})
	switch {
	case ats > 0 && n > 2:
		token[0] = '@'
		return 1
	case digits < 4:
	case digits+dots == n && (dots == 3 || dots == 4), // an IPv4 address, perhaps ending a sentence
		digits == n && n >= 5,
		n >= 12:
		token[0] = '#'
		return 1
	}
	return n
}
