package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A store on a full disk does not open: what its logs hold must be written out
// first. The ballast is a file that is nothing but room. It is given up before
// such an opening, and laid in again when there is room; until then no mail is
// taken and what waits is delivered.

// Ballast is room kept in a data directory for the opening on a full disk.
type Ballast struct {
	fs   vfs.FS
	dir  string
	size int64
}

// NewBallast speaks of the ballast under dir; size 0 means that there is to be
// none. Nothing is written yet.
func NewBallast(dir string, files vfs.FS, size int64) *Ballast {
	if files == nil {
		files = vfs.Default
	}
	return &Ballast{fs: files, dir: dir, size: size}
}

func (b *Ballast) path() string { return filepath.Join(b.dir, "ballast") }

// Missing is how much of the ballast is not there.
func (b *Ballast) Missing() int64 {
	st, err := b.fs.Stat(b.path())
	if err != nil {
		return b.size
	}
	return max(0, b.size-st.Size())
}

// Free is the free space of the file system under the data directory, in bytes.
// An error means that the file system cannot tell; then there is no ballast.
func (b *Ballast) Free() (uint64, error) {
	usage, err := b.fs.GetDiskUsage(b.dir)
	if err != nil {
		return 0, fmt.Errorf("store: free space: %w", err)
	}
	return usage.AvailBytes, nil
}

// Drop gives the ballast up, and returns when its room is free.
func (b *Ballast) Drop() error {
	if err := b.fs.Remove(b.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("store: give up the ballast: %w", err)
	}
	// Until the removal is durable, a journalling file system may keep the blocks.
	d, err := b.fs.OpenDir(b.dir)
	if err != nil {
		return fmt.Errorf("store: give up the ballast: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("store: give up the ballast: %w", err)
	}
	return nil
}

// ballastPiece is how much is written at a time where blocks cannot be reserved.
const ballastPiece = 1 << 20

// Lay puts the ballast where it belongs, in blocks that are really its own. When
// that fails nothing of it is left.
func (b *Ballast) Lay() error {
	if b.Missing() == 0 {
		return nil
	}
	if err := b.lay(); err != nil {
		return errors.Join(fmt.Errorf("store: lay in the ballast: %w", err), b.Drop())
	}
	return nil
}

func (b *Ballast) lay() (err error) {
	if err := b.fs.Remove(b.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := b.fs.OpenReadWrite(b.path(), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if f.Preallocate(0, b.size) != nil {
		// No such call on this file system. The bytes are of a kind that no
		// file system compresses to nothing.
		piece := make([]byte, ballastPiece)
		x := uint64(1)
		for at := int64(0); at < b.size; at += ballastPiece {
			for i := range piece {
				x = x*6364136223846793005 + 1442695040888963407
				piece[i] = byte(x >> 56)
			}
			if _, err := f.WriteAt(piece[:min(ballastPiece, b.size-at)], at); err != nil {
				return err
			}
		}
	} else if _, err := f.WriteAt([]byte{1}, b.size-1); err != nil {
		return err // reserved blocks lie behind the end without it
	}
	return f.Sync()
}

// ErrNoRoom reports a disk so full that a store on it cannot be opened.
var ErrNoRoom = errors.New("store: too little room to open")

// openRoom is what opening needs besides what the logs hold.
const openRoom = 4 << 20

// MakeRoom sees to it that the stores under the data directory can be opened: it
// gives up the ballast if free space is short. It reports whether it did.
func (b *Ballast) MakeRoom() (dropped bool, err error) {
	free, err := b.Free()
	if err != nil {
		return false, nil
	}
	need, err := b.needed()
	if err != nil {
		return false, err
	}
	if free >= need {
		return false, nil
	}
	if _, err := b.fs.Stat(b.path()); err == nil {
		if err := b.Drop(); err != nil {
			return false, err
		}
		dropped = true
		if free, err = b.Free(); err != nil {
			return dropped, err
		}
	}
	// The logs may need less than they are long. Without any room there is no
	// point in trying.
	if free < openRoom/4 {
		return dropped, fmt.Errorf("%w: %d bytes are free under %s and up to %d are needed; there is no ballast left to give up: delete or move other files of that disk", ErrNoRoom, free, b.dir, need)
	}
	return dropped, nil
}

// needed is the most that opening can write: the logs turned into tables.
func (b *Ballast) needed() (uint64, error) {
	need := uint64(openRoom)
	for _, kind := range []Kind{Spool, Ledger} {
		dir := filepath.Join(b.dir, string(kind))
		names, err := b.fs.List(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("store: look at %s: %w", dir, err)
		}
		for _, name := range names {
			if !strings.HasSuffix(name, ".log") {
				continue
			}
			st, err := b.fs.Stat(filepath.Join(dir, name))
			if err != nil {
				return 0, fmt.Errorf("store: look at %s: %w", dir, err)
			}
			need += uint64(st.Size())
		}
	}
	return need, nil
}
