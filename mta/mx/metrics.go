package mx

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are the counters of one Resolver. The children of the vectors are
// looked up once, because a cache hit costs less than finding its label.
type metrics struct {
	hit, miss, stale prometheus.Counter
	results          [numResults]prometheus.Counter
	seconds          prometheus.Histogram
	inFlight         prometheus.Gauge
	entries          prometheus.Gauge
	down             prometheus.Gauge
}

// result is how one query to one server ended: the closed label set of
// tradewind_dns_queries_total.
type queryResult int

const (
	resultAnswer   queryResult = iota // NOERROR, with or without records
	resultNXDomain                    // no such name
	resultServFail                    // SERVFAIL
	resultRefused                     // any other response code
	resultTimeout                     // no answer in time
	resultNetwork                     // could not send, or reset
	resultBad                         // not an answer to our question, or malformed
	numResults
)

func (q queryResult) String() string {
	return [...]string{"answer", "nxdomain", "servfail", "refused", "timeout", "network", "bad"}[q]
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	cached := f.NewCounterVec(prometheus.CounterOpts{
		Name: "tradewind_dns_cache_total",
		// result: hit, miss, stale (an expired answer served because DNS fails)
		Help: "Questions put to the DNS cache, by result.",
	}, []string{"result"})
	queries := f.NewCounterVec(prometheus.CounterOpts{
		Name: "tradewind_dns_queries_total",
		// result: see queryResult
		Help: "Queries sent to DNS servers, by result.",
	}, []string{"result"})
	m := &metrics{
		hit:   cached.WithLabelValues("hit"),
		miss:  cached.WithLabelValues("miss"),
		stale: cached.WithLabelValues("stale"),
		seconds: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "tradewind_dns_query_seconds",
			Help:    "Time from sending a DNS query to its end.",
			Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10},
		}),
		inFlight: f.NewGauge(prometheus.GaugeOpts{
			Name: "tradewind_dns_lookups_in_flight",
			Help: "Names being resolved now.",
		}),
		entries: f.NewGauge(prometheus.GaugeOpts{
			Name: "tradewind_dns_cache_entries",
			Help: "Answers in the DNS cache.",
		}),
		down: f.NewGauge(prometheus.GaugeOpts{
			Name: "tradewind_dns_servers_down",
			Help: "DNS servers set aside because they did not answer.",
		}),
	}
	for q := range numResults {
		m.results[q] = queries.WithLabelValues(q.String())
	}
	return m
}

func (m *metrics) query(q queryResult, took time.Duration) {
	m.results[q].Inc()
	m.seconds.Observe(took.Seconds())
}
