package report

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/token"
)

// cpu is the processor time this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBounces takes bounces in from 64 senders at once, on disk, while
// they are read, and ends when each is an event. Use -cpu 1 for one core.
func BenchmarkBounces(b *testing.B) {
	for name, file := range map[string]string{"standard": "", "exchange": "lhost-exchange2007-06.eml", "exim": "lhost-exim-29.eml"} {
		b.Run(name, func(b *testing.B) {
			raw := dsn("ann@example.net", "5.1.1", gone)
			if file != "" {
				text, err := os.ReadFile(filepath.Join("../bounce/testdata/corpus", file))
				if err != nil {
					b.Fatal(err)
				}
				raw = strings.ReplaceAll(string(text), "\r\n", "\n")
			}
			benchmarkBounces(b, []byte(strings.ReplaceAll(raw, "\n", "\r\n")))
		})
	}
}

func benchmarkBounces(b *testing.B, raw []byte) {
	w := &world{t: b, fs: vfs.Default, dir: b.TempDir(), now: time.Now()}
	w.build()
	paths := make([]message.Address, b.N)
	batch := w.spool.NewBatch(0)
	for i := range paths {
		s := &sent{id: ids.New(w.now), address: message.MustAddress(fmt.Sprintf("ann%d@example.net", i))}
		s.claims = token.Claims{Message: s.id, Sent: w.now, Tenant: "acme", Address: s.address}
		paths[i] = w.returnPath(s)
		w.journal.Append(batch, &message.Event{Type: message.EventDelivered, MessageID: s.id, Recipient: s.address.String(), RecipientSeq: 2, Tenant: "acme", Terminal: true})
		if i%1000 == 999 || i == len(paths)-1 {
			if err := batch.Commit(); err != nil {
				b.Fatal(err)
			}
			batch.Close()
			batch = w.spool.NewBatch(0)
		}
	}
	batch.Close()
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	b.SetBytes(int64(len(raw)))
	b.ResetTimer()
	used, start := cpu(), time.Now()
	var next atomic.Int64
	var senders sync.WaitGroup
	for range 64 {
		senders.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				if err := w.Admit(paths[i]); err != nil {
					b.Error(err)
					return
				}
				if err := w.Take(Envelope{To: paths[i : i+1]}, raw); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	senders.Wait()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for w.count.Load() > 0 && !b.Failed() {
		<-look.C
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "bounces/s")
	b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N), "cpu-us/op")
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
	if list := w.quarantined(); len(list) > 0 {
		b.Errorf("quarantine %q", list[0])
	}
}
