package event

import (
	"errors"

	"github.com/tradewind-mta/tradewind/message"
)

// maxScan bounds how many events one fill looks at in search of wanted ones.
const maxScan = 10_000

// batch gathers copies of records in one buffer, which it reuses.
type batch struct {
	buf  []byte
	ends []int // end of record i in buf
	recs []Record
}

func (b *batch) reset() { b.buf, b.ends, b.recs = b.buf[:0], b.ends[:0], b.recs[:0] }

func (b *batch) full() bool { return len(b.recs) >= MaxBatch || len(b.buf) >= MaxBatchSize }

func (b *batch) add(seq uint64, typ message.EventType, json []byte) {
	b.buf = append(b.buf, json...)
	b.ends = append(b.ends, len(b.buf))
	b.recs = append(b.recs, Record{Seq: seq, Type: typ})
}

// records returns the records gathered, good until the next reset or add.
func (b *batch) records() []Record {
	start := 0
	for i, end := range b.ends {
		b.recs[i].JSON = b.buf[start:end:end]
		start = end
	}
	return b.recs
}

// fill adds the events behind place after that wants accepts (nil: all) until
// the batch is full, limit events have been looked at, or the horizon is
// reached. It returns the place to go on from.
func (j *Journal) fill(b *batch, after uint64, limit int, wants func(Record) bool) (next uint64, err error) {
	next, err = j.Read(after, limit, func(seq uint64, typ message.EventType, json []byte) error {
		if wants != nil && !wants(Record{seq, typ, json}) {
			return nil
		}
		if b.full() || len(b.recs) > 0 && len(b.buf)+len(json) > MaxBatchSize {
			return errBatchFull
		}
		b.add(seq, typ, json)
		return nil
	})
	if errors.Is(err, errBatchFull) {
		err = nil
	}
	return next, err
}

var errBatchFull = errors.New("event: batch is full")
