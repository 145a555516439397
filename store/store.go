// Package store opens the Pebble databases under the data directory, names
// every key space in one file (keys.go), and hands out batches whose commits
// share one sync of the log.
//
// What it promises: a Commit that returned nil survives a power cut, and after
// a storage error nothing is ever reported as committed again. What it leaves
// to others: what the bytes mean.
//
// There are three databases: spool (queue and journal, churn), ledger (small,
// kept) and, once tracking stores opens and clicks, engagement.
package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Kind chooses the tuning of a database.
type Kind string

// The databases.
const (
	Spool  Kind = "spool"
	Ledger Kind = "ledger"
)

// Options says how to open a database.
type Options struct {
	// FS is the file system; nil means the operating system's.
	FS vfs.FS
	// Logger gets what Pebble has to say; nil discards it.
	Logger *slog.Logger
	// OnFatal is called once, in its own goroutine, when storage has failed.
	// The process must end soon: Pebble does not recover in place.
	OnFatal func(error)
	// CacheBytes bounds the block cache; 0 means 64 MiB.
	CacheBytes int64
	// MemTableBytes bounds one memtable; 0 means 64 MiB for the spool and
	// 8 MiB for the ledger.
	MemTableBytes uint64
	// Synced, if set, is told how long each sync of the log took.
	Synced func(time.Duration)
	// MaxOpenFiles bounds the files Pebble keeps open; 0 means 512.
	MaxOpenFiles int
}

// DB is one database. All methods are safe for concurrent use.
type DB struct {
	p    *pebble.DB
	fs   vfs.FS
	dir  string
	kind Kind
	seq  *Sequencer
	log  *slog.Logger

	onFatal func(error)
	synced  func(time.Duration)
	opened  atomic.Bool
	strict  atomic.Int64 // commits under way that need a sync
	dead    atomic.Pointer[error]
	dieOnce sync.Once
	died    chan struct{} // closed when dead is set

	calls  chan call     // to the pool; see bounded
	reads  chan struct{} // holds one for each call of Apart under way
	walks  atomic.Bool   // lookups go without filters
	idle   atomic.Int64  // goroutines of the pool that wait for a call
	closed chan struct{} // closed by Close
	begun  atomic.Uint64 // commits
	ended  atomic.Uint64
	stall  stall
	marks  marks
	damage damage

	compactor *compactor
	lost      *Lost // set by Open
}

// ErrFormat reports a store written by another release in a layout this one
// does not read.
var ErrFormat = errors.New("store: unknown format")

// Open opens or creates the database of this kind under dir.
func Open(dir string, kind Kind, opt Options) (*DB, error) {
	if opt.FS == nil {
		opt.FS = vfs.Default
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	db := &DB{fs: opt.FS, dir: filepath.Join(dir, string(kind)), kind: kind, log: opt.Logger.With("store", string(kind)), onFatal: opt.OnFatal, synced: opt.Synced, died: make(chan struct{}), calls: make(chan call), reads: make(chan struct{}, maxIdle), closed: make(chan struct{}), compactor: newCompactor()}
	if err := db.checkManifest(); err != nil {
		return nil, err
	}
	opt.FS = guardedFS{opt.FS, db}
	p, err := db.openPebble(&opt)
	if err != nil {
		return nil, fmt.Errorf("store: open %s: %w%s", kind, err, db.suspects(err))
	}
	db.p = p
	db.opened.Store(true)
	if err := errors.Join(db.prepare(), db.checkMark()); err != nil {
		if db.Err() == nil {
			err = errors.Join(err, db.bounded(p.Close))
		}
		return nil, err
	}
	return db, nil
}

// openPebble returns also when Pebble meets what it calls fatal on its way, and
// never comes back: see Fatalf. That goroutine is left behind; the process is
// to end.
func (db *DB) openPebble(opt *Options) (*pebble.DB, error) {
	type result struct {
		p   *pebble.DB
		err error
	}
	done := make(chan result, 1)
	go func() {
		// Pebble panics with the error when it cannot sync its directory.
		defer func() {
			if p := recover(); p != nil {
				err, ok := p.(error)
				if _, bug := p.(runtime.Error); bug || !ok {
					panic(p)
				}
				done <- result{nil, err}
			}
		}()
		p, err := pebble.Open(db.dir, db.options(opt))
		done <- result{p, err}
	}()
	select {
	case r := <-done:
		return r.p, r.err
	case <-db.died:
		return nil, db.Err()
	}
}

func (db *DB) options(opt *Options) *pebble.Options {
	o := &pebble.Options{
		FS:                          opt.FS,
		Logger:                      pebbleLogger{db},
		FormatMajorVersion:          pebble.FormatValueSeparation,
		CacheSize:                   opt.CacheBytes,
		MemTableSize:                opt.MemTableBytes,
		MemTableStopWritesThreshold: 4,
		MaxOpenFiles:                opt.MaxOpenFiles,
		L0CompactionThreshold:       4,
		// Pebble would have commits wait for ever, those of deliveries too. Who
		// takes mail in looks at Uncompacted.
		L0StopWritesThreshold: 1000,
	}
	if o.CacheSize == 0 {
		o.CacheSize = 64 << 20
	}
	if o.MaxOpenFiles == 0 {
		o.MaxOpenFiles = 512
	}
	if o.MemTableSize == 0 {
		o.MemTableSize = 64 << 20
		if db.kind != Spool {
			o.MemTableSize = 8 << 20
		}
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	}
	// Most of what is flushed is compacted soon: compressing the keys then costs 6 %
	// of the CPU of a message. Bodies stay in the blob file that they are flushed to.
	flushed := *sstable.SnappyCompression
	flushed.Name, flushed.DataBlocks, flushed.OtherBlocks = "bodies only", sstable.NoCompression.DataBlocks, sstable.NoCompression.OtherBlocks
	o.Levels[0].Compression = func() *sstable.CompressionProfile { return &flushed }
	o.Levels[len(o.Levels)-1].FilterPolicy = pebble.NoFilterPolicy // it is not read there
	o.Experimental.SpanPolicyFunc = keySpaceOf
	// Pebble would try a flush that fails again for ever, while commits wait.
	// What is corrupt stays so after a restart: there nothing is gained.
	o.EventListener = &pebble.EventListener{BackgroundError: func(err error) {
		if IsDamage(err) {
			db.readDamaged(err) // of a blob file it says nothing to damaged
			return
		}
		db.die(fmt.Errorf("background: %w", err))
	}, DataCorruption: db.damaged}
	o.Experimental.CompactionScheduler = db.compactor
	o.EventListener.CompactionEnd = func(info pebble.CompactionInfo) {
		db.compactor.ended(info.Err)
		db.log.Debug("compaction", "info", lazyf{"%s", []any{info}})
	}
	o.EventListener.FlushEnd = func(info pebble.FlushInfo) { db.log.Debug("flush", "info", lazyf{"%s", []any{info}}) }
	if db.kind == Spool {
		// Half of what is flushed is tombstones of messages delivered at once.
		// Left alone, Pebble compacts each table for them, and the journal beside
		// them again and again. No scan starts before what is gone.
		o.Experimental.TombstoneDenseCompactionThreshold = -1
		o.L0CompactionThreshold = 10
		// Tables of one key space hardly overlap and make no depth: they count.
		o.L0CompactionFileThreshold = 40
		// Bodies lie in blob files: compactions of the keys need not rewrite
		// them, and deleting a message costs a tombstone of a few bytes.
		o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
			return pebble.ValueSeparationPolicy{
				Enabled:               true,
				MinimumSize:           1 << 10,
				MaxBlobReferenceDepth: 8,
				TargetGarbageRatio:    0.5,
			}
		}
	}
	return o
}

// keySpaceOf ends a table where a key space ends. In most of them keys grow with
// time, so that new tables lie behind the old ones; a table over several spaces
// would overlap with all that is older, and compactions would write that anew.
func keySpaceOf(key []byte) (policy pebble.SpanPolicy, end []byte, err error) {
	if len(key) > 0 && key[0] < 0xff {
		end = []byte{key[0] + 1}
	}
	return policy, end, nil
}

// prepare checks the format and starts the sequence.
func (db *DB) prepare() error {
	format, err := db.vital(keyFormat)
	switch {
	case err != nil:
		return err
	case format == nil:
		b := db.NewBatch(0)
		defer b.Close()
		b.note(setVital(b.b, keyFormat, []byte{Format}))
		if err := b.Commit(); err != nil {
			return fmt.Errorf("store: create %s: %w", db.kind, err)
		}
	case len(format) != 1 || format[0] != Format:
		return fmt.Errorf("%w: %s is in format %v, this release reads %d; run the release that wrote it", ErrFormat, db.kind, format, Format)
	}
	first := uint64(1)
	bound, err := db.vital(keySequence)
	if err != nil {
		return err
	}
	if len(bound) == 8 {
		first = binary.BigEndian.Uint64(bound)
	}
	db.seq = newSequencer(first, db.died, func(bound uint64) error {
		// Not synced: it goes into the log ahead of every batch that uses a
		// place below the bound, so it is durable whenever they are.
		return db.bounded(func() error {
			b := db.p.NewBatch()
			return errors.Join(setVital(b, keySequence, binary.BigEndian.AppendUint64(nil, bound)), db.p.Apply(b, pebble.NoSync), b.Close())
		})
	})
	return nil
}

// Sequence numbers what this database holds.
func (db *DB) Sequence() *Sequencer { return db.seq }

// Get returns a copy of the value under key, or nil when there is none.
func (db *DB) Get(key []byte) ([]byte, error) { return db.AppendGet(nil, key) }

// AppendGet appends the value under key to dst. It returns nil when there is
// none; an empty value gives a non-nil slice.
func (db *DB) AppendGet(dst, key []byte) ([]byte, error) {
	if db.walks.Load() {
		return db.walkTo(dst, key)
	}
	v, err := db.lookup(dst, key)
	if !IsDamage(err) {
		return v, err
	}
	walked, walkErr := db.walkTo(dst, key)
	if walkErr != nil {
		return nil, err
	}
	// The damage is in a filter, which a walk does not ask. Each lookup would meet
	// it again, and Pebble looks long for the bit that turned over.
	if !db.walks.Swap(true) {
		db.log.Warn("the filter of a table is damaged; lookups go without filters from now on", "err", err)
	}
	return walked, nil
}

// walkTo is AppendGet without the filters.
func (db *DB) walkTo(dst, key []byte) (v []byte, err error) {
	it, err := db.NewIter(Span{Start: key, End: append(slices.Clone(key), 0)})
	if err != nil {
		return nil, err
	}
	if it.First() {
		var value []byte
		if value, err = it.ValueAndErr(); err == nil {
			v = append(slices.Grow(dst, len(value)), value...)
			if v == nil {
				v = []byte{}
			}
		}
	} else {
		err = it.Error()
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return nil, fmt.Errorf("store: get from %s: %w", db.kind, db.readFailed(err))
	}
	return v, nil
}

// lookup is AppendGet by way of the filters.
func (db *DB) lookup(dst, key []byte) ([]byte, error) {
	if err := db.Err(); err != nil {
		return nil, err
	}
	v, closer, err := db.p.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("store: get from %s: %w", db.kind, db.readFailed(err))
	}
	if dst == nil {
		dst = make([]byte, 0, len(v))
	}
	dst = append(dst, v...)
	if err := closer.Close(); err != nil { // of a value in a blob file Pebble tells it here
		return nil, fmt.Errorf("store: get from %s: %w", db.kind, db.readFailed(err))
	}
	return dst, nil
}

// Iter walks keys in order. It sees the database as it was when the iterator
// was made.
type Iter struct{ *pebble.Iterator }

// NewIter returns an iterator over s. Close it.
func (db *DB) NewIter(s Span) (*Iter, error) {
	if err := db.Err(); err != nil {
		return nil, err
	}
	it, err := db.p.NewIter(&pebble.IterOptions{LowerBound: s.Start, UpperBound: s.End})
	if err != nil {
		return nil, fmt.Errorf("store: read %s: %w", db.kind, db.readFailed(err))
	}
	return &Iter{it}, nil
}

// Each calls fn with every key and value of s, in order, until fn returns
// false or an error. The slices are only good during the call.
func (db *DB) Each(s Span, fn func(key, value []byte) (bool, error)) (err error) {
	it, err := db.NewIter(s)
	if err != nil {
		return err
	}
	defer func() {
		if closing := it.Close(); err == nil {
			err = closing // it tells a failed read again
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("store: read %s: %w", db.kind, db.readFailed(err))
		}
		if more, err := fn(it.Key(), v); err != nil || !more {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("store: read %s: %w", db.kind, db.readFailed(err))
	}
	return nil
}

// readFailed tells damage, which stays where it is, from a disk that does not
// answer: after that the store is dead, so that no mail is taken for damaged
// which a restart can read.
func (db *DB) readFailed(err error) error {
	if IsDamage(err) {
		db.readDamaged(err)
		return err
	}
	return db.die(fmt.Errorf("read: %w", err))
}

// IsDamage reports that err comes from data that is not what was written.
func IsDamage(err error) bool {
	return pebble.IsCorruptionError(err) || errors.As(err, new(*damagedBlob))
}

// Metrics is Pebble's view of itself; a dead store has none.
func (db *DB) Metrics() *pebble.Metrics {
	if db.Err() != nil {
		return &pebble.Metrics{}
	}
	return db.p.Metrics()
}

// Uncompacted is how many tables were flushed and wait for their compaction: some
// forty in good order. It grows without end when the disk is too slow for what is
// written, or when one of them is damaged.
func (db *DB) Uncompacted() int {
	if db.Err() != nil {
		return 0
	}
	return int(db.p.Metrics().Levels[0].TablesCount)
}

// Flush writes the memtable out, so that a following start has no log to
// replay.
func (db *DB) Flush() error { return db.bounded(db.p.Flush) }

// Compact merges what was written to and deleted from s, so that the space of
// deletions becomes free. It can take long, and leaves the store usable meanwhile.
func (db *DB) Compact(ctx context.Context, s Span) error {
	if err := db.bounded(func() error { return db.p.Compact(ctx, s.Start, s.End, false) }); err != nil {
		return fmt.Errorf("store: compact %s: %w", db.kind, err)
	}
	return nil
}

// Err is nil while the store can be trusted, and wraps ErrDead after that.
func (db *DB) Err() error {
	if e := db.dead.Load(); e != nil {
		return *e
	}
	return nil
}

// die marks the store dead and returns the error every later caller gets.
func (db *DB) die(cause error) error {
	db.dieOnce.Do(func() {
		err := fmt.Errorf("%w: %s: %w", ErrDead, db.kind, cause)
		db.dead.Store(&err)
		close(db.died)
		db.compactor.stop()
		db.log.Error("storage failed", "err", cause)
		if db.onFatal != nil {
			go db.onFatal(err)
		}
	})
	return db.Err()
}

// Close closes the database. Everything committed lazily is made durable
// first. A dead store is left as it is: closing it could hang or write more.
func (db *DB) Close() error {
	if err := db.Err(); err != nil {
		return err
	}
	if err := db.Mark(time.Now()); err != nil {
		return fmt.Errorf("store: close %s: %w", db.kind, err)
	}
	db.strict.Add(1) // from here on every sync is a real one
	err := db.bounded(func() error {
		if err := db.p.LogData(nil, pebble.Sync); err != nil {
			return err
		}
		db.opened.Store(false) // from here on errors are returned
		return db.p.Close()
	})
	if err != nil {
		return fmt.Errorf("store: close %s: %w", db.kind, err)
	}
	close(db.closed)
	return nil
}

// pebbleLogger passes Pebble's words on. Its Fatalf never returns: Pebble
// would otherwise report the failed commit as a success.
type pebbleLogger struct{ db *DB }

func (l pebbleLogger) Infof(format string, args ...any) {
	l.db.log.Debug("pebble", "info", lazyf{format, args})
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.db.log.Warn("pebble", "err", fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Fatalf(format string, args ...any) {
	l.db.die(fmt.Errorf(format, args...))
	select {}
}

// lazyf formats only when a handler wants it.
type lazyf struct {
	format string
	args   []any
}

func (f lazyf) String() string       { return fmt.Sprintf(f.format, f.args...) }
func (f lazyf) LogValue() slog.Value { return slog.StringValue(f.String()) }

// Lock takes the lock of a data directory, so that two engines cannot share
// one. Closing gives it back.
func Lock(dir string, fs vfs.FS) (io.Closer, error) {
	if fs == nil {
		fs = vfs.Default
	}
	if err := makeDir(dir, fs); err != nil {
		return nil, fmt.Errorf("store: create data directory: %w", err)
	}
	c, err := fs.Lock(filepath.Join(dir, "LOCK"))
	if err != nil {
		return nil, fmt.Errorf("store: %s is in use by another tradewind: %w", dir, err)
	}
	return c, nil
}

// makeDir creates dir and whatever is missing above it, durably: a directory is
// there after a power cut only if the one it lies in was synced, and without it
// nothing committed inside is.
func makeDir(dir string, fs vfs.FS) error {
	var missing []string
	for d := dir; ; {
		if _, err := fs.Stat(d); err == nil {
			break
		}
		missing = append(missing, d)
		parent := fs.PathDir(d)
		if parent == d {
			break
		}
		d = parent
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, d := range missing {
		parent, err := fs.OpenDir(fs.PathDir(d))
		if err != nil {
			return err
		}
		if err := errors.Join(parent.Sync(), parent.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Free is the free space of the file system the database lies on, in bytes. An
// error means that the file system cannot tell.
func (db *DB) Free() (uint64, error) {
	usage, err := db.fs.GetDiskUsage(db.dir)
	if err != nil {
		return 0, fmt.Errorf("store: free space: %w", err)
	}
	return usage.AvailBytes, nil
}
