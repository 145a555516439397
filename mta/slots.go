package mta

import (
	"sync"

	"github.com/tradewind-mta/tradewind/throttle"
)

// slots counts the connections of the whole engine, whichever pool, site or
// source they belong to, and tells lanes that came in vain when one is free: one
// lane for each, in the order in which they came, for there may be as many as
// there are destinations.
type slots struct {
	mu      sync.Mutex // protects everything below
	open    int64
	limit   int64
	line    fifo[*lane]
	waiting map[*lane]struct{} // those in line
}

// resize sets how many slots there are. REQUIRES: no lock of a site is held.
func (s *slots) resize(limit int64) {
	s.mu.Lock()
	s.limit = limit
	more := min(limit-s.open, int64(s.line.len()))
	s.mu.Unlock()
	for ; more > 0; more-- {
		s.offer()
	}
}

// claim takes a slot if one is free; otherwise l stands in line.
func (s *slots) claim(l *lane) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open < s.limit {
		s.open++
		return true
	}
	if s.waiting == nil {
		s.waiting = make(map[*lane]struct{})
	}
	if _, ok := s.waiting[l]; !ok {
		s.waiting[l] = struct{}{}
		s.line.push(l)
	}
	return false
}

// free gives a slot back. REQUIRES: no lock of a site is held.
func (s *slots) free() {
	s.mu.Lock()
	s.open--
	s.mu.Unlock()
	s.offer()
}

// offer tells lanes of a free slot, the first in line first, until one starts a
// runner. That runner claims the slot, or offers it again when it ends.
// REQUIRES: no lock of a site is held.
func (s *slots) offer() {
	for {
		s.mu.Lock()
		if s.line.len() == 0 || s.open >= s.limit {
			s.mu.Unlock()
			return
		}
		l := s.line.pop()
		delete(s.waiting, l)
		s.mu.Unlock()
		if l.site.notified(l, throttle.FreedConnection) {
			return
		}
	}
}
