package throttle

import "sync"

// Pool is a set of sources to choose from.
type Pool struct {
	Name    string
	Sources []WeightedSource
}

// WeightedSource is a source with its share of a pool's mail. A weight below 1
// takes no mail.
type WeightedSource struct {
	Name   string
	Weight int64
}

// picker chooses sources by smooth weighted round robin. Its state is kept per
// pool and provider, never per queue: ten thousand queues of one message each
// are shared out as exactly as one queue of ten thousand.
type picker struct {
	mu    sync.Mutex // protects everything below
	pools map[string][]WeightedSource
	state map[pickKey][]int64 // aligned with the pool's sources
}

type pickKey struct{ pool, provider string }

// maxPicks bounds the state kept: pools times providers.
const maxPicks = 100_000

// SetPools replaces the pools. The state of a pool whose sources stay the same
// is kept.
func (e *Engine) SetPools(pools []Pool) {
	p := &e.pick
	p.mu.Lock()
	defer p.mu.Unlock()
	old, state := p.pools, p.state
	p.pools, p.state = map[string][]WeightedSource{}, map[pickKey][]int64{}
	for _, pool := range pools {
		p.pools[pool.Name] = pool.Sources
	}
	for k, s := range state {
		p.state[k] = carry(old[k.pool], p.pools[k.pool], s)
	}
}

// carry moves the state of a pool's sources to a new list of them, by name.
func carry(from, to []WeightedSource, state []int64) []int64 {
	out := make([]int64, len(to))
	for i, t := range to {
		for j, f := range from {
			if f.Name == t.Name && j < len(state) {
				out[i] = state[j]
			}
		}
	}
	return out
}

// Pick chooses the source for the next item of a pool towards a provider (or,
// for destinations without one, DefaultProvider), among those that are
// eligible. It returns "" if none is. A nil eligible admits all; eligible must
// not call Pick or SetPools. Weights hold exactly over any run in which all
// sources are eligible.
func (e *Engine) Pick(pool, provider string, eligible func(source string) bool) string {
	p := &e.pick
	p.mu.Lock()
	defer p.mu.Unlock()
	sources := p.pools[pool]
	key := pickKey{pool, provider}
	state := p.state[key]
	if state == nil {
		if len(sources) == 0 {
			return ""
		}
		if len(p.state) >= maxPicks {
			clear(p.state)
		}
		state = make([]int64, len(sources))
		p.state[key] = state
	}
	// Each source gains its weight; the fullest is chosen and pays the sum.
	var total int64
	best := -1
	for i, s := range sources {
		if s.Weight < 1 || eligible != nil && !eligible(s.Name) {
			continue
		}
		state[i] += s.Weight
		total += s.Weight
		if best < 0 || state[i] > state[best] {
			best = i
		}
	}
	if best < 0 {
		return ""
	}
	state[best] -= total
	return sources[best].Name
}
