package inject

import (
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// mailbox reads the one mailbox of a From field (RFC 5322, 3.4), unfolded:
// "Name <local@domain>" or "local@domain", with comments. Lists and groups are
// refused, as mailbox providers refuse them: DMARC knows one author domain.
func mailbox(s string) (message.Address, *Error) {
	bad := func(why string) (message.Address, *Error) {
		return message.Address{}, refuse("From", CodeInvalid, "%s", why)
	}
	var bare strings.Builder // what stands outside of comments, <> excepted
	angle, closed := "", false
	for i := 0; i < len(s); {
		switch c := s[i]; c {
		case '"':
			n := quotedEnd(s[i:])
			if n < 0 {
				return bad("a quoted string is not closed")
			}
			bare.WriteString(s[i : i+n])
			i += n
			continue
		case '(':
			n := commentEnd(s[i:])
			if n < 0 {
				return bad("a comment is not closed")
			}
			i += n
			continue
		case '<':
			n := angleEnd(s[i:])
			if closed || n < 0 {
				return bad("angle brackets do not match")
			}
			angle, closed = s[i+1:i+n-1], true
			bare.Reset()
			i += n
			continue
		case ',':
			return bad("From must name exactly one mailbox")
		case ';', ':', '>':
			return bad("From must name exactly one mailbox, not a group or a route")
		default:
			bare.WriteByte(c)
		}
		i++
	}
	rest := strings.TrimSpace(bare.String())
	if closed && rest != "" {
		return bad("text follows the address")
	}
	if !closed {
		angle = rest
	}
	if angle == "" {
		return bad("From names no mailbox")
	}
	a, err := message.ParseAddress(angle)
	if err != nil {
		return bad(err.Error())
	}
	return a, nil
}

// quotedEnd is the length of the quoted string that s begins with, -1 when it
// is not closed.
func quotedEnd(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// commentEnd is the length of the comment that s begins with; comments nest.
func commentEnd(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// angleEnd is the length of the <…> that s begins with; a quoted local part
// may contain '>'.
func angleEnd(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			n := quotedEnd(s[i:])
			if n < 0 {
				return -1
			}
			i += n - 1
		case '<':
			return -1
		case '>':
			return i + 1
		}
	}
	return -1
}
