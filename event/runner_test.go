package event

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tradewind-mta/tradewind/message"
)

// stage is a journal with a runner in virtual time.
type stage struct {
	t  *testing.T
	j  *Journal
	r  *Runner
	wg sync.WaitGroup

	mu     sync.Mutex
	states []string
	stop   context.CancelFunc
}

func newStage(t *testing.T, j *Journal, reg prometheus.Registerer) *stage {
	s := &stage{t: t, j: j}
	s.r = NewRunner(j, RunnerConfig{Registerer: reg, OnState: func(st Status) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.states = append(s.states, st.Name+" "+st.State.String())
	}})
	return s
}

func (s *stage) add(k Sink, o Options) {
	s.t.Helper()
	if err := s.r.Add(k, o); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) start() {
	ctx, stop := context.WithCancel(s.t.Context())
	s.stop = stop
	s.wg.Go(func() {
		if err := s.r.Run(ctx); err != nil {
			s.t.Error(err)
		}
	})
	synctest.Wait()
}

func (s *stage) end() {
	s.stop()
	s.wg.Wait()
}

func (s *stage) status(name string) Status {
	s.t.Helper()
	for _, st := range s.r.Status() {
		if st.Name == name {
			return st
		}
	}
	s.t.Fatalf("no sink %s", name)
	return Status{}
}

func TestEverySinkGetsEveryEventInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		j := NewJournal(db, Config{})
		s := newStage(t, j, nil)
		var want []uint64
		for range 3 {
			want = append(want, commit(t, j, db, delivered(1))...)
		}
		all, late := newCollector("all"), newCollector("late")
		s.add(all, Options{FromStart: true})
		s.add(late, Options{})
		n := len(want)
		s.start()
		for range 1200 {
			want = append(want, commit(t, j, db, delivered(2))...)
		}
		time.Sleep(5 * time.Second)
		s.end()
		if d := cmp.Diff(want, all.seqs()); d != "" {
			t.Errorf("sink from the start (-want +got):\n%s", d)
		}
		if d := cmp.Diff(want[n:], late.seqs()); d != "" {
			t.Errorf("sink from now on (-want +got):\n%s", d)
		}
		for _, b := range all.batches {
			if len(b) > MaxBatch {
				t.Errorf("batch of %d, want at most %d", len(b), MaxBatch)
			}
		}
	})
}

func TestLoneEventWaitsNoLongerThanASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		s := newStage(t, NewJournal(db, Config{}), nil)
		c := newCollector("c")
		s.add(c, Options{})
		s.start()
		commit(t, s.j, db, delivered(1))
		<-c.got
		if waited := time.Since(epoch); waited > MaxBatchWait {
			t.Errorf("event took %v, want at most %v", waited, MaxBatchWait)
		}
		s.end()
	})
}

func TestDeadSinkDelaysOnlyItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		reg := prometheus.NewRegistry()
		s := newStage(t, NewJournal(db, Config{}), reg)
		dead, alive := newCollector("dead"), newCollector("alive")
		dead.fail(errDown)
		s.add(dead, Options{Kind: KindWebhook})
		s.add(alive, Options{Kind: KindFile})
		s.start()
		want := commit(t, s.j, db, delivered(1), delivered(2))
		time.Sleep(time.Hour)
		if d := cmp.Diff(want, alive.seqs()); d != "" {
			t.Errorf("living sink (-want +got):\n%s", d)
		}
		if st := s.status("dead"); st.State != Retrying || !errors.Is(st.Err, errDown) || st.Lag < time.Hour-time.Second {
			t.Errorf("got %+v for the dead sink", st)
		}
		err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP tradewind_sink_lag_seconds Age of the oldest event that a sink has in hand and not yet got rid of, the worst of each kind.
# TYPE tradewind_sink_lag_seconds gauge
tradewind_sink_lag_seconds{kind="csv"} 0
tradewind_sink_lag_seconds{kind="file"} 0
tradewind_sink_lag_seconds{kind="internal"} 0
tradewind_sink_lag_seconds{kind="webhook"} 3600
`), "tradewind_sink_lag_seconds")
		if err != nil {
			t.Error(err)
		}
		dead.fail(nil)
		time.Sleep(2 * time.Minute)
		if d := cmp.Diff(want, dead.seqs()); d != "" {
			t.Errorf("sink that came back (-want +got):\n%s", d)
		}
		s.end()
		if d := cmp.Diff([]string{"dead retrying", "dead running"}, s.states); d != "" {
			t.Errorf("states told (-want +got):\n%s", d)
		}
	})
}

func TestSinkParksAfterItsScheduleAndKeepsItsPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		s := newStage(t, NewJournal(db, Config{}), nil)
		c := newCollector("c")
		c.fail(errDown)
		s.add(c, Options{Retry: []time.Duration{5 * time.Second, time.Minute}, MaxWait: -1})
		s.start()
		want := commit(t, s.j, db, delivered(1))
		time.Sleep(24 * time.Hour)
		tried := c.tried()
		if len(tried) != 3 {
			t.Fatalf("tried %d times, want 3", len(tried))
		}
		for i, least := range []time.Duration{5 * time.Second, time.Minute} {
			if d := tried[i+1].Sub(tried[i]); d < least || d > least+least/10 {
				t.Errorf("wait %d was %v, want %v and up to a tenth more", i, d, least)
			}
		}
		if st := s.status("c"); st.State != Parked {
			t.Errorf("got state %v, want parked", st.State)
		}
		if slow, ok := s.r.Slowest(); !ok || slow != want[0]-1 {
			t.Errorf("slowest is %d, %v, want %d: a parked sink holds its events", slow, ok, want[0]-1)
		}
		c.fail(nil)
		if err := s.r.Resume("c"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if d := cmp.Diff(want, c.seqs()); d != "" {
			t.Errorf("after resume (-want +got):\n%s", d)
		}
		s.end()
	})
}

func TestEndpointThatSaysNeverAgainIsNotCalledAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		s := newStage(t, NewJournal(db, Config{}), nil)
		c := newCollector("c")
		c.fail(&Refusal{Err: errDown, Disable: true})
		s.add(c, Options{})
		s.start()
		commit(t, s.j, db, delivered(1))
		time.Sleep(1000 * time.Hour)
		if n := len(c.tried()); n != 1 {
			t.Errorf("tried %d times, want once", n)
		}
		if st := s.status("c"); st.State != Disabled {
			t.Errorf("got state %v, want disabled", st.State)
		}
		if _, ok := s.r.Slowest(); ok {
			t.Error("a disabled sink holds up retention")
		}
		s.end()
	})
}

func TestSinkThatAsksForTimeGetsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		s := newStage(t, NewJournal(db, Config{}), nil)
		c := newCollector("c")
		c.fail(&Refusal{Err: errDown, After: 10 * time.Minute})
		s.add(c, Options{})
		s.start()
		commit(t, s.j, db, delivered(1))
		time.Sleep(15 * time.Minute)
		if tried := c.tried(); len(tried) != 2 || tried[1].Sub(tried[0]) != 10*time.Minute {
			t.Errorf("tried at %v, want 10 minutes between", tried)
		}
		s.end()
	})
}

// A crash may give events twice, but a cursor must never come back ahead of
// what its sink has taken.
func TestCrashBringsDuplicatesButNoGap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashableMem()
		db := openSpool(t, fs)
		j := NewJournal(db, Config{})
		s := newStage(t, j, nil)
		c := newCollector("c")
		s.add(c, Options{FromStart: true, MaxWait: -1})
		s.start()
		type crash struct {
			fs    *vfs.MemFS
			taken int // by the sink when the power went
			known []uint64
		}
		var crashes []crash
		var want []uint64
		for range 20 {
			want = append(want, commit(t, j, db, delivered(1))...)
			synctest.Wait()
			crashes = append(crashes, crash{fs.CrashClone(vfs.CrashCloneCfg{}), len(c.seqs()), slices.Clone(want)})
		}
		s.end()
		closeDB(t, db)
		for i, cr := range crashes {
			db := openSpool(t, cr.fs)
			s := newStage(t, NewJournal(db, Config{}), nil)
			again := newCollector("c")
			s.add(again, Options{MaxWait: -1})
			s.start()
			time.Sleep(time.Minute)
			s.end()
			closeDB(t, db)
			seen := map[uint64]bool{}
			for _, q := range append(slices.Clone(c.seqs()[:cr.taken]), again.seqs()...) {
				seen[q] = true
			}
			for _, q := range cr.known {
				if !seen[q] {
					t.Errorf("crash %d: event %d reached the sink neither before nor after", i, q)
				}
			}
		}
	})
}

func TestNewSinkLosesNothingToACrashRightAfterItWasAdded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashableMem()
		db := openSpool(t, fs)
		j := NewJournal(db, Config{})
		commit(t, j, db, delivered(1))
		s := newStage(t, j, nil)
		s.add(newCollector("hook"), Options{})
		want := commit(t, j, db, delivered(2))
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		closeDB(t, db)
		db = openSpool(t, after)
		defer closeDB(t, db)
		s = newStage(t, NewJournal(db, Config{}), nil)
		c := newCollector("hook")
		s.add(c, Options{})
		s.start()
		time.Sleep(time.Minute)
		s.end()
		if d := cmp.Diff(want, c.seqs()); d != "" {
			t.Errorf("events behind the crash (-want +got):\n%s", d)
		}
	})
}

func TestSinkCanBeRewoundAndRemovedWhileItRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		s := newStage(t, NewJournal(db, Config{}), nil)
		s.start()
		c := newCollector("c")
		s.add(c, Options{MaxWait: -1})
		if err := s.r.Add(c, Options{}); !errors.Is(err, ErrSinkName) {
			t.Errorf("got %v for a second sink of the same name", err)
		}
		want := commit(t, s.j, db, delivered(1), delivered(2))
		time.Sleep(time.Second)
		if err := s.r.Rewind("c", 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if d := cmp.Diff(append(want, want...), c.seqs()); d != "" {
			t.Errorf("after rewind (-want +got):\n%s", d)
		}
		if err := s.r.Remove("c"); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := s.j.Cursor("c"); ok || err != nil {
			t.Errorf("removed sink still has a cursor (%v)", err)
		}
		if err := s.r.Resume("c"); !errors.Is(err, ErrNoSink) {
			t.Errorf("got %v for a removed sink", err)
		}
		s.end()
	})
}

func TestSinkGetsOnlyWhatItWants(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		s := newStage(t, NewJournal(db, Config{}), nil)
		c := newCollector("c")
		s.add(c, Options{Wants: func(r Record) bool { return r.Type == message.EventOpened }})
		s.start()
		var want []uint64
		for range 40 {
			evs := make([]*message.Event, 500)
			for i := range evs {
				evs[i] = delivered(1)
			}
			evs[77] = &message.Event{Type: message.EventOpened}
			want = append(want, commit(t, s.j, db, evs...)[77])
		}
		time.Sleep(10 * time.Second)
		if d := cmp.Diff(want, c.seqs()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if st := s.status("c"); st.Cursor != s.j.Horizon() {
			t.Errorf("cursor is %d, want %d: what is not wanted is dealt with", st.Cursor, s.j.Horizon())
		}
		s.end()
	})
}
