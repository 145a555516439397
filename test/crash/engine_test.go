package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
)

// binDir is where this run has the binary under test.
func binDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("tradewind-crash-%d", os.Getpid()))
}

func TestMain(m *testing.M) {
	status := m.Run()
	os.RemoveAll(binDir()) // what is left of it is in the way of nobody
	os.Exit(status)
}

// compile makes the binary under test, once for all tests.
var compile = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(binDir(), "tradewind")
	out, err := exec.Command("go", "build", "-o", bin, "../../cmd/tradewind").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return bin, nil
})

// build returns the binary under test.
func build(t *testing.T) string {
	t.Helper()
	bin, err := compile()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// engine is the binary with its configuration and data directory, over any
// number of lives.
type engine struct {
	t                *testing.T
	bin, config, dir string
	smtp, api, admin string
	wrap             []string // a command to run it under
	client           http.Client

	cmd  *exec.Cmd
	done chan error // gets what Wait returned
	log  *os.File
}

// freeAddr returns an address on which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newEngine writes a configuration that sends everything to the sink.
func newEngine(t *testing.T, bin, dir, sink, more string) *engine {
	t.Helper()
	e := &engine{t: t, bin: bin, dir: dir, smtp: freeAddr(t), api: freeAddr(t), admin: freeAddr(t)}
	e.client.Timeout = 30 * time.Second
	e.config = filepath.Join(t.TempDir(), "tradewind.toml")
	text := fmt.Sprintf(`
hostname = "mta.localhost"
data_dir = %q

[[smtp]]
listen = %q
role = "submission"
relay_from = ["127.0.0.0/8"]

[http]
api = %q
admin = %q
trust_loopback = true

[queue]
retry = ["1s"]

[[route]]
domains = ["*"]
next_hops = [%q]
tls = "off"

[delivery]
retry_connection = "100ms"
host_down = "100ms"
%s
`, dir, e.smtp, e.api, e.admin, sink, more)
	if err := os.WriteFile(e.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.ArtifactDir(), "engine.log"))
	if err != nil {
		t.Fatal(err)
	}
	e.log = log
	t.Cleanup(func() {
		if e.cmd != nil {
			e.kill()
		}
		log.Close()
	})
	return e
}

// start begins a life.
func (e *engine) start() {
	e.t.Helper()
	args := append(append([]string{}, e.wrap...), e.bin, "serve", "-c", e.config)
	e.cmd = exec.Command(args[0], args[1:]...)
	e.cmd.Stdout, e.cmd.Stderr = e.log, e.log
	// A group of its own, so that whatever it runs under dies with it.
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(e.cmd, e.done)
}

// poll asks until ok or until the time is up or the engine has ended.
func (e *engine) poll(limit time.Duration, ok func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(limit)
	for !ok() {
		select {
		case err := <-e.done:
			e.done <- err
			return false
		case <-timeout:
			return false
		case <-tick.C:
		}
	}
	return true
}

// ready waits for the greeting of the SMTP listener.
func (e *engine) ready(limit time.Duration) bool {
	return e.poll(limit, func() bool {
		c, err := net.DialTimeout("tcp", e.smtp, time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		var b [3]byte
		_, err = io.ReadFull(c, b[:])
		return err == nil && string(b[:]) == "220"
	})
}

// mustBeReady fails the test with the end of the log.
func (e *engine) mustBeReady(limit time.Duration) {
	e.t.Helper()
	if !e.ready(limit) {
		e.t.Fatalf("the engine does not answer after %v:\n%s", limit, e.tail())
	}
}

func (e *engine) tail() string {
	b, err := os.ReadFile(e.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-3000):])
}

// kill ends this life at once, and everything in its process group.
func (e *engine) kill() {
	syscall.Kill(-e.cmd.Process.Pid, syscall.SIGKILL) // it may be gone already
	<-e.done
	e.cmd = nil
}

// wait returns the exit status of an engine that ends by itself.
func (e *engine) wait(limit time.Duration) (status int, ok bool) {
	select {
	case err := <-e.done:
		e.cmd = nil
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode(), true
		}
		return 0, true
	case <-time.After(limit):
		return 0, false
	}
}

// stop ends this life politely.
func (e *engine) stop() {
	e.t.Helper()
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		e.t.Fatal(err)
	}
	if status, ok := e.wait(time.Minute); !ok || status != 0 {
		e.t.Fatalf("SIGTERM: ended %v with status %d:\n%s", ok, status, e.tail())
	}
}

func (e *engine) get(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != 200 {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, b)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(bytes.NewReader(b)).Decode(into)
}

// drain reads the events until they tell the end of everything in the ledger.
func (e *engine) drain(l *ledger, limit time.Duration) {
	e.t.Helper()
	cursor := ""
	var failed error
	done := e.poll(limit, func() bool {
		for {
			var page struct {
				Events []json.RawMessage `json:"events"`
				Next   string            `json:"next"`
			}
			if failed = e.get(e.t.Context(), "http://"+e.api+"/v1/events?limit=1000&after="+cursor, &page); failed != nil {
				return false
			}
			cursor = page.Next
			if failed = l.addEvents(page.Events); failed != nil {
				return true
			}
			if len(page.Events) == 0 {
				return l.unsettled() == 0
			}
		}
	})
	if !done || failed != nil {
		e.t.Errorf("not drained after %v: %d without an end (%v)\n%s", limit, l.unsettled(), failed, e.tail())
	}
}

// verify checks the spool of an engine that has stopped.
func (e *engine) verify() *queue.Report {
	e.t.Helper()
	db, err := store.Open(e.dir, store.Spool, store.Options{})
	if err != nil {
		e.t.Fatal(err)
	}
	rep, err := queue.Verify(db)
	if err := errors.Join(err, db.Close()); err != nil {
		e.t.Fatal(err)
	}
	if len(rep.Problems) > 0 {
		e.t.Errorf("the spool is not consistent: %q", rep.Problems[:min(10, len(rep.Problems))])
	}
	return rep
}

// numbered gives every connection a name of its own as its peer's address.
type numbered struct {
	net.Listener
	n atomic.Int64
}

func (l *numbered) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return namedConn{c, fmt.Sprintf("connection %d", l.n.Add(1))}, nil
}

type namedConn struct {
	net.Conn
	name string
}

func (c namedConn) RemoteAddr() net.Addr { return connName(c.name) }

type connName string

func (connName) Network() string  { return "tcp" }
func (n connName) String() string { return string(n) }

// startSink serves a sink on loopback.
func startSink(t *testing.T, cfg loadgen.SinkConfig) (*loadgen.Sink, string) {
	t.Helper()
	return startSinkAt(t, cfg, "127.0.0.1:0")
}

func startSinkAt(t *testing.T, cfg loadgen.SinkConfig, addr string) (*loadgen.Sink, string) {
	t.Helper()
	cfg.KeepBody = true
	sink, err := loadgen.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- sink.Serve(&numbered{Listener: l}) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		sink.Shutdown(ctx) // cuts off what is left
		if err := <-done; !errors.Is(err, loadgen.ErrClosed) {
			t.Error(err)
		}
	})
	return sink, l.Addr().String()
}

// report fails the test for every problem of the verdict.
func report(t *testing.T, v *verdict) {
	t.Helper()
	t.Log(v)
	if len(v.problems) > 0 {
		t.Errorf("broken promises:\n%s", strings.Join(v.problems, "\n"))
	}
}
