package api

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/inject"
)

// pipeListener hands out one in-memory connection.
type pipeListener struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	close(l.closed)
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// TestClientThatDripsIsPutOut sends a byte a second, in the header, in the
// body and in a stream. Each time the server must end it, in virtual time.
func TestClientThatDripsIsPutOut(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		first string
		limit time.Duration
	}{
		"header": {"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nX: ", 11 * time.Second},
		"body":   {"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer k\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{", 2*time.Minute + time.Second},
		"line":   {"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer k\r\nContent-Type: application/x-ndjson\r\nContent-Length: 100000\r\n\r\n{", 2*time.Minute + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, Config{}, inject.Deps{})
				s := NewServer(w.handler, nil)
				server, client := net.Pipe()
				l := &pipeListener{make(chan net.Conn, 1), make(chan struct{})}
				l.conn <- server
				done := make(chan error, 1)
				go func() { done <- s.Serve(l) }()
				answer := make(chan int, 1)
				began := time.Now()
				go func() {
					res, err := http.ReadResponse(bufio.NewReader(client), nil)
					if err != nil {
						answer <- 0
						return
					}
					io.Copy(io.Discard, res.Body)
					answer <- res.StatusCode
				}()

				_, err := io.WriteString(client, tt.first)
				tick := time.NewTicker(time.Second)
				defer tick.Stop()
				for err == nil && time.Since(began) < time.Hour {
					<-tick.C
					_, err = io.WriteString(client, "x")
				}
				if held := time.Since(began); err == nil || held > tt.limit+2*time.Second {
					t.Errorf("held the connection for %v, want at most %v", held, tt.limit)
				}
				if code := <-answer; code >= 200 && code < 300 && name != "line" {
					t.Errorf("answered %d", code)
				}
				client.Close()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if err := <-done; err != http.ErrServerClosed {
					t.Error(fmt.Errorf("serve: %w", err))
				}
				if len(w.queue.subs) > 0 {
					t.Error("something was stored")
				}
			})
		})
	}
}

// TestRestOfABrokenStreamIsNotARequest lets a stream time out and then sends
// what would be a request of its own, had the stream not announced more.
func TestRestOfABrokenStreamIsNotARequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}, inject.Deps{})
		s := NewServer(w.handler, nil)
		server, client := net.Pipe()
		l := &pipeListener{make(chan net.Conn, 1), make(chan struct{})}
		l.conn <- server
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		if _, err := io.WriteString(client, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer k\r\nContent-Type: application/x-ndjson\r\nContent-Length: 100000\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(client)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil || !strings.Contains(string(body), `"status":408`) {
			t.Fatalf("%q, %v", body, err)
		}
		inner := with(nil)
		fmt.Fprintf(client, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer k\r\nContent-Length: %d\r\n\r\n%s", len(inner), inner)
		if res, err := http.ReadResponse(in, nil); err == nil {
			t.Errorf("the rest of the body was answered with %d", res.StatusCode)
		}
		client.Close()
		s.Close()
		<-done
		if len(w.queue.subs) > 0 {
			t.Errorf("the rest of the body became %d messages", len(w.queue.subs))
		}
	})
}
