//go:build linux && (interop || backlog)

package interop

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
)

// spool describes a backlog to be laid down without an engine, in the engine's
// own encoding: the messages go through queue.Manager.Accept, many to a commit.
type spool struct {
	recipients int
	domains    int
	// due is the share of the recipients that wait for a time still to come.
	due float64
}

// What a spool is made of: most recipients share a message with others, as in a
// campaign, the rest have one of their own.
const (
	spoolTenant   = "bulky"
	spoolShared   = 100 // recipients of a shared message
	spoolOwn      = 10  // one recipient in so many has a message of its own
	spoolBody     = 2 << 10
	spoolPerBatch = 1000 // recipients in one commit
)

// quiet is a sink of the journal that only keeps a place in it.
type quiet string

func (q quiet) Name() string                                { return string(q) }
func (quiet) Deliver(context.Context, []event.Record) error { return nil }

// build lays the spool down under dir, with every event already told to the
// engine's own sinks, and returns the octets it takes up.
func (s spool) build(t *testing.T, dir string) (octets int64) {
	t.Helper()
	start := time.Now()
	lock, err := store.Lock(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	db, err := store.Open(dir, store.Spool, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	journal := event.NewJournal(db, event.Config{Now: time.Now})
	cfg := queue.DefaultConfig()
	cfg.MaxActive, cfg.MaxItems, cfg.Window, cfg.BodyCache = 1, 1, 1, 0
	m, err := queue.New(cfg, queue.Deps{
		DB: db, Recorder: journal, Now: time.Now, IDs: &message.IDSource{}, Ready: func(*queue.Queue) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var ran errgroup.Group
	ran.Go(func() error { return m.Run(ctx) })
	ran.Go(func() error { return journal.Run(ctx, nil) })

	var next atomic.Int64
	var wg sync.WaitGroup
	ids := &message.IDSource{}
	for range 2 {
		wg.Go(func() {
			for {
				first := int(next.Add(spoolPerBatch)) - spoolPerBatch
				if first >= s.recipients || t.Failed() {
					return
				}
				if err := m.Accept(ctx, s.batch(ids, first, min(spoolPerBatch, s.recipients-first))); err != nil {
					t.Errorf("build: %v", err)
				}
			}
		})
	}
	wg.Wait()
	sinks := event.NewRunner(journal, event.RunnerConfig{Now: time.Now})
	for _, name := range []quiet{"file", "suppression"} {
		if err := sinks.Add(name, event.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := ran.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	atRest(t, dir)
	octets = diskUsage(t, filepath.Join(dir, string(store.Spool)))
	t.Logf("built %d recipients over %d domains in %v: %d MiB, %.0f octets a recipient",
		s.recipients, s.domains, time.Since(start).Round(time.Second), octets>>20, float64(octets)/float64(s.recipients))
	return octets
}

// atRest lets the store finish its compactions: a backlog that grew at the pace of
// an engine has none outstanding.
func atRest(t *testing.T, dir string) {
	t.Helper()
	db, err := store.Open(dir, store.Spool, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for quiet := 0; quiet < 10; <-tick.C {
		if quiet++; db.Metrics().Compact.NumInProgress > 0 {
			quiet = 0
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// batch makes the messages for n recipients from number first on.
func (s spool) batch(ids *message.IDSource, first, n int) (subs []*message.Submission) {
	now := time.Now()
	r := rand.New(rand.NewPCG(uint64(first), 1))
	add := func(from, n int) {
		sub := &message.Submission{
			Message: &message.Message{
				ID: ids.New(now), Tenant: spoolTenant, Campaign: "autumn",
				From: message.MustAddress("news@sender.example"), HeaderFrom: "sender.example",
				RFCMessageID: fmt.Sprintf("%d@sender.example", from), Accepted: now, Origin: "smtp", Client: "127.0.0.1",
			},
		}
		if r.Float64() < s.due {
			sub.Message.NotBefore = now.Add(2*time.Hour + time.Duration(r.Int64N(int64(20*time.Hour))))
		}
		head := fmt.Sprintf("From: news@sender.example\r\nMessage-ID: <%d@sender.example>\r\nSubject: Waiting\r\n\r\n", from)
		text := spoolBody - len(head)
		sub.Body = append([]byte(head), filler[:text-text%len(fillerLine)]...)
		for i := range n {
			sub.Recipients = append(sub.Recipients, message.Recipient{
				Address: message.MustAddress(fmt.Sprintf("user%d@d%d.example", from+i, (from+i)%s.domains)),
			})
		}
		subs = append(subs, sub)
	}
	for at := first; at < first+n; {
		if k := at / spoolShared; k%spoolOwn == 0 {
			add(at, 1)
			at++
			continue
		}
		k := min(spoolShared-at%spoolShared, first+n-at)
		add(at, k)
		at += k
	}
	return subs
}

const fillerLine = "The quick brown fox jumps over the lazy dog, and back.\r\n"

// filler is text of the kind that compresses as mail does.
var filler = bytes.Repeat([]byte(fillerLine), 64)

// diskUsage is what the files under dir take up.
func diskUsage(t *testing.T, dir string) (octets int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			octets += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return octets
}
