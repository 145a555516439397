package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/inbound"
)

type smtpListener struct {
	server   *inbound.Server
	listener net.Listener
}

type httpListener struct {
	name     string
	server   *http.Server
	listener net.Listener
}

// Bounds of a listener for reports.
const (
	reportLine    = 1 << 20
	reportBuffers = 256 << 20
)

func (a *App) listenSMTP() error {
	counters := inbound.NewMetrics(a.registry)
	for i := range a.cfg.SMTP {
		c := &a.cfg.SMTP[i]
		ic := inbound.Config{
			Hostname: a.cfg.Hostname, ImplicitTLS: c.ImplicitTLS, AllowLoopbackAuth: c.AllowLoopbackAuth,
			MaxMessageBytes: int64(c.MaxMessageSize), MaxRecipients: c.MaxRecipients,
			MaxConns: c.MaxConnections, MaxConnsPerAddr: c.MaxConnectionsPerAddr, IdleTimeout: c.IdleTimeout,
		}
		if c.Role == configs.RoleBounce {
			// Nothing is sent on, so lines may be as long as broken servers write
			// them; and nobody needs to have much under way.
			ic.MaxTextLine, ic.MaxBufferedBytes = reportLine, reportBuffers
		}
		if c.TLSCert != "" {
			cert, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
			if err != nil {
				return fmt.Errorf("app: smtp[%d]: certificate: %w", i, err)
			}
			ic.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		}
		if err := ic.Validate(); err != nil {
			return fmt.Errorf("app: smtp[%d]: %w", i, err)
		}
		backend := a.backend(c, ic.TLS != nil)
		l, err := a.bind(c.Listen)
		if err != nil {
			return fmt.Errorf("app: smtp[%d]: %w", i, err)
		}
		s := inbound.New(ic, backend, inbound.Deps{
			Logger: a.log, Now: a.opt.Now, Pressure: a.pressure.smtp, Metrics: counters,
		})
		a.smtp = append(a.smtp, smtpListener{s, l})
	}
	return nil
}

// backend is what stands behind a listener.
func (a *App) backend(c *configs.SMTP, tls bool) inbound.Backend {
	if c.Role == configs.RoleBounce {
		return &inbound.Reports{Mailbox: a.reports}
	}
	s := &inbound.Submission{Injector: a.door, Name: "smtp:" + c.Listen, RelayFrom: c.RelayFrom, Tenant: c.Tenant}
	if s.Durability.UnmarshalText([]byte(c.Durability)) != nil {
		s.Durability = message.Synced // Validate has refused anything else
	}
	if tls || c.AllowLoopbackAuth {
		s.Login = a.keys.Login
	}
	return s
}

// bind listens, and closes the listener again when New fails or Run ends.
func (a *App) bind(addr string) (net.Listener, error) {
	l, err := a.opt.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	a.onClose(func() error {
		l.Close() // its server may have closed it before
		return nil
	})
	return l, nil
}

func (a *App) listenHTTP() error {
	c := &a.cfg.HTTP
	cfg := api.Config{
		TrustLoopback: c.TrustLoopback, LoopbackTenant: configs.DefaultTenant, Hosts: c.Hosts,
		MaxBody: int(c.MaxBody), MaxRecipients: c.MaxRecipients, MaxMemory: int(c.MaxMemory),
		ReplayFor: a.cfg.Queue.IdempotencyTTL,
	}
	deps := api.Deps{
		Inject: a.door, Keys: a.keys, Replays: queueView{a}, Queue: queueView{a}, Journal: journalView{a.journal},
		Suppressions: suppressionView{a.list}, Transfers: a.list, Webhooks: a.hooks, Now: a.opt.Now, Log: a.log, Metrics: a.registry,
	}
	if c.API != "" {
		h, err := api.API(cfg, deps)
		if err != nil {
			return err
		}
		if err := a.serveHTTP("api", c.API, h); err != nil {
			return err
		}
	}
	if c.Admin != "" {
		h, err := api.Admin(cfg, api.AdminDeps{
			Deps: deps, Gatherer: a.registry, Routes: a.adminRoutes(),
			Ready: map[string]func(context.Context) error{
				"storage": func(context.Context) error { return a.pressure.err() },
			},
		})
		if err != nil {
			return err
		}
		return a.serveHTTP("admin", c.Admin, h)
	}
	return nil
}

func (a *App) serveHTTP(name, addr string, h http.Handler) error {
	l, err := a.bind(addr)
	if err != nil {
		return fmt.Errorf("app: http.%s: %w", name, err)
	}
	a.http = append(a.http, httpListener{name, api.NewServer(h, a.log), l})
	return nil
}

// SMTPAddr is the address of SMTP listener i.
func (a *App) SMTPAddr(i int) net.Addr { return a.smtp[i].listener.Addr() }

// HTTPAddr is the address of the HTTP listener called "api" or "admin", nil
// when it is off.
func (a *App) HTTPAddr(name string) net.Addr {
	for _, h := range a.http {
		if h.name == name {
			return h.listener.Addr()
		}
	}
	return nil
}

// Metrics is the registry that the admin listener serves at /metrics.
func (a *App) Metrics() *prometheus.Registry { return a.registry }

// ErrStorage is what Run returns after a storage failure: the process must end,
// and a restart recovers.
var ErrStorage = errors.New("app: storage failed")

// graceStorage is how long sessions under way may take to hear that storage has
// failed.
const graceStorage = time.Second

// Run serves until ctx ends, then stops in order: the listeners, deliveries, the
// queue, the journal and its sinks, the stores. It returns ErrStorage when
// storage failed; nothing is closed then, because Pebble does not recover in
// place.
func (a *App) Run(ctx context.Context) error {
	// The parts behind the listeners outlive ctx: each is stopped when the one
	// before it has ended.
	rest := context.WithoutCancel(ctx)
	var g errgroup.Group
	failed := make(chan error, 1)
	start := func(name string, fn func(context.Context) error) (stop func()) {
		ctx, cancel := context.WithCancel(rest)
		done := make(chan struct{})
		g.Go(func() error {
			defer close(done)
			err := fn(ctx)
			if err == nil || errors.Is(err, context.Canceled) {
				return nil
			}
			err = fmt.Errorf("app: %s: %w", name, err)
			select {
			case failed <- err:
			default:
			}
			return err
		})
		return func() { cancel(); <-done }
	}
	stops := []func(){
		start("journal", func(ctx context.Context) error { return a.journal.Run(ctx, a.sinks.Slowest) }),
		start("sinks", a.sinks.Run),
		start("suppression", a.list.Run),
		start("free space", a.pressure.run),
		start("shaping state", a.shaping.run),
		start("queue", a.queue.Run),
		start("delivery", a.mta.Run),
	}
	if a.reports != nil {
		stops = append(stops, start("reports", a.reports.Run))
	}
	for _, s := range a.smtp {
		start("smtp", func(context.Context) error {
			if err := s.server.Serve(s.listener); !errors.Is(err, inbound.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	for _, h := range a.http {
		start("http "+h.name, func(context.Context) error {
			if err := h.server.Serve(h.listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	for i, s := range a.smtp {
		a.log.Info("listening", "door", "smtp", "role", a.cfg.SMTP[i].Role, "addr", s.listener.Addr().String())
	}
	for _, h := range a.http {
		a.log.Info("listening", "door", h.name, "addr", h.listener.Addr().String())
	}
	a.log.Info("ready", "hostname", a.cfg.Hostname)
	var cause error
	select {
	case <-ctx.Done():
	case cause = <-failed:
	case cause = <-a.fatal:
		cause = fmt.Errorf("%w: %w", ErrStorage, cause)
	}
	if a.spool.Err() != nil || a.ledger.Err() != nil {
		// Whoever waits for an acknowledgement is told to try again, then we go.
		a.log.Error("stopping because storage failed; a restart recovers", "err", cause)
		a.abandonDoors()
		if !errors.Is(cause, ErrStorage) {
			cause = fmt.Errorf("%w: %w", ErrStorage, cause)
		}
		return cause
	}
	a.log.Info("stopping")
	a.stopDoors(a.cfg.Delivery.DrainTimeout)
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i]()
	}
	return errors.Join(cause, g.Wait(), a.close())
}

// abandonDoors is stopDoors for an engine whose storage has failed. A commit that
// was under way then may never return, and its session with it, so it leaves
// behind whoever has not heard twice the grace after the failure: to end is what
// tells their clients.
func (a *App) abandonDoors() {
	told := make(chan struct{})
	go func() {
		defer close(told)
		a.stopDoors(graceStorage)
	}()
	limit := time.NewTimer(2 * graceStorage)
	defer limit.Stop()
	select {
	case <-told:
	case <-limit.C:
		a.log.Warn("sessions that wait for storage are left behind")
	}
}

// stopDoors ends the listeners and lets transactions under way finish. It is
// called once.
func (a *App) stopDoors(grace time.Duration) {
	close(a.closing)
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range a.smtp {
		wg.Go(func() { s.server.Shutdown(ctx) }) // its error only says that time ran out
	}
	for _, h := range a.http {
		wg.Go(func() {
			if h.server.Shutdown(ctx) != nil {
				h.server.Close()
			}
		})
	}
	wg.Wait()
}
