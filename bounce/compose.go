package bounce

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Action is the action-value of RFC 3464, 2.3.3.
type Action string

// The actions.
const (
	ActionFailed    Action = "failed"
	ActionDelayed   Action = "delayed"
	ActionDelivered Action = "delivered"
	ActionRelayed   Action = "relayed" // handed to a server that promises no DSN
	ActionExpanded  Action = "expanded"
)

// DSN is a delivery status notification to be written, about one message and
// at least one of its recipients.
type DSN struct {
	// Hostname is the domain of the From and Message-ID fields.
	Hostname string
	// ReportingMTA is our name in the report; empty means Hostname.
	ReportingMTA string
	// Message is what the report is about. Message.From receives the report;
	// Ret decides whether OriginalBody is returned, EnvID is echoed.
	Message    *message.Message
	Recipients []DSNRecipient

	// OriginalHeader is the header of the message with or without its blank
	// line, OriginalBody what follows. The body is used only when Message.Ret
	// is FULL and something failed (RFC 3461, 4.3).
	OriginalHeader []byte
	OriginalBody   []byte

	Now time.Time
	// Rand yields the bytes of the boundary and the Message-ID; 16 are read.
	Rand io.Reader
}

// DSNRecipient is what became of one recipient.
type DSNRecipient struct {
	Recipient message.Recipient
	Action    Action
	// Reply is the last word of the server, or our own in its place; nil when
	// there is none.
	Reply       *message.Reply
	RemoteMTA   string // host that said it; empty means Reply.RemoteHost
	LastAttempt time.Time
	// WillRetryUntil is when we give up; used with ActionDelayed only.
	WillRetryUntil time.Time
}

// maxOriginalHeader bounds the header returned: a report must not be a way to
// have a large mail sent to a third party.
const maxOriginalHeader = 64 << 10

// Compose writes the notification as a complete message with CRLF lines:
// multipart/report of RFC 6522 around the report of RFC 3464, or of RFC 6533
// when an address or the header returned needs UTF-8. It must be sent with the
// null sender, so that it is never answered (RFC 3464, 2; RFC 3834).
//
// An error means that d lacks something, not that the mail is bad: whatever
// cannot be represented is left out or escaped.
func Compose(d DSN) ([]byte, error) {
	if d.Message == nil || d.Message.From.IsZero() {
		return nil, fmt.Errorf("bounce: compose: the message has no sender to notify")
	}
	if len(d.Recipients) == 0 {
		return nil, fmt.Errorf("bounce: compose: no recipients")
	}
	var random [16]byte
	if _, err := io.ReadFull(d.Rand, random[:]); err != nil {
		return nil, fmt.Errorf("bounce: compose: random bytes: %w", err)
	}
	if d.ReportingMTA == "" {
		d.ReportingMTA = d.Hostname
	}
	c := composer{DSN: d, boundary: fmt.Sprintf("=_tw_%x", random)}
	c.original, c.full = c.returned()
	c.utf8 = d.Message.From.UTF8() || hasHighBit(headerOf(c.original))
	for i := range d.Recipients {
		c.utf8 = c.utf8 || d.Recipients[i].Recipient.Address.UTF8() || hasHighBit([]byte(d.Recipients[i].Recipient.ORcpt))
	}
	c.header(random[:])
	c.human()
	c.machine()
	c.copyOfMessage()
	c.line("--", c.boundary, "--")
	return c.out.Bytes(), nil
}

type composer struct {
	DSN
	out      bytes.Buffer
	boundary string
	original []byte // what is returned, CRLF lines
	full     bool   // original is the whole message
	utf8     bool   // RFC 6533 types are needed
}

func (c *composer) line(parts ...string) {
	for _, p := range parts {
		c.out.WriteString(p)
	}
	c.out.WriteString("\r\n")
}

// any reports whether some recipient met with action a.
func (c *composer) any(a Action) bool {
	for i := range c.Recipients {
		if c.Recipients[i].Action == a {
			return true
		}
	}
	return false
}

// returned chooses what of the original goes back: the whole only where asked
// for and only for a failure, else the header (RFC 3461, 4.3).
func (c *composer) returned() ([]byte, bool) {
	header := bytes.TrimRight(c.OriginalHeader, "\r\n")
	cut := len(header) > maxOriginalHeader
	if cut {
		header = header[:maxOriginalHeader]
		header = header[:bytes.LastIndexByte(header, '\n')+1]
	}
	out := crlf(header)
	if cut || c.Message.Ret != "FULL" || c.OriginalBody == nil || !c.any(ActionFailed) {
		return out, false
	}
	return append(append(out, "\r\n"...), crlf(c.OriginalBody)...), true
}

// crlf returns b with every line ended by CRLF, the last one included.
func crlf(b []byte) []byte {
	out := make([]byte, 0, len(b)+len(b)/32+2)
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		out = append(append(out, bytes.TrimRight(line, "\r")...), "\r\n"...)
		b = rest
	}
	return out
}

func headerOf(b []byte) []byte {
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		return b[:i+2]
	}
	return b
}

func hasHighBit(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

func (c *composer) subject() string {
	switch {
	case c.any(ActionFailed):
		return "Undelivered mail returned to sender"
	case c.any(ActionDelayed):
		return "Delivery delayed, no action needed"
	}
	return "Delivery report"
}

func (c *composer) header(random []byte) {
	c.line("Date: ", c.Now.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	c.line("From: Mail Delivery System <MAILER-DAEMON@", c.Hostname, ">")
	c.line("To: <", c.Message.From.String(), ">")
	c.line("Subject: ", c.subject())
	c.line("Message-ID: <", fmt.Sprintf("dsn.%x.%x", c.Now.UnixMilli(), random[:8]), "@", c.Hostname, ">")
	if id := c.Message.RFCMessageID; id != "" && len(id) < 900 && !strings.ContainsAny(id, "<> \t\r\n") {
		c.line("In-Reply-To: <", id, ">")
	}
	c.line("Auto-Submitted: auto-replied")
	c.line("MIME-Version: 1.0")
	c.line("Content-Type: multipart/report; report-type=delivery-status;")
	c.line("\tboundary=\"", c.boundary, "\"")
	if c.utf8 || hasHighBit(c.original) {
		c.line("Content-Transfer-Encoding: 8bit")
	}
	c.line()
}

// human is the part for people: what happened, to whom, in the server's own
// words, and what to do.
func (c *composer) human() {
	c.line("--", c.boundary)
	if c.utf8 {
		c.line("Content-Type: text/plain; charset=utf-8")
		c.line("Content-Transfer-Encoding: 8bit")
	} else {
		c.line("Content-Type: text/plain; charset=us-ascii")
	}
	c.line()
	c.line("This is the mail system at ", c.Hostname, ".")
	c.line()
	for _, group := range []struct {
		action Action
		text   []string
	}{
		{ActionFailed, []string{"Your message could not be delivered to the recipients below.", "It will not be tried again."}},
		{ActionDelayed, []string{"Your message has not been delivered yet to the recipients below.", "It will be tried again; you need not send it again."}},
		{ActionDelivered, []string{"Your message was delivered to:"}},
		{ActionRelayed, []string{"Your message was handed on, to a system that sends no reports, for:"}},
		{ActionExpanded, []string{"Your message was delivered to a list and sent on to its members:"}},
	} {
		if !c.any(group.action) {
			continue
		}
		for _, s := range group.text {
			c.line(s)
		}
		c.line()
		for i := range c.Recipients {
			if c.Recipients[i].Action == group.action {
				c.humanRecipient(&c.Recipients[i])
			}
		}
	}
}

func (c *composer) humanRecipient(r *DSNRecipient) {
	c.line("  <", r.Recipient.Address.String(), ">")
	if r.Reply != nil {
		who := "Reason:"
		if host := remote(r); host != "" && !r.Reply.Local {
			who = "Server " + host + " said:"
		}
		c.line("    ", who)
		for _, s := range fold(printable(string(r.Reply.AppendText(nil)), c.utf8), 66) {
			c.line("    ", s)
		}
	}
	if r.Action == ActionDelayed && !r.WillRetryUntil.IsZero() {
		c.line("    Tried until ", r.WillRetryUntil.Format("Mon, 02 Jan 2006 15:04 -0700"), ".")
	}
	c.line()
}

func remote(r *DSNRecipient) string {
	if r.RemoteMTA != "" || r.Reply == nil {
		return r.RemoteMTA
	}
	return r.Reply.RemoteHost
}

// machine is the report of RFC 3464, 2.
func (c *composer) machine() {
	c.line("--", c.boundary)
	if c.utf8 {
		c.line("Content-Type: message/global-delivery-status; charset=utf-8")
		c.line("Content-Transfer-Encoding: 8bit")
	} else {
		c.line("Content-Type: message/delivery-status")
	}
	c.line()
	if c.Message.EnvID != "" {
		c.field("Original-Envelope-Id", c.Message.EnvID)
	}
	c.field("Reporting-MTA", "dns; "+c.ReportingMTA)
	if !c.Message.Accepted.IsZero() {
		c.field("Arrival-Date", c.Message.Accepted.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	}
	for i := range c.Recipients {
		r := &c.Recipients[i]
		c.line()
		if r.Recipient.ORcpt != "" {
			// The type before the semicolon is the client's, RFC 3461, 4.2.
			kind, address, _ := strings.Cut(r.Recipient.ORcpt, ";")
			c.field("Original-Recipient", strings.TrimSpace(kind)+"; "+strings.TrimSpace(address))
		}
		c.field("Final-Recipient", addressType(r.Recipient.Address)+"; "+r.Recipient.Address.String())
		c.field("Action", string(r.Action))
		c.field("Status", status(r))
		if host := remote(r); host != "" {
			c.field("Remote-MTA", "dns; "+host)
		}
		if r.Reply != nil {
			kind := "smtp; "
			if r.Reply.Local || r.Reply.Code == 0 {
				kind = "X-Tradewind; "
			}
			c.field("Diagnostic-Code", kind+string(r.Reply.AppendText(nil)))
		}
		if !r.LastAttempt.IsZero() {
			c.field("Last-Attempt-Date", r.LastAttempt.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
		}
		if r.Action == ActionDelayed && !r.WillRetryUntil.IsZero() {
			c.field("Will-Retry-Until", r.WillRetryUntil.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
		}
	}
	c.line()
}

// addressType is the type of RFC 6533 for addresses that need it.
func addressType(a message.Address) string {
	if a.UTF8() {
		return "utf-8"
	}
	return "rfc822"
}

// status is the Status of a recipient. Its class must agree with the action
// (RFC 3464, 2.3.4), so the server's code is used only where it does.
func status(r *DSNRecipient) string {
	class := map[Action]uint16{ActionFailed: 5, ActionDelayed: 4}[r.Action]
	if class == 0 {
		class = 2
	}
	if r.Reply == nil || r.Reply.Enhanced == (message.Enhanced{}) {
		return fmt.Sprintf("%d.0.0", class)
	}
	e := r.Reply.Enhanced
	if r.Action == ActionFailed && e[0] == 4 {
		return e.String() // given up on: RFC 3464 allows 4.4.7 and its like
	}
	e[0] = class
	return e.String()
}

// field writes one field of the report, folded, its value made printable.
func (c *composer) field(name, value string) {
	lines := fold(printable(value, c.utf8), 74-len(name))
	c.line(name, ": ", lines[0])
	for _, s := range lines[1:] {
		c.line("    ", s)
	}
}

func (c *composer) copyOfMessage() {
	if len(c.original) == 0 {
		return
	}
	kind := "text/rfc822-headers"
	switch high := hasHighBit(headerOf(c.original)); {
	case c.full && high:
		kind = "message/global"
	case c.full:
		kind = "message/rfc822"
	case high:
		kind = "message/global-headers"
	}
	c.line("--", c.boundary)
	c.line("Content-Type: ", kind)
	if hasHighBit(c.original) {
		c.line("Content-Transfer-Encoding: 8bit")
	}
	c.line()
	c.out.Write(c.original)
	c.line()
}
