package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// recorder is a journal of the simplest kind: type bytes under journal keys.
type recorder struct{}

func (recorder) Append(b *store.Batch, events ...*message.Event) {
	first := b.Reserve(len(events))
	for i, e := range events {
		e.Seq = first + uint64(i)
		b.Set(store.JournalKey(nil, e.Seq), []byte{byte(e.Type)})
	}
}

// world is one queue on a crashable disk, inside a synctest bubble.
type world struct {
	t     *testing.T
	fs    *vfs.MemFS
	db    *store.DB
	m     *Manager
	ids   *message.IDSource
	stop  func()
	mu    sync.Mutex
	ready map[*Queue]bool
}

// newWorld returns a queue that runs.
func newWorld(t *testing.T, fs *vfs.MemFS, cfg Config, with ...func(*Deps)) *world {
	t.Helper()
	w := newIdleWorld(t, fs, cfg, with...)
	w.run()
	return w
}

// newIdleWorld returns a queue that does not run yet.
func newIdleWorld(t *testing.T, fs *vfs.MemFS, cfg Config, with ...func(*Deps)) *world {
	t.Helper()
	w := &world{t: t, fs: fs, ids: &message.IDSource{}, ready: map[*Queue]bool{}}
	db, err := store.Open("data", store.Spool, store.Options{
		FS: fs,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.db = db
	deps := Deps{
		DB: db, Recorder: recorder{}, Now: time.Now, IDs: w.ids,
		Ready: func(q *Queue) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ready[q] = true
		},
		Expired: func(it *Item, _ *message.Message) Settlement {
			return Settlement{Item: it, Event: w.m.Event(it, message.EventExpired, time.Now())}
		},
	}
	for _, fn := range with {
		fn(&deps)
	}
	w.m, err = New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// run starts the manager.
func (w *world) run() {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.m.Run(ctx) }()
	w.stop = func() {
		w.t.Helper()
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
		if err := w.db.Close(); err != nil {
			w.t.Errorf("Close: %v", err)
		}
	}
	synctest.Wait()
}

// submission makes a message for the given addresses.
func (w *world) submission(tenant string, to ...string) *message.Submission {
	w.t.Helper()
	now := time.Now()
	s := &message.Submission{
		Message: &message.Message{ID: w.ids.New(now), Tenant: tenant, From: message.MustAddress("s@sender.example"), Accepted: now},
		Body:    []byte("Subject: x\r\n\r\nbody of " + tenant + "\r\n"),
	}
	for _, a := range to {
		s.Recipients = append(s.Recipients, message.Recipient{Address: message.MustAddress(a)})
	}
	return s
}

func (w *world) accept(subs ...*message.Submission) {
	w.t.Helper()
	if err := w.m.Accept(w.t.Context(), subs); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

// lease takes one item from any queue that has some.
func (w *world) lease() *Item {
	w.t.Helper()
	synctest.Wait()
	w.m.mu.RLock()
	var keys []store.QueueKey
	for k := range w.m.queues {
		keys = append(keys, k)
	}
	w.m.mu.RUnlock()
	slices.SortFunc(keys, func(a, b store.QueueKey) int { return slices.Compare(a.Append(nil), b.Append(nil)) })
	for _, k := range keys {
		if q := w.m.queue(&k); q != nil {
			if items := q.Lease(1); len(items) > 0 {
				synctest.Wait() // a refill may have begun
				return items[0]
			}
		}
	}
	return nil
}

func (w *world) settle(it *Item, typ message.EventType, retry time.Time) {
	w.t.Helper()
	if _, _, err := w.m.Load([]*Item{it}); err != nil {
		w.t.Fatal(err)
	}
	if err := w.m.Settle([]Settlement{{Item: it, Event: w.m.Event(it, typ, time.Now()), Retry: retry}}); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

func (w *world) verify() *Report {
	w.t.Helper()
	r, err := Verify(w.db)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(r.Problems) > 0 {
		w.t.Fatalf("the spool is not consistent: %q", r.Problems)
	}
	return r
}

func TestDeliveredMessageLeavesNothingBehindButItsEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), DefaultConfig())
		defer w.stop()
		w.accept(w.submission("acme", "a@one.example", "b@one.example", "c@two.example"))
		for range 3 {
			it := w.lease()
			if it == nil {
				t.Fatal("nothing to lease")
			}
			w.settle(it, message.EventDelivered, time.Time{})
		}
		if r := w.verify(); r.Messages != 0 || r.Recipients != 0 || r.BodyBytes != 0 {
			t.Errorf("got %+v left after delivery, want nothing", r)
		}
		events := 0
		if err := w.db.Each(store.JournalSpan(0, ^uint64(0)), func(_, _ []byte) (bool, error) { events++; return true, nil }); err != nil {
			t.Fatal(err)
		}
		if events != 6 {
			t.Errorf("got %d events, want 3 accepted and 3 delivered", events)
		}
		if got := w.m.Stats(); got.Waiting != 0 || got.InMemory != 0 || got.BodyBytes != 0 {
			t.Errorf("got stats %+v, want zeroes", got)
		}
	})
}

func TestDeferredMessageIsRetriedAfterRestartAtItsTimeWithItsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashableMem()
		w := newWorld(t, fs, DefaultConfig())
		w.accept(w.submission("acme", "a@one.example"))
		it := w.lease()
		it.Attempt++
		it.LastReply = &message.Reply{Code: 451, Text: "later"}
		w.settle(it, message.EventDeferred, time.Now().Add(time.Hour))
		crashed := fs.CrashClone(vfs.CrashCloneCfg{})
		w.stop()

		w = newWorld(t, crashed, DefaultConfig())
		defer w.stop()
		time.Sleep(59 * time.Minute)
		if it := w.lease(); it != nil {
			t.Fatal("leased before its time")
		}
		time.Sleep(2 * time.Minute)
		it = w.lease()
		if it == nil {
			t.Fatal("not ready after its time")
		}
		if it.Attempt != 1 || it.LastReply == nil || it.LastReply.Text != "later" {
			t.Errorf("got attempt %d and reply %v after the restart", it.Attempt, it.LastReply)
		}
		w.settle(it, message.EventDelivered, time.Time{})
		w.verify()
	})
}

func TestLeasedItemIsReadyAgainAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashableMem()
		w := newWorld(t, fs, DefaultConfig())
		w.accept(w.submission("acme", "a@one.example"))
		if w.lease() == nil {
			t.Fatal("nothing to lease")
		}
		w2 := newWorld(t, fs.CrashClone(vfs.CrashCloneCfg{}), DefaultConfig())
		if w2.lease() == nil {
			t.Error("the item is gone after a crash in mid-attempt")
		}
		w2.stop()
		w.stop()
	})
}

func TestItemExpiresWhereverItLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Window, cfg.MaxItems = 2, 2
		w := newWorld(t, vfs.NewCrashableMem(), cfg)
		defer w.stop()
		for range 10 { // two in the window, eight ready on disk
			w.accept(w.submission("acme", "a@one.example"))
		}
		leased := w.lease()
		it := w.lease()
		w.settle(it, message.EventDeferred, time.Now().Add(100*time.Hour)) // due after its expiry
		time.Sleep(cfg.MaxAge + sweepEvery)
		if r := w.verify(); r.Recipients != 1 {
			t.Errorf("%d recipients wait after the maximum age, want only the leased one", r.Recipients)
		}
		w.settle(leased, message.EventExpired, time.Time{})
		if r := w.verify(); r.Recipients != 0 || r.Messages != 0 {
			t.Errorf("got %+v, want nothing", r)
		}
	})
}

func TestScheduledMessageWaitsForItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, vfs.NewCrashableMem(), DefaultConfig())
		defer w.stop()
		s := w.submission("acme", "a@one.example")
		s.Message.NotBefore = time.Now().Add(5 * 24 * time.Hour)
		w.accept(s)
		time.Sleep(5*24*time.Hour - time.Second)
		if w.lease() != nil {
			t.Fatal("leased before its time")
		}
		time.Sleep(2 * time.Second)
		it := w.lease()
		if it == nil {
			t.Fatal("not ready at its time")
		}
		w.settle(it, message.EventDelivered, time.Time{})
	})
}

func TestCancelTakesWhatWaitsAndRefusesWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Window, cfg.MaxItems = 1, 1
		w := newWorld(t, vfs.NewCrashableMem(), cfg)
		defer w.stop()
		s := w.submission("acme", "a@one.example", "b@one.example", "c@one.example", "d@two.example")
		w.accept(s)
		it := w.lease()
		n, err := w.m.Cancel(s.Message.ID, nil, "asked")
		if err != nil || n != 3 {
			t.Fatalf("got %d, %v from cancelling one leased and three waiting, want 3", n, err)
		}
		if _, err := w.m.Cancel(s.Message.ID, nil, "asked"); !errors.Is(err, ErrInFlight) {
			t.Errorf("got %v, want ErrInFlight", err)
		}
		w.settle(it, message.EventDelivered, time.Time{})
		if _, err := w.m.Cancel(s.Message.ID, nil, "asked"); !errors.Is(err, ErrNotQueued) {
			t.Errorf("got %v, want ErrNotQueued", err)
		}
		if it := w.lease(); it != nil {
			t.Errorf("a cancelled item was handed out: %v", it.Recipient.Address)
		}
		w.verify()
	})
}

func TestManyQueuesTakeTurnsInLittleMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.MaxActive, cfg.Window, cfg.MaxItems = 5, 2, 2
		w := newWorld(t, vfs.NewCrashableMem(), cfg)
		defer w.stop()
		want := map[string]int{}
		for i := range 60 {
			for j := range 3 {
				a := fmt.Sprintf("u%d@d%d.example", j, i)
				want[a]++
				w.accept(w.submission("acme", a))
			}
		}
		got := map[string]int{}
		for range 1000 {
			it := w.lease()
			if it == nil {
				time.Sleep(reapEvery) // lets empty queues make room
				if it = w.lease(); it == nil {
					break
				}
			}
			got[it.Recipient.Address.String()]++
			w.settle(it, message.EventDelivered, time.Time{})
			if n := w.m.Stats().Queues; n > cfg.MaxActive {
				t.Fatalf("%d queues in memory, the limit is %d", n, cfg.MaxActive)
			}
		}
		for a := range want {
			if got[a] != 1 {
				t.Errorf("%s was handed out %d times, want once", a, got[a])
			}
		}
		w.verify()
	})
}

// TestMailMayComeBeforeRun has doors that open a moment before the queue runs.
func TestMailMayComeBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Window, cfg.BodyCache = 2, 0
		w := newIdleWorld(t, vfs.NewCrashableMem(), cfg)
		large := w.submission("acme", "large@one.example")
		large.Body = make([]byte, chunkAhead+1)
		w.accept(large)
		const n = 10
		for i := range n {
			w.accept(w.submission("acme", fmt.Sprintf("r%d@one.example", i)))
		}
		w.run()
		defer w.stop()
		for i := range n + 1 {
			it := w.lease()
			if it == nil {
				t.Fatalf("%d items came, want %d", i, n+1)
			}
			w.settle(it, message.EventDelivered, time.Time{})
		}
		w.verify()
	})
}

func TestWhatIsReadFromDiskIsNotKnownToBePlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, cache := range []int64{0, 1 << 20} {
			cfg := DefaultConfig()
			cfg.BodyCache = cache
			w := newWorld(t, vfs.NewCrashableMem(), cfg)
			s := w.submission("acme", "a@one.example")
			s.Message.Plain = true
			w.accept(s)
			it := w.lease()
			msg, _, err := w.m.Load([]*Item{it})
			if err != nil {
				t.Fatal(err)
			}
			if msg.Plain != (cache > 0) {
				t.Errorf("with a cache of %d octets plain is %v", cache, msg.Plain)
			}
			w.settle(it, message.EventDelivered, time.Time{})
			w.stop()
		}
	})
}

// many returns more submissions than one batch takes bodies of, some of them of
// several chunks or with nobody to mail.
func (w *world) many() []*message.Submission {
	var subs []*message.Submission
	for i := range 500 {
		s := w.submission("acme", fmt.Sprintf("r%d@d%d.example", i, i%7), "second@one.example")
		s.Body = bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 5<<10)
		switch {
		case i%100 == 50:
			s.Body = bytes.Repeat(s.Body, 200)
		case i%100 == 60:
			s.Suppressed = []string{"", "complaint"}
		case i%100 == 70:
			s.Suppressed = []string{"complaint", "complaint"}
		}
		subs = append(subs, s)
	}
	return subs
}

func TestManyMessagesInOneAcceptComeBackWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.BodyCache = 0
		fs := vfs.NewCrashableMem()
		w := newWorld(t, fs, cfg)
		subs := w.many()
		w.accept(subs...)
		crashed := fs.CrashClone(vfs.CrashCloneCfg{})
		w.stop()
		w = newWorld(t, crashed, cfg)
		defer w.stop()
		bodies, left := map[message.ID][]byte{}, 0
		for _, s := range subs {
			bodies[s.Message.ID] = s.Body
			left += liveOf(s)
		}
		w.verify()
		for ; left > 0; left-- {
			it := w.lease()
			if it == nil {
				t.Fatalf("%d items did not come", left)
			}
			if _, body, err := w.m.Load([]*Item{it}); err != nil || !bytes.Equal(body, bodies[it.ID]) {
				t.Fatalf("the body of %s is not what was accepted: %v", it.ID, err)
			}
			w.settle(it, message.EventDelivered, time.Time{})
		}
		w.verify()
		if n := w.chunks(); n != 0 {
			t.Errorf("%d chunks of bodies are left", n)
		}
	})
}

// TestBodiesAheadOfNothingGoAtTheNextStart dies between the bodies and the commit
// that would have made them messages.
func TestBodiesAheadOfNothingGoAtTheNextStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashableMem()
		w := newWorld(t, fs, DefaultConfig())
		b := w.db.NewBatch(0)
		if err := w.m.addBodies(b, w.many()); err != nil {
			t.Fatal(err)
		}
		b.Close()
		w.verify()
		if n := w.chunks(); n < 500 {
			t.Errorf("%d chunks were written ahead", n)
		}
		w.stop()
		w = newWorld(t, fs, DefaultConfig())
		defer w.stop()
		w.verify()
		if n := w.chunks(); n != 0 {
			t.Errorf("%d chunks are left", n)
		}
	})
}

// chunks counts the pieces of bodies on disk.
func (w *world) chunks() (n int) {
	w.t.Helper()
	if err := w.db.Each(store.BodiesSpan(), func(_, _ []byte) (bool, error) { n++; return true, nil }); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestBodyInManyChunksComesBackWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.BodyCache = 0
		fs := vfs.NewCrashableMem()
		w := newWorld(t, fs, cfg)
		s := w.submission("acme", "a@one.example")
		s.Body = make([]byte, 9<<20+17)
		for i := range s.Body {
			s.Body[i] = byte(i * 7)
		}
		w.accept(s)
		crashed := fs.CrashClone(vfs.CrashCloneCfg{})
		w.stop()
		w = newWorld(t, crashed, cfg)
		defer w.stop()
		it := w.lease()
		_, body, err := w.m.Load([]*Item{it})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(body, s.Body) {
			t.Error("the body is not what was accepted")
		}
		w.settle(it, message.EventDelivered, time.Time{})
		if r := w.verify(); r.BodyBytes != 0 {
			t.Errorf("%d bytes of body are left", r.BodyBytes)
		}
	})
}
