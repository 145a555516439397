package dkim

import (
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

// Where lines of the field are folded: at most 78 octets before the CRLF
// (RFC 5322, 2.1.1), unless a single word is longer than that.
const maxLine = 78

// fieldWriter formats a DKIM-Signature field, folding between tags, at the
// colons of h= and inside base64: the places RFC 6376, 3.5 and 3.2 allow. It
// never breaks a name or puts white space next to a "=".
type fieldWriter struct {
	b    []byte
	line int // where the current line begins in b
}

func (w *fieldWriter) begin(b []byte) {
	*w = fieldWriter{b: append(b, "DKIM-Signature:"...), line: len(b)}
}

func (w *fieldWriter) used() int { return len(w.b) - w.line }

func (w *fieldWriter) fold() {
	w.b = append(w.b, '\r', '\n')
	w.line = len(w.b)
	w.b = append(w.b, ' ')
}

// word begins a tag: " text" on this line, or on the next one if there is no
// room for it and what must follow.
func (w *fieldWriter) word(text string, follow int) {
	if w.used()+1+len(text)+follow > maxLine {
		w.fold()
	} else {
		w.b = append(w.b, ' ')
	}
	w.b = append(w.b, text...)
}

// tag writes a tag that may not be folded inside, with its semicolon.
func (w *fieldWriter) tag(name, value string) {
	w.word(name, 1+len(value)+1)
	w.b = append(w.b, '=')
	w.b = append(w.b, value...)
	w.b = append(w.b, ';')
}

func (w *fieldWriter) number(name string, n int64) {
	var digits [20]byte
	d := strconv.AppendInt(digits[:0], n, 10)
	w.word(name, 1+len(d)+1)
	w.b = append(w.b, '=')
	w.b = append(w.b, d...)
	w.b = append(w.b, ';')
}

// names writes h=.
func (w *fieldWriter) names(list []string) {
	w.word("h=", len(list[0])+1)
	for i, name := range list {
		if i > 0 {
			w.b = append(w.b, ':')
			if w.used()+len(name)+1 > maxLine {
				w.fold()
			}
		}
		w.b = append(w.b, name...)
	}
	w.b = append(w.b, ';')
}

// value writes the signature itself, folded wherever the line is full.
func (w *fieldWriter) value(sig []byte) {
	var buf [maxSignature]byte
	text := base64.StdEncoding.AppendEncode(buf[:0], sig)
	for {
		room := maxLine - w.used()
		if len(text) <= room {
			break
		}
		w.b = append(w.b, text[:room]...)
		text = text[room:]
		w.fold()
	}
	w.b = append(w.b, text...)
	w.b = append(w.b, '\r', '\n')
}

// maxSignature holds the base64 of a signature with the largest key we take.
const maxSignature = (maxRSABits/8 + 2) / 3 * 4

// unsigned writes the field up to and including "b=": what is signed, once
// canonical, beside the header (RFC 6376, 3.7).
func (w *fieldWriter) unsigned(k *key, domain string, names []string, body BodyHash, now time.Time, expiry time.Duration) {
	w.tag("v", "1")
	w.tag("a", k.algorithm.String())
	w.tag("c", "relaxed/relaxed")
	w.tag("d", domain)
	w.tag("s", k.selector)
	if k.identity != "" {
		w.tag("i", k.identity)
	}
	w.number("t", now.Unix())
	if expiry > 0 {
		w.number("x", now.Add(expiry).Unix())
	}
	w.names(names)
	w.word("bh=", base64.StdEncoding.EncodedLen(len(body))+1)
	w.b = base64.StdEncoding.AppendEncode(w.b, body[:])
	w.b = append(w.b, ';')
	// A few letters of the signature at least stay on the line of their tag.
	w.word("b=", 8)
}

// validIdentity reports whether id may stand in i= for d=domain: an address or
// "@" and a domain, the same as d= or under it (RFC 6376, 3.5). Local parts
// that would need dkim-quoted-printable are not offered.
func validIdentity(id, domain string) bool {
	at := strings.LastIndexByte(id, '@')
	if at < 0 || len(id) > 320 {
		return false
	}
	for i := range at {
		if c := id[i]; c <= ' ' || c >= 0x7F || strings.IndexByte(`;="@<>()[],:\`, c) >= 0 {
			return false
		}
	}
	host := strings.ToLower(id[at+1:])
	return host == domain || validDomain(host) && strings.HasSuffix(host, "."+domain)
}
