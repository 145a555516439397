package event

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

func openSpool(t testing.TB, fs vfs.FS) *store.DB {
	t.Helper()
	db, err := store.Open("data", store.Spool, store.Options{FS: fs, CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func closeDB(t testing.TB, db *store.DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// epoch is where synctest's clock begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func messageID(n byte) message.ID {
	id := message.EventID(epoch, 0)
	id[15] = n
	return id
}

// commit journals events in one synced batch and returns their places.
func commit(t testing.TB, j *Journal, db *store.DB, evs ...*message.Event) []uint64 {
	t.Helper()
	b := db.NewBatch(0)
	defer b.Close()
	j.Append(b, evs...)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	var seqs []uint64
	for _, e := range evs {
		seqs = append(seqs, e.Seq)
	}
	return seqs
}

func delivered(n byte) *message.Event {
	return &message.Event{Type: message.EventDelivered, MessageID: messageID(n), Recipient: fmt.Sprintf("user%d@example.com", n), RecipientSeq: 2, Terminal: true}
}

// full has every field set.
func full() *message.Event {
	return &message.Event{
		Seq: 42, Type: message.EventBounced, Time: epoch.Add(123456 * time.Microsecond),
		MessageID: messageID(7), RFCMessageID: "x@example.com", Sender: "news@example.com",
		Recipient: `"odd, one"@example.net`, N: 3, RecipientSeq: 5, Terminal: true, Attempt: 4,
		NextAttempt: epoch.Add(time.Hour), Tenant: "acme", Campaign: "spring \"sale\"", Class: message.Transactional,
		Tags: []string{"a", "b<c>"}, Metadata: json.RawMessage(`{"tenant":"other", "n": [1,{"x":"}"}]}`), Size: 10240,
		Reply: &message.Reply{Code: 550, Enhanced: message.Enhanced{5, 1, 1}, Text: "no such user\nreally \x1b[1m", Stage: message.StageRcpt,
			RemoteHost: "mx.example.net", RemoteIP: netip.MustParseAddr("192.0.2.25"), TLS: "TLSv1.3 TLS_AES_128_GCM_SHA256", Local: true},
		Category: message.BadMailbox, Suppressing: true, Machine: &message.Machine{IsBot: true, Reason: "prefetch"},
		Egress: message.Egress{Source: "ip1", Pool: "bulk", Provider: "example", Site: "mx.example.net"},
		Origin: "dsn", Detail: "=cmd", Duration: 1500 * time.Millisecond,
	}
}

var errDown = errors.New("sink is down")

// collector is a sink in memory that can be told to fail.
type collector struct {
	name string

	mu      sync.Mutex // protects everything below
	down    error
	batches [][]uint64
	tries   []time.Time
	got     chan struct{} // cap 1; signalled after every batch taken
}

func newCollector(name string) *collector {
	return &collector{name: name, got: make(chan struct{}, 1)}
}

func (c *collector) Name() string { return c.name }

func (c *collector) Deliver(_ context.Context, recs []Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tries = append(c.tries, time.Now())
	if c.down != nil {
		return c.down
	}
	var seqs []uint64
	for _, r := range recs {
		seqs = append(seqs, r.Seq)
	}
	c.batches = append(c.batches, seqs)
	select {
	case c.got <- struct{}{}:
	default:
	}
	return nil
}

func (c *collector) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = err
}

func (c *collector) seqs() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []uint64
	for _, b := range c.batches {
		out = append(out, b...)
	}
	return out
}

func (c *collector) tried() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]time.Time(nil), c.tries...)
}
