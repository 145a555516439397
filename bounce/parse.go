package bounce

import (
	"bytes"
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// Options are what Parse needs besides the mail.
type Options struct {
	// Classifier gives categories; nil leaves every failure "other".
	Classifier *Classifier
}

// Parse reads one piece of mail that came to a bounce or feedback address. It
// never fails: what it cannot read is KindNone. It looks at the first 10 MB, at
// most 200 parts and 20 levels, and keeps no reference to raw.
func Parse(raw []byte, o Options) *Report {
	p := &parser{classifier: o.Classifier, words: theLexicon(), report: &Report{}}
	if len(raw) > maxLook {
		raw, p.report.Truncated = raw[:maxLook], true
	}
	p.read(raw)
	p.run(1)
	return p.report
}

// parser holds one mail while it is read.
type parser struct {
	classifier *Classifier
	report     *Report

	words       *lexicon
	header      Header
	subject     string // decoded, in plain form
	subjectSeen *literalSet
	fromSeen    *literalSet
	parts       []part

	status   []*part // message/delivery-status
	feedback *part
	receipt  *part  // message/disposition-notification
	enclosed *part  // the message that came back, or its header
	text     string // what the report says to people
	textSeen *literalSet
	inner    string // the message that came back, header and start of body
	self     map[string]bool
	lines    []reportLine
	expands  bool             // the text tells what some address was made of
	rated    int              // pieces of text weighed so far
	index    map[string][]int // by address in lower case: the lines that name it
}

// maxReportText bounds the text of the parts for people, together.
const maxReportText = 128 << 10

// read cuts the mail into what the readers of the formats need.
func (p *parser) read(raw []byte) {
	raw = unifyLines(raw)
	raw = bytes.TrimLeft(raw, "\n")
	if bytes.HasPrefix(raw, []byte("From ")) || bytes.HasPrefix(raw, []byte(">From ")) {
		_, raw = nextLine(raw)
	}
	var body []byte
	p.header, body = splitHeader(raw)
	p.report.Header = p.header
	p.subject = plain(decodeWords(p.header.Get("Subject")))
	p.subjectSeen = p.words.find(p.subject)
	p.fromSeen = p.words.find(plain(decodeWords(p.header.Get("From"))))
	p.parts = walk(p.header, body)
	p.sort()
	p.findOriginal()
	p.textSeen = p.words.find(plain(p.text))
	p.expands = strings.Contains(p.text, "xpanded from") || strings.Contains(p.text, "enerated from")
	p.self = p.ourselves()
}

// sort gives each part its role.
func (p *parser) sort() {
	var plain, rich, around strings.Builder
	for i := range p.parts {
		x := &p.parts[i]
		switch kind := x.kind; {
		case x.preamble:
			appendText(&around, x)
		case kind == "message/delivery-status", kind == "message/global-delivery-status", kind == "message/x-delivery-status", kind == "text/delivery-status":
			p.status = append(p.status, x)
		case kind == "message/feedback-report", kind == "message/x-feedback-report":
			p.feedback = x
		case kind == "message/disposition-notification", kind == "message/global-disposition-notification":
			p.receipt = x
		case strings.HasPrefix(kind, "message/"), strings.HasPrefix(kind, "text/rfc822"), kind == "text/message-headers":
			if p.enclosed == nil || len(p.enclosed.raw) == 0 {
				p.enclosed = x
			}
		case kind == "text/html":
			if rich.Len() < maxReportText {
				rich.WriteString(htmlText(x.text(maxTextPart)))
				rich.WriteByte('\n')
			}
		case x.isText():
			appendText(&plain, x)
		}
	}
	p.text = plain.String()
	if len(strings.TrimSpace(p.text)) < 20 || !strings.Contains(p.text, "@") {
		p.text += rich.String()
	}
	if len(strings.TrimSpace(p.text)) < 20 || len(p.parts) < 3 {
		p.text += around.String()
	}
}

func appendText(b *strings.Builder, x *part) {
	if b.Len() < maxReportText {
		b.WriteString(x.text(maxTextPart))
		b.WriteByte('\n')
	}
}

// findOriginal separates the message that came back from what the report says.
func (p *parser) findOriginal() {
	if p.enclosed != nil {
		p.inner = toUTF8(p.enclosed.bytes(maxTextPart), "")
	}
	report, copied := p.words.splitCopy(p.text)
	if copied != "" {
		p.text = report
		if p.inner == "" {
			p.inner = copied
		}
	}
	h, _ := splitHeader([]byte(strings.TrimLeft(p.inner, "\n")))
	p.report.Original = h
	p.report.MessageID = messageID(h.Get("Message-ID"))
	if p.report.MessageID == "" {
		p.report.MessageID = messageID(fieldIn(p.text, "message-id"))
	}
	if p.report.MessageID == "" {
		p.report.MessageID = p.messageIDElsewhere()
	}
}

// ourselves collects the addresses that are the sender's side of the report:
// to whom it was sent, who sent it, and who sent the message that came back.
func (p *parser) ourselves() map[string]bool {
	self := map[string]bool{}
	for _, name := range []string{"To", "Cc", "Delivered-To", "X-Original-To", "Return-Path", "From", "Reply-To", "X-Envelope-To", "Envelope-To", "Sender"} {
		for _, v := range p.header.Values(name) {
			for _, a := range findAddresses(v) {
				self[strings.ToLower(a.text)] = true
			}
		}
	}
	for _, name := range []string{"From", "Return-Path", "Sender", "Reply-To", "Errors-To", "X-Envelope-From"} {
		for _, v := range p.report.Original.Values(name) {
			for _, a := range findAddresses(v) {
				self[strings.ToLower(a.text)] = true
			}
		}
	}
	return self
}

// run tries the formats in the order of how much they prove.
func (p *parser) run(depth int) {
	switch {
	case p.complaint():
	case p.standard():
	case p.receipt != nil:
		p.answered("mdn")
	case depth > 0 && p.enclosesReport() && p.unwrap(depth):
	case p.looksLikeBounce() && p.fromText():
	case p.looksLikeAutoReply():
		p.answered("rfc3834")
	case depth > 0 && p.unwrap(depth):
	}
}

// enclosesReport reports whether the message inside is a report by its type: a
// gateway wrapped it, and knows less about the failure than its author.
func (p *parser) enclosesReport() bool {
	kind, _, _, _ := mediaType(p.report.Original.Get("Content-Type"))
	return kind == "multipart/report"
}

// unwrap looks into an enclosed message that is itself a report: gateways and
// filters forward bounces as attachments. Only where the outside looks like a
// machine's mail, or every forwarded bounce of a colleague would count.
func (p *parser) unwrap(depth int) bool {
	if p.enclosed == nil || !p.fromDaemon() && !p.failureSubject() {
		return false
	}
	q := &parser{classifier: p.classifier, words: p.words, report: &Report{}}
	q.read(p.enclosed.bytes(maxLook))
	q.run(depth - 1)
	if q.report.Kind == KindNone {
		return false
	}
	q.report.Header = p.header
	q.report.Truncated = p.report.Truncated
	*p.report = *q.report
	return true
}

// standard reads delivery statuses, in parts of their own or flat in the text.
func (p *parser) standard() bool {
	for _, x := range p.status {
		p.fromStatus(readStatus(x.text(maxReportText * 2)))
	}
	// In running text the fields may also be what people discuss or forward.
	if len(p.report.Recipients) == 0 && hasStatusFields(p.text) && !p.fromList() && (p.fromDaemon() || p.nullSender() || p.isReport() || p.failureSubject() && !p.isAnswer() && !p.fromPerson()) {
		p.fromStatus(readStatus(p.text))
	}
	for i := 0; i < len(p.parts) && len(p.report.Recipients) == 0; i++ {
		// A status under another type: application/octet-stream and the like.
		x := &p.parts[i]
		if x.isText() || x == p.enclosed || x == p.receipt || x.kind == "text/html" || x.preamble || !p.fromDaemon() && !p.nullSender() {
			continue
		}
		if text := x.text(maxTextPart); hasStatusFields(text) {
			p.fromStatus(readStatus(text))
		}
	}
	if len(p.report.Recipients) == 0 {
		return false
	}
	p.report.Format = "rfc3464"
	p.conclude()
	return p.report.Kind != KindNone
}

// isReport reports whether the mail calls itself a delivery report.
func (p *parser) isReport() bool {
	kind, _, _, _ := mediaType(p.header.Get("Content-Type"))
	return kind == "multipart/report" || strings.HasSuffix(kind, "/delivery-status")
}

// hasStatusFields reports whether text holds the fields of a delivery status
// outside a part of its own.
func hasStatusFields(text string) bool {
	low := strings.ToLower(text)
	at := func(s string) bool { return strings.HasPrefix(low, s) || strings.Contains(low, "\n"+s) }
	return (at("final-recipient:") || at("original-recipient:")) && (at("action:") || at("status:") || at("diagnostic-code:"))
}

// conclude sets the kind from what became of the recipients.
func (p *parser) conclude() {
	failed, delayed, late, delivered := 0, 0, 0, 0
	for i := range p.report.Recipients {
		r := &p.report.Recipients[i]
		switch {
		case r.Action == ActionFailed:
			failed++
			if r.Category == message.MessageExpired || r.Category == message.NoAnswerFromHost {
				late++
			}
		case r.Action == ActionDelayed:
			delayed++
		default:
			delivered++
		}
	}
	switch {
	case failed > late:
		p.report.Kind = KindBounce
	case late+delayed > 0:
		p.report.Kind = KindDelay
	case delivered > 0:
		p.report.Kind = KindDelivered
	}
}

// add classifies w and files the recipient, once per address.
func (p *parser) add(w words, r Recipient, confidence uint8) {
	r.Diagnostic = w.full
	r.Code = w.code
	r.Status = w.enhanced.String()
	v := Verdict{Category: message.Other}
	switch {
	case r.Action == ActionDelivered || r.Action == ActionRelayed || r.Action == ActionExpanded:
		v.Category = message.NoCategory
	case p.classifier != nil:
		v = p.classifier.Classify(w.reply(), r.RemoteMTA)
		if r.Action == ActionFailed && w.code >= 400 && w.code < 500 {
			// The sending server has tried for days and given up, so a 4xx code
			// no longer asks for patience: the words alone say whether it may
			// help to try anew. They still do not suppress.
			final := w.reply()
			final.Code = 0
			v.Permanent = p.classifier.Classify(final, r.RemoteMTA).Permanent
		}
	}
	r.Category, r.Rule = v.Category, v.Rule
	if w.enhanced == (message.Enhanced{}) && v.Rule != "" {
		r.Status = derivedStatus(w, r.Action, v).String()
	}
	if w.code == 0 && w.enhanced == (message.Enhanced{}) && p.self[strings.ToLower(r.Address)] {
		w.unproven = true // the sender's own address takes more than words
	}
	if r.Action == ActionFailed {
		// Words without a code, a status or even the name of who spoke are
		// somebody's prose; they must not end a subscription.
		r.Permanent = v.Permanent && !w.unproven
		r.Suppress = v.Suppress && !w.unproven
	}
	r.Confidence = min(confidence, max(v.Confidence, 10))
	if r.Status == "" && r.Action == ActionDelayed {
		r.Status = "4.0.0"
	}
	for i := range p.report.Recipients {
		if old := &p.report.Recipients[i]; strings.EqualFold(old.Address, r.Address) {
			if old.Category == message.Other && r.Category != message.Other || !old.Suppress && r.Suppress && old.Diagnostic == "" {
				*old = r
			}
			return
		}
	}
	if len(p.report.Recipients) < maxRecipients {
		p.report.Recipients = append(p.report.Recipients, r)
	}
}

// derivedStatus makes an enhanced code where the report has none, from what the
// words came to (RFC 3463).
func derivedStatus(w words, action Action, v Verdict) message.Enhanced {
	var e message.Enhanced
	switch {
	case w.code >= 400:
		e[0] = uint16(w.code / 100)
	case action == ActionDelayed:
		e[0] = 4
	default:
		e[0] = 5
	}
	detail := map[message.Category][2]uint16{
		message.BadMailbox: {1, 1}, message.BadDomain: {1, 2}, message.InvalidSender: {1, 8},
		message.InactiveMailbox: {2, 1}, message.QuotaIssues: {2, 2},
		message.NoAnswerFromHost: {4, 1}, message.BadConnection: {4, 2}, message.RoutingErrors: {4, 0}, message.MessageExpired: {4, 7},
		message.ProtocolErrors: {5, 0}, message.ContentRelated: {6, 0},
		message.PolicyRelated: {7, 1}, message.SpamRelated: {7, 1}, message.VirusRelated: {7, 1}, message.RelayingIssues: {7, 1}, message.Rate: {7, 0},
	}[v.Category]
	e[1], e[2] = detail[0], detail[1]
	return e
}

// onlyRecipient is the recipient where the report names none: the one address
// of the returned header, when there is exactly one.
func (p *parser) onlyRecipient() string {
	for _, h := range []Header{p.header, p.report.Original} {
		for _, name := range []string{"X-Failed-Recipients", "X-Envelope-To", "X-Actual-Recipient", "X-HmXmrOriginalRecipient", "Delivered-To", "X-Original-To", "To"} {
			if len(h) > 0 && &h[0] == firstField(p.header) && name != "X-Failed-Recipients" && name != "X-Actual-Recipient" {
				continue // on the outside these name us
			}
			for _, v := range h.Values(name) {
				if all := findAddresses(v); len(all) > 0 {
					return all[0].text
				}
			}
		}
	}
	return ""
}

func firstField(h Header) *Field {
	if len(h) == 0 {
		return nil
	}
	return &h[0]
}
