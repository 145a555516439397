package suppression

import "github.com/prometheus/client_golang/prometheus"

// metrics: label reason is one of the names of Reason.
type metrics struct {
	added   *prometheus.CounterVec
	removed prometheus.Counter
	hits    prometheus.Counter
	errors  prometheus.Counter
	rows    prometheus.Gauge
	bytes   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		added: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_suppression_added_total", Help: "Suppressions added or confirmed, by reason."}, []string{"reason"}),
		removed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_suppression_removed_total", Help: "Suppressions lifted or expired."}),
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_suppression_hits_total", Help: "Checks that found the address suppressed."}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_suppression_errors_total", Help: "Checks that could not be answered; the mail waits."}),
		rows: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tradewind_suppression_rows", Help: "Rows on the list when the filter was last built."}),
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tradewind_suppression_filter_bytes", Help: "Memory of the filter."}),
	}
	for i := range reasonNames {
		if i > 0 {
			m.added.WithLabelValues(reasonNames[i])
		}
	}
	if r != nil {
		r.MustRegister(m.added, m.removed, m.hits, m.errors, m.rows, m.bytes)
	}
	return m
}
