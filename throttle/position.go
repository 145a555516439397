package throttle

import (
	"strconv"
	"strings"
)

// positions finds the line on which each key of a TOML document stands, which
// the decoder does not tell. Every value can then be explained by the line it
// came from, and every problem named by it.
//
// Keys are paths joined by "\x00"; elements of an array of tables carry
// "#n". Keys inside inline tables belong to the line of the outer key.
// REQUIRES: the document has been accepted by the decoder; on anything else
// the result is merely useless.
func positions(doc string) map[string]int {
	s := &scanner{doc: doc, line: 1, lines: map[string]int{}, arrays: map[string]int{}}
	s.run()
	return s.lines
}

type scanner struct {
	doc    string
	pos    int
	line   int
	prefix string
	lines  map[string]int
	arrays map[string]int // elements seen of each array of tables
}

func (s *scanner) run() {
	for {
		s.skipSpace(true)
		if s.pos >= len(s.doc) {
			return
		}
		start := s.pos
		switch {
		case strings.HasPrefix(s.doc[s.pos:], "[["):
			s.pos += 2
			parts := s.dotted()
			path := s.resolve("", parts)
			s.prefix = path + "#" + strconv.Itoa(s.arrays[path])
			s.arrays[path]++
			s.lines[s.prefix] = s.line
			s.skipLine()
		case s.doc[s.pos] == '[':
			s.pos++
			parts := s.dotted()
			s.prefix = s.enter(s.resolve("", parts))
			s.lines[s.prefix] = s.line
			s.skipLine()
		default:
			parts := s.dotted()
			path := s.resolve(s.prefix, parts)
			if _, seen := s.lines[path]; !seen {
				s.lines[path] = s.line
			}
			s.skipSpace(false)
			if s.peek() == '=' {
				s.pos++
			}
			s.skipValue()
		}
		if s.pos == start { // not TOML; never loop
			s.pos++
		}
	}
}

// resolve joins parts below prefix, going into the last element of every array
// of tables on the way, but not into one named by the last part.
func (s *scanner) resolve(prefix string, parts []string) string {
	for i, p := range parts {
		if prefix != "" {
			prefix += "\x00"
		}
		prefix += p
		if i < len(parts)-1 {
			prefix = s.enter(prefix)
		}
	}
	return prefix
}

func (s *scanner) enter(path string) string {
	if n := s.arrays[path]; n > 0 {
		return path + "#" + strconv.Itoa(n-1)
	}
	return path
}

func (s *scanner) peek() byte {
	if s.pos < len(s.doc) {
		return s.doc[s.pos]
	}
	return 0
}

func (s *scanner) skipSpace(newlines bool) {
	for s.pos < len(s.doc) {
		switch s.doc[s.pos] {
		case ' ', '\t', '\r':
		case '\n':
			if !newlines {
				return
			}
			s.line++
		case '#':
			if !newlines {
				return
			}
			for s.pos < len(s.doc) && s.doc[s.pos] != '\n' {
				s.pos++
			}
			continue
		default:
			return
		}
		s.pos++
	}
}

func (s *scanner) skipLine() {
	for s.pos < len(s.doc) && s.doc[s.pos] != '\n' {
		s.pos++
	}
}

// dotted reads a.b."c d" and stops before what follows.
func (s *scanner) dotted() []string {
	var parts []string
	for s.pos < len(s.doc) {
		s.skipSpace(false)
		switch c := s.peek(); {
		case c == '"' || c == '\'':
			start := s.pos
			s.skipString()
			raw := s.doc[start:s.pos]
			if c == '"' {
				if u, err := strconv.Unquote(raw); err == nil {
					parts = append(parts, u)
					break
				}
			}
			parts = append(parts, strings.Trim(raw, `"'`))
		case bareKey(c):
			start := s.pos
			for s.pos < len(s.doc) && bareKey(s.doc[s.pos]) {
				s.pos++
			}
			parts = append(parts, s.doc[start:s.pos])
		default:
			return parts
		}
		s.skipSpace(false)
		if s.peek() != '.' {
			return parts
		}
		s.pos++
	}
	return parts
}

func bareKey(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

// skipString passes over one string of any of the four kinds.
func (s *scanner) skipString() {
	quote := s.doc[s.pos]
	long := strings.Repeat(string(quote), 3)
	if strings.HasPrefix(s.doc[s.pos:], long) {
		s.pos += 3
		for s.pos < len(s.doc) {
			switch {
			case strings.HasPrefix(s.doc[s.pos:], long):
				s.pos += 3
				for s.peek() == quote { // up to two quotes may end the text
					s.pos++
				}
				return
			case quote == '"' && s.doc[s.pos] == '\\' && s.pos+1 < len(s.doc):
				s.pos++
			}
			if s.doc[s.pos] == '\n' {
				s.line++
			}
			s.pos++
		}
		return
	}
	for s.pos++; s.pos < len(s.doc); s.pos++ {
		switch {
		case s.doc[s.pos] == '\n':
			return
		case s.doc[s.pos] == quote:
			s.pos++
			return
		case quote == '"' && s.doc[s.pos] == '\\':
			s.pos++
		}
	}
	s.pos = min(s.pos, len(s.doc))
}

// skipValue passes over a value, which ends at a line break outside brackets.
func (s *scanner) skipValue() {
	depth := 0
	for s.pos < len(s.doc) {
		switch s.doc[s.pos] {
		case '"', '\'':
			s.skipString()
			continue
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		case '#':
			s.skipLine()
			continue
		case '\n':
			if depth <= 0 {
				return
			}
			s.line++
		}
		s.pos++
	}
}
