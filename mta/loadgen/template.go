package loadgen

import (
	"bytes"
	"fmt"
	"math/bits"
	"time"
)

// template is the message all copies are made from: whole, with its final dot,
// and the places where the number goes.
type template struct {
	bytes []byte
	at    []int // offsets of idWidth digits
}

const idWidth = 10

var idMark = []byte("##########")

// makeTemplate builds the message. Its bytes are the same for every run with
// the same settings.
func makeTemplate(s *Source) (template, error) {
	var b bytes.Buffer
	kind := "text/plain"
	if s.Body == "html" {
		kind = "text/html"
	}
	fmt.Fprintf(&b, "X-Load-ID: %s\r\nMessage-ID: <%s@load.example>\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\n", idMark, idMark)
	fmt.Fprintf(&b, "From: <%s>\r\nTo: undisclosed-recipients:;\r\nSubject: load %s\r\n", s.From, idMark)
	fmt.Fprintf(&b, "MIME-Version: 1.0\r\nContent-Type: %s; charset=utf-8\r\n\r\ncanary %s\r\n", kind, idMark)
	const text = "The quick brown fox jumps over the lazy dog and runs on to the next line. "
	var line string
	switch s.Body {
	case "", "text":
		line = text
	case "html":
		line = `<p><a href="https://www.example.com/offer?id=1">quick brown fox</a></p>`
	case "dots":
		line = ".." + text // on the wire; one dot in the message
	default:
		return template{}, fmt.Errorf("loadgen: body %q is not one of text, html, dots", s.Body)
	}
	for b.Len() < s.Size {
		room := s.Size - b.Len()
		if n := len(line) + 2; n > room && room > 4 {
			line = line[:room-2]
		}
		b.WriteString(line + "\r\n")
	}
	b.WriteString(".\r\n")
	t := template{bytes: b.Bytes()}
	for i := 0; ; {
		j := bytes.Index(t.bytes[i:], idMark)
		if j < 0 {
			return t, nil
		}
		t.at = append(t.at, i+j)
		i += j + idWidth
	}
}

// number writes n into msg, a copy of the template, and returns it as text.
func (t *template) number(msg []byte, n int) string {
	var d [idWidth]byte
	for i := idWidth - 1; i >= 0; i-- {
		d[i] = byte('0' + n%10)
		n /= 10
	}
	for _, at := range t.at {
		copy(msg[at:], d[:])
	}
	return string(d[:])
}

// latencies is a histogram with sixteen steps to every power of two, so that a
// value is known to within 7 per cent in fixed memory.
type latencies struct {
	counts [64 * 16]int64
	n      int64
}

func bucket(d time.Duration) int {
	v := uint64(max(d, 1))
	if v < 16 {
		return int(v)
	}
	e := bits.Len64(v) - 5 // keeps five digits, the first of them a one
	return e*16 + int(v>>e)
}

// top is the upper end of a bucket.
func top(i int) time.Duration {
	if i < 32 {
		return time.Duration(i)
	}
	e := i/16 - 1
	return time.Duration((uint64(i%16+16)+1)<<e - 1)
}

func (l *latencies) add(d time.Duration) {
	l.counts[bucket(d)]++
	l.n++
}

func (l *latencies) merge(o *latencies) {
	for i, c := range o.counts {
		l.counts[i] += c
	}
	l.n += o.n
}

func (l *latencies) quantile(q float64) time.Duration {
	rank := int64(q * float64(l.n))
	for i, c := range l.counts {
		if rank -= c; rank < 0 {
			return top(i)
		}
	}
	return 0
}
