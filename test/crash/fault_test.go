//go:build interop

package crash

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// need skips the test where a tool is missing.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// TestFailedSyncEndsTheEngineWithoutAnotherAcknowledgement has the kernel
// answer EIO to every fdatasync from the k-th on.
func TestFailedSyncEndsTheEngineWithoutAnotherAcknowledgement(t *testing.T) {
	need(t, "strace")
	bin := build(t)
	for _, k := range []int{30, 60, 120} {
		t.Run(fmt.Sprintf("sync%d", k), func(t *testing.T) {
			l := newLedger(t, load(nil, ""))
			_, addr := startSink(t, loadgen.SinkConfig{OnMessage: l.onMessage})
			e := newEngine(t, bin, t.TempDir(), addr, "")
			e.wrap = []string{
				"strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync",
				"-e", fmt.Sprintf("inject=fdatasync:error=EIO:when=%d+", k),
			}
			e.start()
			e.mustBeReady(time.Minute)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				s := load(l, e.smtp)
				s.FirstID, s.Rate = 1<<20, 500
				s.Run(ctx) // it ends with an error when the target goes
			}()
			begun := time.Now()
			status, ok := e.wait(time.Minute)
			cancel()
			<-ended
			if !ok || status == 0 {
				t.Fatalf("ended: %v, status %d; want an end with a status other than 0\n%s", ok, status, e.tail())
			}
			l.kills = append(l.kills, kill{at: begun, open: 1 << 10, restarted: time.Now()})
			e.wrap = nil
			e.start()
			e.mustBeReady(time.Minute)
			e.drain(l, time.Minute)
			e.stop()
			e.verify()
			t.Logf("exit status %d after %v", status, time.Since(begun).Round(time.Millisecond))
			report(t, l.verdict())
		})
	}
}

// TestFewFileDescriptorsNeverReachTheStore runs with 256 of them under more
// connections than that.
func TestFewFileDescriptorsNeverReachTheStore(t *testing.T) {
	need(t, "prlimit")
	l := newLedger(t, load(nil, ""))
	_, addr := startSink(t, loadgen.SinkConfig{OnMessage: l.onMessage})
	e := newEngine(t, build(t), t.TempDir(), addr, "[store]\nmax_open_files = 64\n")
	e.wrap = []string{"prlimit", "--nofile=256"}
	e.start()
	e.mustBeReady(time.Minute)
	s := load(l, e.smtp)
	s.FirstID, s.Messages, s.Connections = 1<<20, 3000, 90
	if _, err := s.Run(t.Context()); err != nil {
		t.Errorf("the source gave up: %v", err)
	}
	e.drain(l, time.Minute)
	e.stop()
	e.verify()
	report(t, l.verdict())
}
