package bounce

import (
	"bytes"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// findCharset returns the decoder for a name, nil if there is none. The index of
// the Web maps what browsers refuse to read to a decoder that reads nothing.
func findCharset(name string) encoding.Encoding {
	switch name = strings.TrimPrefix(name, "x-"); name {
	case "iso-2022-kr", "csiso2022kr", "iso-2022-cn", "iso-2022-cn-ext", "replacement", "":
		return nil
	case "hz-gb-2312", "hz":
		return simplifiedchinese.HZGB2312
	case "cp932", "ms932", "windows-932":
		name = "shift_jis"
	case "cp936":
		name = "gbk"
	case "cp949", "uhc":
		name = "euc-kr"
	case "cp950":
		name = "big5"
	case "ansi_x3.4-1968", "unknown-8bit", "unknown", "8bit", "default", "us-ascii", "ascii", "utf-8", "utf8", "unicode-1-1-utf-8":
		return nil // it is none of these, or it would not have come here
	}
	if e, err := htmlindex.Get(name); err == nil {
		return e
	}
	return nil
}

// decodeShifted reads ISO-2022-KR and ISO-2022-CN, in which a byte shifts between
// ASCII and pairs of seven bits: with the eighth set they are EUC.
func decodeShifted(b []byte) ([]byte, bool) {
	var e encoding.Encoding
	switch {
	case bytes.Contains(b, []byte("\x1b$)C")):
		e = korean.EUCKR
	case bytes.Contains(b, []byte("\x1b$)A")):
		e = simplifiedchinese.GB18030
	default:
		return nil, false
	}
	euc := make([]byte, 0, len(b))
	shifted := false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == 0x1B && i+3 < len(b) && b[i+1] == '$' && b[i+2] == ')':
			i += 3
		case c == 0x0E:
			shifted = true
		case c == 0x0F || c == '\n':
			shifted = false
			if c == '\n' {
				euc = append(euc, c)
			}
		case shifted && c > ' ':
			euc = append(euc, c|0x80)
		default:
			euc = append(euc, c)
		}
	}
	out, err := e.NewDecoder().Bytes(euc)
	return out, err == nil
}

// guessCharset chooses a charset for text that names none, or a wrong one: that in
// which it says most of what reports say.
func guessCharset(b []byte) encoding.Encoding {
	best, most := encoding.Encoding(charmap.Windows1252), -1
	// A sample is enough, from where it matters.
	if i := bytes.IndexFunc(b, func(r rune) bool { return r >= 0x80 }); i > 0 {
		b = b[i:]
	}
	b = b[:min(len(b), 2<<10)]
	for _, name := range [...]string{"windows-1252", "shift_jis", "euc-jp", "gb18030", "euc-kr", "big5", "windows-1251", "koi8-r", "iso-8859-2"} {
		e, err := htmlindex.Get(name)
		if err != nil {
			continue
		}
		out, err := e.NewDecoder().Bytes(b)
		if err != nil {
			continue
		}
		words := theLexicon()
		score := 0
		seen := words.find(plain(string(out)))
		for id := range uint16(len(words.words)) {
			if seen.has(id) {
				score += len(words.words[id])
			}
		}
		if score > most {
			best, most = e, score
		}
	}
	return best
}
