package outbound

import (
	"container/list"
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// PoolConfig sets the bounds of a Pool.
type PoolConfig struct {
	// Max is how many idle connections there may be in all; the one unused
	// longest makes room. Default: 1,000.
	Max int
	// Idle is how long a connection may lie unused. Default: 30 s; many servers
	// hang up after 60 s or less and resent a client that only sits there.
	Idle time.Duration
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Pool keeps open connections that nobody uses just now. The key must hold all
// that makes two connections different: source, host or site, TLS policy, and
// whatever else of a tenant's policy bears on the conversation; the pool
// compares it and never looks inside. Whoever puts a connection in has given it
// away; when the pool closes it, Options.OnClose is called.
type Pool[K comparable] struct {
	max  int
	idle time.Duration
	open prometheus.Gauge
	out  *prometheus.CounterVec

	quits sync.WaitGroup
	ctx   context.Context // ends the farewells when Close has waited enough
	stop  context.CancelFunc

	mu     sync.Mutex // protects everything below; not held across I/O but the probe's
	closed bool
	lru    *list.List // of *pooled[K], most recently put first
	byKey  map[K][]*list.Element
	timer  *time.Timer // for the back of lru; nil when the pool is empty
}

type pooled[K comparable] struct {
	key   K
	conn  *Conn
	until time.Time
}

// Why a connection left the pool otherwise than by Get.
const (
	leftIdle   = "idle"   // nobody wanted it in time
	leftFull   = "full"   // made room for another
	leftDead   = "dead"   // the peer had closed or spoken
	leftSpent  = "spent"  // the server takes no more messages on it (LIMITS MAILMAX)
	leftClosed = "closed" // the pool was closed
)

// NewPool returns an empty pool.
func NewPool[K comparable](cfg PoolConfig) *Pool[K] {
	if cfg.Max <= 0 {
		cfg.Max = 1000
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 30 * time.Second
	}
	p := &Pool[K]{
		max:  cfg.Max,
		idle: cfg.Idle,
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tradewind_outbound_idle_connections",
			Help: "Open connections that wait for the next message.",
		}),
		out: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_outbound_idle_closed_total",
			Help: "Idle connections closed, by reason: idle, full, dead, spent, closed.",
		}, []string{"reason"}),
		lru:   list.New(),
		byKey: make(map[K][]*list.Element),
	}
	for _, reason := range []string{leftIdle, leftFull, leftDead, leftSpent, leftClosed} {
		p.out.WithLabelValues(reason)
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(p.open, p.out)
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// Get takes a connection out, the most recently used first, or returns nil.
// One that the peer has closed meanwhile, or spoken on, is closed and passed
// over; a peer that vanished without a word is found out by the next Send
// (Result.Stale).
func (p *Pool[K]) Get(key K) *Conn {
	for {
		c := p.take(key)
		if c == nil {
			return nil
		}
		if c.alive() {
			return c
		}
		p.out.WithLabelValues(leftDead).Inc()
		c.abandon()
	}
}

func (p *Pool[K]) take(key K) *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	els := p.byKey[key]
	if len(els) == 0 {
		return nil
	}
	return p.remove(els[len(els)-1])
}

// remove takes el out of everything. REQUIRES: mu is held.
func (p *Pool[K]) remove(el *list.Element) *Conn {
	it := p.lru.Remove(el).(*pooled[K])
	els := p.byKey[it.key]
	for i, e := range els {
		if e == el {
			els = append(els[:i], els[i+1:]...)
			break
		}
	}
	if len(els) == 0 {
		delete(p.byKey, it.key)
	} else {
		p.byKey[it.key] = els
	}
	p.open.Dec()
	return it.conn
}

// Put gives a connection to the pool. One that cannot be used again is closed
// instead, as is any once the pool is closed.
func (p *Pool[K]) Put(key K, c *Conn) {
	c.forsake()
	if c.broken {
		c.Close()
		return
	}
	c.release()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		c.Close() // Close may have stopped waiting for farewells
		return
	}
	defer p.mu.Unlock()
	if !c.spare() {
		p.dismiss(c, leftSpent)
		return
	}
	if p.lru.Len() >= p.max {
		p.dismiss(p.remove(p.lru.Back()), leftFull)
	}
	el := p.lru.PushFront(&pooled[K]{key: key, conn: c, until: time.Now().Add(p.idle)})
	p.byKey[key] = append(p.byKey[key], el)
	p.open.Inc()
	if p.timer == nil {
		p.timer = time.AfterFunc(p.idle, p.sweep)
	}
}

// dismiss says goodbye in the background.
func (p *Pool[K]) dismiss(c *Conn, reason string) {
	p.out.WithLabelValues(reason).Inc()
	p.quits.Go(func() { c.Quit(p.ctx) })
}

// sweep closes what has been idle too long and comes back for the next.
func (p *Pool[K]) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := time.Now()
	for {
		back := p.lru.Back()
		if back == nil {
			p.timer = nil
			return
		}
		if wait := back.Value.(*pooled[K]).until.Sub(now); wait > 0 {
			p.timer.Reset(wait)
			return
		}
		p.dismiss(p.remove(back), leftIdle)
	}
}

// shedLook bounds how many idle connections Shed looks at.
const shedLook = 1000

// Shed says goodbye to the connection unused longest whose key matches: its
// place is wanted by one that has work. It reports whether there was any.
func (p *Pool[K]) Shed(match func(K) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	looked := 0
	for el := p.lru.Back(); el != nil && looked < shedLook && !p.closed; el = el.Prev() {
		looked++
		if match(el.Value.(*pooled[K]).key) {
			p.dismiss(p.remove(el), leftFull)
			return true
		}
	}
	return false
}

// Idle returns how many connections Get would choose among.
func (p *Pool[K]) Idle(key K) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byKey[key])
}

// Len returns how many connections are idle.
func (p *Pool[K]) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lru.Len()
}

// Close says QUIT on every idle connection and waits until all are closed, or
// ctx ends and they are dropped. Connections put later are closed at once.
func (p *Pool[K]) Close(ctx context.Context) {
	p.mu.Lock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	for p.lru.Len() > 0 {
		p.dismiss(p.remove(p.lru.Back()), leftClosed)
	}
	p.mu.Unlock()
	defer context.AfterFunc(ctx, p.stop)()
	p.quits.Wait()
	p.stop()
}

// alive reports whether an idle connection can be used as far as one can tell
// without asking: the peer has neither closed nor said anything.
func (c *Conn) alive() bool {
	if c.broken || c.r != c.w {
		return false
	}
	c.raw.SetDeadline(time.Time{}) // an expired deadline would hide what there is
	if quiet, known := peek(c.raw); known {
		return quiet
	}
	// Not a socket, so a test's connection or a wrapper: a read that may not
	// wait. Should it take a byte, the connection is useless anyway.
	var b [1]byte
	c.raw.SetReadDeadline(time.Unix(1, 0))
	n, err := c.raw.Read(b[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}
