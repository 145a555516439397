package bounce

import "strings"

// messageIDElsewhere looks where reports name the message that they do not
// return: fields of their second part, and the header that threads them.
func (p *parser) messageIDElsewhere() string {
	for _, x := range append(p.status[:len(p.status):len(p.status)], p.receipt) {
		if x == nil {
			continue
		}
		text := x.text(maxReportText)
		for _, name := range [...]string{"x-original-message-id", "original-message-id"} {
			if id := messageID(fieldIn(text, name)); id != "" {
				return id
			}
		}
	}
	if id := messageID(p.header.Get("In-Reply-To")); id != "" {
		return id
	}
	references := p.header.Get("References")
	return messageID(references[max(strings.LastIndexByte(references, '<'), 0):])
}

func messageID(v string) string {
	if i := strings.IndexByte(v, '<'); i >= 0 {
		v = v[i+1:]
		if j := strings.IndexByte(v, '>'); j >= 0 {
			v = v[:j]
		}
	}
	v = strings.TrimSpace(v)
	if i := strings.IndexAny(v, " \t"); i > 0 {
		v = v[:i]
	}
	if len(v) > 1000 {
		return ""
	}
	return v
}

// fieldIn finds "Name: value" at the start of a line of text.
func fieldIn(text, name string) string {
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		line = strings.TrimSpace(line)
		if len(line) > len(name) && line[len(name)] == ':' && strings.EqualFold(line[:len(name)], name) {
			return strings.TrimSpace(line[len(name)+1:])
		}
	}
	return ""
}
