package bounce

import "errors"

// maxLiterals bounds the strings of a rule file, so that the set of those seen
// in a text fits a small array on the stack.
const maxLiterals = 4096

type literalSet [maxLiterals / 64]uint64

func (s *literalSet) add(id uint16)      { s[id>>6] |= 1 << (id & 63) }
func (s *literalSet) has(id uint16) bool { return s[id>>6]&(1<<(id&63)) != 0 }

// matcher finds all of a set of strings in a text in one pass: the automaton
// of Aho and Corasick, as a table over the bytes that occur in the set.
type matcher struct {
	class  [256]uint8 // byte to column; column 0 is every byte in no string
	width  int
	next   []uint16   // state*width+class to state
	output []uint16   // state to index of outputs; 0 is none
	lists  [][]uint16 // ids of the strings that end in a state
	maxID  int
}

var errTooManyLiterals = errors.New("too many strings")

// newMatcher builds the automaton; the id of a string is its index.
func newMatcher(literals []string) (*matcher, error) {
	m := &matcher{width: 1, maxID: len(literals)}
	if len(literals) > maxLiterals {
		return nil, errTooManyLiterals
	}
	for _, s := range literals {
		for i := range len(s) {
			if m.class[s[i]] == 0 {
				if m.width == 255 {
					return nil, errTooManyLiterals
				}
				m.class[s[i]] = uint8(m.width)
				m.width++
			}
		}
	}
	ends, err := m.plant(literals)
	if err != nil {
		return nil, err
	}
	m.link(ends)
	return m, nil
}

// plant builds the tree, one depth of all strings at a time: the states near
// the root, where a text spends most of its time, then lie close together.
func (m *matcher) plant(literals []string) (ends [][]uint16, err error) {
	m.next = make([]uint16, m.width)
	ends = [][]uint16{nil}
	states := make([]uint16, len(literals))
	for depth, more := 0, true; more; depth++ {
		more = false
		for id, s := range literals {
			if depth >= len(s) {
				continue
			}
			more = true
			at := int(states[id])*m.width + int(m.class[s[depth]])
			if m.next[at] == 0 {
				if len(ends) == 1<<16-1 {
					return nil, errTooManyLiterals
				}
				m.next[at] = uint16(len(ends))
				ends = append(ends, nil)
				m.next = append(m.next, make([]uint16, m.width)...)
			}
			states[id] = m.next[at]
			if depth == len(s)-1 {
				ends[states[id]] = append(ends[states[id]], uint16(id))
			}
		}
	}
	return ends, nil
}

// link turns the tree into a complete automaton, breadth first: where a state
// has no edge for a byte it takes the edge of its longest proper suffix.
func (m *matcher) link(ends [][]uint16) {
	fail := make([]uint16, len(ends))
	queue := make([]uint16, 0, len(ends))
	for c := range m.width {
		if s := m.next[c]; s != 0 {
			queue = append(queue, s)
		}
	}
	for len(queue) > 0 {
		s := int(queue[0])
		queue = queue[1:]
		f := int(fail[s])
		ends[s] = append(ends[s], ends[f]...)
		for c := range m.width {
			t := m.next[s*m.width+c]
			if t == 0 {
				m.next[s*m.width+c] = m.next[f*m.width+c]
				continue
			}
			fail[t] = m.next[f*m.width+c]
			queue = append(queue, t)
		}
	}
	m.output = make([]uint16, len(ends))
	m.lists = [][]uint16{nil}
	for s, ids := range ends {
		if len(ids) > 0 {
			m.output[s] = uint16(len(m.lists))
			m.lists = append(m.lists, ids)
		}
	}
}

// find adds the ids of all strings within text to seen, and reports whether
// there are any.
func (m *matcher) find(text string, seen *literalSet) bool {
	state, any := 0, false
	for i := range len(text) {
		state = int(m.next[state*m.width+int(m.class[text[i]])])
		if o := m.output[state]; o != 0 {
			any = true
			for _, id := range m.lists[o] {
				seen.add(id)
			}
		}
	}
	return any
}
