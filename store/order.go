package store

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// orderedFS makes the directory durable before a marker is created in it.
//
// Pebble names its current manifest in a marker file, and up to v2.1.7 creates
// both before one sync of the directory (cockroachdb/pebble #5825, fixed on its
// main branch by #5915). On a file system that orders directory entries as it
// likes, a power cut in between can keep the marker and lose the manifest, and
// the store does not open any more. Drop this with the first release that
// holds the fix.
type orderedFS struct{ vfs.FS }

// Create creates a file; before a marker, the directory is synced.
func (fs orderedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(filepath.Base(name), "marker.") {
		if err := fs.syncDir(filepath.Dir(name)); err != nil {
			return nil, err
		}
	}
	return fs.FS.Create(name, category)
}

func (fs orderedFS) syncDir(dir string) error {
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
func (fs orderedFS) Unwrap() vfs.FS { return fs.FS }
