package report

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/bounce"
)

// kind is what a report is: the label "kind".
type kind uint8

const (
	kindBounce kind = iota
	kindDelay
	kindComplaint
	kindUnsubscribe
	kindAutoReply
	kindDelivered
	kindUnreadable
	kindCount
)

var kindNames = [kindCount]string{"bounce", "delay", "complaint", "unsubscribe", "autoreply", "delivered", "unreadable"}

func kindOf(k bounce.Kind) kind {
	switch k {
	case bounce.KindBounce:
		return kindBounce
	case bounce.KindDelay:
		return kindDelay
	case bounce.KindComplaint:
		return kindComplaint
	case bounce.KindAutoReply:
		return kindAutoReply
	case bounce.KindDelivered:
		return kindDelivered
	}
	return kindUnreadable
}

// result is what became of a report: the label "result".
type result uint8

const (
	resultEvent     result = iota // became an event
	resultDuplicate               // told before
	resultCounted                 // nothing follows from it
	resultHeld                    // not believed
	resultCount
)

var resultNames = [resultCount]string{"event", "duplicate", "counted", "quarantined"}

// reason says why a report was not believed: the label "reason".
type reason uint8

const (
	heldNot         reason = iota
	heldNoToken            // nothing in it names a message of ours
	heldUnsigned           // a complaint that nobody vouches for
	heldAmbiguous          // its token names a message with several recipients
	heldForgotten          // the journal has let go of the message
	heldMismatch           // its token is of another recipient than the journal's
	heldMisdirected        // sent to an address that is for something else
	heldUnreadable         // nothing could be read from it
	reasonCount
)

var reasonNames = [reasonCount]string{"", "no_token", "unsigned", "ambiguous", "forgotten", "mismatch", "misdirected", "unreadable"}

// refusal says why mail was turned away at the door: the label "reason".
type refusal uint8

const (
	refusedUnknown refusal = iota // no address of ours
	refusedToken                  // no valid token
	refusedExpired                // a token of mail too old to bounce
	refusedFull                   // too much waits
	refusalCount
)

var refusalNames = [refusalCount]string{"unknown_address", "bad_token", "expired", "full"}

type metrics struct {
	received prometheus.Counter
	reports  [kindCount][resultCount]prometheus.Counter
	held     [reasonCount]prometheus.Counter
	refused  [refusalCount]prometheus.Counter
	delay    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, m *Mailbox) *metrics {
	x := &metrics{
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "tradewind_reports_received_total", Help: "Mail taken in at the bounce domain."}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tradewind_reports_delay_seconds", Help: "Time from taking a report to its event.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 5, 30, 300}}),
	}
	reports := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tradewind_reports_total",
		Help: "Reports read, by kind and by what became of them (event, duplicate, counted, quarantined)."}, []string{"kind", "result"})
	for k, name := range kindNames {
		for r, what := range resultNames {
			x.reports[k][r] = reports.WithLabelValues(name, what)
		}
	}
	held := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tradewind_reports_quarantined_total",
		Help: "Reports that could not be believed, by reason."}, []string{"reason"})
	for r, name := range reasonNames {
		if name != "" {
			x.held[r] = held.WithLabelValues(name)
		}
	}
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tradewind_reports_refused_total",
		Help: "Mail turned away at the bounce domain, by reason."}, []string{"reason"})
	for r, name := range refusalNames {
		x.refused[r] = refused.WithLabelValues(name)
	}
	if reg == nil {
		return x
	}
	reg.MustRegister(x.received, x.delay, reports, held, refused)
	gauge := func(name, help string, fn func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, fn))
	}
	gauge("tradewind_reports_waiting", "Reports taken and not read yet.", func() float64 { return float64(m.count.Load()) })
	gauge("tradewind_reports_waiting_bytes", "Their size.", func() float64 { return float64(m.bytes.Load()) })
	gauge("tradewind_reports_quarantine", "Reports in quarantine.", func() float64 { n, _ := m.quarantine(); return float64(n) })
	gauge("tradewind_reports_quarantine_bytes", "Their size.", func() float64 { _, n := m.quarantine(); return float64(n) })
	return x
}

// quarantine is how much is held.
func (m *Mailbox) quarantine() (count int, bytes int64) {
	m.held.Lock()
	defer m.held.Unlock()
	return m.heldCount, m.heldBytes
}
