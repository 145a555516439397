package throttle

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters of an engine. The label provider is a name from the
// shaping files, or DefaultProvider for all other destinations together; limit
// is one of the Limit names; state one of the State names; kind one of
// learnedNames; action one of brakeActions.
type metrics struct {
	refusals *prometheus.CounterVec // provider, limit
	waited   *prometheus.CounterVec // provider, limit
	held     *prometheus.GaugeVec   // provider, state
	learned  *prometheus.GaugeVec   // provider, kind
	brakes   *prometheus.CounterVec // action

	mu        sync.Mutex // protects everything below
	providers map[string]*providerMetrics
}

// learnedNames are the kinds of learned limits, in the order of learnedKinds.
var learnedNames = [2]string{"rate", "connections"}

// providerMetrics are the counters of one provider, looked up once: the hot
// path only adds.
type providerMetrics struct {
	refusals [numLimits]prometheus.Counter
	waited   [numLimits]prometheus.Counter
	held     [numStates]prometheus.Gauge
	learned  [2]prometheus.Gauge // by learnedNames
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_throttle_refusals_total",
			Help: "Permits refused, by provider and the kind of limit that refused.",
		}, []string{"provider", "limit"}),
		waited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_throttle_wait_seconds_total",
			Help: "Time lanes had to wait for a permit, by provider and the kind of limit.",
		}, []string{"provider", "limit"}),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tradewind_throttle_holds",
			Help: "Sources, domains, tenants and campaigns that providers made us slow down, by provider and state.",
		}, []string{"provider", "state"}),
		learned: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tradewind_throttle_learned_limits",
			Help: "Limits below those of the rules that holds have learned from refusals, by provider and kind: rate, connections.",
		}, []string{"provider", "kind"}),
		brakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tradewind_throttle_brakes_total",
			Help: "Tenants and campaigns that a brake slowed or stopped, by action: slow, pause, hold.",
		}, []string{"action"}),
		providers: map[string]*providerMetrics{},
	}
	for _, a := range brakeActions {
		m.brakes.WithLabelValues(a)
	}
	if reg != nil {
		reg.MustRegister(m.refusals, m.waited, m.held, m.learned, m.brakes)
	}
	return m
}

// provider returns the counters of one provider.
func (m *metrics) provider(name string) *providerMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.providers[name]; p != nil {
		return p
	}
	p := &providerMetrics{}
	for l := LimitNone + 1; l < numLimits; l++ {
		p.refusals[l] = m.refusals.WithLabelValues(name, l.String())
		p.waited[l] = m.waited.WithLabelValues(name, l.String())
	}
	for s := StateHeld; s < numStates; s++ {
		p.held[s] = m.held.WithLabelValues(name, s.String())
	}
	for i, kind := range learnedNames {
		p.learned[i] = m.learned.WithLabelValues(name, kind)
	}
	m.providers[name] = p
	return p
}

func (p *providerMetrics) refused(l Limit) { p.refusals[l].Inc() }

func (p *providerMetrics) lost(l Limit, d time.Duration) { p.waited[l].Add(d.Seconds()) }

// learn notes which limits a hold had learned before and has now.
func (p *providerMetrics) learn(was, now [2]bool) {
	for i := range was {
		switch {
		case now[i] && !was[i]:
			p.learned[i].Inc()
		case was[i] && !now[i]:
			p.learned[i].Dec()
		}
	}
}

// holds notes that a hold went from one state to another.
func (p *providerMetrics) holds(from, to State) {
	if from == to {
		return
	}
	if from != StateNormal {
		p.held[from].Dec()
	}
	if to != StateNormal {
		p.held[to].Inc()
	}
}
