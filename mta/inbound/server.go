// Package inbound is the SMTP receiving edge (RFC 5321): it listens, speaks,
// and hands complete, well-formed messages to a backend written against
// go-smtp's Session.
//
// It promises that what the backend gets is one message, as the client framed
// it: only CRLF.CRLF ends DATA, a bare CR, bare LF or NUL refuses the message
// instead of being repaired, a chunk that came short is never acknowledged,
// and after any failure within a message the connection is closed, so that no
// message text is ever taken for a command. Everything a client can make us
// hold or do is bounded by Config.
//
// It leaves to the backend who may send, to whom, and what makes a message
// durable; a message counts as accepted only when the backend has returned
// without error.
//
// A dialogue is a state machine (phase) with one transaction value for each
// MAIL, which is replaced as a whole and never reset field by field.
//
// Locks: Server.mu and admission.mu are leaves; neither is held across I/O or
// while taking the other.
package inbound

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"
)

// ErrServerClosed is what Serve returns after Shutdown.
var ErrServerClosed = errors.New("inbound: server closed")

// Backend makes one session for each connection, at its first EHLO or HELO and
// again at the first one after STARTTLS. It is go-smtp's Backend but for the
// connection's type, which go-smtp alone can make. An error refuses the
// greeting, with its own words if it is an *smtp.SMTPError.
//
// All methods of one session are called from one goroutine. Reset follows
// every transaction, however it ended; Logout comes once, last.
type Backend interface {
	NewSession(c *Conn) (smtp.Session, error)
}

// BackendFunc lets a function be a Backend.
type BackendFunc func(c *Conn) (smtp.Session, error)

// NewSession calls f.
func (f BackendFunc) NewSession(c *Conn) (smtp.Session, error) { return f(c) }

// BytesSession is an optional interface of a session: where it is present,
// DataBytes is called in place of Data.
//
// body is the whole message in CRLF lines, dot-unstuffed, free of bare CR, bare
// LF and NUL. The callee may read and change it until it returns; the memory is
// used again for another message after that. plain says that no line is longer
// than 998 octets and none begins with a dot. text, if not empty, follows "250
// 2.0.0 " in the reply: the place for the message id. It is cleaned and cut to
// 400 octets.
type BytesSession interface {
	smtp.Session
	DataBytes(body []byte, plain bool) (text string, err error)
}

// Server serves SMTP on any number of listeners that share one Config.
type Server struct {
	cfg     Config
	backend Backend
	log     *slog.Logger
	now     func() time.Time
	press   func() *smtp.SMTPError
	m       *Metrics
	bufs    buffers
	adm     admission

	draining  atomic.Bool
	done      chan struct{} // closed when draining begins
	lastPanic atomic.Int64  // Unix seconds of the last one logged

	wg sync.WaitGroup // one for each connection and each Serve

	mu        sync.Mutex // protects everything below
	listeners map[net.Listener]struct{}
	conns     map[*Conn]struct{}
}

// New checks cfg and allocates a server; it panics if cfg is invalid, which
// Config.Validate tells without panicking.
func New(cfg Config, backend Backend, deps Deps) *Server {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	cfg = cfg.withDefaults()
	s := &Server{
		cfg:       cfg,
		backend:   backend,
		log:       deps.Logger,
		now:       deps.Now,
		press:     deps.Pressure,
		done:      make(chan struct{}),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*Conn]struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.m = deps.Metrics
	if s.m == nil {
		s.m = NewMetrics(nil)
	}
	s.bufs.budget = cfg.MaxBufferedBytes
	s.bufs.total = &s.m.buffered
	s.adm.init(cfg)
	return s
}

// Serve accepts connections from l until Shutdown, when it returns
// ErrServerClosed, or until l fails. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()

	var pause time.Duration
	for {
		nc, err := l.Accept()
		if s.draining.Load() {
			if err == nil {
				nc.Close()
			}
			return ErrServerClosed
		}
		if err != nil {
			// Out of file descriptors and the like pass; a closed listener
			// does not.
			//lint:ignore SA1019 nothing else tells them apart on every listener; net/http asks the same
			if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Temporary() {
				return err
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("accept failed", "err", err)
			select {
			case <-s.done:
				return ErrServerClosed
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		s.m.connections.Inc()
		s.admit(nc)
	}
}

// admit starts the goroutine of one connection, or turns it away.
func (s *Server) admit(nc net.Conn) {
	key := addrKey(nc.RemoteAddr())
	why, ok := s.adm.enter(key)
	if !ok {
		s.m.refuse(why)
		s.turnAway(nc, func(b []byte) []byte { return append(b, replyTooManyConns...) })
		return
	}
	if e := s.pressure(); e != nil {
		s.adm.leave(key)
		s.m.refuse(refusedPressure)
		s.turnAway(nc, func(b []byte) []byte { return appendError(b, withCode(e, 421)) })
		return
	}
	c := newConn(s, nc)
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		s.adm.leave(key)
		nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		defer s.adm.leave(key)
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
}

// turnAway says why and closes. The words are a courtesy: with too many to
// tell, or TLS in between, the connection is only closed.
func (s *Server) turnAway(nc net.Conn, reply func([]byte) []byte) {
	if s.cfg.ImplicitTLS || !s.adm.startTelling() {
		nc.Close()
		return
	}
	s.wg.Go(func() {
		defer s.adm.stopTelling()
		defer nc.Close()
		nc.SetDeadline(s.now().Add(time.Second))
		nc.Write(reply(nil))
	})
}

func (s *Server) pressure() *smtp.SMTPError {
	if s.press == nil {
		return nil
	}
	e := s.press()
	if e != nil && (e.Code < 400 || e.Code > 499) {
		return errInternal
	}
	return e
}

func withCode(e *smtp.SMTPError, code int) *smtp.SMTPError {
	c := *e
	c.Code = code
	return &c
}

// Shutdown closes the listeners, sends 421 to every connection outside a
// transaction and lets transactions under way finish. When ctx ends first, it
// closes the connections that are left and returns ctx.Err(). In either case
// it returns only when no session runs any more, so that the backend may be
// torn down: ctx bounds our patience with clients, not with the backend.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.draining.Swap(true) {
		close(s.done)
	}
	var err error
	for l := range s.listeners {
		err = errors.Join(err, l.Close())
	}
	for c := range s.conns {
		c.interrupt()
	}
	s.mu.Unlock()

	gone := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return err
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.raw.Close()
	}
	s.mu.Unlock()
	<-gone
	return ctx.Err()
}

// isClosed reports the errors of a peer that went away in the ordinary course.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe)
}
