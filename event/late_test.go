package event

import (
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// add adds one late fact in a batch of its own, unless the recipient has one of
// its type already; it reports whether it did.
func add(t *testing.T, j *Journal, db *store.DB, n byte, typ message.EventType) bool {
	t.Helper()
	b := db.NewBatch(0)
	defer b.Close()
	l := j.Late(b)
	p, err := l.Look(messageID(n), 0)
	if err != nil {
		t.Error(err)
		return false
	}
	if p.Has(typ) || p.Queued {
		return false
	}
	l.Add(p, &message.Event{Type: typ, Origin: "dsn"})
	if err := b.Commit(); err != nil {
		t.Error(err)
	}
	return true
}

func TestLateFactsContinueTheRecipientsNumberingHoweverManyAtOnce(t *testing.T) {
	t.Parallel()
	db := openSpool(t, vfs.NewMem())
	defer closeDB(t, db)
	j := NewJournal(db, Config{})
	accepted := &message.Event{Type: message.EventAccepted, MessageID: messageID(1), Recipient: "ann@example.com", RecipientSeq: 1, Tenant: "acme", Campaign: "spring", Tags: []string{"a"}}
	last := delivered(1)
	last.Recipient, last.Tenant, last.Campaign, last.Tags = accepted.Recipient, accepted.Tenant, accepted.Campaign, accepted.Tags
	commit(t, j, db, accepted, last)
	types := []message.EventType{message.EventBounced, message.EventComplained, message.EventUnsubscribed, message.EventOpened, message.EventClicked}
	var wg sync.WaitGroup
	added := make([]int, len(types))
	var mu sync.Mutex // protects added
	for range 8 {
		for i, typ := range types {
			wg.Go(func() {
				if add(t, j, db, 1, typ) {
					mu.Lock()
					defer mu.Unlock()
					added[i]++
				}
			})
		}
	}
	wg.Wait()
	for i, n := range added {
		if n != 1 {
			t.Errorf("%s was added %d times", types[i], n)
		}
	}
	list, err := j.History(messageID(1), 0)
	if err != nil || len(list) != 2+len(types) {
		t.Fatalf("%d events, %v", len(list), err)
	}
	for i, e := range list {
		if e.RecipientSeq != uint32(i+1) {
			t.Errorf("event %d is numbered %d", i+1, e.RecipientSeq)
		}
		if e.Recipient != "ann@example.com" || e.Tenant != "acme" || e.Campaign != "spring" || len(e.Tags) != 1 {
			t.Errorf("event %d lost whom it is about: %+v", i+1, e)
		}
	}
}

func TestTwoFactsOfOneBatchSeeEachOther(t *testing.T) {
	t.Parallel()
	db := openSpool(t, vfs.NewMem())
	defer closeDB(t, db)
	j := NewJournal(db, Config{})
	commit(t, j, db, delivered(1))
	b := db.NewBatch(0)
	l := j.Late(b)
	for range 3 {
		p, err := l.Look(messageID(1), 0)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Has(message.EventComplained) {
			l.Add(p, &message.Event{Type: message.EventComplained})
		}
	}
	// A batch that comes to nothing must not keep the lock.
	b.Close()
	if !add(t, j, db, 1, message.EventBounced) {
		t.Error("a fact cannot be added after a batch was given up")
	}
	list, err := j.History(messageID(1), 0)
	if err != nil || len(list) != 2 || list[1].RecipientSeq != 3 {
		t.Errorf("history %v, %v", list, err)
	}
}

func TestWaitingRecipientAndForgottenPastAreToldApart(t *testing.T) {
	t.Parallel()
	db := openSpool(t, vfs.NewMem())
	defer closeDB(t, db)
	j := NewJournal(db, Config{})
	b := db.NewBatch(0)
	defer b.Close()
	b.Set(store.LocatorKey(nil, messageID(1), 0), []byte("somewhere"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	commit(t, j, db, delivered(1))
	if add(t, j, db, 1, message.EventBounced) {
		t.Error("a fact was added while the queue numbers the recipient's events")
	}

	b = db.NewBatch(0)
	defer b.Close()
	l := j.Late(b)
	p, err := l.Look(messageID(9), 4)
	if err != nil || p.Last != nil || p.Queued {
		t.Fatalf("past of an unknown recipient: %+v, %v", p, err)
	}
	e := &message.Event{Type: message.EventUnsubscribed, MessageID: messageID(9), N: 4, Recipient: "old@example.com", Tenant: "acme"}
	l.Add(p, e)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if e.RecipientSeq != 0 {
		t.Errorf("numbered %d although nobody knows what came before", e.RecipientSeq)
	}
	list, err := j.History(messageID(9), 4)
	if err != nil || len(list) != 1 || list[0].Recipient != "old@example.com" {
		t.Errorf("history %v, %v", list, err)
	}
}
