package inbound

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

// Submission is the backend of listeners that take mail to be sent: it knows
// who may submit, and hands what they send to the one door.
type Submission struct {
	Injector *inject.Injector
	// Name of the listener, for the accepted event.
	Name string
	// RelayFrom are the networks whose clients may submit without AUTH, as
	// Tenant, and may name another tenant in X-Tradewind-Tenant.
	RelayFrom []netip.Prefix
	Tenant    string
	// Durability is what the acknowledgement of a message waits for.
	Durability message.Durability
	// Login checks a user name and password and returns the tenant; nil offers
	// no AUTH. It must take the same time for unknown users as for known ones.
	Login func(ctx context.Context, user, password string) (tenant string, ok bool)
}

// NewSession begins a session for a client.
func (b *Submission) NewSession(c *Conn) (smtp.Session, error) {
	s := &submission{backend: b, conn: c}
	s.client, s.trusted = b.relays(c.RemoteAddr())
	s.tenant = b.Tenant
	if b.Login == nil {
		return &plainSubmission{s}, nil
	}
	return s, nil
}

// relays tells whether a client may submit without AUTH.
func (b *Submission) relays(addr net.Addr) (client string, ok bool) {
	host, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String(), false
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host, false
	}
	ip = ip.Unmap()
	for _, p := range b.RelayFrom {
		if p.Contains(ip) {
			return ip.String(), true
		}
	}
	return ip.String(), false
}

// plainSubmission hides the AUTH methods of a session where there is no login.
type plainSubmission struct{ s *submission }

func (p *plainSubmission) Reset()                                      { p.s.Reset() }
func (p *plainSubmission) Logout() error                               { return nil }
func (p *plainSubmission) Mail(from string, o *smtp.MailOptions) error { return p.s.Mail(from, o) }
func (p *plainSubmission) Rcpt(to string, o *smtp.RcptOptions) error   { return p.s.Rcpt(to, o) }
func (p *plainSubmission) Data(r io.Reader) error                      { return p.s.Data(r) }
func (p *plainSubmission) DataBytes(body []byte, plain bool) (string, error) {
	return p.s.DataBytes(body, plain)
}

// submission is one client's session.
type submission struct {
	backend *Submission
	conn    *Conn
	client  string
	trusted bool // by network
	authed  bool
	tenant  string

	env inject.Envelope // of the transaction under way
}

// AuthMechanisms lists what AUTH takes. The server offers it under TLS only, and
// LOGIN beside it.
func (s *submission) AuthMechanisms() []string { return []string{sasl.Plain} }

// Auth starts an exchange.
func (s *submission) Auth(mech string) (sasl.Server, error) {
	if mech != sasl.Plain {
		return nil, &smtp.SMTPError{Code: 504, EnhancedCode: smtp.EnhancedCode{5, 5, 4}, Message: "Unknown mechanism"}
	}
	return sasl.NewPlainServer(func(identity, user, password string) error {
		if identity != "" && identity != user {
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "Acting for another identity is not possible"}
		}
		tenant, ok := s.backend.Login(context.Background(), user, password)
		if !ok {
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "Authentication failed"}
		}
		s.authed, s.tenant = true, tenant
		return nil
	}), nil
}

// Reset forgets the transaction.
func (s *submission) Reset() { s.env = inject.Envelope{} }

// Logout ends the session.
func (s *submission) Logout() error { return nil }

// Mail takes the envelope sender.
func (s *submission) Mail(from string, o *smtp.MailOptions) error {
	if !s.trusted && !s.authed {
		if s.backend.Login != nil {
			return &smtp.SMTPError{Code: 530, EnhancedCode: smtp.EnhancedCode{5, 7, 0}, Message: "Authentication required"}
		}
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "Relaying from your address is not allowed"}
	}
	s.env = inject.Envelope{
		Tenant: s.tenant, AnyTenant: s.trusted && !s.authed,
		Door: inject.DoorSMTP, Origin: s.backend.Name, Client: s.client, HELO: s.conn.Hostname(), Protocol: s.protocol(),
		Durability: s.backend.Durability,
	}
	if from != "" {
		a, err := message.ParseAddress(from)
		if err != nil {
			return &smtp.SMTPError{Code: 553, EnhancedCode: smtp.EnhancedCode{5, 1, 7}, Message: "Bad sender address"}
		}
		s.env.From = a
	}
	if o != nil {
		s.env.EnvID, s.env.Ret = o.EnvelopeID, string(o.Return)
	}
	return nil
}

// protocol is the "with" keyword of RFC 3848.
func (s *submission) protocol() string {
	p := "ESMTP"
	if _, tls := s.conn.TLSConnectionState(); tls {
		p += "S"
	}
	if s.authed {
		p += "A"
	}
	return p
}

// Rcpt takes one recipient.
func (s *submission) Rcpt(to string, o *smtp.RcptOptions) error {
	a, err := message.ParseAddress(to)
	if err != nil {
		return &smtp.SMTPError{Code: 553, EnhancedCode: smtp.EnhancedCode{5, 1, 3}, Message: "Bad recipient address"}
	}
	r := message.Recipient{Address: a}
	if o != nil {
		for _, n := range o.Notify {
			switch n {
			case smtp.DSNNotifyNever:
				r.Notify |= message.NotifyNever
			case smtp.DSNNotifySuccess:
				r.Notify |= message.NotifySuccess
			case smtp.DSNNotifyFailure:
				r.Notify |= message.NotifyFailure
			case smtp.DSNNotifyDelayed:
				r.Notify |= message.NotifyDelay
			}
		}
		if o.OriginalRecipient != "" {
			r.ORcpt = strings.ToLower(string(o.OriginalRecipientType)) + ";" + o.OriginalRecipient
		}
	}
	s.env.Recipients = append(s.env.Recipients, r)
	return nil
}

// Data is DataBytes for a reader.
func (s *submission) Data(r io.Reader) error {
	body, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	_, err = s.DataBytes(body, false)
	return err
}

// DataBytes hands the message over; it is durable when this returns without
// error, and the text names it, and the durability if that is not the full one.
func (s *submission) DataBytes(body []byte, plain bool) (string, error) {
	s.env.Plain = plain
	res, err := s.backend.Injector.Raw(context.Background(), s.env, body)
	if err != nil {
		return "", doorError(err)
	}
	words := "Ok: queued as " + res.ID.String()
	if s.backend.Durability != message.Synced {
		words += ", durability=" + s.backend.Durability.String()
	}
	return words, nil
}

// doorError puts a refusal of the door into a reply.
func doorError(err error) error {
	var e *inject.Error
	if !errors.As(err, &e) {
		return err
	}
	code := smtp.EnhancedCode{int(e.Enhanced[0]), int(e.Enhanced[1]), int(e.Enhanced[2])}
	return &smtp.SMTPError{Code: e.SMTP, EnhancedCode: code, Message: e.Message}
}
