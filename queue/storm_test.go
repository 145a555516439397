package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// A storm is many sessions of one queue, each with injectors, lanes, cancelling
// and eviction at the same time, and each ended by a power cut at a random file
// operation or by a restart. What was acknowledged before is what the next
// session must find.

// stormKey names a recipient.
type stormKey struct {
	id message.ID
	n  uint32
}

// stormEntry is what the outside world knows of a recipient.
type stormEntry struct {
	message *stormMessage
	acked   bool // Accept returned
	final   bool // Settle or Cancel returned for its end
	leased  bool
}

type stormMessage struct {
	recipients int
	body       []byte
}

type storm struct {
	r      *rand.Rand
	cfg    Config
	fs     *vfs.MemFS // what is left after the last session
	wrap   func(vfs.FS) vfs.FS
	nextID atomic.Uint64
	// draining sessions only deliver.
	draining bool

	mu      sync.Mutex // protects everything below
	entries map[stormKey]*stormEntry
	over    bool // the power is off: what happens now happened never
	first   error
	tally   stormTally
}

// stormTally says how much a storm has proven.
type stormTally struct{ sessions, cuts, acked, settled, lost int }

func newStorm(seed uint64) *storm {
	s := &storm{r: rand.New(rand.NewPCG(seed, 5)), cfg: modelConfig(seed), fs: vfs.NewCrashableMem(), entries: map[stormKey]*stormEntry{}}
	s.cfg.MaxAge = 20 * time.Minute
	return s
}

// note runs fn on the ledger unless the power is off.
func (s *storm) note(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		fn()
	}
}

// fail keeps the first violation. REQUIRES: s.mu.
func (s *storm) fail(format string, args ...any) {
	if s.first == nil {
		s.first = fmt.Errorf(format, args...)
	}
}

// live is one session.
type live struct {
	s  *storm
	m  *Manager
	mu sync.Mutex // protects ready
	// ready is in the order of the announcements.
	ready []*Queue
}

func (l *live) announce(q *Queue) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.ready, q) {
		l.ready = append(l.ready, q)
	}
}

// next takes the first announced queue off the list.
func (l *live) next() *Queue {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ready) == 0 {
		return nil
	}
	q := l.ready[0]
	l.ready = l.ready[1:]
	return q
}

// session runs until the power cut at file operation number cut, or until ops
// operations are done, and leaves behind what the next one finds. It must run
// in a bubble.
func (s *storm) session(cut int64, ops int) error {
	var next *vfs.MemFS
	var count, left atomic.Int64
	left.Store(int64(ops))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.over = false
	clone := vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 10, 50, 90}[s.r.IntN(4)], RNG: rand.New(rand.NewPCG(s.r.Uint64(), 6))}
	fs := errorfs.Wrap(s.lower(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && count.Add(1) == cut {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.over, next = true, s.fs.CrashClone(clone)
			cancel()
		}
		return nil
	}))
	db, err := store.Open("data", store.Spool, store.Options{
		FS: fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20,
	})
	if err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	l := &live{s: s}
	if err := s.recover(db); err != nil {
		return errors.Join(err, db.Close())
	}
	if l.m, err = New(s.cfg, Deps{
		DB: db, Recorder: factRecorder{}, Now: time.Now,
		Ready: l.announce,
		Expired: func(it *Item, msg *message.Message) Settlement {
			return Settlement{Item: it, Event: l.m.EventOf(it, msg, message.EventExpired, time.Now())}
		},
	}); err != nil {
		return err
	}
	running, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.m.Run(running) }()
	synctest.Wait() // Run has begun: refills have its context
	var g sync.WaitGroup
	work := func(fn func(*rand.Rand) error) {
		r := rand.New(rand.NewPCG(s.r.Uint64(), 7))
		g.Go(func() {
			for ctx.Err() == nil && left.Add(-1) >= 0 {
				if err := fn(r); err != nil {
					s.note(func() { s.fail("%w", err) })
					return
				}
				switch r.IntN(8) {
				case 0:
					time.Sleep(time.Duration(r.IntN(60)) * time.Second)
				case 1:
					runtime.Gosched()
				}
			}
		})
	}
	for range 4 {
		work(l.deliver)
	}
	if !s.draining {
		work(l.inject)
		work(l.inject)
		work(l.cancel)
		work(l.evict)
	}
	g.Wait()
	stop()
	err = errors.Join(<-done, db.Close())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally.sessions++
	if next != nil {
		s.fs = next
		s.tally.cuts++
	}
	for _, e := range s.entries {
		e.leased = false
	}
	return errors.Join(s.first, err)
}

func (s *storm) lower() vfs.FS {
	if s.wrap != nil {
		return s.wrap(s.fs)
	}
	return s.fs
}

// recover holds a reopened spool against the ledger, and then takes it as the
// truth about what was unknown.
func (s *storm) recover(db *store.DB) error {
	rep, err := Verify(db)
	if err != nil {
		return err
	}
	if len(rep.Problems) > 0 {
		return fmt.Errorf("verify: %q", rep.Problems)
	}
	events, final, waiting := map[stormKey]uint32{}, map[stormKey]bool{}, map[stormKey]bool{}
	err = db.Each(store.JournalSpan(0, ^uint64(0)), func(_, v []byte) (bool, error) {
		k, f, err := parseFact(v)
		if err != nil {
			return false, err
		}
		key := stormKey{k.id, k.n}
		if final[key] || k.seq != events[key]+1 {
			return false, fmt.Errorf("%s: event %d (%v) follows %d, ended: %v", message.RecipientID(k.id, k.n), k.seq, f.typ, events[key], final[key])
		}
		events[key], final[key] = k.seq, f.terminal
		return true, nil
	})
	if err != nil {
		return err
	}
	err = db.Each(store.LocatorsSpan(), func(k, _ []byte) (bool, error) {
		id, n, err := store.ParseLocatorKey(k)
		waiting[stormKey{id, n}] = true
		return true, err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	whole := map[*stormMessage]int{}
	for key, e := range s.entries {
		name := message.RecipientID(key.id, key.n)
		there := events[key] > 0
		switch {
		case e.acked && !there:
			return fmt.Errorf("%s was acknowledged and is lost", name)
		case e.final && !final[key]:
			return fmt.Errorf("%s was settled for good and has come back", name)
		case there && final[key] == waiting[key]:
			return fmt.Errorf("%s: final event %v, in the queue %v", name, final[key], waiting[key])
		}
		delete(events, key)
		delete(waiting, key)
		if !there {
			delete(s.entries, key)
			s.tally.lost++
			continue
		}
		whole[e.message]++
		e.acked, e.final = true, final[key]
	}
	if len(events) > 0 || len(waiting) > 0 {
		return fmt.Errorf("%d recipients with events and %d in the queue were never accepted", len(events), len(waiting))
	}
	for m, n := range whole {
		if n != m.recipients {
			return fmt.Errorf("half a message: %d of %d recipients", n, m.recipients)
		}
	}
	return s.bodies(db)
}

// bodies reads the body of everything that waits. REQUIRES: s.mu.
func (s *storm) bodies(db *store.DB) error {
	m := &Manager{db: db}
	for key, e := range s.entries {
		if e.final {
			continue
		}
		body, err := m.Body(key.id, len(e.message.body))
		if err != nil || !bytes.Equal(body, e.message.body) {
			return fmt.Errorf("the body of %s is not what was accepted (%w)", key.id, err)
		}
	}
	return nil
}

// inject accepts one to three messages. They enter the ledger before, because
// a cut may come when they are durable and not yet acknowledged.
func (l *live) inject(r *rand.Rand) error {
	var subs []*message.Submission
	var keys []stormKey
	for range 1 + r.IntN(2) {
		var id message.ID
		binary.BigEndian.PutUint64(id[:], uint64(time.Now().UnixMilli())<<16)
		binary.BigEndian.PutUint64(id[8:], l.s.nextID.Add(1))
		sub := &message.Submission{
			Message: &message.Message{ID: id, Tenant: "acme", From: message.MustAddress("s@sender.example"), Accepted: time.Now()},
			Body:    bytes.Repeat(id[:], 1+r.IntN(1+r.IntN(2000))),
		}
		if r.IntN(500) == 0 {
			sub.Body = bytes.Repeat(id[:], chunkAhead/16+r.IntN(1000)) // in chunks ahead of the message
		}
		if r.IntN(4) == 0 {
			sub.Message.NotBefore = time.Now().Add(time.Duration(r.IntN(600)) * time.Second)
		}
		sm := &stormMessage{recipients: 1 + r.IntN(3), body: sub.Body}
		for n := range sm.recipients {
			sub.Recipients = append(sub.Recipients, message.Recipient{Address: message.MustAddress(fmt.Sprintf("u@d%d.example", r.IntN(4)))})
			key := stormKey{id, uint32(n)}
			keys = append(keys, key)
			l.s.note(func() { l.s.entries[key] = &stormEntry{message: sm} })
		}
		subs = append(subs, sub)
	}
	if err := l.m.Accept(context.Background(), subs); err != nil {
		return err
	}
	l.s.note(func() {
		for _, key := range keys {
			l.s.entries[key].acked = true
			l.s.tally.acked++
		}
	})
	return nil
}

// deliver serves one announced queue: settles what it leases, or gives it back.
func (l *live) deliver(r *rand.Rand) error {
	q := l.next()
	if q == nil {
		time.Sleep(time.Second)
		return nil
	}
	items := q.Lease(1 + r.IntN(8))
	if len(items) == 0 {
		return nil
	}
	l.s.note(func() {
		for _, it := range items {
			e := l.s.entries[stormKey{it.ID, it.Recipient.N}]
			switch name := message.RecipientID(it.ID, it.Recipient.N); {
			case e == nil:
				l.s.fail("%s was handed out and never accepted", name)
				return
			case e.final:
				l.s.fail("%s was handed out after its end", name)
			case e.leased:
				l.s.fail("%s was handed out twice at a time", name)
			}
			e.leased = true
		}
	})
	if r.IntN(3) == 0 {
		time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond) // the attempt
	}
	release := func() {
		for _, it := range items {
			if e := l.s.entries[stormKey{it.ID, it.Recipient.N}]; e != nil {
				e.leased = false
			}
		}
	}
	if r.IntN(8) == 0 {
		l.s.note(release)
		q.Release(items)
		l.announce(q)
		return nil
	}
	_, body, err := l.m.Load(items)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(body, items[0].ID[:]) {
		return fmt.Errorf("%s was loaded with another body", items[0].ID)
	}
	list := make([]Settlement, len(items))
	for i, it := range items {
		it.Attempt++
		list[i] = Settlement{Item: it, Event: l.m.Event(it, message.EventDelivered, time.Now())}
		if r.IntN(3) == 0 {
			list[i].Event.Type = message.EventDeferred
			list[i].Retry = time.Now().Add(time.Duration(r.IntN(300)) * time.Second)
		}
	}
	l.s.note(release)
	if err := l.m.Settle(list); err != nil {
		return err
	}
	l.s.note(func() {
		for i := range list {
			if list[i].Retry.IsZero() {
				l.s.entries[stormKey{list[i].Item.ID, list[i].Item.Recipient.N}].final = true
				l.s.tally.settled++
			}
		}
	})
	l.announce(q)
	return nil
}

// cancel takes a random recipient out.
func (l *live) cancel(r *rand.Rand) error {
	var key stormKey
	l.s.note(func() {
		for k, e := range l.s.entries { // any will do
			if e.acked && !e.final {
				key = k
				break
			}
		}
	})
	_, err := l.m.Cancel(key.id, &key.n, "asked")
	switch {
	case errors.Is(err, ErrInFlight), errors.Is(err, ErrNotQueued):
		return nil
	case err == nil:
		l.s.note(func() {
			e := l.s.entries[key]
			e.final = true
			l.s.tally.settled++
		})
	}
	return err
}

// evict drops a random queue from memory.
func (l *live) evict(*rand.Rand) error {
	l.m.mu.RLock()
	var q *Queue
	for _, q = range l.m.queues {
		break
	}
	l.m.mu.RUnlock()
	if q != nil {
		evictNow(l.m, q)
	}
	return nil
}

// drain delivers what is left, restart by restart, until nothing waits.
func (s *storm) drain() error {
	s.draining = true
	for range 50 {
		if err := s.session(0, 2000); err != nil {
			return err
		}
		waiting := 0
		s.mu.Lock()
		for _, e := range s.entries {
			if !e.final {
				waiting++
			}
		}
		s.mu.Unlock()
		if waiting == 0 {
			return nil
		}
	}
	return errors.New("the queue does not run empty")
}

// TestPowerLossAtAnyFileOperationLosesNothingAcknowledged cuts the power at
// random file operations. TRADEWIND_POWER_CUTS asks for more of them and
// TRADEWIND_POWER_SEED for given ones.
func TestPowerLossAtAnyFileOperationLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	want := int(fromEnv(t, "TRADEWIND_POWER_CUTS", shortened(300, 20, 5)))
	seed := seedFrom(t, "TRADEWIND_POWER_SEED")
	var sum stormTally
	for ; sum.cuts < want && !t.Failed(); seed++ {
		synctest.Test(t, func(t *testing.T) {
			s := newStorm(seed)
			for range 10 {
				if err := s.session(1+s.r.Int64N(400), 300); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			// The last session only looks at what the one before left.
			if err := s.session(0, 0); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			sum.sessions += s.tally.sessions
			sum.cuts += s.tally.cuts
			sum.acked += s.tally.acked
			sum.settled += s.tally.settled
			sum.lost += s.tally.lost
		})
	}
	t.Logf("%d power cuts in %d sessions: %d recipients acknowledged, %d settled, none lost; %d cut off before their acknowledgement were not there, as they may",
		sum.cuts, sum.sessions, sum.acked, sum.settled, sum.lost)
}

// lyingFS is a disk that says it has written the log and has not.
type lyingFS struct{ vfs.FS }

type lyingFile struct{ vfs.File }

func (lyingFile) Sync() error                { return nil }
func (lyingFile) SyncData() error            { return nil }
func (lyingFile) SyncTo(int64) (bool, error) { return false, nil }

func (fs lyingFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, c)
	if err == nil && c == vfs.DiskWriteCategory("pebble-wal") {
		return lyingFile{f}, nil
	}
	return f, err
}

func (fs lyingFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.ReuseForWrite(old, name, c)
	if err == nil && c == vfs.DiskWriteCategory("pebble-wal") {
		return lyingFile{f}, nil
	}
	return f, err
}

// TestPowerLossHarnessNoticesADiskThatDoesNotSync is the test of the test.
func TestPowerLossHarnessNoticesADiskThatDoesNotSync(t *testing.T) {
	t.Parallel()
	tries := int(shortened(20, 4, 4))
	noticed := 0
	for seed := range uint64(tries) {
		synctest.Test(t, func(t *testing.T) {
			s := newStorm(seed)
			s.wrap = func(fs vfs.FS) vfs.FS { return lyingFS{fs} }
			for range 10 {
				if err := s.session(1+s.r.Int64N(400), 300); err != nil {
					noticed++
					return
				}
			}
		})
	}
	t.Logf("noticed in %d of %d storms", noticed, tries)
	if noticed < tries/2 {
		t.Errorf("a disk that does not sync was noticed in %d of %d storms only: the harness proves nothing", noticed, tries)
	}
}

// TestConcurrentUseKeepsTheQueueConsistent is one long storm with restarts and
// a drained queue at the end; run it under the race detector.
func TestConcurrentUseKeepsTheQueueConsistent(t *testing.T) {
	t.Parallel()
	seed := seedFrom(t, "TRADEWIND_STORM_SEED")
	rounds := int(fromEnv(t, "TRADEWIND_STORM_ROUNDS", shortened(10, 1, 1)))
	ops := int(shortened(1000, 1000, 500))
	for i := range uint64(rounds) {
		synctest.Test(t, func(t *testing.T) {
			s := newStorm(seed + i)
			for range 3 {
				if err := s.session(0, ops); err != nil {
					t.Fatalf("seed %d: %v", seed+i, err)
				}
			}
			if err := s.drain(); err != nil {
				t.Fatalf("seed %d: drain: %v", seed+i, err)
			}
			t.Logf("%+v", s.tally)
		})
	}
}
