package loadgen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrClosed is returned by Serve after Shutdown.
var ErrClosed = errors.New("loadgen: sink closed")

// SinkConfig says how a Sink behaves. The zero value accepts everything.
type SinkConfig struct {
	// Hostname is what the greeting says. Default: sink.invalid.
	Hostname string
	// Profile is one of Profiles(); it sets the limits below where they are
	// zero, and the words of every refusal. Default: accept.
	Profile string
	Limits  Limits

	// Latency is waited before each batch of replies: pipelined commands that
	// arrive together are answered together, as over a distant line.
	Latency time.Duration
	// DeferPercent of (sender, recipient) pairs get a 451 until GreylistDelay
	// has gone by since their first attempt. With DeferRandom it is that share
	// of all attempts instead, however often one comes back.
	DeferPercent  int
	DeferRandom   bool
	GreylistDelay time.Duration // default: none, the second attempt passes
	// RejectPercent of recipients get a 550 every time.
	RejectPercent int
	// Seed varies which recipients the percentages hit.
	Seed uint64

	// TLS offers STARTTLS with a certificate made on the spot.
	TLS bool
	// NoPipelining, No8BITMIME, NoSMTPUTF8 leave the extension out.
	NoPipelining, No8BITMIME, NoSMTPUTF8 bool
	// MaxSize is the largest message in octets. Default: 64 MiB.
	MaxSize int64
	// IdleTimeout ends a connection that says nothing. Default: 5 min.
	IdleTimeout time.Duration

	// OnMessage is called for every message before its reply goes out, from
	// the connection's goroutine; what it is given belongs to it. If set, the
	// message is hashed, which costs more than receiving it, unless NoSum is
	// set too.
	OnMessage func(*Received)
	NoSum     bool
	// OnMail is called for every MAIL that no limit has refused, with the client's
	// address. A reply that is not empty refuses it. Otherwise over, unless nil,
	// is called when the transaction has ended, before its last reply goes out.
	OnMail func(client, from string) (reply string, over func())
	// KeepBody hands the message itself to OnMessage.
	KeepBody bool

	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Limits is what a provider enforces; 0 means no limit.
type Limits struct {
	Connections           int // at a time, per client address
	MessagesPerConnection int
	RecipientsPerMessage  int
	MessagesPerMinute     int // per client address
}

// Received is one message as it came in.
type Received struct {
	Time time.Time
	// Client is the peer's address, Helo its name, TLS whether it encrypted.
	Client, Helo string
	TLS          bool
	From         string   // as given, without angle brackets
	To           []string // accepted recipients
	// Accepted is false when the message got a refusal after the dot.
	Accepted bool
	Code     int
	// Bounced lists accepted recipients of the form bounce+…: the hook may
	// send a delivery report for them.
	Bounced []string
	Size    int64    // octets, dot-unstuffed, final dot not counted
	Sum     [32]byte // SHA-256 of these octets; zero with NoSum
	Body    []byte   // the same octets, if KeepBody
}

// Counts is a snapshot of a Sink's counters.
type Counts struct {
	Connections int64 // accepted by Serve
	Refused     int64 // of these, turned away by a limit
	Open, Peak  int64
	Messages    int64 // acknowledged with 250
	Recipients  int64 // of these messages
	Bytes       int64
	// Replies counts all replies by code.
	Replies map[int]int64
}

// Sink is an SMTP server that throws mail away.
type Sink struct {
	cfg    SinkConfig
	prof   *profile
	tls    *tls.Config
	cert   *x509.Certificate
	bufs   sync.Pool
	closed chan struct{}
	wg     sync.WaitGroup

	conns, refused, open, peak   atomic.Int64
	messages, recipients, octets atomic.Int64
	attempts                     atomic.Uint64
	replies                      [400]atomic.Int64 // by code - 200

	mu        sync.Mutex // protects everything below
	listeners map[net.Listener]struct{}
	live      map[*session]struct{}
	clients   map[string]*client
	grey      map[uint64]time.Time // first attempt of deferred pairs
	tries     map[uint64]int       // attempts of deferN+… recipients
}

// maxRemembered bounds each memory of a Sink. What is dropped is forgotten,
// which a sender sees as one more deferral.
const maxRemembered = 1 << 20

// client is what the limits count for one address.
type client struct {
	open   int
	minute int64 // unix minute that messages counts
	count  int
}

// New returns a sink, or an error for a profile that does not exist.
func New(cfg SinkConfig) (*Sink, error) {
	if cfg.Hostname == "" {
		cfg.Hostname = "sink.invalid"
	}
	if cfg.MaxSize <= 0 {
		cfg.MaxSize = 64 << 20
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = 5 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	prof, err := findProfile(cfg.Profile)
	if err != nil {
		return nil, err
	}
	prof.apply(&cfg)
	s := &Sink{
		cfg: cfg, prof: prof, closed: make(chan struct{}),
		listeners: make(map[net.Listener]struct{}),
		live:      make(map[*session]struct{}),
		clients:   make(map[string]*client),
		grey:      make(map[uint64]time.Time),
		tries:     make(map[uint64]int),
	}
	if cfg.TLS {
		if s.tls, s.cert, err = makeCertificate(cfg.Hostname); err != nil {
			return nil, fmt.Errorf("loadgen: certificate: %w", err)
		}
	}
	return s, nil
}

// Roots returns a pool that verifies the sink's certificate for its Hostname;
// nil without TLS.
func (s *Sink) Roots() *x509.CertPool {
	if s.cert == nil {
		return nil
	}
	pool := x509.NewCertPool()
	pool.AddCert(s.cert)
	return pool
}

// Serve answers connections from l until Shutdown, and then returns ErrClosed.
// It may be called for several listeners. l is closed on return.
func (s *Sink) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.isClosed() {
		s.mu.Unlock()
		return ErrClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for {
		nc, err := l.Accept()
		if s.isClosed() {
			if err == nil {
				nc.Close()
			}
			return ErrClosed
		}
		if err != nil {
			return fmt.Errorf("loadgen: accept: %w", err)
		}
		s.start(nc)
	}
}

// start answers nc in a goroutine that Shutdown waits for.
func (s *Sink) start(nc net.Conn) {
	ss := s.enter(nc)
	if ss == nil {
		nc.Close()
		return
	}
	go func() {
		defer s.wg.Done()
		ss.serve()
	}()
}

// ServeConn answers one connection and returns when it is over.
func (s *Sink) ServeConn(nc net.Conn) {
	ss := s.enter(nc)
	if ss == nil {
		nc.Close()
		return
	}
	defer s.wg.Done()
	ss.serve()
}

// enter counts a connection in; nil once the sink is closed.
func (s *Sink) enter(nc net.Conn) *session {
	addr := clientOf(nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return nil
	}
	s.wg.Add(1)
	s.conns.Add(1)
	if n := s.open.Add(1); n > s.peak.Load() {
		s.peak.Store(n) // mu is held: nobody else raises it
	}
	cl := s.clients[addr]
	if cl == nil {
		if len(s.clients) >= maxRemembered {
			s.forgetClients()
		}
		cl = &client{}
		s.clients[addr] = cl
	}
	cl.open++
	ss := &session{sink: s, nc: nc, raw: nc, addr: addr, client: cl}
	ss.above = s.cfg.Limits.Connections > 0 && cl.open > s.cfg.Limits.Connections
	s.live[ss] = struct{}{}
	return ss
}

// forgetClients drops the addresses without a connection. REQUIRES: mu is held.
func (s *Sink) forgetClients() {
	for a, cl := range s.clients {
		if cl.open == 0 {
			delete(s.clients, a)
		}
	}
}

func (s *Sink) leave(ss *session) {
	s.open.Add(-1)
	s.mu.Lock()
	defer s.mu.Unlock()
	ss.client.open--
	delete(s.live, ss)
}

// clientOf is the peer's address without its port.
func clientOf(nc net.Conn) string {
	addr := nc.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

func (s *Sink) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// Shutdown stops accepting, lets every connection finish the message it is in
// the middle of, and returns when all are closed. When ctx ends first, the rest
// is cut off and ctx's error returned.
func (s *Sink) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.isClosed() {
		close(s.closed)
	}
	for l := range s.listeners {
		l.Close()
	}
	for ss := range s.live {
		ss.nudge()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.wg.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for ss := range s.live {
		ss.raw.Close()
	}
	s.mu.Unlock()
	<-done
	return ctx.Err()
}

// Counts returns the counters.
func (s *Sink) Counts() Counts {
	c := Counts{
		Connections: s.conns.Load(), Refused: s.refused.Load(),
		Open: s.open.Load(), Peak: s.peak.Load(),
		Messages: s.messages.Load(), Recipients: s.recipients.Load(), Bytes: s.octets.Load(),
		Replies: make(map[int]int64),
	}
	for i := range s.replies {
		if n := s.replies[i].Load(); n > 0 {
			c.Replies[200+i] = n
		}
	}
	return c
}
