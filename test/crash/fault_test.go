//go:build interop

package crash

import (
	"context"
	"flag"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// syncFaults is a flag, behind -args.
var syncFaults = flag.Int("sync-faults", 3, "at how many moments syncing the log begins to fail")

// need skips the test where a tool is missing.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// injected runs the engine, as our own child, so that strace does something to
// some of its system calls. strace counts them in each thread by itself.
func injected(args ...string) []string {
	return append([]string{"strace", "-D", "-f", "--seccomp-bpf", "-o", "/dev/null"}, args...)
}

// offerTo sends messages until the context ends, or the target goes.
func offerTo(ctx context.Context, l *ledger, target string, rate float64) (ended chan struct{}) {
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		s := load(l, target)
		s.FirstID, s.Rate = 1<<20, rate
		s.Run(ctx) // it ends with an error when the target goes
	}()
	return ended
}

// endsByItself runs the engine under wrap and load until it ends, which it must
// with a status that says so, and again without wrap until nothing is left.
// Whatever was acknowledged must have come through.
func endsByItself(t *testing.T, bin, dir string, wrap []string) {
	t.Helper()
	l := newLedger(t, load(nil, ""))
	// Few connections, and load without a limit: behind each message that meets the
	// failure there is another one that must not be sent any more.
	sink, addr := startSink(t, loadgen.SinkConfig{OnMessage: l.onMessage})
	e := newEngine(t, bin, dir, addr, "lane_connections = 2\n")
	e.wrap = wrap
	e.start()
	e.mustBeReady(time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begun := time.Now()
	ended := offerTo(ctx, l, e.smtp, 0)
	status, ok := e.wait(time.Minute)
	took := time.Since(begun)
	cancel()
	<-ended
	if !ok || status == 0 {
		t.Fatalf("ended: %v, status %d; want an end with a status other than 0\n%s", ok, status, e.tail())
	}
	// Nobody sees how many transactions were open when the store died; there is
	// never more than one on a connection.
	l.kills = append(l.kills, kill{at: begun, open: int(sink.Counts().Peak), restarted: time.Now()})
	e.wrap = nil
	e.start()
	e.mustBeReady(time.Minute)
	e.drain(l, time.Minute)
	e.stop()
	e.verify()
	t.Logf("exit status %d after %v", status, took.Round(time.Millisecond))
	report(t, l.verdict())
}

// TestFailedSyncEndsTheEngineWithoutAnotherAcknowledgement has the kernel
// answer EIO to every fdatasync of a thread from its k-th on.
func TestFailedSyncEndsTheEngineWithoutAnotherAcknowledgement(t *testing.T) {
	need(t, "strace")
	bin := build(t)
	for i := range *syncFaults {
		k := 30 + 15*i
		t.Run(fmt.Sprintf("sync%d", k), func(t *testing.T) {
			endsByItself(t, bin, t.TempDir(), injected("-e", "trace=fdatasync", "-e", fmt.Sprintf("inject=fdatasync:error=EIO:when=%d+", k)))
		})
	}
}

// TestNoSpaceInTheMiddleOfAWriteEndsTheEngineWithoutAnotherAcknowledgement has
// the kernel answer ENOSPC to the k-th write to the log of the spool, without
// any sign of it before: the disk seems to have room.
func TestNoSpaceInTheMiddleOfAWriteEndsTheEngineWithoutAnotherAcknowledgement(t *testing.T) {
	need(t, "strace")
	bin := build(t)
	for _, k := range []int{20, 60} {
		t.Run(fmt.Sprintf("write%d", k), func(t *testing.T) {
			dir := t.TempDir()
			args := []string{"-e", "trace=write,pwrite64", "-e", fmt.Sprintf("inject=write,pwrite64:error=ENOSPC:when=%d+", k)}
			for n := range 30 { // the names of the logs to come
				args = append(args, "-P", filepath.Join(dir, "spool", fmt.Sprintf("%06d.log", n)))
			}
			endsByItself(t, bin, dir, injected(args...))
		})
	}
}

// TestSlowSyncsDelayMailAndDoNothingElse lets every fdatasync take its time.
func TestSlowSyncsDelayMailAndDoNothingElse(t *testing.T) {
	need(t, "strace")
	bin := build(t)
	for _, c := range []struct {
		stall    time.Duration
		messages int
	}{{10 * time.Millisecond, 500}, {time.Second, 16}} {
		t.Run(c.stall.String(), func(t *testing.T) {
			l := newLedger(t, load(nil, ""))
			_, addr := startSink(t, loadgen.SinkConfig{OnMessage: l.onMessage})
			e := newEngine(t, bin, t.TempDir(), addr, "")
			e.wrap = injected("-e", "trace=fdatasync", "-e", fmt.Sprintf("inject=fdatasync:delay_enter=%d", c.stall.Microseconds()))
			e.start()
			e.mustBeReady(time.Minute)
			begun := time.Now()
			s := load(l, e.smtp)
			s.FirstID, s.Messages = 1<<20, c.messages
			if _, err := s.Run(t.Context()); err != nil {
				t.Errorf("the source gave up: %v", err)
			}
			accepted := time.Since(begun)
			e.drain(l, time.Minute)
			t.Logf("accepted after %v, delivered after %v", accepted.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
			e.stop()
			e.verify()
			exactly(t, l, c.messages)
		})
	}
}

// exactly holds a run in which nothing died against the ledger: everything was
// taken, and came once.
func exactly(t *testing.T, l *ledger, messages int) {
	t.Helper()
	v := l.verdict()
	report(t, v)
	if v.acked != messages || v.delivered != messages || v.receipts != messages {
		t.Errorf("%d acknowledged, %d delivered, %d received; want %d each", v.acked, v.delivered, v.receipts, messages)
	}
}

// TestStoppedEngineGoesOnWhereItWas takes the processor from the engine for two
// seconds under load, as a hypervisor does that moves it.
func TestStoppedEngineGoesOnWhereItWas(t *testing.T) {
	l := newLedger(t, load(nil, ""))
	sink, addr := startSink(t, loadgen.SinkConfig{OnMessage: l.onMessage, Latency: 2 * time.Millisecond})
	e := newEngine(t, build(t), t.TempDir(), addr, "")
	e.start()
	e.mustBeReady(time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := offerTo(ctx, l, e.smtp, 1000)
	for range 2 {
		<-time.After(time.Second)
		if err := e.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		<-time.After(100 * time.Millisecond) // what was on its way has arrived
		before := sink.Counts().Messages
		<-time.After(2 * time.Second)
		if n := sink.Counts().Messages; n != before {
			t.Errorf("%d messages came from an engine that does not run", n-before)
		}
		if err := e.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if !e.poll(10*time.Second, func() bool { return sink.Counts().Messages > before }) {
			t.Fatalf("nothing comes after it goes on\n%s", e.tail())
		}
	}
	cancel()
	<-ended
	e.drain(l, time.Minute)
	e.stop()
	e.verify()
	v := l.verdict()
	report(t, v)
	if v.duplicates != 0 || v.acked == 0 {
		t.Errorf("%d acknowledged, %d duplicates; want some and none", v.acked, v.duplicates)
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
