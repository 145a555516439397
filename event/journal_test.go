package event

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

func readAll(t testing.TB, j *Journal, after uint64) (seqs []uint64, next uint64) {
	t.Helper()
	next, err := j.Read(after, 1<<30, func(seq uint64, _ message.EventType, _ []byte) error {
		seqs = append(seqs, seq)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seqs, next
}

func TestEventIsReadOnlyWhenEverythingBeforeItIsSettled(t *testing.T) {
	t.Parallel()
	db := openSpool(t, vfs.NewMem())
	defer closeDB(t, db)
	j := NewJournal(db, Config{})
	slow, quick := db.NewBatch(0), db.NewBatch(0)
	defer slow.Close()
	defer quick.Close()
	j.Append(slow, delivered(1))
	j.Append(quick, delivered(2))
	if err := quick.Commit(); err != nil {
		t.Fatal(err)
	}
	if got, _ := readAll(t, j, 0); len(got) != 0 {
		t.Fatalf("got %v while an earlier place is open, want nothing", got)
	}
	if err := slow.Commit(); err != nil {
		t.Fatal(err)
	}
	got, next := readAll(t, j, 0)
	if len(got) != 2 || got[1] != got[0]+1 || next != got[1] {
		t.Errorf("got %v up to %d, want both events in order", got, next)
	}
}

func TestReaderNeverSeesAGapFilledLater(t *testing.T) {
	t.Parallel()
	db := openSpool(t, vfs.NewMem())
	defer closeDB(t, db)
	j := NewJournal(db, Config{})
	const writers, batches = 8, 60
	var wg sync.WaitGroup
	var mu sync.Mutex
	written := map[uint64]bool{}
	for w := range writers {
		rng := rand.New(rand.NewPCG(1, uint64(w)))
		wg.Go(func() {
			for range batches {
				b := db.NewBatch(0)
				evs := make([]*message.Event, 1+rng.IntN(4))
				for i := range evs {
					evs[i] = delivered(byte(w))
				}
				j.Append(b, evs...)
				b.Reserve(1 + rng.IntN(3)) // places that are no events
				if rng.IntN(10) == 0 {
					b.Close() // given up
					continue
				}
				if err := b.Commit(); err != nil {
					t.Error(err)
				}
				b.Close()
				mu.Lock()
				for _, e := range evs {
					written[e.Seq] = true
				}
				mu.Unlock()
			}
		})
	}
	ctx, stop := context.WithCancel(t.Context())
	var got []uint64
	var reader sync.WaitGroup
	reader.Go(func() {
		for next := uint64(0); ; {
			if j.Wait(ctx, next) != nil {
				return
			}
			var err error
			next, err = j.Read(next, 7, func(seq uint64, _ message.EventType, _ []byte) error {
				got = append(got, seq)
				return nil
			})
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Wait()
	stop()
	reader.Wait()
	after := uint64(0)
	if len(got) > 0 {
		after = got[len(got)-1]
	}
	rest, _ := readAll(t, j, after)
	got = append(got, rest...)
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Errorf("events came out of order or twice: %v", got)
	}
	if len(got) != len(written) {
		t.Errorf("got %d events, want %d: the reader passed a place that was filled later", len(got), len(written))
	}
	for _, seq := range got {
		if !written[seq] {
			t.Errorf("event %d was never committed", seq)
		}
	}
}

func TestHistoryTellsOneRecipientsStoryInOrder(t *testing.T) {
	t.Parallel()
	db := openSpool(t, vfs.NewMem())
	defer closeDB(t, db)
	j := NewJournal(db, Config{Now: func() time.Time { return epoch }})
	id := messageID(1)
	ev := func(typ message.EventType, n uint32) *message.Event {
		return &message.Event{Type: typ, MessageID: id, N: n}
	}
	commit(t, j, db, ev(message.EventAccepted, 0), ev(message.EventAccepted, 1), delivered(9))
	commit(t, j, db, ev(message.EventDeferred, 1))
	commit(t, j, db, ev(message.EventDelivered, 0), ev(message.EventBounced, 1))
	types := func(evs []*message.Event, err error) (out []string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range evs {
			out = append(out, e.Type.String())
		}
		return out
	}
	want := []string{"message.accepted", "message.deferred", "message.bounced"}
	if d := cmp.Diff(want, types(j.History(id, 1))); d != "" {
		t.Errorf("recipient 1 (-want +got):\n%s", d)
	}
	want = []string{"message.accepted", "message.accepted", "message.deferred", "message.delivered", "message.bounced"}
	if d := cmp.Diff(want, types(j.MessageHistory(id))); d != "" {
		t.Errorf("message (-want +got):\n%s", d)
	}
	if got := types(j.History(messageID(2), 0)); got != nil {
		t.Errorf("got %v for a message that never was", got)
	}
}

func TestUnreadableRecordSilencesNobody(t *testing.T) {
	t.Parallel()
	db := openSpool(t, vfs.NewMem())
	defer closeDB(t, db)
	j := NewJournal(db, Config{})
	first := commit(t, j, db, delivered(1))
	b := db.NewBatch(0)
	b.Set(store.JournalKey(nil, b.Reserve(1)), []byte{99, 1, '{', '}'})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	last := commit(t, j, db, delivered(2))
	got, _ := readAll(t, j, 0)
	if d := cmp.Diff([]uint64{first[0], last[0]}, got); d != "" {
		t.Errorf("places read (-want +got):\n%s", d)
	}
}

func TestTailBlocksUntilSomethingHappens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openSpool(t, vfs.NewMem())
		defer closeDB(t, db)
		j := NewJournal(db, Config{})
		commit(t, j, db, delivered(1))
		ctx, stop := context.WithCancel(t.Context())
		var got []string
		var wg sync.WaitGroup
		wg.Go(func() {
			err := j.Follow(ctx, func(e *message.Event) error {
				got = append(got, e.Recipient)
				return nil
			}, message.EventDelivered)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v when the listener went away", err)
			}
		})
		synctest.Wait()
		for n := range byte(3) {
			commit(t, j, db, delivered(10+n), &message.Event{Type: message.EventOpened})
			synctest.Wait()
			if len(got) != int(n)+1 {
				t.Errorf("got %v after %d events", got, n+1)
			}
		}
		stop()
		wg.Wait()
	})
}
