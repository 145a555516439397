package mx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// records finds the records of type qtype that name has, following CNAMEs. An
// error means that it is not known.
func (r *Resolver) records(ctx context.Context, name string, qtype uint16) (found, error) {
	if len(name) > maxName {
		return found{}, errors.New("name too long for DNS")
	}
	c := newChain(name)
	for {
		m, err := r.ask(ctx, c.last(), qtype)
		if err != nil {
			return found{}, fmt.Errorf("%s %s: %w", dns.TypeToString[qtype], name, err)
		}
		f, again, err := c.read(m, qtype)
		if err != nil {
			return found{}, fmt.Errorf("%s %s: %w", dns.TypeToString[qtype], name, err)
		}
		if !again {
			return f, nil
		}
	}
}

var errUnconfirmed = errors.New("servers disagree whether the name exists")

// ask puts one question to the servers until one of them answers it. Servers
// that are down come last. After SERVFAIL or a refusal the next server is
// asked, but not that one again; after a time-out, another round is made.
//
// NXDOMAIN fails mail for good, so it is believed only when a second look says
// the same, at another server if one is up, and no server said SERVFAIL.
func (r *Resolver) ask(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	order, up := r.order()
	gone := make([]bool, len(order))
	var nx *dns.Msg
	var last error
	servfail := false
	for round := 0; round <= r.cfg.Retries; round++ {
		for i, s := range order {
			// A server that is down shall not slow the second look.
			if gone[i] || (nx != nil && i >= up && up > 0) {
				continue
			}
			m, result, err := r.try(ctx, s, name, qtype)
			switch result {
			case resultAnswer:
				return m, nil
			case resultNXDomain:
				if nx != nil && !servfail {
					return m, nil
				}
				nx = m
			case resultServFail, resultRefused:
				servfail = servfail || result == resultServFail
				gone[i] = true
				last = err
			default:
				last = err
			}
			if ctx.Err() != nil {
				return nil, cmp.Or(last, errUnconfirmed)
			}
		}
	}
	if nx != nil {
		return nil, errUnconfirmed
	}
	return nil, last
}

// try asks one server once, within Timeout, over UDP and then over TCP if the
// answer did not fit.
func (r *Resolver) try(ctx context.Context, s *server, name string, qtype uint16) (*dns.Msg, queryResult, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return nil, resultTimeout, errors.New("no DNS answer in time")
	}
	one, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()

	m, result, err := r.send(one, s, newQuery(name, qtype, true), "udp")
	if result == resultRefused && m.Rcode == dns.RcodeFormatError {
		// RFC 6891, 7: a server that knows no EDNS answers FORMERR.
		m, result, err = r.send(one, s, newQuery(name, qtype, false), "udp")
	}
	if err == nil && m.Truncated {
		m, result, err = r.send(one, s, newQuery(name, qtype, true), "tcp")
		if err == nil && m.Truncated {
			result, err = resultBad, errors.New("answer truncated even over TCP")
		}
	}
	// A try cut short because the whole lookup ended says nothing about the
	// server.
	if ctx.Err() == nil {
		r.judge(s, result, err)
	}
	return m, result, err
}

// send makes one exchange and says how it ended; err is nil for an answer and
// for NXDOMAIN only.
func (r *Resolver) send(ctx context.Context, s *server, q *dns.Msg, network string) (m *dns.Msg, result queryResult, err error) {
	start := r.now()
	defer func() { r.metrics.query(result, r.now().Sub(start)) }()
	m, err = r.exchange(ctx, q, network, s.addr)
	if err != nil {
		var ne net.Error
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &ne) && ne.Timeout()) {
			return nil, resultTimeout, errors.New("no DNS answer in time")
		}
		if errors.Is(err, errMismatch) {
			return nil, resultBad, err
		}
		return nil, resultNetwork, errors.New("no DNS server reached")
	}
	if err := matches(q, m); err != nil {
		return nil, resultBad, err
	}
	switch m.Rcode {
	case dns.RcodeSuccess:
		return m, resultAnswer, nil
	case dns.RcodeNameError:
		return m, resultNXDomain, nil
	case dns.RcodeServerFailure:
		return m, resultServFail, errors.New("SERVFAIL")
	}
	return m, resultRefused, fmt.Errorf("refused with DNS code %d", m.Rcode)
}

// newQuery is a recursive question with an unpredictable id.
func newQuery(name string, qtype uint16, edns bool) *dns.Msg {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	if edns {
		// 1232 octets pass every path unfragmented.
		q.SetEdns0(1232, false)
	}
	return q
}

var errMismatch = errors.New("DNS answer does not match the question")

// matches checks that m answers q: a response of the same id, operation and
// question (RFC 5452, 9.1).
func matches(q, m *dns.Msg) error {
	if m == nil || m.Id != q.Id || !m.Response || m.Opcode != q.Opcode || len(m.Question) != 1 {
		return errMismatch
	}
	a, b := q.Question[0], m.Question[0]
	if a.Qtype != b.Qtype || a.Qclass != b.Qclass || !strings.EqualFold(a.Name, b.Name) {
		return errMismatch
	}
	return nil
}

// server is one recursive resolver and how it has been doing.
type server struct {
	addr string

	mu    sync.Mutex // protects everything below
	fails int        // in a row
	until time.Time  // set aside until then
}

const (
	failsDown   = 2 // in a row, and the server is set aside
	downAtFirst = 5 * time.Second
	downAtMost  = 2 * time.Minute
)

// order lists the servers to ask: those that are up in the operator's order,
// then those that are down. The first up of them are up.
func (r *Resolver) order() (order []*server, up int) {
	now := r.now()
	var down []*server
	for _, s := range r.servers {
		s.mu.Lock()
		isDown := s.fails >= failsDown && now.Before(s.until)
		s.mu.Unlock()
		if isDown {
			down = append(down, s)
		} else {
			order = append(order, s)
		}
	}
	return append(order, down...), len(order)
}

// judge notes how a server did. Only silence and nonsense count against it:
// SERVFAIL is about a name.
func (r *Resolver) judge(s *server, result queryResult, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch result {
	case resultTimeout, resultNetwork, resultBad:
		s.fails++
		if s.fails < failsDown {
			return
		}
		wait := min(downAtFirst<<min(s.fails-failsDown, 10), downAtMost)
		s.until = r.now().Add(wait)
		if s.fails == failsDown {
			r.metrics.down.Inc()
			r.log.Warn("dns server set aside", "server", s.addr, "err", err)
		}
	default:
		if s.fails >= failsDown {
			r.metrics.down.Dec()
			r.log.Info("dns server is back", "server", s.addr)
		}
		s.fails = 0
	}
}
