package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// action is what one step of a model run does.
type action uint8

const (
	doAccept action = iota
	doLease
	doSettle
	doRelease
	doCancel
	doAdvance
	doEvict
	doReap
	doCheck
	doRestart
	doCrash
	actions
)

// step is one random operation. Its details come from seed, so that leaving
// other steps out does not change what it tries to do.
type step struct {
	do   action
	seed uint64
}

// machine drives a Manager and the oracle through the same steps. Without a
// bubble it stands in for the loops of Run and keeps the clock itself, which
// makes a step cheap; in a bubble Run does its work in virtual time.
type machine struct {
	cfg Config
	// bubble lets time pass and waits for what comes of it; nil outside a bubble.
	bubble func(time.Duration)
	fs     *vfs.MemFS
	db     *store.DB
	m      *Manager
	stop   func() error
	o      *oracle
	nextID uint64
	// recorder makes a journal; nil means that of the oracle.
	recorder func(*store.DB) Recorder
	known    []*Queue // in memory after the last step
	// maxWaiting is when the machine stops accepting.
	maxWaiting int

	mu    sync.Mutex // protects ready
	ready map[*Queue]bool
}

func (w *machine) now() time.Time {
	if w.bubble != nil {
		return time.Now()
	}
	return w.o.now
}

// open starts a manager on w.fs.
func (w *machine) open() error {
	db, err := store.Open("data", store.Spool, store.Options{
		FS: w.fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20,
	})
	if err != nil {
		return err
	}
	w.db, w.ready, w.known = db, map[*Queue]bool{}, nil
	err = w.o.restart(func(r *oracleRecipient) (bool, error) {
		at, err := db.Get(store.LocatorKey(nil, r.msg.id, r.n))
		return store.IsDue(at), err
	})
	if err != nil {
		return err
	}
	recorder := Recorder(factRecorder{})
	if w.recorder != nil {
		recorder = w.recorder(db)
	}
	w.m, err = New(w.cfg, Deps{
		DB: db, Recorder: recorder, Now: w.now,
		Ready: func(q *Queue) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ready[q] = true
		},
		Expired: func(it *Item, msg *message.Message) Settlement {
			return Settlement{Item: it, Event: w.m.EventOf(it, msg, message.EventExpired, w.now())}
		},
	})
	if err != nil {
		return err
	}
	if w.bubble != nil {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.m.Run(ctx) }()
		w.stop = func() error { cancel(); return errors.Join(<-done, db.Close()) }
	} else {
		w.stop = func() error { w.m.stop(); w.m.wg.Wait(); return errors.Join(w.m.saveCounts(), db.Close()) }
		if err := errors.Join(w.m.count(w.m.ctx), w.m.searchDisk(w.m.ctx), w.due()); err != nil {
			return err
		}
	}
	return w.settle()
}

// settle waits until everything set off by a step is over.
func (w *machine) settle() (err error) {
	if w.bubble != nil {
		w.bubble(0)
	} else {
		w.m.wg.Wait()
		select {
		case <-w.m.search:
			err = w.m.searchDisk(w.m.ctx)
			w.m.wg.Wait()
		default:
		}
	}
	// Queues that had to give way are in the order of the disk again.
	inMemory := w.inMemory()
	for _, q := range w.known {
		if !slices.Contains(inMemory, q) {
			w.o.evicted(q.key)
		}
	}
	w.known = inMemory
	w.mu.Lock()
	defer w.mu.Unlock()
	for q := range w.ready {
		if !slices.Contains(inMemory, q) {
			delete(w.ready, q)
		}
	}
	return err
}

// due does what the promotion does when its timer fires.
func (w *machine) due() error {
	for {
		moved, _, err := w.m.promote(w.now())
		if err != nil || moved < promoteChunk {
			return err
		}
	}
}

func (w *machine) run(s step) error {
	r := rand.New(rand.NewPCG(s.seed, 1))
	var err error
	switch s.do {
	case doAccept:
		err = w.accept(r)
	case doLease:
		err = w.lease(r)
	case doSettle:
		err = w.finish(r)
	case doRelease:
		w.release(r)
	case doCancel:
		err = w.cancel(r)
	case doAdvance:
		d := []time.Duration{10 * time.Second, time.Minute, 10 * time.Minute, time.Hour, 5 * time.Hour}[r.IntN(5)]
		if r.IntN(20) == 0 {
			d = 24 * time.Hour // a step of the clock that the engine has come to believe
		}
		err = w.advance(d)
	case doEvict:
		err = w.evict(r)
	case doReap:
		if w.bubble == nil {
			w.m.reap()
		}
	case doCheck:
		err = w.check(r)
	case doRestart:
		if err = w.stop(); err == nil {
			w.stepClock(r)
			err = w.open()
		}
	case doCrash:
		percent := []int{0, 30, 100}[r.IntN(3)]
		crashed := w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: r})
		if err = w.stop(); err == nil {
			w.fs = crashed
			w.stepClock(r)
			err = w.open()
		}
	}
	return errors.Join(err, w.settle())
}

// stepClock sets the clock a day ahead or back, now and then, while the queue is
// stopped: while it runs the engine's own clock does not go back.
func (w *machine) stepClock(r *rand.Rand) {
	if w.bubble == nil && r.IntN(3) == 0 {
		w.o.now = w.o.now.Add([]time.Duration{-24 * time.Hour, 24 * time.Hour}[r.IntN(2)])
	}
}

var modelTenants = [...]string{"acme", "bolt"}

func (w *machine) submission(r *rand.Rand) *message.Submission {
	w.nextID++
	var id message.ID
	binary.BigEndian.PutUint64(id[:], uint64(w.now().UnixMilli())<<16)
	binary.BigEndian.PutUint64(id[8:], w.nextID)
	s := &message.Submission{
		Message: &message.Message{
			ID: id, Tenant: modelTenants[r.IntN(2)], Class: message.Class(r.IntN(2)),
			From: message.MustAddress("s@sender.example"), Accepted: w.now(),
		},
		Body: bytes.Repeat([]byte(id.String()), 1+r.IntN(20)),
	}
	if r.IntN(4) == 0 {
		s.Message.NotBefore = w.now().Add(time.Duration(r.IntN(400)) * 10 * time.Second)
	}
	for range 1 + r.IntN(1+r.IntN(8)) {
		s.Recipients = append(s.Recipients, message.Recipient{Address: message.MustAddress(fmt.Sprintf("u@d%d.example", r.IntN(3)))})
	}
	if r.IntN(8) == 0 {
		s.Suppressed = make([]string, len(s.Recipients))
		s.Suppressed[r.IntN(len(s.Suppressed))] = "asked to"
	}
	return s
}

func (w *machine) accept(r *rand.Rand) error {
	if _, due, ready := w.o.counts(); due+ready > w.maxWaiting {
		return nil
	}
	var subs []*message.Submission
	for range 1 + r.IntN(3) {
		subs = append(subs, w.submission(r))
	}
	if err := w.m.Accept(context.Background(), subs); err != nil {
		return err
	}
	for _, s := range subs {
		w.o.accept(s)
	}
	return nil
}

// announced lists the queues that Ready has named, in a fixed order.
func (w *machine) announced() []*Queue {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*Queue
	for q := range w.ready {
		list = append(list, q)
	}
	slices.SortFunc(list, func(a, b *Queue) int { return strings.Compare(a.key.String(), b.key.String()) })
	return list
}

func (w *machine) announce(q *Queue, ready bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ready {
		w.ready[q] = true
	} else {
		delete(w.ready, q)
	}
}

// lease serves one announced queue, and forgets it when it is empty.
func (w *machine) lease(r *rand.Rand) error {
	list := w.announced()
	if len(list) == 0 {
		return nil
	}
	q := list[r.IntN(len(list))]
	w.announce(q, false)
	items := q.Lease(1 + r.IntN(4))
	if len(items) == 0 {
		return nil
	}
	w.announce(q, true)
	return w.o.lease(q.Key(), items)
}

// finish settles some of the leased items, in one commit.
func (w *machine) finish(r *rand.Rand) error {
	if len(w.o.leased) == 0 {
		return nil
	}
	n := min(len(w.o.leased), 1+r.IntN(5))
	from := r.IntN(len(w.o.leased) - n + 1)
	list := slices.Clone(w.o.leased[from : from+n])
	var settlements []Settlement
	soon := false
	for _, or := range list {
		it := or.item
		msg, body, err := w.m.Load([]*Item{it})
		if err != nil {
			return err
		}
		if !bytes.Equal(body, or.msg.body) {
			return fmt.Errorf("the body of %s is not what was accepted", msg.ID)
		}
		it.Attempt++
		s := Settlement{Item: it}
		switch r.IntN(5) {
		case 0, 1:
			s.Event = w.m.Event(it, message.EventDelivered, w.now())
		case 2, 3:
			s.Event = w.m.Event(it, message.EventDeferred, w.now())
			s.Retry = w.now().Add([]time.Duration{0, 10 * time.Second, 5 * time.Minute, time.Hour, 100 * time.Hour}[r.IntN(5)])
			it.LastReply = &message.Reply{Code: 451, Text: "later"}
			soon = soon || !s.Retry.After(w.now())
		case 4:
			s.Event = w.m.Event(it, message.EventBounced, w.now())
			if r.IntN(3) == 0 {
				s.Spawn = []*message.Submission{w.submission(r)}
			}
		}
		settlements = append(settlements, s)
	}
	if err := w.m.Settle(settlements); err != nil {
		return err
	}
	for i, or := range list {
		s := &settlements[i]
		w.o.unlease(or)
		or.attempt++
		for _, spawned := range s.Spawn {
			w.o.accept(spawned)
		}
		w.o.record(or, s.Event.Type, s.Retry.IsZero())
		if s.Retry.IsZero() {
			w.o.leave(or)
		} else {
			or.fate, or.due = isDue, s.Retry
		}
	}
	if soon {
		w.o.promote()
		if w.bubble == nil {
			return w.due()
		}
	}
	return nil
}

func (w *machine) release(r *rand.Rand) {
	if len(w.o.leased) == 0 {
		return
	}
	or := w.o.leased[r.IntN(len(w.o.leased))]
	q := or.item.Queue()
	q.Release([]*Item{or.item})
	w.o.release(or)
	w.announce(q, true)
}

func (w *machine) cancel(r *rand.Rand) error {
	if len(w.o.gone) > 0 && r.IntN(4) == 0 {
		if n, err := w.m.Cancel(w.o.gone[r.IntN(len(w.o.gone))], nil, "asked"); n != 0 || !errors.Is(err, ErrNotQueued) {
			return fmt.Errorf("cancelling a message that has ended: got %d, %v", n, err)
		}
		return nil
	}
	if len(w.o.messages) == 0 {
		return nil
	}
	om := w.o.messages[r.IntN(len(w.o.messages))]
	var only *uint32
	if r.IntN(2) == 0 {
		n := uint32(r.IntN(len(om.recipients)))
		only = &n
	}
	var want []*oracleRecipient
	held := 0
	for _, or := range om.recipients {
		switch {
		case only != nil && or.n != *only:
		case or.fate == isLeased:
			held++
		case or.fate != isGone:
			want = append(want, or)
		}
	}
	got, err := w.m.Cancel(om.id, only, "asked")
	switch {
	case got != len(want):
		return fmt.Errorf("cancelling %s took %d out, want %d (%w)", om.id, got, len(want), err)
	case len(want) > 0 && err != nil:
		return err
	case len(want) == 0 && held > 0 && !errors.Is(err, ErrInFlight):
		return fmt.Errorf("cancelling leased recipients: got %w, want ErrInFlight", err)
	case len(want) == 0 && held == 0 && !errors.Is(err, ErrNotQueued):
		return fmt.Errorf("cancelling nobody: got %w, want ErrNotQueued", err)
	}
	for _, or := range want {
		w.o.end(or, message.EventCanceled)
	}
	return nil
}

func (w *machine) advance(d time.Duration) error {
	if w.bubble != nil {
		w.bubble(d)
		w.o.tick(d)
		return nil
	}
	w.o.tick(d)
	return errors.Join(w.due(), w.m.expire(w.m.ctx, w.now()), w.m.expireIdempotency(w.now()))
}

// inMemory lists the queues in memory in a fixed order.
func (w *machine) inMemory() []*Queue {
	w.m.mu.RLock()
	defer w.m.mu.RUnlock()
	var list []*Queue
	for _, q := range w.m.queues {
		list = append(list, q)
	}
	slices.SortFunc(list, func(a, b *Queue) int { return strings.Compare(a.key.String(), b.key.String()) })
	return list
}

func (w *machine) evict(r *rand.Rand) error {
	list := w.inMemory()
	if len(list) == 0 {
		return nil
	}
	q := list[r.IntN(len(list))]
	leased := 0
	for _, or := range w.o.leased {
		if or.item.Queue() == q {
			leased++
		}
	}
	if got := evictNow(w.m, q); got != (leased == 0) {
		return fmt.Errorf("evicting %v with %d leased: got %v", q.key, leased, got)
	}
	if leased == 0 {
		w.announce(q, false)
		w.o.evicted(q.key)
	}
	return nil
}

// evictNow drops a queue from memory as if another needed its place.
func evictNow(m *Manager, q *Queue) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.evict(q)
}

// check holds everything that can be seen against the oracle.
func (w *machine) check(r *rand.Rand) error {
	rep, err := Verify(w.db)
	if err != nil {
		return err
	}
	if len(rep.Problems) > 0 {
		return fmt.Errorf("verify: %q", rep.Problems)
	}
	messages, due, ready := w.o.counts()
	if rep.Messages != messages || rep.Due != due || rep.Ready != ready || rep.Recipients != due+ready {
		return fmt.Errorf("the disk holds %d messages, %d due, %d ready, %d recipients; want %d, %d, %d, %d",
			rep.Messages, rep.Due, rep.Ready, rep.Recipients, messages, due, ready, due+ready)
	}
	st := w.m.Stats()
	if st.Waiting != int64(due+ready) || st.Quarantined != 0 {
		return fmt.Errorf("got stats %+v with %d waiting", st, due+ready)
	}
	inMemory, announced := int64(0), w.announced()
	for _, q := range w.inMemory() {
		n, more := q.Len()
		inMemory += int64(n)
		line := len(w.o.lines[q.key])
		switch {
		case line > 0 && n == 0:
			return fmt.Errorf("%v is in memory with %d in line and nothing in its window", q.key, line)
		case n > 0 && !slices.Contains(announced, q):
			return fmt.Errorf("%v has %d in its window and nobody was told", q.key, n)
		case n > line || !more && n != line:
			return fmt.Errorf("%v has %d in its window (more: %v), %d in line", q.key, n, more, line)
		}
	}
	if st.InMemory != inMemory {
		return fmt.Errorf("%d items are counted in windows, %d are there", st.InMemory, inMemory)
	}
	if len(w.o.messages) > 0 {
		om := w.o.messages[r.IntN(len(w.o.messages))]
		msg, places, err := w.m.Status(om.id, 1000)
		if err != nil || msg == nil || len(places) != om.waiting() {
			return fmt.Errorf("status of %s: %d places, want %d (%w)", om.id, len(places), om.waiting(), err)
		}
		for _, p := range places {
			or := om.recipients[p.N]
			if p.Leased != (or.fate == isLeased) || p.Due.IsZero() == (or.fate == isDue) || p.Attempt != or.attempt {
				return fmt.Errorf("status of %s says %+v, the oracle %+v", message.RecipientID(om.id, p.N), p, or)
			}
		}
	}
	return w.o.journal(w.db)
}

// drain delivers everything: whatever is lost or stuck shows here.
func (w *machine) drain(r *rand.Rand) error {
	for idle := 0; idle < 20; {
		messages, due, ready := w.o.counts()
		if messages == 0 {
			break
		}
		idle++
		for range 8 * (due + ready) {
			before := len(w.o.leased)
			if err := w.run(step{doLease, r.Uint64()}); err != nil {
				return err
			}
			if len(w.o.leased) > before {
				idle = 0
			}
			for len(w.o.leased) > 0 {
				idle = 0
				if err := w.run(step{doSettle, r.Uint64()}); err != nil {
					return err
				}
			}
			if len(w.announced()) == 0 {
				break
			}
		}
		if err := errors.Join(w.run(step{doReap, 0}), w.advance(5*time.Hour), w.settle()); err != nil {
			return err
		}
	}
	if err := w.check(r); err != nil {
		return err
	}
	if st := w.m.Stats(); st.Waiting != 0 || st.InMemory != 0 || st.BodyBytes != 0 {
		return fmt.Errorf("after everything was delivered: %+v", st)
	}
	return nil
}
