package event

import (
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
)

// BenchmarkAppend measures the journal's share of a settle: numbering, JSON
// and two keys in a batch, without the commit.
func BenchmarkAppend(b *testing.B) {
	db := openSpool(b, vfs.NewMem())
	defer closeDB(b, db)
	j := NewJournal(db, Config{})
	e := full()
	batch := db.NewBatch(0)
	b.ReportAllocs()
	for i := range b.N {
		if i%100 == 0 {
			batch.Close()
			batch = db.NewBatch(256 << 10)
		}
		j.Append(batch, e)
	}
	batch.Close()
}

func BenchmarkParse(b *testing.B) {
	in := full().AppendJSON(nil)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTenantOf(b *testing.B) {
	in := full().AppendJSON(nil)
	b.ReportAllocs()
	for b.Loop() {
		if tenantOf(in) != "acme" {
			b.Fatal("wrong tenant")
		}
	}
}

// BenchmarkRead measures how fast a sink can read the journal, per event.
func BenchmarkRead(b *testing.B) {
	db := openSpool(b, vfs.NewMem())
	defer closeDB(b, db)
	j := NewJournal(db, Config{})
	for range 20 {
		evs := make([]*message.Event, 500)
		for i := range evs {
			evs[i] = full()
		}
		commit(b, j, db, evs...)
	}
	var bt batch
	b.ReportAllocs()
	b.ResetTimer()
	after := uint64(0)
	for n := 0; n < b.N; {
		bt.reset()
		next, err := j.fill(&bt, after, maxScan, nil)
		if err != nil {
			b.Fatal(err)
		}
		n += len(bt.records())
		if after = next; after >= j.Horizon() {
			after = 0
		}
	}
}

// BenchmarkJSONLines measures the file sink, synced every 500 events.
func BenchmarkJSONLines(b *testing.B) {
	s, err := NewJSONLines("file", FileConfig{Path: b.TempDir() + "/events.jsonl"})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	recs := make([]Record, MaxBatch)
	for i := range recs {
		recs[i] = record(full())
	}
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += len(recs) {
		if err := s.Deliver(context.Background(), recs); err != nil {
			b.Fatal(err)
		}
	}
}
