package queue

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// faultStep is how far apart the file operations are that the enumeration fails.
var faultStep = flag.Int("fault-step", 0, "fail every n-th file operation; 1 fails each; 0 chooses by -short")

var errInjected = errors.New("injected I/O error")

// scripted is one run of a queue through everything that touches the disk.
type scripted struct {
	*live
	db   *store.DB
	now  time.Time
	last uint64 // id of the last message
}

// offer accepts a message and notes in the ledger what the caller was told.
func (w *scripted) offer(size, recipients int, notBefore time.Time) error {
	w.last++
	id := message.ID{15: byte(w.last)}
	sub := &message.Submission{
		Message: &message.Message{ID: id, Tenant: "acme", From: message.MustAddress("s@sender.example"), Accepted: w.now, NotBefore: notBefore},
		Body:    bytes.Repeat(id[:], size/len(id)),
	}
	sm := &stormMessage{recipients: recipients, body: sub.Body}
	var list []*stormEntry
	for n := range recipients {
		sub.Recipients = append(sub.Recipients, message.Recipient{Address: message.MustAddress("u@d.example")})
		e := &stormEntry{message: sm}
		w.s.note(func() { w.s.entries[stormKey{id, uint32(n)}] = e })
		list = append(list, e)
	}
	if err := w.m.Accept(context.Background(), []*message.Submission{sub}); err != nil {
		return err
	}
	w.s.note(func() {
		for _, e := range list {
			e.acked = true
		}
	})
	return nil
}

// attempt leases one item and settles it, for good or for later.
func (w *scripted) attempt(retry time.Time) error {
	q := w.next()
	if q == nil {
		return errors.New("no queue is ready")
	}
	defer w.announce(q)
	items := q.Lease(1)
	if len(items) == 0 {
		return errors.New("nothing to lease")
	}
	if _, body, err := w.m.Load(items); err != nil {
		return err
	} else if !bytes.HasPrefix(body, items[0].ID[:]) {
		return fmt.Errorf("%s was loaded with another body", items[0].ID)
	}
	key := stormKey{items[0].ID, items[0].Recipient.N}
	st := Settlement{Item: items[0], Event: w.m.Event(items[0], message.EventDelivered, w.now), Retry: retry}
	if err := w.m.Settle([]Settlement{st}); err != nil {
		return err
	}
	if retry.IsZero() {
		w.s.note(func() { w.s.entries[key].final = true })
	}
	return nil
}

// script opens a queue, uses it and closes it. It stops at the first error.
func (w *scripted) script(fs vfs.FS, fatal func(error)) (err error) {
	w.now = time.Unix(1_800_000_000, 0)
	w.db, err = store.Open("data", store.Spool, store.Options{FS: fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20, OnFatal: fatal})
	if err != nil {
		return err
	}
	w.m, err = New(w.s.cfg, Deps{
		DB: w.db, Recorder: factRecorder{}, Now: func() time.Time { return w.now },
		Ready: w.announce,
		Expired: func(it *Item, msg *message.Message) Settlement {
			return Settlement{Item: it, Event: w.m.EventOf(it, msg, message.EventExpired, w.now)}
		},
	})
	if err != nil {
		return errors.Join(err, w.db.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.m.ctx = ctx
	defer func() {
		err = errors.Join(err, w.m.counts.close(), w.db.Close())
	}()
	promote := func() error { _, _, err := w.m.promote(w.now); return err }
	for _, step := range []func() error{
		w.m.dropPending,
		func() error { return w.m.searchDisk(ctx) },
		func() error { w.m.wg.Wait(); return nil },
		func() error { return w.offer(2<<10, 1, time.Time{}) },
		func() error { return w.offer(100<<10, 3, time.Time{}) },
		func() error { return w.attempt(time.Time{}) },
		func() error { return w.attempt(w.now.Add(time.Minute)) },
		func() error { return w.offer(5<<20, 1, time.Time{}) }, // in chunks ahead of the message
		func() error { return w.offer(1<<10, 2, w.now.Add(time.Hour)) },
		w.db.Flush,
		func() error { w.now = w.now.Add(2 * time.Minute); return promote() },
		func() error { return w.attempt(time.Time{}) },
		func() error { return w.attempt(time.Time{}) },
		func() error { return w.attempt(time.Time{}) },
		func() error { return w.offer(300<<10, 1, time.Time{}) },
		func() error {
			key := stormKey{message.ID{15: 4}, 0}
			_, err := w.m.Cancel(key.id, &key.n, "asked")
			if err == nil {
				w.s.note(func() { w.s.entries[key].final = true })
			}
			return err
		},
		func() error { w.now = w.now.Add(w.s.cfg.MaxAge); return w.m.expire(ctx, w.now) },
		w.db.Flush,
		func() error { return w.offer(1<<10, 1, time.Time{}) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// TestNoFileOperationMayFailWithALieOrAHang fails the n-th file operation of a
// scripted run, for every n, once only and from then on. Whoever was told that
// mail is accepted or settled must find it so after a power cut; a store that
// failed says so; and no caller waits for ever.
func TestNoFileOperationMayFailWithALieOrAHang(t *testing.T) {
	t.Parallel()
	step := int64(*faultStep)
	if step == 0 {
		step = int64(shortened(5, 37, 149))
	}
	run := func(n int64, sticky bool) (ops int64, err error) {
		s := newStorm(1)
		s.cfg = DefaultConfig()
		s.cfg.BodyCache = 0 // bodies come from the disk
		var count atomic.Int64
		var hit atomic.Pointer[errorfs.Op]
		fs := errorfs.Wrap(s.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if at := count.Add(1); at == n || sticky && at > n && n > 0 {
				hit.CompareAndSwap(nil, &op)
				return errInjected
			}
			return nil
		}))
		fatal, ended := make(chan error, 1), make(chan error, 1)
		w := &scripted{live: &live{s: s}}
		go func() { ended <- w.script(fs, func(err error) { fatal <- err }) }()
		what := func() string {
			if op := hit.Load(); op != nil {
				return fmt.Sprintf("%+v", *op)
			}
			return "nothing failed"
		}
		select {
		case err = <-ended:
		case <-time.After(20 * time.Second):
			return count.Load(), fmt.Errorf("hangs after %s", what())
		}
		if n == 0 {
			return count.Load(), err
		}
		if errors.Is(err, store.ErrDead) {
			select {
			case <-fatal:
			case <-time.After(20 * time.Second):
				return 0, fmt.Errorf("the store is dead and nobody was told: %w", err)
			}
		}
		db, err := store.Open("data", store.Spool, store.Options{FS: s.fs.CrashClone(vfs.CrashCloneCfg{})})
		if err != nil {
			return 0, fmt.Errorf("reopen after %s: %w", what(), err)
		}
		if err := errors.Join(s.recover(db), db.Close()); err != nil {
			return 0, fmt.Errorf("after %s: %w", what(), err)
		}
		return count.Load(), nil
	}
	total, err := run(0, false)
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	for n := 1 + int64(seedFrom(t, "TRADEWIND_FAULT_SEED")%uint64(step)); n <= total; n += step {
		for _, sticky := range []bool{false, true} {
			if _, err := run(n, sticky); err != nil {
				t.Errorf("operation %d, sticky %v: %v", n, sticky, err)
			}
			runs++
		}
	}
	t.Logf("%d file operations, %d runs with a failure", total, runs)
}
