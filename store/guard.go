package store

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guardedFS stands between Pebble and the file system, for three edges of Pebble
// that decide whether mail is lost.
//
// It makes the directory durable before a marker is created in it.
// Pebble names its current manifest in a marker file, and up to v2.1.7 creates
// both before one sync of the directory (cockroachdb/pebble #5825, fixed on its
// main branch by #5915). On a file system that orders directory entries as it
// likes, a power cut in between can keep the marker and lose the manifest, and
// the store does not open any more. Drop this with the first release that
// holds the fix.
//
// It looks at a blob file before Pebble does, which up to v2.1.7 panics over one
// that cannot be opened, a compaction in a goroutine that nobody recovers: the
// engine would end there after every start.
//
// And it keeps goroutines that meet an error of writing where Pebble would
// panic, some of them with locks in a state that nobody recovers from: the
// process would be gone before anybody is told to try again later. The store
// is marked dead first, and the process ends soon.
type guardedFS struct {
	vfs.FS
	db *DB
}

// walCategory is what Pebble calls its log files when it creates them.
const walCategory = vfs.DiskWriteCategory("pebble-wal")

// stop marks the store dead and does not return, if err is an error and the
// store is open.
func (db *DB) stop(what string, err error) {
	if err == nil || !db.opened.Load() {
		return
	}
	db.die(fmt.Errorf("%s: %w", what, err))
	select {}
}

// Create creates a file; before a marker, the directory is synced.
func (fs guardedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(filepath.Base(name), "marker.") {
		if err := fs.syncDir(filepath.Dir(name)); err != nil {
			return nil, err
		}
	}
	f, err := fs.FS.Create(name, category)
	if err == nil {
		f = fs.db.followManifest(f, name)
	}
	return fs.guard(f, err, category)
}

// Open opens a file to read it. Pebble goes on where a blob file gives an error,
// as long as that is not one of corruption.
func (fs guardedFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if filepath.Ext(name) == ".blob" {
		if err := checkBlob(fs.FS, name); err != nil {
			return nil, err
		}
	}
	return fs.FS.Open(name, opts...)
}

// ReuseForWrite turns an old file into a new one.
func (fs guardedFS) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.ReuseForWrite(old, name, category)
	return fs.guard(f, err, category)
}

func (fs guardedFS) guard(f vfs.File, err error, category vfs.DiskWriteCategory) (vfs.File, error) {
	fs.db.stop("create file", err)
	if err != nil {
		return nil, err
	}
	if category != walCategory {
		return guardedFile{f, fs.db}, nil
	}
	return &guardedLog{File: f, db: fs.db}, nil
}

// OpenDir opens a directory, for its Sync.
func (fs guardedFS) OpenDir(name string) (vfs.File, error) {
	d, err := fs.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return guardedDir{d, fs.db}, nil
}

func (fs guardedFS) syncDir(dir string) error {
	d, err := fs.FS.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("store: sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("store: sync directory: %w", err)
	}
	return nil
}

// Unwrap returns the file system underneath.
func (fs guardedFS) Unwrap() vfs.FS { return fs.FS }

// guardedFile is a table, a blob file or a manifest being written. No commit
// waits for it, so its first error already ends the store.
type guardedFile struct {
	vfs.File
	db *DB
}

// Write appends to the file.
func (f guardedFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.db.stop("write file", err)
	return n, err
}

// Sync makes the file durable.
func (f guardedFile) Sync() error {
	err := f.File.Sync()
	f.db.stop("sync file", err)
	return err
}

// SyncData is Sync without what nobody needs to read the data back.
func (f guardedFile) SyncData() error {
	err := f.File.SyncData()
	f.db.stop("sync file", err)
	return err
}

// Close ends the writing.
func (f guardedFile) Close() error {
	err := f.File.Close()
	f.db.stop("close file", err)
	return err
}

type guardedDir struct {
	vfs.File
	db *DB
}

// Sync makes the entries of the directory durable.
func (d guardedDir) Sync() error {
	err := d.File.Sync()
	d.db.stop("sync directory", err)
	return err
}

// guardedLog is a log file. The first error of writing or syncing is returned
// and reaches the commits that wait for it; Pebble then only comes back to
// close the file, and does not go on.
//
// Pebble writes the log out when somebody waits for a sync, and not before. A
// commit that waits for the writing only therefore asks for a sync as others do,
// and the sync is left out here when nobody else waits: DB.strict is raised
// before Pebble hears of a commit that needs one, so a sync which covers such a
// commit finds it raised. What was left out is made up for before the file is
// closed, because Pebble takes a hole in a log that is not the last for damage.
type guardedLog struct {
	vfs.File
	db     *DB
	failed atomic.Pointer[error]
	owed   atomic.Bool // a sync was left out
}

// spared reports whether nobody needs a sync now.
func (f *guardedLog) spared() bool {
	if !f.db.opened.Load() || f.db.strict.Load() > 0 {
		f.owed.Store(false)
		return false
	}
	f.owed.Store(true)
	return true
}

// again stops whoever uses a log that has failed.
func (f *guardedLog) again() {
	if first := f.failed.Load(); first != nil {
		f.db.stop("write log", *first)
	}
}

func (f *guardedLog) note(err error) error {
	if err != nil {
		f.failed.CompareAndSwap(nil, &err)
	}
	return err
}

// Write appends to the log.
func (f *guardedLog) Write(p []byte) (int, error) {
	f.again()
	n, err := f.File.Write(p)
	return n, f.note(err)
}

// Sync makes the log durable.
func (f *guardedLog) Sync() error {
	f.again()
	if f.spared() {
		return nil
	}
	return f.timed(f.File.Sync)
}

// SyncData is Sync without what nobody needs to read the data back.
func (f *guardedLog) SyncData() error {
	f.again()
	if f.spared() {
		return nil
	}
	return f.timed(f.File.SyncData)
}

func (f *guardedLog) timed(sync func() error) error {
	start := time.Now()
	err := f.note(sync())
	if f.db.synced != nil {
		f.db.synced(time.Since(start))
	}
	return err
}

// SyncTo may make the first length bytes durable, or more.
func (f *guardedLog) SyncTo(length int64) (bool, error) {
	f.again()
	full, err := f.File.SyncTo(length)
	return full, f.note(err)
}

// Stat describes the file.
func (f *guardedLog) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	f.db.stop("stat log", err)
	return info, err
}

// Close ends the log.
func (f *guardedLog) Close() error {
	f.again()
	if f.owed.Load() {
		if err := f.note(f.File.Sync()); err != nil {
			f.db.stop("sync log", err)
			return err
		}
	}
	err := f.File.Close()
	f.db.stop("close log", err)
	return err
}
