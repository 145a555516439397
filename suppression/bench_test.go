package suppression

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// cpu is the processor time this process has used: on a shared machine it says
// more than the clock does.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkMiss measures the usual case: an address that is on nobody's list,
// asked of a filter as large as ten million rows need.
func BenchmarkMiss(b *testing.B) {
	db := openLedger(b, vfs.NewMem())
	defer closeDB(b, db)
	l := newList(b, db, Config{})
	const rows = 10_000_000
	f := newFilter(rows + rows/3)
	for i := range uint64(rows) {
		f.add(subject{mix(i), mix(^i)})
	}
	l.filter.Store(f)
	var asked [1 << 14]message.Address
	for i := range asked {
		asked[i] = message.MustAddress(fmt.Sprintf("Nobody%d@mail%d.example.com", i, i%50))
	}
	before := cpu()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if _, _, err := l.Check("acme", "news", asked[i%len(asked)]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(64*len(f.blocks))/1e6, "filter-MB")
}

// benchRows is the size of the list the benchmarks ask.
const benchRows = 1_000_000

// BenchmarkList imports rows into a store on disk once, builds the
// filter, and then measures checks. The figures of the preparation are logged.
func BenchmarkList(b *testing.B) {
	dir := b.TempDir()
	db, err := store.Open(dir, store.Ledger, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer closeDB(b, db)
	l := newList(b, db, Config{})
	if err := l.Rebuild(b.Context()); err != nil {
		b.Fatal(err)
	}
	start, used := time.Now(), cpu()
	sum, err := l.Import(b.Context(), addresses(benchRows), ImportOptions{Tenant: "acme"})
	if err != nil || sum.Added != benchRows {
		b.Fatal(sum, err)
	}
	imported, importCPU := time.Since(start), cpu()-used
	l.filter.Store(nil)
	start, used = time.Now(), cpu()
	if err := l.Rebuild(b.Context()); err != nil {
		b.Fatal(err)
	}
	built, buildCPU := time.Since(start), cpu()-used
	if err := db.Flush(); err != nil {
		b.Fatal(err)
	}
	size := int64(0)
	filepath.WalkDir(filepath.Join(dir, "ledger"), func(path string, d fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".sst" {
			if info, err := d.Info(); err == nil {
				size += info.Size()
			}
		}
		return err
	})
	b.Logf("%d rows: import %v (cpu %v), filter built in %v (cpu %v), %d bytes of filter, %.1f bytes a row on disk",
		benchRows, imported.Round(time.Millisecond), importCPU.Round(time.Millisecond), built.Round(time.Millisecond), buildCPU.Round(time.Millisecond), 64*len(l.filter.Load().blocks), float64(size)/benchRows)

	var misses, hits [4096]message.Address
	for i := range misses {
		misses[i] = message.MustAddress(fmt.Sprintf("Nobody%d@mail%d.example.com", i, i%50))
		hits[i] = message.MustAddress(fmt.Sprintf("subscriber%d@mail%d.example.com", i*50, i*50%50))
	}
	b.Run("miss", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if _, hit, err := l.Check("acme", "news", misses[i%len(misses)]); hit || err != nil {
				b.Fatal(hit, err)
			}
		}
	})
	b.Run("hit", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if _, hit, err := l.Check("acme", "news", hits[i%len(hits)]); !hit || err != nil {
				b.Fatal(hit, err)
			}
		}
	})
	b.Run("delivered", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if err := l.Delivered("acme", misses[i%len(misses)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	filter := l.filter.Load()
	l.filter.Store(nil)
	b.Run("miss while the filter is built", func(b *testing.B) {
		for i := range b.N {
			if _, hit, err := l.Check("acme", "news", misses[i%len(misses)]); hit || err != nil {
				b.Fatal(hit, err)
			}
		}
	})
	l.filter.Store(filter)
}

// BenchmarkAdd measures synced additions by many callers at once.
func BenchmarkAdd(b *testing.B) {
	db, err := store.Open(b.TempDir(), store.Ledger, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer closeDB(b, db)
	l := newList(b, db, Config{})
	a := message.MustAddress("ann@example.com")
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Add(Addition{Tenant: "acme", Address: a, Reason: HardBounce}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
