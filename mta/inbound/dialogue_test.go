package inbound

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMessageIsHandedOverAndAcknowledgedWithTheBackendsWords(t *testing.T) {
	t.Parallel()
	m := &mailbox{words: "Ok: queued as 01ABC"}
	out := talk(t, testConfig(), m,
		hello, envelope+"DATA\r\n", "Subject: x\r\n\r\n..dot\r\nend\r\n.\r\n", "QUIT\r\n")
	if want := "220 250 250 250 354 250 221"; codes(out) != want {
		t.Errorf("got codes %s, want %s\n%s", codes(out), want, out)
	}
	if !strings.Contains(out, "250 2.0.0 Ok: queued as 01ABC\r\n") {
		t.Errorf("the backend's words are missing:\n%s", out)
	}
	if diff := cmp.Diff([]string{"Subject: x\r\n\r\n.dot\r\nend\r\n"}, m.messages); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	calls := []string{"MAIL a@a.test", "RCPT b@b.test", "DATA", "RSET", "LOGOUT"}
	if diff := cmp.Diff(calls, m.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// scribbler appends to the message it is given.
type scribbler struct{ *mailSession }

func (s scribbler) DataBytes(b []byte, plain bool) (string, error) {
	words, err := s.mailSession.DataBytes(b, plain)
	_ = append(b, bytes.Repeat([]byte("QUIT\r\n"), 100)...)
	for i := range b {
		b[i] = '!'
	}
	return words, err
}

func TestBackendMayScribbleOnTheMessage(t *testing.T) {
	t.Parallel()
	m := &mailbox{}
	s := New(testConfig(), BackendFunc(func(*Conn) (smtp.Session, error) { return scribbler{&mailSession{m}}, nil }), Deps{})
	out := talkTo(s, &scriptConn{}, hello, envelope+"DATA\r\n",
		"one\r\n.\r\n"+envelope+"DATA\r\n", "two\r\n.\r\n"+envelope+"BDAT 7 LAST\r\nthree\r\nNOOP\r\n")
	if got, want := codes(out), "220 250 250 250 354 250 250 250 354 250 250 250 250 250"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if diff := cmp.Diff([]string{"one\r\n", "two\r\n", "three\r\n"}, m.messages); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEhloOffersWhatIsServed(t *testing.T) {
	t.Parallel()
	got := talk(t, testConfig(), &mailbox{}, hello)
	want := "220 mx.test ESMTP\r\n250-mx.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n" +
		"250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250-DSN\r\n250 SIZE 52428800\r\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestDialogues holds one line for each small rule: what the client sends
// after EHLO, and the codes it hears.
func TestDialogues(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, send, want string }{
		{"nested MAIL", "MAIL FROM:<a@a.test>\r\nMAIL FROM:<c@c.test>\r\n", "250 503"},
		{"nested MAIL after RCPT", envelope + "MAIL FROM:<c@c.test>\r\n", "250 250 503"},
		{"RCPT without MAIL", "RCPT TO:<b@b.test>\r\n", "503"},
		{"DATA without RCPT", "MAIL FROM:<a@a.test>\r\nDATA\r\n", "250 503"},
		{"DATA without MAIL", "DATA\r\n", "503"},
		{"RSET ends a transaction", envelope + "RSET\r\nDATA\r\n", "250 250 250 503"},
		{"EHLO ends a transaction", envelope + "EHLO again\r\nDATA\r\n", "250 250 250 503"},
		{"HELO works too", "HELO again\r\n" + envelope, "250 250 250"},
		{"EHLO without a name", "EHLO\r\n", "501"},
		{"EHLO with a blank in the name", "EHLO a b\r\n", "501"},
		{"EHLO beyond ASCII", "EHLO b\u00fccher\r\n", "501"},
		{"keywords fold", "mail from:<a@a.test> size=5\r\nrCpT tO:<b@b.test>\r\n", "250 250"},
		{"keywords do not fold beyond ASCII", "MAIL FROM:<a@a.test> \u017fIZE=5\r\nVRFY x\r\n", "501 252"},
		{"a verb is a whole word", "NOOPx\r\nMAILFROM:<a@a.test>\r\nSTARTTLSx\r\nQUITE\r\n", "500 500 500 500"},
		{"a verb with a long s", "VERIF\u017f\r\nR\u017fET\r\n", "500 500"},
		{"empty command", "\r\n", "500"},
		{"leading blank", " NOOP\r\n", "500"},
		{"NOOP with argument", "NOOP hello\r\n", "250"},
		{"HELP, VRFY, EXPN", "HELP\r\nVRFY a\r\nEXPN a\r\n", "214 252 502"},
		{"DATA with argument", envelope + "DATA x\r\n", "250 250 501"},
		{"RSET with argument", "RSET x\r\n", "501"},
		{"QUIT ends it", "QUIT\r\nNOOP\r\n", "221"},
		{"blanks at the end", "NOOP \r\nRSET  \r\nQUIT \r\n", "250 250 221"},
		{"STARTTLS not configured", "STARTTLS\r\n", "502"},
		{"AUTH in clear", "AUTH PLAIN AGEAYg==\r\n", "538"},

		{"null sender", "MAIL FROM:<>\r\n", "250"},
		{"no null recipient", "MAIL FROM:<>\r\nRCPT TO:<>\r\n", "250 501"},
		{"postmaster alone", "MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\n", "250 501"},
		{"blank after the colon", "MAIL FROM: <a@a.test>\r\nRCPT TO: <b@b.test>\r\n", "250 250"},
		{"no brackets", "MAIL FROM:a@a.test\r\n", "501"},
		{"half a bracket", "MAIL FROM:<a@a.test\r\n", "501"},
		{"blank before the colon", "MAIL FROM :<a@a.test>\r\n", "501"},
		{"source route", "MAIL FROM:<>\r\nRCPT TO:<@c.test:b@b.test>\r\n", "250 501"},
		{"two at signs", "MAIL FROM:<>\r\nRCPT TO:<b@b.test@c.test>\r\n", "250 501"},
		{"quoted pair of addresses", `MAIL FROM:<"a b@c"@a.test>` + "\r\n", "250"},
		{"quote not closed", `MAIL FROM:<"a@a.test>` + "\r\n", "501"},
		{"control byte in domain", "MAIL FROM:<a@a\x01.test>\r\n", "501"},
		{"tab in address", "MAIL FROM:<a\tb@a.test>\r\n", "501"},
		{"bracket in domain", "MAIL FROM:<a@a<b>.test>\r\n", "501"},
		{"address literal", "MAIL FROM:<a@[192.0.2.1]>\r\n", "250"},
		{"address of a megabyte's beginning", "MAIL FROM:<" + strings.Repeat("a", 900) + "@a.test>\r\n", "501"},
		{"local part of 64 octets", "MAIL FROM:<" + strings.Repeat("a", 64) + "@a.test>\r\n", "250"},
		{"local part of 65 octets", "MAIL FROM:<" + strings.Repeat("a", 65) + "@a.test>\r\n", "501"},

		{"UTF-8 needs SMTPUTF8", "MAIL FROM:<\u00fc@a.test>\r\n", "553"},
		{"UTF-8 domain needs SMTPUTF8", "MAIL FROM:<a@b\u00fccher.test>\r\n", "553"},
		{"UTF-8 with SMTPUTF8", "MAIL FROM:<\u00fc@a.test> SMTPUTF8\r\nRCPT TO:<\u00fc@b\u00fccher.test>\r\n", "250 250"},
		{"UTF-8 recipient without SMTPUTF8", "MAIL FROM:<a@a.test>\r\nRCPT TO:<\u00fc@b.test>\r\n", "250 553"},
		{"broken UTF-8", "MAIL FROM:<\xff@a.test> SMTPUTF8\r\n", "501"},

		{"unknown parameter", "MAIL FROM:<a@a.test> FOO=1\r\n", "555"},
		{"unknown RCPT parameter", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> FOO\r\n", "250 555"},
		{"MAIL parameter on RCPT", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> SIZE=1\r\n", "250 555"},
		{"repeated parameter", "MAIL FROM:<a@a.test> SIZE=1 SIZE=1\r\n", "501"},
		{"parameter glued to the path", "MAIL FROM:<a@a.test>SIZE=1\r\n", "501"},
		{"two blanks", "MAIL FROM:<a@a.test>  SIZE=1\r\n", "501"},
		{"blank at the end", "MAIL FROM:<a@a.test> \r\n", "250"},
		{"SIZE without value", "MAIL FROM:<a@a.test> SIZE\r\n", "501"},
		{"SIZE negative", "MAIL FROM:<a@a.test> SIZE=-1\r\n", "501"},
		{"SIZE beyond 64 bits", "MAIL FROM:<a@a.test> SIZE=18446744073709551617\r\n", "501"},
		{"SIZE too large", "MAIL FROM:<a@a.test> SIZE=52428801\r\n", "552"},
		{"SIZE at the limit", "MAIL FROM:<a@a.test> SIZE=52428800\r\n", "250"},
		{"BODY values", "MAIL FROM:<> BODY=8BITMIME\r\nRSET\r\nMAIL FROM:<> BODY=7bit\r\nRSET\r\nMAIL FROM:<> BODY=BINARYMIME\r\n", "250 250 250 250 501"},
		{"SMTPUTF8 with value", "MAIL FROM:<> SMTPUTF8=1\r\n", "501"},
		{"RET values", "MAIL FROM:<> RET=FULL\r\nRSET\r\nMAIL FROM:<> RET=hdrs\r\nRSET\r\nMAIL FROM:<> RET=ALL\r\n", "250 250 250 250 501"},
		{"ENVID", "MAIL FROM:<> ENVID=a+2Bb\r\n", "250"},
		{"ENVID with lower-case hex", "MAIL FROM:<> ENVID=a+2bb\r\n", "501"},
		{"ENVID that decodes to a line break", "MAIL FROM:<> ENVID=a+0D+0Ab\r\n", "501"},
		{"ENVID cut short", "MAIL FROM:<> ENVID=a+2\r\n", "501"},
		{"ENVID of 101 octets", "MAIL FROM:<> ENVID=" + strings.Repeat("a", 101) + "\r\n", "501"},
		{"NOTIFY", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> NOTIFY=SUCCESS,failure,DELAY\r\n", "250 250"},
		{"NOTIFY never and more", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> NOTIFY=NEVER,DELAY\r\n", "250 501"},
		{"NOTIFY twice the same", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> NOTIFY=DELAY,DELAY\r\n", "250 501"},
		{"NOTIFY empty", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> NOTIFY=\r\n", "250 501"},
		{"NOTIFY unknown", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> NOTIFY=ALWAYS\r\n", "250 501"},
		{"ORCPT", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> ORCPT=rfc822;b+2Bx@b.test\r\n", "250 250"},
		{"ORCPT without type", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> ORCPT=b@b.test\r\n", "250 501"},
		{"ORCPT with a line break", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> ORCPT=rfc822;b+0Ax\r\n", "250 501"},
		{"ORCPT in UTF-8 without SMTPUTF8", "MAIL FROM:<>\r\nRCPT TO:<b@b.test> ORCPT=utf-8;\u00fc@b.test\r\n", "250 501"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			out := talk(t, testConfig(), &mailbox{}, hello, tt.send)
			if got := strings.TrimPrefix(codes(out), "220 250 "); got != tt.want {
				t.Errorf("%q: got %s, want %s\n%s", tt.send, got, tt.want, out)
			}
		})
	}
}

func TestCommandsBeforeEhloAreOutOfOrder(t *testing.T) {
	t.Parallel()
	m := &mailbox{}
	out := talk(t, testConfig(), m, envelope+"AUTH PLAIN\r\nDATA\r\n")
	if got, want := codes(out), "220 503 503 503 503"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if len(m.calls) > 0 {
		t.Errorf("the backend was called: %q", m.calls)
	}
}

func TestEnvelopeParametersReachTheBackendDecoded(t *testing.T) {
	t.Parallel()
	m := &mailbox{}
	talk(t, testConfig(), m, hello,
		"MAIL FROM:<a@A.Test> SIZE=7 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=q+2B1+3D AUTH=x+40y\r\n",
		`RCPT TO:<"quoted> x"@b.test> NOTIFY=DELAY,FAILURE ORCPT=rfc822;o+2Bo@b.test`+"\r\n",
		`RCPT TO:<c@c.test> ORCPT=utf-8;\x{FC}@c.test`+"\r\n")
	user := "x@y"
	wantMail := []smtp.MailOptions{{
		Size: 7, Body: smtp.Body8BitMIME, UTF8: true, Return: smtp.DSNReturnHeaders,
		EnvelopeID: "q+1=", Auth: &user,
	}}
	if diff := cmp.Diff(wantMail, m.mailOpts); diff != "" {
		t.Errorf("MAIL options (-want +got):\n%s", diff)
	}
	wantRcpt := []smtp.RcptOptions{{
		Notify:                []smtp.DSNNotify{smtp.DSNNotifyDelayed, smtp.DSNNotifyFailure},
		OriginalRecipientType: smtp.DSNAddressTypeRFC822, OriginalRecipient: "o+o@b.test",
	}, {
		OriginalRecipientType: smtp.DSNAddressTypeUTF8, OriginalRecipient: "\u00fc@c.test",
	}}
	if diff := cmp.Diff(wantRcpt, m.rcptOpts); diff != "" {
		t.Errorf("RCPT options (-want +got):\n%s", diff)
	}
	calls := []string{"MAIL a@a.test", `RCPT "quoted> x"@b.test`, "RCPT c@c.test", "RSET", "LOGOUT"}
	if diff := cmp.Diff(calls, m.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestLineEndingsOtherThanCRLFEndTheConnection(t *testing.T) {
	t.Parallel()
	for _, send := range []string{
		"NOOP\nMAIL FROM:<a@a.test>\r\n", "NO\rOP\r\nNOOP\r\n", "NOOP\r\r\nNOOP\r\n",
		"NO\x00OP\r\nNOOP\r\n", "\nNOOP\r\n", "\rNOOP\n",
	} {
		m := &mailbox{}
		out := talk(t, testConfig(), m, hello, send)
		if got, want := codes(out), "220 250 500"; got != want {
			t.Errorf("%q: got %s, want %s", send, got, want)
		}
		if diff := cmp.Diff([]string{"LOGOUT"}, m.calls); diff != "" {
			t.Errorf("%q: calls (-want +got):\n%s", send, diff)
		}
	}
}

func TestForeignProtocolsAreSentAway(t *testing.T) {
	t.Parallel()
	for _, send := range []string{
		"GET / HTTP/1.1\r\n", "post / HTTP/1.1\r\nHost: x\r\n\r\n", "Host: x\r\n",
		"CONNECT a:25 HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n",
	} {
		m := &mailbox{}
		out := talk(t, testConfig(), m, send+hello+envelope)
		if got, want := codes(out), "220 554"; got != want {
			t.Errorf("%q: got %s, want %s", send, got, want)
		}
		if len(m.calls) > 0 {
			t.Errorf("%q: the backend was called: %q", send, m.calls)
		}
	}
}

func TestCommandLineLimitIsExact(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		octets int
		want   string
	}{{2047, "220 250"}, {2048, "220 250"}, {2049, "220 500"}, {100_000, "220 500"}} {
		line := "NOOP " + strings.Repeat("x", tt.octets-7) + "\r\n"
		if got := codes(talk(t, testConfig(), &mailbox{}, line)); got != tt.want {
			t.Errorf("line of %d octets: got %s, want %s", tt.octets, got, tt.want)
		}
		endless := strings.Repeat("x", tt.octets) // and no line end: never more than the limit is held
		if got := codes(talk(t, testConfig(), &mailbox{}, endless)); tt.octets >= 2048 && got != "220 500" {
			t.Errorf("%d octets without a line end: got %s, want 220 500", tt.octets, got)
		}
	}
}

func TestDataSentBeforeItsReplyIsNeverRun(t *testing.T) {
	t.Parallel()
	m := &mailbox{}
	out := talk(t, testConfig(), m, hello, envelope+"DATA\r\nhello\r\n.\r\n"+envelope)
	if got, want := codes(out), "220 250 250 250 554"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if len(m.messages) > 0 || strings.Count(strings.Join(m.calls, " "), "MAIL") != 1 {
		t.Errorf("something was run: %q", m.calls)
	}
}

func TestMessageSizeLimitIsExact(t *testing.T) {
	t.Parallel()
	const limit = 1000
	cfg := testConfig()
	cfg.MaxMessageBytes = limit
	body := func(n int) string { // n octets that need stuffing
		return strings.Repeat(".x\r\n", n/4-1) + strings.Repeat("y", n%4+2) + "\r\n"
	}
	stuff := func(s string) string {
		return strings.TrimSuffix(strings.ReplaceAll("\r\n"+s, "\r\n.", "\r\n.."), "")[2:]
	}
	for _, tt := range []struct {
		size int
		want string
	}{
		{limit - 1, "354 250 250"}, {limit, "354 250 250"}, {limit + 1, "354 552 250"},
		{limit + 100, "354 552 250"}, {3*limit/2 + 1, "354 552 250"},
		{100 * limit, "354 552"}, // beyond what is drained: closed
	} {
		for _, chunked := range []bool{false, true} {
			m := &mailbox{}
			raw := stuff(body(tt.size)) + ".\r\n"
			chunks := []string{hello, envelope, "DATA\r\n", raw, "NOOP\r\n"}
			if chunked {
				chunks = []string{hello, envelope, "DATA\r\n"}
				for i := range raw {
					chunks = append(chunks, raw[i:i+1])
				}
				chunks = append(chunks, "NOOP\r\n")
			}
			out := talk(t, cfg, m, chunks...)
			if got := strings.TrimPrefix(codes(out), "220 250 250 250 "); got != tt.want {
				t.Errorf("size %d: got %s, want %s", tt.size, got, tt.want)
			}
			if took := tt.size <= limit; took != (len(m.messages) == 1) || took && m.messages[0] != body(tt.size) {
				t.Errorf("size %d: %d messages", tt.size, len(m.messages))
			}
		}
	}
}

func TestLongTextLineIsRefused(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{997: "250", 998: "250", 999: "554", 5000: "554"} {
		for _, dot := range []string{"", "."} {
			line := dot + strings.Repeat("x", n-len(dot))
			out := talk(t, testConfig(), &mailbox{}, hello, envelope, "DATA\r\n", dot+line+"\r\n.\r\n")
			if got := lastReply(out)[:3]; got != want {
				t.Errorf("DATA with a line of %d: got %s, want %s", n, got, want)
			}
			out = talk(t, testConfig(), &mailbox{}, hello, envelope,
				fmt.Sprintf("BDAT %d LAST\r\n%s\r\n", len(line)+2, line))
			if got := lastReply(out)[:3]; got != want {
				t.Errorf("BDAT with a line of %d: got %s, want %s", n, got, want)
			}
		}
	}
	cfg := testConfig()
	cfg.MaxTextLine = 5000
	m := &mailbox{}
	talk(t, cfg, m, hello, envelope, "DATA\r\n", strings.Repeat("x", 5000)+"\r\n.\r\n")
	if len(m.messages) != 1 {
		t.Errorf("a line of 5000 was refused although allowed")
	}
}

func TestMessageCutShortIsNeverAcknowledged(t *testing.T) {
	t.Parallel()
	const body = "Subject: x\r\n\r\nhello\r\n.\r\n"
	for cut := range len(body) {
		for _, end := range []error{nil, timeoutError{}, errors.New("reset by peer")} {
			m := &mailbox{}
			nc := &scriptConn{end: end}
			out := talkTo(New(testConfig(), m, Deps{}), nc, hello, envelope, "DATA\r\n", body[:cut])
			if got, want := codes(out), "220 250 250 250 354 421"; got != want {
				t.Errorf("cut at %d by %v: got %s, want %s", cut, end, got, want)
			}
			if len(m.messages) > 0 || !nc.closed {
				t.Errorf("cut at %d by %v: %d messages, closed %v", cut, end, len(m.messages), nc.closed)
			}
		}
	}
}

// A stalled message that goes on after the time-out must not be run: whatever
// the client says next, the connection is gone.
func TestNothingIsReadAfterATimeoutWithinAMessage(t *testing.T) {
	t.Parallel()
	m := &mailbox{}
	nc := &stallConn{after: 3}
	talkTo2(New(testConfig(), m, Deps{}), nc, hello, envelope+"DATA\r\n", "half a mess", envelope+"DATA\r\n", "x\r\n.\r\n")
	if len(m.messages) > 0 || strings.Count(strings.Join(m.calls, " "), "MAIL") != 1 {
		t.Errorf("something was run: %q", m.calls)
	}
	unread := 0
	for _, c := range nc.chunks {
		unread += min(1, len(c))
	}
	if !nc.closed || unread != 2 {
		t.Errorf("closed %v with %d chunks unread, want true and 2", nc.closed, unread)
	}
}

// stallConn times out once, before the chunk with number after.
type stallConn struct {
	scriptConn
	after, reads int
}

func (c *stallConn) Read(p []byte) (int, error) {
	if c.reads == c.after {
		c.reads++
		return 0, timeoutError{}
	}
	c.reads++
	return c.scriptConn.Read(p)
}

func talkTo2(s *Server, nc *stallConn, chunks ...string) {
	for _, c := range chunks {
		nc.chunks = append(nc.chunks, []byte(c))
	}
	newConn(s, nc).serve()
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

func TestBackendErrorsShowNothingInternal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("pebble: /var/lib/x: disk gone"), "451 4.3.0 Temporary failure, try again later"},
		{&smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "No"}, "550 5.7.1 No"},
		{&smtp.SMTPError{Code: 250, Message: "not a refusal"}, "451 4.3.0 Temporary failure, try again later"},
		{&smtp.SMTPError{Code: 550, Message: "no code"}, "550 5.0.0 no code"},
		{&smtp.SMTPError{Code: 450, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "class differs"}, "450 4.0.0 class differs"},
		{&smtp.SMTPError{Code: 550, Message: "a\r\x00\x1bb\u00fc\tc"}, "550 5.0.0 a ??b?? c"},
		{fmt.Errorf("wrapped: %w", &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 2, 2}, Message: "full"}), "452 4.2.2 full"},
		{(*smtp.SMTPError)(nil), "451 4.3.0 Temporary failure, try again later"},
	} {
		for _, where := range []string{"MAIL", "RCPT", "DATA"} {
			m := &mailbox{}
			switch where {
			case "MAIL":
				m.mailErr = tt.err
			case "RCPT":
				m.rcptErr = tt.err
			case "DATA":
				m.dataErr = tt.err
			}
			chunks := []string{hello, "MAIL FROM:<>\r\n", "RCPT TO:<b@b.test>\r\n", "DATA\r\n", "x\r\n.\r\n"}
			out := talk(t, testConfig(), m, chunks[:map[string]int{"MAIL": 2, "RCPT": 3, "DATA": 5}[where]]...)
			if got := lastReply(out); got != tt.want {
				t.Errorf("%s: got %q, want %q", where, got, tt.want)
			}
		}
	}
}

func TestRepliesOfManyLinesAreWellFormed(t *testing.T) {
	t.Parallel()
	m := &mailbox{mailErr: &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "one\ntwo\r\nthree"}}
	out := talk(t, testConfig(), m, hello, "MAIL FROM:<>\r\n")
	want := "550-5.7.1 one\r\n550-5.7.1 two \r\n550 5.7.1 three\r\n"
	if !strings.HasSuffix(out, want) {
		t.Errorf("got %q, want it to end in %q", out, want)
	}
	m.mailErr = &smtp.SMTPError{Code: 550, Message: strings.Repeat(strings.Repeat("x", 10_000)+"\n", 50)}
	out = talk(t, testConfig(), m, hello, "MAIL FROM:<>\r\n")
	for line := range strings.Lines(out) {
		if len(line) > 512 {
			t.Errorf("reply line of %d octets", len(line))
		}
	}
	if n := strings.Count(out, "550"); n != maxReplyLines {
		t.Errorf("%d reply lines, want %d", n, maxReplyLines)
	}
}

func TestCountersEndAConnection(t *testing.T) {
	t.Parallel()
	refusing := func() *mailbox { return &mailbox{rcptErr: smtp.ErrAuthRequired} }
	for _, tt := range []struct {
		name, line string
		m          *mailbox
		replies    int
	}{
		{"errors", "WHAT\r\n", &mailbox{}, 20},
		{"NOOP", "NOOP\r\n", &mailbox{}, 100},
		{"RSET", "RSET\r\n", &mailbox{}, 100},
		{"EHLO", "EHLO x\r\n", &mailbox{}, 100},
		{"MAIL and RSET", "MAIL FROM:<>\r\nRSET\r\n", &mailbox{}, 200},
		{"refused recipients", "RCPT TO:<b@b.test>\r\n", refusing(), 200},
		{"BDAT out of order", "BDAT 1\r\nx", &mailbox{}, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			out := talk(t, testConfig(), tt.m, hello, "MAIL FROM:<>\r\n", strings.Repeat(tt.line, 10_000))
			got := codes(out)
			if !strings.HasSuffix(got, "421") {
				t.Errorf("not closed: last reply %q", lastReply(out))
			}
			if n := len(strings.Fields(got)) - 3; n > tt.replies {
				t.Errorf("%d replies, want at most %d", n, tt.replies)
			}
		})
	}
}

func TestCountersStartAgainAfterAMessage(t *testing.T) {
	t.Parallel()
	m := &mailbox{}
	chunks := []string{hello}
	for range 30 {
		chunks = append(chunks, "WHAT\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\n"+envelope+"DATA\r\n", "x\r\n.\r\n")
	}
	out := talk(t, testConfig(), m, chunks...)
	if len(m.messages) != 30 {
		t.Errorf("%d messages, want 30; last reply %q", len(m.messages), lastReply(out))
	}
}

func TestRecipientsBeyondTheLimitAreDeferredAndTheOthersServed(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.MaxRecipients = 3
	m := &mailbox{}
	out := talk(t, cfg, m, hello, "MAIL FROM:<>\r\n"+strings.Repeat("RCPT TO:<b@b.test>\r\n", 5)+"DATA\r\n", "x\r\n.\r\n")
	if got, want := codes(out), "220 250 250 250 250 250 452 452 354 250"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	out = talk(t, cfg, m, hello, "MAIL FROM:<>\r\n"+strings.Repeat("RCPT TO:<b@b.test>\r\n", 50_000))
	if n := strings.Count(codes(out), "452"); n != 150 || !strings.HasSuffix(codes(out), "421") {
		t.Errorf("%d recipients deferred, last reply %q; want 150 and 421", n, lastReply(out))
	}
}

func TestMessagesPerConnectionAreLimited(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.MaxMessagesPerConn = 2
	m := &mailbox{}
	one := []string{envelope + "DATA\r\n", "x\r\n.\r\n"}
	out := talk(t, cfg, m, hello, one[0], one[1], one[0], one[1], envelope)
	if got, want := codes(out), "220 250 250 250 354 250 250 250 354 250 421"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPressureDefersMailAndMessage(t *testing.T) {
	t.Parallel()
	full := &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "Disk full"}
	var when int
	calls := 0
	deps := Deps{Pressure: func() *smtp.SMTPError {
		if calls++; calls == when {
			return full
		}
		return nil
	}}
	for w, want := range map[int]string{1: "220 250 452 503 503", 2: "220 250 250 250 452"} {
		when, calls = w, 0
		m := &mailbox{}
		out := talkTo(New(testConfig(), m, deps), &scriptConn{}, hello, envelope, "DATA\r\n")
		if got := codes(out); got != want {
			t.Errorf("pressure at call %d: got %s, want %s", w, got, want)
		}
		if len(m.messages) > 0 {
			t.Errorf("pressure at call %d: message taken", w)
		}
	}
}

func TestMessageBeyondTheBufferBudgetIsDeferred(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.MaxBufferedBytes = 256 << 10
	body := strings.Repeat("0123456789\r\n", 40_000)
	for _, data := range [][]string{
		{"DATA\r\n", body + ".\r\n"},
		{fmt.Sprintf("BDAT %d LAST\r\n%s", len(body), body)},
	} {
		m := &mailbox{}
		s := New(cfg, m, Deps{})
		out := talkTo(s, &scriptConn{}, append(append([]string{hello, envelope}, data...), "NOOP\r\n")...)
		if got := codes(out); !strings.HasSuffix(got, "452 250") {
			t.Errorf("got %s, want it to end in 452 250", got)
		}
		if used := s.bufs.used.Load(); used != 0 || len(m.messages) > 0 {
			t.Errorf("%d octets still counted, %d messages", used, len(m.messages))
		}
	}
}

// panicky is a backend with a bug in one method.
type panicky struct {
	*mailSession
	in string
}

func (p panicky) Mail(from string, o *smtp.MailOptions) error {
	if p.in == "MAIL" {
		panic("bug")
	}
	return p.mailSession.Mail(from, o)
}

func (p panicky) DataBytes(b []byte, plain bool) (string, error) {
	if p.in == "DATA" {
		panic("bug")
	}
	return p.mailSession.DataBytes(b, plain)
}

func (p panicky) Reset() {
	if p.in == "RSET" {
		panic("bug")
	}
}

func (p panicky) Logout() error {
	if p.in == "LOGOUT" {
		panic("bug")
	}
	return nil
}

func TestPanicCostsOneConnection(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"MAIL":   "220 250 421",
		"DATA":   "220 250 250 250 354 421",
		"RSET":   "220 250 250 250 354 250 421",
		"LOGOUT": "220 250 250 250 354 250 221",
	} {
		reg := prometheus.NewRegistry()
		s := New(testConfig(), BackendFunc(func(*Conn) (smtp.Session, error) {
			return panicky{&mailSession{&mailbox{}}, in}, nil
		}), Deps{Metrics: NewMetrics(reg)})
		nc := &scriptConn{}
		out := talkTo(s, nc, hello, envelope+"DATA\r\n", "x\r\n.\r\n", "QUIT\r\n")
		if got := codes(out); got != want || !nc.closed {
			t.Errorf("panic in %s: got %s, closed %v; want %s", in, got, nc.closed, want)
		}
		if n := testutil.ToFloat64(s.m.refusals[refusedPanic]); n != 1 {
			t.Errorf("panic in %s: counted %v times", in, n)
		}
		for i := range s.m.sessions {
			if n := s.m.sessions[i].Load(); n != 0 {
				t.Errorf("panic in %s: %d sessions left in state %s", in, n, phaseNames[i])
			}
		}
	}
}

func TestBackendMayRefuseTheGreeting(t *testing.T) {
	t.Parallel()
	s := New(testConfig(), BackendFunc(func(c *Conn) (smtp.Session, error) {
		if c.Hostname() != "client.test" {
			t.Errorf("hostname %q", c.Hostname())
		}
		return nil, &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "Not you"}
	}), Deps{})
	out := talkTo(s, &scriptConn{}, hello, envelope)
	if got, want := codes(out), "220 550 503 503"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestConfigReportsEveryProblemAtOnce(t *testing.T) {
	t.Parallel()
	err := Config{Hostname: "a b", ImplicitTLS: true, MaxLineLength: 100, MaxErrors: -1, IdleTimeout: -1}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"hostname", "implicit TLS", "line length", "max errors", "idle timeout"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not mentioned in %q", want, err)
		}
	}
	if err := testConfig().Validate(); err != nil {
		t.Errorf("default config: %v", err)
	}
}
