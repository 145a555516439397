package queue

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// node is a stopped node's spool.
type node struct {
	t  *testing.T
	db *store.DB
}

func newNode(t *testing.T, fs vfs.FS) *node {
	t.Helper()
	db, err := store.Open("data", store.Spool, store.Options{FS: fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return &node{t, db}
}

func fixedNow() time.Time { return time.Unix(1_800_000_000, 0) }

func (n *node) export(opt TransferOptions) []byte {
	n.t.Helper()
	opt.Now = fixedNow
	var b bytes.Buffer
	if _, err := Export(n.t.Context(), n.db, &b, opt); err != nil {
		n.t.Fatal(err)
	}
	return b.Bytes()
}

func (n *node) take(stream []byte) (TransferReport, error) {
	return Import(n.t.Context(), n.db, bytes.NewReader(stream), TransferOptions{Now: fixedNow})
}

func (n *node) whole() *Report {
	n.t.Helper()
	r, err := Verify(n.db)
	if err != nil {
		n.t.Fatal(err)
	}
	if len(r.Problems) > 0 {
		n.t.Fatalf("the spool is not consistent: %q", r.Problems)
	}
	return r
}

// lived is the spool of a queue that has been through random operations, with a
// journal, and was stopped.
func lived(t *testing.T, seed uint64) *node {
	t.Helper()
	w := &machine{cfg: modelConfig(seed), fs: vfs.NewCrashableMem(), o: newOracle(fixedNow()), maxWaiting: 100}
	w.recorder = func(db *store.DB) Recorder { return event.NewJournal(db, event.Config{Now: fixedNow}) }
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	for _, s := range modelSteps(seed, 300) {
		if s.do == doCheck {
			continue // it reads the journal as the oracle's
		}
		if err := w.run(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	return newNode(t, w.fs)
}

func TestExportThatWasImportedIsExportedTheSame(t *testing.T) {
	t.Parallel()
	first := seedFrom(t, "TRADEWIND_TRANSFER_SEED")
	moved := 0
	for seed := first; seed < first+10; seed++ {
		from := lived(t, seed)
		before := from.whole()
		stream := from.export(TransferOptions{})
		to := newNode(t, vfs.NewMem())
		r, err := to.take(stream)
		if err != nil || r.Recipients != before.Recipients || r.Skipped != 0 {
			t.Fatalf("seed %d: %+v, %v; want %d recipients", seed, r, err, before.Recipients)
		}
		after := to.whole()
		if after.Messages != before.Messages || after.Due != before.Due || after.Ready != before.Ready || after.BodyBytes != before.BodyBytes {
			t.Errorf("seed %d: %+v became %+v", seed, before, after)
		}
		if again := to.export(TransferOptions{}); !bytes.Equal(again, stream) {
			t.Errorf("seed %d: the second export differs from the first", seed)
		}
		if r, err := to.take(stream); err != nil || r.Messages != 0 || r.Skipped != before.Messages {
			t.Errorf("seed %d: importing twice: %+v, %v; want everything skipped", seed, r, err)
		}
		moved += r.Recipients
	}
	if moved == 0 {
		t.Error("nothing was moved: the test cannot tell")
	}
}

func TestImportOfADamagedExportSaysSoAndGoesOnFromThere(t *testing.T) {
	t.Parallel()
	from := newNode(t, vfs.NewMem())
	m, err := New(DefaultConfig(), Deps{
		DB: from.db, Recorder: event.NewJournal(from.db, event.Config{Now: fixedNow}), Now: fixedNow, Ready: func(*Queue) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ids := &message.IDSource{}
	for i := range 30 {
		s := &message.Submission{
			Message:    &message.Message{ID: ids.New(fixedNow()), Tenant: "acme", From: message.MustAddress("s@sender.example"), Accepted: fixedNow()},
			Recipients: []message.Recipient{{Address: message.MustAddress(fmt.Sprintf("u%d@one.example", i))}},
			Body:       bytes.Repeat([]byte("line\r\n"), 50_000),
		}
		if err := m.Accept(t.Context(), []*message.Submission{s}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	stream := from.export(TransferOptions{})

	to := newNode(t, vfs.NewMem())
	cut, err := to.take(stream[:2*len(stream)/3])
	if !errors.Is(err, ErrTransfer) || cut.Messages == 0 || cut.Messages == 30 {
		t.Fatalf("a stream cut short: %+v, %v; want some messages and ErrTransfer", cut, err)
	}
	to.whole()
	rest, err := to.take(stream)
	if err != nil || rest.Messages+rest.Skipped != 30 || rest.Skipped != cut.Messages {
		t.Errorf("the whole stream after %d messages: %+v, %v", cut.Messages, rest, err)
	}
	to.whole()

	for _, at := range []int{2, len(stream) / 2, len(stream) - 10} {
		bad := bytes.Clone(stream)
		bad[at] ^= 1
		if _, err := newNode(t, vfs.NewMem()).take(bad); !errors.Is(err, ErrTransfer) {
			t.Errorf("a byte changed at %d of %d: got %v, want ErrTransfer", at, len(stream), err)
		}
	}
}

func TestWhatWasExportedLeavesWithAFinalEvent(t *testing.T) {
	t.Parallel()
	seed := seedFrom(t, "TRADEWIND_TRANSFER_SEED")
	from := lived(t, seed)
	before := from.whole()
	stream := from.export(TransferOptions{Tenant: "acme"})
	m, err := New(DefaultConfig(), Deps{DB: from.db, Recorder: event.NewJournal(from.db, event.Config{Now: fixedNow}), Now: fixedNow})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	r, err := m.Leave(t.Context(), bytes.NewReader(stream), "moved")
	if err != nil {
		t.Fatal(err)
	}
	after := from.whole()
	if r.Recipients != strings.Count(string(stream), `"item":`) || before.Recipients-after.Recipients != r.Recipients {
		t.Errorf("seed %d: %d of %d recipients left, %d remain", seed, r.Recipients, before.Recipients, after.Recipients)
	}
	if left := from.export(TransferOptions{Tenant: "acme"}); strings.Contains(string(left), `"item":`) {
		t.Error("mail that was moved still waits here")
	}
	canceled := 0
	err = from.db.Each(store.JournalSpan(0, ^uint64(0)), func(_, v []byte) (bool, error) {
		if bytes.Contains(v, []byte(`"detail":"moved"`)) {
			canceled++
		}
		return true, nil
	})
	if err != nil || canceled != r.Recipients {
		t.Errorf("seed %d: %d final events for %d recipients, %v", seed, canceled, r.Recipients, err)
	}
	if again, err := m.Leave(t.Context(), bytes.NewReader(stream), "moved"); err != nil || again.Recipients != 0 {
		t.Errorf("leaving twice: %+v, %v", again, err)
	}
}

func FuzzImport(f *testing.F) {
	f.Add([]byte(`{"format":"tradewind-queue","version":1,"created":"2026-11-26T00:00:00Z"}` + "\n" + `{"end":true,"messages":0,"recipients":0,"skipped":0,"sum":""}` + "\n"))
	f.Add([]byte(`{"format":"tradewind-queue","version":1}` + "\n" + `{"id":"01M8B4NVX5B2MMM3MSJAQ06YPS","record":"AQ==","recipients":[{"n":0,"item":"AQ=="}],"sum":""}` + "\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		n := newNode(t, vfs.NewMem())
		_, _ = n.take(stream) // whatever it says, what is stored is whole
		n.whole()
	})
}
