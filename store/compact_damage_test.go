package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// churn overwrites and deletes bodies of keys at random, some of them large enough
// for a blob file.
func churn(db *DB, r *rand.Rand, n int) error {
	for i := range n {
		v := make([]byte, []int{100, 100, 4000}[i%3])
		for k := range v {
			v[k] = byte(r.Uint32())
		}
		b := db.NewBatch(0)
		b.Set(fmt.Appendf(nil, "b%06d", r.IntN(20_000)), v)
		b.Delete(fmt.Appendf(nil, "b%06d", r.IntN(20_000)))
		err := b.CommitLazy()
		b.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// TestCompactionThatMeetsDamageNeitherEndsTheStoreNorTriesAtOnceAgain flips a byte
// in every table, or every blob file, below level 0, and has the store compact what
// is written over them.
func TestCompactionThatMeetsDamageNeitherEndsTheStoreNorTriesAtOnceAgain(t *testing.T) {
	t.Parallel()
	for _, ext := range []string{".sst", ".blob"} {
		for _, at := range []string{"middle", "end"} {
			t.Run(ext+" "+at, func(t *testing.T) {
				t.Parallel()
				r := rand.New(rand.NewPCG(1, 12))
				over := 20_000
				if brief() {
					over = 5000
				}
				fs := vfs.NewMem()
				opt := Options{FS: fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20}
				db, err := Open("data", Spool, opt)
				if err != nil {
					t.Fatal(err)
				}
				all := Span{Start: []byte{0}, End: []byte{0xff}}
				if err := errors.Join(churn(db, r, 4000), db.Flush(), db.Compact(context.Background(), all)); err != nil {
					t.Fatal(err)
				}
				if n := db.Metrics().Levels[0].TablesCount; n > 0 {
					t.Fatalf("%d tables in level 0", n)
				}
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				flipEach(t, fs, ext, at)
				if db, err = Open("data", Spool, opt); err != nil {
					t.Fatal(err)
				}
				if err := churn(db, r, over); err != nil {
					t.Fatal(err)
				}
				m := db.Metrics().Compact
				if m.FailedCount == 0 || m.FailedCount > 3 || db.Err() != nil {
					t.Errorf("%d of %d compactions failed, want a few; %v", m.FailedCount, m.Count, db.Err())
				}
				if db.DamageMet() == 0 {
					t.Error("no file is named")
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// flipEach turns a byte over in every file with this extension, but for the small
// tables of what the store needs to open.
func flipEach(t *testing.T, fs vfs.FS, ext, where string) {
	t.Helper()
	names, err := fs.List("data/spool")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ext) {
			continue
		}
		path := "data/spool/" + name
		data, err := readFile(fs, path)
		if err != nil {
			t.Fatal(err)
		}
		if ext == ".sst" && len(data) < 2<<10 {
			continue
		}
		at := len(data) / 3
		if where == "end" {
			at = len(data) - 3
		}
		data[at] ^= 0x55
		write(t, fs, path, data)
	}
}

// TestDamagedTableInLevelZeroStopsCompactionsAndNothingElse damages what was flushed
// last. No compaction can get past it.
func TestDamagedTableInLevelZeroStopsCompactionsAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 13))
		fs := vfs.NewMem()
		opt := Options{FS: fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20}
		db, err := Open("data", Spool, opt)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(churn(db, r, 200), db.Flush(), db.Close()); err != nil {
			t.Fatal(err)
		}
		flipEach(t, fs, ".sst", "middle")
		if db, err = Open("data", Spool, opt); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}()
		if n := db.Metrics().Levels[0].TablesCount; n == 0 {
			t.Error("no table in level 0")
		}
		failed := func() int64 { return db.Metrics().Compact.FailedCount }
		// Beyond the 24 tables at which commits used to wait for ever.
		for began := time.Now(); db.Metrics().Levels[0].Sublevels < 30; {
			if err := churn(db, r, 500); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if time.Since(began) > 0 && failed() > 1 {
				t.Fatalf("%d compactions failed without a wait between them", failed())
			}
		}
		if failed() == 0 || db.DamageMet() == 0 {
			t.Errorf("%d compactions failed, %d times damage was met", failed(), db.DamageMet())
		}
		time.Sleep(10 * time.Minute)
		// After 1, 2, 4, 8, 16, 32 and 60 s, and so on.
		if n := failed(); n < 5 || n > 20 {
			t.Errorf("%d compactions failed in ten minutes, want a dozen", n)
		}
		b := db.NewBatch(0)
		defer b.Close()
		b.Set([]byte("b000001"), []byte("last"))
		if err := b.Commit(); err != nil {
			t.Error(err)
		}
		if v, err := db.Get([]byte("b000001")); err != nil || string(v) != "last" {
			t.Errorf("read %q, %v", v, err)
		}
	})
}

// TestWhatCanBeWalkedCanBeLookedUp turns over bytes all through a table. Those of
// its filter keep Pebble's lookups from everything in it, and damage nothing.
func TestWhatCanBeWalkedCanBeLookedUp(t *testing.T) {
	t.Parallel()
	const keys = 1000
	fs := vfs.NewCrashableMem()
	db := open(t, fs, nil)
	b := db.NewBatch(0)
	for i := range keys {
		b.Set(fmt.Appendf(nil, "i%04d", i), nil) // small, so that the filter is much of the table
	}
	err := b.Commit()
	b.Close()
	if err := errors.Join(err, db.Flush(), db.Close()); err != nil {
		t.Fatal(err)
	}
	var path string
	var table []byte
	names, err := fs.List("data/spool")
	for _, name := range names {
		data, readErr := readFile(fs, "data/spool/"+name)
		if err = errors.Join(err, readErr); strings.HasSuffix(name, ".sst") && len(data) > len(table) {
			path, table = "data/spool/"+name, data
		}
	}
	if err != nil || table == nil {
		t.Fatalf("no table: %v", err)
	}
	only := 0
	for at := 0; at < len(table); at += 199 {
		damaged := slices.Clone(table)
		damaged[at] ^= 0x55
		fs := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
		write(t, fs, path, damaged)
		db := open(t, fs, nil)
		walked := 0
		whole, err := db.EachReadable(Span{Start: []byte("i"), End: []byte("j")}, func(_, _ []byte) (bool, error) { walked++; return true, nil })
		if err != nil {
			t.Fatal(err)
		}
		if whole && walked == keys {
			for i := 0; i < keys; i += 37 {
				if v, err := db.Get(fmt.Appendf(nil, "i%04d", i)); err != nil || v == nil {
					t.Fatalf("octet %d: key %d was walked over but not found: %v", at, i, err)
				}
			}
			if v, err := db.Get([]byte("i0000x")); v != nil || err != nil {
				t.Errorf("octet %d: a key that there is not: %q, %v", at, v, err)
			}
			if whole, err := db.CheckLookups(); err != nil {
				t.Error(err)
			} else if !whole {
				only++
			}
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	if only == 0 {
		t.Error("no octet of the filter was turned over: the test tests less than it says")
	}
}
