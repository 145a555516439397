package mx

import (
	"context"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// flight is one lookup under way, shared by all who ask for its key.
type flight struct {
	ctx  context.Context // ends the lookup; independent of whoever asked first
	done chan struct{}   // closed by settle, after ans is set
	ans  *answer         // read only after done

	settled bool // guarded by Resolver.mu
}

// get answers k from cache, or by a lookup that it joins or starts. It always
// returns an answer: when ctx ends first, the last one known if that may still
// serve, or a temporary failure.
func (r *Resolver) get(ctx context.Context, k key) *answer {
	now := r.now()
	r.mu.Lock()
	if e := r.cache.get(k); e != nil && now.Before(e.fresh) {
		ans := e.ans
		r.mu.Unlock()
		r.metrics.hit.Inc()
		return ans
	}
	f := r.flights[k]
	if f == nil {
		if r.closed {
			r.mu.Unlock()
			return r.lastKnown(k, "the resolver is stopping")
		}
		// Callers are bounded elsewhere; this bound is for the day they are not.
		if len(r.flights) >= 16*r.cfg.Lookups {
			r.mu.Unlock()
			return r.lastKnown(k, "too many DNS lookups at once")
		}
		f = r.launch(k)
	}
	r.mu.Unlock()
	r.metrics.miss.Inc()

	select {
	case <-f.done:
	case <-ctx.Done():
		return r.lastKnown(k, "gave up waiting for DNS")
	case <-f.ctx.Done():
		// The lookup should be returning now. Should it not, nobody must wait
		// for it and the next caller must be able to start another.
		r.settle(k, f, &answer{reply: unknown("DNS lookup took too long")})
		<-f.done
	}
	return f.ans
}

// launch starts a lookup of k.
// REQUIRES: r.mu is held and r is not closed.
func (r *Resolver) launch(k key) *flight {
	ctx, cancel := context.WithTimeout(r.base, r.cfg.Total)
	f := &flight{ctx: ctx, done: make(chan struct{})}
	r.flights[k] = f
	r.metrics.inFlight.Inc()
	r.wg.Go(func() {
		defer cancel()
		var ans *answer
		if k.ask == askRoute {
			ans = r.findRoute(ctx, k.name)
		} else {
			ans = r.findAddrs(ctx, k.name)
		}
		r.settle(k, f, ans)
	})
	return f
}

// settle ends f with ans, unless it has ended already, and remembers ans. A
// failure does not replace an answer that may still serve: that one is kept,
// and no new lookup is made until ServFailTTL has passed.
func (r *Resolver) settle(k key, f *flight, ans *answer) {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.settled {
		return
	}
	f.settled = true
	delete(r.flights, k)
	r.metrics.inFlight.Dec()

	// Only what lets mail flow is worth keeping past its time. A stale "none"
	// would fail mail on the word of a server that cannot be asked any more.
	fresh, stale := now.Add(ans.ttl), time.Time{}
	if ans.reply == nil {
		stale = fresh.Add(r.cfg.StaleTTL)
	}
	if ans.failed() {
		fresh = now.Add(r.cfg.ServFailTTL)
		if e := r.cache.get(k); e != nil && now.Before(e.stale) {
			r.metrics.stale.Inc()
			stale = e.stale
			if fresh.After(stale) {
				fresh = stale
			}
			ans = e.ans.until(fresh)
		}
	}
	// A resolver that is being closed fails lookups for a reason of its own.
	if !r.closed || !ans.failed() {
		r.cache.put(k, ans, fresh, stale)
		r.metrics.entries.Set(float64(len(r.cache.byKey)))
	}
	f.ans = ans
	close(f.done)
}

// lastKnown returns the expired answer to k if it may still serve, else a
// temporary failure for the reason why.
func (r *Resolver) lastKnown(k key, why string) *answer {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.cache.get(k); e != nil && now.Before(e.stale) {
		r.metrics.stale.Inc()
		return e.ans.until(now.Add(r.cfg.MinTTL))
	}
	return &answer{reply: unknown(why)}
}

// until is a with its route's expiry moved to t.
func (a *answer) until(t time.Time) *answer {
	if a.route == nil {
		return a
	}
	c, rt := *a, *a.route
	rt.Expires = t
	c.route = &rt
	return &c
}

// clamp bounds the life of an answer that says there is something.
func (r *Resolver) clamp(ttl time.Duration) time.Duration {
	return min(max(ttl, r.cfg.MinTTL), r.cfg.MaxTTL)
}

// clampNegative bounds the life of an answer that says there is none.
func (r *Resolver) clampNegative(ttl time.Duration) time.Duration {
	return min(max(ttl, r.cfg.MinTTL), r.cfg.NegativeTTL)
}

func failure(err error) *answer {
	return &answer{reply: unknown(err.Error())}
}

func (r *Resolver) none(ttl time.Duration, rep *message.Reply) *answer {
	return &answer{reply: rep, ttl: r.clampNegative(ttl)}
}
