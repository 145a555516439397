package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func open(t *testing.T, fs vfs.FS, fatal func(error)) *DB {
	t.Helper()
	db, err := Open("data", Spool, Options{FS: fs, OnFatal: fatal})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func TestCommittedBatchSurvivesPowerLoss(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	db := open(t, fs, nil)
	for i := range 100 {
		b := db.NewBatch(0)
		b.Set(fmt.Appendf(nil, "m%03d", i), []byte("x"))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		b.Close()
	}
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	db2 := open(t, after, nil)
	n := 0
	if err := db2.Each(MessageSpan(), func(k, v []byte) (bool, error) { n++; return true, nil }); err != nil {
		t.Fatal(err)
	}
	if n != 100 {
		t.Errorf("got %d records after power loss, want 100", n)
	}
	if err := errors.Join(db.Close(), db2.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestLazyCommitMayBeLostSoTheHarnessCanTell(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	db := open(t, fs, nil)
	b := db.NewBatch(0)
	b.Set([]byte("m1"), []byte("x"))
	if err := b.CommitLazy(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	db2 := open(t, fs.CrashClone(vfs.CrashCloneCfg{}), nil)
	if v, err := db2.Get([]byte("m1")); err != nil || v != nil {
		t.Errorf("got %q, %v after power loss without a sync, want nothing", v, err)
	}
	if err := errors.Join(db.Close(), db2.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestFailedSyncIsNeverAcknowledgedAndKillsTheStore(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	injected := errors.New("injected EIO")
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo) {
			return injected
		}
		return nil
	}))
	fatal := make(chan error, 1)
	db := open(t, fs, func(err error) { fatal <- err })
	broken.Store(true)
	var told error
	b := db.NewBatch(0)
	b.Set([]byte("m1"), []byte("x"))
	b.AfterCommit(func(err error) { told = err })
	err := b.Commit()
	b.Close()
	if !errors.Is(err, ErrDead) || !errors.Is(err, injected) {
		t.Fatalf("got %v from a commit whose sync failed, want ErrDead and the cause", err)
	}
	if !errors.Is(told, ErrDead) {
		t.Errorf("AfterCommit was told %v, want ErrDead", told)
	}
	if err := <-fatal; !errors.Is(err, injected) {
		t.Errorf("OnFatal got %v", err)
	}
	broken.Store(false)
	b = db.NewBatch(0)
	b.Set([]byte("m2"), []byte("x"))
	if err := b.Commit(); !errors.Is(err, ErrDead) {
		t.Errorf("got %v from a commit after a failed sync, want ErrDead: it must not be trusted again", err)
	}
	b.Close()
}

func TestOpenReturnsWhenTheDiskFailsUnderIt(t *testing.T) {
	t.Parallel()
	injected := errors.New("injected EIO")
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync {
			return injected
		}
		return nil
	}))
	if _, err := Open("data", Spool, Options{FS: fs}); !errors.Is(err, injected) {
		t.Errorf("got %v, want the injected error: Pebble blocks for ever where it meets it", err)
	}
}

func TestHorizonNeverPassesAnOpenReservation(t *testing.T) {
	t.Parallel()
	db := open(t, vfs.NewMem(), nil)
	first := db.Sequence().Horizon() + 1
	a, b := db.NewBatch(0), db.NewBatch(0)
	if got := a.Reserve(2); got != first {
		t.Fatalf("got first place %d, want %d", got, first)
	}
	b.Reserve(1)
	b.Set([]byte("m1"), nil)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := db.Sequence().Horizon(); got != first-1 {
		t.Errorf("got horizon %d while a batch is open, want %d", got, first-1)
	}
	a.Close() // given up
	if got := db.Sequence().Horizon(); got != first+2 {
		t.Errorf("got horizon %d, want %d", got, first+2)
	}
	b.Close()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPlacesAreNeverUsedTwiceAcrossACrash(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	db := open(t, fs, nil)
	var mu sync.Mutex
	var last uint64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				b := db.NewBatch(0)
				p := b.Reserve(3)
				b.Set(JournalKey(nil, p+2), []byte("e"))
				if err := b.Commit(); err != nil {
					t.Error(err)
				}
				b.Close()
				mu.Lock()
				last = max(last, p+2)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	db2 := open(t, fs.CrashClone(vfs.CrashCloneCfg{}), nil)
	b := db2.NewBatch(0)
	if p := b.Reserve(1); p <= last {
		t.Errorf("place %d was given out again after a crash; the last used was %d", p, last)
	}
	b.Close()
	if err := errors.Join(db.Close(), db2.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestUnknownFormatIsRefusedByName(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	db := open(t, fs, nil)
	b := db.NewBatch(0)
	b.Set([]byte{keyFormat}, []byte{99})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("data", Spool, Options{FS: fs}); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v, want ErrFormat", err)
	}
}

func BenchmarkCommitGroup(b *testing.B) {
	db, err := Open(b.TempDir(), Spool, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	val := make([]byte, 10<<10)
	b.SetParallelism(32)
	var n atomic.Uint64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			bt := db.NewBatch(11 << 10)
			bt.Set(JournalKey(nil, n.Add(1)), val)
			if err := bt.Commit(); err != nil {
				b.Error(err)
			}
			bt.Close()
		}
	})
}

func TestNewDataDirectorySurvivesPowerLoss(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	lock, err := Lock("var/lib/data", fs)
	if err != nil {
		t.Fatal(err)
	}
	db, err := Open("var/lib/data", Ledger, Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	b := db.NewBatch(0)
	b.Set([]byte("k"), []byte("x"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := errors.Join(db.Close(), lock.Close()); err != nil {
		t.Fatal(err)
	}
	db, err = Open("var/lib/data", Ledger, Options{FS: after})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := db.Get([]byte("k")); err != nil || string(v) != "x" {
		t.Errorf("got %q, %v after a power cut at the first start, want what was committed", v, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
