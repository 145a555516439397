package bounce

import (
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// wordsIn finds the reason given for address. only says that it is the one
// recipient, so that anything in the text is about it.
func (p *parser) wordsIn(address string, only bool) string {
	lines := p.splitText()
	best, score := "", 0
	consider := func(s string, bonus int) {
		if n := p.worth(s); n > 0 && n+bonus > score {
			best, score = s, n+bonus
		}
	}
	for n, i := range p.naming(address) {
		if n >= 12 {
			break // whoever names it so often does not explain it
		}
		for j, a := range lines[i].addresses {
			if !strings.EqualFold(a.text, address) || lines[i].rank[j] == rankNone && !only {
				continue
			}
			for k, s := range p.around(lines, i, a) {
				consider(s, -k)
			}
		}
		if score >= 30 {
			break
		}
	}
	if only && score < 20 {
		for i := range lines {
			if lines[i].blank {
				continue
			}
			if code, _, _ := codesIn(lines[i].text); code >= 400 {
				consider(paragraph(lines, i), -5)
			}
		}
	}
	if only && score < 10 {
		for i := 0; i < len(lines); i++ {
			if !lines[i].blank {
				consider(paragraph(lines, i), -6)
				for i < len(lines) && !lines[i].blank {
					i++
				}
			}
		}
	}
	if only && score < 10 {
		consider(p.subject, -7)
	}
	return best
}

// worth rates a piece of text as a reason.
func (p *parser) worth(s string) int {
	if p.rated++; p.rated > maxRated || strings.TrimSpace(s) == "" {
		return 0
	}
	w := readWords(s)
	n := 2
	if w.code >= 400 {
		n += 20
	}
	if w.enhanced[0] >= 4 {
		n += 5
	}
	if p.classifier != nil {
		if v := p.classifier.Classify(w.reply(), ""); v.Rule != "" && v.Category != message.Other {
			n += int(v.Confidence) / 10
		} else if v.Rule != "" {
			n += 3
		}
	}
	return n
}

// around returns the pieces of text near the address a in line i, the likeliest
// first: the line itself, what follows up to the next recipient, what precedes.
func (p *parser) around(lines []reportLine, i int, a foundAddress) []string {
	l := &lines[i]
	var pieces []string
	rest := strings.TrimLeft(l.text[min(a.end, len(l.text)):], " \t:>.,;\"')-*")
	before := strings.Trim(l.low[:a.start], " \t<>*\"'-:|[(#.,;=`")
	end := i + 1
	if code, _, _ := codesIn(l.text); code >= 400 && before != "" {
		s := l.text
		for ; end < len(lines) && !lines[end].blank && indented(&lines[end], l) && end < i+6; end++ {
			s += "\n" + lines[end].text
		}
		return []string{s}
	}
	if rest != "" {
		s := rest
		if before != "" {
			s = l.text
		}
		for end < len(lines) && !lines[end].blank && !p.names(&lines[end], a.text) && end < i+10 {
			s += "\n" + lines[end].text
			end++
		}
		pieces = append(pieces, s)
	} else if before != "" {
		pieces = append(pieces, l.text)
	}
	for paragraphs := 0; paragraphs < 4 && end < len(lines) && end < i+40; paragraphs++ {
		for end < len(lines) && lines[end].blank {
			end++
		}
		if end >= len(lines) || p.names(&lines[end], a.text) {
			break
		}
		s, n := "", 0
		for end < len(lines) && !lines[end].blank && n < 12 && !p.names(&lines[end], a.text) {
			s += lines[end].text + "\n"
			end++
			n++
		}
		pieces = append(pieces, s)
	}
	if i > 0 {
		pieces = append(pieces, p.before(lines, i, a.text))
	}
	return pieces
}

// before returns the end of the paragraph above line i, or nothing if that is
// about somebody else.
func (p *parser) before(lines []reportLine, i int, address string) string {
	s := ""
	for k, n := i-1, 0; k >= 0 && n < 12; k-- {
		switch {
		case lines[k].blank && n > 0:
			return s
		case lines[k].blank:
			continue
		case p.names(&lines[k], address):
			return ""
		case n < 3:
			s = lines[k].text + "\n" + s
		}
		n++
	}
	return s
}

// names reports whether l names another failed recipient, which ends what is
// said about address.
func (p *parser) names(l *reportLine, address string) bool {
	for j, a := range l.addresses {
		if l.rank[j] >= rankStrong && !strings.EqualFold(a.text, address) && !p.self[strings.ToLower(a.text)] {
			return true
		}
	}
	return false
}

func indented(l, than *reportLine) bool {
	return margin(l.text) > margin(than.text)
}

func margin(s string) int { return len(s) - len(strings.TrimLeft(s, " \t")) }

// paragraph joins the lines from i to the next blank one.
func paragraph(lines []reportLine, i int) string {
	var b strings.Builder
	for n := 0; i < len(lines) && !lines[i].blank && n < 8; i, n = i+1, n+1 {
		b.WriteString(lines[i].text)
		b.WriteByte('\n')
	}
	return b.String()
}
