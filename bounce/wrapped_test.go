package bounce

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

// envelopes are the forms in which systems hand on the words of another server:
// a mail with REPLY where the words stand.
var envelopes = map[string]string{
	"postfix": `@from MAILER-DAEMON@mx.example.net (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
@report
@text
This is the mail system at host mx.example.net.

I'm sorry to have to inform you that your message could not
be delivered to one or more recipients. It's attached below.

<rcpt@example.org>: host mx.example.org[198.51.100.20] said: REPLY (in reply to RCPT TO command)
@status
Reporting-MTA: dns; mx.example.net

Final-Recipient: rfc822; rcpt@example.org
Action: failed
Status: 5.0.0
Remote-MTA: dns; mx.example.org
Diagnostic-Code: smtp; REPLY
@message rcpt@example.org
`,
	"postfix text": `@from MAILER-DAEMON@mx.example.net (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender

I'm sorry to have to inform you that your message could not
be delivered to one or more recipients. It's attached below.

<rcpt@example.org>: host mx.example.org[198.51.100.20] said: REPLY (in reply to RCPT TO command)

@orig rcpt@example.org
`,
	"exim": `Return-path: <>
X-Failed-Recipients: rcpt@example.org
Auto-Submitted: auto-replied
From: Mail Delivery System <Mailer-Daemon@mx.example.net>
To: news@sender.example.com
Subject: Mail delivery failed: returning message to sender

This message was created automatically by mail delivery software.

A message that you sent could not be delivered to one or more of its
recipients. This is a permanent error. The following address(es) failed:

  rcpt@example.org
    host mx.antispam.example [198.51.100.20]
    SMTP error from remote mail server after RCPT TO:<rcpt@example.org>:
    REPLY

------ This is a copy of the message, including all the headers. ------

@orig rcpt@example.org
`,
	"qmail": `@from MAILER-DAEMON@mx.example.net
Subject: failure notice

Hi. This is the qmail-send program at mx.example.net.
I'm afraid I wasn't able to deliver your message to the following addresses.
This is a permanent error; I've given up. Sorry it didn't work out.

<rcpt@example.org>:
198.51.100.20 does not like recipient.
Remote host said: REPLY
Giving up on 198.51.100.20.

--- Below this line is a copy of the message.

@orig rcpt@example.org
`,
	"sendmail": `@from Mail Delivery Subsystem <MAILER-DAEMON@mx.example.net>
Subject: Returned mail: see transcript for details
@report
@text
The original message was received at Tue, 3 Mar 2026 10:05:00 GMT
from app.sender.example.com [192.0.2.10]

   ----- The following addresses had permanent fatal errors -----
<rcpt@example.org>
    (reason: REPLY)

   ----- Transcript of session follows -----
... while talking to mx.example.org.:
>>> RCPT To:<rcpt@example.org>
<<< REPLY
@status
Reporting-MTA: dns; mx.example.net
Arrival-Date: Tue, 3 Mar 2026 10:05:00 GMT

Final-Recipient: RFC822; rcpt@example.org
Action: failed
Status: 5.0.0
Remote-MTA: DNS; mx.example.org
Diagnostic-Code: SMTP; REPLY
@message rcpt@example.org
`,
	"old sendmail": `@from Mail Delivery Subsystem <MAILER-DAEMON@old.example.net>
Subject: Returned mail: Service unavailable

   ----- Transcript of session follows -----
While talking to mx.example.org:
>>> RCPT To:<rcpt@example.org>
<<< REPLY

   ----- Unsent message follows -----
@orig rcpt@example.org
`,
	"courier": `@from "Courier mail server at mx.example.net" <postmaster@mx.example.net>
Subject: NOTICE: mail delivery status.

This is a delivery status notification from mx.example.net,
running the Courier mail server, version 1.0.

                           UNDELIVERABLE MAIL

Your message to the following recipients cannot be delivered:

<rcpt@example.org>:
    mx.example.org [198.51.100.20]:
>>> RCPT TO:<rcpt@example.org>
<<< REPLY
`,
	"gmail of old": `@from Mail Delivery Subsystem <mailer-daemon@googlemail.com>
Subject: Delivery Status Notification (Failure)

Delivery to the following recipient failed permanently:

     rcpt@example.org

Technical details of permanent failure:
Google tried to deliver your message, but it was rejected by the server for the recipient domain example.org by mx.example.org. [198.51.100.20].

The error that the other server returned was:
REPLY

----- Original message -----

@orig rcpt@example.org
`,
	"exchange": `@from postmaster@corp.example.net
Subject: Undeliverable: Your weekly summary

Delivery has failed to these recipients or groups:

rcpt@example.org
There was a problem delivering your message.

Diagnostic information for administrators:

Generating server: corp.example.net

rcpt@example.org
mx.example.org
Remote Server returned 'REPLY'

Original message headers:

@header rcpt@example.org
`,
	"status alone": `@from postmaster@gw.example.net
Subject: Delivery report
MIME-Version: 1.0
Content-Type: message/delivery-status

Reporting-MTA: dns; gw.example.net

Final-Recipient: rfc822; rcpt@example.org
Action: failed
Status: 5.0.0
Diagnostic-Code: smtp; REPLY
`,
	"form": `@from Mail System <postmaster@gw.example.net>
Subject: Your mail could not be delivered

Recipient: rcpt@example.org
Reason:    REPLY
`,
	"html": `@from Mail System <postmaster@gw.example.net>
Subject: Undeliverable mail
Content-Type: text/html; charset=utf-8

<html><body><p>Your message to <b>rcpt@example.org</b> could not be delivered.</p><p>The server answered:</p><pre>REPLY</pre></body></html>
`,
	"german": `@from Mailsystem <mailer-daemon@firma.example>
Subject: Unzustellbare Nachricht

Ihre Nachricht an rcpt@example.org konnte nicht zugestellt werden.

Antwort des Servers: REPLY

@header rcpt@example.org
`,
}

// leading is an address right behind the codes of a reply.
var leading = regexp.MustCompile(`^(\d{3} (?:\d\.\d\.\d+ )?<?)[a-z]+@[a-z.]+[a-z]`)

// TestEveryReplyInEveryReport puts each reply of testdata/replies.txt into each
// form of report: the recipient must be found, and what becomes of it must not
// depend on who hands on the words. Replies without a code are words of the
// reporting system itself and are left out.
func TestEveryReplyInEveryReport(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/replies.txt")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Classifier: shipped(t)}
	total, kinds, found, missed, held := 0, 0, 0, 0, 0
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		_, rest, _ := strings.Cut(line, " ")
		fate, reply, _ := strings.Cut(rest, " ")
		if r, _ := parseExample(reply); r.Code == 0 {
			continue
		}
		// Where the server leads with an address, it means the one it was given.
		reply = leading.ReplaceAllString(strings.ReplaceAll(reply, "<a@example.org>", "<rcpt@example.org>"), "${1}rcpt@example.org")
		for name, form := range envelopes {
			words := reply
			if name == "html" {
				words = strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(reply)
			}
			total++
			x, err := parseFixture(name, "= bounce\n"+strings.ReplaceAll(form, "REPLY", words))
			if err != nil {
				t.Fatal(err)
			}
			r := Parse(x.raw, o)
			if r.Kind == KindBounce || r.Kind == KindDelay {
				kinds++
			}
			var got *Recipient
			for i := range r.Recipients {
				if r.Recipients[i].Address == "rcpt@example.org" {
					got = &r.Recipients[i]
				}
			}
			if got == nil {
				t.Logf("%s: %q: recipient not found: %s", name, reply, r.JSON(""))
				continue
			}
			found++
			gone := got.Permanent && (got.Category == message.BadMailbox || got.Category == message.BadDomain)
			if fate == "gone" && !gone {
				missed++
				t.Logf("%s: %q is not gone: %s by %q: %q", name, reply, got.Category, got.Rule, got.Diagnostic)
			}
			// Who gave up after days of "user unknown" with a 4xx code need not try
			// again, but has no proof.
			if fate == "stays" && (gone && got.Code >= 500 || got.Suppress) {
				held++
				t.Logf("%s: %q is held for gone: %s by %q: %q", name, reply, got.Category, got.Rule, got.Diagnostic)
			}
		}
	}
	summary := fmt.Sprintf("%d reports: kind %d, recipient %d, %d missed, %d wrongly gone", total, kinds, found, missed, held)
	t.Log(summary)
	if kinds < total || found < total || missed > 0 || held > 0 {
		t.Error(summary)
	}
}
