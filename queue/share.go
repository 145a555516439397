package queue

import (
	"slices"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Config.MaxActive queues fit into memory, and there may be a million of them.
// While there is room everybody takes what is needed. When there is none, a
// queue may take the place of another one if that makes the shares more even:
//
//   - a tenant takes from one that holds at least two queues more,
//   - within a tenant, transactional mail takes from bulk as long as bulk holds
//     more than a quarter,
//   - within a tenant and class, a campaign takes from one that holds at least
//     two queues more.
//
// A queue that gives way stays on disk; the search brings it back.

// urgency orders classes as deliveries do: 0 goes first.
func urgency(c message.Class) int {
	if c == message.Bulk {
		return 1
	}
	return 0
}

// shares is the queues in memory, by tenant, urgency and campaign. Its lists keep
// no order of their own, and whoever looks for a victim goes round in them.
// Manager.mu protects all of it.
type shares struct {
	byName  map[string]*tenantShare
	tenants []*tenantShare
	turn    int
}

type tenantShare struct {
	name  string
	at    int // in shares.tenants
	n     int // queues
	ranks [2]rankShare
}

type rankShare struct {
	n         int // queues
	byName    map[string]*campaignShare
	campaigns []*campaignShare
}

type campaignShare struct {
	name   string
	at     int // in rankShare.campaigns
	queues []*Queue
}

// remove takes element i out of list without keeping the order, and tells the one
// that moves into its place.
func remove[T any](list []T, i int, moved func(T, int)) []T {
	last := len(list) - 1
	if i != last {
		list[i] = list[last]
		moved(list[i], i)
	}
	var zero T
	list[last] = zero
	return list[:last]
}

func (s *shares) add(q *Queue) {
	t := s.byName[q.key.Tenant]
	if t == nil {
		t = &tenantShare{name: q.key.Tenant, at: len(s.tenants)}
		if s.byName == nil {
			s.byName = make(map[string]*tenantShare)
		}
		s.byName[t.name] = t
		s.tenants = append(s.tenants, t)
	}
	r := &t.ranks[urgency(q.key.Class)]
	c := r.byName[q.key.Campaign]
	if c == nil {
		c = &campaignShare{name: q.key.Campaign, at: len(r.campaigns)}
		if r.byName == nil {
			r.byName = make(map[string]*campaignShare)
		}
		r.byName[c.name] = c
		r.campaigns = append(r.campaigns, c)
	}
	q.at = len(c.queues)
	c.queues = append(c.queues, q)
	t.n++
	r.n++
}

func (s *shares) remove(q *Queue) {
	t := s.byName[q.key.Tenant]
	r := &t.ranks[urgency(q.key.Class)]
	c := r.byName[q.key.Campaign]
	c.queues = remove(c.queues, q.at, func(q *Queue, at int) { q.at = at })
	t.n--
	r.n--
	if len(c.queues) == 0 {
		delete(r.byName, c.name)
		r.campaigns = remove(r.campaigns, c.at, func(c *campaignShare, at int) { c.at = at })
	}
	if t.n == 0 {
		delete(s.byName, t.name)
		s.tenants = remove(s.tenants, t.at, func(t *tenantShare, at int) { t.at = at })
	}
}

// Bounds of one search for a queue that gives way, so that it costs the same
// however many there are.
const (
	victimGroups = 64
	victimQueues = 16
)

// victims lists queues that have to give way to key, best first; none when its
// tenant and campaign hold their share already.
func (s *shares) victims(key *store.QueueKey) []*Queue {
	s.turn++
	t := s.byName[key.Tenant]
	n := 0
	if t != nil {
		n = t.n
	}
	if richest := s.most(s.turn); richest != nil && richest != t && richest.n >= n+2 {
		r := &richest.ranks[1]
		if r.n == 0 {
			r = &richest.ranks[0]
		}
		return r.most(s.turn).some(s.turn)
	}
	if t == nil {
		return nil
	}
	if bulk := &t.ranks[1]; urgency(key.Class) == 0 && bulk.n > t.n/4 {
		return bulk.most(s.turn).some(s.turn)
	}
	r := &t.ranks[urgency(key.Class)]
	c := r.byName[key.Campaign]
	n = 0
	if c != nil {
		n = len(c.queues)
	}
	if richest := r.most(s.turn); richest != nil && richest != c && len(richest.queues) >= n+2 {
		return richest.some(s.turn)
	}
	return nil
}

// window is up to n elements of list, beginning at a place that moves with turn.
func window[T any](list []T, turn, n int) []T {
	if len(list) <= n {
		return list
	}
	from := turn % len(list)
	if from+n <= len(list) {
		return list[from : from+n]
	}
	return slices.Concat(list[from:], list[:from+n-len(list)])
}

func (s *shares) most(turn int) (best *tenantShare) {
	for _, t := range window(s.tenants, turn, victimGroups) {
		if best == nil || t.n > best.n {
			best = t
		}
	}
	return best
}

func (r *rankShare) most(turn int) (best *campaignShare) {
	for _, c := range window(r.campaigns, turn, victimGroups) {
		if best == nil || len(c.queues) > len(best.queues) {
			best = c
		}
	}
	return best
}

func (c *campaignShare) some(turn int) []*Queue {
	return slices.Clone(window(c.queues, turn, victimQueues))
}
