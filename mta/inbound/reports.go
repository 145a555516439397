package inbound

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"

	"github.com/emersion/go-smtp"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/report"
)

// Reports is the backend of listeners that take what comes back: mail to the
// addresses that a report.Mailbox admits, from anybody, and nothing else. It
// offers no AUTH and relays nothing.
type Reports struct {
	Mailbox *report.Mailbox
}

// maxReceived is the number of Received fields that means a loop. Nothing of
// ours answers a report, but others' machines may be arguing through us.
const maxReceived = 50

// NewSession begins a session for a client.
func (b *Reports) NewSession(c *Conn) (smtp.Session, error) {
	s := &reports{mailbox: b.Mailbox}
	if host, _, err := net.SplitHostPort(c.RemoteAddr().String()); err == nil {
		if ip, err := netip.ParseAddr(host); err == nil {
			s.client = ip.Unmap().WithZone("")
		}
	}
	return s, nil
}

// reports is one client's session.
type reports struct {
	mailbox *report.Mailbox
	client  netip.Addr
	env     report.Envelope // of the transaction under way
}

// Reset forgets the transaction.
func (s *reports) Reset() { s.env = report.Envelope{} }

// Logout ends the session.
func (s *reports) Logout() error { return nil }

// Mail takes the envelope sender, which is mostly the null one.
func (s *reports) Mail(from string, _ *smtp.MailOptions) error {
	s.env = report.Envelope{Client: s.client}
	if from == "" {
		return nil
	}
	a, err := message.ParseAddress(from)
	if err != nil {
		return &smtp.SMTPError{Code: 553, EnhancedCode: smtp.EnhancedCode{5, 1, 7}, Message: "Bad sender address"}
	}
	s.env.From = a
	return nil
}

// Rcpt takes an address of ours.
func (s *reports) Rcpt(to string, _ *smtp.RcptOptions) error {
	a, err := message.ParseAddress(to)
	if err != nil || s.mailbox.Admit(a) != nil {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "No such mailbox here"}
	}
	s.env.To = append(s.env.To, a)
	return nil
}

// Data is DataBytes for a reader.
func (s *reports) Data(r io.Reader) error {
	body, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	_, err = s.DataBytes(body, false)
	return err
}

// DataBytes hands the report over; it is durable when this returns without
// error.
func (s *reports) DataBytes(body []byte, _ bool) (string, error) {
	if hops(body) > maxReceived {
		return "", &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 4, 6}, Message: "Mail is going round in circles"}
	}
	switch err := s.mailbox.Take(s.env, body); {
	case errors.Is(err, report.ErrFull):
		return "", &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "Too many reports wait; try again later"}
	case err != nil:
		return "", err
	}
	return "Ok: taken", nil
}

// hops counts the Received fields of a message.
func hops(body []byte) (n int) {
	for line := range bytes.Lines(body) {
		if len(line) <= 2 {
			break
		}
		if len(line) > 9 && line[8] == ':' && foldEq(string(line[:8]), "RECEIVED") {
			n++
		}
	}
	return n
}
