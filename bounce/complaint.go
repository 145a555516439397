package bounce

import (
	"encoding/json"
	"net/netip"
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// complaint reads feedback reports in all their shapes. They come first,
// because an auth-failure report quotes enough to look like anything else.
func (p *parser) complaint() bool {
	_, _, _, reportType := mediaType(p.header.Get("Content-Type"))
	switch {
	case p.feedback != nil:
		p.fromFeedback(p.feedback.text(maxTextPart))
	case reportType == "feedback-report" || strings.Contains(p.text, "\nFeedback-Type:") || strings.HasPrefix(p.text, "Feedback-Type:"):
		// Its part lost its type, or is missing: a complaint all the same.
		i := max(strings.Index(p.text, "Feedback-Type:"), 0)
		p.fromFeedback(p.text[i:])
	case p.fromUntypedFeedback():
	case p.fromJMRP():
	case p.fromJSON():
		return true
	case p.fromXARF():
	case strings.EqualFold(p.header.Get("X-Apple-Unsubscribe"), "true"):
		p.report.Format = "apple-unsubscribe"
		p.complain("opt-out", p.fromAddress(), &Feedback{Reporter: p.fromAddress()})
	default:
		return false
	}
	return true
}

// fromUntypedFeedback reads a report whose part lost its type: an attachment
// that begins with its fields.
func (p *parser) fromUntypedFeedback() bool {
	for i := range p.parts {
		x := &p.parts[i]
		if x == p.enclosed || x.isText() || x.preamble || x.kind == "text/html" || len(x.raw) > maxTextPart {
			continue
		}
		text := x.text(maxTextPart)
		if i := indexFold(text, "feedback-type:"); i == 0 || i > 0 && i < 500 && text[i-1] == '\n' {
			p.fromFeedback(text)
			return true
		}
	}
	return false
}

func (p *parser) fromAddress() string {
	for _, name := range []string{"From", "Sender", "Return-Path"} {
		if all := findAddresses(p.header.Get(name)); len(all) > 0 {
			return all[len(all)-1].text
		}
	}
	return ""
}

// complain files a complaint about one address; an empty one is a report whose
// recipient was taken out, as most providers do, and still counts.
func (p *parser) complain(kind, address string, f *Feedback) {
	p.report.Kind = KindComplaint
	if p.report.FeedbackType == "" {
		p.report.FeedbackType = kind
	}
	p.report.Feedback = f
	if address == "" {
		return
	}
	for i := range p.report.Recipients {
		if strings.EqualFold(p.report.Recipients[i].Address, address) {
			return
		}
	}
	if len(p.report.Recipients) < maxRecipients {
		p.report.Recipients = append(p.report.Recipients, Recipient{Address: address, Category: message.Complaint, Confidence: 80})
	}
}

// fromFeedback reads the fields of RFC 5965, 3, and RFC 6591, 3.
func (p *parser) fromFeedback(text string) {
	p.report.Format = "arf"
	f := &Feedback{Reporter: p.fromAddress()}
	kind := "abuse" // the type is required; a report without one is a complaint all the same
	var recipients []string
	h, _ := splitHeader([]byte(strings.TrimLeft(text, "\n") + "\n\n"))
	for _, x := range h {
		v := strings.TrimSpace(x.Value)
		switch strings.ToLower(x.Name) {
		case "feedback-type":
			kind, _, _ = strings.Cut(strings.ToLower(v), " ")
		case "user-agent":
			f.UserAgent = v
		case "source-ip", "x-originating-ip", "x-reporter-ip":
			if ip, err := netip.ParseAddr(strings.Trim(v, "[]")); err == nil && !f.SourceIP.IsValid() {
				f.SourceIP = ip
			}
		case "original-mail-from":
			f.MailFrom = addressIn(v)
		case "original-rcpt-to", "removal-recipient", "original-recipient", "x-original-rcpt-to":
			if strings.EqualFold(x.Name, "original-rcpt-to") {
				f.OriginalRcptTo = append(f.OriginalRcptTo, v)
			}
			for _, a := range findAddresses(v) {
				recipients = append(recipients, a.text)
			}
		case "arrival-date", "received-date":
			f.ArrivalDate = v
		case "authentication-results":
			f.AuthResults = append(f.AuthResults, v)
		case "reported-domain":
			f.ReportedDomains = append(f.ReportedDomains, v)
		case "auth-failure":
			f.AuthFailure = v
		case "delivery-result":
			f.DeliveryResult = v
		}
	}
	if len(recipients) == 0 {
		recipients = p.complainedRecipients()
	}
	p.complain(kind, "", f)
	for _, a := range recipients {
		p.complain(kind, a, f)
	}
}

// complainedRecipients takes the recipient from the returned header, in the
// order of how near a field is to the envelope.
func (p *parser) complainedRecipients() []string {
	for _, name := range []string{"X-HmXmrOriginalRecipient", "X-Rcpt-To", "X-Envelope-To", "To", "Delivered-To", "X-Original-To", "Cc"} {
		var all []string
		for _, v := range p.report.Original.Values(name) {
			for _, a := range findAddresses(v) {
				all = append(all, a.text)
			}
		}
		if len(all) > 0 {
			return all
		}
	}
	return nil
}

// fromJMRP reads Microsoft's reports from before they were ARF: the message as
// an attachment under "complaint about message from IP".
func (p *parser) fromJMRP() bool {
	h := p.report.Original
	if p.enclosed == nil || !strings.Contains(p.subject, "complaint about message from") && h.Get("X-HmXmrOriginalRecipient") == "" {
		return false
	}
	p.report.Format = "jmrp"
	f := &Feedback{Reporter: p.fromAddress()}
	if i := strings.LastIndexByte(p.subject, ' '); i >= 0 {
		f.SourceIP, _ = netip.ParseAddr(strings.Trim(p.subject[i+1:], "[]."))
	}
	p.complain("abuse", "", f)
	for _, a := range p.complainedRecipients() {
		p.complain("abuse", a, f)
	}
	return true
}

// fromXARF reads the JSON of XARF 2 and later, cheap because the three fields
// that matter stand at the top.
func (p *parser) fromXARF() bool {
	if !strings.EqualFold(p.header.Get("X-XARF"), "yes") && !strings.Contains(strings.ToLower(p.header.Get("X-XARF")), "secure") {
		return false
	}
	for i := range p.parts {
		x := &p.parts[i]
		if x.kind != "application/json" && !strings.HasSuffix(x.kind, "+json") {
			continue
		}
		var v struct {
			Report struct {
				ReportType    string
				SourceIP      string `json:"SourceIp"`
				SMTPMailFrom  string `json:"SmtpMailFromAddress"`
				SMTPRcptTo    string `json:"SmtpRcptToAddress"`
				ReporterEmail string
			}
			ReporterInfo struct{ ReporterContactEmail string }
		}
		if json.Unmarshal(x.bytes(maxTextPart), &v) != nil {
			continue
		}
		p.report.Format = "xarf"
		f := &Feedback{Reporter: p.fromAddress(), MailFrom: v.Report.SMTPMailFrom}
		f.SourceIP, _ = netip.ParseAddr(v.Report.SourceIP)
		p.complain("abuse", addressIn(v.Report.SMTPRcptTo), f)
		return true
	}
	return false
}

// sesNotification is what Amazon SES sends about a message, as the JSON text of
// a mail.
type sesNotification struct {
	NotificationType string `json:"notificationType"`
	EventType        string `json:"eventType"`
	Message          string `json:"Message"` // the whole again, as a string, when SNS wraps it
	Bounce           struct {
		BounceType        string `json:"bounceType"`
		BounceSubType     string `json:"bounceSubType"`
		ReportingMTA      string `json:"reportingMTA"`
		BouncedRecipients []struct {
			EmailAddress   string `json:"emailAddress"`
			Action         string `json:"action"`
			Status         string `json:"status"`
			DiagnosticCode string `json:"diagnosticCode"`
		} `json:"bouncedRecipients"`
	} `json:"bounce"`
	Complaint struct {
		ComplaintFeedbackType string `json:"complaintFeedbackType"`
		UserAgent             string `json:"userAgent"`
		ComplainedRecipients  []struct {
			EmailAddress string `json:"emailAddress"`
		} `json:"complainedRecipients"`
	} `json:"complaint"`
	Delivery struct {
		Recipients   []string `json:"recipients"`
		ReportingMTA string   `json:"reportingMTA"`
		SMTPResponse string   `json:"smtpResponse"`
	} `json:"delivery"`
	Mail struct {
		MessageID     string `json:"messageId"`
		CommonHeaders struct {
			MessageID string `json:"messageId"`
		} `json:"commonHeaders"`
	} `json:"mail"`
}

// fromJSON reads notifications of Amazon SES.
func (p *parser) fromJSON() bool {
	i := strings.IndexByte(p.text, '{')
	if i < 0 || i > 2000 || !strings.Contains(p.text, "notificationType") && !strings.Contains(p.text, "eventType") {
		return false
	}
	// Lines are broken at 998 bytes with a space, inside strings too.
	body := strings.NewReplacer("!\n ", "", "\n ", "", "\n", "").Replace(p.text[i:])
	var n sesNotification
	if json.NewDecoder(strings.NewReader(body)).Decode(&n) != nil {
		return false
	}
	if n.NotificationType == "" && n.EventType == "" && n.Message != "" {
		if json.Unmarshal([]byte(n.Message), &n) != nil {
			return false
		}
	}
	kind := n.NotificationType
	if kind == "" {
		kind = n.EventType
	}
	p.report.Format = "ses-json"
	if p.report.MessageID = messageID(n.Mail.CommonHeaders.MessageID); p.report.MessageID == "" {
		p.report.MessageID = n.Mail.MessageID
	}
	switch strings.ToLower(kind) {
	case "complaint":
		f := &Feedback{UserAgent: n.Complaint.UserAgent, Reporter: p.fromAddress()}
		feedback := n.Complaint.ComplaintFeedbackType
		if feedback == "" {
			feedback = "abuse"
		}
		p.complain(feedback, "", f)
		for _, r := range n.Complaint.ComplainedRecipients {
			p.complain(feedback, r.EmailAddress, f)
		}
	case "bounce":
		p.report.ReportingMTA = afterType(n.Bounce.ReportingMTA)
		for _, r := range n.Bounce.BouncedRecipients {
			w := readWords(diagnosticWords(r.DiagnosticCode))
			if w.full == "" {
				w = readWords(n.Bounce.BounceType + " " + n.Bounce.BounceSubType)
			}
			if w.enhanced == (message.Enhanced{}) {
				w.enhanced = readStatusCode(r.Status)
			}
			action := readAction(r.Action)
			if action == "" {
				action = ActionFailed
			}
			p.add(w, Recipient{Address: addressIn(r.EmailAddress), Action: action}, 90)
		}
		p.conclude()
	case "delivery":
		p.report.ReportingMTA = n.Delivery.ReportingMTA
		for _, a := range n.Delivery.Recipients {
			p.add(readWords(n.Delivery.SMTPResponse), Recipient{Address: addressIn(a), Action: ActionDelivered}, 90)
		}
		p.conclude()
	default:
		return false
	}
	return true
}
