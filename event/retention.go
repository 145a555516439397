package event

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/tradewind-mta/tradewind/store"
)

// Retention says how much of the journal stays.
//
// Events go once they are older than MaxAge, or once more than MaxBytes came
// after them, but not while a durable sink has yet to read them: a webhook that
// was down over a long weekend still gets everything. That courtesy ends at
// HardAge and HardBytes, where events go unread rather than fill the disk; it
// is logged as an error and counted. Both limits are checked every few
// seconds, to a grain of about one part in two hundred.
type Retention struct {
	MaxAge   time.Duration // 0 means 7 days
	MaxBytes int64         // 0 means no limit
	// HardAge is 0 for three times MaxAge, at most 29 days: what cannot be
	// erased person by person must be gone within thirty.
	HardAge time.Duration
	// HardBytes is 0 for twice MaxBytes.
	HardBytes int64
}

const (
	day         = 24 * time.Hour
	longestHold = 29 * day
	// historyGrace is how much older than the journal's oldest event a message is
	// before what the index says of it is looked through: few have events so late.
	historyGrace = 7 * day
	indexGrain   = time.Hour
	indexRun     = 32      // dead entries in a row that are worth a deletion of a span
	indexBatch   = 1 << 20 // bytes

	sweepEvery   = 10 * time.Second
	markBytes    = 64 << 20 // at most this much is read to find the size after a crash
	markFraction = 200
)

func (r Retention) withDefaults() Retention {
	if r.MaxAge <= 0 {
		r.MaxAge = 7 * day
	}
	if r.HardAge <= 0 {
		r.HardAge = 3 * r.MaxAge
	}
	r.HardAge = min(r.HardAge, longestHold)
	r.MaxAge = min(r.MaxAge, r.HardAge)
	if r.HardBytes <= 0 {
		r.HardBytes = 2 * r.MaxBytes
	}
	return r
}

// mark notes when the journal reached a place, and how many bytes had gone
// into it by then. Marks let retention find where to cut without reading
// events.
type mark struct {
	seq   uint64
	at    time.Time
	bytes uint64
}

const markVersion = 1

func (m *mark) value() []byte {
	b := binary.BigEndian.AppendUint64([]byte{markVersion}, uint64(m.at.UnixMilli()))
	return binary.BigEndian.AppendUint64(b, m.bytes)
}

func parseMark(key, value []byte) (m mark, err error) {
	if m.seq, err = store.ParseMarkKey(key); err != nil {
		return m, err
	}
	if len(value) != 17 || value[0] != markVersion {
		return m, errors.New("event: malformed mark")
	}
	m.at = time.UnixMilli(int64(binary.BigEndian.Uint64(value[1:])))
	m.bytes = binary.BigEndian.Uint64(value[9:])
	return m, nil
}

// sweeper applies the retention of one journal.
type sweeper struct {
	j       *Journal
	slowest func() (uint64, bool)
	before  uint64    // bytes in the journal's life before this process
	last    mark      // newest mark
	cut     uint64    // everything up to here is deleted
	index   time.Time // the index of messages accepted before has been looked through
}

// Run applies the retention until ctx ends, and returns nil then. slowest
// tells the place of the slowest durable sink (Runner.Slowest); nil or false
// mean that nobody needs waiting for.
func (j *Journal) Run(ctx context.Context, slowest func() (uint64, bool)) error {
	s := &sweeper{j: j, slowest: slowest}
	if err := s.load(); err != nil {
		return err
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.sweep(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// load finds the newest mark and measures what came between it and the start
// of this process.
func (s *sweeper) load() error {
	j := s.j
	start := j.start
	err := j.db.Each(store.MarkSpan(), func(k, v []byte) (bool, error) {
		m, err := parseMark(k, v)
		if err != nil {
			return false, err
		}
		s.last = m
		return true, nil
	})
	if err != nil {
		return err
	}
	s.before = s.last.bytes
	if s.last.seq >= start {
		return nil
	}
	return j.db.Each(store.JournalSpan(s.last.seq, start), func(k, v []byte) (bool, error) {
		s.before += uint64(len(k) + len(v))
		return true, nil
	})
}

// sweep marks the present place if it is time to, and deletes what may go.
func (s *sweeper) sweep() error {
	j, k := s.j, &s.j.keep
	now := mark{seq: j.Horizon(), at: j.now(), bytes: s.before + j.appended.Load()}
	b := j.db.NewBatch(0)
	defer b.Close()
	if s.markDue(now) {
		b.Set(store.MarkKey(nil, now.seq), now.value())
		s.last = now
	}
	cut, oldest, err := s.findCut(now)
	if err != nil {
		return err
	}
	j.metrics.bytes.Set(float64(now.bytes - oldest))
	if cut.seq > s.cut {
		b.DeleteSpan(store.JournalSpan(0, cut.seq))
		b.DeleteSpan(store.MarksBefore(cut.seq)) // the mark at the cut says what is gone
		s.cut = cut.seq
	}
	gone := cut.at // the journal holds nothing older
	if cut.seq == s.last.seq {
		gone = now.at.Add(-k.MaxAge) // nor anything newer; the index ages on
	}
	if err := b.CommitLazy(); err != nil { // what a crash undoes is done again
		return err
	}
	if to := gone.Add(-historyGrace); to.Sub(s.index) >= indexGrain && to.After(time.Unix(0, 0)) {
		s.index = to
		return s.sweepIndex(to)
	}
	return nil
}

// sweepIndex deletes the entries of the index whose events are gone, among those
// of messages accepted before to. Nearly all are; the others are of mail that was
// scheduled or tried for long.
func (s *sweeper) sweepIndex(to time.Time) (err error) {
	db := s.j.db
	b := db.NewBatch(0)
	defer func() { b.Close() }()
	var dead [indexRun][]byte // the first of a run
	var last []byte
	n := 0
	end := func() {
		if n > indexRun {
			b.DeleteSpan(store.Span{Start: dead[0], End: append(last, 0)})
		} else {
			for _, k := range dead[:n] {
				b.Delete(k)
			}
		}
		n = 0
	}
	err = db.Each(store.HistoryBefore(to), func(k, _ []byte) (bool, error) {
		_, _, seq, err := store.ParseHistoryKey(k)
		switch {
		case err == nil && seq > s.cut:
			end()
		case n < indexRun:
			dead[n] = append(dead[n][:0], k...)
			n++
		default:
			last = append(last[:0], k...)
			n++
		}
		if b.Len() < indexBatch {
			return true, nil
		}
		if err := b.CommitLazy(); err != nil {
			return false, err
		}
		b.Close()
		b = db.NewBatch(0)
		return true, nil
	})
	if err != nil {
		return err
	}
	end()
	return b.CommitLazy()
}

func (s *sweeper) markDue(now mark) bool {
	k := &s.j.keep
	if now.seq <= s.last.seq || now.bytes == s.last.bytes {
		return false
	}
	every := uint64(markBytes)
	if k.MaxBytes > 0 {
		every = min(every, uint64(k.MaxBytes)/markFraction+1)
	}
	return now.bytes-s.last.bytes >= every || now.at.Sub(s.last.at) >= k.MaxAge/markFraction
}

// findCut returns the mark up to which everything may go, and how many bytes
// had been journalled by the oldest mark that stays.
func (s *sweeper) findCut(now mark) (cut mark, oldest uint64, err error) {
	k := &s.j.keep
	beyond := func(m mark, age time.Duration, bytes int64) bool {
		return now.at.Sub(m.at) >= age || bytes > 0 && now.bytes-m.bytes >= uint64(bytes)
	}
	slowest, held := uint64(0), false
	if s.slowest != nil {
		slowest, held = s.slowest()
	}
	first := true
	err = s.j.db.Each(store.MarkSpan(), func(key, v []byte) (bool, error) {
		m, err := parseMark(key, v)
		if err != nil {
			return false, err
		}
		if first {
			oldest, first = m.bytes, false
			if m.seq > s.cut {
				oldest = 0 // nothing was ever cut
			}
		}
		unread := held && slowest < m.seq
		soft := beyond(m, k.MaxAge, k.MaxBytes)
		if !soft || unread && !beyond(m, k.HardAge, k.HardBytes) {
			return false, nil
		}
		if unread && m.seq > s.cut {
			s.j.metrics.unread.Inc()
			s.j.log.Error("journal cut before a sink has read it: hard retention limit reached", "cut", m.seq, "slowest", slowest)
		}
		cut, oldest = m, m.bytes
		return true, nil
	})
	return cut, oldest, err
}
