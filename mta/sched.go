package mta

import (
	"container/heap"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
)

// entry is one queue that has something to send at a site.
type entry struct {
	q   *queue.Queue
	key store.QueueKey

	// until and why say what holds the entry; until is zero while it waits for
	// a permit without a known time.
	until time.Time
	why   string
	// trial entries have just been released: they may send one transaction, and
	// go on only if that one gets its permit.
	trial bool
	// dead entries have been replaced; the schedule passes over them.
	dead bool
}

// quantum is how many recipients a tenant or campaign of weight 1 may send in its
// turn.
const quantum = 10

// sched shares a site's capacity by weighted deficit round robin (Shreedhar and
// Varghese, 1995): between tenants, and between the campaigns of a tenant and
// class, transactional before bulk. The queues of a campaign take turns. Queues
// that are held until some time cost nothing meanwhile.
//
// It is not safe for concurrent use.
type sched struct {
	weight func(tenant string) int
	// share is the weight of a campaign among those of its tenant.
	share func(tenant, campaign string) int

	ring    fifo[*tenant]
	tenants map[string]*tenant
	held    heldHeap
	waiting map[string]*fifo[*entry] // held until a permit may be had, by what for
	stopped []*entry                 // held until suspensions change
	size    int                      // entries that may be popped now
}

type tenant struct {
	name    string
	deficit int
	queued  bool       // in sched.ring
	ready   [2]classes // urgent first
}

// classes are the campaigns of one tenant and class that have entries, or had
// some when they were last looked at.
type classes struct {
	ring      fifo[*campaign]
	campaigns map[string]*campaign
}

type campaign struct {
	name    string
	deficit int
	entries fifo[*entry]
}

func rank(c message.Class) int {
	if c == message.Bulk {
		return 1
	}
	return 0
}

// push makes e eligible.
func (s *sched) push(e *entry) {
	if s.tenants == nil {
		s.tenants = make(map[string]*tenant)
	}
	e.until, e.why, e.trial = time.Time{}, "", false
	t := s.tenants[e.key.Tenant]
	if t == nil {
		t = &tenant{name: e.key.Tenant}
		s.tenants[t.name] = t
	}
	cl := &t.ready[rank(e.key.Class)]
	c := cl.campaigns[e.key.Campaign]
	if c == nil {
		c = &campaign{name: e.key.Campaign}
		if cl.campaigns == nil {
			cl.campaigns = make(map[string]*campaign)
		}
		cl.campaigns[c.name] = c
		cl.ring.push(c)
	}
	c.entries.push(e)
	s.size++
	if !t.queued {
		t.queued, t.deficit = true, 0
		s.ring.push(t)
	}
}

// hold keeps e aside until t.
func (s *sched) hold(e *entry, t time.Time, why string) {
	e.until, e.why = t, why
	heap.Push(&s.held, e)
}

// wait keeps e aside until release. Entries that wait for the same thing, such
// as a slot of one tenant, have the same subject.
func (s *sched) wait(e *entry, why, subject string) {
	e.until, e.why = time.Time{}, why
	f := s.waiting[subject]
	if f == nil {
		f = &fifo[*entry]{}
		if s.waiting == nil {
			s.waiting = make(map[string]*fifo[*entry])
		}
		s.waiting[subject] = f
	}
	f.push(e)
}

// stop keeps e aside until resume.
func (s *sched) stop(e *entry, why string) {
	e.until, e.why = time.Time{}, why
	s.stopped = append(s.stopped, e)
}

// release makes one entry of each subject eligible: a slot has become free, and
// if all of them came for it, all but one would have come in vain. The one that
// gets it calls release again, in case there were several.
func (s *sched) release() {
	for subject, f := range s.waiting {
		for f.len() > 0 {
			if e := f.pop(); !e.dead {
				s.push(e)
				e.trial = true
				break
			}
		}
		if f.len() == 0 {
			delete(s.waiting, subject)
		}
	}
}

// resume makes every entry eligible that was stopped, to be looked at again.
func (s *sched) resume() {
	list := s.stopped
	s.stopped = nil
	s.pushAll(list)
}

func (s *sched) pushAll(list []*entry) {
	for _, e := range list {
		if !e.dead {
			s.push(e)
		}
	}
}

// pass puts an entry back that pop chose and nobody can serve just now, and
// lets the next campaign and the next tenant have a turn. Nothing is charged.
func (s *sched) pass(e *entry) {
	s.push(e)
	if t := s.ring.front(); t.name == e.key.Tenant {
		if cl := &t.ready[rank(e.key.Class)]; cl.ring.front().name == e.key.Campaign {
			cl.ring.rotate()
		}
		s.ring.rotate()
	}
}

// pop takes out the entry whose turn it is. Nil means that none is eligible;
// next is then when the first of the held ones will be, zero if none is.
func (s *sched) pop(now time.Time) (e *entry, next time.Time) {
	for len(s.held) > 0 && !s.held[0].until.After(now) {
		if e := heap.Pop(&s.held).(*entry); !e.dead {
			s.push(e)
		}
	}
	for s.size > 0 {
		t := s.ring.front()
		if t.deficit <= 0 {
			t.deficit += quantum * max(1, s.weight(t.name))
			if t.deficit <= 0 {
				s.ring.rotate()
				continue
			}
		}
		if e = s.popOf(t); e == nil {
			// A tenant without work saves nothing up for later.
			t.queued = false
			s.ring.pop()
			delete(s.tenants, t.name)
			continue
		}
		s.size--
		if e.dead {
			continue
		}
		return e, time.Time{}
	}
	if len(s.held) > 0 {
		return nil, s.held[0].until
	}
	return nil, time.Time{}
}

// charge takes n recipients off the shares of the tenant and the campaign of the
// queue that pop chose last.
func (s *sched) charge(key *store.QueueKey, n int) {
	t := s.tenants[key.Tenant]
	if t == nil || !t.queued {
		return
	}
	cl := &t.ready[rank(key.Class)]
	if c := cl.campaigns[key.Campaign]; c != nil {
		if c.deficit -= n; c.deficit <= 0 && cl.ring.front() == c {
			cl.ring.rotate()
		}
	}
	t.deficit -= n
	if t.deficit <= 0 && s.ring.len() > 0 && s.ring.front() == t {
		s.ring.rotate()
	}
}

// refund gives back what was charged for recipients that could not be sent to,
// because a permit was refused. Without it whoever happens to be chosen while
// permits are short pays for nothing, and as choices and permits fall into step
// that is always the same tenant.
func (s *sched) refund(key *store.QueueKey, n int) {
	t := s.tenants[key.Tenant]
	if t == nil {
		return
	}
	t.deficit = min(t.deficit+n, quantum*max(1, s.weight(t.name)))
	if c := t.ready[rank(key.Class)].campaigns[key.Campaign]; c != nil {
		c.deficit = min(c.deficit+n, quantum*max(1, s.share(t.name, c.name)))
	}
}

// popOf takes the tenant's next entry: urgent ones first, campaigns in turn.
func (s *sched) popOf(t *tenant) *entry {
	for i := range t.ready {
		cl := &t.ready[i]
		for cl.ring.len() > 0 {
			c := cl.ring.front()
			if c.entries.len() == 0 {
				cl.ring.pop()
				delete(cl.campaigns, c.name)
				continue
			}
			if c.deficit <= 0 {
				c.deficit += quantum * max(1, s.share(t.name, c.name))
				if c.deficit <= 0 {
					cl.ring.rotate()
					continue
				}
			}
			return c.entries.pop()
		}
	}
	return nil
}

// heldHeap orders entries by the time they are held until.
type heldHeap []*entry

func (h heldHeap) Len() int           { return len(h) }
func (h heldHeap) Less(i, j int) bool { return h[i].until.Before(h[j].until) }
func (h heldHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is for container/heap.
func (h *heldHeap) Push(x any) { *h = append(*h, x.(*entry)) }

// Pop is for container/heap.
func (h *heldHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}

// fifo is a queue on a ring buffer. The zero value is empty.
type fifo[T any] struct {
	buf  []T
	head int
	n    int
}

func (f *fifo[T]) len() int { return f.n }

func (f *fifo[T]) front() T { return f.buf[f.head] }

// at is the i-th from the front.
func (f *fifo[T]) at(i int) T { return f.buf[(f.head+i)%len(f.buf)] }

func (f *fifo[T]) swap(i, j int) {
	i, j = (f.head+i)%len(f.buf), (f.head+j)%len(f.buf)
	f.buf[i], f.buf[j] = f.buf[j], f.buf[i]
}

func (f *fifo[T]) push(v T) {
	if f.n == len(f.buf) {
		grown := make([]T, max(4, 2*f.n))
		for i := range f.n {
			grown[i] = f.buf[(f.head+i)%f.n]
		}
		f.buf, f.head = grown, 0
	}
	f.buf[(f.head+f.n)%len(f.buf)] = v
	f.n++
}

func (f *fifo[T]) pop() T {
	var zero T
	v := f.buf[f.head]
	f.buf[f.head] = zero
	f.head = (f.head + 1) % len(f.buf)
	f.n--
	return v
}

func (f *fifo[T]) rotate() { f.push(f.pop()) }
