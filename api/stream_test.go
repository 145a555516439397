package api

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/inject"
)

func replies(t *testing.T, body string) []lineReply {
	t.Helper()
	var out []lineReply
	for l := range strings.SplitSeq(strings.TrimSpace(body), "\n") {
		var r lineReply
		if err := json.Unmarshal([]byte(l), &r); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		out = append(out, r)
	}
	return out
}

func TestStreamAnswersEachLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	body := with(nil) + "\r\n\n" + with(map[string]any{"from": "x"}) + "\n{broken\n" + with(nil)
	res := w.post(body, "Content-Type", "application/x-ndjson")
	got := replies(t, res.Body.String())
	var short []string
	for _, r := range got {
		short = append(short, fmt.Sprint(r.Line, " ", r.Status))
	}
	if want := "[1 202 3 422 4 400 5 202]"; fmt.Sprint(short) != want || res.Code != 200 {
		t.Errorf("%d %v, want %s", res.Code, short, want)
	}
	if got[1].Problem == nil || got[1].Problem.Errors[0].Field != "from.email" {
		t.Errorf("line 3: %+v", got[1].Problem)
	}
	if len(w.queue.subs) != 2 {
		t.Errorf("%d stored", len(w.queue.subs))
	}
	if w.api.memory.free != int64(w.api.cfg.MaxMemory) {
		t.Error("memory was not given back")
	}
}

func TestStreamSentAgainIsTakenUpWhereItBroke(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	var lines []string
	for i := range 20 {
		lines = append(lines, with(map[string]any{"subject": fmt.Sprint(i)}))
	}
	first := w.post(strings.Join(lines[:12], "\n"), "Content-Type", "application/x-ndjson", "Idempotency-Key", "night")
	second := replies(t, w.post(strings.Join(lines, "\n"), "Content-Type", "application/x-ndjson", "Idempotency-Key", "night").Body.String())
	for i, r := range second {
		if r.Status != 202 || r.Replayed != (i < 12) {
			t.Errorf("line %d: %+v", i+1, r)
		}
	}
	if string(replies(t, first.Body.String())[0].Result) != string(second[0].Result) || len(w.queue.subs) != 20 {
		t.Errorf("%d stored", len(w.queue.subs))
	}
	twice := with(map[string]any{"idempotency_key": "a"})
	got := replies(t, w.post(twice+"\n"+twice, "Content-Type", "application/x-ndjson").Body.String())
	if got[0].Status != 202 || (got[1].Status != 409 && !got[1].Replayed) || len(w.queue.subs) != 21 {
		t.Errorf("the same line twice: %+v, %d stored", got, len(w.queue.subs))
	}
}

func TestStreamWhoseCommitFailsAcceptsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	w.queue.err = errors.New("disk")
	for _, r := range replies(t, w.post(with(nil)+"\n"+with(nil), "Content-Type", "application/x-ndjson").Body.String()) {
		if r.Status != 503 || r.Result != nil {
			t.Errorf("%+v", r)
		}
	}
}

func TestStreamEndsAtALineThatIsTooLongOrCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{MaxBody: 4096}, inject.Deps{})
	got := replies(t, w.post(with(nil)+"\n"+strings.Repeat("x", 5000)+"\n"+with(nil), "Content-Type", "application/x-ndjson").Body.String())
	if len(got) != 2 || got[0].Status != 202 || got[1].Status != 413 {
		t.Errorf("%+v", got)
	}
	z := gzipped(strings.Repeat(with(nil)+"\n", 3))
	got = replies(t, w.post(z[:len(z)-9], "Content-Type", "application/x-ndjson", "Content-Encoding", "gzip").Body.String())
	if last := got[len(got)-1]; last.Status != 400 {
		t.Errorf("cut gzip: %+v", last)
	}
	whole := len(got) - 1
	if stored := len(w.queue.subs) - 1; stored != whole {
		t.Errorf("%d messages stored before the cut, %d accepted", stored, whole)
	}
}

// TestStreamIsAConversation sends a line, waits for its answer and only then
// sends the next, over a real loopback connection.
func TestStreamIsAConversation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, inject.Deps{})
	s := httptest.NewUnstartedServer(nil)
	s.Config = NewServer(w.handler, nil)
	s.Start()
	defer s.Close()
	in, out := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/v1/messages", in)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer k")
	r.Header.Set("Content-Type", "application/x-ndjson")
	started := make(chan *http.Response, 1)
	go func() {
		defer close(started)
		if res, err := s.Client().Do(r); err == nil {
			started <- res
		} else {
			t.Error(err)
		}
	}()
	if _, err := io.WriteString(out, with(nil)+"\n"); err != nil {
		t.Fatal(err)
	}
	res := <-started
	if res == nil {
		t.Fatal("no answer")
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for n := range 3 {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), fmt.Sprintf(`{"line":%d,"status":202`, n+1)) {
			t.Fatalf("answer %d: %q %v", n+1, lines.Text(), lines.Err())
		}
		if n < 2 {
			if _, err := io.WriteString(out, with(nil)+"\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	out.Close()
	if lines.Scan() {
		t.Errorf("one answer too many: %q", lines.Text())
	}
	if w.queue.batches != 3 {
		t.Errorf("%d commits, want one for each pause", w.queue.batches)
	}
}

// FuzzMessages holds the handler to its promises whatever a body holds: an
// answer of a known kind, problems with a code, and mail that two parsers
// read alike.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(with(nil)), "application/json")
	f.Add([]byte(with(map[string]any{"html": "<b>{{v}}</b>", "to": nil, "recipients": []any{map[string]any{"email": "a@example.net", "substitutions": map[string]any{"v": 1}}}})), "application/json")
	f.Add([]byte(with(nil)+"\n"+with(nil)), "application/x-ndjson")
	f.Add([]byte("From: a@b\r\n\r\nx"), "message/rfc822")
	f.Add([]byte(`{"raw":"RnJvbTogYUBiDQoNCng=","to":"a@b"}`), "application/json")
	f.Add([]byte(with(map[string]any{"attachments": []any{map[string]string{"content": "YQ==", "filename": "ü.txt", "content_id": "x"}}, "headers": map[string]string{"X-A": "é"}})), "application/json")
	f.Fuzz(func(t *testing.T, body []byte, kind string) {
		w := newWorld(t, Config{MaxBody: 1 << 20}, inject.Deps{})
		target := "/v1/messages"
		if strings.HasPrefix(kind, "message/") {
			target += "?to=a@b"
		}
		r := httptest.NewRequest("POST", target, strings.NewReader(string(body)))
		r.Header.Set("Authorization", "Bearer k")
		r.Header.Set("Content-Type", kind)
		rec := httptest.NewRecorder()
		w.handler.ServeHTTP(rec, r)
		switch rec.Code {
		case 200, 202:
		case 400, 403, 413, 415, 422, 503:
			var p Problem
			if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || p.Code == "" || p.Status != rec.Code {
				t.Fatalf("%d %s", rec.Code, rec.Body)
			}
			if len(w.queue.subs) > 0 {
				t.Fatalf("%d and %d messages stored", rec.Code, len(w.queue.subs))
			}
		default:
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
		if strings.HasPrefix(kind, "message/") || strings.Contains(string(body), "raw") {
			return // the client's own mail may be as odd as it likes
		}
		for _, s := range w.queue.subs {
			bothParsersAgree(t, s.Body)
		}
		if w.api.memory.free != int64(w.api.cfg.MaxMemory) {
			t.Fatal("memory was not given back")
		}
	})
}
