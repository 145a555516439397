package event

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Compression of rotated files.
type Compression uint8

// Compressions.
const (
	NoCompression Compression = iota
	Gzip
	Zstd
)

// ParseCompression reads "", "none", "gzip" or "zstd".
func ParseCompression(s string) (Compression, error) {
	switch s {
	case "", "none":
		return NoCompression, nil
	case "gzip":
		return Gzip, nil
	case "zstd":
		return Zstd, nil
	}
	return NoCompression, fmt.Errorf("event: compression %q is not one of none, gzip, zstd", s)
}

func (c Compression) suffix() string { return [...]string{"", ".gz", ".zst"}[c] }

const (
	rotatedLayout = "20060102T150405.000000Z"
	tmpSuffix     = ".tmp"
)

// rotatedName is the name for a file rotated at t. Names sort in the order of
// rotation, even when the clock stands still or steps back.
func rotatedName(path string, t time.Time) (string, error) {
	files, err := listRotated(path)
	if err != nil {
		return "", err
	}
	t = t.Truncate(time.Microsecond) // what the name can tell apart
	if n := len(files); n > 0 && !t.After(files[n-1].at) {
		t = files[n-1].at.Add(time.Microsecond)
	}
	ext := filepath.Ext(path)
	return strings.TrimSuffix(path, ext) + "." + t.UTC().Format(rotatedLayout) + ext, nil
}

// rotated is one file that rotation moved aside.
type rotated struct {
	name string // without the suffix of its compression
	full string
	at   time.Time
	tmp  bool
}

// listRotated returns the rotated files of path, oldest first. Whatever else
// lies in the directory is not ours to touch.
func listRotated(path string) ([]rotated, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	ext := filepath.Ext(path)
	stem := strings.TrimSuffix(filepath.Base(path), ext) + "."
	var out []rotated
	for _, e := range entries {
		name, tmp := strings.CutSuffix(e.Name(), tmpSuffix)
		for _, c := range []Compression{Gzip, Zstd} {
			name = strings.TrimSuffix(name, c.suffix())
		}
		stamp, ok := strings.CutPrefix(name, stem)
		if !ok || !strings.HasSuffix(stamp, ext) || !e.Type().IsRegular() {
			continue
		}
		at, err := time.Parse(rotatedLayout, strings.TrimSuffix(stamp, ext))
		if err != nil {
			continue
		}
		out = append(out, rotated{name, filepath.Join(filepath.Dir(path), e.Name()), at, tmp})
	}
	slices.SortStableFunc(out, func(a, b rotated) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

// tidy removes what is beyond Keep and compresses what is not compressed.
func tidy(c *FileConfig) error {
	files, err := listRotated(c.Path)
	if err != nil {
		return err
	}
	var errs []error
	files = slices.DeleteFunc(files, func(f rotated) bool {
		if f.tmp { // of a compression that a crash cut short
			errs = append(errs, os.Remove(f.full))
		}
		return f.tmp
	})
	if c.Keep > 0 {
		for len(files) > c.Keep {
			errs = append(errs, os.Remove(files[0].full))
			files = files[1:]
		}
	}
	if c.Compress == NoCompression {
		return errors.Join(errs...)
	}
	for _, f := range files {
		if filepath.Base(f.full) == f.name {
			errs = append(errs, compress(c, f.full))
		}
	}
	return errors.Join(errs...)
}

// compress replaces the file name by its compressed form. The original goes
// only when the copy is on disk under its final name.
func compress(c *FileConfig, name string) (err error) {
	in, err := c.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	to := name + c.Compress.suffix()
	out, err := c.Open(to+tmpSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, c.Perm)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			out.Close()
			os.Remove(to + tmpSuffix)
		}
	}()
	buf := bufio.NewWriterSize(out, 64<<10)
	w, err := c.Compress.writer(buf)
	if err != nil {
		return err
	}
	if _, err = io.Copy(w, in); err != nil {
		return err
	}
	for _, step := range []func() error{w.Close, buf.Flush, out.Sync, out.Close} {
		if err = step(); err != nil {
			return err
		}
	}
	if err = os.Rename(to+tmpSuffix, to); err != nil {
		return err
	}
	return os.Remove(name)
}

func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	if c == Gzip {
		return gzip.NewWriter(w), nil
	}
	// One goroutine: rotation is nobody's hurry, the cores belong to delivery.
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
}
