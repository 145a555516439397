package inbound

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxTelling bounds the goroutines that tell clients why they are turned
	// away.
	maxTelling = 64
	// maxLockouts bounds the table of addresses that failed AUTH.
	maxLockouts = 16 << 10
	// maxLockout is where the doubling of AuthLockout ends.
	maxLockout = time.Hour
	// forgetFailures is how long an address that behaves is remembered.
	forgetFailures = 2 * time.Hour
)

// admission counts connections and failed authentications by address.
type admission struct {
	maxConns, maxPerAddr, maxAuth int
	lockout                       time.Duration

	mu       sync.Mutex // protects everything below
	conns    int
	telling  int
	perAddr  map[netip.Prefix]int // only addresses with a connection: maxConns entries
	failures map[netip.Prefix]failures
}

type failures struct {
	count int
	until time.Time // no AUTH before
	last  time.Time
}

func (a *admission) init(cfg Config) {
	a.maxConns, a.maxPerAddr = cfg.MaxConns, cfg.MaxConnsPerAddr
	a.maxAuth, a.lockout = cfg.MaxAuthFailures, min(cfg.AuthLockout, maxLockout)
	a.perAddr = make(map[netip.Prefix]int)
	a.failures = make(map[netip.Prefix]failures)
}

// clientIP is the address behind a, or the zero Addr for sockets and pipes,
// which have none.
func clientIP(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case nil:
		return netip.Addr{}
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// addrKey is what limits per address count by: an IPv4 address, or the /64 of
// an IPv6 address, since that is what one subscriber gets. Connections without
// an address share the zero key.
func addrKey(a net.Addr) netip.Prefix {
	ip := clientIP(a)
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// enter counts one connection, unless that would be one too many.
func (a *admission) enter(key netip.Prefix) (refusal, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns >= a.maxConns {
		return refusedConns, false
	}
	if a.perAddr[key] >= a.maxPerAddr {
		return refusedAddrConns, false
	}
	a.conns++
	a.perAddr[key]++
	return 0, true
}

func (a *admission) leave(key netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns--
	if a.perAddr[key]--; a.perAddr[key] == 0 {
		delete(a.perAddr, key)
	}
}

func (a *admission) startTelling() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.telling >= maxTelling {
		return false
	}
	a.telling++
	return true
}

func (a *admission) stopTelling() {
	a.mu.Lock()
	a.telling--
	a.mu.Unlock()
}

// authAllowed reports whether key may try AUTH now.
func (a *admission) authAllowed(key netip.Prefix, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !now.Before(a.failures[key].until)
}

// authFailed counts a failure of key and locks it out when there are too many.
func (a *admission) authFailed(key netip.Prefix, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f, known := a.failures[key]
	if !known && len(a.failures) >= maxLockouts {
		a.evict(now)
	}
	if now.Sub(f.last) > forgetFailures {
		f.count = 0
	}
	f.count++
	f.last = now
	if over := f.count - a.maxAuth; over >= 0 {
		f.until = now.Add(min(a.lockout<<min(over, 20), maxLockout))
	}
	a.failures[key] = f
}

// authSucceeded halves what is held against key: an office behind one address
// recovers from one misconfigured program, and an attacker who owns an account
// gains little by using it in between.
func (a *admission) authSucceeded(key netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f, known := a.failures[key]
	if !known {
		return
	}
	if f.count /= 2; f.count == 0 {
		delete(a.failures, key)
		return
	}
	f.until = time.Time{}
	a.failures[key] = f
}

// evict makes room for one entry: of a handful, in map order, the one with the
// oldest failure goes. Looking at all of them would let an attacker with many
// addresses make every failure expensive.
func (a *admission) evict(now time.Time) {
	var victim netip.Prefix
	oldest := now.Add(time.Second)
	looked := 0
	for key, f := range a.failures {
		if f.last.Before(oldest) {
			victim, oldest = key, f.last
		}
		if looked++; looked == 16 {
			break
		}
	}
	delete(a.failures, victim)
}
