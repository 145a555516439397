package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable/blob"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// damage collects what Pebble has found that is not what was written.
type damage struct {
	mu    sync.Mutex // protects everything below
	paths map[string]string
	found int
	// behind is where reading goes on behind a key at which it met damage.
	behind map[string][]byte
}

// maxDamagedPaths bounds the files that are named.
const maxDamagedPaths = 1000

// damaged is told of every read that meets damage. Without it Pebble would take
// the first one for fatal, and every restart would end there again.
func (db *DB) damaged(info pebble.DataCorruptionInfo) {
	db.noteDamage(info.Path, fmt.Sprintf("keys %s: %v", info.Bounds.String(), info.Details))
}

// fileIn finds the number of a file in the words of Pebble.
var fileIn = regexp.MustCompile(`\b(\d{6,})\b`)

// readDamaged is told of the error of a read. Pebble says nothing to damaged of a
// blob file.
func (db *DB) readDamaged(err error) {
	number := fileIn.FindString(err.Error())
	names, listErr := db.fs.List(db.dir)
	if listErr != nil {
		names = nil
	}
	for _, name := range names {
		if number != "" && (name == number+".blob" || name == number+".sst") {
			db.noteDamage(db.fs.PathJoin(db.dir, name), err.Error())
			return
		}
	}
	if number == "" {
		number = "one of the blob files"
	}
	db.noteDamage(number, err.Error())
}

// damagedBlob is the error of a blob file whose end is not what was written, so
// that it cannot be opened. It is not marked as Pebble's corruption: see
// guardedFS.Open.
type damagedBlob struct {
	file string
	err  error
}

// Error tells what is wrong with the file.
func (e *damagedBlob) Error() string { return fmt.Sprintf("blob file %s: %v", e.file, e.err) }

// checkBlob returns a *damagedBlob if name cannot be opened as a blob file.
func checkBlob(fs vfs.FS, name string) error {
	f, err := fs.Open(name)
	if err != nil {
		return err
	}
	r, err := objstorageprovider.NewFileReadable(f, fs, objstorageprovider.NewReadaheadConfig(), name)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	_, err = blob.NewFileReader(context.Background(), r, blob.FileReaderOptions{})
	if pebble.IsCorruptionError(err) {
		err = &damagedBlob{fs.PathBase(name), err}
	}
	return errors.Join(err, r.Close())
}

func (db *DB) noteDamage(path, details string) {
	d := &db.damage
	d.mu.Lock()
	d.found++
	_, known := d.paths[path]
	if !known && len(d.paths) < maxDamagedPaths {
		if d.paths == nil {
			d.paths = map[string]string{}
		}
		d.paths[path] = details
	}
	d.mu.Unlock()
	if !known {
		db.log.Error("a file of the store is damaged; what cannot be read of it is left out", "file", path, "details", details)
	}
}

// suspects names the files that a failure to open may come from, where Pebble
// does not.
func (db *DB) suspects(err error) string {
	var kind string
	switch text := err.Error(); {
	case strings.Contains(text, "WAL"):
		kind = ".log"
	case strings.Contains(text, "key=value"), strings.Contains(text, "OPTIONS"), strings.Contains(text, "options"):
		kind = "OPTIONS-"
	default:
		return ""
	}
	names, listErr := db.fs.List(db.dir)
	if listErr != nil {
		return ""
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.Contains(name, kind) })
	slices.Sort(names)
	return fmt.Sprintf(" (damaged is one of %s in %s)", strings.Join(names, ", "), db.dir)
}

// DamagedFiles names the files in which damage has been met since the store was
// opened.
func (db *DB) DamagedFiles() []string {
	db.damage.mu.Lock()
	defer db.damage.mu.Unlock()
	var list []string
	for path, details := range db.damage.paths {
		list = append(list, path+": "+details)
	}
	slices.Sort(list)
	return list
}

// DamageMet counts the reads that met damage, and the lost end of a log as one.
func (db *DB) DamageMet() int {
	db.damage.mu.Lock()
	defer db.damage.mu.Unlock()
	n := db.damage.found
	if db.lost != nil {
		n++
	}
	return n
}

// CheckLookups reads what lookups need and walks do not, the filters of tables, and
// reports whether all of it can be read.
func (db *DB) CheckLookups() (whole bool, err error) {
	levels, err := db.p.SSTables()
	if err != nil {
		return false, fmt.Errorf("store: list tables of %s: %w", db.kind, db.readFailed(err))
	}
	whole = true
	for _, tables := range levels {
		for _, t := range tables {
			// Its first key may be found in a newer table, the one behind it is in none.
			first := t.Smallest.UserKey
			_, err := db.lookup(nil, first)
			if err == nil {
				_, err = db.lookup(nil, append(slices.Clone(first), 0))
			}
			switch {
			case IsDamage(err):
				whole = false
			case err != nil:
				return whole, err
			}
		}
	}
	return whole, nil
}

// EachReadable is Each that goes on behind what cannot be read, and reports
// whether there was any of it. Use it where keys left out do no harm.
func (db *DB) EachReadable(s Span, fn func(key, value []byte) (bool, error)) (whole bool, err error) {
	whole = true
	last := s.Start // the last key that was read
	var buf []byte
	for {
		err := db.Each(s, func(k, v []byte) (bool, error) {
			buf = append(buf[:0], k...)
			last = buf
			more, err := fn(k, v)
			if err != nil {
				err = &fromCaller{err}
			}
			return more, err
		})
		var ours *fromCaller
		switch {
		case errors.As(err, &ours):
			return whole, ours.error
		case err == nil || !IsDamage(err):
			return whole, err
		}
		whole = false
		next, err := db.ReadableAfter(Span{Start: last, End: s.End})
		if err != nil || next == nil {
			return whole, err
		}
		s.Start, last = next, next
	}
}

// fromCaller tells the caller's own errors from those of reading.
type fromCaller struct{ error }

// Unwrap returns the caller's error.
func (e *fromCaller) Unwrap() error { return e.error }

// probeBytes is how many bytes of a key the search for the end of a damaged
// region looks at.
const probeBytes = 40

// ReadableAfter returns a key behind the start of s, where reading has met damage,
// at which it works again, nil for none in s. It finds the step to take as a power
// of two first, over keys taken as numbers, then the smallest that will do.
func (db *DB) ReadableAfter(s Span) ([]byte, error) {
	d := &db.damage
	d.mu.Lock()
	next, known := d.behind[string(s.Start)]
	d.mu.Unlock()
	if known && (next == nil || bytes.Compare(next, s.End) < 0) {
		return next, nil
	}
	next, err := db.searchReadable(s.Start, s.End)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.behind == nil || len(d.behind) > maxDamagedPaths {
		d.behind = map[string][]byte{}
	}
	d.behind[string(s.Start)] = next
	return next, nil
}

func (db *DB) searchReadable(start, end []byte) ([]byte, error) {
	base := make([]byte, probeBytes)
	copy(base, start)
	works := func(key []byte) (bool, error) {
		it, err := db.NewIter(Span{Start: key, End: end})
		if err != nil {
			return false, err
		}
		valid := it.First()
		if valid {
			_, err = it.ValueAndErr()
		}
		if closing := it.Close(); err == nil {
			err = closing
		}
		switch {
		case err == nil:
			return true, nil
		case IsDamage(err):
			return false, nil
		}
		return false, db.readFailed(err)
	}
	// Each probe that fails costs milliseconds: Pebble looks for the bit that fell.
	// So the first step is found to the byte.
	least := 8 * max(0, probeBytes-len(start))
	for bit := least; bit < 8*probeBytes; bit += 8 {
		key, ok := addBit(base, bit)
		if !ok || bytes.Compare(key, end) >= 0 {
			return nil, nil
		}
		good, err := works(key)
		if err != nil {
			return nil, err
		}
		if !good {
			continue
		}
		for low := bit - 1; low >= least; low-- {
			less, ok := addBit(base, low)
			if !ok {
				continue
			}
			good, err := works(less)
			if err != nil {
				return nil, err
			}
			if good {
				key = less
			} else {
				base = less
			}
		}
		return key, nil
	}
	return nil, nil
}

// addBit adds 2^bit to a key taken as a number.
func addBit(key []byte, bit int) ([]byte, bool) {
	sum := append([]byte(nil), key...)
	carry := 1 << (bit % 8)
	for i := len(sum) - 1 - bit/8; i >= 0; i-- {
		v := int(sum[i]) + carry
		sum[i] = byte(v)
		if carry = v >> 8; carry == 0 {
			return sum, true
		}
	}
	return nil, false
}
