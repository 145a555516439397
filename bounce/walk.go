package bounce

import (
	"bytes"
	"strings"
)

// Bounds of the MIME walk (reliability: a report is untrusted input of any
// size).
const (
	maxLook      = 10 << 20 // bytes of a mail looked at
	maxDepth     = 20       // open multiparts
	maxParts     = 200
	maxDelimiter = 20000    // lines beginning "--" examined
	maxTextPart  = 64 << 10 // bytes of one text part decoded
)

// part is one leaf of the MIME tree.
type part struct {
	header   Header
	kind     string // media type, lower case; text/plain where nothing is said
	charset  string
	raw      []byte // still encoded
	preamble bool   // text before the first boundary or after the last
}

// text decodes the part, up to limit bytes, to UTF-8 with LF lines.
func (p *part) text(limit int) string {
	raw := p.raw
	if len(raw) > limit {
		raw = raw[:limit]
	}
	return toUTF8(decodeBody(raw, p.header.Get("Content-Transfer-Encoding")), p.charset)
}

// bytes is text without the conversion of characters.
func (p *part) bytes(limit int) []byte {
	raw := p.raw
	if len(raw) > limit {
		raw = raw[:limit]
	}
	return decodeBody(raw, p.header.Get("Content-Transfer-Encoding"))
}

func (p *part) isText() bool {
	return p.kind == "text/plain" || p.kind == "" || p.kind == "text" || p.kind == "text/enriched"
}

// walk cuts body into the leaves of its MIME tree. It is a single pass over the
// lines that begin with "--", with a stack of open boundaries and no recursion;
// enclosed messages are leaves. A boundary that the header forgot to name is
// guessed.
func walk(h Header, body []byte) []part {
	kind, boundary, charset, _ := mediaType(h.Get("Content-Type"))
	multi := strings.HasPrefix(kind, "multipart/") || boundary != ""
	if boundary == "" || !hasBoundary(body, boundary) {
		if guess := guessBoundary(body); guess != "" {
			boundary, multi = guess, true
		}
	}
	if !multi || boundary == "" {
		return []part{{header: h, kind: leafKind(kind), charset: charset, raw: body}}
	}
	w := walker{body: body, stack: []string{boundary}, current: part{kind: "text/plain", preamble: true}}
	w.run()
	return w.parts
}

// leafKind is the type to read a leaf as. A multipart without boundaries is
// text, for lack of anything better.
func leafKind(kind string) string {
	if kind == "" || strings.HasPrefix(kind, "multipart/") {
		return "text/plain"
	}
	return kind
}

func hasBoundary(body []byte, boundary string) bool {
	i := bytes.Index(body, []byte("--"+boundary))
	return i == 0 || i > 0 && body[i-1] == '\n'
}

// guessBoundary recognises a multipart whose Content-Type was lost: a line
// beginning "--" near the top, followed by a field of a part or a blank line,
// and found again further down.
func guessBoundary(body []byte) string {
	b := body[:min(len(body), 4096)]
	for range 12 {
		line, rest := nextLine(b)
		if len(rest) == 0 {
			return ""
		}
		line = bytes.TrimRight(line, " \t")
		if len(line) > 12 && len(line) < 80 && bytes.HasPrefix(line, []byte("--")) && !bytes.ContainsAny(line, " \t") && len(bytes.Trim(line, "-=_*")) > 0 {
			next, _ := nextLine(rest)
			isPart := len(next) > 8 && strings.EqualFold(string(next[:8]), "content-")
			if isPart || len(bytes.TrimSpace(next)) == 0 && bytes.Count(body, append([]byte{'\n'}, line...)) > 0 {
				return string(line[2:])
			}
		}
		b = rest
	}
	return ""
}

type walker struct {
	body    []byte
	stack   []string // open boundaries, outermost first
	parts   []part
	current part
	start   int // where the body of current begins
	seen    int // delimiter candidates examined
}

func (w *walker) run() {
	pos := 0
	for pos < len(w.body) && len(w.parts) < maxParts && w.seen < maxDelimiter && len(w.stack) > 0 {
		at := w.nextCandidate(pos)
		if at < 0 {
			break
		}
		w.seen++
		line, _ := nextLine(w.body[at:])
		pos = min(at+len(line)+1, len(w.body))
		level, closing := w.match(line)
		if level < 0 {
			continue
		}
		w.finish(at)
		if closing {
			w.stack = w.stack[:level]
			w.current, w.start = part{kind: "text/plain", preamble: true}, pos
			continue
		}
		w.stack = w.stack[:level+1]
		pos = w.open(pos)
	}
	w.finish(len(w.body))
}

// nextCandidate returns where the next line beginning "--" starts.
func (w *walker) nextCandidate(pos int) int {
	if bytes.HasPrefix(w.body[pos:], []byte("--")) && (pos == 0 || w.body[pos-1] == '\n') {
		return pos
	}
	i := bytes.Index(w.body[pos:], []byte("\n--"))
	if i < 0 {
		return -1
	}
	return pos + i + 1
}

// match finds the boundary that line is, innermost first.
func (w *walker) match(line []byte) (level int, closing bool) {
	line = bytes.TrimRight(line[2:], " \t")
	for i := len(w.stack) - 1; i >= 0; i-- {
		rest, ok := bytes.CutPrefix(line, []byte(w.stack[i]))
		if ok && len(rest) == 0 {
			return i, false
		}
		if ok && string(rest) == "--" {
			return i, true
		}
	}
	return -1, false
}

// open begins the part whose header starts at pos, and returns where its body
// starts.
func (w *walker) open(pos int) int {
	h, rest := splitHeader(w.body[pos:])
	if len(h) == 0 && len(w.body) > pos {
		// No header and no blank line either: the text begins at once.
		if line, _ := nextLine(w.body[pos:]); len(bytes.TrimSpace(line)) > 0 {
			rest = w.body[pos:]
		}
	}
	pos = len(w.body) - len(rest)
	kind, boundary, charset, _ := mediaType(h.Get("Content-Type"))
	if strings.HasPrefix(kind, "multipart/") && boundary != "" && len(w.stack) < maxDepth {
		w.stack = append(w.stack, boundary)
		w.current, w.start = part{kind: "text/plain", preamble: true}, pos
		return pos
	}
	w.current, w.start = part{header: h, kind: leafKind(kind), charset: charset}, pos
	return pos
}

// finish ends the current part at end.
func (w *walker) finish(end int) {
	if end <= w.start && w.current.preamble {
		return
	}
	w.current.raw = w.body[min(w.start, end):end]
	if w.current.preamble && len(bytes.TrimSpace(w.current.raw)) == 0 {
		return
	}
	w.parts = append(w.parts, w.current)
	w.start = end
}
