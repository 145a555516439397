package api

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"strings"
	"unicode/utf8"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

// skeleton is a structured message made ready once: every octet that is the
// same for all recipients is laid down, encoded, and what differs is a
// template between two runs of them. A recipient then costs a pass over the
// text and nothing else. The door adds Date and Message-ID.
type skeleton struct {
	from, cc, to, replyTo string // header text; to is empty for personal mail
	subject               template
	headers               []headerTemplate
	body                  []piece // MIME-Version onwards
	common                map[string]scalar
	finished              bool // see finished; of body
	limit                 int  // octets of one text part, expanded

	scratch []byte // of one expansion, reused
}

type headerTemplate struct {
	field, name string
	value       template
}

// piece is a run of final octets, then a text part if there is one.
type piece struct {
	literal []byte
	text    *template
	field   string
	form    form
}

// compile checks q and lays the skeleton down.
func compile(q *messageRequest, limit int, f *faults) *skeleton {
	s := &skeleton{common: q.Values, limit: limit}
	personal := len(q.Recipients) > 0
	templated := len(q.Values) > 0
	for i := range q.Recipients {
		templated = templated || len(q.Recipients[i].Values) > 0
	}
	checkValues("substitutions", q.Values, f)

	switch {
	case q.From == nil:
		f.add("from", "missing", "is required")
	default:
		s.from = addressList("from", persons{*q.From}, f)
	}
	s.replyTo = addressList("reply_to", q.ReplyTo, f)
	if !personal {
		s.to = addressList("to", q.To, f)
		s.cc = addressList("cc", q.Cc, f)
	}
	parse := func(field, text string, form form) template {
		t, err := parseTemplate(field, text, templated)
		if err != nil {
			f.errs = append(f.errs, *err)
		}
		if form != asLine {
			if !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
				f.add(field, "invalid", "contains a NUL or is not UTF-8")
			}
			t.canonical()
			t.know()
		}
		return t
	}
	if why := badText(q.Subject); why != "" {
		f.add("subject", "invalid", "%s", why)
	}
	s.subject = parse("subject", q.Subject, asLine)
	for _, name := range checkHeaders("headers", q.Headers, f) {
		field := "headers." + name
		s.headers = append(s.headers, headerTemplate{field, name, parse(field, q.Headers[name], asLine)})
	}
	if q.Text == "" && q.HTML == "" {
		f.add("text", "missing", "a message needs text, html or raw")
	}
	if q.AMP != "" && q.HTML == "" {
		f.add("amp", "invalid", "needs an html part beside it")
	}
	files := checkAttachments(q.Attach, f)
	if len(f.errs) > 0 {
		return s
	}

	var texts []node
	for _, p := range [...]struct {
		field, kind, text string
		form              form
	}{
		{"text", "text/plain", q.Text, asText},
		{"amp", "text/x-amp-html", q.AMP, asHTML},
		{"html", "text/html", q.HTML, asHTML},
	} {
		if p.text == "" {
			continue
		}
		t := parse(p.field, p.text, p.form)
		texts = append(texts, node{header: []byte("Content-Type: " + p.kind + "; charset=utf-8\r\n"), text: &t, field: p.field, form: p.form})
	}
	root := tree(texts, files)
	w := layer{out: []piece{{literal: []byte("MIME-Version: 1.0\r\n")}}}
	w.node(root)
	s.body, s.finished = w.out, finished(w.out)
	return s
}

// checkValues bounds substitutions. Their octets are checked where they are
// put in, for that decides what they may hold.
func checkValues(field string, v map[string]scalar, f *faults) {
	if len(v) > maxSubstitutions {
		f.add(field, "limit", "more than %d substitutions", maxSubstitutions)
	}
}

func addressList(field string, ps persons, f *faults) string {
	var parts []string
	for i, a := range addresses(field, ps, f) {
		parts = append(parts, mailboxText(ps[i].Name, a))
	}
	return strings.Join(parts, ", ")
}

// node is a MIME entity before it is laid down: a text, a file, or a multipart
// with children.
type node struct {
	header   []byte
	text     *template
	field    string
	form     form
	data     []byte
	multi    string // subtype
	children []node
}

// tree arranges the parts as readers expect them: mixed(alternative(text, amp,
// related(html, inline files)), attachments), with every level that would hold
// one part left out.
func tree(texts []node, files []file) node {
	var inline, attached []node
	for _, f := range files {
		n := node{header: f.header, data: f.data}
		if f.inline {
			inline = append(inline, n)
		} else {
			attached = append(attached, n)
		}
	}
	if len(inline) > 0 {
		last := len(texts) - 1 // html, or text where there is none
		texts[last] = node{multi: "related", children: append([]node{texts[last]}, inline...)}
	}
	root := texts[0]
	if len(texts) > 1 {
		root = node{multi: "alternative", children: texts}
	}
	if len(attached) > 0 {
		root = node{multi: "mixed", children: append([]node{root}, attached...)}
	}
	return root
}

// layer lays nodes down as pieces.
type layer struct{ out []piece }

func (l *layer) literal(b ...string) {
	last := &l.out[len(l.out)-1]
	for _, s := range b {
		last.literal = append(last.literal, s...)
	}
}

func (l *layer) node(n node) {
	l.literal(string(n.header))
	switch {
	case n.multi != "":
		// "=_" occurs in no quoted-printable and no base64 text, and nobody
		// can foresee the rest.
		var r [12]byte
		rand.Read(r[:])
		boundary := "=_" + hex.EncodeToString(r[:])
		l.literal("Content-Type: multipart/", n.multi, ";\r\n\tboundary=\"", boundary, "\"\r\n\r\n")
		for _, c := range n.children {
			l.literal("--", boundary, "\r\n")
			l.node(c)
			l.literal("\r\n")
		}
		l.literal("--", boundary, "--\r\n")
	case n.text != nil:
		last := &l.out[len(l.out)-1]
		last.text, last.field, last.form = n.text, n.field, n.form
		l.out = append(l.out, piece{})
	default:
		l.literal("Content-Transfer-Encoding: base64\r\n\r\n")
		last := &l.out[len(l.out)-1]
		last.literal = inject.AppendBase64(last.literal, n.data)
	}
}

// render appends the message for r, or for everybody when r is nil. ascii says of
// what stands below its header what inject.Envelope.ASCII does.
func (s *skeleton) render(dst []byte, r *recipient, a message.Address) (out []byte, ascii bool, err *FieldError) {
	v := values{common: s.common}
	to := s.to
	if r != nil {
		v.own, v.email, v.name = r.Values, r.Email, r.Name
		to = mailboxText(r.Name, a)
	}
	var ok bool
	for _, h := range [...]struct{ name, value string }{{"From", s.from}, {"To", to}, {"Cc", s.cc}, {"Reply-To", s.replyTo}} {
		if h.value == "" {
			continue
		}
		if dst, ok = appendFolded(dst, h.name, h.value); !ok {
			return dst, false, &FieldError{strings.ToLower(h.name), "line_length", "cannot be folded to lines of 998 octets"}
		}
	}
	if dst, err = s.header(dst, "subject", "Subject", &s.subject, &v); err != nil {
		return dst, false, err
	}
	for i := range s.headers {
		h := &s.headers[i]
		if r != nil && overridden(r.Headers, h.name) {
			continue
		}
		if dst, err = s.header(dst, h.field, h.name, &h.value, &v); err != nil {
			return dst, false, err
		}
	}
	if r != nil && len(r.Headers) > 0 {
		if dst, err = ownHeaders(dst, r); err != nil {
			return dst, false, err
		}
	}
	ascii = s.finished
	for i := range s.body {
		p := &s.body[i]
		dst = append(dst, p.literal...)
		if p.text == nil {
			continue
		}
		var clean bool
		if dst, clean, err = s.text(dst, p, &v); err != nil {
			return dst, false, err
		}
		ascii = ascii && clean
	}
	return dst, ascii, nil
}

func overridden(own map[string]string, name string) bool {
	for k := range own {
		if strings.EqualFold(k, name) {
			return true
		}
	}
	return false
}

func ownHeaders(dst []byte, r *recipient) ([]byte, *FieldError) {
	var f faults
	names := checkHeaders("headers", r.Headers, &f)
	if len(f.errs) > 0 {
		return dst, &f.errs[0]
	}
	for _, name := range names {
		var ok bool
		if dst, ok = appendHeader(dst, name, r.Headers[name]); !ok {
			return dst, &FieldError{"headers." + name, "line_length", "cannot be folded to lines of 998 octets"}
		}
	}
	return dst, nil
}

func appendHeader(dst []byte, name, value string) ([]byte, bool) {
	if structured(name) {
		return appendFolded(dst, name, value)
	}
	return appendField(dst, name, value)
}

// header appends one header field from its template.
func (s *skeleton) header(dst []byte, field, name string, t *template, v *values) ([]byte, *FieldError) {
	value := t.literal[0]
	if len(t.names) > 0 {
		var err error
		if s.scratch, err = t.expand(s.scratch[:0], v, asLine, maxHeaderValue); err != nil {
			return dst, expandError(field, err)
		}
		value = string(s.scratch)
		if why := badText(value); why != "" {
			// The template passed, so a value is at fault: name it.
			for _, n := range t.names {
				if x, _ := v.get(n); badText(x) != "" {
					return dst, &FieldError{"substitutions." + n, "invalid", "stands in " + field + " and " + badText(x)}
				}
			}
			return dst, &FieldError{field, "invalid", why}
		}
		if structured(name) && !isASCII(value) {
			return dst, &FieldError{field, "invalid", "must be ASCII"}
		}
	}
	if value == "" && name != "Subject" {
		return dst, nil
	}
	dst, ok := appendHeader(dst, name, value)
	if !ok {
		return dst, &FieldError{field, "line_length", "cannot be folded to lines of 998 octets"}
	}
	return dst, nil
}

func expandError(field string, err error) *FieldError {
	if m, ok := err.(missingValue); ok {
		return &FieldError{"substitutions." + string(m), "missing", m.Error()}
	}
	return &FieldError{field, "limit", err.Error()}
}

// text appends the rest of a text part: its encoding, then its octets. clean
// reports that it is plain and none of its lines begins with a dot.
func (s *skeleton) text(dst []byte, p *piece, v *values) (out []byte, clean bool, err *FieldError) {
	if p.text.plain {
		// As most recipients get it, without a look at what the template says.
		seen := *v
		seen.survey = &survey{}
		b := append(dst, "Content-Transfer-Encoding: 7bit\r\n\r\n"...)
		b, xerr := p.text.expand(b, &seen, p.form, s.limit)
		switch {
		case xerr != nil:
			return b, false, expandError(p.field, xerr)
		case !seen.survey.odd:
			return endLine(b), !seen.survey.dot, nil
		}
		dst = b[:len(dst)]
	}
	dst, err = s.encoded(dst, p, v)
	return dst, false, err
}

// encoded appends the rest of a text part in the encoding that its octets ask for.
func (s *skeleton) encoded(dst []byte, p *piece, v *values) ([]byte, *FieldError) {
	var xerr error
	if s.scratch, xerr = p.text.expand(s.scratch[:0], v, p.form, s.limit); xerr != nil {
		return dst, expandError(p.field, xerr)
	}
	b := s.scratch
	if bytes.IndexByte(b, 0) >= 0 || !utf8.Valid(b) {
		return dst, &FieldError{"substitutions", "invalid", "a value in " + p.field + " contains a NUL or is not UTF-8"}
	}
	switch plain, high := legible(b); {
	case plain:
		dst = append(dst, "Content-Transfer-Encoding: 7bit\r\n\r\n"...)
		dst = append(dst, b...)
	case high*4 > len(b):
		// Mostly not ASCII: base64 is half the size and no less readable.
		dst = append(dst, "Content-Transfer-Encoding: base64\r\n\r\n"...)
		return inject.AppendBase64(dst, b), nil
	default:
		dst = append(dst, "Content-Transfer-Encoding: quoted-printable\r\n\r\n"...)
		dst = inject.AppendQuotedPrintable(dst, b)
	}
	return endLine(dst), nil
}

// endLine ends the last line of dst, if it is not ended.
func endLine(dst []byte) []byte {
	if bytes.HasSuffix(dst, []byte("\r\n")) {
		return dst
	}
	return append(dst, "\r\n"...)
}

// legible reports whether b, in CRLF lines, can be sent without an encoding,
// and how many of its octets are not ASCII.
func legible(b []byte) (plain bool, high int) {
	plain = true
	for rest := b; len(rest) > maxPlainLine && plain; {
		// Some line ends within the next maxPlainLine octets, or is too long;
		// the last one that does is as good as any.
		n := bytes.LastIndexByte(rest[:maxPlainLine], '\n')
		plain = n >= 0
		rest = rest[n+1:]
	}
	if !inject.HasEightBit(b) {
		return plain, 0
	}
	for ; len(b) >= 8; b = b[8:] {
		high += bits.OnesCount64(binary.LittleEndian.Uint64(b) & 0x8080808080808080)
	}
	for _, c := range b {
		high += int(c >> 7)
	}
	return false, high
}
