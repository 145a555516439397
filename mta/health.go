package mta

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/throttle"
)

// Pauses of a source whose address this machine does not have. It is tried
// again after each; the last one repeats.
const (
	sourcePause    = 15 * time.Second
	maxSourcePause = 5 * time.Minute
)

// health keeps the sources that cannot be used: their address is not on this
// machine, or not yet. The others of their pool take over meanwhile.
type health struct {
	missing atomic.Int64 // entries of down; zero spares the hot path the lock

	mu   sync.Mutex // protects everything below
	down map[string]*outage
}

type outage struct {
	until  time.Time
	pause  time.Duration
	trying bool // somebody finds out whether it is over; others wait until then
}

// sourceTrial is how long whoever finds out is left alone. An address that is not
// there is refused at once, so it need not be long.
const sourceTrial = 2 * time.Second

// denies returns the refusal of a connection from a source that is out, nil when
// it may be tried: by one lane when the pause is over, not by all of them.
func (h *health) denies(source string, now time.Time) *throttle.Grant {
	if h.missing.Load() == 0 {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.down[source]
	switch {
	case o == nil:
		return nil
	case o.until.After(now):
		return &throttle.Grant{At: o.until, Limit: throttle.LimitSuspended, Scope: throttle.ScopeSource}
	}
	o.trying, o.until = true, now.Add(sourceTrial)
	return nil
}

// fail takes a source out; first reports whether it was in use until now.
func (h *health) fail(source string, now time.Time) (until time.Time, first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.down[source]
	if first = o == nil; first {
		if h.down == nil {
			h.down = make(map[string]*outage)
		}
		o = &outage{pause: sourcePause}
		h.down[source] = o
		h.missing.Store(int64(len(h.down)))
	} else if o.trying {
		o.trying, o.until = false, now
		o.pause = min(2*o.pause, maxSourcePause)
	} // else one of several that failed together
	o.until = later(o.until, now.Add(o.pause))
	return o.until, first
}

// works reports whether the source had been out.
func (h *health) works(source string) bool {
	if h.missing.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, was := h.down[source]
	delete(h.down, source)
	h.missing.Store(int64(len(h.down)))
	return was
}

// sourceMissing takes the lane's source out of use everywhere and returns the
// refusal for this lane.
func (m *MTA) sourceMissing(l *lane, err error) *throttle.Grant {
	now := m.deps.Now()
	until, first := m.health.fail(l.source.Name, now)
	if first {
		m.deps.Logger.Error("a source cannot be used: its address is not on this machine", "source", l.source.Name, "address", l.source.Address, "err", err)
		m.deps.Record(&message.Event{
			Type: message.EventEgressSuspended, Time: now, Egress: message.Egress{Source: l.source.Name, Pool: l.site.key.pool},
			Detail: "the address " + l.source.Address + " is not on this machine",
		})
	}
	return &throttle.Grant{At: until, Limit: throttle.LimitSuspended, Scope: throttle.ScopeSource}
}

// sourceWorks brings a source back into use.
func (m *MTA) sourceWorks(l *lane) {
	if m.health.works(l.source.Name) {
		m.deps.Record(&message.Event{
			Type: message.EventEgressResumed, Time: m.deps.Now(), Egress: message.Egress{Source: l.source.Name, Pool: l.site.key.pool},
			Detail: "the address " + l.source.Address + " is back",
		})
	}
}
