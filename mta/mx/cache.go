package mx

import (
	"net/netip"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// question is what a cache entry answers about a name.
type question uint8

const (
	askRoute question = iota // where its mail goes
	askAddrs                 // which addresses it has
)

type key struct {
	name string
	ask  question
}

// answer is what is known about a key. It is immutable once made. Exactly one
// of route, addrs and reply is set.
type answer struct {
	route *Route         // askRoute; shared, so never handed out where it could be shuffled in place
	equal bool           // route has hosts of equal preference, to be shuffled
	addrs []netip.Addr   // askAddrs; sorted, all families asked for
	reply *message.Reply // there is none, or it could not be found out
	ttl   time.Duration  // how long it holds, already clamped
}

// failed reports that the answer is not known, as opposed to known to be none.
func (a *answer) failed() bool { return a.reply != nil && a.reply.Temporary() }

// entry is one remembered answer, a node in the list of use.
type entry struct {
	key
	ans        *answer
	fresh      time.Time // the answer holds before this
	stale      time.Time // and serves until this, if a new one cannot be had
	prev, next *entry
}

// cache is a bounded map that forgets the least recently used entry. Its
// caller holds the lock.
type cache struct {
	limit int
	byKey map[key]*entry
	// use is the sentinel of a ring: use.next was used last.
	use *entry
}

func newCache(limit int) cache {
	use := &entry{}
	use.prev, use.next = use, use
	return cache{limit: limit, byKey: make(map[key]*entry), use: use}
}

// get returns the entry for k, expired or not, or nil.
func (c *cache) get(k key) *entry {
	e := c.byKey[k]
	if e != nil && c.use.next != e {
		e.unlink()
		e.linkAfter(c.use)
	}
	return e
}

// put remembers ans under k, in place of what was there.
func (c *cache) put(k key, ans *answer, fresh, stale time.Time) {
	e := c.get(k)
	if e == nil {
		if len(c.byKey) >= c.limit {
			oldest := c.use.prev
			oldest.unlink()
			delete(c.byKey, oldest.key)
		}
		e = &entry{key: k}
		c.byKey[k] = e
		e.linkAfter(c.use)
	}
	e.ans, e.fresh, e.stale = ans, fresh, stale
}

func (e *entry) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
}

func (e *entry) linkAfter(p *entry) {
	e.prev, e.next = p, p.next
	p.next.prev, p.next = e, e
}
