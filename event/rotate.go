package event

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// SyncPolicy says when a file sink asks the disk to keep what it wrote.
type SyncPolicy uint8

// Sync policies.
const (
	// SyncBatch syncs the file before a batch counts as delivered: nothing is
	// lost by a power failure. The default.
	SyncBatch SyncPolicy = iota
	// SyncNone leaves it to the kernel. Killing the process loses nothing, a
	// power failure may lose the last half minute of the file (not of the
	// journal: set the cursor back to write it again).
	SyncNone
)

// FileConfig describes a file that is appended to and rotated.
type FileConfig struct {
	// Path of the file being written. Rotated files lie beside it, with the
	// time of rotation before the extension: events.20261122T101500.000000Z.jsonl.
	Path string
	// MaxSize in bytes after which the file is rotated; 0 means never.
	MaxSize int64
	// Every rotates at whole multiples of this duration in UTC (1h: on the
	// hour), as soon as there is something to write; 0 means never.
	Every time.Duration
	// Keep is how many rotated files stay; 0 means all.
	Keep int
	// Compress rotated files.
	Compress Compression
	Sync     SyncPolicy
	// Perm of new files; 0 means 0640: they hold addresses.
	Perm fs.FileMode

	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Open opens files and directories as os.OpenFile does, which nil means.
	Open func(name string, flag int, perm fs.FileMode) (File, error)
}

// File is what a sink needs of an open file; *os.File has it.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

// rotating appends whole lines to a file. One goroutine calls append and
// close; reopen may come from any.
type rotating struct {
	c      FileConfig
	header []byte // first line of every file, with its line break; may be nil

	f     File // nil until needed, and after an error that leaves it in doubt
	info  fs.FileInfo
	size  int64     // bytes known to be good; anything after them is cut off
	wrote time.Time // last write, or modification before our time

	stale atomic.Bool // reopen before the next write
	tidy  tidier
}

func newRotating(c FileConfig, header []byte) (*rotating, error) {
	if c.Path == "" {
		return nil, errors.New("event: file sink has no path")
	}
	if c.MaxSize < 0 || c.Every < 0 || c.Keep < 0 {
		return nil, fmt.Errorf("event: file sink %s: negative limit", c.Path)
	}
	if c.Perm == 0 {
		c.Perm = 0o640
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Open == nil {
		c.Open = func(name string, flag int, perm fs.FileMode) (File, error) {
			return os.OpenFile(name, flag, perm)
		}
	}
	r := &rotating{c: c, header: header}
	r.tidy = tidier{c: &r.c}
	if err := r.open(); err != nil {
		return nil, err
	}
	r.tidy.start() // what a crash left uncompressed
	return r, nil
}

// append writes lines, which end in a line break, and returns when they are as
// safe as the sync policy makes them. After an error nothing of them counts:
// what reached the file is cut off again before the next write.
func (r *rotating) append(lines []byte) error {
	if err := r.ready(); err != nil {
		return err
	}
	if r.size == 0 && len(r.header) > 0 {
		if err := r.write(r.header); err != nil {
			return err
		}
	}
	if err := r.write(lines); err != nil {
		return err
	}
	r.wrote = r.c.Now()
	return nil
}

func (r *rotating) write(b []byte) error {
	_, err := r.f.Write(b)
	if err == nil && r.c.Sync == SyncBatch {
		err = r.f.Sync()
	}
	if err != nil {
		// After a failed sync the kernel may have dropped the pages and call
		// the next sync a success, so the file is cut back and written anew.
		// If the cut fails too, size still tells the next open where to cut.
		r.f.Truncate(r.size)
		r.f.Close()
		r.f = nil
		return fmt.Errorf("event: write %s: %w", r.c.Path, err)
	}
	r.size += int64(len(b))
	return nil
}

// ready makes sure that f is the file at Path and not due for rotation.
func (r *rotating) ready() error {
	if r.f != nil && r.stale.Swap(false) {
		r.forget()
	}
	if r.f != nil {
		// Somebody may have moved the file away without telling us; lines
		// written to a deleted file would be lost.
		info, err := os.Stat(r.c.Path)
		if err != nil || !os.SameFile(info, r.info) {
			r.forget()
		}
	}
	if r.f == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	if r.size == 0 || !r.due() {
		return nil
	}
	return r.rotate()
}

func (r *rotating) due() bool {
	if r.c.MaxSize > 0 && r.size >= r.c.MaxSize {
		return true
	}
	return r.c.Every > 0 && r.c.Now().Truncate(r.c.Every).After(r.wrote.Truncate(r.c.Every))
}

func (r *rotating) forget() {
	r.f.Close()
	r.f, r.info = nil, nil
}

// open opens the file and repairs it: a crash in the middle of a write leaves
// part of a line, which the journal still holds whole.
func (r *rotating) open() error {
	f, err := r.c.Open(r.c.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND, r.c.Perm)
	if err != nil {
		return fmt.Errorf("event: open %s: %w", r.c.Path, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("event: open %s: %w", r.c.Path, err)
	}
	if !info.Mode().IsRegular() {
		f.Close()
		return fmt.Errorf("event: %s is not a regular file", r.c.Path)
	}
	size, err := wholeLines(f, info.Size())
	if err == nil && size < info.Size() {
		err = f.Truncate(size)
	}
	if err == nil && size == 0 {
		// The name of a new file is durable only when its directory is.
		err = r.syncDir()
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("event: repair %s: %w", r.c.Path, err)
	}
	r.f, r.info, r.size, r.wrote = f, info, size, info.ModTime()
	if size == 0 {
		r.wrote = r.c.Now()
		return nil
	}
	if !r.headed() {
		// Written with other columns: a reader must not take them for ours.
		return r.rotate()
	}
	return nil
}

// headed reports whether the file begins with our header.
func (r *rotating) headed() bool {
	first := make([]byte, len(r.header))
	n, _ := r.f.ReadAt(first, 0)
	return bytes.Equal(first[:n], r.header)
}

// wholeLines returns the length of f, size bytes long, up to and with the last
// line break.
func wholeLines(f io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		n := min(end, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], end-n); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return end - n + int64(i) + 1, nil
		}
		end -= n
	}
	return 0, nil
}

// rotate moves the file aside and opens the next.
func (r *rotating) rotate() error {
	r.f.Close()
	r.f = nil
	name, err := rotatedName(r.c.Path, r.c.Now())
	if err == nil {
		err = os.Rename(r.c.Path, name)
	}
	if err != nil {
		return fmt.Errorf("event: rotate %s: %w", r.c.Path, err)
	}
	if err := r.open(); err != nil {
		return err
	}
	r.tidy.start()
	return nil
}

func (r *rotating) syncDir() error {
	d, err := r.c.Open(filepath.Dir(r.c.Path), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (r *rotating) reopen() { r.stale.Store(true) }

// close waits for the compression under way, and closes the file.
func (r *rotating) close() error {
	r.tidy.wait()
	if r.f == nil {
		return nil
	}
	err := r.f.Close()
	r.f = nil
	return err
}

// tidier compresses rotated files and removes the oldest, in a goroutine of
// its own so that a gigabyte of gzip holds up no delivery.
type tidier struct {
	c  *FileConfig
	wg sync.WaitGroup

	mu      sync.Mutex // protects everything below
	running bool
	again   bool
	err     error // of the last round
}

func (t *tidier) start() {
	if t.c.Keep == 0 && t.c.Compress == NoCompression {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.again = true
	if t.running {
		return
	}
	t.running = true
	t.wg.Go(t.run)
}

func (t *tidier) run() {
	for {
		t.mu.Lock()
		if !t.again {
			t.running = false
			t.mu.Unlock()
			return
		}
		t.again = false
		t.mu.Unlock()
		err := tidy(t.c)
		t.mu.Lock()
		t.err = err
		t.mu.Unlock()
	}
}

// wait returns once nothing is being compressed, with the error of the last
// round.
func (t *tidier) wait() error {
	t.wg.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
