package event

import "github.com/prometheus/client_golang/prometheus"

// Kind is what a sink is, for the metrics. The set is closed.
type Kind string

// The kinds of sinks, values of the label "kind".
const (
	KindFile     Kind = "file"
	KindCSV      Kind = "csv"
	KindWebhook  Kind = "webhook"
	KindInternal Kind = "internal" // what subscribes inside the program
)

var kinds = [...]Kind{KindFile, KindCSV, KindWebhook, KindInternal}

type journalMetrics struct {
	appended   prometheus.Counter
	unreadable prometheus.Counter
	unread     prometheus.Counter
	bytes      prometheus.Gauge
}

func newJournalMetrics(r prometheus.Registerer) journalMetrics {
	m := journalMetrics{
		appended: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_journal_events_total", Help: "Events given to the journal."}),
		unreadable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_journal_unreadable_total", Help: "Journal records passed over because they could not be read."}),
		unread: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tradewind_journal_forced_cuts_total", Help: "Times the hard retention limit deleted events that a sink had not read."}),
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tradewind_journal_bytes", Help: "Bytes of events the journal holds, before compression."}),
	}
	register(r, m.appended, m.unreadable, m.unread, m.bytes)
	return m
}

// sinkMetrics are shared by the sinks of a Runner. Label kind: file, csv,
// webhook, internal.
type sinkMetrics struct {
	delivered *prometheus.CounterVec
	failed    *prometheus.CounterVec
}

// newSinkMetrics asks lag and stopped at every scrape: the lag of a sink that
// hangs grows without anything of ours running.
func newSinkMetrics(r prometheus.Registerer, lag, stopped func(Kind) float64) sinkMetrics {
	label := []string{"kind"}
	m := sinkMetrics{
		delivered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_sink_events_delivered_total", Help: "Events taken by sinks, by kind of sink."}, label),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_sink_failures_total", Help: "Batches that sinks refused, by kind of sink; each is tried again."}, label),
	}
	register(r, m.delivered, m.failed)
	for _, k := range kinds {
		m.delivered.WithLabelValues(string(k))
		m.failed.WithLabelValues(string(k))
		labels := prometheus.Labels{"kind": string(k)}
		register(r,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{ConstLabels: labels,
				Name: "tradewind_sink_lag_seconds", Help: "Age of the oldest event that a sink has in hand and not yet got rid of, the worst of each kind."},
				func() float64 { return lag(k) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{ConstLabels: labels,
				Name: "tradewind_sinks_stopped", Help: "Sinks parked after their last retry or disabled by their endpoint, by kind of sink."},
				func() float64 { return stopped(k) }))
	}
	return m
}

func register(r prometheus.Registerer, cs ...prometheus.Collector) {
	if r == nil {
		return
	}
	for _, c := range cs {
		r.MustRegister(c)
	}
}
