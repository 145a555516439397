package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// State is how a sink is doing.
type State uint8

// States.
const (
	Running  State = iota
	Retrying       // the last batch was refused and will be offered again
	// Parked means that the retry schedule is used up. The sink keeps its place
	// and waits for Resume or a restart; somebody should be told.
	Parked
	// Disabled means that the endpoint asked never to be called again.
	Disabled
)

func (s State) String() string {
	return [...]string{"running", "retrying", "parked", "disabled"}[s&3]
}

// Refusal is how a sink says more than "not now". Any other error of Deliver
// means: again, after the next wait of the schedule.
type Refusal struct {
	Err error
	// After is how long the sink asks to be left alone; the schedule's wait
	// holds if it is longer. Bounded to a day.
	After time.Duration
	// Disable stops the sink for good.
	Disable bool
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }

// Options say how a sink is to be fed.
type Options struct {
	Kind Kind // for metrics; empty means KindInternal
	// Wants picks the events the sink gets; nil means all. It sees the event
	// in the store's memory and may not keep the JSON.
	Wants func(Record) bool
	// Retry holds the waits between tries of a refused batch; after the last
	// the sink is parked. Each is stretched by up to a tenth at random. Empty
	// means from one second, doubling to one minute, for ever.
	Retry []time.Duration
	// MaxWait is how long a batch may gather; 0 means MaxBatchWait, negative
	// not at all.
	MaxWait time.Duration
	// FromStart begins a sink without a cursor at the oldest event in the
	// journal instead of at the next to come.
	FromStart bool
}

// Status describes one sink.
type Status struct {
	Name   string
	Kind   Kind
	State  State
	Cursor uint64        // it has everything up to this place
	Tries  int           // of the batch in hand that failed
	Err    error         // of the last of them
	Lag    time.Duration // age of the oldest event in hand; 0 when none is
}

// RunnerConfig is what a Runner needs besides its journal.
type RunnerConfig struct {
	Now        func() time.Time      // nil means time.Now
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil means none
	// OnState is told when a sink changes its state, by the goroutine that
	// feeds the sink: it holds up that sink and no other. May be nil.
	OnState func(Status)
}

// Runner feeds sinks from the journal, each in a goroutine of its own with its
// own cursor, pace and retries.
//
// Lock order: Runner.mu before feed.mu.
type Runner struct {
	j       *Journal
	c       RunnerConfig
	metrics sinkMetrics

	wg sync.WaitGroup

	mu    sync.Mutex // protects everything below
	feeds map[string]*feed
	ctx   context.Context // of Run, while it runs
}

// NewRunner returns a Runner without sinks.
func NewRunner(j *Journal, c RunnerConfig) *Runner {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Runner{j: j, c: c, feeds: map[string]*feed{}}
	r.metrics = newSinkMetrics(c.Registerer, r.lag, r.stopped)
	return r
}

// Errors of the Runner.
var (
	ErrNoSink   = errors.New("event: no such sink")
	ErrSinkName = errors.New("event: sink name is empty, taken, or longer than 200 bytes")
)

// Add gives the runner a sink, before or while it runs. A sink with a cursor
// goes on from there. The cursor of a new one is durable when Add returns, so
// that a crash right after costs it nothing.
func (r *Runner) Add(s Sink, o Options) error {
	name := s.Name()
	if name == "" || len(name) > 200 {
		return fmt.Errorf("%w: %q", ErrSinkName, name)
	}
	if o.Kind == "" {
		o.Kind = KindInternal
	}
	if o.MaxWait == 0 {
		o.MaxWait = MaxBatchWait
	}
	f := &feed{r: r, sink: s, name: name, o: o}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.feeds[name] != nil {
		return fmt.Errorf("%w: %q", ErrSinkName, name)
	}
	// Under the lock in spite of the I/O: sinks come and go a few times a day,
	// and Slowest must not miss the cursor of one that is being added.
	if err := f.load(); err != nil {
		return err
	}
	r.feeds[name] = f
	if r.ctx != nil {
		r.start(f)
	}
	return nil
}

// start begins to feed f. REQUIRES: mu is held and Run is running.
func (r *Runner) start(f *feed) {
	ctx, done := r.ctx, make(chan struct{})
	f.mu.Lock()
	f.done = done
	f.mu.Unlock()
	r.wg.Go(func() {
		defer close(done)
		f.run(ctx)
	})
}

// Run feeds the sinks until ctx ends; it returns nil when all have stopped.
func (r *Runner) Run(ctx context.Context) error {
	r.mu.Lock()
	if r.ctx != nil {
		r.mu.Unlock()
		return errors.New("event: runner is already running")
	}
	r.ctx = ctx
	for _, f := range r.feeds {
		r.start(f)
	}
	r.mu.Unlock()
	<-ctx.Done()
	r.mu.Lock()
	r.ctx = nil // whatever is added now waits for the next Run
	r.mu.Unlock()
	r.wg.Wait()
	return nil
}

// Remove stops a sink, waits for its delivery to end, and forgets its cursor.
func (r *Runner) Remove(name string) error {
	r.mu.Lock()
	f := r.feeds[name]
	delete(r.feeds, name)
	r.mu.Unlock()
	if f == nil {
		return fmt.Errorf("%w: %q", ErrNoSink, name)
	}
	f.mu.Lock()
	f.removed = true
	f.interrupt()
	done := f.done
	f.mu.Unlock()
	if done != nil {
		<-done
	}
	return r.j.deleteCursor(name)
}

// Resume makes a parked, disabled or waiting sink try again at once, with a
// fresh schedule.
func (r *Runner) Resume(name string) error { return r.poke(name, nil) }

// Rewind sends a sink back, or forward, to place after: it gets everything
// behind it (again). Events that retention has taken do not come back. The new
// place becomes durable when the runner, which has to be running for it, goes
// on from there.
func (r *Runner) Rewind(name string, after uint64) error { return r.poke(name, &after) }

func (r *Runner) poke(name string, to *uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.feeds[name]
	if f == nil {
		return fmt.Errorf("%w: %q", ErrNoSink, name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if to != nil {
		f.cursor = min(*to, r.j.Horizon())
		f.moved = true
	}
	f.state, f.tries, f.err = Running, 0, nil
	f.interrupt()
	return nil
}

// Status lists the sinks by name.
func (r *Runner) Status() []Status {
	var out []Status
	for _, f := range r.all() {
		out = append(out, f.status())
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Slowest is the place of the sink that is furthest behind, for Journal.Run;
// false when there is none. A disabled sink does not count, a parked one does.
// Add every sink before the journal's retention starts.
func (r *Runner) Slowest() (after uint64, ok bool) {
	for _, f := range r.all() {
		s := f.status()
		if s.State != Disabled && (!ok || s.Cursor < after) {
			after, ok = s.Cursor, true
		}
	}
	return after, ok
}

func (r *Runner) all() []*feed {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*feed, 0, len(r.feeds))
	for _, f := range r.feeds {
		out = append(out, f)
	}
	return out
}

func (r *Runner) lag(k Kind) float64 {
	worst := time.Duration(0)
	for _, f := range r.all() {
		if s := f.status(); s.Kind == k && s.State != Disabled {
			worst = max(worst, s.Lag)
		}
	}
	return worst.Seconds()
}

func (r *Runner) stopped(k Kind) (n float64) {
	for _, f := range r.all() {
		if s := f.status(); s.Kind == k && s.State >= Parked {
			n++
		}
	}
	return n
}
