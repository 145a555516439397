package api

import (
	"bytes"

	"github.com/tradewind-mta/tradewind/inject"
)

// Most mail is sent as its author wrote it: ASCII in short lines. Of a template
// that much is known once, and for a recipient only the values and the lines they
// stand in can make a difference. So nobody reads ten thousand times what is the
// same in all of them.

// maxPlainLine is the longest line, with its CRLF, that is sent as it is. Some
// relays break lines of HTML well below the 998 octets of RFC 5322.
const maxPlainLine = 500

// facts is what must be known of a piece of text to tell whether one that it is
// part of is plain.
type facts struct {
	size  int  // octets
	first int  // up to and with the first line break; size when there is none
	last  int  // behind the last line break
	lines bool // it holds a line break
	// odd says that no text with this in it is plain: it holds octets that are not
	// ASCII, a NUL, half of a CRLF or a line that is too long.
	odd  bool
	head bool // it begins with a dot
	dot  bool // a line behind its first begins with a dot
}

func factsOf(b []byte) facts {
	f := facts{size: len(b), first: len(b), head: bytes.HasPrefix(b, []byte("."))}
	f.odd = inject.HasEightBit(b) || bytes.IndexByte(b, 0) >= 0
	start, breaks := 0, 0
	for {
		n := bytes.IndexByte(b[start:], '\n')
		if n < 0 {
			break
		}
		f.odd = f.odd || n == 0 || b[start+n-1] != '\r' || n+1 > maxPlainLine
		start += n + 1
		if breaks++; breaks == 1 {
			f.first, f.lines = start, true
		}
		f.dot = f.dot || start < len(b) && b[start] == '.'
	}
	f.odd = f.odd || bytes.Count(b, []byte("\r")) != breaks // each LF has its CR
	f.last = len(b) - start
	return f
}

// survey follows a text as it is put together from pieces, from the beginning of a
// line. The zero value is an empty text.
type survey struct {
	column int  // octets of the line so far
	odd    bool // the text is not plain
	dot    bool // a line begins with a dot
}

func (s *survey) add(f *facts) {
	if f.size == 0 {
		return
	}
	s.odd = s.odd || f.odd || s.column+f.first > maxPlainLine || f.last > maxPlainLine
	s.dot = s.dot || f.dot || f.head && s.column == 0
	if f.lines {
		s.column = f.last
	} else {
		s.column += f.size
	}
}

// know takes note of what the literals of a body template are, once.
func (t *template) know() {
	t.facts = make([]facts, len(t.literal))
	t.plain = true
	for i, l := range t.literal {
		t.facts[i] = factsOf([]byte(l))
		t.plain = t.plain && !t.facts[i].odd
	}
}

// finished reports that every piece between the texts is whole lines that nobody
// has to look at again.
func finished(pieces []piece) bool {
	for i := range pieces {
		f := factsOf(pieces[i].literal)
		if f.odd || f.head || f.dot || f.last > 0 {
			return false
		}
	}
	return true
}
