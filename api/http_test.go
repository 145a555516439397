package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

func gzipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(s))
	z.Close()
	return b.String()
}

func TestBadInputIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{MaxBody: 1 << 20}, inject.Deps{})
	w.post("").problem(400, "bad_json")
	w.post("{").problem(400, "bad_json")
	w.post("[]").problem(422, "invalid_request")
	w.post(with(nil)+"x").problem(400, "bad_json")
	w.post("{\"from\":\"\xff\"}").problem(400, "invalid_utf8")
	w.post(strings.Repeat("[", 100_000)).problem(400, "too_deep")
	w.post(`{"metadata":`+strings.Repeat(`{"a":`, 40)+"1"+strings.Repeat("}", 40)+"}").problem(400, "too_deep")
	w.post(with(map[string]any{"subjct": "x"})).field("subjct")
	w.post(with(map[string]any{"from": nil})).field("from")
	w.post(with(map[string]any{"from": "nobody"})).field("from.email")
	w.post(with(map[string]any{"to": nil})).field("to")
	w.post(with(map[string]any{"to": []any{"a@example.net", "b"}})).field("to[1].email")
	w.post(with(map[string]any{"text": nil})).field("text")
	w.post(with(map[string]any{"recipients": []any{map[string]any{"email": "x@example.net"}}})).field("recipients")
	w.post(with(map[string]any{"subject": 7})).field("subject")
	w.post(with(map[string]any{"send_at": "tomorrow"})).field("send_at")
	w.post(with(map[string]any{"send_at": "2036-01-01T00:00:00Z"})).field("send_at")
	w.post(with(map[string]any{"expires_at": "2006-01-01T00:00:00Z"})).field("expires_at")
	w.post(with(map[string]any{"class": "urgent"})).field("class")
	w.post(with(map[string]any{"metadata": []int{1}})).field("metadata")
	w.post(with(map[string]any{"metadata": map[string]string{"x": strings.Repeat("x", 3000)}})).field("metadata")
	w.post(with(map[string]any{"tags": strings.Split(strings.Repeat("t,", 11), ",")})).field("tags")
	w.post(with(map[string]any{"campaign": strings.Repeat("x", 200)})).field("campaign")
	w.post(with(map[string]any{"subject": strings.Repeat("x", 9000)})).field("subject")
	w.post(with(map[string]any{"subject": strings.Repeat("x", 2000)})).field("subject")
	w.post(with(map[string]any{"headers": map[string]string{"Bcc": "x@example.net"}})).field("headers.Bcc")
	w.post(with(map[string]any{"headers": map[string]string{"DKIM-Signature": "v=1"}})).field("headers.DKIM-Signature")
	w.post(with(map[string]any{"headers": map[string]string{"X-Tradewind-Tenant": "rival"}})).field("headers.X-Tradewind-Tenant")
	w.post(with(map[string]any{"headers": map[string]string{"Message-ID": "x"}})).field("headers.Message-ID")
	w.post(with(map[string]any{"attachments": []any{map[string]string{"content": "*"}}})).field("attachments[0].content")
	w.post(with(map[string]any{"attachments": []any{map[string]string{"content": "YQ==", "content_type": "message/rfc822"}}})).field("attachments[0].content_type")
	w.post(with(map[string]any{"substitutions": map[string]any{"x": []int{1}}})).field("substitutions")
	w.post(with(map[string]any{"text": "{{x}}", "substitutions": map[string]any{"y": 1}})).field("substitutions.x")
	w.post(with(nil), "Content-Type", "text/plain").problem(415, "unsupported_media_type")
	w.post(with(nil), "Content-Type", "application/json; charset=latin1").problem(415, "unsupported_media_type")
	w.post(with(nil), "Content-Encoding", "br").problem(415, "unsupported_encoding")
	w.post(with(nil), "Content-Encoding", "gzip").problem(400, "bad_gzip")
	full := gzipped(with(nil))
	for n := range len(full) {
		if res := w.post(full[:n], "Content-Encoding", "gzip", "Content-Type", "application/json"); res.Code != 400 {
			t.Errorf("gzip cut at %d of %d: %d %s", n, len(full), res.Code, res.Body)
		}
	}
	w.post(with(nil), "Idempotency-Key", "a b").field("Idempotency-Key")
	w.post(with(nil), "Idempotency-Key", strings.Repeat("x", 257)).field("Idempotency-Key")
	w.call("POST", "/v1/messages?to=x", with(nil)).field("query")
	w.call("GET", "/nowhere", "").problem(404, "not_found")
	w.call("PUT", "/v1/messages", "").problem(405, "method_not_allowed")
	if len(w.queue.subs) > 0 {
		t.Errorf("%d messages were stored", len(w.queue.subs))
	}
}

func TestGzipIsUnderstood(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	w.post(gzipped(with(nil)), "Content-Encoding", "gzip").into(202, &accepted{})
}

func TestCompressedBodyIsHeldToTheLimitOfWhatItHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{MaxBody: 4000}, inject.Deps{})
	small := gzipped(with(map[string]any{"text": strings.Repeat("x", 100_000)}))
	if len(small) > 2000 {
		t.Fatalf("compressed to %d octets only", len(small))
	}
	w.post(small, "Content-Encoding", "gzip").problem(413, "too_large")
	if len(w.queue.subs) > 0 {
		t.Errorf("%d messages were stored", len(w.queue.subs))
	}
}

// zeros is a body that never was in memory.
type zeros struct{ left int }

func (z *zeros) Read(b []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(len(b), z.left)
	clear(b[:n])
	z.left -= n
	return n, nil
}

func TestLargeBodiesAreRefusedBeforeTheyAreRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	send := func(body io.Reader, length int64, encoding string) (response, http.Request) {
		r := httptest.NewRequest("POST", "/v1/messages", body)
		r.ContentLength = length
		r.Header.Set("Authorization", "Bearer k")
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Content-Encoding", encoding)
		rec := httptest.NewRecorder()
		w.handler.ServeHTTP(rec, r)
		return response{rec, t}, *r
	}
	announced := &zeros{left: 100 << 20}
	res, _ := send(announced, 100<<20, "")
	res.problem(413, "too_large")
	if announced.left != 100<<20 {
		t.Error("an announced 100 MB was read all the same")
	}
	chunked := &zeros{left: 100 << 20}
	res, _ = send(chunked, -1, "")
	res.problem(413, "too_large")
	if read := 100<<20 - chunked.left; read > 65<<20 {
		t.Errorf("read %d octets of a chunked body", read)
	}
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	io.Copy(z, &zeros{left: 100 << 20})
	z.Close()
	res, _ = send(&bomb, int64(bomb.Len()), "gzip")
	res.problem(413, "too_large")
	if w.api.memory.free != int64(w.api.cfg.MaxMemory) {
		t.Errorf("%d octets were never given back", int64(w.api.cfg.MaxMemory)-w.api.memory.free)
	}
}

func TestMemoryIsBoundedOverAllRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{MaxMemory: 200 << 10}, inject.Deps{})
	other := &loan{from: &w.api.memory}
	if err := other.take(200<<10 - 50); err != nil {
		t.Fatal(err)
	}
	w.post(with(nil)).problem(503, "busy")
	other.giveBack()
	w.post(with(nil)).into(202, &accepted{})
	// Alone it would not fit either: coming back later is no use.
	w.post(with(map[string]any{"text": strings.Repeat("x", 150<<10)})).problem(413, "too_large")
	rcpts := strings.TrimSuffix(strings.Repeat(`{"email":"b@example.net"},`, 300), ",")
	w.post(`{"from":"a@example.com","text":"`+strings.Repeat("x", 1000)+`","recipients":[`+rcpts+"]}").problem(413, "too_large")
	if w.api.memory.free != 200<<10 || len(w.queue.subs) != 1 {
		t.Errorf("%d octets left of %d, %d stored", w.api.memory.free, 200<<10, len(w.queue.subs))
	}
}

func TestFiftyThousandRecipientsAreTooMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	body := func(n int) string {
		return `{"from":"a@example.com","subject":"s","text":"t","recipients":[` + strings.TrimSuffix(strings.Repeat(`{"email":"b@example.net"},`, n), ",") + "]}"
	}
	w.post(body(50_000)).field("recipients")
	// Twenty million empty ones would take gigabytes once decoded.
	w.post(`{"recipients":[`+strings.Repeat("{},", 20_000_000)+"{}]}").problem(413, "too_large")
	var got accepted
	w.post(body(10_000)).into(202, &got)
	if got.Accepted != 10_000 || len(w.queue.subs) != 10_000 {
		t.Errorf("accepted %d", got.Accepted)
	}
}

func TestKeysOpenOnlyTheirOwnDoors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	for header, want := range map[string]int{
		"Bearer k": 202, "bearer k": 202, "Basic dXNlcjpr": 202,
		"Bearer nope": 401, "Bearer ": 401, "k": 401, "Basic !": 401, "Digest k": 401, "Bearer reader": 403, "Bearer root": 403, "Bearer broken": 503, "": 401,
	} {
		res := w.post(with(nil), "Authorization", header)
		if res.Code != want {
			t.Errorf("%q: %d %s, want %d", header, res.Code, res.Body, want)
		}
		if want == 401 && res.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("%q: 401 without WWW-Authenticate", header)
		}
	}
}

func TestLoopbackIsTrustedOnlyWhenItIsLoopback(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, remote, host string
		header             []string
		trust              bool
		want               int
	}{
		{"loopback", "127.0.0.1:4711", "127.0.0.1:8025", nil, true, 202},
		{"IPv6 loopback", "[::1]:4711", "localhost:8025", nil, true, 202},
		{"mapped loopback", "[::ffff:127.0.0.1]:4711", "[::1]:8025", nil, true, 202},
		{"a configured name", "127.0.0.1:4711", "mta1.example.com", nil, true, 202},
		{"not switched on", "127.0.0.1:4711", "127.0.0.1:8025", nil, false, 401},
		{"a client elsewhere", "192.0.2.1:4711", "127.0.0.1:8025", nil, true, 401},
		{"a rebound name", "127.0.0.1:4711", "evil.example:8025", nil, true, 401},
		{"through a proxy", "127.0.0.1:4711", "127.0.0.1:8025", []string{"X-Forwarded-For", "192.0.2.1"}, true, 401},
		{"from another page", "127.0.0.1:4711", "127.0.0.1:8025", []string{"Sec-Fetch-Site", "cross-site"}, true, 403},
		{"from another origin", "127.0.0.1:4711", "127.0.0.1:8025", []string{"Origin", "https://evil.example"}, true, 403},
	} {
		w := newWorld(t, Config{TrustLoopback: tt.trust, Hosts: []string{"mta1.example.com"}}, inject.Deps{})
		r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(with(nil)))
		r.RemoteAddr, r.Host = tt.remote, tt.host
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(tt.header); i += 2 {
			r.Header.Set(tt.header[i], tt.header[i+1])
		}
		rec := httptest.NewRecorder()
		w.handler.ServeHTTP(rec, r)
		if rec.Code != tt.want {
			t.Errorf("%s: %d %s, want %d", tt.name, rec.Code, rec.Body, tt.want)
		}
	}
}

func TestSameRequestTwiceIsOneMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	first := w.post(with(nil), "Idempotency-Key", "order-1")
	again := w.post(with(nil), "Idempotency-Key", "order-1")
	if again.Code != 202 || again.Header().Get("Idempotent-Replayed") != "true" || first.Header().Get("Idempotent-Replayed") != "" || again.Body.String() != first.Body.String() {
		t.Errorf("first %s, again %d %s", first.Body, again.Code, again.Body)
	}
	w.post(with(map[string]any{"subject": "other"}), "Idempotency-Key", "order-1").problem(409, "idempotency_mismatch")
	w.post(with(nil), "Idempotency-Key", "order-1", "Authorization", "Bearer k2").into(202, &accepted{})
	if len(w.queue.subs) != 2 {
		t.Errorf("%d messages, want one for each credential", len(w.queue.subs))
	}
	// What was refused or failed leaves no trace, so that it can be repaired.
	w.post(with(map[string]any{"from": "x"}), "Idempotency-Key", "order-2").field("from.email")
	w.queue.err = errors.New("disk")
	w.post(with(nil), "Idempotency-Key", "order-2").problem(503, "unavailable")
	w.queue.err = nil
	w.post(with(nil), "Idempotency-Key", "order-2").into(202, &accepted{})
}

func TestHundredEqualPostsAtOnceAreOneMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	var all sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	answers := map[string]bool{}
	for range 100 {
		all.Go(func() {
			res := w.post(with(nil), "Idempotency-Key", "once")
			mu.Lock()
			defer mu.Unlock()
			codes[res.Code]++
			if res.Code == 202 {
				answers[res.Body.String()] = true
			}
		})
	}
	all.Wait()
	if len(w.queue.subs) != 1 || len(answers) != 1 || codes[202]+codes[409] != 100 {
		t.Errorf("%d messages, answers %v, %d different", len(w.queue.subs), codes, len(answers))
	}
}

func TestSuppressedRecipientsAreToldApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{Suppressed: func(_ context.Context, _, _ string, a message.Address) (string, bool, error) {
		return "complaint", a.Local() == "angry", nil
	}})
	var got accepted
	w.post(with(map[string]any{"to": nil, "recipients": []any{map[string]string{"email": "angry@example.net"}, map[string]string{"email": "bob@example.net"}}})).into(202, &got)
	want := accepted{ID: got.ID, Accepted: 1, Suppressed: 1, Recipients: []recipientReply{
		{ID: got.ID + ".0", Email: "angry@example.net", Status: "suppressed", Reason: "complaint"},
		{ID: got.Recipients[1].ID, Email: "bob@example.net", Status: "accepted"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTenantsCanBeAskedToWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	w.api.deps.Allow = func(p *Principal, n int) time.Duration { return 1500 * time.Millisecond }
	res := w.post(with(nil))
	res.problem(429, "rate_limited")
	if got := res.Header().Get("Retry-After"); got != "2" || len(w.queue.subs) != 0 {
		t.Errorf("Retry-After %q, %d stored", got, len(w.queue.subs))
	}
}

func TestEventsArePagedAndFiltered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	for i := range 10 {
		e := message.Event{Seq: uint64(i + 1), Type: message.EventAccepted, Time: noon, Tenant: "acme", Recipient: "bob@example.net"}
		if i%2 == 1 {
			e.Tenant = "rival"
		}
		if i == 4 {
			e.Type = message.EventDelivered
		}
		w.journal.events = append(w.journal.events, e)
	}
	type page struct {
		Events []struct{ Type, Tenant string }
		Next   string
	}
	var got []string
	after := "0"
	for range 3 {
		var p page
		w.call("GET", "/v1/events?limit=2&after="+after, "").into(200, &p)
		for _, e := range p.Events {
			got = append(got, e.Tenant+" "+e.Type)
		}
		after = p.Next
	}
	want := []string{"acme message.accepted", "acme message.accepted", "acme message.delivered", "acme message.accepted", "acme message.accepted"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var p page
	w.call("GET", "/v1/events?type=message.delivered,message.bounced&recipient=bob@example.net", "").into(200, &p)
	if len(p.Events) != 1 {
		t.Errorf("%d delivered", len(p.Events))
	}
	w.call("GET", "/v1/events?after=-1", "").field("after")
	w.call("GET", "/v1/events?limit=5000", "").field("limit")
	w.call("GET", "/v1/events?type=x", "").field("type")
	w.call("GET", "/v1/events?recipent=x", "").field("recipent")
	w.call("GET", "/v1/events?message=x", "").field("message")
	w.call("GET", "/v1/events?after=18446744073709551615", "").problem(410, "cursor_gone")
	w.call("GET", "/v1/events?%zz", "").problem(400, "bad_query")
}

func TestMessageTellsWhereItStands(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	var sent accepted
	w.post(with(map[string]any{"to": []string{"a@example.net", "b@example.net"}})).into(202, &sent)
	id := w.queue.subs[0].Message.ID
	w.queue.status = map[message.ID]*MessageStatus{id: {Recipients: []RecipientStatus{
		{N: 1, Address: message.MustAddress("b@example.net"), State: "deferred", Attempt: 1, NextAttempt: noon.Add(time.Hour), Reply: &message.Reply{Code: 451, Text: "later"}, Holding: "rate of gmail"},
	}}}
	add := func(n uint32, typ message.EventType) {
		w.journal.events = append(w.journal.events, message.Event{Seq: uint64(len(w.journal.events) + 1), Type: typ, Time: noon, Tenant: "acme", MessageID: id, N: n, Recipient: string(rune('a'+n)) + "@example.net"})
	}
	add(0, message.EventAccepted)
	add(1, message.EventAccepted)
	add(1, message.EventDeferred)
	add(0, message.EventComplained)
	add(0, message.EventDelivered)
	var got struct {
		Recipients []recipientView
		Events     []json.RawMessage
	}
	w.call("GET", "/v1/messages/"+sent.ID, "").into(200, &got)
	want := []recipientView{
		{ID: sent.ID + ".1", Email: "b@example.net", State: "deferred", Attempt: 1, NextAttempt: "2026-11-22T13:00:00Z", Reply: "451 later", Holding: "rate of gmail"},
		{ID: sent.ID + ".0", Email: "a@example.net", State: "complained"},
	}
	if diff := cmp.Diff(want, got.Recipients); diff != "" || len(got.Events) != 5 {
		t.Errorf("%d events (-want +got):\n%s", len(got.Events), diff)
	}
	w.call("GET", "/v1/messages/"+sent.ID+".0", "").into(200, &got)
	if len(got.Recipients) != 1 || len(got.Events) != 3 {
		t.Errorf("one recipient: %d, %d events", len(got.Recipients), len(got.Events))
	}
	w.call("GET", "/v1/messages/"+sent.ID+".7", "").problem(404, "not_found")
	w.call("GET", "/v1/messages/nonsense", "").problem(404, "not_found")

	var canceled map[string]int
	w.call("DELETE", "/v1/messages/"+sent.ID, "").into(200, &canceled)
	if canceled["canceled"] != 1 {
		t.Errorf("canceled %v", canceled)
	}
	w.queue.status = nil
	w.call("DELETE", "/v1/messages/"+sent.ID, "").problem(409, "conflict")
}

func TestSuppressionsComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	w.call("POST", "/v1/suppressions", `{"email":"Bob@Example.NET","reason":"asked by phone"}`).into(200, &map[string]int{})
	w.call("POST", "/v1/suppressions", `{"suppressions":[{"email":"a@example.net"},{"email":"b@example.net","stream":"spring","expires_at":"2027-01-01T00:00:00Z"}]}`).into(200, &map[string]int{})
	var list struct{ Suppressions []map[string]any }
	w.call("GET", "/v1/suppressions", "").into(200, &list)
	if len(list.Suppressions) != 3 || list.Suppressions[0]["email"] != "Bob@example.net" || list.Suppressions[1]["reason"] != "manual" {
		t.Errorf("list %v", list)
	}
	if res := w.call("DELETE", "/v1/suppressions?email=a@example.net", ""); res.Code != 204 {
		t.Errorf("%d %s", res.Code, res.Body)
	}
	w.call("DELETE", "/v1/suppressions?email=a@example.net", "").problem(404, "not_found")
	w.call("POST", "/v1/suppressions", `{"email":"gone@example.net","reason":"unsubscribe"}`)
	w.call("DELETE", "/v1/suppressions?email=gone@example.net", "").problem(403, "forbidden")
	w.call("DELETE", "/v1/suppressions", "").field("email")
	w.call("POST", "/v1/suppressions", `{"email":"x"}`).field("email")
	w.call("POST", "/v1/suppressions", `{"email":"a@example.net","suppressions":[{"email":"b@example.net"}]}`).field("suppressions")
	w.call("POST", "/v1/suppressions", `{"suppressions":[{"email":"a@example.net","reason":"a\r\nb"}]}`).field("suppressions[0].reason")
}

func TestWebhookSecretIsToldOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	var made, listed map[string]any
	w.call("POST", "/v1/webhooks", `{"url":"https://example.com/hook","types":["message.delivered"]}`).into(201, &made)
	w.call("GET", "/v1/webhooks", "").into(200, &listed)
	if made["secret"] == nil || strings.Contains(fmt.Sprint(listed), "whsec") {
		t.Errorf("made %v, listed %v", made, listed)
	}
	for _, u := range []string{"", "ftp://x", "https://user:pw@example.com", "/x", "https://"} {
		w.call("POST", "/v1/webhooks", fmt.Sprintf(`{"url":%q}`, u)).field("url")
	}
	w.call("POST", "/v1/webhooks", `{"url":"https://example.com","types":["x"]}`).field("types[0]")
	for body, want := range map[string]float64{`{}`: 0, `{"after":"7"}`: 7} {
		w.hooks["acme"][0].Error, w.hooks["acme"][0].LagSeconds = "", 0
		if res := w.call("POST", "/v1/webhooks/wh0/replay", body); res.Code != 204 {
			t.Errorf("%d %s", res.Code, res.Body)
		}
		if h := w.hooks["acme"][0]; h.Error != "replay" || h.LagSeconds != want {
			t.Errorf("%s: got %+v, want a replay from %v", body, h, want)
		}
	}
	w.call("POST", "/v1/webhooks/wh0/replay", `{"after":"x"}`).field("after")
	if res := w.call("POST", "/v1/webhooks/wh0/replay", `{}`, "Authorization", "Bearer rival"); res.Code != 404 {
		t.Errorf("another tenant: %d %s", res.Code, res.Body)
	}
	if res := w.call("DELETE", "/v1/webhooks/wh0", ""); res.Code != 204 {
		t.Errorf("%d %s", res.Code, res.Body)
	}
}

// TestForeignKeysFindNothing walks every route with the key of another tenant.
func TestForeignKeysFindNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	var sent accepted
	w.post(with(nil)).into(202, &sent)
	id := w.queue.subs[0].Message.ID
	w.queue.status = map[message.ID]*MessageStatus{id: {Recipients: []RecipientStatus{{State: "queued"}}}}
	w.journal.events = []message.Event{{Seq: 1, Type: message.EventAccepted, Time: noon, Tenant: "acme", MessageID: id, Recipient: "bob@example.net"}}
	w.call("POST", "/v1/suppressions", `{"email":"bob@example.net"}`).into(200, &map[string]int{})
	w.call("POST", "/v1/webhooks", `{"url":"https://acme.example/hook"}`).into(201, &Webhook{})

	for _, pattern := range w.api.routes {
		method, path, _ := strings.Cut(pattern, " ")
		path = strings.Replace(path, "/v1/messages/{id}", "/v1/messages/"+sent.ID, 1)
		path = strings.Replace(path, "{id}", "wh0", 1)
		if pattern == "DELETE /v1/suppressions" {
			path += "?email=bob@example.net"
		}
		if method == "POST" || pattern == "GET /openapi.json" {
			continue
		}
		res := w.call(method, path, "", "Authorization", "Bearer rival")
		found := res.Code != 404 && (method == "DELETE" || strings.Contains(res.Body.String(), "acme") || strings.Contains(res.Body.String(), "bob@"))
		if found {
			t.Errorf("%s: %d %s", pattern, res.Code, res.Body)
		}
		if res := w.call(method, path, "", "Authorization", "Bearer nope"); res.Code != 401 {
			t.Errorf("%s with an unknown key: %d", pattern, res.Code)
		}
		if res := w.call(method, path, "", "Authorization", ""); res.Code != 401 {
			t.Errorf("%s without a key: %d", pattern, res.Code)
		}
	}
}

func TestRoutesAndOpenAPIDocumentAgree(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	var doc struct {
		OpenAPI string                                `json:"openapi"`
		Paths   map[string]map[string]json.RawMessage `json:"paths"`
		Comps   struct {
			Schemas map[string]struct {
				Properties map[string]json.RawMessage `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	w.call("GET", "/openapi.json", "", "Authorization", "").into(200, &doc)
	var documented []string
	for path, methods := range doc.Paths {
		for m := range methods {
			documented = append(documented, strings.ToUpper(m)+" "+path)
		}
	}
	routes := slices.Clone(w.api.routes)
	slices.Sort(routes)
	slices.Sort(documented)
	if diff := cmp.Diff(routes, documented); diff != "" || doc.OpenAPI != "3.1.0" {
		t.Errorf("(-routes +documented):\n%s", diff)
	}
	// Every reference leads somewhere.
	for _, part := range strings.Split(string(openAPI), `"#/components/schemas/`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		if _, found := doc.Comps.Schemas[name]; !found {
			t.Errorf("schema %s is referred to and missing", name)
		}
	}
	// Every field of a message is documented, and no other.
	var described []string
	for name := range doc.Comps.Schemas["Message"].Properties {
		described = append(described, name)
	}
	fields := jsonNames(messageRequest{})
	slices.Sort(fields)
	slices.Sort(described)
	if diff := cmp.Diff(fields, described); diff != "" {
		t.Errorf("Message (-code +document):\n%s", diff)
	}
}

// jsonNames are the member names of a struct.
func jsonNames(v any) []string {
	var out []string
	for f := range reflect.TypeOf(v).Fields() {
		out = append(out, f.Tag.Get("json"))
	}
	return out
}

func TestAdminAnswersOnlyItsOwnNames(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	ready := errors.New("replaying the log")
	h, err := Admin(Config{Hosts: []string{"mta1.example.com"}}, AdminDeps{
		Deps:     Deps{Keys: keys{"root": {Name: "root", Scopes: []Scope{ScopeAdmin}}, "k": {Name: "k", Tenant: "acme", Scopes: []Scope{ScopeInject, ScopeEvents}}}, Metrics: reg},
		Gatherer: reg,
		Ready:    map[string]func(context.Context) error{"queue": func(context.Context) error { return ready }},
		Routes: []AdminRoute{{"GET /v1/queues/{name}", func(w http.ResponseWriter, r *http.Request, p *Principal) error {
			if r.PathValue("name") != "q" {
				return fmt.Errorf("queue: %w", ErrNotFound)
			}
			return writeJSON(w, 200, p.Name)
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	get := func(host, path string, headers ...string) response {
		r := httptest.NewRequest("GET", path, nil)
		r.Host = host
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		return response{rec, t}
	}
	for _, tt := range []struct {
		host, path, key string
		want            int
	}{
		{"127.0.0.1:9025", "/healthz", "", 200},
		{"mta1.example.com:9025", "/healthz", "", 200},
		{"localhost", "/metrics", "", 200},
		{"evil.example", "/healthz", "", 421},
		{"evil.example", "/metrics", "", 421},
		{"", "/healthz", "", 421},
		{"localhost", "/debug/pprof/", "", 401},
		{"localhost", "/debug/pprof/", "Bearer k", 403},
		{"localhost", "/debug/pprof/", "Bearer root", 200},
		{"localhost", "/debug/pprof/block", "Bearer k", 403},
		{"localhost", "/debug/pprof/block?seconds=0", "Bearer root", 422},
		{"localhost", "/debug/pprof/mutex?seconds=61", "Bearer root", 422},
		{"localhost", "/v1/queues/q", "", 401},
		{"localhost", "/v1/queues/q", "Bearer k", 403},
		{"localhost", "/v1/queues/q", "Bearer root", 200},
		{"localhost", "/v1/queues/x", "Bearer root", 404},
		{"localhost", "/v1/messages", "Bearer root", 404},
	} {
		if res := get(tt.host, tt.path, "Authorization", tt.key); res.Code != tt.want {
			t.Errorf("%s%s with %q: %d %s, want %d", tt.host, tt.path, tt.key, res.Code, res.Body, tt.want)
		}
	}
	if res := get("localhost", "/healthz", "Sec-Fetch-Site", "cross-site"); res.Code != 403 {
		t.Errorf("another web site: %d", res.Code)
	}
	p := get("localhost", "/readyz").problem(503, "not_ready")
	if p.Detail != "queue: replaying the log" {
		t.Errorf("detail %q", p.Detail)
	}
	ready = nil
	if res := get("localhost", "/readyz"); res.Code != 200 {
		t.Errorf("ready: %d %s", res.Code, res.Body)
	}
	if body := get("localhost", "/metrics").Body.String(); !strings.Contains(body, `tradewind_http_requests_total{code="2xx",listener="admin",route="GET /healthz"} 2`) {
		t.Errorf("metrics:\n%s", body)
	}
}
