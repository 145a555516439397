package store

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// stuckLog is a disk whose log does not get synced while shut is not nil.
type stuckLog struct {
	shut    atomic.Pointer[chan struct{}]
	arrived chan struct{} // gets one for each sync that waits
}

func newStuckLog() *stuckLog { return &stuckLog{arrived: make(chan struct{}, 100)} }

func (s *stuckLog) wrap(fs vfs.FS) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		isSync := op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo
		if shut := s.shut.Load(); isSync && shut != nil && strings.HasSuffix(op.Path, ".log") {
			s.arrived <- struct{}{}
			<-*shut
		}
		return nil
	}))
}

func (s *stuckLog) stick() (release func()) {
	shut := make(chan struct{})
	s.shut.Store(&shut)
	return func() { s.shut.Store(nil); close(shut) }
}

func commitOne(db *DB, key string) error {
	b := db.NewBatch(0)
	defer b.Close()
	b.Reserve(1)
	b.Set([]byte(key), []byte("x"))
	return b.Commit()
}

func TestNobodyWaitsForTheDiskOfADeadStore(t *testing.T) {
	t.Parallel()
	disk := newStuckLog()
	db := open(t, disk.wrap(vfs.NewMem()), nil)
	release := disk.stick()
	defer release()
	committed, waited := make(chan error, 1), make(chan error, 1)
	before := db.Sequence().Horizon()
	go func() { waited <- db.Sequence().Wait(context.Background(), before) }()
	go func() { committed <- commitOne(db, "m1") }()
	<-disk.arrived
	db.die(errors.New("told so"))
	if err := <-committed; !errors.Is(err, ErrDead) {
		t.Errorf("got %v from a commit that hangs in a dead store, want ErrDead", err)
	}
	if err := <-waited; !errors.Is(err, ErrDead) {
		t.Errorf("got %v from somebody who waits for the horizon, want ErrDead", err)
	}
	if got := db.Sequence().Horizon(); got != before {
		t.Errorf("the horizon moved from %d to %d over a commit that may not be there after a restart", before, got)
	}
	if _, err := db.Get([]byte("m1")); !errors.Is(err, ErrDead) {
		t.Errorf("got %v from a read, want ErrDead", err)
	}
	if err := db.Flush(); !errors.Is(err, ErrDead) {
		t.Errorf("got %v from a flush, want ErrDead", err)
	}
	if err := db.Close(); !errors.Is(err, ErrDead) {
		t.Errorf("got %v from Close, want ErrDead", err)
	}
}

func TestStalledDiskIsNoticedAndForgotten(t *testing.T) {
	t.Parallel()
	disk := newStuckLog()
	db := open(t, disk.wrap(vfs.NewMem()), nil)
	now := time.Unix(1_800_000_000, 0)
	if d := db.Stalled(now); d != 0 {
		t.Errorf("got a stall of %v while nobody waits", d)
	}
	release := disk.stick()
	committed := make(chan error, 1)
	go func() { committed <- commitOne(db, "m1") }()
	<-disk.arrived
	db.Stalled(now)
	if d := db.Stalled(now.Add(5 * time.Second)); d != 5*time.Second || db.Committing() != 1 {
		t.Errorf("got a stall of %v and %d commits under way, want 5s and 1", d, db.Committing())
	}
	release()
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	if d := db.Stalled(now.Add(6 * time.Second)); d != 0 || db.Committing() != 0 {
		t.Errorf("got a stall of %v and %d commits under way after the end of it", d, db.Committing())
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReadErrorEndsTheStoreInsteadOfLookingLikeDamage(t *testing.T) {
	t.Parallel()
	for ext, size := range map[string]int{".sst": 10, ".blob": 4000} {
		t.Run(ext, func(t *testing.T) {
			t.Parallel()
			mem := vfs.NewMem()
			fill(t, mem, size)
			var broken atomic.Bool
			injected := errors.New("injected EIO")
			fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if broken.Load() && strings.HasSuffix(op.Path, ext) && op.Kind.ReadOrWrite() == errorfs.OpIsRead {
					return injected
				}
				return nil
			}))
			db, err := Open("data", Spool, Options{FS: fs, CacheBytes: 1}) // so that reads reach the disk
			if err != nil {
				t.Fatal(err)
			}
			broken.Store(true)
			_, err = db.Get([]byte("b1"))
			if !errors.Is(err, ErrDead) || !errors.Is(err, injected) || IsDamage(err) {
				t.Errorf("got %v, want ErrDead with its cause and no word of damage", err)
			}
		})
	}
}

// fill makes a spool with one value of size bytes in a table or a blob file.
func fill(t *testing.T, fs vfs.FS, size int) {
	t.Helper()
	db := open(t, fs, nil)
	b := db.NewBatch(0)
	b.Set([]byte("b1"), make([]byte, size))
	err := b.Commit()
	b.Close()
	if err := errors.Join(err, db.Flush(), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedBlobFileIsNamedByTheReadThatMeetsIt(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	fill(t, fs, 4000)
	flipEach(t, fs, ".blob", "middle")
	db := open(t, fs, nil)
	defer db.Close()
	v, err := db.Get([]byte("b1"))
	if v != nil || !IsDamage(err) || db.Err() != nil {
		t.Errorf("got %d bytes and %v, want damage; the store: %v", len(v), err, db.Err())
	}
	if names := db.DamagedFiles(); len(names) != 1 || !strings.Contains(names[0], ".blob: ") || db.DamageMet() == 0 {
		t.Errorf("%d reads met damage, in %q", db.DamageMet(), names)
	}
}

// TestApartRunsFewAtATimeAndHandsPanicsBack asks for more than may run at once,
// some of which panic, and then lets the store die while all places are taken.
func TestApartRunsFewAtATimeAndHandsPanicsBack(t *testing.T) {
	t.Parallel()
	db := open(t, vfs.NewMem(), nil)
	defer db.Close()
	var running, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 4 * maxIdle {
		wg.Go(func() {
			defer func() {
				if v := recover(); (v != nil) != (i%10 == 0) {
					t.Errorf("call %d: recovered %v", i, v)
				}
			}()
			err := db.Apart(func() error {
				n := running.Add(1)
				defer running.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				runtime.Gosched()
				if i%10 == 0 {
					panic("a bug")
				}
				return errors.ErrUnsupported
			})
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("call %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > maxIdle {
		t.Errorf("%d ran at a time, want at most %d", n, maxIdle)
	}
	for range maxIdle {
		db.reads <- struct{}{}
	}
	_ = db.die(errors.New("the disk is gone"))
	if err := db.Apart(func() error { return nil }); !errors.Is(err, ErrDead) {
		t.Errorf("with a dead store: %v, want ErrDead", err)
	}
}

func BenchmarkBounded(b *testing.B) {
	db, err := Open("data", Spool, Options{FS: vfs.NewMem()})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	b.SetParallelism(32)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := db.bounded(func() error { return nil }); err != nil {
				b.Error(err)
			}
		}
	})
}
