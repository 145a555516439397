package inbound

import (
	"strconv"
	"strings"

	"github.com/emersion/go-smtp"

	"github.com/tradewind-mta/tradewind/message"
)

// maxPath is well above the 256 octets of RFC 5321, 4.5.3.1.3, because U-labels
// may shrink when folded, and far below anything worth the parser's time.
const maxPath = 800

// cutPath takes "<...>" off the front of s, honouring quoted strings, so that
// a '>' or a blank between quotes belongs to the address. rest is what follows
// the closing bracket.
func cutPath(s string) (path, rest string, ok bool) {
	if s == "" || s[0] != '<' {
		return "", "", false
	}
	quoted := false
	for i := 1; i < len(s) && i <= maxPath; i++ {
		switch c := s[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == '>' && !quoted:
			return s[1:i], s[i+1:], true
		}
	}
	return "", "", false
}

// parsePath reads the address of a MAIL or RCPT path. Source routes are not
// read; ParseAddress refuses them with every other malformed address.
func parsePath(path string, utf8OK bool) (message.Address, *smtp.SMTPError) {
	if !utf8OK && !isASCII(path) {
		return message.Address{}, errNeedsUTF8
	}
	a, err := message.ParseAddress(path)
	if err != nil {
		return message.Address{}, errBadAddress
	}
	return a, nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// nextParam takes one ESMTP parameter (RFC 5321, 4.1.2) off the front of s:
// exactly one space, a keyword, and perhaps "=value". The keyword comes back
// as it was written.
func nextParam(s string) (key, value string, hasValue bool, rest string, ok bool) {
	if s[0] != ' ' {
		return "", "", false, "", false
	}
	s = s[1:]
	end := strings.IndexByte(s, ' ')
	if end < 0 {
		end = len(s)
	}
	word, rest := s[:end], s[end:]
	key, value, hasValue = strings.Cut(word, "=")
	if key == "" || !isKeyword(key) || (hasValue && !isValue(value)) {
		return "", "", false, "", false
	}
	return key, value, hasValue, rest, true
}

func isKeyword(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-' && i > 0:
		default:
			return false
		}
	}
	return true
}

// isValue allows octets above 0x7F, for the utf-8-addr-unitext of RFC 6533;
// whoever reads the value decides whether they may stand there.
func isValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '=' || c == 0x7F {
			return false
		}
	}
	return s != ""
}

// foldEq compares an ASCII keyword. strings.EqualFold would let U+017F stand
// for S and U+212A for K.
func foldEq(s, upper string) bool {
	if len(s) != len(upper) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != upper[i] {
			return false
		}
	}
	return true
}

// parseMailParams fills o from what follows the path of MAIL.
func parseMailParams(s string, o *smtp.MailOptions) *smtp.SMTPError {
	seen := 0
	once := func(bit int) bool {
		dup := seen&bit != 0
		seen |= bit
		return !dup
	}
	for s = trimEnd(s); s != ""; {
		key, value, has, rest, ok := nextParam(s)
		if !ok {
			return errBadParam
		}
		s = rest
		switch {
		case foldEq(key, "SIZE"):
			if !has || !once(1) {
				return errBadParam
			}
			n, ok := parseSize(value)
			if !ok {
				return errBadParam
			}
			o.Size = n
		case foldEq(key, "BODY"):
			if !has || !once(2) {
				return errBadParam
			}
			switch {
			case foldEq(value, "7BIT"):
				o.Body = smtp.Body7Bit
			case foldEq(value, "8BITMIME"):
				o.Body = smtp.Body8BitMIME
			default:
				return errBadParam
			}
		case foldEq(key, "SMTPUTF8"):
			if has || !once(4) {
				return errBadParam
			}
			o.UTF8 = true
		case foldEq(key, "RET"):
			if !has || !once(8) {
				return errBadParam
			}
			switch {
			case foldEq(value, "FULL"):
				o.Return = smtp.DSNReturnFull
			case foldEq(value, "HDRS"):
				o.Return = smtp.DSNReturnHeaders
			default:
				return errBadParam
			}
		case foldEq(key, "ENVID"):
			if !has || !once(16) || len(value) > maxEnvID {
				return errBadParam
			}
			id, ok := decodeXtext(value)
			if !ok || !isASCII(id) || !cleanText(id) {
				return errBadParam
			}
			o.EnvelopeID = id
		case foldEq(key, "AUTH"):
			if !has || !once(32) || len(value) > maxORcpt {
				return errBadParam
			}
			id, ok := decodeXtext(value)
			if !ok || !cleanText(id) {
				return errBadParam
			}
			if id == "<>" {
				id = ""
			}
			o.Auth = &id
		default:
			return errUnknownParam
		}
	}
	return nil
}

// parseRcptParams fills o from what follows the path of RCPT.
func parseRcptParams(s string, utf8OK bool, o *smtp.RcptOptions) *smtp.SMTPError {
	notify, orcpt := false, false
	for s = trimEnd(s); s != ""; {
		key, value, has, rest, ok := nextParam(s)
		if !ok {
			return errBadParam
		}
		s = rest
		switch {
		case foldEq(key, "NOTIFY"):
			if !has || notify {
				return errBadParam
			}
			notify = true
			if o.Notify, ok = parseNotify(value); !ok {
				return errBadParam
			}
		case foldEq(key, "ORCPT"):
			if !has || orcpt || len(value) > maxORcpt {
				return errBadParam
			}
			orcpt = true
			if o.OriginalRecipientType, o.OriginalRecipient, ok = parseORcpt(value, utf8OK); !ok {
				return errBadParam
			}
		default:
			return errUnknownParam
		}
	}
	return nil
}

// parseNotify reads the list of RFC 3461, 4.1: NEVER alone, or each of the
// others at most once.
func parseNotify(s string) ([]smtp.DSNNotify, bool) {
	var list []smtp.DSNNotify
	for len(list) <= 4 {
		word, rest, more := strings.Cut(s, ",")
		var n smtp.DSNNotify
		switch {
		case foldEq(word, "NEVER"):
			n = smtp.DSNNotifyNever
		case foldEq(word, "SUCCESS"):
			n = smtp.DSNNotifySuccess
		case foldEq(word, "FAILURE"):
			n = smtp.DSNNotifyFailure
		case foldEq(word, "DELAY"):
			n = smtp.DSNNotifyDelayed
		default:
			return nil, false
		}
		for _, have := range list {
			if have == n || have == smtp.DSNNotifyNever || n == smtp.DSNNotifyNever {
				return nil, false
			}
		}
		list = append(list, n)
		if !more {
			return list, true
		}
		s = rest
	}
	return nil, false
}

// parseORcpt reads "type;address" (RFC 3461, 4.2; for UTF-8 RFC 6533, 3). The
// type comes back in upper case, the address decoded.
func parseORcpt(s string, utf8OK bool) (smtp.DSNAddressType, string, bool) {
	typ, enc, ok := strings.Cut(s, ";")
	if !ok || typ == "" || len(typ) > 32 || !isKeyword(typ) || enc == "" {
		return "", "", false
	}
	if !foldEq(typ, "UTF-8") {
		addr, ok := decodeXtext(enc)
		return smtp.DSNAddressType(strings.ToUpper(typ)), addr, ok && addr != "" && isASCII(addr) && cleanText(addr)
	}
	if !utf8OK && !isASCII(enc) {
		return "", "", false
	}
	if isASCII(enc) {
		// RFC 6533 lets "+" and "=" be written as \x{2B} and \x{3D} here, yet
		// senders wrap the whole in xtext as well; both read the same.
		if enc, ok = decodeXtext(enc); !ok {
			return "", "", false
		}
	}
	addr, ok := decodeUTF8Addr(enc)
	return smtp.DSNAddressTypeUTF8, addr, ok && addr != ""
}

// parseSize reads up to eighteen digits, so that no value overflows.
func parseSize(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// trimEnd takes blanks off the end of a command: RFC 5321, 4.1.1, asks
// receivers to tolerate them.
func trimEnd(s string) string { return strings.TrimRight(s, " ") }
