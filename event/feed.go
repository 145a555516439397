package event

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

const (
	firstBackoff = time.Second
	maxBackoff   = time.Minute
	maxAskedWait = 24 * time.Hour
)

// feed carries the journal to one sink.
type feed struct {
	r    *Runner
	sink Sink
	name string
	o    Options

	mu      sync.Mutex // protects everything below
	cursor  uint64
	moved   bool // cursor was set from outside; what is in hand is void
	state   State
	tries   int
	err     error
	oldest  time.Time          // of the events in hand; zero when none is
	cancel  context.CancelFunc // ends the present round
	removed bool
	done    chan struct{} // closed when run has returned; nil before the first
}

// load takes up the sink's cursor, or gives it one.
func (f *feed) load() error {
	j := f.r.j
	after, ok, err := j.Cursor(f.name)
	if err != nil {
		return err
	}
	horizon := j.Horizon()
	switch {
	case !ok:
		if !f.o.FromStart {
			after = horizon
		}
		if err := j.setCursor(f.name, after, true); err != nil {
			return err
		}
	case after > horizon:
		// The store was put back from an older copy. Nothing up to the horizon
		// is news to this sink, everything after it is.
		f.r.c.Logger.Warn("sink cursor lies beyond the journal", "sink", f.name, "cursor", after, "horizon", horizon)
		after = horizon
	}
	f.cursor = after
	return nil
}

// interrupt ends the present round. REQUIRES: mu is held.
func (f *feed) interrupt() {
	if f.cancel != nil {
		f.cancel()
	}
}

// run feeds the sink, round after round, until ctx ends or it is removed. A
// round ends when somebody moves the cursor or resumes the sink.
func (f *feed) run(ctx context.Context) {
	var b batch
	for {
		round, cancel := context.WithCancel(ctx)
		f.mu.Lock()
		stop := f.removed || ctx.Err() != nil
		f.cancel = cancel
		after, stopped, moved := f.cursor, f.state >= Parked, f.moved
		f.moved = false
		f.mu.Unlock()
		if stop {
			cancel()
			return
		}
		if moved {
			f.keep(after, true)
		}
		if stopped {
			<-round.Done()
		} else {
			f.round(round, after, &b)
		}
		cancel()
	}
}

// round feeds the sink from place after on until ctx ends or it stops.
func (f *feed) round(ctx context.Context, after uint64, b *batch) {
	for backoff := firstBackoff; ; {
		if f.r.j.Wait(ctx, after) != nil {
			return
		}
		next, err := f.gather(ctx, b, after)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			f.r.c.Logger.Error("journal not readable for sink", "sink", f.name, "err", err)
			if sleep(ctx, backoff) != nil {
				return
			}
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		backoff = firstBackoff
		if recs := b.records(); len(recs) > 0 && !f.offer(ctx, recs) {
			return
		}
		if !f.advance(next) {
			return
		}
		after = next
	}
}

// gather fills b with the events behind place after: those there are, and those
// that come within MaxWait, if there is room.
func (f *feed) gather(ctx context.Context, b *batch, after uint64) (next uint64, err error) {
	b.reset()
	j := f.r.j
	wait := f.o.MaxWait
	// Ten looks instead of waking for every commit: at thousands of commits a
	// second the wakings would cost more than the reading.
	pause := wait / 10
	for next = after; ; {
		from := next
		if next, err = j.fill(b, from, maxScan, f.o.Wants); err != nil {
			return next, err
		}
		if len(b.recs) > 0 {
			f.inHand(b.recs[0], b.buf[:b.ends[0]])
		}
		if b.full() || next < j.Horizon() || wait <= 0 {
			return next, nil
		}
		if err := sleep(ctx, pause); err != nil {
			return next, err
		}
		wait -= pause
	}
}

func (f *feed) inHand(r Record, json []byte) {
	t := f.r.c.Now()
	if id, ok := recordID(json); ok {
		t = id.Time()
	}
	f.mu.Lock()
	f.oldest = t
	f.mu.Unlock()
}

// offer gives the batch to the sink until it takes it. It returns false when
// the round is over: ctx ended, or the sink is parked or disabled.
func (f *feed) offer(ctx context.Context, recs []Record) bool {
	kind := string(f.o.Kind)
	for try := 0; ; try++ {
		err := f.sink.Deliver(ctx, recs)
		if err == nil {
			f.r.metrics.delivered.WithLabelValues(kind).Add(float64(len(recs)))
			f.enter(ctx, Running, 0, nil)
			return true
		}
		if ctx.Err() != nil {
			return false // our own doing, not the sink's
		}
		f.r.metrics.failed.WithLabelValues(kind).Inc()
		wait, again := f.wait(try)
		var refusal *Refusal
		switch errors.As(err, &refusal); {
		case refusal != nil && refusal.Disable:
			f.enter(ctx, Disabled, try+1, err)
			return false
		case !again:
			f.enter(ctx, Parked, try+1, err)
			return false
		case refusal != nil:
			wait = max(wait, min(refusal.After, maxAskedWait))
		}
		f.enter(ctx, Retrying, try+1, err)
		if sleep(ctx, wait) != nil {
			return false
		}
	}
}

// wait is how long to wait after failed try number try, from 0, and whether to
// try again at all.
func (f *feed) wait(try int) (time.Duration, bool) {
	var d time.Duration
	switch {
	case len(f.o.Retry) == 0:
		d = maxBackoff
		if try < 6 {
			d = min(firstBackoff<<try, maxBackoff)
		}
	case try < len(f.o.Retry):
		d = f.o.Retry[try]
	default:
		return 0, false
	}
	if d > 0 {
		d += rand.N(d/10 + 1) // endpoints that died together need not wake together
	}
	return d, true
}

// enter notes how the sink is doing, and tells whoever asked to know.
func (f *feed) enter(ctx context.Context, s State, tries int, err error) {
	f.mu.Lock()
	if ctx.Err() != nil { // somebody has just resumed or moved the sink: that counts
		f.mu.Unlock()
		return
	}
	changed := f.state != s
	f.state, f.tries, f.err = s, tries, err
	f.mu.Unlock()
	if !changed {
		return
	}
	log := f.r.c.Logger.With("sink", f.name, "state", s.String(), "attempt", tries)
	switch s {
	case Running:
		log.Info("sink state")
	case Retrying:
		log.Warn("sink state", "err", err)
	default:
		log.Error("sink state", "err", err)
	}
	if f.r.c.OnState != nil {
		f.r.c.OnState(f.status())
	}
}

// advance moves the cursor to next, after the sink has taken what lay before
// it. It returns false when the cursor was moved from outside meanwhile.
func (f *feed) advance(next uint64) bool {
	f.mu.Lock()
	moved := f.moved
	if !moved {
		f.cursor = next
	}
	f.oldest = time.Time{}
	f.mu.Unlock()
	if moved {
		return false
	}
	f.keep(next, false)
	return true
}

func (f *feed) keep(after uint64, sync bool) {
	if err := f.r.j.setCursor(f.name, after, sync); err != nil {
		// The store is dead and the process about to end; events will come
		// again.
		f.r.c.Logger.Error("sink cursor not kept", "sink", f.name, "err", err)
	}
}

func (f *feed) status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Status{Name: f.name, Kind: f.o.Kind, State: f.state, Cursor: f.cursor, Tries: f.tries, Err: f.err}
	if !f.oldest.IsZero() {
		s.Lag = max(0, f.r.c.Now().Sub(f.oldest))
	}
	return s
}

// recordID reads the id that every event of ours begins with.
func recordID(json []byte) (message.ID, bool) {
	const prefix = `{"id":"`
	if len(json) < len(prefix)+26 || string(json[:len(prefix)]) != prefix {
		return message.ID{}, false
	}
	id, err := message.ParseID(string(json[len(prefix) : len(prefix)+26]))
	return id, err == nil
}

// sleep waits for d or until ctx ends, whose error it returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
