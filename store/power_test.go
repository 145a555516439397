package store

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// cutDuring runs fn on fs and returns what a power cut at write operation k
// leaves, or nil when fn made fewer. Of what was not synced, each block and
// each directory entry survives as a coin falls.
func cutDuring(fs *vfs.MemFS, k int64, seed uint64, fn func(vfs.FS)) *vfs.MemFS {
	var n atomic.Int64
	var left *vfs.MemFS
	fn(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && n.Add(1) == k {
			left = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(seed, 1))})
		}
		return nil
	})))
	return left
}

func TestStoreOpensAfterAPowerCutAtAnyMomentOfOpening(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		fs := vfs.NewCrashableMem()
		for k := int64(1); ; k++ {
			left := cutDuring(fs, k, seed, func(fs vfs.FS) {
				db := open(t, fs, nil)
				b := db.NewBatch(0)
				defer b.Close()
				b.Set([]byte("m1"), []byte("x"))
				if err := b.Commit(); err != nil {
					t.Error(err)
				}
				if err := db.Flush(); err != nil {
					t.Error(err)
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			})
			if left == nil {
				break
			}
			db, err := Open("data", Spool, Options{FS: left})
			if err != nil {
				t.Fatalf("seed %d, power cut at write operation %d: %v", seed, k, err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
