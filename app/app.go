// Package app builds, starts, reloads and stops one engine. What an engine
// consists of, and in which order its parts come and go, should be readable in
// one place. Several engines can live in one process, each with its own file
// system, clock, network and DNS, which is how the stories under test run.
package app

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/dkim"
	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/mx"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/report"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/suppression"
	"github.com/tradewind-mta/tradewind/throttle"
)

// Options are the outside world of an engine. The zero value is the real one.
type Options struct {
	Logger *slog.Logger
	// FS holds the stores; nil means the operating system's.
	FS vfs.FS
	// Memory keeps everything that is not in FS (the suppression key, the event
	// file) out of the real file system: for tests.
	Memory bool
	Now    func() time.Time
	// Listen binds a listener; nil means net.Listen.
	Listen func(network, addr string) (net.Listener, error)
	// Dial connects from a source; nil means the network.
	Dial func(ctx context.Context, src *mta.Source, network, addr string, checked bool) (net.Conn, error)
	// Exchange asks a DNS server; nil means sockets.
	Exchange func(ctx context.Context, q *dns.Msg, network, server string) (*dns.Msg, error)
	// DialTLS holds roots for outgoing TLS; nil means the system's.
	DialTLS *tls.Config
	// Rand spreads retries; nil means math/rand.
	Rand func() float64
}

// App is one engine.
type App struct {
	cfg *configs.Config
	opt Options
	log *slog.Logger

	registry *prometheus.Registry
	ballast  *store.Ballast
	spool    *store.DB
	ledger   *store.DB
	journal  *event.Journal
	sinks    *event.Runner
	files    []eventFile
	list     *suppression.List
	keys     *api.KeyStore
	hooks    *webhooks
	queue    *queue.Manager
	throttle *throttle.Engine
	shaping  *shapingState
	resolver *mx.Resolver
	mta      *mta.MTA
	door     *inject.Injector
	pressure *pressure
	mint     *minter
	rules    atomic.Pointer[bounce.Classifier]
	reports  *report.Mailbox // nil without a bounce domain
	smtp     []smtpListener
	http     []httpListener
	fatal    chan error    // the first storage failure
	closing  chan struct{} // closed when the listeners are to end

	mu      sync.Mutex // protects everything below
	cleanup []func() error
	tenants map[string]inject.Tenant
}

// New opens the stores, binds the listeners and connects everything, but serves
// nothing yet. When it fails, what it had opened is closed again.
func New(cfg *configs.Config, opt Options) (_ *App, err error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	var clock *steady
	if opt.Now == nil {
		clock = newSteady(opt.Logger)
		opt.Now = clock.Now
	}
	if opt.Listen == nil {
		opt.Listen = net.Listen
	}
	a := &App{cfg: cfg, opt: opt, log: opt.Logger, registry: prometheus.NewRegistry(), fatal: make(chan error, 1), closing: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if !opt.Memory {
		a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	for _, step := range []func() error{
		a.openStores, a.openJournal, a.openSuppression, a.openTokens, a.buildDelivery, a.buildDoor, a.openReports, a.listenSMTP, a.listenHTTP,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	a.registerMetrics()
	if clock != nil {
		a.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tradewind_clock_offset_seconds", Help: "How far the system's clock is ahead of the engine's.",
		}, func() float64 { return clock.Offset().Seconds() }))
	}
	return a, nil
}

// onClose pushes what undoes a step of New; close pops, last in first out.
func (a *App) onClose(fn func() error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cleanup = append(a.cleanup, fn)
}

func (a *App) close() error {
	a.mu.Lock()
	list := a.cleanup
	a.cleanup = nil
	a.mu.Unlock()
	var errs []error
	for i := len(list) - 1; i >= 0; i-- {
		errs = append(errs, list[i]())
	}
	return errors.Join(errs...)
}

// ledgerCache is the block cache of the ledger.
const ledgerCache = 16 << 20

func (a *App) openStores() error {
	lock, err := store.Lock(a.cfg.DataDir, a.opt.FS)
	if err != nil {
		return err
	}
	a.onClose(lock.Close)
	if err := a.makeRoom(); err != nil {
		return err
	}
	opt := store.Options{
		FS: a.opt.FS, Logger: a.log, MaxOpenFiles: a.cfg.Store.MaxOpenFiles,
		CacheBytes: int64(a.cfg.Store.Cache), MemTableBytes: uint64(a.cfg.Store.MemTable),
		OnFatal: func(err error) {
			select {
			case a.fatal <- err:
			default:
			}
		},
	}
	syncs := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "tradewind_store_sync_seconds", Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		Help: "Time that syncs of the spool's log took; every acknowledgement waits for one or two.",
	})
	a.registry.MustRegister(syncs)
	opt.Synced = func(d time.Duration) { syncs.Observe(d.Seconds()) }
	if a.spool, err = a.openStore(store.Spool, opt); err != nil {
		return err
	}
	opt.CacheBytes, opt.MemTableBytes, opt.Synced = ledgerCache, 0, nil
	a.ledger, err = a.openStore(store.Ledger, opt)
	return err
}

// makeRoom gives up the ballast if the disk is too full to open the stores.
func (a *App) makeRoom() error {
	a.ballast = store.NewBallast(a.cfg.DataDir, a.opt.FS, int64(a.cfg.Store.Ballast))
	dropped, err := a.ballast.MakeRoom()
	if dropped {
		a.log.Error("the disk is full: the ballast is given up to open the stores; no mail is accepted until there is room for it again")
	}
	return err
}

func (a *App) openStore(kind store.Kind, opt store.Options) (*store.DB, error) {
	db, err := store.Open(a.cfg.DataDir, kind, opt)
	if err != nil {
		return nil, err
	}
	a.onClose(func() error {
		if err := db.Close(); !errors.Is(err, store.ErrDead) {
			return err
		}
		return nil
	})
	return db, nil
}

func (a *App) openJournal() error {
	a.journal = event.NewJournal(a.spool, event.Config{
		Now: a.opt.Now, Logger: a.log, Registerer: a.registry,
		Retention: event.Retention{MaxAge: a.cfg.Events.Retention},
	})
	a.sinks = event.NewRunner(a.journal, event.RunnerConfig{
		Now: a.opt.Now, Logger: a.log, Registerer: a.registry,
		OnState: func(s event.Status) {
			if s.State == event.Parked || s.State == event.Disabled {
				a.log.Error("an event sink has stopped; resume it when its endpoint is back", "sink", s.Name, "state", s.State.String(), "err", s.Err)
			}
		},
	})
	if a.opt.Memory {
		return nil
	}
	return a.openEventFiles()
}

// eventFile is a sink that writes to a file.
type eventFile interface {
	event.Sink
	Reopen()
	Close() error
}

// openEventFiles adds the sinks that write files.
func (a *App) openEventFiles() error {
	c := &a.cfg.Events
	compress, err := event.ParseCompression(c.FileCompress)
	if err != nil {
		return err
	}
	add := func(s eventFile, wants func(event.Record) bool) error {
		a.files = append(a.files, s)
		a.onClose(s.Close)
		return a.sinks.Add(s, event.Options{Kind: event.KindFile, FromStart: true, Wants: wants})
	}
	file := event.FileConfig{
		Path: c.File, MaxSize: int64(c.FileMaxSize), Every: c.FileEvery, Keep: c.FileKeep, Compress: compress, Now: a.opt.Now,
	}
	if file.Path == "" {
		file.Path = filepath.Join(a.cfg.DataDir, "events.jsonl")
	}
	if file.Path != "-" {
		s, err := event.NewJSONLines("file", file)
		if err != nil {
			return err
		}
		if err := add(s, nil); err != nil {
			return err
		}
	}
	if c.CSVFile == "" {
		return nil
	}
	file.Path = c.CSVFile
	s, err := event.NewCSV("csv", event.CSVConfig{File: file, Records: c.CSVRecords, Fields: c.CSVFields, Logger: a.log})
	if err != nil {
		return err
	}
	return add(s, s.Wants)
}

func (a *App) openSuppression() error {
	key, err := suppressionKey(a.cfg, a.opt.Memory)
	if err != nil {
		return err
	}
	a.list, err = suppression.New(a.ledger, suppression.Config{
		Key: key, Policy: suppressionPolicy(&a.cfg.Suppression), KeepAddresses: a.cfg.Suppression.KeepAddresses, Publish: a.publish,
		Now: a.opt.Now, Logger: a.log, Registerer: a.registry,
	})
	if err != nil {
		return err
	}
	a.keys = api.NewKeyStore(a.ledger, a.opt.Now)
	if err := a.openWebhooks(key); err != nil {
		return err
	}
	s := &suppressor{list: a.list, rules: a.rules.Load, perCampaign: a.cfg.Bounce.UnsubscribeScope == "campaign"}
	if err := a.sinks.Add(s, event.Options{Wants: s.wants, MaxWait: suppressWait}); err != nil {
		return err
	}
	late := lateFacts{func() *mta.MTA { return a.mta }}
	return a.sinks.Add(late, event.Options{Wants: late.wants, MaxWait: suppressWait})
}

// suppressionKey reads the secret that addresses are hashed with, and makes one
// at the first start.
func suppressionKey(cfg *configs.Config, memory bool) ([]byte, error) {
	if memory {
		return make([]byte, suppression.MinKey), nil
	}
	path := cfg.Suppression.KeyFile
	if path == "" {
		path = filepath.Join(cfg.DataDir, "suppression.key")
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && cfg.Suppression.KeyFile == "" {
		key := make([]byte, suppression.MinKey)
		rand.Read(key)
		text = append(base64.StdEncoding.AppendEncode(nil, key), '\n')
		if err := writeDurably(path, text); err != nil {
			return nil, fmt.Errorf("app: suppression key: %w", err)
		}
		return key, nil
	}
	if err != nil {
		return nil, fmt.Errorf("app: suppression key: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(key) < suppression.MinKey {
		return nil, fmt.Errorf("app: %s does not hold %d bytes in base64", path, suppression.MinKey)
	}
	return key, nil
}

// writeDurably writes a file that is there whole or not at all, and survives a
// power cut once this has returned: without its key the suppression list knows
// nobody any more.
func writeDurably(path string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// publish puts events into the journal on their own, durably.
func (a *App) publish(events ...*message.Event) error {
	b := a.spool.NewBatch(0)
	defer b.Close()
	a.journal.Append(b, events...)
	return b.Commit()
}

// record journals events that nothing depends on; losing the last of them in a
// crash breaks no promise.
func (a *App) record(events ...*message.Event) {
	b := a.spool.NewBatch(0)
	defer b.Close()
	a.journal.Append(b, events...)
	a.shaping.heard(events)
	if err := b.CommitLazy(); err != nil && !errors.Is(err, store.ErrDead) {
		a.log.Error("journal", "err", err)
	}
}

func (a *App) buildDelivery() error {
	rules, problems := a.cfg.ShapingRules()
	if len(problems) > 0 {
		return fmt.Errorf("app: shaping: %s", problems[0])
	}
	a.shaping = newShapingState(a)
	a.throttle = throttle.New(rules, throttle.Options{Now: a.opt.Now, Registerer: a.registry, Reserve: a.shaping.poke})
	var err error
	a.resolver, err = newResolver(a.cfg, a.opt, a.registry)
	if err != nil {
		return err
	}
	a.onClose(func() error { a.resolver.Close(); return nil })
	settings, err := a.settings(a.cfg)
	if err != nil {
		return err
	}
	a.rules.Store(settings.Rules)
	ids := &message.IDSource{}
	a.mta, err = mta.New(settings, mta.Deps{
		Throttle: a.throttle, Resolver: a.resolver, Suppressed: a.suppressed, Reencode: inject.Reencode,
		Record: a.record, Dial: a.opt.Dial, TLS: a.opt.DialTLS, IDs: ids,
		Now: a.opt.Now, Rand: a.opt.Rand, Logger: a.log, Registerer: a.registry,
	})
	if err != nil {
		return err
	}
	if err := a.shaping.load(); err != nil {
		return err
	}
	a.queue, err = queue.New(a.cfg.Queue, queue.Deps{
		DB: a.spool, Recorder: a.journal, Now: a.opt.Now, Logger: a.log, IDs: ids,
		Ready: a.mta.Ready, Expired: a.mta.Expired, Suspended: a.mta.Stopped, Recall: a.recall,
	})
	if err != nil {
		return err
	}
	a.mta.Attach(a.queue)
	a.pressure = &pressure{a: a}
	a.pressure.lookForSpace() // before the doors open
	return nil
}

func newResolver(cfg *configs.Config, opt Options, reg prometheus.Registerer) (*mx.Resolver, error) {
	return mx.New(mx.Config{
		Servers: cfg.DNS.Servers, Timeout: cfg.DNS.Timeout, Family: mx.Family(cfg.DNS.Family),
		AllowNets: cfg.DNS.AllowNetworks, CacheEntries: cfg.DNS.CacheEntries,
	}, mx.Deps{Exchange: opt.Exchange, Now: opt.Now, Registerer: reg, Logger: opt.Logger})
}

// deliverySettings turns the configuration into what the MTA works by, but for
// keys and bounce rules.
func deliverySettings(cfg *configs.Config) mta.Settings {
	set := mta.Settings{
		Config: cfg.Delivery, Hostname: cfg.Hostname, Sources: cfg.Source, Pools: cfg.Pool, Routes: cfg.Route,
		Tenants: map[string]mta.Tenant{},
	}
	for _, t := range cfg.Tenant {
		weights := make(map[string]int, len(t.Campaigns))
		for _, c := range t.Campaigns {
			weights[c.Name] = c.Weight
		}
		set.Tenants[t.Name] = mta.Tenant{Weight: t.Weight, Campaigns: weights, Pool: t.Pool, DSN: t.DSN}
	}
	return set
}

// settings is all that the MTA works by.
func (a *App) settings(cfg *configs.Config) (mta.Settings, error) {
	set := deliverySettings(cfg)
	if len(cfg.DKIM) > 0 {
		ring, err := dkim.New(SigningConfig(cfg), dkim.Deps{Now: a.opt.Now, Log: a.log, Metrics: a.registry})
		if err != nil {
			return set, err
		}
		set.Signer = ring
	}
	rules, err := BounceRules(cfg)
	if err != nil {
		return set, err
	}
	set.Rules = rules
	return set, nil
}

// SigningConfig turns the [[dkim]] and [signing] tables into a ring's.
func SigningConfig(cfg *configs.Config) dkim.Config {
	dc := dkim.Config{
		Expiry: cfg.Signing.Expiry, Concurrency: cfg.Signing.Concurrency,
		AllowUnsigned: cfg.Signing.Unsigned == "send", AllowReadableKeys: cfg.Signing.AllowReadableKeys,
	}
	for _, k := range cfg.DKIM {
		dc.Keys = append(dc.Keys, dkim.KeyConfig{
			Domain: k.Domain, Selector: k.Selector, KeyFile: k.KeyFile, SigningDomain: k.SigningDomain,
			Tenant: k.Tenant, Additional: k.Additional,
		})
	}
	return dc
}

// BounceRules loads the classification rules a configuration names.
func BounceRules(cfg *configs.Config) (*bounce.Classifier, error) {
	var data []byte
	var err error
	if cfg.Bounce.Rules != "" {
		data, err = os.ReadFile(cfg.Bounce.Rules)
	} else {
		data, err = configs.Shipped("bounce.toml")
	}
	if err != nil {
		return nil, fmt.Errorf("app: bounce rules: %w", err)
	}
	return bounce.NewClassifier(data)
}

func (a *App) suppressed(_ context.Context, tenant, campaign string, addr message.Address) (string, bool, error) {
	e, hit, err := a.list.Check(tenant, campaign, addr)
	if err != nil || !hit {
		return "", false, err
	}
	return e.Reason.String(), true, nil
}

func (a *App) buildDoor() error {
	tenants, err := tenantTable(a.cfg)
	if err != nil {
		return err
	}
	a.setTenants(tenants)
	cfg := inject.Config{
		Hostname: a.cfg.Hostname, NoReceived: !a.cfg.Inject.Received, HideClient: a.cfg.Inject.HideClient,
		RefuseSuppressed: a.cfg.Inject.RefuseSuppressed, MaxSize: int(a.cfg.Inject.MaxMessageSize),
		MaxRecipients: max(a.cfg.HTTP.MaxRecipients, 1000), MaxReceived: a.cfg.Inject.MaxReceived,
		MaxAge: a.cfg.Queue.MaxAge, MaxDelay: a.cfg.Queue.MaxSchedule,
	}
	deps := inject.Deps{
		IDs: &message.IDSource{}, Now: a.opt.Now, Tenant: a.tenant, Suppressed: a.suppressed, Metrics: a.registry,
	}
	if err = a.mint.fill(&cfg, &deps); err == nil {
		a.door, err = inject.New(cfg, a.pressure, deps)
	}
	return err
}

// tenantTable is what the door must know about every tenant.
func tenantTable(cfg *configs.Config) (map[string]inject.Tenant, error) {
	tenants := map[string]inject.Tenant{configs.DefaultTenant: {}}
	for _, t := range cfg.Tenant {
		verp, err := inject.ParseVerp(t.Verp)
		if err != nil {
			return nil, err
		}
		tenants[t.Name] = inject.Tenant{
			Pool: t.Pool, Pools: t.Pools, SenderDomains: t.SenderDomains, MaxAge: t.MaxAge, Suspended: t.Suspended, Verp: verp, MaxQueued: t.MaxQueued,
		}
	}
	return tenants, nil
}

func (a *App) setTenants(tenants map[string]inject.Tenant) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tenants = tenants
}

func (a *App) tenant(name string) (inject.Tenant, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.tenants[name]
	return t, ok, nil
}

// Reload puts a new configuration in force as far as that is possible without a
// restart: rules, routes, keys, tenants, retry schedule, delivery settings. It
// returns the tables of what needs a restart. On an error the old configuration
// stays in force whole.
func (a *App) Reload(cfg *configs.Config) (restart []string, err error) {
	rules, problems := cfg.ShapingRules()
	if len(problems) > 0 {
		return nil, fmt.Errorf("app: shaping: %s", problems[0])
	}
	settings, err := a.settings(cfg)
	if err != nil {
		return nil, err
	}
	ring, err := a.tokenRing(cfg)
	if err != nil {
		return nil, err
	}
	tenants, err := tenantTable(cfg)
	if err != nil {
		return nil, err
	}
	old := a.throttle.Rules()
	a.throttle.Reload(rules) // first: sites are found again under them
	if err := a.mta.Configure(settings); err != nil {
		a.throttle.Reload(old)
		return nil, err
	}
	a.rules.Store(settings.Rules)
	a.queue.SetConfig(cfg.Queue)
	a.setTenants(tenants)
	a.mint.ring.Store(ring)
	for _, f := range a.files {
		f.Reopen()
	}
	return restartKeys(a.cfg, cfg), nil
}
