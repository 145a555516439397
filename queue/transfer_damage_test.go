package queue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/store"
)

// TestDamagedStoreIsExportedAsFarAsItCanBeRead turns over a byte in a file of each
// kind. A store that does not open names the file; of one that does, each message
// is in the export, or it is said to be missing: by name, as one of those with a
// damaged file, or with the lost end of the log.
func TestDamagedStoreIsExportedAsFarAsItCanBeRead(t *testing.T) {
	t.Parallel()
	w := newRotted(t)
	seed := seedFrom(t, "TRADEWIND_EXPORT_SEED")
	for _, kind := range []string{".sst", ".blob", ".log", "MANIFEST-", "OPTIONS-", "marker."} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 10))
			var refused, exported, missing int
			for range shortened(20, 5, 2) {
				fs, name := w.flipIn(t, r, kind)
				db, err := store.Open("data", store.Spool, rotOptions(fs))
				if err != nil {
					refused++
					if !strings.Contains(err.Error(), strings.TrimSuffix(name, ".sst")) {
						t.Errorf("%s: the store does not open and names another file: %v", name, err)
					}
					continue
				}
				rep, err := Verify(db)
				if err != nil {
					t.Fatalf("%s: verify: %v", name, err)
				}
				var out bytes.Buffer
				got, err := Export(t.Context(), db, &out, TransferOptions{Now: fixedNow})
				if err != nil {
					t.Fatalf("%s: export: %v", name, err)
				}
				exported += got.Messages
				into := newNode(t, vfs.NewMem())
				if took, err := into.take(out.Bytes()); err != nil || took.Messages != got.Messages {
					t.Errorf("%s: the import of %d: %+v, %v", name, got.Messages, took, err)
				}
				absent := 0
				for id := range w.bodies {
					if v, err := into.db.Get(store.MessageKey(nil, id)); err != nil || v == nil {
						absent++
					}
				}
				missing += absent
				told := got.Skipped > 0 || got.Incomplete || db.Lost() != nil
				if absent > 0 && (!told || len(rep.Problems) == 0) {
					t.Errorf("%s: %d messages are missing; the export says %+v, verify %q", name, absent, got, rep.Problems)
				}
				if absent > 0 && db.Lost() == nil && len(db.DamagedFiles()) == 0 {
					t.Errorf("%s: %d messages are missing and no file is named", name, absent)
				}
				if err := db.Close(); err != nil {
					t.Errorf("%s: close: %v", name, err)
				}
			}
			t.Logf("%d stores did not open; of the others %d messages were exported and %d were not", refused, exported, missing)
		})
	}
}

// flipIn turns over one byte of a file of one kind, on a copy.
func (w *rotted) flipIn(t *testing.T, r *rand.Rand, kind string) (fs *vfs.MemFS, name string) {
	t.Helper()
	fs = w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: r})
	names, err := fs.List(rotDir)
	if err != nil {
		t.Fatal(err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.Contains(n, kind) })
	slices.Sort(names)
	for {
		name = names[r.IntN(len(names))]
		path := fs.PathJoin(rotDir, name)
		f, err := fs.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(f)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if len(data) == 0 {
			if kind == "marker." {
				return w.misname(t, fs, name)
			}
			continue
		}
		data[r.IntN(len(data))] ^= byte(1 + r.IntN(255))
		out, err := fs.Create(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		_, err = out.Write(data)
		if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
			t.Fatal(err)
		}
		return fs, name
	}
}

// misname makes a marker, which is empty and says what it says by its name, speak
// of a file that is not there.
func (w *rotted) misname(t *testing.T, fs *vfs.MemFS, name string) (*vfs.MemFS, string) {
	t.Helper()
	dot := strings.LastIndex(name, ".")
	wrong := fmt.Sprintf("%s.%s", name[:dot], "MANIFEST-999999")
	if err := fs.Rename(fs.PathJoin(rotDir, name), fs.PathJoin(rotDir, wrong)); err != nil {
		t.Fatal(err)
	}
	return fs, "MANIFEST-999999"
}
