package inject

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tradewind-mta/tradewind/message"
)

// memory is an Accepter that keeps what it is given.
type memory struct {
	mu   sync.Mutex
	subs []*Submission
	err  error
}

func (m *memory) Accept(_ context.Context, subs []*Submission) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.subs = append(m.subs, subs...)
	}
	return m.err
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func newDoor(t testing.TB, cfg Config, deps Deps) (*Injector, *memory) {
	t.Helper()
	if cfg.Hostname == "" {
		cfg.Hostname = "mta1.example.com"
	}
	deps.IDs = &message.IDSource{}
	if deps.Now == nil {
		deps.Now = func() time.Time { return noon }
	}
	q := &memory{}
	i, err := New(cfg, q, deps)
	if err != nil {
		t.Fatal(err)
	}
	return i, q
}

func rcpts(addrs ...string) []message.Recipient {
	var out []message.Recipient
	for _, a := range addrs {
		out = append(out, message.Recipient{Address: message.MustAddress(a)})
	}
	return out
}

func envelope(to ...string) Envelope {
	return Envelope{
		Tenant: "acme", From: message.MustAddress("news@example.com"), Recipients: rcpts(to...),
		Door: DoorSMTP, Client: "192.0.2.7", HELO: "app.example.com", Protocol: "ESMTPSA",
	}
}

// crlf turns a readable literal into wire lines.
func crlf(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }

const plain = "From: News <news@example.com>\nTo: bob@example.net\nSubject: hello\nDate: Sun, 22 Nov 2026 11:00:00 +0000\nMessage-ID: <1@example.com>\n\nHello Bob\n"

func TestAcceptedMessageKeepsItsBytesBehindOurTraceField(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{}, Deps{})
	res, err := i.Raw(t.Context(), envelope("bob@example.net"), crlf(plain))
	if err != nil {
		t.Fatal(err)
	}
	s := q.subs[0]
	want := "Received: from app.example.com ([192.0.2.7])\n\tby mta1.example.com with ESMTPSA id " + res.ID.String() +
		";\n\tSun, 22 Nov 2026 12:00:00 +0000\n" + plain
	if diff := cmp.Diff(want, strings.ReplaceAll(string(s.Body), "\r\n", "\n")); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	wantMessage := &message.Message{
		ID: res.ID, Tenant: "acme", From: message.MustAddress("news@example.com"), RFCMessageID: "1@example.com",
		HeaderFrom: "example.com", Accepted: noon, Expires: noon.Add(72 * time.Hour), Size: len(s.Body),
		Origin: "smtp", Client: "192.0.2.7", RecipientCount: 1,
	}
	if diff := cmp.Diff(wantMessage, s.Message, cmp.Comparer(func(a, b message.Address) bool { return a == b })); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	if got, want := res.Recipients[0].ID, res.ID.String()+".0"; got != want {
		t.Errorf("recipient id %q, want %q", got, want)
	}
}

func TestPlainMessagesStayPlainUnlessWeMakeThemOthers(t *testing.T) {
	t.Parallel()
	link := func(_ *message.Message, _ *message.Recipient, _ Track, body []byte) ([]byte, error) { return body, nil }
	for _, tt := range []struct {
		name string
		cfg  Config
		deps Deps
		env  func(*Envelope)
		want bool
	}{
		{"plain", Config{}, Deps{}, func(*Envelope) {}, true},
		{"nothing known", Config{}, Deps{}, func(e *Envelope) { e.Plain = false }, false},
		{"our own field is too long", Config{Hostname: strings.Repeat("x", 999)}, Deps{}, func(*Envelope) {}, false},
		{"rewritten", Config{}, Deps{
			Tenant:  func(string) (Tenant, bool, error) { return Tenant{Rewrite: true}, true, nil },
			Rewrite: link,
		}, func(*Envelope) {}, false},
	} {
		i, q := newDoor(t, tt.cfg, tt.deps)
		env := envelope("bob@example.net")
		env.Plain = true
		tt.env(&env)
		if _, err := i.Raw(t.Context(), env, crlf(plain)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := q.subs[0].Message.Plain; got != tt.want {
			t.Errorf("%s: plain is %v", tt.name, got)
		}
	}
	i, q := newDoor(t, Config{}, Deps{})
	env := envelope("bob@example.net")
	env.Plain = true
	if _, err := i.Raw(t.Context(), env, append(crlf(plain), "caf\xe9\r\n"...)); err != nil {
		t.Fatal(err)
	}
	if !q.subs[0].Message.EightBit {
		t.Error("octets above 0x7F were overlooked")
	}
}

func TestClientStaysHiddenWhenConfigured(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{HideClient: true}, Deps{})
	if _, err := i.Raw(t.Context(), envelope("bob@example.net"), crlf(plain)); err != nil {
		t.Fatal(err)
	}
	if b := string(q.subs[0].Body); strings.Contains(b, "192.0.2.7") || strings.Contains(b, "app.example.com") {
		t.Errorf("the client shows in %q", b)
	}
	i, q = newDoor(t, Config{NoReceived: true}, Deps{})
	if _, err := i.Raw(t.Context(), envelope("bob@example.net"), crlf(plain)); err != nil {
		t.Fatal(err)
	}
	if got := string(q.subs[0].Body); got != string(crlf(plain)) {
		t.Errorf("body %q, want it as it came", got)
	}
}

func TestHostileClientNameCannotReachTheHeader(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{}, Deps{})
	env := envelope("bob@example.net")
	env.HELO = "x\r\nBcc: eve@example.org"
	env.Protocol = "ESMTP\r\nX: y"
	if _, err := i.Raw(t.Context(), env, crlf(plain)); err != nil {
		t.Fatal(err)
	}
	m, err := mail.ReadMessage(strings.NewReader(string(q.subs[0].Body)))
	if err != nil {
		t.Fatal(err)
	}
	if m.Header.Get("Bcc") != "" || m.Header.Get("X") != "" || !strings.Contains(m.Header.Get("Received"), "from unknown") {
		t.Errorf("header %v", m.Header)
	}
}

func TestMissingDateAndMessageIDAreAddedAndBccRemoved(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"From: news@example.com\nBcc: eve@example.org,\n\tmallory@example.org\nReturn-Path: <x@example.com>\nSubject: s\nResent-Bcc: z@example.org\n\nhi\n",
		"From: news@example.com\nSubject: s\nDate:\nMessage-ID: \n\nhi\n",
		"From: news@example.com\nSubject: s\n\nhi",
		"From: news@example.com\nSubject: s\n",
		"From: news@example.com\nSubject: s",
	} {
		i, q := newDoor(t, Config{}, Deps{})
		res, err := i.Raw(t.Context(), envelope("bob@example.net"), crlf(in))
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		m, err := mail.ReadMessage(strings.NewReader(string(q.subs[0].Body)))
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		got := map[string][]string{}
		for k, v := range m.Header {
			if k != "Received" {
				got[k] = v
			}
		}
		want := map[string][]string{
			"From": {"news@example.com"}, "Subject": {"s"},
			"Date": {"Sun, 22 Nov 2026 12:00:00 +0000"}, "Message-Id": {"<" + res.ID.String() + "@example.com>"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: header (-want +got):\n%s", in, diff)
		}
		if !strings.HasSuffix(string(q.subs[0].Body), "\r\n") {
			t.Errorf("%q: the last line has no CRLF", in)
		}
		if got, want := q.subs[0].Message.RFCMessageID, res.ID.String()+"@example.com"; got != want {
			t.Errorf("%q: RFCMessageID %q, want %q", in, got, want)
		}
	}
}

func TestControlHeadersAreObeyedAndRemoved(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{}, Deps{})
	in := "X-Tradewind-Campaign: spring\nFrom: news@example.com\nX-Tradewind-Tag: a, b\nX-tradewind-tag: c\n" +
		"X-Tradewind-Metadata: {\"order\":\n\t42}\nX-Tradewind-Send-At: 2026-11-22T14:00:00Z\nX-Tradewind-Expires: 2026-11-22T15:00:00+00:00\n" +
		"X-Tradewind-Class: transactional\nX-Virtual-MTA: ip7\nX-Job: ignored\nX-Envid: e1\nX-Tradewind-Sandbox: yes\n\nbody\n"
	if _, err := i.Raw(t.Context(), envelope("bob@example.net"), crlf(in)); err != nil {
		t.Fatal(err)
	}
	s := q.subs[0]
	if b := strings.ToLower(string(s.Body)); strings.Contains(b, "x-") {
		t.Errorf("control headers left in %q", b)
	}
	want := &message.Message{
		Tenant: "acme", Campaign: "spring", Pool: "ip7", Class: message.Transactional, Tags: []string{"a", "b", "c"},
		Metadata: []byte(`{"order":42}`), EnvID: "e1", Sandbox: true, NotBefore: noon.Add(2 * time.Hour), Expires: noon.Add(3 * time.Hour),
	}
	got := &message.Message{
		Tenant: s.Message.Tenant, Campaign: s.Message.Campaign, Pool: s.Message.Pool, Class: s.Message.Class, Tags: s.Message.Tags,
		Metadata: s.Message.Metadata, EnvID: s.Message.EnvID, Sandbox: s.Message.Sandbox, NotBefore: s.Message.NotBefore.UTC(), Expires: s.Message.Expires.UTC(),
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b message.Address) bool { return a == b })); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
}

func TestEnvelopeBeatsControlHeaders(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{}, Deps{})
	env := envelope("bob@example.net")
	env.Campaign, env.Tags = "mine", []string{"t"}
	in := "From: news@example.com\nX-Job: theirs\nX-Tradewind-Tag: x\n\nbody\n"
	if _, err := i.Raw(t.Context(), env, crlf(in)); err != nil {
		t.Fatal(err)
	}
	if m := q.subs[0].Message; m.Campaign != "mine" || len(m.Tags) != 1 {
		t.Errorf("campaign %q, tags %q", m.Campaign, m.Tags)
	}
}

func TestTrustedRelayMayNameItsTenant(t *testing.T) {
	t.Parallel()
	in := crlf("From: news@example.com\nX-Tradewind-Tenant: other\n\nbody\n")
	i, q := newDoor(t, Config{}, Deps{})
	env := envelope("bob@example.net")
	env.Tenant, env.AnyTenant = "default", true
	if _, err := i.Raw(t.Context(), env, in); err != nil {
		t.Fatal(err)
	}
	if got := q.subs[0].Message.Tenant; got != "other" {
		t.Errorf("tenant %q, want other", got)
	}
	_, err := i.Raw(t.Context(), envelope("bob@example.net"), in)
	var e *Error
	if !errors.As(err, &e) || e.SMTP != 550 || e.Code != CodeForbidden {
		t.Errorf("another tenant's name gave %v, want 550 forbidden", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	ok := "From: news@example.com\n"
	long := strings.Repeat("a", 999)
	for _, tt := range []struct {
		name, raw, code, field string
		smtp                   int
	}{
		{"no from", "Subject: x\r\n\r\n", CodeMissing, "From", 550},
		{"empty", "", CodeMissing, "From", 550},
		{"two from fields", "From: a@example.com\r\nFROM: b@example.com\r\n\r\n", CodeDuplicate, "FROM", 554},
		{"two mailboxes", "From: a@example.com, b@example.com\r\n\r\n", CodeInvalid, "From", 550},
		{"group", "From: us: a@example.com;\r\n\r\n", CodeInvalid, "From", 550},
		{"from without mailbox", "From: News\r\n\r\n", CodeInvalid, "From", 550},
		{"empty from", "From:\r\n\r\n", CodeInvalid, "From", 550},
		{"two addresses in brackets", "From: <a@example.com> <b@example.com>\r\n\r\n", CodeInvalid, "From", 550},
		{"source route", "From: <@x.example:b@example.com>\r\n\r\n", CodeInvalid, "From", 550},
		{"open quote", "From: \"News <a@example.com>\r\n\r\n", CodeInvalid, "From", 550},
		{"two subjects", "From: a@example.com\r\nSubject: 1\r\nSubject: 2\r\n\r\n", CodeDuplicate, "Subject", 554},
		{"two To fields", "From: a@example.com\r\nTo: x@example.com\r\nTo: y@example.com\r\n\r\n", CodeDuplicate, "To", 554},
		{"bare LF in header", "From: a@example.com\nBcc: b@example.com\r\n\r\n", CodeBareNewline, "body", 554},
		{"bare CR in body", "From: a@example.com\r\n\r\na\rb\r\n", CodeBareNewline, "body", 554},
		{"bare LF in body", "From: a@example.com\r\n\r\na\nb\r\n", CodeBareNewline, "body", 554},
		{"CR at the end", "From: a@example.com\r\n\r\na\r", CodeBareNewline, "body", 554},
		{"CR CR LF", "From: a@example.com\r\n\r\na\r\r\n", CodeBareNewline, "body", 554},
		{"NUL in body", "From: a@example.com\r\n\r\na\x00b\r\n", CodeNUL, "body", 554},
		{"NUL in header", "From: a@example.com\r\nX: \x00\r\n\r\n", CodeNUL, "body", 554},
		{"escape in header", "From: a@example.com\r\nX: \x1b[2J\r\n\r\n", CodeControl, "X", 554},
		{"header not UTF-8", "From: a@example.com\r\nX: \xe9\r\n\r\n", CodeInvalid, "header", 554},
		{"line without colon", "From: a@example.com\r\nhello\r\n\r\n", CodeHeader, "header", 554},
		{"space before colon", "From : a@example.com\r\n\r\n", CodeHeader, "header", 554},
		{"first line folded", " From: a@example.com\r\n\r\n", CodeHeader, "header", 554},
		{"no name", ": a@example.com\r\n\r\n", CodeHeader, "header", 554},
		{"header line of 999", "From: a@example.com\r\nX: " + long[:996] + "\r\n\r\n", CodeLineLength, "header", 554},
		{"1,001 fields", "From: a@example.com\r\n" + strings.Repeat("X: y\r\n", 1000) + "\r\n", CodeHeaderLimit, "header", 554},
		{"field of 66 KB", "From: a@example.com\r\nX: y\r\n" + strings.Repeat(" "+long[:990]+"\r\n", 66) + "\r\n", CodeHeaderLimit, "header", 554},
		{"header of 1 MB", "From: a@example.com\r\n" + strings.Repeat("X: "+long[:900]+"\r\n", 1200) + "\r\n", CodeHeaderLimit, "header", 554},
		{"loop", "From: a@example.com\r\n" + strings.Repeat("Received: by x\r\n", 51) + "\r\n", CodeLoop, "Received", 554},
		{"unknown control header", "From: a@example.com\r\nX-Tradewind-Sendat: x\r\n\r\n", CodeInvalid, "X-Tradewind-Sendat", 554},
		{"bad send-at", "From: a@example.com\r\nX-Tradewind-Send-At: tomorrow\r\n\r\n", CodeInvalid, "X-Tradewind-Send-At", 554},
		{"send-at next year", "From: a@example.com\r\nX-Tradewind-Send-At: 2027-11-22T14:00:00Z\r\n\r\n", CodeLimit, "send_at", 554},
		{"expired", "From: a@example.com\r\nX-Tradewind-Expires: 2025-11-22T14:00:00Z\r\n\r\n", CodeInvalid, "expires_at", 554},
		{"bad class", "From: a@example.com\r\nX-Tradewind-Class: urgent\r\n\r\n", CodeInvalid, "X-Tradewind-Class", 554},
		{"bad metadata", "From: a@example.com\r\nX-Tradewind-Metadata: [1]\r\n\r\n", CodeInvalid, "metadata", 554},
		{"long campaign", "From: a@example.com\r\nX-Job: " + long[:129] + "\r\n\r\n", CodeLimit, "campaign", 554},
		{"11 tags", "From: a@example.com\r\nX-Tradewind-Tag: 1,2,3,4,5,6,7,8,9,10,11\r\n\r\n", CodeLimit, "tags", 554},
		{"long line in a signed part", ok + "Content-Type: multipart/signed; boundary=b\n\n--b\n\n" + long + "\n--b--\n", CodeLineLength, "body", 554},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			raw := []byte(tt.raw)
			if strings.HasPrefix(tt.raw, ok) {
				raw = crlf(tt.raw)
			}
			i, q := newDoor(t, Config{}, Deps{})
			_, err := i.Raw(t.Context(), envelope("bob@example.net"), raw)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if e.Code != tt.code || e.Field != tt.field || e.SMTP != tt.smtp {
				t.Errorf("got %d %s %s (%s), want %d %s %s", e.SMTP, e.Field, e.Code, e.Message, tt.smtp, tt.field, tt.code)
			}
			if len(q.subs) != 0 {
				t.Error("a refused message was stored")
			}
		})
	}
}

func TestSizeLimitIsExact(t *testing.T) {
	t.Parallel()
	raw := crlf(plain)
	for delta, want := range map[int]bool{-1: false, 0: true, 1: true} {
		i, _ := newDoor(t, Config{MaxSize: len(raw) + delta}, Deps{})
		_, err := i.Raw(t.Context(), envelope("bob@example.net"), raw)
		if (err == nil) != want {
			t.Errorf("limit %+d: %v", delta, err)
		}
	}
}

func TestFiftyHopsAreNotALoop(t *testing.T) {
	t.Parallel()
	i, _ := newDoor(t, Config{}, Deps{})
	raw := strings.Repeat("Received: by x\r\n", 50) + "From: a@example.com\r\n\r\n"
	if _, err := i.Raw(t.Context(), envelope("bob@example.net"), []byte(raw)); err != nil {
		t.Error(err)
	}
}

func TestFromIsUnderstoodInEveryLegalForm(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`news@example.com`:                                 "news@example.com",
		`<news@example.com>`:                               "news@example.com",
		`News <news@example.com>`:                          "news@example.com",
		`"News, Inc. <x@y>" <news@example.com>`:            "news@example.com",
		`"a\"b" <news@example.com>`:                        "news@example.com",
		`News (the <paper>, daily) <news@Example.COM> (x)`: "news@example.com",
		`news@example.com (News)`:                          "news@example.com",
		`"john doe"@example.com`:                           `"john doe"@example.com`,
		`J <"a>b"@example.com>`:                            `"a>b"@example.com`,
		`=?utf-8?q?J=C3=B6rg?= <j@example.com>`:            "j@example.com",
		`Jörg <jörg@bücher.example>`:                       "jörg@xn--bcher-kva.example",
	} {
		a, err := mailbox(in)
		if err != nil || a.String() != want {
			t.Errorf("%s: got %q, %v, want %q", in, a, err, want)
		}
	}
}

func TestSuppressedRecipientsAreAcceptedAndMarked(t *testing.T) {
	t.Parallel()
	deps := Deps{Suppressed: func(_ context.Context, tenant, _ string, a message.Address) (string, bool, error) {
		return "hard bounce", tenant == "acme" && a.Local() == "gone", nil
	}}
	i, q := newDoor(t, Config{}, deps)
	res, err := i.Raw(t.Context(), envelope("bob@example.net", "gone@example.net", "carol@example.net", "bob@example.net"), crlf(plain))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"", "hard bounce", ""}, q.subs[0].Suppressed); diff != "" {
		t.Errorf("suppressed (-want +got):\n%s", diff)
	}
	var ids []string
	for _, r := range res.Recipients {
		ids = append(ids, strings.TrimPrefix(r.ID, res.ID.String()))
	}
	if diff := cmp.Diff([]string{".0", ".1", ".2", ".0"}, ids); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}

	i, q = newDoor(t, Config{RefuseSuppressed: true}, deps)
	res, err = i.Raw(t.Context(), envelope("gone@example.net", "bob@example.net"), crlf(plain))
	if err != nil {
		t.Fatal(err)
	}
	if res.Recipients[0].Refused == nil || res.Recipients[1].ID == "" || len(q.subs[0].Recipients) != 1 {
		t.Errorf("result %+v", res.Recipients)
	}
}

func TestRefusedRecipientAloneLeavesNothingToStore(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{RefuseSuppressed: true}, Deps{Suppressed: func(context.Context, string, string, message.Address) (string, bool, error) {
		return "", true, nil
	}})
	res, err := i.Raw(t.Context(), envelope("gone@example.net", "gone@example.net"), crlf(plain))
	if err != nil {
		t.Fatal(err)
	}
	for k, r := range res.Recipients {
		if r.Refused == nil || r.ID != "" {
			t.Errorf("recipient %d: %+v, want a refusal", k, r)
		}
	}
	if len(q.subs) != 0 {
		t.Errorf("%d submissions stored", len(q.subs))
	}
}

func TestTrackedTenantsGiveEachRecipientTheirOwnBytes(t *testing.T) {
	t.Parallel()
	deps := Deps{
		Tenant: func(string) (Tenant, bool, error) { return Tenant{Rewrite: true, Pool: "bulk"}, true, nil },
		Rewrite: func(_ *message.Message, r *message.Recipient, _ Track, body []byte) ([]byte, error) {
			return []byte(strings.ReplaceAll(string(body), "Hello Bob", "Hello "+r.Address.String()+strings.Repeat(" link", 300))), nil
		},
		ReturnPath: func(m *message.Message, r *message.Recipient) message.Address {
			return message.MustAddress("b+" + m.ID.String() + "@bounces.example.com")
		},
	}
	i, q := newDoor(t, Config{}, deps)
	res, err := i.Raw(t.Context(), envelope("bob@example.net", "carol@example.net"), crlf(plain))
	if err != nil {
		t.Fatal(err)
	}
	if len(q.subs) != 2 || q.subs[0].Message.ID == q.subs[1].Message.ID {
		t.Fatalf("%d submissions", len(q.subs))
	}
	for k, s := range q.subs {
		own, foreign := s.Recipients[0].Address.Local(), q.subs[1-k].Recipients[0].Address.String()
		body, _, _ := strings.Cut(string(s.Body), "\r\n\r\n")
		_, text, _ := strings.Cut(string(s.Body), "\r\n\r\n")
		if !strings.Contains(text, own) || strings.Contains(text, foreign) || !strings.Contains(body, s.Message.ID.String()) {
			t.Errorf("message %d: %q", k, s.Body)
		}
		if sh, err := measure(s.Body); err != nil || sh.long {
			t.Errorf("message %d: shape %+v, %v", k, sh, err)
		}
		if s.Recipients[0].ReturnPath.Local() != "b+"+s.Message.ID.String() || s.Message.Pool != "bulk" || s.Message.Size != len(s.Body) {
			t.Errorf("message %d: %+v %+v", k, s.Message, s.Recipients[0])
		}
		if res.Recipients[k].ID != s.Message.ID.String()+".0" {
			t.Errorf("recipient %d is named %s", k, res.Recipients[k].ID)
		}
	}

	env := envelope("bob@example.net", "carol@example.net")
	env.Class = message.Security
	if _, err := i.Raw(t.Context(), env, crlf(plain)); err != nil {
		t.Fatal(err)
	}
	if s := q.subs[2]; len(s.Recipients) != 2 || !strings.Contains(string(s.Body), "Hello Bob\r\n") {
		t.Errorf("mail of class security was rewritten: %q", s.Body)
	}
}

func TestTenantLimitsHold(t *testing.T) {
	t.Parallel()
	tenants := map[string]Tenant{
		"acme":   {SenderDomains: []string{"example.com"}, Pools: []string{"a"}, MaxAge: time.Hour},
		"asleep": {Suspended: true},
		"free":   {SenderDomains: []string{}, Pools: []string{}},
	}
	i, q := newDoor(t, Config{}, Deps{Tenant: func(n string) (Tenant, bool, error) {
		if n == "broken" {
			return Tenant{}, false, errors.New("no store")
		}
		v, ok := tenants[n]
		return v, ok, nil
	}})
	for _, tt := range []struct {
		name, tenant, from, sender, pool, code string
		smtp                                   int
	}{
		{"its own domain", "acme", "x@example.com", "y@example.com", "a", "", 0},
		{"a domain below", "acme", "x@mail.example.com", "", "", "", 0},
		{"a foreign From", "acme", "x@notexample.com", "y@example.com", "", CodeForbidden, 550},
		{"a foreign sender", "acme", "x@example.com", "y@example.org", "", CodeForbidden, 550},
		{"a foreign pool", "acme", "x@example.com", "", "b", CodeForbidden, 550},
		{"empty lists", "free", "x@example.org", "y@example.net", "b", "", 0},
		{"unknown", "nobody", "x@example.com", "", "", CodeUnknownTenant, 550},
		{"suspended", "asleep", "x@example.com", "", "", CodeForbidden, 451},
		{"store broken", "broken", "x@example.com", "", "", CodeUnavailable, 451},
	} {
		env := envelope("bob@example.net")
		env.Tenant, env.Pool, env.From = tt.tenant, tt.pool, message.Address{}
		if tt.sender != "" {
			env.From = message.MustAddress(tt.sender)
		}
		_, err := i.Raw(t.Context(), env, []byte("From: "+tt.from+"\r\n\r\n"))
		var e *Error
		if errors.As(err, &e); e == nil {
			e = &Error{}
		}
		if e.Code != tt.code || e.SMTP != tt.smtp {
			t.Errorf("%s: got %v, want %d %s", tt.name, err, tt.smtp, tt.code)
		}
	}
	if got, want := q.subs[0].Message.Expires, noon.Add(time.Hour); !got.Equal(want) {
		t.Errorf("expires %v, want the tenant's hour %v", got, want)
	}
}

func TestStoreFailuresAreTemporary(t *testing.T) {
	t.Parallel()
	for cause, want := range map[error]int{ErrBusy: 451, fmt.Errorf("queue: %w", ErrFull): 452, errors.New("?"): 451, context.Canceled: 451} {
		i, q := newDoor(t, Config{}, Deps{})
		q.err = cause
		_, err := i.Raw(t.Context(), envelope("bob@example.net"), crlf(plain))
		var e *Error
		if !errors.As(err, &e) || e.SMTP != want || !e.Temporary() || !errors.Is(err, cause) || strings.Contains(e.Message, cause.Error()) {
			t.Errorf("%v: got %v, want %d", cause, err, want)
		}
	}
	i, _ := newDoor(t, Config{}, Deps{Suppressed: func(context.Context, string, string, message.Address) (string, bool, error) {
		return "", false, errors.New("no answer")
	}})
	_, err := i.Raw(t.Context(), envelope("bob@example.net"), crlf(plain))
	var e *Error
	if !errors.As(err, &e) || !e.Temporary() {
		t.Errorf("unknown suppression gave %v, want a temporary refusal", err)
	}
}

func TestManyRecipientsShareOneMessage(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{MaxRecipients: 100}, Deps{})
	env := envelope()
	for n := range 100 {
		env.Recipients = append(env.Recipients, message.Recipient{Address: message.MustAddress(fmt.Sprintf("u%d@example.net", n%60))})
	}
	res, err := i.Raw(t.Context(), env, crlf(plain))
	if err != nil {
		t.Fatal(err)
	}
	if got := len(q.subs[0].Recipients); got != 60 {
		t.Errorf("%d recipients stored, want 60 distinct ones", got)
	}
	for n, r := range res.Recipients {
		if want := message.RecipientID(res.ID, uint32(n%60)); r.ID != want {
			t.Errorf("recipient %d is %s, want %s", n, r.ID, want)
		}
	}
	env.Recipients = append(env.Recipients, env.Recipients[0])
	if _, err := i.Raw(t.Context(), env, crlf(plain)); err == nil {
		t.Error("101 recipients were accepted")
	}
}

func TestTransportNeedsAreReported(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{}, Deps{})
	for _, raw := range []string{
		"From: a@example.com\n\nplain\n", "From: a@example.com\n\ngrün " + strings.Repeat("x", 40) + "\n", "From: Jörg <a@example.com>\n\nplain\n",
	} {
		if _, err := i.Raw(t.Context(), envelope("bob@example.net"), crlf(raw)); err != nil {
			t.Fatal(err)
		}
	}
	var got [][2]bool
	for _, s := range q.subs {
		got = append(got, [2]bool{s.Message.EightBit, s.Message.UTF8})
	}
	if diff := cmp.Diff([][2]bool{{false, false}, {true, false}, {false, true}}, got); diff != "" {
		t.Errorf("eight bit, UTF8 (-want +got):\n%s", diff)
	}
}

func TestMetricsCountWhatPassesTheDoor(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	i, _ := newDoor(t, Config{}, Deps{Metrics: reg})
	for _, raw := range []string{plain, plain, "Subject: no from\n\n"} {
		i.Raw(t.Context(), envelope("bob@example.net"), crlf(raw))
	}
	if got := testutil.ToFloat64(i.metric.messages[0][accepted]); got != 2 {
		t.Errorf("accepted %v, want 2", got)
	}
	if got := testutil.ToFloat64(i.metric.messages[0][refused]); got != 1 {
		t.Errorf("refused %v, want 1", got)
	}
	if _, err := New(Config{Hostname: "x"}, &memory{}, Deps{IDs: &message.IDSource{}, Metrics: reg}); err == nil {
		t.Error("registering twice went unnoticed")
	}
}

// FuzzRaw holds the promise of the package: whatever is accepted is CRLF lines
// of at most 998 octets, has one From, and net/mail can read its header.
func FuzzRaw(f *testing.F) {
	f.Add(crlf(plain))
	f.Add([]byte("From: a@b\r\n\r\n" + strings.Repeat("é", 1000)))
	f.Add(crlf("From: a@b\nBcc: x\nX-Job: y\nDate:\nContent-Type: multipart/mixed; boundary=x\n\n--x\n\n" + strings.Repeat("y", 1200) + "\n--x--\n"))
	f.Add([]byte("From: a@b"))
	i, _ := newDoor(f, Config{}, Deps{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := i.Prepare(context.Background(), envelope("bob@example.net"), raw)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code == "" || e.Field == "" || e.SMTP < 400 {
				t.Fatalf("error %#v", err)
			}
			return
		}
		s := p.Submissions[0]
		if sh, err := measure(s.Body); err != nil || sh.long {
			t.Fatalf("accepted %q as %q: %+v %v", raw, s.Body, sh, err)
		}
		m, merr := mail.ReadMessage(strings.NewReader(string(s.Body)))
		if merr != nil {
			t.Fatalf("net/mail cannot read %q: %v", s.Body, merr)
		}
		for _, k := range []string{"From", "Date", "Message-Id"} {
			if len(m.Header[k]) != 1 {
				t.Fatalf("%d %s fields in %q", len(m.Header[k]), k, s.Body)
			}
		}
		for k := range m.Header {
			if k == "Bcc" || k == "Return-Path" || strings.HasPrefix(k, "X-Tradewind-") || k == "X-Job" {
				t.Fatalf("%s left in %q", k, s.Body)
			}
		}
	})
}

func plain10k() []byte {
	return append(crlf(plain), []byte(strings.Repeat(strings.Repeat("x", 76)+"\r\n", 128))...)
}

func BenchmarkRaw10KB(b *testing.B) {
	i, err := New(Config{Hostname: "mta1.example.com"}, nothing{}, Deps{IDs: &message.IDSource{}})
	if err != nil {
		b.Fatal(err)
	}
	env, raw := envelope("bob@example.net"), plain10k()
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := i.Raw(b.Context(), env, raw); err != nil {
			b.Fatal(err)
		}
	}
}

// nothing is an Accepter that keeps nothing, so that a benchmark sees the door
// alone.
type nothing struct{}

func (nothing) Accept(context.Context, []*Submission) error { return nil }
