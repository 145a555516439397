package outbound

import (
	"sync"
	"time"
)

// Fallback remembers hosts whose TLS handshake failed, so that mail which may
// go in clear does so instead of failing the same way every time. It is keyed
// by host and source, since what breaks a handshake can stand on either side.
// It never weakens Required or Verify. A nil *Fallback remembers nothing.
type Fallback struct {
	max int
	ttl time.Duration
	now func() time.Time

	mu    sync.Mutex // protects everything below
	until map[fallbackKey]time.Time
}

type fallbackKey struct{ host, source string }

// NewFallback returns an empty memory of at most max hosts (default 10,000),
// each kept for ttl (default 1 h). now is the clock; nil means time.Now.
func NewFallback(max int, ttl time.Duration, now func() time.Time) *Fallback {
	if max <= 0 {
		max = 10_000
	}
	if ttl <= 0 {
		ttl = time.Hour
	}
	if now == nil {
		now = time.Now
	}
	return &Fallback{max: max, ttl: ttl, now: now, until: make(map[fallbackKey]time.Time)}
}

// Len returns how many hosts are remembered, outlived ones included.
func (f *Fallback) Len() int {
	if f == nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.until)
}

func (f *Fallback) clear(host, source string) bool {
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k := fallbackKey{host, source}
	t, ok := f.until[k]
	if ok && !f.now().Before(t) {
		delete(f.until, k)
		ok = false
	}
	return ok
}

func (f *Fallback) remember(host, source string) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if len(f.until) >= f.max {
		f.makeRoom(now)
	}
	f.until[fallbackKey{host, source}] = now.Add(f.ttl)
}

// makeRoom drops what has outlived its time, or else any one entry: losing one
// costs a failed handshake, no mail.
func (f *Fallback) makeRoom(now time.Time) {
	for k, t := range f.until {
		if !now.Before(t) {
			delete(f.until, k)
		}
	}
	for k := range f.until {
		if len(f.until) < f.max {
			return
		}
		delete(f.until, k)
	}
}
