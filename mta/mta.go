// Package mta sends: it takes queues that have something to send, finds where
// their mail goes, shares each destination's capacity fairly, gets permits,
// signs, delivers and settles.
//
// What it promises: a recipient is settled in the commit that records the
// server's words; suppression is asked again at every attempt; nothing is sent
// unsigned that should be signed; a temporary failure of DNS, of a host or of
// ours never bounces; work under way is bounded by permits and by
// Config.MaxConnections.
//
// What it leaves to others: where items lie (queue), how fast a destination
// may be used (throttle), what a reply means (bounce).
//
// # Shape
//
// A site is one pool of sources toward one destination (an MX set or a route)
// under one TLS policy. It holds the queues that lead there in a fair schedule,
// and a lane per source. A lane's runners are goroutines, each with one open
// connection; a runner ends when there is nothing for it to do, and its
// connection goes to the pool of open ones. Nobody polls: a lane that must wait
// for a time sets the site's timer, one that must wait for a permit is notified.
//
// # Locks
//
// MTA.mu before site.mu before Queue.mu. A throttle permit is never released
// with one of them held, because that may call site.notified.
package mta

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/dkim"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/mx"
	"github.com/tradewind-mta/tradewind/mta/outbound"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/throttle"
)

// Settings are what a reload may change.
type Settings struct {
	Config   Config
	Hostname string
	Sources  []Source
	Pools    []Pool
	Routes   []Route
	Tenants  map[string]Tenant
	Signer   *dkim.Ring
	Rules    *bounce.Classifier
}

// Tenant is what delivery knows of a tenant.
type Tenant struct {
	// Weight is the tenant's share of a contended destination; less than 1
	// counts as 1.
	Weight int
	// Campaigns are the shares of campaigns among the tenant's mail of their
	// class; those that are not named have 1.
	Campaigns map[string]int
	// Pool takes the mail that asks for none.
	Pool string
	// DSN sends failure and delay notices to senders who did not ask by
	// NOTIFY either way.
	DSN bool
}

// Deps is what an MTA works with.
type Deps struct {
	Throttle *throttle.Engine
	Resolver *mx.Resolver
	// Suppressed asks whether a recipient must not be mailed any more.
	Suppressed func(ctx context.Context, tenant, campaign string, addr message.Address) (reason string, hit bool, err error)
	// Reencode brings a message into 7 bits for servers without 8BITMIME.
	Reencode func([]byte) ([]byte, error)
	// Record writes events that belong to no item, such as egress.throttled.
	Record func(events ...*message.Event)
	// Dial connects from a source; nil uses the network. checked asks for the
	// guard against addresses that mail is never sent to.
	Dial func(ctx context.Context, src *Source, network, addr string, checked bool) (net.Conn, error)
	// TLS holds roots and client certificates; nil means the system's.
	TLS        *tls.Config
	IDs        *message.IDSource
	Now        func() time.Time
	Rand       func() float64
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// MTA delivers what the queue hands out.
type MTA struct {
	deps  Deps
	set   atomic.Pointer[Settings]
	queue *queue.Manager // set by Attach

	conns    *outbound.Pool[poolKey]
	buffers  outbound.Buffers
	fallback *outbound.Fallback
	signed   *signatures
	metrics  *metrics
	tracer   tracer

	slots  slots // connections, idle ones included
	health health
	// soft ends when nothing new is begun any more, hard when transactions under
	// way are cut off.
	soft     context.Context
	stopSoft context.CancelFunc
	hard     context.Context
	stopHard context.CancelFunc
	wg       sync.WaitGroup
	crew     crew

	mu      sync.Mutex // protects everything below
	targets map[targetKey]*target
	sites   map[siteKey]*site
}

// New returns an MTA. Attach it to its queue before anything is accepted.
func New(set Settings, deps Deps) (*MTA, error) {
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Rand == nil {
		deps.Rand = rand.Float64
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if deps.Record == nil {
		deps.Record = func(...*message.Event) {}
	}
	if deps.Dial == nil {
		deps.Dial = dialer(deps.Resolver)
	}
	m := &MTA{
		deps:     deps,
		targets:  make(map[targetKey]*target),
		sites:    make(map[siteKey]*site),
		fallback: outbound.NewFallback(10_000, time.Hour, deps.Now),
		signed:   newSignatures(4096),
		metrics:  newMetrics(deps.Registerer),
		tracer:   tracer{now: deps.Now},
		crew:     crew{work: make(chan func())},
	}
	m.hard, m.stopHard = context.WithCancel(context.Background())
	m.soft, m.stopSoft = context.WithCancel(m.hard)
	m.conns = outbound.NewPool[poolKey](outbound.PoolConfig{
		Max: set.Config.MaxConnections, Idle: set.Config.IdleConnection, Registerer: deps.Registerer,
	})
	if err := m.Configure(set); err != nil {
		return nil, err
	}
	return m, nil
}

// Attach gives the MTA its queue.
func (m *MTA) Attach(q *queue.Manager) { m.queue = q }

// Configure puts other settings in force. Connections that are open stay.
func (m *MTA) Configure(set Settings) error {
	pools := make([]throttle.Pool, 0, len(set.Pools)+1)
	known := map[string]bool{}
	for _, s := range set.Sources {
		known[s.Name] = true
	}
	named := map[string]bool{}
	for _, p := range set.Pools {
		tp := throttle.Pool{Name: p.Name}
		for _, ps := range p.Sources {
			if !known[ps.Source] {
				return fmt.Errorf("mta: pool %s: no source %q", p.Name, ps.Source)
			}
			tp.Sources = append(tp.Sources, throttle.WeightedSource{Name: ps.Source, Weight: int64(max(1, ps.Weight))})
		}
		named[p.Name] = true
		pools = append(pools, tp)
	}
	// A source can be asked for by its name, as a pool of one.
	for _, s := range set.Sources {
		if !named[s.Name] {
			pools = append(pools, throttle.Pool{Name: s.Name, Sources: []throttle.WeightedSource{{Name: s.Name, Weight: 1}}})
		}
	}
	if !named[DefaultPool] && !known[DefaultPool] {
		tp := throttle.Pool{Name: DefaultPool}
		for _, s := range set.Sources {
			tp.Sources = append(tp.Sources, throttle.WeightedSource{Name: s.Name, Weight: 1})
		}
		if len(set.Sources) == 0 {
			set.Sources = []Source{{Name: DefaultPool}}
			tp.Sources = []throttle.WeightedSource{{Name: DefaultPool, Weight: 1}}
		}
		pools = append(pools, tp)
	}
	for _, p := range pools {
		ps := Pool{Name: p.Name}
		for _, s := range p.Sources {
			ps.Sources = append(ps.Sources, PoolMember{Source: s.Name, Weight: int(s.Weight)})
		}
		if !named[p.Name] {
			set.Pools = append(set.Pools, ps)
		}
	}
	m.deps.Throttle.SetPools(pools)
	m.set.Store(&set)
	m.slots.resize(int64(set.Config.MaxConnections))
	m.mu.Lock()
	clear(m.targets) // routes may lead elsewhere now
	m.mu.Unlock()
	return nil
}

// Run keeps the tables small until ctx ends, then lets transactions under way
// finish for as long as Config.DrainTimeout, and returns when all have ended.
func (m *MTA) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			if events := m.deps.Throttle.Sweep(m.deps.Now()); len(events) > 0 {
				m.deps.Record(events...)
			}
			m.sweep()
		case <-ctx.Done():
		}
	}
	m.stopSoft()
	m.stopTimers()
	done := make(chan struct{})
	go func() {
		m.wg.Wait()
		close(done)
	}()
	grace := time.NewTimer(m.set.Load().Config.DrainTimeout)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
		m.stopHard() // drops the connections; outcomes are settled or released
		<-done
	}
	quit, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	m.conns.Close(quit)
	m.stopHard()
	return nil
}

// Ready takes a queue that has something to send. It does not block.
func (m *MTA) Ready(q *queue.Queue) {
	if m.ending() {
		return
	}
	key := q.Key()
	pool := m.poolFor(&key)
	tk := targetKey{pool: pool, domain: key.Domain}
	m.mu.Lock()
	t := m.targets[tk]
	if t == nil {
		m.forgetTargets()
		t = &target{}
		m.targets[tk] = t
	}
	if s := t.site; s != nil && m.deps.Now().Before(t.expires) {
		m.mu.Unlock()
		s.add(q)
		return
	}
	t.waiting = append(t.waiting, q)
	if !t.resolving {
		t.resolving = true
		m.wg.Go(func() { m.resolve(tk, t) })
	}
	m.mu.Unlock()
}

// poolFor is the pool that serves a queue.
func (m *MTA) poolFor(key *store.QueueKey) string {
	set := m.set.Load()
	if key.Pool != "" {
		for i := range set.Pools {
			if set.Pools[i].Name == key.Pool {
				return key.Pool
			}
		}
	}
	if p := set.Tenants[key.Tenant].Pool; p != "" {
		return p
	}
	return DefaultPool
}

func (m *MTA) source(name string) *Source {
	set := m.set.Load()
	for i := range set.Sources {
		if set.Sources[i].Name == name {
			return &set.Sources[i]
		}
	}
	return &Source{Name: name}
}

// local makes a reply in our own words.
func local(stage message.Stage, code int, enhanced message.Enhanced, text string) *message.Reply {
	return &message.Reply{Code: code, Enhanced: enhanced, Text: text, Stage: stage, Local: true}
}

// ending reports that nothing new is to be begun: we are stopping, or the storage
// has failed, and what is sent now could not be recorded and would be sent again.
func (m *MTA) ending() bool { return m.soft.Err() != nil || m.queue.Err() != nil }

// isShutdown reports errors that say no more than that we are stopping.
func isShutdown(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, store.ErrDead)
}

// domainOf returns what follows the last @ of a reverse path, lower case.
func domainOf(a message.Address) string { return strings.ToLower(a.Domain()) }
