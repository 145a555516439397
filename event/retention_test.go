package event

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// keeper runs the retention of a journal until stop.
func keeper(t *testing.T, j *Journal, slowest func() (uint64, bool)) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := j.Run(ctx, slowest); err != nil {
			t.Error(err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

func oldest(t *testing.T, j *Journal) (seq uint64) {
	t.Helper()
	if _, err := j.Read(0, 1, func(s uint64, _ message.EventType, _ []byte) error { seq = s; return nil }); err != nil {
		t.Fatal(err)
	}
	return seq
}

func TestOldEventsAreDeletedAndTheirIndexFollows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		j := NewJournal(db, Config{Retention: Retention{MaxAge: 24 * time.Hour}})
		stop := keeper(t, j, nil)
		defer stop()
		first := commit(t, j, db, delivered(1))[0]
		time.Sleep(23 * time.Hour)
		second := commit(t, j, db, delivered(1))[0]
		time.Sleep(time.Minute)
		if got := oldest(t, j); got != first {
			t.Errorf("oldest event is %d after 23 h, want %d", got, first)
		}
		time.Sleep(2 * time.Hour)
		if got := oldest(t, j); got != second {
			t.Errorf("oldest event is %d after 25 h, want %d", got, second)
		}
		if h, err := j.History(messageID(1), 0); err != nil || len(h) != 1 {
			t.Errorf("history is %v, %v, want the one event left", h, err)
		}
		time.Sleep(10 * 24 * time.Hour)
		n := 0
		db.Each(store.HistorySpan(messageID(1)), func(_, _ []byte) (bool, error) { n++; return true, nil })
		if got, _ := readAll(t, j, 0); len(got) != 0 || n != 0 {
			t.Errorf("%d events and %d index rows left after all have aged", len(got), n)
		}
		stop()
	})
}

// TestLateEventsKeepTheirIndex is mail that was scheduled for weeks ahead: what is
// said of it then must be found for as long as the journal holds it.
func TestLateEventsKeepTheirIndex(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		j := NewJournal(db, Config{Retention: Retention{MaxAge: 24 * time.Hour}})
		stop := keeper(t, j, nil)
		defer stop()
		ids := &message.IDSource{}
		event := func(typ message.EventType, id message.ID, n uint32) *message.Event {
			return &message.Event{Type: typ, MessageID: id, N: n}
		}
		// Many recipients in a row are done at once; every third of the others is
		// delivered late, and one message after them all.
		bulk, mixed, last := ids.New(time.Now()), ids.New(time.Now()), ids.New(time.Now())
		for n := range uint32(3 * indexRun) {
			commit(t, j, db, event(message.EventAccepted, bulk, n), event(message.EventAccepted, mixed, n))
		}
		commit(t, j, db, event(message.EventAccepted, last, 0))
		time.Sleep(20 * 24 * time.Hour)
		for n := uint32(0); n < 3*indexRun; n += 3 {
			commit(t, j, db, event(message.EventDelivered, mixed, n))
		}
		commit(t, j, db, event(message.EventDelivered, last, 0))
		rows := func(id message.ID) (n int) {
			db.Each(store.HistorySpan(id), func(_, _ []byte) (bool, error) { n++; return true, nil })
			return n
		}
		time.Sleep(12 * time.Hour)
		if b, m, l := rows(bulk), rows(mixed), rows(last); b != 0 || m != indexRun || l != 1 {
			t.Errorf("%d, %d and %d index rows, want those of the late events: 0, %d and 1", b, m, l, indexRun)
		}
		if h, err := j.History(mixed, 3); err != nil || len(h) != 1 || h[0].Type != message.EventDelivered {
			t.Errorf("history is %v, %v, want the delivery", h, err)
		}
		time.Sleep(24 * time.Hour)
		if m, l := rows(mixed), rows(last); m != 0 || l != 0 {
			t.Errorf("%d and %d index rows left after the events have gone", m, l)
		}
		stop()
	})
}

func TestJournalStaysWithinItsBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		const limit = 100 << 10
		j := NewJournal(db, Config{Retention: Retention{MaxBytes: limit}})
		stop := keeper(t, j, nil)
		defer stop()
		held := func() (n int) {
			if err := db.Each(store.JournalSpan(0, j.Horizon()), func(k, v []byte) (bool, error) { n += len(k) + len(v); return true, nil }); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for range 200 {
			for range 5 {
				commit(t, j, db, full())
			}
			time.Sleep(sweepEvery)
			if n := held(); n > limit+limit/5 { // what comes between two sweeps is on top
				t.Fatalf("journal holds %d bytes, want about %d", n, limit)
			}
		}
		if n := held(); n < limit*8/10 {
			t.Errorf("journal holds %d bytes, want about %d: it deletes too much", n, limit)
		}
		stop()
		// The size is known again after a restart.
		j = NewJournal(db, Config{Retention: Retention{MaxBytes: limit}})
		stop = keeper(t, j, nil)
		defer stop()
		before := held()
		time.Sleep(time.Minute)
		if n := held(); n < before*9/10 {
			t.Errorf("restart shrank the journal from %d to %d bytes", before, n)
		}
		stop()
	})
}

func TestUnreadEventsStayUntilTheHardLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		j := NewJournal(db, Config{Retention: Retention{MaxAge: 24 * time.Hour, HardAge: 72 * time.Hour}})
		s := newStage(t, j, nil)
		dead := newCollector("dead")
		dead.fail(errDown)
		s.add(dead, Options{})
		s.start()
		stop := keeper(t, j, s.r.Slowest)
		defer stop()
		first := commit(t, j, db, delivered(1))[0]
		time.Sleep(time.Hour)
		commit(t, j, db, delivered(2))
		time.Sleep(70 * time.Hour)
		if got := oldest(t, j); got != first {
			t.Errorf("oldest event is %d while a sink has yet to read %d", got, first)
		}
		time.Sleep(3 * time.Hour)
		if got := oldest(t, j); got == first {
			t.Error("event outlived the hard limit")
		}
		stop()
		s.end()
	})
}

func TestRetentionNeverExceedsThirtyDays(t *testing.T) {
	t.Parallel()
	r := Retention{MaxAge: 90 * day, HardAge: 365 * day}.withDefaults()
	if r.MaxAge >= 30*day || r.HardAge >= 30*day {
		t.Errorf("got %v and %v, want less than 30 days", r.MaxAge, r.HardAge)
	}
}
