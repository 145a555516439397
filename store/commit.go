package store

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// ErrDead reports a store that has failed once and is not trusted until it is
// opened again. Callers answer "try again later" and stop.
var ErrDead = errors.New("store: storage failed; restart to recover")

// Batch collects changes that become true together or not at all. A batch is
// not safe for concurrent use. Close it, committed or not.
type Batch struct {
	db     *DB
	b      *pebble.Batch
	places []uint64 // first places reserved for this batch
	after  []func(error)
	seen   []func()
	shown  atomic.Bool // seen has been called
	err    error       // first failure to build, reported by Commit
}

// NewBatch returns an empty batch. size is a hint of its bytes, 0 for none.
func (db *DB) NewBatch(size int) *Batch {
	if size > 0 {
		return &Batch{db: db, b: db.p.NewBatchWithSize(size)}
	}
	return &Batch{db: db, b: db.p.NewBatch()}
}

func (b *Batch) note(err error) {
	if err != nil && b.err == nil {
		b.err = err
	}
}

// Set puts value under key. Neither is kept.
func (b *Batch) Set(key, value []byte) { b.note(b.b.Set(key, value, nil)) }

// SetParts puts the concatenation of parts under key, copying each once.
func (b *Batch) SetParts(key []byte, parts ...[]byte) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	op := b.b.SetDeferred(len(key), n)
	copy(op.Key, key)
	v := op.Value
	for _, p := range parts {
		v = v[copy(v, p):]
	}
	b.note(op.Finish())
}

// Delete removes key; a key that is not there is no error.
func (b *Batch) Delete(key []byte) { b.note(b.b.Delete(key, nil)) }

// DeleteSized removes key whose value is size bytes long, so that the store
// can tell how much a compaction will free.
func (b *Batch) DeleteSized(key []byte, size int) {
	b.note(b.b.DeleteSized(key, uint32(size), nil))
}

// DeleteSpan removes every key of s.
func (b *Batch) DeleteSpan(s Span) { b.note(b.b.DeleteRange(s.Start, s.End, nil)) }

// Reserve returns the first of n places in the store's sequence. They count as
// settled, and let the horizon pass, when the batch is committed or closed.
func (b *Batch) Reserve(n int) uint64 {
	first, err := b.db.seq.reserve(n)
	if err != nil {
		b.note(err)
		return 0
	}
	b.places = append(b.places, first)
	return first
}

// AfterCommit calls fn once the batch is durable, or has failed, and before
// the horizon passes the batch's places. fn must not block.
func (b *Batch) AfterCommit(fn func(error)) { b.after = append(b.after, fn) }

// OnVisible calls fn as soon as readers can see the batch, which is before it
// is durable, or when it has failed: the moment to let go of a lock that
// guards a read followed by this write.
func (b *Batch) OnVisible(fn func()) { b.seen = append(b.seen, fn) }

// Len is the size of the batch in bytes.
func (b *Batch) Len() int { return b.b.Len() }

// Commit makes the batch durable: when it returns nil, the changes survive a
// power cut. One sync of the log serves every batch that waits at that moment.
// Any error wraps ErrDead, and the store takes no further commit. It returns as
// soon as the store is dead, whatever the disk does.
func (b *Batch) Commit() error { return b.commit(synced) }

// CommitWritten hands the batch to the operating system: when it returns nil,
// the changes survive the death of this process, kill -9 included, but not that
// of the machine. It becomes durable with the next Commit, in order. Errors are
// those of Commit.
func (b *Batch) CommitWritten() error { return b.commit(written) }

// CommitLazy applies the batch without waiting for the disk. It becomes
// durable with the next Commit, in order, and survives a crash of the process
// only by luck: use it for what can be lost without breaking a promise.
func (b *Batch) CommitLazy() error { return b.commit(lazy) }

// wait is what a commit waits for.
type wait uint8

const (
	lazy    wait = iota // nothing
	written             // the log being written to its file
	synced              // the log being on stable storage
)

func (b *Batch) commit(until wait) (err error) {
	db := b.db
	defer func() {
		b.visible()
		for _, fn := range b.after {
			fn(err)
		}
		b.after = nil
		b.release()
	}()
	if b.err != nil {
		return b.err
	}
	if err := db.Err(); err != nil {
		return err
	}
	if b.b.Empty() {
		return nil
	}
	db.begun.Add(1)
	defer db.ended.Add(1)
	p := b.b // Close forgets it, and the work may outlast us
	if until == lazy {
		return db.bounded(func() error {
			if err := db.p.Apply(p, pebble.NoSync); err != nil {
				return db.die(fmt.Errorf("commit: %w", err))
			}
			return nil
		})
	}
	return db.bounded(func() error {
		if until == synced {
			// Before the log hears of the batch, and until its sync is over: see
			// guardedLog.
			db.strict.Add(1)
			defer db.strict.Add(-1)
		}
		// Apply with pebble.Sync swallows a failed sync once Fatalf has been
		// called; the two-step form returns it.
		if err := db.p.ApplyNoSyncWait(p, pebble.Sync); err != nil {
			return db.die(fmt.Errorf("commit: %w", err))
		}
		b.visible()
		if err := p.SyncWait(); err != nil {
			return db.die(fmt.Errorf("sync: %w", err))
		}
		// A sync that failed for somebody else makes ours worthless too.
		return db.Err()
	})
}

// visible calls what waits for the batch to be visible, once.
func (b *Batch) visible() {
	if !b.shown.CompareAndSwap(false, true) {
		return
	}
	for _, fn := range b.seen {
		fn()
	}
}

// release lets the horizon pass the batch's places. In a dead store it stays
// where it is: nobody may be told of what may not be there after the restart.
func (b *Batch) release() {
	if b.db.Err() == nil {
		b.db.seq.done(b.places)
	}
	b.places = nil
}

// Close gives the batch's memory back. It is safe after Commit.
func (b *Batch) Close() {
	if b.b == nil {
		return
	}
	b.visible()
	for _, fn := range b.after {
		fn(errNotCommitted)
	}
	b.after = nil
	b.release()
	if b.db.Err() == nil { // the failed pipeline of a dead store may still hold the batch
		b.b.Close()
	}
	b.b = nil
}

var errNotCommitted = errors.New("store: batch closed without commit")
