package test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/emersion/go-msgauth/dkim"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
)

// world is everything around one engine, and the engine.
type world struct {
	t       *testing.T
	began   time.Time
	zone    *zonetest.Zone
	sinks   map[string]*receiver // by name
	byIP    map[string]*receiver
	other   func(addr string) (net.Conn, error) // connects to hosts that are not sinks
	log     *logBuffer
	keyFile string
	config  string // tables the story adds

	machine  *machine
	cancel   context.CancelFunc
	done     chan error // of the engine that runs; nil when none does
	gone     []chan error
	apiKeys  map[string]string // by tenant; "" is the operator's
	reloader func(*configs.Config) ([]string, error)
	metrics  prometheus.Gatherer
}

// senders are the domains that stories send from. They have a DKIM key;
// late.example has one in the DNS only, and KEYFILE in a configuration names it.
var senders = []string{"sender.example", "other.example", "mta.example"}

const (
	submissionAddr = "127.0.0.1:2525"
	apiAddr        = "127.0.0.1:8025"
	adminAddr      = "127.0.0.1:9025"
)

// newWorld makes a world without an engine. REQUIRES: a synctest bubble.
func newWorld(t *testing.T, zone, config string) *world {
	t.Helper()
	w := &world{
		t: t, began: time.Now(), zone: zonetest.New(zone), sinks: map[string]*receiver{}, byIP: map[string]*receiver{},
		log: &logBuffer{}, config: config, apiKeys: map[string]string{},
	}
	var seed [ed25519.SeedSize]byte
	copy(seed[:], t.Name())
	key := ed25519.NewKeyFromSeed(seed[:])
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	w.keyFile = filepath.Join(t.TempDir(), "key.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(w.keyFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	record := fmt.Sprintf(`TXT "v=DKIM1; k=ed25519; p=%s"`, base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey)))
	for _, d := range append(senders[:len(senders):len(senders)], "late.example") {
		w.zone.Set("s1._domainkey."+d+".", record)
	}
	w.machine = newMachine(w, vfs.NewCrashableMem())
	return w
}

// configuration is the text of what the engine runs with.
func (w *world) configuration(story string) string {
	var b strings.Builder
	top, tables := story, ""
	if i := strings.Index("\n"+story, "\n["); i >= 0 {
		top, tables = story[:i], story[i:]
	}
	b.WriteString("hostname = \"mta.example\"\ndata_dir = \"data\"\n" + top + "\n")
	if !strings.Contains(tables, "[[smtp]]") {
		fmt.Fprintf(&b, "[[smtp]]\nlisten = %q\nrelay_from = [\"127.0.0.0/8\"]\n", submissionAddr)
	}
	fmt.Fprintf(&b, "[http]\napi = %q\nadmin = %q\ntrust_loopback = true\n", apiAddr, adminAddr)
	b.WriteString("[dns]\nservers = [\"203.0.113.53\"]\nallow_networks = [\"192.0.2.0/24\"]\n")
	b.WriteString("[store]\ncache = \"4MiB\"\nmemtable = \"4MiB\"\nballast = \"0\"\n")
	for _, d := range senders {
		fmt.Fprintf(&b, "[[dkim]]\ndomain = %q\nselector = \"s1\"\nkey_file = %q\n", d, w.keyFile)
	}
	b.WriteString(strings.ReplaceAll(tables, "KEYFILE", w.keyFile))
	return b.String()
}

// start starts an engine on the machine.
func (w *world) start() {
	w.t.Helper()
	cfg, err := configs.Parse("story", []byte(w.configuration(w.config)))
	if err != nil {
		w.t.Fatalf("configuration: %v", err)
	}
	m := w.machine
	a, err := app.New(cfg, app.Options{
		Logger: slog.New(slog.NewTextHandler(w.log, nil)),
		FS:     m.disk, Memory: true,
		Listen: m.listen, Dial: m.dial, Exchange: m.exchange,
		Rand: func() float64 { return 0.5 }, // retries fall on the dot
	})
	if err != nil {
		w.t.Fatalf("start: %v", err)
	}
	w.reloader, w.metrics = a.Reload, a.Metrics()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	w.cancel, w.done = cancel, done
	synctest.Wait()
}

// stop ends the engine in order and waits for it.
func (w *world) stop() {
	w.t.Helper()
	if w.done == nil {
		return
	}
	w.cancel()
	if err := <-w.done; err != nil {
		w.t.Errorf("the engine ended with: %v", err)
	}
	w.done = nil
	synctest.Wait()
}

// crash ends the engine at once, by a power cut or with the disk's cache whole,
// and puts another machine in its place. What the old engine still does is seen
// by nobody.
func (w *world) crash(powerCut bool) {
	w.t.Helper()
	next := newMachine(w, w.machine.after(powerCut))
	w.machine.cut()
	w.cancel()
	w.gone = append(w.gone, w.done)
	w.machine, w.done = next, nil
	synctest.Wait()
	w.start()
}

// end stops everything that is left, however the story ended: no goroutine may
// outlive its bubble.
func (w *world) end() {
	for _, r := range w.sinks {
		r.release()
	}
	w.machine.disk.open()
	if w.done != nil {
		w.cancel()
		<-w.done
	}
	for _, done := range w.gone {
		<-done
	}
	for _, r := range w.sinks {
		r.end()
	}
}

// verify checks the queue on the disk of an engine that has ended.
func (w *world) verify() {
	w.t.Helper()
	db, err := store.Open("data", store.Spool, store.Options{
		FS: w.machine.disk,
	})
	if err != nil {
		w.t.Fatalf("open the spool: %v", err)
	}
	defer db.Close()
	report, err := queue.Verify(db)
	if err != nil {
		w.t.Fatalf("verify: %v", err)
	}
	for _, p := range report.Problems {
		w.t.Errorf("queue: %s", p)
	}
	if report.Quarantine > 0 {
		w.t.Errorf("queue: %d records in quarantine", report.Quarantine)
	}
}

// connect opens a connection to the mail host at addr.
func (w *world) connect(ctx context.Context, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	r := w.byIP[host]
	if r == nil && w.other != nil {
		return w.other(addr)
	}
	if r == nil {
		return nil, fmt.Errorf("connection refused: nobody is at %s", addr)
	}
	return r.connect(ctx, w)
}

// request asks the engine over HTTP as tenant; "" is the operator.
func (w *world) request(tenant, addr, method, target string, body []byte, header http.Header) (int, http.Header, []byte) {
	w.t.Helper()
	m := w.machine
	client := &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return m.client(ctx, addr) },
		DisableKeepAlives: true, DisableCompression: true,
	}}
	req, err := http.NewRequest(method, "http://"+addr+target, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if tenant != "default" {
		req.Header.Set("Authorization", "Bearer "+w.apiKey(tenant))
	}
	resp, err := client.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, target, err)
	}
	return resp.StatusCode, resp.Header, text
}

// verifyMail checks the octets of a message and its signature.
func (w *world) verifyMail(m *mail, signed bool) error {
	if err := checkWire(m.body); err != nil {
		return err
	}
	list, err := dkim.VerifyWithOptions(bytes.NewReader(m.body), &dkim.VerifyOptions{LookupTXT: w.txt})
	if err != nil {
		return err
	}
	if len(list) == 0 && signed {
		return fmt.Errorf("no DKIM signature")
	}
	for _, v := range list {
		if v.Err != nil {
			return fmt.Errorf("DKIM of %s: %w", v.Domain, v.Err)
		}
	}
	return nil
}

// txt looks up TXT records in the story's zone.
func (w *world) txt(name string) ([]string, error) {
	return lookupTXT(w.zone, name)
}

// logBuffer takes what the engine logs.
type logBuffer struct {
	mu  sync.Mutex // protects buf
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
