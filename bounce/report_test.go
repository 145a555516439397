package bounce

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTokensComeFromEverywhereTheyMayStand(t *testing.T) {
	t.Parallel()
	r := Parse([]byte(`Return-Path: <>
Delivered-To: b+token@bounces.example.com
From: MAILER-DAEMON@mx.example.org
To: <b+token@bounces.example.com>
Subject: Undelivered
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.org
Original-Envelope-Id: env1

Final-Recipient: rfc822; alice@example.org
Action: failed
Status: 5.1.1

--b
Content-Type: text/rfc822-headers

Return-Path: <b+token@bounces.example.com>
Message-ID: <token@example.com>
Feedback-ID: c:t:m:sender
X-Report-Token: sealed
 and folded

--b--
`), Options{})
	want := Tokens{
		To:         []string{"b+token@bounces.example.com", "b+token@bounces.example.com"},
		ReturnPath: []string{"b+token@bounces.example.com"},
		MessageID:  "token@example.com",
		FeedbackID: []string{"c:t:m:sender"},
		EnvelopeID: "env1",
		Extra:      Header{{"X-Report-Token", "sealed and folded"}},
	}
	if diff := cmp.Diff(want, r.Tokens()); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
}

func TestJSONHasTheDocumentedForm(t *testing.T) {
	t.Parallel()
	r := Parse([]byte("From: MAILER-DAEMON@mx.example.org\nReturn-Path: <>\nSubject: failure notice\n\n<alice@example.org>:\n550 5.1.1 no such user\n"), Options{Classifier: shipped(t)})
	want := `{"file":"a.eml","kind":"bounce","feedback_type":"","recipients":[{"address":"alice@example.org","status":"5.1.1","code":550,"category":"bad-mailbox","permanent":true,"diagnostic":"550 5.1.1 no such user"}],"message_id":""}`
	if got := string(r.JSON("a.eml")); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := string((&Report{}).JSON("b")), `{"file":"b","kind":"none","feedback_type":"","recipients":[],"message_id":""}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestFeedbackFieldsAreKept(t *testing.T) {
	t.Parallel()
	r := Parse([]byte(`From: <feedback@arf.example>
Subject: complaint
Content-Type: multipart/report; report-type=feedback-report; boundary=b

--b
Content-Type: message/feedback-report

Feedback-Type: auth-failure
User-Agent: Test/1.0
Version: 1
Source-IP: 2001:db8::1
Original-Mail-From: <b+token@bounces.example.com>
Original-Rcpt-To: <alice@example.org>
Arrival-Date: Tue, 3 Mar 2026 10:05:00 +0000
Authentication-Results: mx.example; dkim=fail
Reported-Domain: example.com
Auth-Failure: dkim
Delivery-Result: spam

--b--
`), Options{})
	if r.Kind != KindComplaint || r.FeedbackType != "auth-failure" || r.Feedback == nil {
		t.Fatalf("got %s", r.JSON(""))
	}
	f := r.Feedback
	got := []string{f.UserAgent, f.SourceIP.String(), f.MailFrom, f.OriginalRcptTo[0], f.ArrivalDate, f.AuthResults[0], f.ReportedDomains[0], f.AuthFailure, f.DeliveryResult, f.Reporter}
	want := []string{"Test/1.0", "2001:db8::1", "b+token@bounces.example.com", "<alice@example.org>", "Tue, 3 Mar 2026 10:05:00 +0000", "mx.example; dkim=fail", "example.com", "dkim", "spam", "feedback@arf.example"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

func TestXARFIsAComplaint(t *testing.T) {
	t.Parallel()
	r := Parse([]byte(`From: <abuse@isp.example>
Subject: abuse report
X-XARF: YES
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: text/plain

See below.

--b
Content-Type: application/json; name=xarf.json

{"Version":"2","ReporterInfo":{"ReporterOrg":"ISP"},"Report":{"ReportClass":"Activity","ReportType":"Spam","SourceIp":"192.0.2.10","SmtpMailFromAddress":"b+token@bounces.example.com","SmtpRcptToAddress":"alice@example.org"}}

--b--
`), Options{})
	if r.Kind != KindComplaint || r.Format != "xarf" || len(r.Recipients) != 1 || r.Recipients[0].Address != "alice@example.org" ||
		r.Feedback.SourceIP.String() != "192.0.2.10" || r.Feedback.MailFrom != "b+token@bounces.example.com" {
		t.Errorf("got %s %+v", r.JSON(""), r.Feedback)
	}
}

func TestParseKeepsNoReferenceToItsInput(t *testing.T) {
	t.Parallel()
	raw := []byte("From: MAILER-DAEMON@mx.example.org\nReturn-Path: <>\nSubject: failure notice\n\n<alice@example.org>:\n550 5.1.1 no such user\n")
	r := Parse(raw, Options{Classifier: shipped(t)})
	before := string(r.JSON(""))
	for i := range raw {
		raw[i] = 'x'
	}
	if after := string(r.JSON("")); after != before || r.Header.Get("Subject") != "failure notice" {
		t.Errorf("the report changed with the buffer: %s", after)
	}
}
