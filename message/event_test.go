package message

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestEventReadsAsDocumented(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 12, 0, 0, 123456789, time.UTC)
	id, err := ParseID("01ARZ3NDEKTSV4RRFFQ69G5FAV")
	if err != nil {
		t.Fatal(err)
	}
	e := Event{
		Seq: 7, Type: EventDeferred, Time: at, MessageID: id, RFCMessageID: "1@example.com", Sender: "a@example.com", Recipient: "b@example.net",
		N: 3, RecipientSeq: 2, Attempt: 1, NextAttempt: at.Add(5 * time.Minute), Tenant: "acme", Campaign: "spring", Class: Transactional,
		Tags: []string{"x", "y"}, Metadata: json.RawMessage(`{"order":42}`), Size: 1000,
		Reply: &Reply{Code: 451, Enhanced: Enhanced{4, 7, 1}, Text: "try later\nplease", Stage: StageRcpt, RemoteHost: "mx.example.net",
			RemoteIP: netip.MustParseAddr("2001:db8::1"), TLS: "TLS1.3", Local: true},
		Category: Rate, Suppressing: true, Machine: &Machine{IsBot: true, Reason: "prefetch"}, Egress: Egress{Pool: "bulk", Site: "example.net"},
		Origin: "smtp", Detail: "d", Duration: 1500 * time.Millisecond,
	}
	want := map[string]any{
		"id": EventID(at, 7).String(), "type": "message.deferred", "time": "2026-11-22T12:00:00.123456Z", "message_id": id.String(),
		"recipient_id": id.String() + ".3", "rfc_message_id": "1@example.com", "sender": "a@example.com", "recipient": "b@example.net",
		"seq": 2.0, "terminal": false, "attempt": 1.0, "next_attempt": "2026-11-22T12:05:00Z", "tenant": "acme", "campaign": "spring",
		"class": "transactional", "tags": []any{"x", "y"}, "metadata": map[string]any{"order": 42.0}, "size": 1000.0,
		"reply": map[string]any{"code": 451.0, "enhanced": "4.7.1", "text": "try later\nplease", "stage": "rcpt", "remote_host": "mx.example.net",
			"remote_ip": "2001:db8::1", "tls": "TLS1.3", "local": true},
		"category": "rate", "pmta_category": "policy-related", "suppressing": true, "machine": map[string]any{"is_bot": true, "reason": "prefetch"},
		"egress": map[string]any{"pool": "bulk", "site": "example.net"}, "origin": "smtp", "detail": "d", "duration_seconds": 1.5, "schema_version": 1.0,
	}
	var got map[string]any
	if err := json.Unmarshal(e.AppendJSON(nil), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	small := map[string]any{"id": EventID(at, 1).String(), "type": "egress.suspended", "time": "2026-11-22T12:00:00.123456Z", "terminal": false, "schema_version": 1.0}
	got = nil
	e = Event{Seq: 1, Type: EventEgressSuspended, Time: at}
	if err := json.Unmarshal(e.AppendJSON(nil), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(small, got); diff != "" {
		t.Errorf("an empty event (-want +got):\n%s", diff)
	}
}

func TestEventIDsSortAsTheJournal(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(1_800_000_000_000)
	a, b, c := EventID(at, 1), EventID(at, 2), EventID(at.Add(time.Millisecond), 3)
	if bytes.Compare(a[:], b[:]) >= 0 || bytes.Compare(b[:], c[:]) >= 0 || !c.Time().Equal(at.Add(time.Millisecond)) {
		t.Errorf("%s, %s, %s", a, b, c)
	}
}

// hostile appends an event whose every string is s and checks that the result
// is one line of harmless JSON that means s.
func hostile(t testing.TB, s string, code int) {
	t.Helper()
	e := Event{Seq: 1, Type: EventBounced, Time: time.UnixMilli(1_800_000_000_000), MessageID: ID{1}, RFCMessageID: s, Sender: s, Recipient: s,
		Tenant: s, Campaign: s, Tags: []string{s, s}, Origin: s, Detail: s, Machine: &Machine{Reason: s}, Egress: Egress{s, s, s, s},
		Reply: &Reply{Code: code, Text: s, RemoteHost: s, TLS: s}}
	b := e.AppendJSON(nil)
	if !json.Valid(b) || !utf8.Valid(b) {
		t.Fatalf("%q gives %q", s, b)
	}
	for _, r := range string(b) {
		if r < ' ' || r == 0x7F || r >= 0x80 && r < 0xA0 || r == 0x2028 || r == 0x2029 || r == '<' || r == '>' || r == '&' {
			t.Fatalf("%q leaves %U in %q", s, r, b)
		}
	}
	var back struct {
		Detail string
		Tags   []string
		Reply  struct{ Text string }
		Egress Egress
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	want := string([]rune(s)) // octets that are not UTF-8 become U+FFFD, one each
	if back.Detail != want || back.Reply.Text != want || (s != "" && back.Egress.Site != want) || back.Tags[1] != want {
		t.Fatalf("%q comes back as %q", s, back.Detail)
	}
}

func TestHostileWordsCannotLeaveTheirString(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", `"`, `\`, `\"`, `","terminal":true,"x":"`, "\r\n{}", "</script><script>", "\x00\x01\x1b[2J\x7f", "\u0085\u2028\u2029\ufeff", "\xff\xfe", "é\xc3", "\xed\xa0\x80", "\U0001F600", "\ufffd", "&amp;", "\u009b31m"} {
		hostile(t, s, 550)
	}
}

func FuzzEventJSON(f *testing.F) {
	for _, s := range []string{"", `"\`, "\r\n</script>", "\xff\u2028\u009b", "\ufffd"} {
		f.Add(s, 550)
	}
	f.Fuzz(func(t *testing.T, s string, code int) { hostile(t, s, code) })
}

func BenchmarkEventJSON(b *testing.B) {
	e := Event{Seq: 1, Type: EventDelivered, Time: time.UnixMilli(1_800_000_000_000), MessageID: ID{1}, RFCMessageID: "1@example.com", Sender: "a@example.com",
		Recipient: "b@example.net", Tenant: "acme", Reply: &Reply{Code: 250, Text: strings.Repeat("x", 60), RemoteHost: "mx.example.net"}}
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = e.AppendJSON(buf[:0])
	}
}
