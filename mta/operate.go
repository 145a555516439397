package mta

import (
	"context"
	"slices"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/throttle"
)

// Refused settles an item that an operator bounces: its sender hears of it as
// of any other failure, and nobody is suppressed for it.
func (m *MTA) Refused(it *queue.Item, msg *message.Message, reason string) queue.Settlement {
	now := m.deps.Now()
	e := m.queue.EventOf(it, msg, message.EventBounced, now)
	e.Category, e.Detail = message.PolicyRelated, reason
	e.Reply = local(message.StageNone, 554, message.Enhanced{5, 7, 0}, "returned by the operator: "+reason)
	e.Duration = now.Sub(it.Accepted)
	settlement := queue.Settlement{Item: it, Event: e}
	t := &txn{items: []*queue.Item{it}, load: loaded{msg: msg}}
	if sub := m.notice(t, []report{{it, e.Reply, bounce.ActionFailed}}, now); sub != nil {
		settlement.Spawn = append(settlement.Spawn, sub)
	}
	m.metrics.outcome(nil, e)
	return settlement
}

// Taken settles an item that an operator deletes.
func (m *MTA) Taken(it *queue.Item, msg *message.Message, reason string) queue.Settlement {
	e := m.queue.EventOf(it, msg, message.EventCanceled, m.deps.Now())
	e.Category, e.Detail = message.Canceled, reason
	return queue.Settlement{Item: it, Event: e}
}

// Matcher returns a function that says whether a queue is one a selector
// speaks of. A provider is matched by the site that the queue's mail leads to,
// looked up once for each domain; a source by the pools that consist of it
// alone, because other mail has no source before it is sent.
func (m *MTA) Matcher(ctx context.Context, sel throttle.Selector) func(*store.QueueKey) bool {
	type destination struct{ pool, domain string }
	providers := map[destination]string{}
	return func(k *store.QueueKey) bool {
		fits := func(want, have string) bool { return want == "" || want == have }
		if !fits(sel.Domain, k.Domain) || !fits(sel.Tenant, k.Tenant) || !fits(sel.Campaign, k.Campaign) {
			return false
		}
		pool := m.poolFor(k)
		if sel.Source != "" && !m.onlySource(pool, sel.Source) {
			return false
		}
		if sel.Provider == "" {
			return true
		}
		d := destination{pool, k.Domain}
		p, known := providers[d]
		if !known {
			if len(providers) >= maxProviders {
				clear(providers)
			}
			p = m.providerOf(ctx, d.pool, d.domain)
			providers[d] = p
		}
		return p == sel.Provider
	}
}

// maxProviders bounds what a matcher remembers.
const maxProviders = 100_000

// onlySource reports whether a pool consists of one source.
func (m *MTA) onlySource(pool, source string) bool {
	for _, p := range m.set.Load().Pools {
		if p.Name == pool {
			return len(p.Sources) == 1 && p.Sources[0].Source == source
		}
	}
	return false
}

// providerOf is the provider that a domain's mail leads to, "" when DNS does not
// say.
func (m *MTA) providerOf(ctx context.Context, pool, domain string) string {
	m.mu.Lock()
	t := m.targets[targetKey{pool: pool, domain: domain}]
	var s *site
	if t != nil {
		s = t.site
	}
	m.mu.Unlock()
	if s != nil {
		return s.paths[0].permit.Provider()
	}
	_, hosts, _, reply := m.destination(ctx, domain)
	if reply != nil {
		return ""
	}
	return m.deps.Throttle.ProviderOf(hosts, domain)
}

// HasPool reports whether mail can ask for a pool of this name.
func (m *MTA) HasPool(name string) bool {
	return slices.ContainsFunc(m.set.Load().Pools, func(p Pool) bool { return p.Name == name })
}

// HasSource reports whether there is a source of this name.
func (m *MTA) HasSource(name string) bool { return slices.Contains(m.SourceNames(), name) }

// SourceNames lists the sources.
func (m *MTA) SourceNames() []string {
	var names []string
	for _, s := range m.set.Load().Sources {
		names = append(names, s.Name)
	}
	return names
}
