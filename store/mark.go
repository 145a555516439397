package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// The end of a log that is damaged looks like the end of a log that was being
// written when the power went, and so does the end of a manifest. Both open
// without a word, and what was acknowledged is missing; of a shortened manifest
// even the tables are deleted that it no longer names. So the store keeps a mark
// in a file of its own: how far it has come, and what its manifest was then. A
// store that opens without having come as far as its mark has lost something; a
// manifest that does not begin as it did is not opened.

// ErrDamage reports a file of a store that is not what was written.
var ErrDamage = errors.New("store: damaged")

// Lost says what a store that has opened no longer knows, though it was durable.
type Lost struct {
	// After and Until are when that was committed. What came later than Until
	// may be missing as well, up to the moment of the next mark.
	After, Until time.Time
}

// prefix is the beginning of a manifest.
type prefix struct {
	name string
	size uint64
	sum  uint32
}

// marks is what a store keeps about its marks.
type marks struct {
	mu       sync.Mutex // serialises Mark; protects at and commits
	at       uint64     // the last mark, Unix nanoseconds
	commits  uint64     // begun by then
	manifest struct {
		sync.Mutex // innermost; protects synced
		synced     prefix
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (db *DB) markPath() string { return db.dir + ".mark" }

// Mark notes how far the store has come, if that has changed. Between two calls
// a damaged end of the log goes unnoticed: call it every second.
func (db *DB) Mark(now time.Time) error {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	begun := db.begun.Load()
	if begun == m.commits {
		return nil
	}
	at := max(uint64(now.UnixNano()), m.at+1)
	b := db.NewBatch(0)
	defer b.Close()
	b.note(setVital(b.b, keyMarked, binary.BigEndian.AppendUint64(nil, at)))
	if err := b.Commit(); err != nil {
		return err
	}
	m.manifest.Lock()
	p := m.manifest.synced
	m.manifest.Unlock()
	if err := db.bounded(func() error { return writeMark(db.fs, db.markPath(), at, p) }); err != nil {
		return fmt.Errorf("store: mark %s: %w", db.kind, err)
	}
	m.at, m.commits = at, begun+1 // our own is one
	return nil
}

// markVersion is the version of the mark file: version, time, manifest, checksum
// of all that.
const markVersion = 1

func writeMark(files vfs.FS, path string, at uint64, p prefix) (err error) {
	v := binary.BigEndian.AppendUint64([]byte{markVersion}, at)
	v = binary.BigEndian.AppendUint64(v, p.size)
	v = binary.BigEndian.AppendUint32(v, p.sum)
	v = append(append(v, byte(len(p.name))), p.name...)
	v = binary.BigEndian.AppendUint32(v, crc32.Checksum(v, castagnoli))
	// Overwritten in place, within one sector: a full disk does not matter, and
	// of a torn write the checksum tells.
	f, err := files.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(v, 0)
	if err == nil {
		err = f.SyncData()
	}
	return errors.Join(err, f.Close())
}

// readMark returns zeros when there is no mark, and an error for one that cannot
// be read.
func readMark(files vfs.FS, path string) (at uint64, p prefix, err error) {
	v, err := readFile(files, path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, p, nil
	}
	if err != nil {
		return 0, p, err
	}
	const head = 1 + 8 + 8 + 4 + 1
	if len(v) < head || v[0] != markVersion || len(v) < head+int(v[head-1])+4 {
		return 0, p, fmt.Errorf("%w: %s", ErrDamage, path)
	}
	v = v[:head+int(v[head-1])+4] // an older one may have been longer
	body, sum := v[:len(v)-4], binary.BigEndian.Uint32(v[len(v)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return 0, p, fmt.Errorf("%w: %s", ErrDamage, path)
	}
	return binary.BigEndian.Uint64(v[1:]), prefix{
		name: string(body[head:]), size: binary.BigEndian.Uint64(v[9:]), sum: binary.BigEndian.Uint32(v[17:]),
	}, nil
}

func readFile(files vfs.FS, path string) ([]byte, error) {
	f, err := files.Open(path)
	if err != nil {
		return nil, err
	}
	v, err := io.ReadAll(f)
	return v, errors.Join(err, f.Close())
}

// checkManifest refuses a manifest that does not begin as the mark says, and
// learns what there is.
func (db *DB) checkManifest() error {
	at, marked, err := readMark(db.fs, db.markPath())
	if err != nil {
		// Without it less is noticed, and nothing is lost.
		db.log.Error("the mark of the store cannot be read", "err", err)
	}
	db.marks.at = at
	name, err := atomicfs.ReadMarker(db.fs, db.dir, "manifest")
	if errors.Is(err, fs.ErrNotExist) || err == nil && name == "" {
		return nil // a new store
	}
	if err != nil {
		return fmt.Errorf("store: open %s: %w", db.kind, err)
	}
	data, err := readFile(db.fs, filepath.Join(db.dir, name))
	if err != nil {
		return fmt.Errorf("store: open %s: manifest: %w", db.kind, err)
	}
	if marked.name == name && (uint64(len(data)) < marked.size || crc32.Checksum(data[:marked.size], castagnoli) != marked.sum) {
		return fmt.Errorf("%w: %s is not what was written; opening it could delete tables", ErrDamage, filepath.Join(db.dir, name))
	}
	db.marks.manifest.synced = prefix{name, uint64(len(data)), crc32.Checksum(data, castagnoli)}
	return nil
}

// checkMark finds out whether the store that has opened is behind its mark.
func (db *DB) checkMark() error {
	v, err := db.vital(keyMarked)
	if err != nil {
		return err
	}
	var reached uint64
	if len(v) == 8 {
		reached = binary.BigEndian.Uint64(v)
	}
	if reached >= db.marks.at {
		db.marks.at = reached
		return nil
	}
	db.lost = &Lost{After: unixTime(reached), Until: unixTime(db.marks.at)}
	db.log.Error("the end of the store's log is missing: what was acknowledged in this time may be lost",
		"after", db.lost.After, "until", db.lost.Until)
	return nil
}

func unixTime(ns uint64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(ns))
}

// Lost says what is missing since the last mark, nil when nothing is.
func (db *DB) Lost() *Lost { return db.lost }

// manifestFile follows the manifest as it is written.
type manifestFile struct {
	vfs.File
	db *DB
	p  prefix
}

func (db *DB) followManifest(f vfs.File, name string) vfs.File {
	if base := filepath.Base(name); strings.HasPrefix(base, "MANIFEST-") {
		return &manifestFile{f, db, prefix{name: base}}
	}
	return f
}

// Write appends to the manifest. Pebble writes it from one goroutine at a time.
func (f *manifestFile) Write(b []byte) (int, error) {
	f.p.sum = crc32.Update(f.p.sum, castagnoli, b)
	f.p.size += uint64(len(b))
	return f.File.Write(b)
}

// Sync makes the manifest durable.
func (f *manifestFile) Sync() error { return f.synced(f.File.Sync()) }

// SyncData is Sync without what nobody needs to read the data back.
func (f *manifestFile) SyncData() error { return f.synced(f.File.SyncData()) }

func (f *manifestFile) synced(err error) error {
	if err == nil {
		m := &f.db.marks.manifest
		m.Lock()
		m.synced = f.p
		m.Unlock()
	}
	return err
}
