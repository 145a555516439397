package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// keys returns what is found under the message keys.
func found(t *testing.T, fs vfs.FS) map[string]bool {
	t.Helper()
	db := open(t, fs, nil)
	list := map[string]bool{}
	err := db.Each(MessageSpan(), func(k, _ []byte) (bool, error) {
		list[string(k)] = true
		return true, nil
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestWrittenCommitSurvivesTheProcessAndNotThePowerCut(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	db := open(t, fs, nil)
	defer db.Close()
	const n = 100
	for i := range n {
		b := db.NewBatch(0)
		b.Set(fmt.Appendf(nil, "m%03d", i), []byte("x"))
		if err := b.CommitWritten(); err != nil {
			t.Fatal(err)
		}
		b.Close()
		// What kill -9 leaves is what has been written, synced or not.
		if i%10 == 0 && len(found(t, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}))) != i+1 {
			t.Fatalf("commit %d had not been written when it returned", i)
		}
	}
	if got := len(found(t, fs.CrashClone(vfs.CrashCloneCfg{}))); got != 0 {
		t.Errorf("%d commits survived the power cut without a sync, want none: the test cannot tell", got)
	}
	b := db.NewBatch(0)
	b.Set([]byte("msynced"), []byte("x"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if got := len(found(t, fs.CrashClone(vfs.CrashCloneCfg{}))); got != n+1 {
		t.Errorf("%d commits survived the power cut after a sync, want all %d: order is part of the promise", got, n+1)
	}
}

func TestSyncedCommitAmongWrittenOnesSurvivesEveryPowerCut(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	// A small memtable, so that logs are changed in the middle of it.
	db, err := Open("data", Spool, Options{FS: fs, MemTableBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				b := db.NewBatch(0)
				key := fmt.Sprintf("m%d-%03d", w, i)
				b.Set([]byte(key), make([]byte, 500))
				commit, strict := b.CommitWritten, (w+i)%5 == 0
				if strict {
					commit = b.Commit
				}
				if err := commit(); err != nil {
					t.Error(err)
				}
				b.Close()
				if strict && i%20 == 0 && !found(t, fs.CrashClone(vfs.CrashCloneCfg{}))[key] {
					t.Errorf("%s was acknowledged as synced and is gone after a power cut", key)
				}
			}
		})
	}
	wg.Wait()
}
