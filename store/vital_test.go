package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestStoreOpensWhicheverTableIsDamaged flips a byte at many places of each table of
// a store, one at a time: it must open every time and number on behind what it gave
// out before, also once the repair has been flushed and the table flipped again.
func TestStoreOpensWhicheverTableIsDamaged(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	opt := Options{FS: fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20}
	db, err := Open("data", Spool, opt)
	if err != nil {
		t.Fatal(err)
	}
	b := db.NewBatch(0)
	last := b.Reserve(10) + 9
	b.Set([]byte("mx"), make([]byte, 3000))
	err = errors.Join(b.Commit(), db.Mark(time.Unix(1e9, 0)), db.Flush(), db.Compact(context.Background(), Span{Start: []byte{0}, End: []byte{0xff}}))
	b.Close()
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("data/spool")
	if err != nil {
		t.Fatal(err)
	}
	flips := 0
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		path := "data/spool/" + name
		data, err := readFile(fs, path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(data); at += max(1, len(data)/20) {
			fs := fs.CrashClone(vfs.CrashCloneCfg{})
			damaged := append([]byte(nil), data...)
			damaged[at] ^= 0x55
			write(t, fs, path, damaged)
			where := fmt.Sprintf("%s, byte %d of %d", name, at, len(data))
			opt := opt
			opt.FS = fs
			for life := range 2 {
				db, err := Open("data", Spool, opt)
				if err != nil {
					t.Errorf("%s, life %d: %v", where, life, err)
					break
				}
				b := db.NewBatch(0)
				if got := b.Reserve(1); got <= last {
					t.Errorf("%s, life %d: place %d is given out again", where, life, got)
				}
				b.Close()
				if l := db.Lost(); l != nil {
					t.Errorf("%s, life %d: lost %+v", where, life, l)
				}
				if err := errors.Join(db.Flush(), db.Close()); err != nil {
					t.Errorf("%s, life %d: %v", where, life, err)
				}
			}
			flips++
		}
	}
	if flips < 60 {
		t.Errorf("%d flips, want those of several tables", flips)
	}
}

func write(t *testing.T, fs vfs.FS, path string, data []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}
