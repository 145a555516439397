package bounce

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// foundAddress is an address in a line of text.
type foundAddress struct {
	text       string
	start, end int  // of the address with its brackets
	angle      bool // it stood in <>
}

// maxPerLine bounds the addresses taken from one line.
const maxPerLine = 50

// findAddresses finds what looks like mail addresses in s. It is generous, as
// the servers are: dots anywhere, encoded words, domains without a dot.
func findAddresses(s string) []foundAddress {
	var all []foundAddress
	for from := 0; len(all) < maxPerLine; {
		i := strings.IndexByte(s[from:], '@')
		if i < 0 {
			return all
		}
		at := from + i
		start := localStart(s, at, from)
		end := at + 1
		end = domainEnd(s, end)
		if end == at+1 && s[at+1:] != "" && s[at+1] == '[' {
			if k := strings.IndexByte(s[at:], ']'); k > 0 && k < 60 {
				end = at + k + 1
			}
		}
		for end > at+1 && (s[end-1] == '.' || s[end-1] == '-' || s[end-1] == '_') {
			end--
		}
		from = max(end, at+1)
		if strings.ContainsFunc(s[start:at], unicode.IsControl) {
			continue // a quoted local part that never was one
		}
		if start == at || end-at < 3 || at-start > 128 || end-at > 256 {
			continue
		}
		a := foundAddress{text: s[start:end], start: start, end: end}
		if start > 0 && s[start-1] == '<' && end < len(s) && s[end] == '>' {
			a.start, a.end, a.angle = start-1, end+1, true
		}
		all = append(all, a)
	}
	return all
}

// localStart returns where the local part before the @ at at begins.
func localStart(s string, at, from int) int {
	if at > from && s[at-1] == '"' {
		if k := strings.LastIndexByte(s[from:at-1], '"'); k >= 0 {
			return from + k
		}
	}
	start := at
	for start > from && isLocalByte(s[start-1]) {
		if s[start-1] >= utf8.RuneSelf {
			r, size := utf8.DecodeLastRuneInString(s[from:start])
			// Chinese and Japanese put no space before an address.
			if !unicode.IsLetter(r) && !unicode.IsMark(r) || r >= 0x2E80 && start < at && s[start] < utf8.RuneSelf {
				break
			}
			start -= size
			continue
		}
		start--
	}
	// 'user@example.com' and to='user@...', but o'brien@example.com.
	if k := strings.LastIndex(s[start:at], "='"); k >= 0 {
		start += k + 2
	}
	for start < at && s[start] == '\'' {
		start++
	}
	// The path of a file that is named after an address; X.400 names in this
	// form hold "=".
	if start < at && s[start] == '/' && !strings.Contains(s[start:at], "=") {
		start += strings.LastIndexByte(s[start:at], '/') + 1
	}
	for start < at && (s[start] == '.' || s[start] == '=' && !strings.HasPrefix(s[start:], "=?") || s[start] == '*' || s[start] == '-' || s[start] == '|' || s[start] == '/') {
		start++
	}
	return start
}

// domainEnd returns where the domain that begins at i ends.
func domainEnd(s string, i int) int {
	begin := i
	for i < len(s) && isDomainByte(s[i]) {
		if s[i] < utf8.RuneSelf {
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if !unicode.IsLetter(r) && !unicode.IsMark(r) || r >= 0x2E80 && i > begin && s[i-1] < utf8.RuneSelf && s[i-1] != '.' {
			break
		}
		i += size
	}
	return i
}

func isLocalByte(c byte) bool {
	return c >= 0x80 || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("!#$%&'*+-/=?^_`{|}~.", c) >= 0
}

func isDomainByte(c byte) bool {
	return c >= 0x80 || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_'
}

// addressIn returns the address of a field such as Final-Recipient, whatever
// its type and brackets: "rfc822; user@example.com", "<user@example.com>",
// "utf-8; ...", "RFC822;@relay:user@example.com" (source route).
func addressIn(value string) string {
	kind, address, ok := strings.Cut(value, ";")
	if !ok {
		address = value
	} else if strings.Contains(kind, "@") {
		address = kind
	}
	address = strings.TrimSpace(address)
	if strings.HasPrefix(address, "@") {
		if _, after, ok := strings.Cut(address, ":"); ok {
			address = after
		}
	}
	if strings.HasPrefix(address, "<@") {
		if _, after, ok := strings.Cut(address, ":"); ok {
			address = "<" + after
		}
	}
	address = strings.TrimRight(address, ".")
	// The whole value, when it is one address: odd local parts survive.
	whole := strings.TrimSuffix(strings.TrimPrefix(address, "<"), ">")
	if at := strings.LastIndexByte(whole, '@'); at > 0 && at < len(whole)-1 && !strings.ContainsFunc(whole, notInAddress) && len(whole) < 320 && isDomain(whole[at+1:]) {
		return whole
	}
	if all := findAddresses(address); len(all) > 0 {
		return all[0].text
	}
	return ""
}

// isDomain reports whether s can stand behind an @.
func isDomain(s string) bool {
	if s[0] == '[' {
		return s[len(s)-1] == ']'
	}
	return domainEnd(s, 0) == len(s)
}

// notInAddress reports what no address holds, however odd.
func notInAddress(r rune) bool {
	return r <= ' ' || r >= 0x7F && r < 0xA0 || strings.ContainsRune("<>()", r) || unicode.IsSpace(r)
}
