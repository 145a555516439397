//go:build soak && linux

package interop

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

var (
	soakFor  = flag.Duration("soak", time.Minute, "how long TestSoak lasts")
	soakRate = flag.Float64("rate", 200, "messages a second of TestSoak")
)

// usage is what a process holds on to at one moment.
type usage struct {
	memory int64 // resident, octets
	files  int   // open descriptors
}

func (e *engine) usage(t *testing.T) (u usage) {
	t.Helper()
	pid := e.cmd.Process.Pid
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return usage{memory: kib << 10, files: len(files)}
}

// TestSoak keeps the real binary under a steady load, a tenth of it greylisted,
// stops and starts it in between, and holds that nothing is lost or sent twice,
// and that what the process holds on to does not grow with what went through.
func TestSoak(t *testing.T) {
	var mu sync.Mutex
	seen := make(map[string]uint8)
	sink, err := loadgen.New(loadgen.SinkConfig{DeferPercent: 10, OnMessage: func(r *loadgen.Received) {
		mu.Lock()
		defer mu.Unlock()
		for _, to := range r.To {
			seen[to]++
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		sink.Serve(l)
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		sink.Shutdown(ctx)
		<-served
	})
	keyFile := filepath.Join(t.TempDir(), "s1.pem")
	mustRun(t, binary, "dkim", "keygen", "--type", "ed25519", "--domain", "sender.example", "--selector", "s1", "--out", keyFile)
	e := start(t, toSink(l.Addr().String())+`
[events]
retention = "5m"
[[dkim]]
domain = "sender.example"
selector = "s1"
key_file = "`+keyFile+`"
`)

	// Twelve spells of load. The engine is restarted before the second and the
	// third; after that it runs through, and the end is compared with the fifth
	// and sixth, by when its caches have filled.
	const spells = 12
	spell := *soakFor / spells
	each := max(1, int(*soakRate*spell.Seconds()))
	var after [spells]usage
	for i := range spells {
		if i == 1 || i == 2 {
			e.drained(t)
			e.run(t)
		}
		r, err := loadgen.Source{
			Target: e.smtp[0], Connections: 8, Messages: each, Rate: *soakRate, Size: 10 << 10,
			From: "news@sender.example", To: "user%d-" + strconv.Itoa(i) + "@d%d.example", FirstID: i * each,
		}.Run(t.Context())
		if err != nil || r.Accepted != int64(each) {
			t.Fatalf("spell %d: %+v, %v", i, r, err)
		}
		eventually(t, "the spell is delivered", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(seen) >= (i+1)*each
		})
		after[i] = e.usage(t)
		t.Logf("spell %2d: %7d delivered, %4d MiB, %3d files, p99 of the reply to the dot %v", i+1, len(seen), after[i].memory>>20, after[i].files, r.P99)
	}
	e.drained(t)
	if len(seen) != spells*each {
		t.Errorf("%d recipients got mail, want %d", len(seen), spells*each)
	}
	for to, n := range seen {
		if n != 1 {
			t.Errorf("%s: %d times", to, n)
		}
	}
	// A short run ends before a memtable is full, hence the allowance.
	const allowance = 96 << 20
	early := max(after[4].memory, after[5].memory)
	late := min(after[spells-1].memory, after[spells-2].memory)
	if late > early+early/4+allowance {
		t.Errorf("memory grew from %d to %d MiB", early>>20, late>>20)
	}
	if late, early := after[spells-1].files, max(after[4].files, after[5].files); late > early+50 {
		t.Errorf("open files grew from %d to %d", early, late)
	}
}
