package queue

import (
	"context"

	"github.com/tradewind-mta/tradewind/store"
)

// searchTurn is how many queues of one stream a round of the search brings into
// memory at the most before the next stream has its turn.
const searchTurn = 64

// turnSize lets at least some thirty streams have a turn before memory is full.
func (m *Manager) turnSize() int { return max(1, min(searchTurn, m.Config().MaxActive/32)) }

// maxPlaces bounds the streams whose last place the search remembers.
const maxPlaces = 10_000

// searchDisk brings queues that lie on disk into memory. It seeks from stream to
// stream (a tenant's campaign in one class) and takes a few queues of each in
// turn, until everything is in memory or whoever still waits for a place holds a
// fair share already. In every stream it goes on where it stopped last, so that
// every queue has its turn however few fit.
func (m *Manager) searchDisk(ctx context.Context) error {
	m.mu.RLock()
	left := m.left
	nothing := m.left == m.seen
	m.mu.RUnlock()
	if nothing {
		return nil
	}
	s := &search{m: m, ended: make(map[store.QueueKey]bool)}
	all, err := s.readable(ctx, store.ReadyQueuesSpan(nil))
	if err != nil || !all {
		return err
	}
	m.mu.Lock()
	m.seen = left
	m.mu.Unlock()
	return nil
}

// search is one call of searchDisk.
type search struct {
	m  *Manager
	it *store.Iter
	at []byte // where it was sent last
	// ended holds the streams that need no further turn in this search.
	ended map[store.QueueKey]bool
}

// readable searches span, and goes on behind what is damaged.
func (s *search) readable(ctx context.Context, span store.Span) (all bool, err error) {
	for {
		if s.it, err = s.m.db.NewIter(span); err != nil {
			return false, err
		}
		s.at = span.Start
		all, err = s.rounds(ctx)
		if closing := s.it.Close(); err == nil {
			err = closing // it tells a failed read again
		}
		if !store.IsDamage(err) {
			return all, err
		}
		span.Start = s.at
		if span.Start, err = s.m.db.ReadableAfter(span); err != nil || span.Start == nil {
			return true, err
		}
	}
}

// seek sends the iterator to key.
func (s *search) seek(key []byte) bool {
	s.at = key
	return s.it.SeekGE(key)
}

// rounds gives every stream its turns. It reports whether every queue on disk is
// in memory now.
func (s *search) rounds(ctx context.Context) (all bool, err error) {
	all = true
	for again := true; again; {
		again = false
		for ok := s.it.First(); ok; {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			key, _, err := store.ParseReadyKey(s.it.Key())
			if err != nil {
				s.m.deps.Logger.Error("ready key of an unknown shape is left alone", "err", err)
				ok = s.it.Next()
				continue
			}
			stream := key.Stream()
			if !s.ended[stream] {
				end, whole, err := s.turn(ctx, stream)
				if err != nil {
					return false, err
				}
				all = all && (whole || !end)
				again = again || !end
				if end {
					s.ended[stream] = true
				}
			}
			ok = s.seek(store.ReadyStreamsSpan(&stream).Start)
		}
		if err := s.it.Error(); err != nil {
			return false, err
		}
	}
	return all, nil
}

// turn brings up to turnSize queues of a stream into memory. end means that
// the stream needs no further turn: whole says whether because all of it is in
// memory, or because there is no room for it.
func (s *search) turn(ctx context.Context, stream store.QueueKey) (end, whole bool, err error) {
	span := store.ReadyStreamSpan(&stream)
	from := span.Start
	place, resumed := s.m.places[stream]
	if resumed {
		from = store.ReadyQueuesSpan(&place).Start
	}
	left, wrapped := s.m.turnSize(), !resumed
	for ok := s.seek(from); ; {
		if err := ctx.Err(); err != nil {
			return false, false, err
		}
		inside := ok && string(s.it.Key()) < string(span.End)
		if !inside && !wrapped {
			wrapped = true
			ok = s.seek(span.Start)
			continue
		}
		if !inside {
			delete(s.m.places, stream)
			return true, true, s.it.Error()
		}
		key, _, err := store.ParseReadyKey(s.it.Key())
		if err != nil {
			s.m.deps.Logger.Error("ready key of an unknown shape is left alone", "err", err)
			ok = s.it.Next()
			continue
		}
		if wrapped && resumed && string(s.it.Key()) >= string(from) {
			delete(s.m.places, stream)
			return true, true, nil
		}
		known, fits := s.m.adopt(&key)
		if !fits {
			return true, false, nil
		}
		if len(s.m.places) >= maxPlaces {
			clear(s.m.places)
		}
		s.m.places[stream] = key
		if !known {
			if left--; left == 0 {
				return false, false, nil
			}
		}
		ok = s.seek(store.ReadyQueuesSpan(&key).Start)
	}
}

// adopt makes sure that a queue found on disk is in memory and being filled.
// known says that it was there before; fits is false when there is no room.
func (m *Manager) adopt(key *store.QueueKey) (known, fits bool) {
	if m.suspended(key) {
		m.mu.Lock()
		m.parked = true
		m.mu.Unlock()
		return true, true
	}
	q := m.queue(key)
	known = q != nil
	if !known {
		q = m.ensure(key, false)
	}
	if q == nil {
		return false, false
	}
	q.mu.Lock()
	refill := q.wantsRefill()
	q.mu.Unlock()
	if refill {
		m.startRefill(q)
	}
	return known, true
}
