package event

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/message"
)

// endpoint is an HTTP server on connections in memory.
type endpoint struct {
	conns  chan net.Conn
	closed chan struct{}

	mu       sync.Mutex // protects everything below
	answer   func(w http.ResponseWriter)
	requests []*http.Request
	bodies   [][]byte
	at       []time.Time
}

func newEndpoint(t *testing.T) *endpoint {
	e := &endpoint{conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{Handler: e}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(e) })
	t.Cleanup(func() { srv.Close(); wg.Wait() })
	return e
}

func (e *endpoint) Accept() (net.Conn, error) {
	select {
	case c := <-e.conns:
		return c, nil
	case <-e.closed:
		return nil, net.ErrClosed
	}
}
func (e *endpoint) Close() error   { close(e.closed); return nil }
func (e *endpoint) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

func (e *endpoint) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case e.conns <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	e.mu.Lock()
	e.requests = append(e.requests, r)
	e.bodies = append(e.bodies, body)
	e.at = append(e.at, time.Now())
	answer := e.answer
	e.mu.Unlock()
	if answer != nil {
		answer(w)
	}
}

func (e *endpoint) answers(f func(http.ResponseWriter)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = f
}

func (e *endpoint) tries() []time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]time.Time(nil), e.at...)
}

func status(code int, header ...string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

func secret(b byte) string {
	return secretPrefix + base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(b), 32)))
}

func newHook(t *testing.T, e *endpoint, c WebhookConfig) *Webhook {
	t.Helper()
	c.Name, c.URL, c.AllowPlain, c.Dial = "hook", "http://hook.example/in", true, e.dial
	if c.Secrets == nil {
		c.Secrets = []string{secret('a')}
	}
	w, err := NewWebhook(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

func record(e *message.Event) Record {
	return Record{Seq: e.Seq, Type: e.Type, JSON: e.AppendJSON(nil)}
}

func TestWebhookIsSignedByEverySecret(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(t)
		w := newHook(t, e, WebhookConfig{Secrets: []string{secret('a'), secret('b')}})
		first, last := full(), full()
		last.Seq = 43
		batch := []Record{record(first), record(last)}
		deliver(t, w, batch)
		deliver(t, w, batch)
		r, body := e.requests[0], e.bodies[0]
		if r.Method != http.MethodPost || r.URL.Path != "/in" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("got %s %s %v", r.Method, r.URL, r.Header)
		}
		id, stamp := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
		if want := fmt.Sprint(time.Now().Unix()); stamp != want {
			t.Errorf("got timestamp %s, want %s", stamp, want)
		}
		if id == "" || strings.Contains(id, ".") || id != e.requests[1].Header.Get("webhook-id") {
			t.Errorf("id %q is not the same at every try", id)
		}
		var want []string
		for _, c := range "ab" {
			m := hmac.New(sha256.New, []byte(strings.Repeat(string(c), 32)))
			fmt.Fprintf(m, "%s.%s.%s", id, stamp, body)
			want = append(want, "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
		}
		if d := cmp.Diff(strings.Join(want, " "), r.Header.Get("webhook-signature")); d != "" {
			t.Errorf("signature (-want +got):\n%s", d)
		}
		var evs []json.RawMessage
		if err := json.Unmarshal(body, &evs); err != nil || len(evs) != 2 {
			t.Fatalf("body is no array of two: %v", err)
		}
		for i, want := range []*message.Event{first, last} {
			got, err := Parse(evs[i])
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, sameEvent); d != "" {
				t.Errorf("event %d (-want +got):\n%s", i, d)
			}
		}
	})
}

func TestOnlyTwoHundredsAreSuccess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(t)
		w := newHook(t, e, WebhookConfig{})
		date := time.Now().Add(90 * time.Second).UTC().Format(http.TimeFormat)
		for _, tc := range []struct {
			name    string
			answer  func(http.ResponseWriter)
			ok      bool
			after   time.Duration
			disable bool
		}{
			{"ok", status(200), true, 0, false},
			{"no content", status(204), true, 0, false},
			{"redirect", status(307, "Location", "http://elsewhere.example/"), false, 0, false},
			{"bad request", status(400), false, 0, false},
			{"gone", status(410), false, 0, true},
			{"too many", status(429, "Retry-After", "120"), false, 2 * time.Minute, false},
			{"unavailable until", status(503, "Retry-After", date), false, 90 * time.Second, false},
			{"bad gateway", status(502, "Retry-After", "soon"), false, 0, false},
			{"server error", status(500, "Retry-After", "120"), false, 0, false},
			{"endless answer", func(w http.ResponseWriter) {
				for range 10_000 {
					if _, err := w.Write(make([]byte, 4<<10)); err != nil {
						return
					}
				}
			}, true, 0, false},
		} {
			e.answers(tc.answer)
			err := w.Deliver(t.Context(), []Record{record(full())})
			var r *Refusal
			if !errors.As(err, &r) {
				r = &Refusal{}
			}
			if (err == nil) != tc.ok || r.After != tc.after || r.Disable != tc.disable {
				t.Errorf("%s: got %v, %+v", tc.name, err, r)
			}
		}
		if n := len(e.requests); n != 10 {
			t.Errorf("endpoint was asked %d times, want 10: redirects are not followed", n)
		}
	})
}

func TestSilentEndpointIsGivenUpAfterFifteenSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(t)
		w := newHook(t, e, WebhookConfig{})
		e.answers(func(http.ResponseWriter) { time.Sleep(time.Minute) })
		start := time.Now()
		err := w.Deliver(t.Context(), []Record{record(full())})
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != webhookTimeout {
			t.Errorf("got %v after %v", err, took)
		}
		time.Sleep(time.Hour)
	})
}

func TestDeadWebhookIsTriedForThreeDaysAndThenParked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		e := newEndpoint(t)
		e.answers(status(500))
		s := newStage(t, NewJournal(db, Config{}), nil)
		w := newHook(t, e, WebhookConfig{})
		s.add(w, w.Options())
		s.start()
		want := commit(t, s.j, db, delivered(1))
		time.Sleep(10 * 24 * time.Hour)
		tries := e.tries()
		if len(tries) != 10 {
			t.Fatalf("tried %d times, want 10", len(tries))
		}
		if took := tries[9].Sub(tries[0]); took < 75*time.Hour || took > 84*time.Hour {
			t.Errorf("tried for %v, want 75 h and up to a tenth more", took)
		}
		st := s.status("hook")
		if st.State != Parked || st.Cursor >= want[0] {
			t.Errorf("got %+v, want it parked before event %d", st, want[0])
		}
		e.answers(nil)
		if err := s.r.Resume("hook"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if st := s.status("hook"); st.State != Running || st.Cursor < want[0] {
			t.Errorf("after resume: %+v", st)
		}
		s.end()
		w.Close()
	})
}

func TestWebhookSeesOnlyItsTenantAndTypes(t *testing.T) {
	t.Parallel()
	w, err := NewWebhook(WebhookConfig{Name: "w", URL: "https://hook.example/", Secrets: []string{secret('a')},
		Tenant: `ac"me`, Types: []message.EventType{message.EventDelivered, message.EventBounced}})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		e    message.Event
		want bool
	}{
		"its own":               {message.Event{Type: message.EventBounced, Tenant: `ac"me`}, true},
		"another type":          {message.Event{Type: message.EventOpened, Tenant: `ac"me`}, false},
		"another tenant":        {message.Event{Type: message.EventBounced, Tenant: "other"}, false},
		"no tenant":             {message.Event{Type: message.EventBounced}, false},
		"claimed in metadata":   {message.Event{Type: message.EventBounced, Metadata: json.RawMessage(`{"tenant":"ac\"me"}`)}, false},
		"claimed in a reply":    {message.Event{Type: message.EventBounced, Reply: &message.Reply{Text: `","tenant":"ac"me`}}, false},
		"claimed by the sender": {message.Event{Type: message.EventBounced, Sender: `x","tenant":"ac\"me","y":"`, Tenant: "other"}, false},
		"claimed as a tag":      {message.Event{Type: message.EventBounced, Tags: []string{"tenant", `ac"me`}}, false},
	} {
		if got := w.Wants(record(&tc.e)); got != tc.want {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
}

func FuzzTenantOf(f *testing.F) {
	f.Add("acme", "x", []byte(`{"tenant":"other"}`))
	f.Add(`a"c\me`, `","tenant":"b`, []byte(`{"a":[{"tenant":["x"]}]}`))
	f.Fuzz(func(t *testing.T, tenant, sender string, metadata []byte) {
		e := message.Event{Type: message.EventBounced, Tenant: tenant, Sender: sender}
		var m map[string]any
		if json.Unmarshal(metadata, &m) == nil {
			e.Metadata = metadata
		}
		b := e.AppendJSON(nil)
		var want struct {
			Tenant string `json:"tenant"`
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		if got := tenantOf(b); got != want.Tenant {
			t.Fatalf("got %q, want %q in %s", got, want.Tenant, b)
		}
		tenantOf(metadata) // whatever it is, it must not panic
	})
}

func TestWebhookConfigurationIsChecked(t *testing.T) {
	t.Parallel()
	good := WebhookConfig{Name: "w", URL: "https://hook.example/in", Secrets: []string{secret('a')}}
	if _, err := NewWebhook(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*WebhookConfig){
		"plain http":    func(c *WebhookConfig) { c.URL = "http://hook.example/" },
		"other scheme":  func(c *WebhookConfig) { c.URL, c.AllowPlain = "file:///etc/passwd", true },
		"no host":       func(c *WebhookConfig) { c.URL = "https:///in" },
		"user":          func(c *WebhookConfig) { c.URL = "https://u:p@hook.example/" },
		"not a URL":     func(c *WebhookConfig) { c.URL = "https://hook.example/%zz" },
		"no secret":     func(c *WebhookConfig) { c.Secrets = nil },
		"bare secret":   func(c *WebhookConfig) { c.Secrets = []string{strings.Repeat("a", 40)} },
		"short secret":  func(c *WebhookConfig) { c.Secrets = []string{secretPrefix + "YWJj"} },
		"broken base64": func(c *WebhookConfig) { c.Secrets = []string{secretPrefix + "!!!"} },
	} {
		c := good
		spoil(&c)
		if _, err := NewWebhook(c); !errors.Is(err, ErrWebhook) {
			t.Errorf("%s: got %v, want ErrWebhook", name, err)
		}
	}
}

func TestGuardLetsOnlyPublicAddressesThrough(t *testing.T) {
	t.Parallel()
	guard := PublicOnly(netip.MustParsePrefix("10.1.0.0/16"))
	for addr, ok := range map[string]bool{
		"93.184.216.34:443": true, "[2606:4700::1]:443": true, "10.1.2.3:443": true, "[::ffff:10.1.2.3]:443": true,
		"127.0.0.1:443": false, "10.2.0.1:443": false, "192.168.1.1:80": false, "169.254.169.254:80": false, "100.100.100.200:80": false,
		"0.0.0.0:80": false, "255.255.255.255:80": false, "224.0.0.1:80": false, "198.18.0.1:80": false,
		"[::1]:80": false, "[::]:80": false, "[fe80::1%eth0]:80": false, "[fd00::1]:80": false, "[::ffff:127.0.0.1]:80": false,
		"[64:ff9b::7f00:1]:80": false, "[2002:7f00:1::]:80": false, "[::7f00:1]:80": false, "[2001:0:1::1]:80": false,
		"hook.example:443": false, "": false,
	} {
		if err := guard("tcp", addr, nil); (err == nil) != ok {
			t.Errorf("%s: got %v, want allowed %v", addr, err, ok)
		}
	}
}

func TestDefaultDialerIsGuarded(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w, err := NewWebhook(WebhookConfig{Name: "w", URL: "http://" + ln.Addr().String() + "/", AllowPlain: true, Secrets: []string{secret('a')}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Deliver(t.Context(), []Record{record(full())}); err == nil || !strings.Contains(err.Error(), "not a public address") {
		t.Errorf("got %v, want the guard's refusal", err)
	}
}
