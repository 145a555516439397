package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// sample is one run of one relay in one cell.
type sample struct {
	Relay    string
	Cell     string
	Round    int
	Messages int
	// Elapsed is from the first command to the last delivery, or to the last
	// acknowledgement for a relay that delivers nothing.
	Elapsed time.Duration
	CPU     time.Duration // of the relay, for Messages
	Memory  int64         // its peak, in octets
	Written int64         // octets
	Accept  quantiles     // from MAIL, or the request, to the acknowledgement
	Arrive  quantiles     // from MAIL, or the request, to the last recipient's delivery
	Longest time.Duration // without any acknowledgement
}

func (s *sample) rate() float64 { return float64(s.Messages) / s.Elapsed.Seconds() }

func (s *sample) cpu() float64 {
	return float64(s.CPU) / float64(time.Microsecond) / float64(s.Messages)
}

func (s *sample) written() float64 { return float64(s.Written) / float64(s.Messages) }

// quantiles are in seconds.
type quantiles struct{ P50, P90, P99, P999, Max float64 }

func quantilesOf(list []int64) (q quantiles) {
	if len(list) == 0 {
		return q
	}
	slices.Sort(list)
	at := func(p float64) float64 {
		return time.Duration(list[min(int(p*float64(len(list))), len(list)-1)]).Seconds()
	}
	return quantiles{at(0.5), at(0.9), at(0.99), at(0.999), at(1)}
}

// ledger follows every message of a run: when it was begun, acknowledged and
// delivered, and how often.
type ledger struct {
	start      time.Time
	recipients int
	prefix     string // of the local parts of this run
	began      []int64
	acked      []int64
	arrived    []atomic.Int64 // the last delivery
	times      []atomic.Int32 // deliveries of each recipient
	missing    atomic.Int64   // recipients not delivered yet
	twice      atomic.Int64
	foreign    atomic.Int64 // deliveries of mail that this run did not send
	done       chan struct{}
}

func newLedger(prefix string, messages, recipients int) *ledger {
	l := &ledger{
		start: time.Now(), recipients: recipients, prefix: prefix,
		began: make([]int64, messages), acked: make([]int64, messages),
		arrived: make([]atomic.Int64, messages), times: make([]atomic.Int32, messages*recipients),
		done: make(chan struct{}),
	}
	l.missing.Store(int64(messages * recipients))
	return l
}

func (l *ledger) at(t time.Time) int64 { return int64(t.Sub(l.start)) }

func (l *ledger) begin(n int, t time.Time) { l.began[n] = l.at(t) }
func (l *ledger) ack(n int, t time.Time)   { l.acked[n] = l.at(t) }

// deliver notes a delivery to addr, which is prefix, a number, '@' and so on.
func (l *ledger) deliver(addr string, t time.Time) {
	rest, ok := strings.CutPrefix(addr, l.prefix)
	number, _, _ := strings.Cut(rest, "@")
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < 0 || n >= len(l.times) {
		l.foreign.Add(1)
		return
	}
	if l.times[n].Add(1) > 1 {
		l.twice.Add(1)
		return
	}
	l.arrived[n/l.recipients].Store(l.at(t))
	if l.missing.Add(-1) == 0 {
		close(l.done)
	}
}

// fill puts what the ledger knows into s.
func (l *ledger) fill(s *sample, delivers bool) {
	accept, arrive := make([]int64, 0, len(l.began)), make([]int64, 0, len(l.began))
	acks := slices.Clone(l.acked)
	slices.Sort(acks)
	last := acks[len(acks)-1]
	for i := 1; i < len(acks); i++ {
		s.Longest = max(s.Longest, time.Duration(acks[i]-acks[i-1]))
	}
	for i := range l.began {
		accept = append(accept, l.acked[i]-l.began[i])
		if delivers {
			arrive = append(arrive, l.arrived[i].Load()-l.began[i])
			last = max(last, l.arrived[i].Load())
		}
	}
	s.Elapsed = time.Duration(last - slices.Min(l.began))
	s.Accept, s.Arrive = quantilesOf(accept), quantilesOf(arrive)
}

// far is the far end: a sink whose deliveries go to the ledger of the run.
type far struct {
	sink   *loadgen.Sink
	addr   string
	ledger atomic.Pointer[ledger]
}

func newFar(c *cell) (*far, error) {
	f := &far{}
	var err error
	f.sink, err = loadgen.New(loadgen.SinkConfig{
		Latency: c.latency, DeferPercent: c.greylist, GreylistDelay: greylistFor, NoSum: true,
		OnMessage: func(m *loadgen.Received) {
			l := f.ledger.Load()
			if l == nil || !m.Accepted {
				return
			}
			for _, to := range m.To {
				l.deliver(to, m.Time)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f.addr = listener.Addr().String()
	go f.sink.Serve(listener)
	return f, nil
}

func (f *far) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	f.sink.Shutdown(ctx) // what is left then belongs to a relay that is being killed
}

// errLost reports a relay that did not keep its word.
var errLost = errors.New("mail was lost, doubled or refused")

// patience is how long nothing may be delivered before mail counts as lost.
const patience = 30 * time.Second

// offer sends messages through r and waits until the sink has them all.
func offer(ctx context.Context, r relay, f *far, c *cell, prefix string, messages int, rate float64) (*ledger, error) {
	l := newLedger(prefix, messages, c.recipients)
	f.ledger.Store(l)
	defer f.ledger.Store(nil)
	var bad atomic.Int64
	var words atomic.Pointer[string]
	ack := func(n, code int, reply string, at time.Time) {
		l.ack(n, at)
		if code/100 != 2 {
			bad.Add(1)
			words.Store(&reply)
		}
	}
	var err error
	if c.http {
		err = offerHTTP(ctx, r, c, l, prefix, messages, ack)
	} else {
		src := loadgen.Source{
			Target: r.smtp(), Connections: connections, Messages: messages, Size: c.size, Rate: rate,
			Recipients: c.recipients, From: "load@sender.example", To: prefix + "%d@d%d.example", Domains: c.domains,
			OnBegin: func(id string, at time.Time) { l.begin(number(id), at) },
			OnAck:   func(id string, code int, reply string, at time.Time) { ack(number(id), code, reply, at) },
		}
		_, err = src.Run(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", r.label(), c.name, err)
	}
	if n := bad.Load(); n > 0 {
		return nil, fmt.Errorf("%s, %s: %w: %d of %d messages were not accepted, the last with %q", r.label(), c.name, errLost, n, messages, *words.Load())
	}
	if r.delivers() {
		if err := l.wait(ctx); err != nil {
			return nil, fmt.Errorf("%s, %s: %w", r.label(), c.name, err)
		}
	}
	return l, nil
}

func number(id string) int {
	n, err := strconv.Atoi(id)
	if err != nil {
		panic(err) // loadgen's own number
	}
	return n
}

// wait returns when every recipient has been delivered.
func (l *ledger) wait(ctx context.Context) error {
	tick := time.NewTicker(patience / 10)
	defer tick.Stop()
	last, since := l.missing.Load(), time.Now()
	for {
		select {
		case <-l.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if n := l.missing.Load(); n != last {
			last, since = n, time.Now()
		} else if time.Since(since) > patience {
			return fmt.Errorf("%w: %d recipients were not delivered", errLost, n)
		}
	}
}

func offerHTTP(ctx context.Context, r relay, c *cell, l *ledger, prefix string, messages int, ack func(n, code int, reply string, at time.Time)) error {
	text := strings.Repeat("The quick brown fox jumps over the lazy dog and runs on to the next line.\n", c.size/75+1)[:c.size-400]
	src := loadgen.HTTPSource{
		URL: "http://" + r.http() + "/v1/messages", Connections: connections, Messages: messages,
		Body: func(n int) []byte {
			l.begin(n, time.Now())
			body, err := json.Marshal(map[string]any{
				"from": "load@sender.example", "subject": "load", "text": text,
				"to": fmt.Sprintf("%s%d@d%d.example", prefix, n, n%c.domains),
			})
			if err != nil {
				panic(err) // strings do marshal
			}
			return body
		},
		OnAck: func(n, status int, answer []byte, at time.Time) { ack(n, status, string(answer), at) },
	}
	_, err := src.Run(ctx)
	return err
}

// measure runs one cell once on one relay, started for it and stopped after it.
func measure(ctx context.Context, r relay, c *cell, round, messages int, rate float64) (*sample, error) {
	f, err := newFar(c)
	if err != nil {
		return nil, err
	}
	defer f.close()
	if err := r.start(ctx, c, f.addr); err != nil {
		return nil, fmt.Errorf("%s: %w", r.label(), err)
	}
	defer r.stop()
	warm := *c
	warm.greylist, warm.latency = 0, 0 // the sink decides, but not twice as long
	if _, err := offer(ctx, r, f, &warm, "warm", max(messages/warmup, min(connections, messages)), 0); err != nil {
		return nil, err
	}
	before, err := idle(ctx, r)
	if err != nil {
		return nil, err
	}
	watch := watchMemory(r)
	l, err := offer(ctx, r, f, c, "user", messages, rate)
	if err != nil {
		return nil, err
	}
	after, err := idle(ctx, r)
	if err != nil {
		return nil, err
	}
	s := &sample{Relay: r.label(), Cell: c.name, Round: round, Messages: messages, Memory: watch()}
	l.fill(s, r.delivers())
	s.CPU, s.Written = after.cpu-before.cpu, after.written-before.written
	// What comes late comes twice: by now the relay is idle.
	if n, m := l.twice.Load(), l.foreign.Load(); n+m > 0 {
		return nil, fmt.Errorf("%s, %s: %w: %d deliveries too many, %d of unknown mail", r.label(), c.name, errLost, n, m)
	}
	return s, nil
}

// idle waits until the relay has finished what it does behind the deliveries,
// at most some seconds, and returns what it has used by then.
func idle(ctx context.Context, r relay) (usage, error) {
	const step = 200 * time.Millisecond
	last, err := r.usage()
	for quiet := 0; err == nil && quiet < 2; {
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(step):
		}
		var now usage
		if now, err = r.usage(); err == nil {
			if quiet++; now.cpu-last.cpu > step/20 {
				quiet = 0
			}
			last = now
		}
	}
	return last, err
}

// progress tells the person who waits.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}
