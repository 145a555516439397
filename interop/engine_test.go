//go:build linux && (interop || soak || backlog)

// Package interop runs the built binary, on loopback, against mail software
// that nobody here wrote, and as its users will. The tools come from
// scripts/install-deps; where one is missing the test fails.
package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the program under test, built once by TestMain.
var binary string

// binaryEnv hands it to a test that runs again in namespaces of its own.
const binaryEnv = "TRADEWIND_INTEROP_BINARY"

func TestMain(m *testing.M) {
	if binary = os.Getenv(binaryEnv); binary != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "tradewind-interop-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "tradewind")
	build := exec.Command("go", "build", "-tags", "openssl", "-o", binary, "../cmd/tradewind")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

// patience is how long something on this machine may take before it counts as
// never happening.
const patience = time.Minute

// process is a program that runs beside the test until it is stopped.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; read after done

	mu  sync.Mutex // protects everything below
	out bytes.Buffer
}

// Write keeps what the program says.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// said returns what the program has printed.
func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// launch starts a program in a process group of its own, which is killed when
// the test ends and it has not been stopped.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		select {
		case <-p.done:
		default:
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-p.done
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(cmd.Path), tail(p.said(), 8<<10))
		}
	})
	return p
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// stop asks the program to end and returns its exit status.
func (p *process) stop(t *testing.T) int {
	t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("%s does not stop", p.cmd.Path)
	}
	return p.cmd.ProcessState.ExitCode()
}

// waitSaid waits until the program has printed want.
func (p *process) waitSaid(t *testing.T, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s says %q", filepath.Base(p.cmd.Path), want), func() bool {
		if strings.Contains(p.said(), want) {
			return true
		}
		select {
		case <-p.done:
			if !strings.Contains(p.said(), want) {
				t.Fatalf("%s ended (%v) before it said %q:\n%s", p.cmd.Path, p.err, want, p.said())
			}
		default:
		}
		return false
	})
}

// eventually waits for something outside this process to become true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %v: %s", patience, what)
}

// freePort is a port nobody listens on, for programs that cannot pick their own.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// engine is a running Tradewind.
type engine struct {
	*process
	dir, config string
	smtp        []string // addresses, in the order of the configuration
	api, admin  string   // base URLs, "" when off
}

// configure writes a configuration whose data is in a directory of its own.
// Every "{dir}" in it becomes that directory.
func configure(t *testing.T, config string) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, "tradewind.toml")
	head := "hostname = \"mta.interop.example\"\ndata_dir = \"{dir}/data\"\n"
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(head+config, "{dir}", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, file
}

// start runs the binary with a configuration and waits until it serves.
func start(t *testing.T, config string) *engine {
	t.Helper()
	dir, file := configure(t, config)
	e := &engine{dir: dir, config: file}
	e.run(t)
	return e
}

// run starts the engine, again if it was stopped before.
func (e *engine) run(t *testing.T) {
	t.Helper()
	e.process = launch(t, exec.Command(binary, "serve", "-c", e.config))
	e.waitSaid(t, "msg=ready")
	e.smtp, e.api, e.admin = nil, "", ""
	for line := range strings.Lines(e.said()) {
		if !strings.Contains(line, "msg=listening") {
			continue
		}
		switch addr := attr(line, "addr"); attr(line, "door") {
		case "smtp":
			e.smtp = append(e.smtp, addr)
		case "api":
			e.api = "http://" + addr
		case "admin":
			e.admin = "http://" + addr
		}
	}
}

// attr is the value of key in a line of the text log.
func attr(line, key string) string {
	_, rest, _ := strings.Cut(line, " "+key+"=")
	v, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return v
}

// drained stops the engine, which must end well.
func (e *engine) drained(t *testing.T) {
	t.Helper()
	if status := e.stop(t); status != 0 {
		t.Fatalf("SIGTERM: exit status %d, want 0\n%s", status, tail(e.said(), 4<<10))
	}
}

// fact is one event of GET /v1/events.
type fact struct {
	ID        string
	Type      string
	Message   string `json:"message_id"`
	Recipient string
	Attempt   int
	Terminal  bool
	Reply     struct {
		Code       int
		Text       string
		Stage      string
		RemoteHost string `json:"remote_host"`
		RemoteIP   string `json:"remote_ip"`
	}
	Detail string
}

// events returns the whole journal.
func (e *engine) events(t *testing.T) (all []fact) {
	t.Helper()
	cursor := ""
	for {
		target := e.api + "/v1/events?limit=1000"
		if cursor != "" {
			target += "&after=" + cursor
		}
		var page struct {
			Events []fact
			Next   string
		}
		status, body := get(t, target)
		if status != http.StatusOK {
			t.Fatalf("GET %s: %d\n%s", target, status, body)
		}
		if err := json.Unmarshal(body, &page); err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Events...)
		if len(page.Events) == 0 || page.Next == cursor {
			return all
		}
		cursor = page.Next
	}
}

// settled waits until n recipients have come to an end and returns the events.
func (e *engine) settled(t *testing.T, n int) (all []fact) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d recipients are settled", n), func() bool {
		all = e.events(t)
		return len(only(all, "")) >= n
	})
	return all
}

// only selects the events of one type, or with "" those that end a recipient.
func only(all []fact, typ string) (some []fact) {
	for _, f := range all {
		if f.Type == typ || typ == "" && f.Terminal {
			some = append(some, f)
		}
	}
	return some
}

func get(t *testing.T, target string) (status int, body []byte) {
	t.Helper()
	resp, err := http.Get(target)
	if err != nil {
		t.Fatal(err)
	}
	return answer(t, resp)
}

func post(t *testing.T, target, contentType string, body io.Reader) (status int, answered []byte) {
	t.Helper()
	resp, err := http.Post(target, contentType, body)
	if err != nil {
		t.Fatal(err)
	}
	return answer(t, resp)
}

func answer(t *testing.T, resp *http.Response) (status int, body []byte) {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(bufio.NewReader(resp.Body))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// tool runs a program to its end and returns what it printed and its exit
// status. One that is not installed fails the test.
func tool(t *testing.T, name string, args ...string) (out string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v; scripts/install-deps installs it", name, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), ctx.Err(), b)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// mustRun is tool for what has to end with status 0.
func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, status := tool(t, name, args...)
	if status != 0 {
		t.Fatalf("%s %s: exit status %d\n%s", name, strings.Join(args, " "), status, out)
	}
	return out
}
