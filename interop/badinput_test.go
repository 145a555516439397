//go:build interop && linux

package interop

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// problemOf holds an answer to a status and to being a problem document.
func problemOf(t *testing.T, status int, body []byte, want ...int) {
	t.Helper()
	for _, w := range want {
		if status == w && bytes.Contains(body, []byte(`"status":`)) && bytes.Contains(body, []byte(`"title":`)) {
			return
		}
	}
	t.Errorf("got %d %.500s, want %v and a problem document", status, body, want)
}

// alive checks that the engine still takes and delivers mail.
func alive(t *testing.T, e *engine, sink *receiver) {
	t.Helper()
	before := len(sink.messages())
	if dialogue, status := swaks(t, e.smtp[0], "--to", "alive@example.net"); status != 0 {
		t.Fatalf("no longer takes mail: exit status %d\n%s", status, dialogue)
	}
	sink.wait(t, before+1)
}

func TestBadRequestsAreRefusedAndHarmNobody(t *testing.T) {
	t.Parallel()
	sink := receive(t, "127.0.0.1:0", loadgen.SinkConfig{})
	e := start(t, toSink(sink.addr))
	target := e.api + "/v1/messages"
	const json = "application/json"

	t.Run("a body of 100 MB", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "big.json")
		big := bytes.Repeat([]byte("x"), 100<<20)
		copy(big, `{"from":"me@example.com","to":["you@example.net"],"text":"`)
		if err := os.WriteFile(file, big, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{}, {"-H", "Transfer-Encoding: chunked"}, {"-H", "Expect:"}} {
			args = append(args, "-s", "-o", os.DevNull, "-w", "%{http_code}", "-H", "Content-Type: application/json", "--data-binary", "@"+file, target)
			// It may hang up on curl, which then says so by its exit status.
			if out, _ := tool(t, "curl", args...); out != "413" {
				t.Errorf("curl %v: %s, want 413", args, out)
			}
		}
	})
	t.Run("50,000 recipients", func(t *testing.T) {
		var b strings.Builder
		b.WriteString(`{"from":"me@example.com","subject":"x","text":"x","recipients":[`)
		for i := range 50_000 {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"email":"u%d@example.net"}`, i)
		}
		b.WriteString("]}")
		status, body := post(t, target, json, strings.NewReader(b.String()))
		problemOf(t, status, body, 400, 413, 422)
	})
	t.Run("50,000 recipients over SMTP", func(t *testing.T) {
		c := dial(t, e.smtp[0])
		c.ask("EHLO client.example", "250")
		c.ask("MAIL FROM:<me@example.com>", "250")
		refused := 0
		for i := range 50_000 {
			c.say(fmt.Sprintf("RCPT TO:<u%d@example.net>\r\n", i))
			got, err := c.reply()
			if strings.HasPrefix(got, "4") {
				refused++
			}
			if err != nil || strings.HasPrefix(got, "421") || refused == 5000 {
				break
			}
		}
		if refused == 0 {
			t.Error("every recipient was taken")
		}
	})
	t.Run("a truncated gzip", func(t *testing.T) {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		io.WriteString(w, `{"from":"me@example.com","to":["you@example.net"],"subject":"x","text":"`+strings.Repeat("words ", 10_000)+`"}`)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for _, cut := range []int{1, 9, b.Len() / 2, b.Len() - 1} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, bytes.NewReader(b.Bytes()[:cut]))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", json)
			req.Header.Set("Content-Encoding", "gzip")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			status, body := answer(t, resp)
			problemOf(t, status, body, 400)
		}
	})
	t.Run("a small gzip of much", func(t *testing.T) {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		zeros := make([]byte, 1<<20)
		for range 128 {
			w.Write(zeros)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, &b)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", json)
		req.Header.Set("Content-Encoding", "gzip")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		status, body := answer(t, resp)
		problemOf(t, status, body, 413)
	})
	for name, text := range map[string]string{
		"invalid UTF-8":        "{\"from\":\"me@example.com\",\"to\":[\"you@example.net\"],\"subject\":\"\xff\xfe\",\"text\":\"x\"}",
		"half a document":      `{"from":"me@example.com"`,
		"two documents":        `{"from":"me@example.com","to":["you@example.net"],"text":"x"}{}`,
		"an unknown field":     `{"from":"me@example.com","to":["you@example.net"],"text":"x","txet":"y"}`,
		"a line in a header":   `{"from":"me@example.com","to":["you@example.net"],"text":"x","headers":{"X-A":"b\r\nBcc: c@example.org"}}`,
		"a line in an address": `{"from":"me@example.com","to":["you@example.net\r\nRCPT TO:<c@example.org>"],"text":"x"}`,
		"no recipient":         `{"from":"me@example.com","text":"x"}`,
		"nothing":              ``,
		"deep nesting":         strings.Repeat("[", 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			status, body := post(t, target, json, strings.NewReader(text))
			problemOf(t, status, body, 400, 422)
		})
	}
	t.Run("a header of 1 MB", func(t *testing.T) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(e.api, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		// They may refuse before the end.
		go io.WriteString(conn, "GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Big: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, _ := answer(t, resp); status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("got %d, want 431", status)
		}
	})
	t.Run("a client that drips", func(t *testing.T) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(e.api, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		drip(t, conn, "GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "+strings.Repeat("x", 10_000), 30*time.Second)
	})
	if n := len(only(e.events(t), "message.accepted")); n != 0 {
		t.Errorf("%d recipients were accepted", n)
	}
	alive(t, e, sink)
	e.drained(t)
}

// drip writes text an octet at a time until the other side has had enough,
// which must be within limit.
func drip(t *testing.T, conn net.Conn, text string, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		io.Copy(io.Discard, conn) // ends when they hang up, or we do
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-gone:
			return
		case <-ctx.Done():
			conn.Close()
			<-gone
			t.Fatalf("still listening after %v and %d octets", limit, i)
		case <-tick.C:
			if i < len(text) {
				conn.Write([]byte{text[i]}) // fails once they have hung up
			}
		}
	}
}

func TestBadDialoguesAreRefusedAndHarmNobody(t *testing.T) {
	t.Parallel()
	sink := receive(t, "127.0.0.1:0", loadgen.SinkConfig{})
	e := start(t, toSink(sink.addr)+`
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.0/8"]
idle_timeout = "2s"
max_message_size = "2MiB"
`)
	send := func(t *testing.T, addr, msg, want string) {
		t.Helper()
		c := dial(t, addr)
		c.ask("EHLO client.example", "250")
		c.ask("MAIL FROM:<me@example.com> BODY=8BITMIME", "250")
		c.ask("RCPT TO:<you@example.net>", "250")
		c.ask("DATA", "354")
		go c.conn.Write([]byte(msg + "\r\n.\r\n")) // they may refuse before the end
		c.expect(want)
	}
	const head = "From: me@example.com\r\nTo: you@example.net\r\nSubject: x\r\n"

	t.Run("AUTH without TLS", func(t *testing.T) {
		c := dial(t, e.smtp[0])
		c.say("EHLO client.example\r\n")
		offer, err := c.reply()
		if err != nil || strings.Contains(offer, "AUTH") || strings.Contains(offer, "STARTTLS") {
			t.Errorf("offered %q, %v", offer, err)
		}
		c.ask("AUTH PLAIN AGEAYg==", "50")
		c.ask("STARTTLS", "50")
	})
	t.Run("a header of 1 MB in one line", func(t *testing.T) {
		send(t, e.smtp[0], head+"X-Big: "+strings.Repeat("x", 1<<20)+"\r\n\r\ntext", "55")
	})
	t.Run("a header of 1 MB in many fields", func(t *testing.T) {
		send(t, e.smtp[0], head+strings.Repeat("X-Big: "+strings.Repeat("x", 70)+"\r\n", 1<<20/79)+"\r\ntext", "55")
	})
	t.Run("a message above the limit", func(t *testing.T) {
		send(t, e.smtp[1], head+"\r\n"+strings.Repeat(strings.Repeat("x", 70)+"\r\n", 3<<20/72), "552 5.3.4")
	})
	t.Run("SIZE above the limit", func(t *testing.T) {
		c := dial(t, e.smtp[1])
		c.ask("EHLO client.example", "250")
		c.ask("MAIL FROM:<me@example.com> SIZE=100000000", "552 5.3.4")
	})
	t.Run("bare line feeds", func(t *testing.T) {
		send(t, e.smtp[0], head+"\r\none\ntwo", "550 5.6.0")
	})
	t.Run("an end of data that is none", func(t *testing.T) {
		send(t, e.smtp[0], head+"\r\none\n.\nMAIL FROM:<x@example.com>", "550 5.6.0")
	})
	t.Run("invalid UTF-8 in an address", func(t *testing.T) {
		c := dial(t, e.smtp[0])
		c.ask("EHLO client.example", "250")
		c.ask("MAIL FROM:<me@example.com> SMTPUTF8", "250")
		c.ask("RCPT TO:<you\xff\xfe@example.net>", "5")
		c.ask("RCPT TO:<you@\xff\xfe.example>", "5")
	})
	t.Run("a command of 1 MB", func(t *testing.T) {
		c := dial(t, e.smtp[0])
		go c.conn.Write([]byte("EHLO " + strings.Repeat("x", 1<<20) + "\r\n"))
		c.expect("5")
	})
	t.Run("an HTTP request", func(t *testing.T) {
		c := dial(t, e.smtp[0])
		c.ask("POST / HTTP/1.1", "554 5.5.1")
	})
	t.Run("talking before the greeting", func(t *testing.T) {
		conn, err := net.Dial("tcp", e.smtp[0])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "EHLO x\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n%s\r\nx\r\n.\r\nQUIT\r\n", head)
		io.Copy(io.Discard, conn)
	})
	// Each octet may be in time, the command as a whole is not.
	t.Run("a client that drips a command", func(t *testing.T) {
		c := dial(t, e.smtp[1])
		drip(t, c.conn, "NOOP "+strings.Repeat("x", 300), 20*time.Second)
	})
	t.Run("a client that falls silent", func(t *testing.T) {
		c := dial(t, e.smtp[1])
		c.ask("EHLO client.example", "250")
		drip(t, c.conn, "", 20*time.Second)
	})

	for _, m := range sink.messages() {
		if !bytes.Contains(m.Body, []byte("\r\nx\r\n")) { // of the one who could not wait
			t.Errorf("this got through: %.500s", m.Body)
		}
	}
	// Octets that are no UTF-8 in a body are the sender's business.
	before := len(sink.messages())
	send(t, e.smtp[0], head+"Content-Transfer-Encoding: 8bit\r\nMIME-Version: 1.0\r\n\r\n\xff\xfe\x80", "250")
	if got := bodyOf(sink.wait(t, before+1)[before].Body); !bytes.Equal(got, []byte("\xff\xfe\x80\r\n")) {
		t.Errorf("the body became %q", got)
	}
	alive(t, e, sink)
	e.drained(t)
}
