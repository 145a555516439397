package inject

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// Bounds on a header. They are far above what mail programs write and keep
// every later reader of the header (signing, bounce matching) cheap.
const (
	maxFields      = 1000
	maxHeaderBytes = 256 << 10
	maxFieldBytes  = 64 << 10
)

// kind is what a header field means to the door.
type kind uint8

const (
	other kind = iota

	// RFC 5322, 3.6 and RFC 2045, 3 to 6 allow these once. Readers differ in
	// which of two they show, so two are refused.
	from
	sender
	replyTo
	to
	cc
	subject
	date
	messageID
	mimeVersion
	contentType
	contentEncoding

	// Control headers, once each, read and removed.
	ctlTenant
	ctlCampaign
	ctlPool
	ctlMetadata
	ctlSendAt
	ctlExpires
	ctlClass
	ctlTrack
	ctlSandbox
	ctlVerp
	ctlVirtualMTA
	ctlJob
	ctlEnvID
	kinds // how many may stand once

	ctlTag     // may repeat
	ctlUnknown // a misspelt control header
	removed    // Bcc, Resent-Bcc, Return-Path
	received

	// Fields that we may add where they are missing.
	feedbackID
	cfblAddress
	listUnsubscribe
)

// kindOf knows a field by its name in lower case.
func kindOf(name []byte) kind {
	switch string(name) {
	case "from":
		return from
	case "sender":
		return sender
	case "reply-to":
		return replyTo
	case "to":
		return to
	case "cc":
		return cc
	case "subject":
		return subject
	case "date":
		return date
	case "message-id":
		return messageID
	case "mime-version":
		return mimeVersion
	case "content-type":
		return contentType
	case "content-transfer-encoding":
		return contentEncoding
	case "received":
		return received
	case "bcc", "resent-bcc", "return-path":
		return removed
	case "feedback-id":
		return feedbackID
	case "cfbl-address":
		return cfblAddress
	case "list-unsubscribe", "list-unsubscribe-post":
		return listUnsubscribe
	case "x-virtual-mta":
		return ctlVirtualMTA
	case "x-job":
		return ctlJob
	case "x-envid":
		return ctlEnvID
	}
	rest, found := bytes.CutPrefix(name, []byte("x-tradewind-"))
	if !found {
		return other
	}
	switch string(rest) {
	case "tenant":
		return ctlTenant
	case "campaign":
		return ctlCampaign
	case "pool":
		return ctlPool
	case "tag":
		return ctlTag
	case "metadata":
		return ctlMetadata
	case "send-at":
		return ctlSendAt
	case "expires":
		return ctlExpires
	case "class":
		return ctlClass
	case "track":
		return ctlTrack
	case "sandbox":
		return ctlSandbox
	case "verp":
		return ctlVerp
	}
	return ctlUnknown
}

// span is a range of octets.
type span struct{ start, end int }

// header is what one scan of a header section found. Offsets count from the
// beginning of the message.
type header struct {
	end      int         // just after the last field: at the empty line
	value    [kinds]span // of the fields that stand once; {0,0} when absent
	tags     []span
	received int
	present  Present
	cuts     []span // fields to leave out, ascending
	utf8     bool   // octets above 0x7F
}

func (h *header) has(k kind) bool { return h.value[k] != span{} }

// headerEnd is the offset of the empty line that ends the header section of
// msg, or its length when there is none.
func headerEnd(msg []byte) int {
	if bytes.HasPrefix(msg, []byte("\r\n")) {
		return 0
	}
	if n := bytes.Index(msg[:min(len(msg), maxHeaderBytes+4)], []byte("\r\n\r\n")); n >= 0 {
		return n + 2
	}
	return len(msg)
}

// scan reads the header section of msg, once, into h.
// REQUIRES: measure found msg to consist of CRLF lines.
func (h *header) scan(msg []byte) *Error {
	h.end = headerEnd(msg)
	if h.end > maxHeaderBytes {
		return refuse("header", CodeHeaderLimit, "the header is longer than %d octets", maxHeaderBytes)
	}
	fields := 0
	for pos := 0; pos < h.end; {
		end, err := fieldEnd(msg[:h.end], pos)
		if err != nil {
			return err
		}
		if fields++; fields > maxFields {
			return refuse("header", CodeHeaderLimit, "the header has more than %d fields", maxFields)
		}
		if err := h.field(msg, pos, end); err != nil {
			return err
		}
		pos = end
	}
	if h.utf8 && !utf8.Valid(msg[:h.end]) {
		return refuse("header", CodeInvalid, "the header is neither ASCII nor UTF-8")
	}
	return nil
}

// fieldEnd is the offset after the field that begins at pos, folded lines
// included.
func fieldEnd(b []byte, pos int) (int, *Error) {
	for end := pos; ; {
		n := bytes.IndexByte(b[end:], '\n')
		line := n - 1 // without CR
		if n < 0 {    // the message ends within the header, without CRLF
			n, line = len(b)-end-1, len(b)-end
		}
		if line > maxLine {
			return 0, refuse("header", CodeLineLength, "a header line is longer than %d octets; fold it", maxLine)
		}
		end += n + 1
		if end-pos > maxFieldBytes {
			return 0, refuse("header", CodeHeaderLimit, "a header field is longer than %d octets", maxFieldBytes)
		}
		if end >= len(b) || (b[end] != ' ' && b[end] != '\t') {
			return end, nil
		}
	}
}

// field notes the field msg[pos:end].
func (h *header) field(msg []byte, pos, end int) *Error {
	colon := bytes.IndexByte(msg[pos:end], ':')
	if colon <= 0 {
		return refuse("header", CodeHeader, "a line of the header is not a field; an empty line must end the header")
	}
	var lower [32]byte
	name := msg[pos : pos+colon]
	for i, c := range name {
		if c <= ' ' || c >= 0x7F {
			return refuse("header", CodeHeader, "a header field name contains a space or another octet that may not stand there")
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if i < len(lower) {
			lower[i] = c
		}
	}
	value := span{pos + colon + 1, end}
	for _, c := range msg[value.start:value.end] {
		switch {
		case c >= 0x80:
			h.utf8 = true
		case c < ' ' && c != '\t' && c != '\r' && c != '\n', c == 0x7F:
			return refuse(string(name), CodeControl, "a header field contains a control character")
		}
	}
	k := other
	if len(name) <= len(lower) {
		k = kindOf(lower[:len(name)])
	}
	switch {
	case k == other:
		return nil
	case k < kinds:
		if h.has(k) {
			return refuse(string(name), CodeDuplicate, "the field may stand only once")
		}
		h.value[k] = value
	case k == received:
		h.received++
	case k == feedbackID:
		h.present.FeedbackID = true
	case k == cfblAddress:
		h.present.CFBLAddress = true
	case k == listUnsubscribe:
		h.present.ListUnsubscribe = true
	case k == ctlTag:
		h.tags = append(h.tags, value)
	case k == ctlUnknown:
		return refuse(string(name), CodeInvalid, "no such control header")
	}
	if (k >= ctlTenant && k < kinds) || k == ctlTag || k == removed {
		if h.cuts == nil {
			h.cuts = make([]span, 0, 8) // not in h: it would keep every draft in the heap
		}
		h.cuts = append(h.cuts, span{pos, end})
	}
	return nil
}

// text is a field's value, unfolded and trimmed.
func text(msg []byte, s span) string {
	v := bytes.TrimSpace(msg[s.start:s.end])
	if bytes.IndexByte(v, '\n') < 0 {
		return string(v)
	}
	return strings.ReplaceAll(string(v), "\r\n", "")
}
