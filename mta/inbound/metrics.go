package inbound

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// phase is where a connection stands in its dialogue.
type phase uint8

// Phases. Their names are the values of the label "state" of
// tradewind_inbound_sessions.
const (
	phaseGreeting phase = iota // before EHLO, or again after STARTTLS
	phaseReady                 // greeted, no transaction
	phaseMail                  // MAIL accepted
	phaseRcpt                  // at least one RCPT accepted
	phaseChunks                // at least one BDAT accepted
	phaseData                  // reading what follows 354
	phaseCount
)

var phaseNames = [phaseCount]string{"greeting", "ready", "mail", "rcpt", "chunks", "data"}

// refusal says why something was turned away: the label "reason" of
// tradewind_inbound_refusals_total.
type refusal uint8

const (
	refusedConns     refusal = iota // too many connections in all
	refusedAddrConns                // too many from one address
	refusedPressure                 // short of disk or memory
	refusedEarly                    // talked out of turn
	refusedTLS                      // handshake failed, or data before it
	refusedAuth                     // AUTH failed
	refusedLockout                  // AUTH tried while locked out
	refusedSyntax                   // protocol error
	refusedJunk                     // a counter ran over
	refusedBackend                  // the backend said no
	refusedFraming                  // bare CR, bare LF, NUL or a long line
	refusedSize                     // message too large
	refusedTimeout                  // too slow
	refusedPanic                    // our own bug
	refusedShutdown                 // we are stopping
	refusalCount
)

var refusalNames = [refusalCount]string{
	"connections", "address_connections", "pressure", "early_talk", "tls", "auth",
	"auth_lockout", "syntax", "junk", "backend", "framing", "size",
	"timeout", "panic", "shutdown",
}

// Metrics counts what any number of servers do. The label values are phaseNames
// and refusalNames and nothing else.
type Metrics struct {
	connections prometheus.Counter
	messages    prometheus.Counter
	bytes       prometheus.Counter
	refusals    [refusalCount]prometheus.Counter
	// sessions is read at scrape time, so that a change of phase costs two
	// atomic adds and no lock.
	sessions [phaseCount]atomic.Int64
	buffered atomic.Int64
}

// NewMetrics makes the counters and registers them with reg, unless that is
// nil. Like all of prometheus it panics when they are registered already: one
// Metrics serves all listeners.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		connections: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_inbound_connections_total",
			Help: "SMTP connections accepted from the listener.",
		}),
		messages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_inbound_messages_total",
			Help: "Messages taken over by SMTP.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_inbound_message_bytes_total",
			Help: "Octets of the messages taken over by SMTP.",
		}),
	}
	refusals := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tradewind_inbound_refusals_total",
		Help: "Connections, commands and messages turned away, by reason.",
	}, []string{"reason"})
	for i, name := range refusalNames {
		m.refusals[i] = refusals.WithLabelValues(name)
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.connections, m.messages, m.bytes, refusals)
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tradewind_inbound_buffered_bytes",
		Help: "Octets held by messages under reception beyond the first 64 KiB of each.",
	}, func() float64 { return float64(m.buffered.Load()) }))
	for i, name := range phaseNames {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "tradewind_inbound_sessions",
			Help:        "Open SMTP connections by state of the dialogue.",
			ConstLabels: prometheus.Labels{"state": name},
		}, func() float64 { return float64(m.sessions[i].Load()) }))
	}
	return m
}

func (m *Metrics) refuse(r refusal) { m.refusals[r].Inc() }
