package inject

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/message"
)

// Raw takes one message: what Prepare does, then the durable commit. On
// success every recipient of the result without Refused is on stable storage.
// The error is an *Error.
func (i *Injector) Raw(ctx context.Context, env Envelope, body []byte) (*Result, error) {
	p, err := i.Prepare(ctx, env, body)
	if err != nil {
		return nil, err
	}
	if err := i.Accept(ctx, []*Prepared{p}); err != nil {
		return nil, err
	}
	return p.Result, nil
}

// Accept commits all of ps in one batch, or none of them. It returns after the
// commit; the error is an *Error with a 4xx reply.
func (i *Injector) Accept(ctx context.Context, ps []*Prepared) error {
	n := 0
	for _, p := range ps {
		n += len(p.Submissions)
	}
	if n == 0 {
		return nil
	}
	subs := make([]*Submission, 0, n)
	for _, p := range ps {
		subs = append(subs, p.Submissions...)
	}
	began := i.deps.Now()
	err := i.queue.Accept(ctx, subs)
	i.metric.accept.Observe(i.deps.Now().Sub(began).Seconds())
	for _, p := range ps {
		if err != nil {
			i.metric.count(p.door, deferred, len(p.Submissions))
			continue
		}
		i.metric.count(p.door, accepted, len(p.Submissions))
		for _, s := range p.Submissions {
			i.metric.durability[s.Message.Durability].Inc()
		}
		i.metric.suppressed.Add(float64(p.suppressed))
	}
	if err != nil {
		return later("queue", err)
	}
	return nil
}

// result is what a message came to at the door.
type result int

const (
	accepted result = iota
	refused
	deferred
)

var (
	resultNames = [...]string{"accepted", "refused", "deferred"}
	doors       = [...]Door{DoorSMTP, DoorHTTP, DoorInternal}
)

type metrics struct {
	// messages is tradewind_inject_messages_total by door (smtp, http,
	// internal) and result (accepted, refused, deferred), resolved once: the
	// look-up by label would cost more than the scan of a small header.
	messages [len(doors)][len(resultNames)]prometheus.Counter
	// durability is tradewind_inject_durability_total by durability (fsync, os).
	durability [2]prometheus.Counter
	suppressed prometheus.Counter
	accept     prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	var m metrics
	messages := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tradewind_inject_messages_total",
		Help: "Messages at the door, by door (smtp, http, internal) and result (accepted, refused, deferred).",
	}, []string{"door", "result"})
	durability := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tradewind_inject_durability_total",
		Help: "Messages accepted, by what their acknowledgement waited for: durability fsync (stable storage) or os (written to the operating system).",
	}, []string{"durability"})
	for d := range m.durability {
		m.durability[d] = durability.WithLabelValues(message.Durability(d).String())
	}
	m.suppressed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "tradewind_inject_suppressed_recipients_total",
		Help: "Recipients accepted and settled at once because they are suppressed.",
	})
	m.accept = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "tradewind_inject_accept_seconds",
		Help:    "Time from a message being ready to its durable commit.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
	})
	for d := range doors {
		for r, name := range resultNames {
			m.messages[d][r] = messages.WithLabelValues(string(doors[d]), name)
		}
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(messages), reg.Register(durability), reg.Register(m.suppressed), reg.Register(m.accept))
}

func (m *metrics) count(d Door, r result, n int) {
	for k, name := range doors {
		if d == name {
			m.messages[k][r].Add(float64(n))
		}
	}
}

// received appends our trace field (RFC 5321, 4.4).
func (i *Injector) received(b []byte, env *Envelope, id []byte, now time.Time) []byte {
	b = append(b, "Received: "...)
	if !i.cfg.HideClient && env.Client != "" {
		b = append(b, "from "...)
		b = appendToken(b, env.HELO)
		b = append(b, " (["...)
		b = appendToken(b, env.Client)
		b = append(b, "])\r\n\t"...)
	}
	b = append(b, "by "...)
	b = append(b, i.cfg.Hostname...)
	if env.Protocol != "" {
		b = append(b, " with "...)
		b = appendToken(b, env.Protocol)
	}
	b = append(b, " id "...)
	b = append(b, id...)
	b = append(b, ";\r\n\t"...)
	return append(i.dates.append(b, now), "\r\n"...)
}

// appendToken appends what a client said about itself, if it can stand in a
// Received field as it is, and "unknown" otherwise.
func appendToken(b []byte, s string) []byte {
	if s == "" || len(s) > 255 {
		return append(b, "unknown"...)
	}
	for k := range len(s) {
		switch c := s[k]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '-', c == ':', c == '_', c == '[', c == ']':
		default:
			return append(b, "unknown"...)
		}
	}
	return append(b, s...)
}

// dates writes the time of now, as fields of a header do. It keeps the text of one
// second: formatting it twice costs each of ten thousand messages a microsecond.
type dates struct{ last atomic.Pointer[dateText] }

type dateText struct {
	second int64 // Unix time
	text   string
}

func (d *dates) append(b []byte, t time.Time) []byte {
	last := d.last.Load()
	if last == nil || last.second != t.Unix() {
		last = &dateText{t.Unix(), t.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700")}
		d.last.Store(last)
	}
	return append(b, last.text...)
}
