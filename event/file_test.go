package event

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/tradewind-mta/tradewind/message"
)

func lines(ns ...int) (recs []Record) {
	for _, n := range ns {
		recs = append(recs, Record{Seq: uint64(n), Type: message.EventDelivered, JSON: fmt.Appendf(nil, `{"n":%d}`, n)})
	}
	return recs
}

func newFile(t *testing.T, c FileConfig) *JSONLines {
	t.Helper()
	s, err := NewJSONLines("file", c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func deliver(t *testing.T, s Sink, recs []Record) {
	t.Helper()
	if err := s.Deliver(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, name, want string) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
		return
	}
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", filepath.Base(name), d)
	}
}

func TestEachEventIsOneLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.jsonl")
	s := newFile(t, FileConfig{Path: path})
	deliver(t, s, lines(1, 2))
	deliver(t, s, nil)
	deliver(t, s, lines(3))
	wantFile(t, path, "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n")
}

func TestPartOfALineLeftByACrashIsCutOff(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ before, want string }{
		"partial line":      {"{\"n\":1}\n{\"n\":", "{\"n\":1}\n{\"n\":9}\n"},
		"zeros":             {"{\"n\":1}\n\x00\x00\x00", "{\"n\":1}\n{\"n\":9}\n"},
		"only part":         {"{\"n\"", "{\"n\":9}\n"},
		"long part":         {"{\"n\":1}\n" + strings.Repeat("x", 200<<10), "{\"n\":1}\n{\"n\":9}\n"},
		"whole lines":       {"{\"n\":1}\n", "{\"n\":1}\n{\"n\":9}\n"},
		"break at boundary": {strings.Repeat("x", 64<<10-1) + "\n" + strings.Repeat("y", 64<<10), strings.Repeat("x", 64<<10-1) + "\n{\"n\":9}\n"},
	} {
		path := filepath.Join(t.TempDir(), "events.jsonl")
		if err := os.WriteFile(path, []byte(tc.before), 0o600); err != nil {
			t.Fatal(err)
		}
		s := newFile(t, FileConfig{Path: path})
		deliver(t, s, lines(9))
		t.Log(name)
		wantFile(t, path, tc.want)
	}
}

// faulty fails the next write or sync of a file as told.
type faulty struct {
	File
	short   int   // the next write stops after this many bytes
	write   error // of the next write
	sync    error // of the next sync
	nowhere error // of the next truncation
}

func (f *faulty) Write(b []byte) (int, error) {
	if err := f.write; err != nil {
		f.write = nil
		n, _ := f.File.Write(b[:min(f.short, len(b))])
		return n, err
	}
	return f.File.Write(b)
}

func (f *faulty) Sync() error {
	if err := f.sync; err != nil {
		f.sync = nil
		return err
	}
	return f.File.Sync()
}

func (f *faulty) Truncate(n int64) error {
	if err := f.nowhere; err != nil {
		f.nowhere = nil
		return err
	}
	return f.File.Truncate(n)
}

func TestFailedWriteLeavesNoPartOfALineBehind(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]faulty{
		"disk full in the middle of a line": {short: 11, write: syscall.ENOSPC},
		"disk full between lines":           {short: 8, write: syscall.ENOSPC},
		"failed sync":                       {sync: syscall.EIO},
		"cut fails as well":                 {short: 11, write: syscall.EIO, nowhere: syscall.EIO},
	} {
		path := filepath.Join(t.TempDir(), "events.jsonl")
		var armed *faulty
		s := newFile(t, FileConfig{Path: path, Open: func(name string, flag int, perm fs.FileMode) (File, error) {
			f, err := os.OpenFile(name, flag, perm)
			if err != nil || name != path {
				return f, err
			}
			armed = &faulty{File: f}
			return armed, nil
		}})
		deliver(t, s, lines(1))
		fault.File = armed.File
		*armed = fault
		if err := s.Deliver(t.Context(), lines(2, 3)); !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) {
			t.Fatalf("%s: got %v, want the fault", name, err)
		}
		deliver(t, s, lines(2, 3))
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n"
		if name == "cut fails as well" {
			want = "{\"n\":1}\n{\"n\":2}\n{\"n\":2}\n{\"n\":3}\n" // twice is allowed, torn is not
		}
		if d := cmp.Diff(want, string(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestFileMovedAwayIsFollowedByANewOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "events.jsonl")
	s := newFile(t, FileConfig{Path: path})
	deliver(t, s, lines(1))
	old := filepath.Join(dir, "old")
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	s.Reopen()
	deliver(t, s, lines(2))
	if err := os.Remove(path); err != nil { // and nobody tells us
		t.Fatal(err)
	}
	deliver(t, s, lines(3))
	wantFile(t, old, "{\"n\":1}\n")
	wantFile(t, path, "{\"n\":3}\n")
}

func TestFileRotatesBySizeAndKeepsTheNewest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "events.jsonl")
	bystander := filepath.Join(dir, "events.notes.jsonl")
	if err := os.WriteFile(bystander, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newFile(t, FileConfig{Path: path, MaxSize: 16, Keep: 2, Now: func() time.Time { return epoch }})
	for n := 1; n <= 9; n++ {
		deliver(t, s, lines(n))
		if err := s.r.tidy.wait(); err != nil {
			t.Fatal(err)
		}
	}
	wantFile(t, path, "{\"n\":9}\n")
	files, err := listRotated(path)
	if err != nil || len(files) != 2 {
		t.Fatalf("got %v, %v, want two rotated files", files, err)
	}
	wantFile(t, files[0].full, "{\"n\":5}\n{\"n\":6}\n")
	wantFile(t, files[1].full, "{\"n\":7}\n{\"n\":8}\n")
	if _, err := os.Stat(bystander); err != nil {
		t.Errorf("a file that is not ours went: %v", err)
	}
}

func TestFileRotatesOnTheHourEvenAcrossARestart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.jsonl")
	now := epoch.Add(30 * time.Minute)
	c := FileConfig{Path: path, Every: time.Hour, Now: func() time.Time { return now }}
	s := newFile(t, c)
	deliver(t, s, lines(1))
	now = epoch.Add(59 * time.Minute)
	deliver(t, s, lines(2))
	now = epoch.Add(61 * time.Minute)
	deliver(t, s, lines(3))
	wantFile(t, path, "{\"n\":3}\n")
	if err := os.Chtimes(path, now, now); err != nil {
		t.Fatal(err)
	}
	now = epoch.Add(3 * time.Hour)
	s = newFile(t, c)
	deliver(t, s, lines(4))
	wantFile(t, path, "{\"n\":4}\n")
	files, err := listRotated(path)
	if err != nil || len(files) != 2 {
		t.Fatalf("got %v, %v, want two rotated files", files, err)
	}
	wantFile(t, files[0].full, "{\"n\":1}\n{\"n\":2}\n")
	wantFile(t, files[1].full, "{\"n\":3}\n")
}

func TestRotatedFilesAreCompressed(t *testing.T) {
	t.Parallel()
	for _, how := range []Compression{Gzip, Zstd} {
		path := filepath.Join(t.TempDir(), "events.jsonl")
		c := FileConfig{Path: path, MaxSize: 1, Compress: how}
		s := newFile(t, c)
		deliver(t, s, lines(1))
		deliver(t, s, lines(2))
		if err := s.r.tidy.wait(); err != nil {
			t.Fatal(err)
		}
		files, err := listRotated(path)
		if err != nil || len(files) != 1 || filepath.Ext(files[0].full) != how.suffix() {
			t.Fatalf("got %v, %v, want one file ending in %s", files, err, how.suffix())
		}
		packed, err := os.ReadFile(files[0].full)
		if err != nil {
			t.Fatal(err)
		}
		var plain io.Reader
		if how == Gzip {
			plain, err = gzip.NewReader(bytes.NewReader(packed))
		} else {
			plain, err = zstd.NewReader(bytes.NewReader(packed))
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(plain)
		if err != nil || string(got) != "{\"n\":1}\n" {
			t.Errorf("%s holds %q, %v", files[0].full, got, err)
		}
	}
}

func TestCompressionCutShortIsFinishedAtTheNextStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.jsonl")
	name, err := rotatedName(path, epoch)
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{name: "{\"n\":1}\n", name + ".gz.tmp": "half"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newFile(t, FileConfig{Path: path, Compress: Gzip})
	if err := s.r.tidy.wait(); err != nil {
		t.Fatal(err)
	}
	files, err := listRotated(path)
	if err != nil || len(files) != 1 || files[0].full != name+".gz" {
		t.Errorf("got %v, %v, want only the compressed file", files, err)
	}
}
