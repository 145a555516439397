package bounce

import (
	"encoding/base64"
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"
)

// decodeUTF7 decodes UTF-7 (RFC 2152), in which Exchange wrote its reports for
// years. What is not UTF-7 after all stays as it is.
func decodeUTF7(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '+' {
			out = append(out, b[i])
			continue
		}
		end := i + 1
		for end < len(b) && isBase64Byte(b[end]) {
			end++
		}
		dashed := end < len(b) && b[end] == '-'
		if end == i+1 && dashed {
			out = append(out, '+')
			i = end
			continue
		}
		units, ok := utf16Units(b[i+1 : end])
		if !ok {
			out = append(out, '+')
			continue
		}
		for _, r := range utf16.Decode(units) {
			out = utf8.AppendRune(out, r)
		}
		i = end - 1
		if dashed {
			i = end
		}
	}
	return out
}

// utf16Units decodes base64 without padding into big-endian units. Fewer than six
// bits may be left over, or it was a plus sign in an address that nobody encoded.
func utf16Units(b []byte) ([]uint16, bool) {
	if len(b)*6%16 >= 6 {
		return nil, false
	}
	raw := make([]byte, base64.RawStdEncoding.DecodedLen(len(b)))
	n, err := base64.RawStdEncoding.Decode(raw, b)
	if err != nil || n < 2 {
		return nil, false
	}
	units := make([]uint16, 0, n/2)
	for k := 0; k+1 < n; k += 2 {
		units = append(units, binary.BigEndian.Uint16(raw[k:]))
	}
	return units, true
}

func isBase64Byte(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '+' || c == '/'
}
