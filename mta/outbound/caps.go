package outbound

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

const maxKeywords = 64

// Caps is what a server offers in its reply to EHLO. Of a nonsensical parameter
// nothing is believed; keywords compare without regard to case (RFC 5321,
// 4.1.1.1), ASCII only.
type Caps struct {
	Pipelining   bool // RFC 2920
	EightBitMIME bool // RFC 6152
	SMTPUTF8     bool // RFC 6531
	DSN          bool // RFC 3461
	StartTLS     bool // RFC 3207
	AuthPlain    bool // RFC 4954
	// Size is the largest message in octets; 0 means none was named (RFC 1870).
	Size int64
	// RcptMax and MailMax are recipients per transaction and transactions per
	// connection; 0 means none was named (RFC 9422).
	RcptMax, MailMax int
	size             bool // SIZE was named, with or without a number

	// Keywords holds the first 64 keywords in upper case.
	Keywords []string
}

// parseCaps reads the text of an EHLO reply, whose first line is the greeting.
func parseCaps(text []byte) Caps {
	var caps Caps
	_, text, _ = bytes.Cut(text, []byte{'\n'})
	for len(text) > 0 && len(caps.Keywords) < maxKeywords {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte{'\n'})
		if len(line) >= maxKept {
			continue // cut short: its last parameter may be half of one
		}
		f := bytes.Fields(line)
		if len(f) == 0 {
			continue
		}
		key, ok := upper(f[0])
		if !ok {
			continue
		}
		caps.Keywords = append(caps.Keywords, key)
		caps.set(key, f[1:])
	}
	return caps
}

func (c *Caps) set(key string, args [][]byte) {
	switch key {
	case "PIPELINING":
		c.Pipelining = true
	case "8BITMIME":
		c.EightBitMIME = true
	case "SMTPUTF8":
		c.SMTPUTF8 = true
	case "DSN":
		c.DSN = true
	case "STARTTLS":
		c.StartTLS = true
	case "SIZE":
		c.size = true
		// "SIZE 0" and a bare SIZE name no limit (RFC 1870, 3).
		if len(args) == 1 {
			if n, err := strconv.ParseInt(string(args[0]), 10, 64); err == nil && n > 0 {
				c.Size = n
			}
		}
	case "LIMITS":
		for _, a := range args {
			name, value, _ := strings.Cut(string(a), "=")
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || len(value) > 6 {
				continue // a limit of none at all would be a refusal, which has codes of its own
			}
			switch {
			case strings.EqualFold(name, "RCPTMAX"):
				c.RcptMax = n
			case strings.EqualFold(name, "MAILMAX"):
				c.MailMax = n
			}
		}
	case "AUTH":
		c.AuthPlain = c.AuthPlain || slices.ContainsFunc(args, func(a []byte) bool {
			m, ok := upper(a)
			return ok && m == "PLAIN"
		})
	}
}

// upper folds an EHLO keyword, or reports that b is none: a letter or digit,
// then letters, digits and hyphens. bytes.ToUpper would fold some letters
// beyond ASCII into it.
func upper(b []byte) (string, bool) {
	var out [32]byte
	if len(b) == 0 || len(b) > len(out) || b[0] == '-' {
		return "", false
	}
	for i, ch := range b {
		switch {
		case 'a' <= ch && ch <= 'z':
			ch -= 'a' - 'A'
		case 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9', ch == '-':
		default:
			return "", false
		}
		out[i] = ch
	}
	return string(out[:len(b)]), true
}
