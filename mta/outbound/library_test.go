package outbound_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

// backend is a go-smtp server that keeps what it is given: a receiver nobody
// here wrote.
type backend struct {
	got chan received
}

type received struct {
	From string
	Opts smtp.MailOptions
	To   []string
	Rcpt []smtp.RcptOptions
	Data string
}

func (b *backend) NewSession(*smtp.Conn) (smtp.Session, error) { return &session{b: b}, nil }

type session struct {
	b *backend
	m received
}

func (s *session) Mail(from string, opts *smtp.MailOptions) error {
	s.m = received{From: from, Opts: *opts}
	return nil
}

func (s *session) Rcpt(to string, opts *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "reject") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	}
	s.m.To = append(s.m.To, to)
	s.m.Rcpt = append(s.m.Rcpt, *opts)
	return nil
}

func (s *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.m.Data = string(b)
	s.b.got <- s.m
	return nil
}

func (s *session) Reset()        { s.m = received{} }
func (s *session) Logout() error { return nil }

func TestAnotherServerUnderstandsUs(t *testing.T) {
	t.Parallel()
	b := &backend{got: make(chan received, 1)}
	srv := smtp.NewServer(b)
	srv.Domain = "mx.example.net"
	srv.EnableSMTPUTF8 = true
	srv.EnableDSN = true
	srv.ReadTimeout = time.Minute
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	defer srv.Close()
	o := testOptions(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
	})
	ctx := context.Background()
	c := mustDial(t, o)
	defer c.Quit(ctx)
	if !c.Caps().Pipelining || !c.Caps().DSN || !c.Caps().SMTPUTF8 {
		t.Fatalf("%+v", c.Caps())
	}
	for i, tc := range []struct {
		from string
		to   []string
		body string
		utf8 bool
		dsn  bool
	}{
		{from: "a@example.com", to: []string{"b@example.net"}, body: "Subject: x\r\n\r\nhello\r\n"},
		{from: "", to: []string{"b@example.net", "reject@example.net", "c@example.net"}, body: ".\r\n..\r\n...\r\n\r\n.x\r\n"},
		{from: "jürgen@example.com", to: []string{"µ@example.net"}, body: "Subject: ü\r\n\r\nü\r\n", utf8: true},
		{from: "a@example.com", to: []string{"b@example.net"}, body: "\r\n", dsn: true},
		{from: "a@example.com", to: []string{"reject1@example.net"}, body: "\r\n"},
		{from: "a@example.com", to: []string{"b@example.net"}, body: strings.Repeat(".a line that begins with a dot\r\n", 10_000)},
		{from: "a@example.com", to: []string{"b@example.net"}, body: ""},
	} {
		e := &outbound.Envelope{To: rcpts(tc.to...), Body: []byte(tc.body), EightBit: tc.utf8, UTF8: tc.utf8}
		if tc.from != "" {
			e.From = message.MustAddress(tc.from)
		}
		want := received{From: tc.from, Data: tc.body}
		want.Opts.Size = int64(len(tc.body))
		want.Opts.UTF8 = tc.utf8
		if tc.utf8 {
			want.Opts.Body = smtp.Body8BitMIME
		}
		if tc.dsn {
			e.EnvID, e.Ret = "id+1=ü"[:5], "FULL"
			e.To[0].Notify = message.NotifySuccess | message.NotifyDelay
			e.To[0].ORcpt = "rfc822;x+y@example.net"
			want.Opts.EnvelopeID, want.Opts.Return = "id+1=", smtp.DSNReturnFull
		}
		for _, to := range tc.to {
			if !strings.HasPrefix(to, "reject") {
				want.To = append(want.To, to)
				r := smtp.RcptOptions{}
				if tc.dsn {
					r.Notify = []smtp.DSNNotify{smtp.DSNNotifySuccess, smtp.DSNNotifyDelayed}
					r.OriginalRecipientType, r.OriginalRecipient = smtp.DSNAddressTypeRFC822, "x+y@example.net"
				}
				want.Rcpt = append(want.Rcpt, r)
			}
		}
		res := c.Send(ctx, e)
		for r, out := range res.Outcomes {
			reject := strings.HasPrefix(tc.to[r], "reject")
			if reject && (out.Result != message.Failed || out.Reply.Code != 550 || out.Reply.Enhanced != message.Enhanced{5, 1, 1}) ||
				!reject && out.Result != message.Delivered {
				t.Errorf("%d: %s: %v %v", i, tc.to[r], out.Result, out.Reply)
			}
		}
		if !res.Usable {
			t.Fatalf("%d: connection lost", i)
		}
		if len(want.To) == 0 {
			continue
		}
		if d := cmp.Diff(want, <-b.got); d != "" {
			t.Errorf("%d: (-want +got)\n%s", i, d)
		}
	}
}
