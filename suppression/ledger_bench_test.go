package suppression

import (
	"bytes"
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

var (
	dataDir  = flag.String("data", "", "data directory of a stopped engine, for BenchmarkLedger")
	hitEvery = flag.Int("rows", 10_000_000, "how many rows it was given, subscriberN@mail(N mod 50).example.com")
)

// BenchmarkLedger measures the list of a data directory, such as one filled by
// `tradewind suppression import` (docs/BENCHMARKS.md): opening it, building the
// filter, and checks. It changes nothing.
func BenchmarkLedger(b *testing.B) {
	if *dataDir == "" {
		b.Skip("no -data")
	}
	text, err := os.ReadFile(filepath.Join(*dataDir, "suppression.key"))
	if err != nil {
		b.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		b.Fatal(err)
	}
	lock, err := store.Lock(*dataDir, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer lock.Close()
	start, used := time.Now(), cpu()
	db, err := store.Open(*dataDir, store.Ledger, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer closeDB(b, db)
	l := newList(b, db, Config{Key: key, KeepAddresses: true})
	opened, openCPU := time.Since(start), cpu()-used
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	start, used = time.Now(), cpu()
	if err := l.Rebuild(b.Context()); err != nil {
		b.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.Logf("opened in %v (cpu %v); filter of %d keys built in %v (cpu %v), %.1f MB of it, heap grew by %.1f MB",
		opened.Round(time.Millisecond), openCPU.Round(time.Millisecond), l.filter.Load().count.Load(),
		time.Since(start).Round(time.Millisecond), (cpu() - used).Round(time.Millisecond),
		float64(64*len(l.filter.Load().blocks))/1e6, float64(int64(m.HeapAlloc)-int64(before))/1e6)
	check := func(b *testing.B, want bool, name func(i int) string) {
		asked := make([]message.Address, 1<<14)
		for i := range asked {
			asked[i] = message.MustAddress(name(i * 601))
		}
		before := cpu()
		b.ReportAllocs()
		b.ResetTimer()
		for i := range b.N {
			if _, hit, err := l.Check("default", "news", asked[i%len(asked)]); hit != want || err != nil {
				b.Fatal(asked[i%len(asked)], hit, err)
			}
		}
		b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
	}
	b.Run("miss", func(b *testing.B) {
		check(b, false, func(i int) string { return fmt.Sprintf("nobody%d@mail%d.example.com", i, i%50) })
	})
	b.Run("hit", func(b *testing.B) {
		check(b, true, func(i int) string {
			i %= *hitEvery
			return fmt.Sprintf("subscriber%d@mail%d.example.com", i, i%50)
		})
	})
}
