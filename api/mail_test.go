package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/mail"
	"os"
	"regexp"
	"strings"
	"testing"

	gomessage "github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"
	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/inject"
)

// stable replaces what differs from run to run.
var stable = regexp.MustCompile(`[0-9A-HJKMNP-TV-Z]{26}|=_[0-9a-f]{24}`)

func normal(body []byte) string {
	seen := map[string]string{}
	s := stable.ReplaceAllStringFunc(string(body), func(x string) string {
		if seen[x] == "" {
			kind := "ID"
			if strings.HasPrefix(x, "=_") {
				kind = "=_boundary"
			}
			seen[x] = fmt.Sprint(kind, len(seen))
		}
		return seen[x]
	})
	return strings.ReplaceAll(s, "\r\n", "\n")
}

// UPDATE_GOLDEN=1 writes the golden files anew; read the difference before you
// commit it.
func TestBuiltMailMatchesTheGoldenFiles(t *testing.T) {
	t.Parallel()
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, fields := range map[string]map[string]any{
		"text": {"text": "Hello\nthere  \n.\nFrom here on\n"},
		"text-umlauts": {"from": map[string]string{"email": "news@example.com", "name": "Grüße, \"Redaktion\""}, "subject": "Schöne Grüße aus Tübingen an der schönen blauen Donau, und noch viel mehr davon",
			"text": "Grüße = \nEnde "},
		"text-japanese": {"subject": "こんにちは世界", "text": strings.Repeat("こんにちは世界。", 20), "to": map[string]string{"email": "bob@example.net", "name": "山田太郎"}},
		"alternative":   {"text": "plain", "html": "<p>rich</p>", "amp": "<!doctype html><html amp4email></html>", "reply_to": "a@example.com", "headers": map[string]string{"List-Unsubscribe": "<https://example.com/u/" + strings.Repeat("x", 120) + ">,\t<mailto:u@example.com>", "X-Note": "ü"}},
		"everything": {"text": "plain", "html": "<img src=\"cid:logo\">", "attachments": []any{
			map[string]any{"filename": "logo.png", "content_type": "image/png", "content": b64("\x89PNG"), "content_id": "logo"},
			map[string]any{"filename": "Rechnung Nr. 5; März.pdf", "content_type": "application/pdf", "content": b64(strings.Repeat("%PDF", 40))},
		}},
		"personal": {"to": nil, "subject": "Hi {{ name }}", "text": "{{greeting}} {{name}}\n", "html": "<b>{{name}}</b> {{n}}", "substitutions": map[string]any{"greeting": "Hello", "n": 7},
			"recipients": []any{map[string]any{"email": "bob@example.net", "name": "Bob", "substitutions": map[string]any{"name": "Bob & <Co>\nLine"[:10]}, "headers": map[string]string{"X-Own": "yes"}}}},
	} {
		w := newWorld(t, Config{}, inject.Deps{})
		w.post(with(fields)).into(202, &accepted{})
		body := w.queue.subs[0].Body
		bothParsersAgree(t, body)
		got := normal(body)
		file := "testdata/golden/" + name + ".eml"
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// bothParsersAgree reads body with two parsers that we did not write, compares
// what they make of the header and returns it.
func bothParsersAgree(t testing.TB, body []byte) map[string][]string {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(body))
	if err != nil {
		t.Fatalf("net/mail: %v in %q", err, body)
	}
	e, err := gomessage.Read(bytes.NewReader(body))
	if err != nil {
		t.Fatalf("go-message: %v in %q", err, body)
	}
	a, b := map[string]int{}, map[string]int{}
	for k, v := range m.Header {
		a[k] = len(v)
	}
	for f := e.Header.Fields(); f.Next(); {
		b[f.Key()]++
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Fatalf("net/mail and go-message disagree:\n%s in %q", diff, body)
	}
	for _, k := range []string{"From", "To", "Cc", "Reply-To"} {
		if m.Header.Get(k) != "" {
			if _, err := m.Header.AddressList(k); err != nil {
				t.Fatalf("%s: %v in %q", k, err, body)
			}
		}
	}
	err = e.Walk(func(_ []int, e *gomessage.Entity, err error) error {
		if err == nil && !strings.HasPrefix(e.Header.Get("Content-Type"), "multipart/") {
			_, err = io.Copy(io.Discard, e.Body)
		}
		return err
	})
	if err != nil {
		t.Fatalf("go-message: %v in %q", err, body)
	}
	return m.Header
}

// payloads are what an attacker puts in a field to get out of it.
var payloads = []string{
	"a\r\nBcc: eve@example.org", "a\nBcc: eve@example.org", "a\rBcc: eve@example.org", "a\r\n\r\n<script>", "a\r\n Bcc: x", "a\n\tb",
	"a\x00b", "a\x0bb", "a\x0cb", "a\u0085Bcc: eve@example.org", "a\u2028Bcc: eve@example.org", "a\u2029b", "\r\n.\r\nMAIL FROM:<x>", "a\x1b[2J", "\x7f",
	"=?utf-8?q?a=0D=0ABcc:_eve@example.org?=", "\"", "<", ">", "a, b@example.org", "a;b", "(", "\\", "{{name}}", "{{#each}}", "%0d%0aBcc: x", "a@b@c", "嘊嘍Bcc: eve@example.org",
}

// TestNoFieldCanAddAHeader puts every payload into every field of a request.
// Either it is refused by name, or both parsers find exactly the header fields
// that a harmless request has.
func TestNoFieldCanAddAHeader(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, k := range strings.Fields("Received Date Message-Id From To Cc Reply-To Subject X-Custom List-Id Mime-Version Content-Type Content-Transfer-Encoding") {
		known[k] = true
	}
	att := func(k, v string) map[string]any {
		a := map[string]any{"filename": "a.txt", "content_type": "text/plain", "content": "YQ==", "content_id": "c"}
		a[k] = v
		return map[string]any{"attachments": []any{a}}
	}
	personal := func(r map[string]any, more map[string]any) map[string]any {
		f := map[string]any{"to": nil, "recipients": []any{r}}
		for k, v := range more {
			f[k] = v
		}
		return f
	}
	fields := map[string]func(string) map[string]any{
		"from":        func(p string) map[string]any { return map[string]any{"from": p + "@example.com"} },
		"from domain": func(p string) map[string]any { return map[string]any{"from": "a@example.com" + p} },
		"from.name": func(p string) map[string]any {
			return map[string]any{"from": map[string]string{"email": "a@example.com", "name": p}}
		},
		"return_path": func(p string) map[string]any { return map[string]any{"return_path": p + "@example.com"} },
		"reply_to": func(p string) map[string]any {
			return map[string]any{"reply_to": []any{p + "@example.com", "x@example.com"}}
		},
		"to": func(p string) map[string]any { return map[string]any{"to": p + "@example.com"} },
		"to.name": func(p string) map[string]any {
			return map[string]any{"to": map[string]string{"email": "a@example.com", "name": p}}
		},
		"cc":                 func(p string) map[string]any { return map[string]any{"cc": "b" + p + "@example.com"} },
		"bcc":                func(p string) map[string]any { return map[string]any{"bcc": "b" + p + "@example.com"} },
		"subject":            func(p string) map[string]any { return map[string]any{"subject": p} },
		"text":               func(p string) map[string]any { return map[string]any{"text": p} },
		"html":               func(p string) map[string]any { return map[string]any{"html": p} },
		"headers value":      func(p string) map[string]any { return map[string]any{"headers": map[string]string{"X-Custom": p}} },
		"headers structured": func(p string) map[string]any { return map[string]any{"headers": map[string]string{"List-Id": p}} },
		"headers name": func(p string) map[string]any {
			return map[string]any{"headers": map[string]string{"X-Custom: a\r\nBcc" + p: "v"}}
		},
		"attachments.filename":     func(p string) map[string]any { return att("filename", p) },
		"attachments.content_type": func(p string) map[string]any { return att("content_type", "text/"+p) },
		"attachments.content_id":   func(p string) map[string]any { return att("content_id", p) },
		"attachments.disposition":  func(p string) map[string]any { return att("disposition", p) },
		"tags":                     func(p string) map[string]any { return map[string]any{"tags": []string{p}} },
		"campaign":                 func(p string) map[string]any { return map[string]any{"campaign": p} },
		"pool":                     func(p string) map[string]any { return map[string]any{"pool": p} },
		"recipients.email":         func(p string) map[string]any { return personal(map[string]any{"email": p + "@example.net"}, nil) },
		"recipients.name": func(p string) map[string]any {
			return personal(map[string]any{"email": "b@example.net", "name": p}, nil)
		},
		"recipients.headers": func(p string) map[string]any {
			return personal(map[string]any{"email": "b@example.net", "headers": map[string]string{"X-Custom": p}}, nil)
		},
		"recipients.subst subject": func(p string) map[string]any {
			return personal(map[string]any{"email": "b@example.net", "substitutions": map[string]string{"v": p}}, map[string]any{"subject": "s {{v}}"})
		},
		"recipients.subst header": func(p string) map[string]any {
			return personal(map[string]any{"email": "b@example.net", "substitutions": map[string]string{"v": p}}, map[string]any{"headers": map[string]string{"List-Id": "{{v}}"}})
		},
		"recipients.subst text": func(p string) map[string]any {
			return personal(map[string]any{"email": "b@example.net", "substitutions": map[string]string{"v": p}}, map[string]any{"text": "s {{v}}"})
		},
		"recipients.subst html": func(p string) map[string]any {
			return personal(map[string]any{"email": "b@example.net", "substitutions": map[string]string{"v": p}}, map[string]any{"html": "s {{v}}"})
		},
	}
	refused := 0
	for name, build := range fields {
		for _, p := range payloads {
			w := newWorld(t, Config{}, inject.Deps{})
			res := w.post(with(build(p)))
			if res.Code == 422 {
				refused++
				var pr Problem
				if err := json.Unmarshal(res.Body.Bytes(), &pr); err != nil || len(pr.Errors) == 0 {
					t.Errorf("%s = %q: refused without naming a field: %s", name, p, res.Body)
				}
				if len(w.queue.subs) > 0 {
					t.Errorf("%s = %q: refused and stored", name, p)
				}
				continue
			}
			if res.Code != 202 {
				t.Errorf("%s = %q: %d %s", name, p, res.Code, res.Body)
				continue
			}
			for _, s := range w.queue.subs {
				for k, v := range bothParsersAgree(t, s.Body) {
					if !known[k] || len(v) != 1 {
						t.Errorf("%s = %q: header %s: %q", name, p, k, v)
					}
				}
				if n := len(s.Recipients); n > 2 {
					t.Errorf("%s = %q: %d recipients", name, p, n)
				}
			}
			// A line break in a header is never anything but an attack.
			if strings.ContainsAny(p, "\r\n\x00") && !strings.Contains(name, "text") && !strings.Contains(name, "html") {
				t.Errorf("%s = %q was accepted", name, p)
			}
		}
	}
	if refused < len(fields)*5 {
		t.Errorf("only %d refusals over %d fields", refused, len(fields))
	}
}

func TestNobodySeesAnothersMail(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	var rcpts []any
	for i := range 300 {
		rcpts = append(rcpts, map[string]any{"email": fmt.Sprintf("u%d@example.net", i), "substitutions": map[string]any{"canary": fmt.Sprintf("canary-%d-x", i)},
			"headers": map[string]string{"X-Own": fmt.Sprintf("canary-%d-x", i)}})
	}
	w.post(with(map[string]any{"to": nil, "recipients": rcpts, "subject": "{{canary}}", "text": "a {{canary}}", "html": "{{canary}}"})).into(202, &accepted{})
	canary := regexp.MustCompile(`canary-\d+-x`)
	for i, s := range w.queue.subs {
		found := canary.FindAllString(string(s.Body), -1)
		if len(found) != 4 {
			t.Fatalf("message %d holds %q", i, found)
		}
		for _, c := range found {
			if c != fmt.Sprintf("canary-%d-x", i) {
				t.Fatalf("message %d holds %s", i, c)
			}
		}
	}
	if len(w.queue.subs) != 300 || w.queue.batches != 1 {
		t.Errorf("%d messages in %d batches, want 300 in 1", len(w.queue.subs), w.queue.batches)
	}
}

func TestOneBadRecipientDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	var got accepted
	w.post(with(map[string]any{"to": nil, "text": "{{v}}", "recipients": []any{
		map[string]any{"email": "a@example.net", "substitutions": map[string]any{"v": "x"}},
		map[string]any{"email": "not an address", "substitutions": map[string]any{"v": "x"}},
		map[string]any{"email": "c@example.net"},
		map[string]any{"email": "d@example.net", "substitutions": map[string]any{"v": true}, "name": "a\r\nb"},
	}})).into(202, &got)
	var fields []string
	for _, r := range got.Recipients {
		if r.Error != nil {
			fields = append(fields, r.Error.Field)
		}
	}
	if diff := cmp.Diff([]string{"recipients[1].email", "recipients[2].substitutions.v", "recipients[3].name"}, fields); diff != "" || got.Accepted != 1 || got.Refused != 3 {
		t.Errorf("%+v\n%s", got, diff)
	}
	if len(w.queue.subs) != 1 {
		t.Errorf("%d stored", len(w.queue.subs))
	}
}

func TestTemplatesKnowNothingButNames(t *testing.T) {
	t.Parallel()
	for in, ok := range map[string]bool{
		"{{name}}": true, "{{ a.b-c_1 }}": true, "{ {x} }": true, "}}": true,
		"{{#each x}}": false, "{{{x}}}": false, "{{x": false, "{{}}": false, "{{x|safe}}": false, "{{range .}}": false, "{{.Env}}x{{a b}}": false, "{{ü}}": false,
	} {
		if _, err := parseTemplate("text", in, true); (err == nil) != ok {
			t.Errorf("%s: %v", in, err)
		}
		if tm, err := parseTemplate("text", in, false); err != nil || len(tm.names) != 0 {
			t.Errorf("%s without substitutions is not taken as it is", in)
		}
	}
	tm, _ := parseTemplate("html", "<a title=\"{{v}}\">{{v}}</a>\n", true)
	v := values{own: map[string]scalar{"v": "<&\"'>\r\n{{v}}\rx\n"}}
	got, err := tm.expand(nil, &v, asHTML, 1000)
	if err != nil {
		t.Fatal(err)
	}
	want := "<a title=\"&lt;&amp;&#34;&#39;&gt;\r\n{{v}}\r\nx\r\n\">&lt;&amp;&#34;&#39;&gt;\r\n{{v}}\r\nx\r\n</a>\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSubstitutionsCannotGrowWithoutBound(t *testing.T) {
	t.Parallel()
	tm, bad := parseTemplate("text", strings.Repeat("{{v}}", maxVariables), true)
	if bad != nil {
		t.Fatal(bad)
	}
	v := values{own: map[string]scalar{"v": scalar(strings.Repeat("<\r", 1<<19))}}
	for _, f := range []form{asText, asHTML, asLine} {
		const limit = 4 << 20
		// Escaping may make one value up to six times as long.
		if out, err := tm.expand(nil, &v, f, limit); err != errOverflow || len(out) > limit+6<<20 {
			t.Errorf("form %d: %d octets, %v", f, len(out), err)
		}
	}
	if _, bad := parseTemplate("text", strings.Repeat("{{v}}", maxVariables+1), true); bad == nil || bad.Code != "limit" {
		t.Errorf("one variable too many: %v", bad)
	}
	w := newWorld(t, Config{}, inject.Deps{})
	big := strings.Repeat("x", 1<<20)
	w.post(with(map[string]any{"to": nil, "text": strings.Repeat("{{v}}", 60), "recipients": []any{
		map[string]any{"email": "a@example.net", "substitutions": map[string]any{"v": big}}}})).problem(422, "no_recipient_accepted")
}

func TestRawMailInEveryWrapping(t *testing.T) {
	t.Parallel()
	raw := "From: News <news@example.com>\r\nX-Job: spring\r\nSubject: hi\r\n\r\nbody\r\n"
	w := newWorld(t, Config{}, inject.Deps{})
	wrap := func(s string) string {
		return with(map[string]any{"from": nil, "subject": nil, "text": nil, "raw": s})
	}
	w.post(wrap(raw)).into(202, &accepted{})
	w.post(wrap(base64.StdEncoding.EncodeToString([]byte(raw)))).into(202, &accepted{})
	w.call("POST", "/v1/messages?to=bob@example.net&campaign=spring", raw, "Content-Type", "message/rfc822").into(202, &accepted{})
	w.call("POST", "/v1/messages", raw, "Content-Type", "message/rfc822", "X-Tradewind-To", "bob@example.net, carol@example.net", "X-Tradewind-From", "news@example.com").into(202, &accepted{})
	for i, s := range w.queue.subs {
		if s.Message.Campaign != "spring" || s.Message.From.String() != "news@example.com" || !strings.HasSuffix(string(s.Body), "Subject: hi\r\n\r\nbody\r\n") {
			t.Errorf("%d: %+v %q", i, s.Message, s.Body)
		}
	}
	if got := len(w.queue.subs[3].Recipients); got != 2 {
		t.Errorf("%d recipients, want 2", got)
	}
	w.post(wrap(strings.ReplaceAll(raw, "\r\n", "\n"))).field("raw")
	w.post(wrap("!!!")).field("raw")
	w.post(with(map[string]any{"raw": raw})).field("subject")
	w.call("POST", "/v1/messages?to=bob@example.net&nosuch=1", raw, "Content-Type", "message/rfc822").field("nosuch")
	w.call("POST", "/v1/messages", raw, "Content-Type", "message/rfc822").field("to")
	w.call("POST", "/v1/messages?to=bob@example.net", "Subject: x\r\n\r\n", "Content-Type", "message/rfc822").field("from")
}
