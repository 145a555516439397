package mta_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/mx"
	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/throttle"
)

// world is an MTA over a queue on a disk in memory, in virtual time, with mail
// hosts that the test watches.
type world struct {
	t     *testing.T
	mta   *mta.MTA
	queue *queue.Manager
	eng   *throttle.Engine
	zone  *zonetest.Zone
	ids   *message.IDSource
	reg   *prometheus.Registry
	stops []func()

	mu     sync.Mutex // protects everything below
	hosts  map[string]*loadgen.Sink
	dials  []string // addresses dialled, in order
	refuse func(src *mta.Source, addr string) error
	// opened is told of each connection, and closed when the host has closed
	// its end.
	opened, closed func(source, addr string)
	goodbye        time.Duration // how long a host takes to close
	// mailed is told how many transactions a connection has begun.
	mailed func(source string, n int)
	heard  func(*message.Event) // of every event; set before anything is accepted
	events []*message.Event
	counts map[message.EventType]int
	keep   bool // events as well as counts
}

// journal is the recorder of the queue: it keeps what the test wants.
type journal struct{ w *world }

func (j journal) Append(b *store.Batch, events ...*message.Event) {
	first := b.Reserve(len(events))
	for i, e := range events {
		e.Seq = first + uint64(i)
	}
	b.AfterCommit(func(err error) {
		if err == nil {
			j.w.record(events...)
		}
	})
}

func (w *world) record(events ...*message.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		if w.heard != nil {
			w.heard(e)
		}
		w.counts[e.Type]++
		if w.keep {
			w.events = append(w.events, e)
		}
	}
}

func (w *world) count(t message.EventType) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts[t]
}

// worldConfig is what a world starts with.
type worldConfig struct {
	shaping  string // laid over nothing
	zone     string
	settings mta.Settings
	queue    func(*queue.Config)
	keep     bool
}

// newWorld starts a world. REQUIRES: a synctest bubble.
func newWorld(t *testing.T, c worldConfig) *world {
	t.Helper()
	w := &world{
		t: t, ids: &message.IDSource{}, hosts: map[string]*loadgen.Sink{}, counts: map[message.EventType]int{},
		keep: c.keep, opened: func(string, string) {}, closed: func(string, string) {}, mailed: func(string, int) {},
		zone: zonetest.New(c.zone), reg: prometheus.NewRegistry(),
	}
	rules, problems := throttle.Load(throttle.File{Name: "test.toml", Data: []byte(c.shaping)})
	for _, p := range problems {
		t.Fatalf("shaping: %v", p)
	}
	w.eng = throttle.New(rules, throttle.Options{Registerer: w.reg})
	resolver, err := mx.New(mx.Config{Servers: []string{"203.0.113.53"}, AllowNets: zonetest.Nets()}, mx.Deps{Exchange: w.zone.Exchange})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open("data", store.Spool, store.Options{
		FS: vfs.NewMem(), MemTableBytes: 4 << 20, CacheBytes: 4 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	set := c.settings
	set.Hostname = "mta.example"
	if set.Config.Port == 0 {
		set.Config = mta.DefaultConfig()
	}
	w.mta, err = mta.New(set, mta.Deps{
		Throttle: w.eng, Resolver: resolver, Record: w.record, Dial: w.dial, IDs: w.ids,
		Now: time.Now, Rand: func() float64 { return 0.5 }, Registerer: w.reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := queue.DefaultConfig()
	if c.queue != nil {
		c.queue(&cfg)
	}
	w.queue, err = queue.New(cfg, queue.Deps{
		DB: db, Recorder: journal{w}, Now: time.Now, IDs: w.ids, Ready: w.mta.Ready, Expired: w.mta.Expired, Suspended: w.mta.Stopped,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.mta.Attach(w.queue)
	start := func(run func(context.Context) error) func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- run(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	w.stops = append(w.stops, func() {
		resolver.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}, start(w.queue.Run), start(w.mta.Run))
	synctest.Wait()
	return w
}

// end stops everything, last things first.
func (w *world) end() {
	for i := len(w.stops) - 1; i >= 0; i-- {
		w.stops[i]()
	}
	for _, h := range w.hosts {
		if err := h.Shutdown(context.Background()); err != nil {
			w.t.Error(err)
		}
	}
	synctest.Wait()
}

// host puts a mail host at an address.
func (w *world) host(addr string, cfg loadgen.SinkConfig) *loadgen.Sink {
	w.t.Helper()
	s, err := loadgen.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.hosts[addr] = s
	return s
}

func (w *world) dial(_ context.Context, src *mta.Source, _, addr string, _ bool) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.dials = append(w.dials, host)
	h, refuse := w.hosts[host], w.refuse
	w.mu.Unlock()
	if refuse != nil {
		if err := refuse(src, host); err != nil {
			return nil, err
		}
	}
	if h == nil {
		return nil, errors.New("connection refused")
	}
	near, far := loadgen.Pipe()
	w.opened(src.Name, host)
	go h.ServeConn(&hostEnd{
		Conn: far, source: src.Name, goodbye: w.goodbye,
		gone:   func() { w.closed(src.Name, host) },
		mailed: func(n int) { w.mailed(src.Name, n) },
	})
	return near, nil
}

// hostEnd is the host's end of a connection.
type hostEnd struct {
	net.Conn
	source  string
	gone    func()
	once    sync.Once
	goodbye time.Duration
	mails   int
	mailed  func(n int)
}

// Read counts the transactions in what the MTA says. Commands come whole here,
// and no body has one in it.
func (c *hostEnd) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if k := bytes.Count(p[:n], []byte("MAIL FROM:")); k > 0 {
		c.mails += k
		c.mailed(c.mails)
	}
	return n, err
}

func (c *hostEnd) RemoteAddr() net.Addr { return sourceAddr(c.source) }

func (c *hostEnd) Close() error {
	c.once.Do(func() {
		time.Sleep(c.goodbye)
		c.gone()
	})
	return c.Conn.Close()
}

// sourceAddr lets a host tell sources apart.
type sourceAddr string

func (sourceAddr) Network() string  { return "tcp" }
func (a sourceAddr) String() string { return string(a) }

// mail is one message to be accepted.
type mail struct {
	from, tenant, campaign, pool string
	class                        message.Class
	to                           []string
	sign                         string // domain of the From header
}

func (w *world) submission(m mail) *message.Submission {
	now := time.Now()
	s := &message.Submission{
		Message: &message.Message{
			ID: w.ids.New(now), Tenant: m.tenant, Campaign: m.campaign, Pool: m.pool, Class: m.class,
			From: message.MustAddress(m.from), HeaderFrom: m.sign, Accepted: now,
		},
		Body: []byte("Subject: x\r\n\r\nHello.\r\n"),
	}
	for _, a := range m.to {
		s.Recipients = append(s.Recipients, message.Recipient{Address: message.MustAddress(a)})
	}
	return s
}

// accept takes mail in, in commits of up to 500.
func (w *world) accept(list ...mail) {
	w.t.Helper()
	for len(list) > 0 {
		n := min(500, len(list))
		subs := make([]*message.Submission, n)
		for i, m := range list[:n] {
			subs[i] = w.submission(m)
		}
		if err := w.queue.Accept(w.t.Context(), subs); err != nil {
			w.t.Fatal(err)
		}
		list = list[n:]
	}
}

// sources are n sources in one pool.
func sources(n int) mta.Settings {
	var set mta.Settings
	pool := mta.Pool{Name: mta.DefaultPool}
	for i := range n {
		name := fmt.Sprintf("ip%d", i+1)
		set.Sources = append(set.Sources, mta.Source{Name: name, Address: fmt.Sprintf("198.51.100.%d", i+1)})
		pool.Sources = append(pool.Sources, mta.PoolMember{Source: name, Weight: 1})
	}
	set.Pools = []mta.Pool{pool}
	return set
}

// metric sums a counter or gauge over its labels.
func (w *world) metric(name string) (sum float64) {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}
