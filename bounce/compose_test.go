package bounce

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/message"
)

var composeTime = time.Date(2026, 3, 3, 10, 5, 0, 0, time.UTC)

// failedDSN is a report about one failed recipient.
func failedDSN() DSN {
	return DSN{
		Hostname: "mta1.example.com",
		Message: &message.Message{
			From: message.MustAddress("news@sender.example.com"), EnvID: "QQ314159", Ret: "FULL",
			RFCMessageID: "m.0001@sender.example.com", Accepted: composeTime.Add(-time.Hour),
		},
		Recipients: []DSNRecipient{{
			Recipient: message.Recipient{Address: message.MustAddress("alice@example.org"), ORcpt: "rfc822;alice+tag@example.org"},
			Action:    ActionFailed,
			Reply: &message.Reply{Code: 550, Enhanced: message.Enhanced{5, 1, 1}, Text: "<alice@example.org>: Recipient address rejected:\nUser unknown in local recipient table",
				Stage: message.StageRcpt, RemoteHost: "mx.example.org"},
			LastAttempt: composeTime,
		}},
		OriginalHeader: []byte("From: news@sender.example.com\r\nTo: alice@example.org\r\nSubject: Your weekly summary\r\nMessage-ID: <m.0001@sender.example.com>\r\n"),
		OriginalBody:   []byte("Hello.\r\n"),
		Now:            composeTime,
		Rand:           strings.NewReader(strings.Repeat("r", 64)),
	}
}

func compose(t *testing.T, d DSN) []byte {
	t.Helper()
	out, err := Compose(d)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range bytes.SplitAfter(out, []byte("\n")) {
		if len(line) > 0 && !bytes.HasSuffix(line, []byte("\r\n")) {
			t.Fatalf("line %d does not end in CRLF: %q", i+1, line)
		}
		if len(line) > 1000 {
			t.Fatalf("line %d is %d bytes long", i+1, len(line))
		}
	}
	return out
}

// readParts reads out with the standard library, as an independent witness.
func readParts(t *testing.T, out []byte) (mail.Header, []string, []string) {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("content type %q %v, error %v", kind, params, err)
	}
	var kinds, bodies []string
	r := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := r.NextPart()
		if err == io.EOF {
			return m.Header, kinds, bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, p.Header.Get("Content-Type"))
		bodies = append(bodies, string(b))
	}
}

func TestComposedReportIsReadBack(t *testing.T) {
	t.Parallel()
	out := compose(t, failedDSN())
	r := Parse(out, Options{Classifier: shipped(t)})
	want := []Recipient{{
		Address: "alice@example.org", Original: "alice+tag@example.org", Action: ActionFailed, Status: "5.1.1", Code: 550,
		Category: message.BadMailbox, Permanent: true, Suppress: true, RemoteMTA: "mx.example.org",
		Diagnostic: "550 5.1.1 <alice@example.org>: Recipient address rejected: User unknown in local recipient table",
		Rule:       "no-such-user", Confidence: 90,
	}}
	if diff := cmp.Diff(want, r.Recipients); diff != "" {
		t.Errorf("recipients (-want +got):\n%s", diff)
	}
	if r.Kind != KindBounce || r.MessageID != "m.0001@sender.example.com" || r.EnvelopeID != "QQ314159" || r.ReportingMTA != "mta1.example.com" {
		t.Errorf("got kind %s, message id %q, envelope id %q, reporting MTA %q", r.Kind, r.MessageID, r.EnvelopeID, r.ReportingMTA)
	}
}

func TestComposedReportIsPlainMIME(t *testing.T) {
	t.Parallel()
	h, kinds, bodies := readParts(t, compose(t, failedDSN()))
	if got := h.Get("Auto-Submitted"); got != "auto-replied" {
		t.Errorf("Auto-Submitted is %q", got)
	}
	if got, want := h.Get("To"), "<news@sender.example.com>"; got != want {
		t.Errorf("To is %q, want %q", got, want)
	}
	if _, err := h.Date(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"text/plain; charset=us-ascii", "message/delivery-status", "message/rfc822"}, kinds); diff != "" {
		t.Fatalf("parts (-want +got):\n%s", diff)
	}
	if !strings.Contains(bodies[0], "<alice@example.org>") || !strings.Contains(bodies[0], "unknown in local recipient table") {
		t.Errorf("the part for people does not say who and why:\n%s", bodies[0])
	}
	if !strings.HasSuffix(bodies[2], "\r\n\r\nHello.\r\n") {
		t.Errorf("the message came back as %q", bodies[2])
	}
}

func TestHeaderOnlyIsReturnedUnlessFullWasAskedAndFailed(t *testing.T) {
	t.Parallel()
	headers := failedDSN()
	headers.Message.Ret = "HDRS"
	delayed := failedDSN()
	delayed.Recipients[0].Action = ActionDelayed
	delayed.Recipients[0].WillRetryUntil = composeTime.Add(24 * time.Hour)
	for name, d := range map[string]DSN{"headers asked for": headers, "delayed": delayed} {
		_, kinds, bodies := readParts(t, compose(t, d))
		if kinds[2] != "text/rfc822-headers" || strings.Contains(bodies[2], "Hello") {
			t.Errorf("%s: returned %s %q", name, kinds[2], bodies[2])
		}
	}
}

func TestEveryActionIsReadBack(t *testing.T) {
	t.Parallel()
	for action, kind := range map[Action]Kind{
		ActionFailed: KindBounce, ActionDelayed: KindDelay, ActionDelivered: KindDelivered, ActionRelayed: KindDelivered, ActionExpanded: KindDelivered,
	} {
		d := failedDSN()
		d.Recipients[0].Action = action
		if action != ActionFailed {
			d.Recipients[0].Reply = &message.Reply{Code: 250, Enhanced: message.Enhanced{2, 0, 0}, Text: "Ok", RemoteHost: "mx.example.org"}
		}
		if action == ActionDelayed {
			d.Recipients[0].Reply = &message.Reply{Code: 451, Enhanced: message.Enhanced{4, 7, 1}, Text: "Greylisted", RemoteHost: "mx.example.org"}
		}
		r := Parse(compose(t, d), Options{Classifier: shipped(t)})
		if r.Kind != kind || len(r.Recipients) != 1 || r.Recipients[0].Action != action {
			t.Errorf("%s was read back as %s: %s", action, r.Kind, r.JSON(""))
		}
	}
}

func TestInternationalAddressesUseTheGlobalTypes(t *testing.T) {
	t.Parallel()
	d := failedDSN()
	d.Recipients[0].Recipient.Address = message.MustAddress("дмитрий@example.org")
	d.Recipients[0].Recipient.ORcpt = ""
	d.OriginalHeader = []byte("From: news@sender.example.com\r\nSubject: Привет\r\nMessage-ID: <m.0001@sender.example.com>\r\n")
	out := compose(t, d)
	h, kinds, _ := readParts(t, out)
	if h.Get("Content-Transfer-Encoding") != "8bit" {
		t.Error("bytes above 0x7F are not declared")
	}
	want := []string{"text/plain; charset=utf-8", "message/global-delivery-status; charset=utf-8", "message/global"}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
	r := Parse(out, Options{Classifier: shipped(t)})
	if len(r.Recipients) != 1 || r.Recipients[0].Address != "дмитрий@example.org" {
		t.Errorf("read back as %s", r.JSON(""))
	}
}

func TestHostileRepliesCannotBreakTheReport(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"\r\n\r\n--=_tw_72727272727272727272727272727272--\r\nBcc: x@y",
		"a\x00b\x1b[31m\x7f", strings.Repeat("x", 5000), strings.Repeat("word ", 1000), "grüße \xff\xfe", strings.Repeat("é", 3000),
	} {
		d := failedDSN()
		d.Recipients[0].Reply.Text = text
		d.Recipients[0].RemoteMTA = "mx.example.org"
		_, kinds, _ := readParts(t, compose(t, d))
		if len(kinds) != 3 {
			t.Errorf("%.30q: %d parts", text, len(kinds))
		}
		for _, c := range compose(t, func() DSN { d.Rand = strings.NewReader(strings.Repeat("r", 64)); return d }()) {
			if c >= 0x80 || c == 0 {
				t.Fatalf("%.30q: byte %#x in a report declared 7bit", text, c)
			}
		}
	}
}

func TestReportWithoutSenderOrRecipientsIsRefused(t *testing.T) {
	t.Parallel()
	null := failedDSN()
	null.Message.From = message.Address{}
	nobody := failedDSN()
	nobody.Recipients = nil
	dry := failedDSN()
	dry.Rand = strings.NewReader("")
	for name, d := range map[string]DSN{"null sender": null, "nobody": nobody, "no randomness": dry} {
		if out, err := Compose(d); err == nil {
			t.Errorf("%s: no error, %d bytes", name, len(out))
		}
	}
}
