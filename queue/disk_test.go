package queue

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// spinning is a queue with the real journal on a real disk.
type spinning struct {
	t  *testing.T
	db *store.DB
	m  *Manager

	mu    sync.Mutex // protects ready
	ready map[*Queue]bool
}

func spin(t *testing.T, memtable uint64) *spinning {
	t.Helper()
	db, err := store.Open(t.TempDir(), store.Spool, store.Options{MemTableBytes: memtable})
	if err != nil {
		t.Fatal(err)
	}
	s := &spinning{t: t, db: db, ready: map[*Queue]bool{}}
	cfg := DefaultConfig()
	cfg.BodyCache = 0 // every body comes from the disk
	journal := event.NewJournal(db, event.Config{Now: time.Now, Registerer: prometheus.NewRegistry()})
	s.m, err = New(cfg, Deps{
		DB: db, Recorder: journal, Now: time.Now, IDs: &message.IDSource{},
		Ready: func(q *Queue) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.ready[q] = true
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, db.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// accept takes n messages with bodies that do not compress, many to a commit.
func (s *spinning) accept(ids *message.IDSource, n, size int) {
	s.t.Helper()
	const batch = 100
	for at := 0; at < n; at += batch {
		var subs []*message.Submission
		for i := range batch {
			body := make([]byte, size)
			rand.Read(body)
			subs = append(subs, &message.Submission{
				Message:    &message.Message{ID: ids.New(time.Now()), Tenant: "acme", From: message.MustAddress("s@sender.example"), Accepted: time.Now()},
				Recipients: []message.Recipient{{Address: message.MustAddress(fmt.Sprintf("u%d@d%d.example", at+i, i%10))}},
				Body:       body,
			})
		}
		if err := s.m.Accept(s.t.Context(), subs); err != nil {
			s.t.Fatal(err)
		}
	}
}

// settle leases everything that is ready and settles it, until n have been.
func (s *spinning) settle(n int, typ message.EventType, retry func() time.Time) {
	s.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n > 0 {
		s.mu.Lock()
		var list []Settlement
		for q := range s.ready {
			items := q.Lease(100)
			if len(items) == 0 {
				delete(s.ready, q)
			}
			for _, it := range items {
				if _, _, err := s.m.Load([]*Item{it}); err != nil {
					s.t.Fatal(err)
				}
				it.Attempt++
				list = append(list, Settlement{Item: it, Event: s.m.Event(it, typ, time.Now()), Retry: retry()})
			}
		}
		s.mu.Unlock()
		if len(list) == 0 {
			<-tick.C
			continue
		}
		if err := s.m.Settle(list); err != nil {
			s.t.Fatal(err)
		}
		n -= len(list)
	}
}

// never is the time of a retry that there is none of.
func never() time.Time { return time.Time{} }

// written is what the store has written so far: its log, and tables and blob
// files by flushes and compactions.
func (s *spinning) written() (log, tables uint64) {
	p := s.db.Metrics()
	total := p.Total()
	return p.WAL.BytesWritten, total.TableBytesFlushed + total.TableBytesCompacted + total.BlobBytesFlushed + total.BlobBytesCompacted
}

func TestSpaceOfABigQueueComesBackWhenItHasDrained(t *testing.T) {
	const n, size = 10_000, 10 << 10
	s := spin(t, 4<<20)
	s.accept(&message.IDSource{}, n, size)
	full := s.db.Metrics().DiskSpaceUsage()
	if full < n*size {
		t.Fatalf("%d octets of mail take up %d: the test cannot tell", n*size, full)
	}
	s.settle(n, message.EventDelivered, never)
	if err := s.m.reclaim(t.Context()); err != nil { // Run does it every minute
		t.Fatal(err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for limit := full / 4; ; <-tick.C {
		left := s.db.Metrics().DiskSpaceUsage()
		if left <= limit {
			t.Logf("%d MiB waiting, %d MiB %v after the last delivery", full>>20, left>>20, time.Since(start).Round(10*time.Millisecond))
			return
		}
		if time.Since(start) > 30*time.Second {
			t.Fatalf("%d MiB were in use, %d still are half a minute after the last delivery", full>>20, left>>20)
		}
	}
}

func TestBytesWrittenForAMessageStayFew(t *testing.T) {
	const n, size = 5000, 10 << 10
	for _, c := range []struct {
		name   string
		defers int
		limit  float64 // octets written for each octet of mail
	}{
		{"accepted and delivered", 0, 5},
		{"accepted, deferred and delivered", 1, 6},
	} {
		s := spin(t, 4<<20)
		s.accept(&message.IDSource{}, n, size)
		for range c.defers {
			s.settle(n, message.EventDeferred, time.Now)
		}
		s.settle(n, message.EventDelivered, never)
		if err := s.db.Flush(); err != nil {
			t.Fatal(err)
		}
		log, tables := s.written()
		factor := float64(log+tables) / (n * size)
		t.Logf("%s: %d octets a message in the log, %d in tables and blob files; %.2f for each octet of mail", c.name, log/n, tables/n, factor)
		if factor > c.limit {
			t.Errorf("%s: %.2f octets are written for each octet of mail, want at most %v", c.name, factor, c.limit)
		}
	}
}

// TestMailBecomingDueAtOnceDoesNotStallAcceptance lets as much become due at one
// moment as a provider's outage of hours would. TRADEWIND_DUE_AT_ONCE says how much.
func TestMailBecomingDueAtOnceDoesNotStallAcceptance(t *testing.T) {
	n := int(fromEnv(t, "TRADEWIND_DUE_AT_ONCE", 50_000))
	s := spin(t, 0)
	ids := &message.IDSource{}
	submission := func(to, domains int) *message.Submission {
		sub := &message.Submission{
			Message: &message.Message{ID: ids.New(time.Now()), Tenant: "acme", From: message.MustAddress("s@sender.example"), Accepted: time.Now()},
			Body:    []byte("Subject: x\r\n\r\nbody\r\n"),
		}
		for i := range to {
			sub.Recipients = append(sub.Recipients, message.Recipient{Address: message.MustAddress(fmt.Sprintf("u@d%d.example", i%domains))})
		}
		return sub
	}
	at := time.Now().Add(time.Hour)
	for range n / 1000 {
		sub := submission(1000, 1000)
		sub.Message.NotBefore = at
		if err := s.m.Accept(t.Context(), []*message.Submission{sub}); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	var stats Stats
	go func() {
		for {
			moved, _, err := s.m.promote(at)
			if st := s.m.Stats(); st.InMemory > stats.InMemory {
				stats = st
			}
			if err != nil || moved < promoteChunk {
				done <- err
				return
			}
		}
	}()
	began := time.Now()
	var waits []time.Duration
	for promoting := true; promoting; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			promoting = false
		default:
			start := time.Now()
			if err := s.m.Accept(t.Context(), []*message.Submission{submission(1, 1)}); err != nil {
				t.Fatal(err)
			}
			waits = append(waits, time.Since(start))
		}
	}
	slices.Sort(waits)
	p99 := waits[len(waits)*99/100]
	t.Logf("%d items became ready in %v; %d messages accepted meanwhile, median %v, p99 %v; at the most %d items in memory",
		n, time.Since(began).Round(time.Millisecond), len(waits), waits[len(waits)/2].Round(time.Microsecond), p99.Round(time.Microsecond), stats.InMemory)
	if limit := int64(2 * s.m.Config().MaxItems); stats.InMemory > limit {
		t.Errorf("%d items in memory, want at most %d", stats.InMemory, limit)
	}
	if p99 > 2*time.Second {
		t.Errorf("p99 of acceptance is %v while mail becomes due", p99)
	}
}
