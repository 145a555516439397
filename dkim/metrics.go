package dkim

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	// algorithm: rsa-sha256, ed25519-sha256. result: ok, error.
	signatures *prometheus.CounterVec
	ok, failed [len(algorithmNames)]prometheus.Counter
	noKey      prometheus.Counter
	seconds    prometheus.Histogram
}

// newMetrics registers the metrics, or takes over those of the ring that this
// one replaces.
func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		signatures: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_dkim_signatures_total",
			Help: "DKIM signatures made, by algorithm and result.",
		}, []string{"algorithm", "result"})),
		noKey: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_dkim_no_key_total",
			Help: "Times a message was to be signed and no key fitted its From domain and tenant.",
		})),
		seconds: register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tradewind_dkim_sign_seconds",
			Help:    "Time to sign a message, all signatures and the wait for a slot included.",
			Buckets: prometheus.ExponentialBuckets(25e-6, 4, 10), // 25 µs to 6.5 s
		})),
	}
	for _, a := range []Algorithm{RSASHA256, Ed25519SHA256} {
		m.ok[a] = m.signatures.WithLabelValues(a.String(), "ok")
		m.failed[a] = m.signatures.WithLabelValues(a.String(), "error")
	}
	return m
}

func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	err := reg.Register(c)
	if old, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return old.ExistingCollector.(C)
	}
	if err != nil {
		panic(err) // two metrics of ours contradict each other
	}
	return c
}

func (m *metrics) signed(a Algorithm, err error) {
	if err != nil {
		m.failed[a].Inc()
		return
	}
	m.ok[a].Inc()
}
