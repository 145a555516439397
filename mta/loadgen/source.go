package loadgen

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Source makes SMTP load. The zero value but for Target sends one message.
type Source struct {
	// Target is host:port.
	Target string
	// Dial opens connections. Default: a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Connections is how many are used at a time. Default: 1.
	Connections int
	// Messages is how many to send in all. Default: 1.
	Messages int
	// Size of each message in octets, header included; at least some 300.
	// Default: 10 KiB.
	Size int
	// Rate limits messages a second over all connections; 0 means as fast as
	// the target takes them.
	Rate float64
	// Recipients per message. Default: 1.
	Recipients int
	// From is the envelope sender. Default: load@load.example.
	From string
	// To is a pattern with %d for the recipient's number and, optionally, a
	// second %d for its domain's. Default: user%d@d%d.example.
	To string
	// Domains is how many domains the pattern's second %d goes through.
	// Default: 10.
	Domains int
	// Body is text, html or dots (every line begins with one). Default: text.
	Body string
	// NoPipelining says one command at a time.
	NoPipelining bool
	// Chain writes the next message's envelope behind the final dot, in the same
	// write: half the system calls, for when the source must not be the
	// bottleneck. Few real clients do it. It needs PIPELINING and no Rate.
	Chain bool
	// FirstID is the number of the first message, so that several runs have
	// ids of their own.
	FirstID int
	// Timeout is the longest wait for a reply. Default: 60 s.
	Timeout time.Duration
	// OnBegin is called before message id is begun, from several goroutines.
	OnBegin func(id string, at time.Time)
	// OnAck is called once for every message that was begun, from several
	// goroutines: id is in its X-Load-ID field. code is the reply to the final
	// dot, or to the command that was refused; 0 means unknown: the connection
	// died before the reply. Messages never begun are not reported.
	OnAck func(id string, code int, reply string, at time.Time)
}

// Report adds up a run.
type Report struct {
	Sent     int64 // messages begun
	Accepted int64 // 2xx to the dot
	Deferred int64 // 4xx
	Rejected int64 // 5xx
	Unknown  int64 // no reply
	Octets   int64 // of the messages accepted
	Elapsed  time.Duration
	// P50, P99 and P999 are times from MAIL to the reply to the dot, of
	// accepted messages, to within 7 per cent.
	P50, P99, P999, Max time.Duration
}

// Rate returns accepted messages a second.
func (r *Report) Rate() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Accepted) / r.Elapsed.Seconds()
}

// maxBroken is how many connections in a row may fail before Run gives up.
const maxBroken = 20

func (s Source) withDefaults() (Source, error) {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&s.Connections, 1)
	def(&s.Messages, 1)
	def(&s.Size, 10<<10)
	def(&s.Recipients, 1)
	def(&s.Domains, 10)
	s.Connections = min(s.Connections, s.Messages)
	s.Chain = s.Chain && s.Rate <= 0
	if s.From == "" {
		s.From = "load@load.example"
	}
	if s.To == "" {
		s.To = "user%d@d%d.example"
	}
	if n := strings.Count(s.To, "%d"); n > 2 || strings.Count(s.To, "%") != n {
		return s, fmt.Errorf("loadgen: recipient pattern %q may hold %%d twice and no other %%", s.To)
	}
	if s.Timeout <= 0 {
		s.Timeout = time.Minute
	}
	if s.Dial == nil {
		s.Dial = (&net.Dialer{}).DialContext
	}
	return s, nil
}

// Run sends and reports. The error says why messages were left unsent: ctx, or
// a target that cannot be reached or refuses the conversation.
func (s Source) Run(ctx context.Context) (Report, error) {
	s, err := s.withDefaults()
	if err != nil {
		return Report{}, err
	}
	tmpl, err := makeTemplate(&s)
	if err != nil {
		return Report{}, err
	}
	run := &run{Source: s, tmpl: tmpl, start: time.Now()}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	workers := make([]*worker, s.Connections)
	var wg sync.WaitGroup
	for i := range workers {
		workers[i] = &worker{run: run, msg: bytes.Clone(tmpl.bytes), in: make([]byte, 8<<10)}
		wg.Go(func() {
			if err := workers[i].work(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	var rep Report
	var lat latencies
	for _, w := range workers {
		rep.Sent += w.rep.Sent
		rep.Accepted += w.rep.Accepted
		rep.Deferred += w.rep.Deferred
		rep.Rejected += w.rep.Rejected
		rep.Unknown += w.rep.Unknown
		rep.Max = max(rep.Max, w.rep.Max)
		lat.merge(&w.lat)
	}
	rep.Octets = rep.Accepted * int64(len(tmpl.bytes))
	rep.Elapsed = time.Since(run.start)
	rep.P50, rep.P99, rep.P999 = lat.quantile(0.5), lat.quantile(0.99), lat.quantile(0.999)
	return rep, context.Cause(ctx)
}

type run struct {
	Source
	tmpl  template
	start time.Time
	next  atomic.Int64
}

// take returns the number of the next message, when its time has come.
func (r *run) take(ctx context.Context) (n int, ok bool) {
	n = int(r.next.Add(1)) - 1
	if n >= r.Messages {
		return 0, false
	}
	if r.Rate <= 0 {
		return n, ctx.Err() == nil
	}
	due := r.start.Add(time.Duration(float64(n) / r.Rate * float64(time.Second)))
	wait := time.Until(due)
	if wait <= 0 {
		return n, ctx.Err() == nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return n, true
	case <-ctx.Done():
		return 0, false
	}
}
