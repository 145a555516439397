//go:build interop && linux

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// descendant finds the process called name at or below pid.
func descendant(t *testing.T, pid int, name string) int {
	t.Helper()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(comm)) == name {
		return pid
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(c)
		if err != nil {
			t.Fatal(err)
		}
		if found := descendant(t, child, name); found != 0 {
			return found
		}
	}
	return 0
}

// What somebody does who has just cloned the tree: make run, then the lines it
// prints, word for word.
func TestNewUserSendsWhatMakeRunPrints(t *testing.T) {
	t.Parallel()
	if !alone(t) {
		return
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	// Whatever lies in tmp/quickstart is its owner's; we begin with nothing.
	if err := os.MkdirAll(filepath.Join(root, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	cover(t, t.TempDir(), filepath.Join(root, "tmp"))

	run := exec.Command("make", "-C", root, "run")
	p := launch(t, run)
	p.waitSaid(t, "msg=ready")
	p.waitSaid(t, "grep tradewind_\n")
	var lines []string
	for line := range strings.Lines(p.said()) {
		if strings.HasPrefix(line, "  swaks ") || strings.HasPrefix(line, "  curl ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) != 4 {
		t.Fatalf("%d lines to try, want 4:\n%s", len(lines), p.said())
	}
	const sunk = "from <me@example.com> to <you@example.net>"
	out := mustRun(t, "sh", "-c", lines[0])
	if !strings.Contains(out, "queued as") {
		t.Errorf("%s\n%s", lines[0], out)
	}
	out = mustRun(t, "sh", "-c", lines[1])
	if !strings.Contains(out, `"recipients":[`) {
		t.Errorf("%s\n%s", lines[1], out)
	}
	eventually(t, "the sink has both", func() bool { return strings.Count(p.said(), sunk) == 2 })
	eventually(t, "the events tell of both", func() bool {
		out = mustRun(t, "sh", "-c", lines[2])
		return strings.Count(out, `"type":"message.delivered"`) == 2
	})
	if n := strings.Count(out, `"type":"message.accepted"`); n != 2 {
		t.Errorf("%d accepted\n%s", n, out)
	}
	if out = mustRun(t, "sh", "-c", lines[3]); !strings.Contains(out, "\ntradewind_") {
		t.Errorf("%s\n%s", lines[3], out)
	}

	// A second one on the same data says why it cannot run.
	second := exec.CommandContext(t.Context(), binary, "serve", "-c", "configs/quickstart.toml")
	second.Dir = root
	said, err := second.CombinedOutput()
	if err == nil || second.ProcessState.ExitCode() != 1 || !strings.Contains(string(said), "tmp/quickstart is in use by another tradewind") {
		t.Errorf("a second instance: %v\n%s", err, said)
	}

	if err := syscall.Kill(descendant(t, p.cmd.Process.Pid, "tradewind"), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.done
	if p.err != nil {
		t.Errorf("after SIGTERM: %v\n%s", p.err, p.said())
	}

	// What it kept is there at the next start.
	p = launch(t, exec.Command("make", "-C", root, "run"))
	p.waitSaid(t, "msg=ready")
	if out := mustRun(t, "sh", "-c", lines[2]); strings.Count(out, `"type":"message.delivered"`) != 2 {
		t.Errorf("after a restart the events are\n%s", out)
	}
	if err := syscall.Kill(descendant(t, p.cmd.Process.Pid, "tradewind"), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.done
}

func TestReloadKeepsWhatWorksUntilTheFileIsRight(t *testing.T) {
	t.Parallel()
	sink := receive(t, "127.0.0.1:0", loadgen.SinkConfig{})
	e := start(t, toSink(sink.addr))
	good, err := os.ReadFile(e.config)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(text, want string) {
		t.Helper()
		if err := os.WriteFile(e.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		before := strings.Count(e.said(), want)
		if err := e.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log says "+want, func() bool { return strings.Count(e.said(), want) > before })
	}
	submit := func(want int) {
		t.Helper()
		if dialogue, status := swaks(t, e.smtp[0], "--to", "you@example.net"); status != want {
			t.Fatalf("exit status %d, want %d\n%s", status, want, dialogue)
		}
	}
	submit(0)
	reload(string(good)+"\n[queue.bad]\nx = 1\n", "reload refused")
	submit(0)
	reload(string(good)+"\n[[tenant]]\nname = \"default\"\nsender_domains = [\"other.example\"]\n", "msg=reloaded")
	if dialogue, status := swaks(t, e.smtp[0], "--to", "you@example.net"); status == 0 || !strings.Contains(dialogue, "\n<** 5") {
		t.Errorf("a sender who is no longer allowed: exit status %d\n%s", status, dialogue)
	}
	reload(string(good), "msg=reloaded")
	submit(0)
	reload(strings.Replace(string(good), "mta.interop.example", "renamed.interop.example", 1), "take effect at the next restart")
	sink.wait(t, 3)
	e.drained(t)
}

// A drain lets the transaction under way finish, and what is left is delivered
// after the next start, once.
func TestDrainLosesNothing(t *testing.T) {
	t.Parallel()
	const n = 500
	sink := receive(t, "127.0.0.1:0", loadgen.SinkConfig{Latency: 20 * time.Millisecond})
	e := start(t, toSink(sink.addr)+"[delivery]\nlane_connections = 4\n")
	mustRun(t, binary, "inject", "--target", e.smtp[0], "--messages", strconv.Itoa(n), "--connections", "8", "--size", "1000")
	e.drained(t)
	first := len(sink.messages())
	if first == 0 || first == n {
		t.Errorf("%d of %d were delivered before the drain: nothing was under way", first, n)
	}
	e.run(t)
	sink.wait(t, n)
	e.settled(t, n)
	e.drained(t)
	seen := make(map[string]int)
	for _, m := range sink.messages() {
		seen[m.To[0]]++
	}
	for to, c := range seen {
		if c != 1 {
			t.Errorf("%s: %d times", to, c)
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d arrived", len(seen), n)
	}
	t.Logf("%d of %d were delivered before the drain", first, n)
	mustRun(t, binary, "queue", "verify", "-c", e.config)
}
