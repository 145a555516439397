package mta

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/message"
)

// metrics are labelled by provider (the names in the shaping files and
// "default"), result (delivered, deferred, bounced, expired), category (those
// of package message), limit (those of package throttle) and stage.
type metrics struct {
	outcomes    *prometheus.CounterVec
	categories  *prometheus.CounterVec
	delivery    *prometheus.HistogramVec
	transaction prometheus.Histogram
	connections *prometheus.CounterVec
	unreached   *prometheus.CounterVec
	held        *prometheus.CounterVec
	unknown     *prometheus.CounterVec
	unsigned    prometheus.Counter
	panics      prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_delivery_outcomes_total",
			Help: "Recipients settled or deferred by a delivery attempt.",
		}, []string{"provider", "source", "result"}),
		categories: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_delivery_failures_total",
			Help: "Recipients that failed or were deferred, by what the failure was about.",
		}, []string{"provider", "category"}),
		delivery: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tradewind_delivery_duration_seconds",
			Help:    "Time from acceptance to delivery.",
			Buckets: []float64{.01, .05, .1, .5, 1, 5, 30, 120, 600, 3600, 4 * 3600, 24 * 3600, 72 * 3600},
		}, []string{"provider"}),
		transaction: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tradewind_delivery_transaction_seconds",
			Help:    "Duration of one SMTP transaction.",
			Buckets: []float64{.0005, .001, .005, .01, .05, .1, .5, 1, 5, 30, 120, 600},
		}),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_delivery_connections_total",
			Help: "Connections tried, by result: ok or failed.",
		}, []string{"provider", "result"}),
		unreached: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_delivery_unreached_total",
			Help: "Transactions for which no host could be reached, by the stage of the last failure.",
		}, []string{"provider", "stage"}),
		held: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_delivery_held_total",
			Help: "Permits refused, by the limit that refused them.",
		}, []string{"provider", "limit"}),
		unknown: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_delivery_unknown_total",
			Help: "Recipients whose connection was lost after the message and before the reply: they are tried again and may get it twice.",
		}, []string{"provider"}),
		unsigned: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_delivery_missing_key_total",
			Help: "Attempts put off because no DKIM key fits the message.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_delivery_panics_total",
			Help: "Bugs caught in delivery; the message was deferred.",
		}),
	}
	if r != nil {
		r.MustRegister(m.outcomes, m.categories, m.delivery, m.transaction, m.connections, m.unreached, m.held, m.unknown, m.unsigned, m.panics)
	}
	return m
}

// outcome counts one settled or deferred recipient.
func (m *metrics) outcome(l *lane, e *message.Event) {
	provider, source := e.Egress.Provider, e.Egress.Source
	if l == nil {
		provider, source = "none", "none"
	}
	var result string
	switch e.Type {
	case message.EventDelivered:
		result = "delivered"
		m.delivery.WithLabelValues(provider).Observe(e.Duration.Seconds())
	case message.EventBounced:
		result = "bounced"
	case message.EventExpired:
		result = "expired"
	default:
		result = "deferred"
	}
	m.outcomes.WithLabelValues(provider, source, result).Inc()
	if e.Category != message.NoCategory {
		m.categories.WithLabelValues(provider, e.Category.String()).Inc()
	}
}
