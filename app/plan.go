package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/mx"
	"github.com/tradewind-mta/tradewind/throttle"
)

// Plan says what an engine with a configuration would do, without one: it knows
// nothing of what is under way, held, suspended or sent already. It asks DNS,
// and touches neither the data directory nor a listener.
type Plan struct {
	opt      Options
	throttle *throttle.Engine
	resolver *mx.Resolver
	mta      *mta.MTA
}

// NewPlan reads the rules that a configuration names. Of the options, those
// about time and DNS are used.
func NewPlan(cfg *configs.Config, opt Options) (*Plan, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	rules, problems := cfg.ShapingRules()
	if len(problems) > 0 {
		return nil, fmt.Errorf("app: shaping: %s", problems[0])
	}
	reg := prometheus.NewRegistry()
	resolver, err := newResolver(cfg, opt, reg)
	if err != nil {
		return nil, err
	}
	p := &Plan{opt: opt, resolver: resolver, throttle: throttle.New(rules, throttle.Options{Now: opt.Now})}
	p.mta, err = mta.New(deliverySettings(cfg), mta.Deps{Throttle: p.throttle, Resolver: resolver, Now: opt.Now, Registerer: reg})
	if err != nil {
		resolver.Close()
		return nil, err
	}
	return p, nil
}

// Close ends the questions to DNS.
func (p *Plan) Close() { p.resolver.Close() }

// Address says where mail for an address would go and what holds there. An
// empty pool is the default one.
func (p *Plan) Address(ctx context.Context, pool, address string) (mta.Destination, error) {
	return explainAddress(ctx, p.mta, pool, address)
}

// Warmups forecasts every warm-up from its first day.
func (p *Plan) Warmups() []throttle.WarmupPlan { return warmupPlans(p.throttle, p.mta, p.opt.Now()) }

func explainAddress(ctx context.Context, m *mta.MTA, pool, address string) (mta.Destination, error) {
	domain := address
	if _, d, ok := strings.Cut(domain, "@"); ok {
		domain = d
	}
	d, err := message.ParseDomain(domain)
	if err != nil {
		return mta.Destination{}, unusable("address", "%v", err)
	}
	if pool != "" && !m.HasPool(pool) {
		return mta.Destination{}, unusable("pool", "no [[pool]] or [[source]] is named %q", pool)
	}
	return m.Explain(ctx, pool, d), nil
}

func warmupPlans(e *throttle.Engine, m *mta.MTA, now time.Time) []throttle.WarmupPlan {
	const days = 60
	plans := e.WarmupPlans(now, m.SourceNames(), days)
	if plans == nil {
		plans = []throttle.WarmupPlan{} // in JSON a list all the same
	}
	return plans
}
