// Package queue keeps accepted mail on disk and hands out what may be sent,
// queue by queue, oldest first.
//
// What it promises: Accept returns only after the commit is on stable storage;
// a queue change and the event that explains it are one commit; every item
// lies under exactly one of two keys, due (it waits for its time) or ready (it
// may be sent), so start-up and memory do not grow with the backlog; expiry
// holds wherever an item lies.
//
// What it leaves to others: which queue goes next, how fast, and what the
// outcome of an attempt means.
//
// # How a ready item reaches memory
//
// Each active Queue has a window of items in memory and a cursor into its
// ready keys. Everything at or before the cursor has been in the window;
// everything behind it lies on disk only. A commit callback that finds the
// queue complete (nothing left on disk) and room in the window appends to it;
// otherwise the item stays on disk and the next refill finds it. Refills read
// only up to the sequence's horizon, and callbacks run before the horizon
// passes their items, so nothing is seen twice or missed.
//
// # Locks
//
// In this order: Manager.moves, a message stripe, Manager.mu, Queue.mu. None is
// held across a sync; moves and the stripes are held across reads.
package queue

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
)

// Config is the [queue] table.
type Config struct {
	// Retry is the wait after each failed attempt; the last one repeats.
	Retry []time.Duration `toml:"retry"`
	// Jitter spreads retries by up to this share of the wait, 0 to 0.5.
	Jitter float64 `toml:"jitter"`
	// MaxAge is how long delivery is tried, from acceptance or from the
	// scheduled time.
	MaxAge time.Duration `toml:"max_age"`
	// MaxSchedule is how far ahead a message may be scheduled.
	MaxSchedule time.Duration `toml:"max_schedule"`
	// Window is how many ready items of one queue are kept in memory.
	Window int `toml:"window"`
	// MaxItems bounds the ready items in memory over all queues.
	MaxItems int `toml:"max_items"`
	// MaxActive bounds the queues in memory; the others wait on disk.
	MaxActive int `toml:"max_active"`
	// BodyCache bounds the bodies kept in memory between acceptance and first
	// attempt, in bytes.
	BodyCache int64 `toml:"body_cache"`
	// IdempotencyTTL is how long the answer to an Idempotency-Key is kept.
	IdempotencyTTL time.Duration `toml:"idempotency_ttl"`
}

// DefaultConfig holds the defaults of the reference file.
func DefaultConfig() Config {
	return Config{
		Retry:          []time.Duration{5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour},
		Jitter:         0.1,
		MaxAge:         72 * time.Hour,
		MaxSchedule:    30 * 24 * time.Hour,
		Window:         256,
		MaxItems:       100_000,
		MaxActive:      20_000,
		BodyCache:      128 << 20,
		IdempotencyTTL: 24 * time.Hour,
	}
}

// Validate returns every problem, each naming its key.
func (c *Config) Validate() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("queue."+format, args...)) }
	if len(c.Retry) == 0 {
		bad("retry: needs at least one interval")
	}
	for i, d := range c.Retry {
		if d < time.Second {
			bad("retry[%d]: %v is shorter than 1s", i, d)
		}
	}
	if c.Jitter < 0 || c.Jitter > 0.5 {
		bad("jitter: %v is not between 0 and 0.5", c.Jitter)
	}
	if c.MaxAge < time.Minute {
		bad("max_age: %v is shorter than 1m", c.MaxAge)
	}
	if c.MaxSchedule < 0 {
		bad("max_schedule: %v is negative", c.MaxSchedule)
	}
	if c.Window < 1 {
		bad("window: %d is less than 1", c.Window)
	}
	if c.MaxItems < c.Window {
		bad("max_items: %d is less than window", c.MaxItems)
	}
	if c.MaxActive < 1 {
		bad("max_active: %d is less than 1", c.MaxActive)
	}
	if c.BodyCache < 0 {
		bad("body_cache: %d is negative", c.BodyCache)
	}
	if c.IdempotencyTTL < time.Minute {
		bad("idempotency_ttl: %v is shorter than 1m", c.IdempotencyTTL)
	}
	return errs
}

// Recorder writes events into a batch: the journal.
type Recorder interface {
	// Append adds the events to b; a failure shows when b is committed.
	Append(b *store.Batch, events ...*message.Event)
}

// Deps is what a Manager works with.
type Deps struct {
	DB       *store.DB
	Recorder Recorder
	Now      func() time.Time
	Logger   *slog.Logger
	IDs      *message.IDSource
	// Ready is called, without locks, when a queue has items in its window
	// after it had none. It must not block.
	Ready func(*Queue)
	// Suspended reports queues that are to stay on disk until Unpark; nil means
	// none. It must be quick, and is called without locks.
	Suspended func(*store.QueueKey) bool
	// Expired builds the final event, and a DSN where one is due, for an item
	// whose time has run out while it lay in the queue.
	Expired func(*Item, *message.Message) Settlement
	// Recall finds the last event about recipient n of a message, or nil, for a
	// recipient whose record is damaged. It may be nil.
	Recall func(id message.ID, n uint32) *message.Event
}

// Manager is the queue of one engine.
type Manager struct {
	cfg  atomic.Pointer[Config]
	deps Deps
	db   *store.DB
	seed maphash.Seed

	// moves orders everything that moves items which nobody has leased:
	// promotion, expiry, cancelling.
	moves  sync.Mutex
	stripe [stripes]stripe

	mu     sync.RWMutex // protects everything below
	queues map[store.QueueKey]*Queue
	// left counts the times an item was left on disk without its queue being
	// in memory; seen is its value at the start of the last complete search.
	// While they are equal, a queue that is not in memory is empty on disk.
	left, seen uint64
	// parked is set when queues stay on disk because they are suspended: then a
	// queue that is not in memory may have items there all the same.
	parked  bool
	shares  shares
	gaveWay time.Time // when held up queues last gave way

	search  chan struct{}                     // wakes the search for queues on disk
	crowded chan struct{}                     // says that queues in memory should make room
	places  map[store.QueueKey]store.QueueKey // where it stopped in each stream; the search's own
	due     chan time.Time
	early   early
	refills refills
	active  atomic.Int64 // len(queues)
	wg      sync.WaitGroup
	// ctx ends refills; stop ends it. They are there from the start: mail may be
	// accepted before Run has begun.
	ctx  context.Context
	stop context.CancelFunc

	shared  shared
	reads   singleflight.Group
	counts  counts
	dropped dropped

	items   atomic.Int64 // ready items in windows
	bodies  atomic.Int64 // bytes of cached bodies
	damaged atomic.Int64 // records put into quarantine
}

// New returns a manager over an open spool. Nothing is handed out before Run.
func New(cfg Config, deps Deps) (*Manager, error) {
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{
		deps:    deps,
		db:      deps.DB,
		seed:    maphash.MakeSeed(),
		queues:  make(map[store.QueueKey]*Queue),
		left:    1,
		search:  make(chan struct{}, 1),
		places:  make(map[store.QueueKey]store.QueueKey),
		due:     make(chan time.Time, 1),
		crowded: make(chan struct{}, 1),
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.cfg.Store(&cfg)
	// Both before anything can be accepted, which may be before Run: what comes
	// later is counted as it comes, and is not unfinished.
	if err := m.dropPending(); err != nil {
		return nil, err
	}
	if err := m.counts.open(m.db); err != nil {
		return nil, err
	}
	return m, nil
}

// Close ends a manager that was never run. Run closes its own.
func (m *Manager) Close() error {
	m.stop()
	m.wg.Wait()
	return m.counts.close()
}

// Err is nil while the storage can be trusted, and wraps store.ErrDead after
// that.
func (m *Manager) Err() error { return m.db.Err() }

// Config returns the settings in force; SetConfig replaces them.
func (m *Manager) Config() *Config { return m.cfg.Load() }

// SetConfig replaces the settings; items keep the expiry they were given.
func (m *Manager) SetConfig(c Config) { m.cfg.Store(&c) }

// Run moves items from due to ready, finds queues on disk, expires what is too
// old, until ctx ends. A storage error ends it too.
func (m *Manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, m.stop)
	g.Go(func() error { return m.bringBack(ctx) })
	g.Go(func() error { return m.runPromotion(ctx) })
	g.Go(func() error { return m.runSearch(ctx) })
	g.Go(func() error { return m.runSweep(ctx) })
	g.Go(func() error { return m.count(ctx) })
	g.Go(func() error { return m.runReclaim(ctx) })
	err := g.Wait()
	m.wg.Wait()
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return m.saveCounts()
}

// Stats are the manager's counters, for metrics and the console.
type Stats struct {
	Waiting     int64 // recipients not settled
	InMemory    int64 // of them, ready items held in windows
	Queues      int   // queues in memory
	BodyBytes   int64 // bytes of bodies in memory
	Quarantined int64 // unreadable records set aside since start
}

// Stats returns the counters of the moment.
func (m *Manager) Stats() Stats {
	m.mu.RLock()
	n := len(m.queues)
	m.mu.RUnlock()
	return Stats{
		Waiting:     m.counts.total.Load(),
		InMemory:    m.items.Load(),
		Queues:      n,
		BodyBytes:   m.bodies.Load(),
		Quarantined: m.damaged.Load(),
	}
}

// NextRetry is the wait after attempt number attempt (from 1) failed: the
// schedule's interval, spread by the jitter. random is in [0, 1).
func (c *Config) NextRetry(attempt int, random float64) time.Duration {
	d := c.Retry[min(max(attempt, 1), len(c.Retry))-1]
	return d + time.Duration(float64(d)*c.Jitter*(2*random-1))
}
