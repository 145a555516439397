package bounce

import (
	"encoding/json"
	"net/netip"

	"github.com/tradewind-mta/tradewind/message"
)

// Kind says what a report is.
type Kind uint8

// The kinds.
const (
	// KindNone is mail that reports nothing we could read.
	KindNone Kind = iota
	// KindBounce reports at least one recipient who did not get the message.
	KindBounce
	// KindDelay is a report about time: a warning that delivery is late, or
	// the news that the time ran out. Recipient.Action tells the two apart:
	// ActionDelayed still tries, ActionFailed has given up.
	KindDelay
	// KindComplaint is a feedback report, or a request to be left alone.
	KindComplaint
	// KindAutoReply is a vacation notice, a read receipt and the like.
	KindAutoReply
	// KindDelivered is a success report.
	KindDelivered
)

func (k Kind) String() string {
	return [...]string{"none", "bounce", "delay", "complaint", "autoreply", "delivered", "", ""}[k&7]
}

// Report is what Parse found in one piece of mail.
type Report struct {
	Kind Kind
	// Format names the shape of the report: rfc3464, arf, text, ses-json ...
	Format     string
	Recipients []Recipient
	// MessageID is that of the message the report is about, without brackets.
	MessageID string

	ReportingMTA string
	// EnvelopeID is the Original-Envelope-Id of RFC 3464.
	EnvelopeID string

	// FeedbackType of a complaint: abuse, fraud, opt-out, auth-failure ...
	FeedbackType string
	// Feedback holds the rest of a complaint; nil for other kinds.
	Feedback *Feedback

	// Header is the report's own header, Original that of the message it is
	// about, as far as it was returned. Both are bounded and may be empty.
	Header   Header
	Original Header
	// Truncated is set when the mail was larger than Parse looks at.
	Truncated bool
}

// Feedback holds the fields of RFC 5965 and RFC 6591.
type Feedback struct {
	UserAgent       string
	SourceIP        netip.Addr
	MailFrom        string
	OriginalRcptTo  []string // all of them, as given
	ArrivalDate     string   // as given
	AuthResults     []string
	ReportedDomains []string
	AuthFailure     string
	DeliveryResult  string
	// Reporter is the From address of the report: whose DKIM signature the
	// caller must check before acting.
	Reporter string
}

// Recipient is what a report says about one address.
type Recipient struct {
	// Address is the mailbox as the reporting server names it, not checked to
	// be a valid address: it may be malformed, which may be why it failed.
	Address string
	// Original is the address that was mailed, where the report says that a
	// forward or an alias made Address of it. It is what the sender has to act
	// on, unless a token tells.
	Original string
	Action   Action
	// Status is the enhanced code as text: the server's, else the report's, else
	// one derived from the category. Code is the SMTP code, 0 when the report
	// gives none.
	Status     string
	Code       int
	Category   message.Category
	Permanent  bool
	Suppress   bool
	Diagnostic string // the server's words, on one line, as UTF-8
	RemoteMTA  string
	Rule       string // the rule that classified it
	// Confidence in per cent that address and category are right.
	Confidence uint8
}

// jsonRecipient and jsonReport are the output of `bounce parse`. Checks outside
// the repository rely on the names.
type jsonRecipient struct {
	Address    string `json:"address"`
	Original   string `json:"original,omitempty"`
	Status     string `json:"status"`
	Code       int    `json:"code"`
	Category   string `json:"category"`
	Permanent  bool   `json:"permanent"`
	Diagnostic string `json:"diagnostic"`
}

type jsonReport struct {
	File         string          `json:"file"`
	Kind         string          `json:"kind"`
	FeedbackType string          `json:"feedback_type"`
	Recipients   []jsonRecipient `json:"recipients"`
	MessageID    string          `json:"message_id"`
}

// JSON returns the line `tradewind bounce parse` prints for file, without a
// line end.
func (r *Report) JSON(file string) []byte {
	out := jsonReport{
		File: file, Kind: r.Kind.String(), FeedbackType: r.FeedbackType,
		Recipients: make([]jsonRecipient, 0, len(r.Recipients)), MessageID: r.MessageID,
	}
	for i := range r.Recipients {
		x := &r.Recipients[i]
		out.Recipients = append(out.Recipients, jsonRecipient{
			x.Address, x.Original, x.Status, x.Code, x.Category.String(), x.Permanent, x.Diagnostic,
		})
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic("bounce: a struct of strings, numbers and booleans did not marshal: " + err.Error())
	}
	return b
}

// Tokens are the places where a token of ours may come back. None of them is
// proof of anything until the token is opened.
type Tokens struct {
	// To is where the report was sent: To, Delivered-To, X-Original-To and the
	// like of the report itself. The envelope recipient, which the caller
	// knows, is better.
	To []string
	// ReturnPath, MessageID and FeedbackID are from the returned header.
	ReturnPath []string
	MessageID  string
	FeedbackID []string
	EnvelopeID string
	// Extra holds the X- fields of the returned header.
	Extra Header
}

// Tokens collects them.
func (r *Report) Tokens() Tokens {
	t := Tokens{MessageID: r.MessageID, EnvelopeID: r.EnvelopeID}
	for _, name := range []string{"Delivered-To", "X-Original-To", "Envelope-To", "X-Envelope-To", "To"} {
		for _, v := range r.Header.Values(name) {
			for _, a := range findAddresses(v) {
				t.To = append(t.To, a.text)
			}
		}
	}
	for _, name := range []string{"Return-Path", "X-Envelope-From", "Errors-To"} {
		for _, v := range r.Original.Values(name) {
			for _, a := range findAddresses(v) {
				t.ReturnPath = append(t.ReturnPath, a.text)
			}
		}
	}
	if r.Feedback != nil && r.Feedback.MailFrom != "" {
		t.ReturnPath = append(t.ReturnPath, r.Feedback.MailFrom)
	}
	t.FeedbackID = r.Original.Values("Feedback-ID")
	for _, f := range r.Original {
		if len(f.Name) > 2 && (f.Name[0] == 'X' || f.Name[0] == 'x') && f.Name[1] == '-' {
			t.Extra = append(t.Extra, f)
		}
	}
	return t
}
