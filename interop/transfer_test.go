//go:build interop && linux

package interop

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

func TestWaitingMailMovesToAnotherNode(t *testing.T) {
	t.Parallel()
	const n = 200
	sink := receive(t, "127.0.0.1:0", loadgen.SinkConfig{})
	nowhere := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	from := start(t, toSink(nowhere))
	mustRun(t, binary, "inject", "--target", from.smtp[0], "--messages", fmt.Sprint(n), "--connections", "4",
		"--size", "2048", "--from", "news@sender.example", "--to", "user%d@d%d.example")
	file := filepath.Join(t.TempDir(), "moved.jsonl")
	if out, status := tool(t, binary, "queue", "export", "-c", from.config, "--out", file); status != 1 || !strings.Contains(out, "in use") {
		t.Errorf("export from a running engine: exit status %d\n%s", status, out)
	}
	from.drained(t)
	mustRun(t, binary, "queue", "export", "-c", from.config, "--out", file, "--remove")
	if out := mustRun(t, binary, "queue", "verify", "-c", from.config); !strings.Contains(out, `"recipients": 0`) {
		t.Errorf("mail is left behind:\n%s", out)
	}

	to := start(t, toSink(sink.addr))
	to.drained(t)
	if out := mustRun(t, binary, "queue", "import", "-c", to.config, "--in", file); !strings.Contains(out, "dry run") {
		t.Errorf("without --yes:\n%s", out)
	}
	for range 2 { // the second time everything is there already
		mustRun(t, binary, "queue", "import", "-c", to.config, "--in", file, "--yes")
	}
	to.run(t)
	got := sink.wait(t, n)
	all := to.settled(t, n)
	to.drained(t)
	seen := map[string]int{}
	for _, m := range got {
		seen[m.To[0]]++
	}
	for i := range n {
		if to := fmt.Sprintf("user%d@d%d.example", i, i%10); seen[to] != 1 {
			t.Errorf("%s: delivered %d times", to, seen[to])
		}
	}
	if a := len(only(all, "message.accepted")); a != n {
		t.Errorf("the new node knows of %d acceptances, want %d", a, n)
	}
}
