package message

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits of RFC 5321, 4.5.3.1.
const (
	maxLocal   = 64
	maxDomain  = 255
	maxAddress = 254 // path of 256 less the angle brackets
)

// ErrBadAddress is wrapped by every error of ParseAddress.
var ErrBadAddress = errors.New("bad address")

// Address is one mailbox of RFC 5321 and RFC 6531. It can be made only by
// ParseAddress, so whatever holds one can be written to the wire: it contains
// no control byte, no unquoted special, and its domain is a lower-case A-label
// domain or an address literal. The zero value is the null reverse path.
type Address struct {
	local  string // as given, quotes included
	domain string
}

// ParseAddress reads "local@domain" without angle brackets, display name,
// comments or source route. The local part keeps its bytes and its quotes; the
// domain is folded to lower-case A-labels. Errors wrap ErrBadAddress.
func ParseAddress(s string) (Address, error) {
	if len(s) > maxAddress+2*maxDomain { // U-labels may shrink; refuse early all the same
		return Address{}, fmt.Errorf("%w: longer than %d octets", ErrBadAddress, maxAddress)
	}
	n, err := scanLocal(s)
	if err != nil {
		return Address{}, err
	}
	if n == len(s) || s[n] != '@' {
		if n < len(s) {
			return Address{}, fmt.Errorf("%w: %q may not stand in a local part unquoted", ErrBadAddress, s[n])
		}
		return Address{}, fmt.Errorf("%w: no @domain", ErrBadAddress)
	}
	local := s[:n]
	if len(local) > maxLocal {
		return Address{}, fmt.Errorf("%w: local part longer than %d octets", ErrBadAddress, maxLocal)
	}
	domain, err := ParseDomain(s[n+1:])
	if err != nil {
		return Address{}, err
	}
	if len(local)+1+len(domain) > maxAddress {
		return Address{}, fmt.Errorf("%w: longer than %d octets", ErrBadAddress, maxAddress)
	}
	return Address{local: local, domain: domain}, nil
}

// MustAddress is ParseAddress for constants; it panics on bad input.
func MustAddress(s string) Address {
	a, err := ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return a
}

// scanLocal returns the length of the local part that s begins with: a
// Dot-string or a Quoted-string (RFC 5321, 4.1.2; UTF-8 by RFC 6531, 3.3).
func scanLocal(s string) (int, error) {
	if s == "" || s[0] == '@' {
		return 0, fmt.Errorf("%w: empty local part", ErrBadAddress)
	}
	if s[0] == '"' {
		return scanQuoted(s)
	}
	dot := true // a dot may not come first, last, or after another
	i := 0
	for i < len(s) && s[i] != '@' {
		switch c := s[i]; {
		case c == '.':
			if dot {
				return 0, fmt.Errorf("%w: misplaced dot in local part", ErrBadAddress)
			}
			dot = true
			i++
			continue
		case c >= utf8.RuneSelf:
			r, size := utf8.DecodeRuneInString(s[i:])
			if err := checkRune(r, size); err != nil {
				return 0, err
			}
			i += size
		case isAtext(c):
			i++
		default:
			return i, nil
		}
		dot = false
	}
	if dot {
		return 0, fmt.Errorf("%w: misplaced dot in local part", ErrBadAddress)
	}
	return i, nil
}

func scanQuoted(s string) (int, error) {
	for i := 1; i < len(s); {
		switch c := s[i]; {
		case c == '"':
			return i + 1, nil
		case c == '\\':
			// quoted-pairSMTP: a backslash and one graphic or space
			if i+1 >= len(s) || s[i+1] < ' ' || s[i+1] > '~' {
				return 0, fmt.Errorf("%w: bad quoted pair", ErrBadAddress)
			}
			i += 2
		case c >= utf8.RuneSelf:
			r, size := utf8.DecodeRuneInString(s[i:])
			if err := checkRune(r, size); err != nil {
				return 0, err
			}
			i += size
		case c < ' ' || c == 0x7F:
			return 0, fmt.Errorf("%w: control character", ErrBadAddress)
		default:
			i++
		}
	}
	return 0, fmt.Errorf("%w: quote not closed", ErrBadAddress)
}

// checkRune refuses malformed UTF-8, C1 controls and line separators, which
// some parsers take for the end of a line.
func checkRune(r rune, size int) error {
	switch {
	case r == utf8.RuneError && size <= 1:
		return fmt.Errorf("%w: not UTF-8", ErrBadAddress)
	case r < 0xA0, r == 0x2028, r == 0x2029, r == 0xFEFF:
		return fmt.Errorf("%w: control character %U", ErrBadAddress, r)
	}
	return nil
}

func isAtext(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

// profile maps, checks and folds U-labels (UTS 46, non-transitional) and holds
// ASCII labels to letters, digits and hyphens.
var profile = idna.New(
	idna.MapForLookup(),
	idna.Transitional(false),
	idna.StrictDomainName(true),
	idna.BidiRule(),
	idna.CheckJoiners(true),
	idna.CheckHyphens(false), // "r3---sn-x" style names exist and resolve
	idna.VerifyDNSLength(true),
)

// ParseDomain folds a domain to lower-case A-labels, or checks an address
// literal such as [192.0.2.1] or [IPv6:2001:db8::1] (RFC 5321, 4.1.3). Errors
// wrap ErrBadAddress.
func ParseDomain(s string) (string, error) {
	if s == "" {
		return "", fmt.Errorf("%w: empty domain", ErrBadAddress)
	}
	if s[0] == '[' {
		return parseLiteral(s)
	}
	if len(s) > 2*maxDomain {
		return "", fmt.Errorf("%w: domain longer than %d octets", ErrBadAddress, maxDomain)
	}
	if !needsIDNA(s) {
		return asciiDomain(s)
	}
	// The library takes octets that are not UTF-8 for U+FFFD, which it then
	// encodes into a name that nobody has.
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("%w: domain is not UTF-8", ErrBadAddress)
	}
	d, err := profile.ToASCII(s)
	if err != nil {
		return "", fmt.Errorf("%w: domain: %w", ErrBadAddress, err)
	}
	return asciiDomain(d)
}

// needsIDNA reports whether s holds a U-label, or an A-label whose Punycode
// must be checked.
func needsIDNA(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return true
		}
		if s[i] == '-' && i >= 3 && strings.EqualFold(s[i-3:i+1], "xn--") {
			return true
		}
	}
	return false
}

// asciiDomain checks letters, digits and hyphens by hand: the IDNA library
// costs a microsecond and the great majority of domains needs none of it.
func asciiDomain(s string) (string, error) {
	if len(s) > maxDomain {
		return "", fmt.Errorf("%w: domain longer than %d octets", ErrBadAddress, maxDomain)
	}
	label, upper := 0, false
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			label++
		case 'A' <= c && c <= 'Z':
			label++
			upper = true
		case c == '-':
			if label == 0 || i+1 == len(s) || s[i+1] == '.' {
				return "", fmt.Errorf("%w: domain label begins or ends with a hyphen", ErrBadAddress)
			}
			label++
		case c == '.':
			if label == 0 || i+1 == len(s) {
				return "", fmt.Errorf("%w: empty domain label", ErrBadAddress)
			}
			label = 0
			continue
		default:
			return "", fmt.Errorf("%w: %q may not stand in a domain", ErrBadAddress, c)
		}
		if label > 63 {
			return "", fmt.Errorf("%w: domain label longer than 63 octets", ErrBadAddress)
		}
	}
	// A name that reads as an IPv4 address is a literal without brackets.
	if last := s[strings.LastIndexByte(s, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return "", fmt.Errorf("%w: top-level domain is a number", ErrBadAddress)
	}
	if upper {
		s = strings.ToLower(s)
	}
	return s, nil
}

func parseLiteral(s string) (string, error) {
	bad := fmt.Errorf("%w: bad address literal", ErrBadAddress)
	if len(s) < 3 || s[len(s)-1] != ']' {
		return "", bad
	}
	in := s[1 : len(s)-1]
	if len(in) > 5 && strings.EqualFold(in[:5], "IPv6:") {
		ip, err := netip.ParseAddr(in[5:])
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return "", bad
		}
		return "[IPv6:" + ip.String() + "]", nil
	}
	ip, err := netip.ParseAddr(in)
	if err != nil || !ip.Is4() {
		return "", bad
	}
	return "[" + ip.String() + "]", nil
}

// Literal returns the IP address of an address-literal domain, and whether
// domain is one.
func Literal(domain string) (netip.Addr, bool) {
	if len(domain) < 3 || domain[0] != '[' {
		return netip.Addr{}, false
	}
	in := strings.TrimPrefix(domain[1:len(domain)-1], "IPv6:")
	ip, err := netip.ParseAddr(in)
	return ip, err == nil
}

// String returns local@domain, or "" for the null reverse path.
func (a Address) String() string {
	if a.IsZero() {
		return ""
	}
	return a.local + "@" + a.domain
}

// Append appends local@domain to dst.
func (a Address) Append(dst []byte) []byte {
	if a.IsZero() {
		return dst
	}
	dst = append(dst, a.local...)
	dst = append(dst, '@')
	return append(dst, a.domain...)
}

// Local is the local part with its quotes, if it came with any.
func (a Address) Local() string { return a.local }

// Domain is the domain in lower-case A-labels, or an address literal.
func (a Address) Domain() string { return a.domain }

// IsZero reports whether a is the null reverse path.
func (a Address) IsZero() bool { return a.domain == "" }

// UTF8 reports whether a needs SMTPUTF8 (RFC 6531): its local part is not
// ASCII. A domain never asks for it, being in A-labels.
func (a Address) UTF8() bool {
	for i := range len(a.local) {
		if a.local[i] >= utf8.RuneSelf {
			return true
		}
	}
	return false
}

// Key is the form under which suppression and statistics know the mailbox:
// the local part without the quotes and backslashes that add nothing (RFC
// 5321, 4.1.2), then lower-cased. No plus or dot folding.
func (a Address) Key() string {
	local := a.local
	if local != "" && local[0] == '"' {
		in := unquote(local)
		if n, err := scanLocal(in); err == nil && n == len(in) && in[0] != '"' {
			local = in
		} else if strings.IndexByte(local, '\\') >= 0 {
			local = `"` + quoteSpecials.Replace(in) + `"`
		}
	}
	return strings.ToLower(local) + "@" + a.domain
}

// quoteSpecials escapes what a quoted string must escape, and nothing else.
var quoteSpecials = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func unquote(q string) string {
	var b strings.Builder
	for i := 1; i < len(q)-1; i++ {
		if q[i] == '\\' {
			i++
		}
		b.WriteByte(q[i])
	}
	return b.String()
}

// MarshalText writes local@domain.
func (a Address) MarshalText() ([]byte, error) { return a.Append(nil), nil }

// UnmarshalText parses local@domain; empty text is the null reverse path.
func (a *Address) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*a = Address{}
		return nil
	}
	v, err := ParseAddress(string(b))
	if err != nil {
		return err
	}
	*a = v
	return nil
}
