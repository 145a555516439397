package mta

import "sync"

// slots counts the connections of the whole engine, whichever pool, site or
// source they belong to, and tells lanes that came in vain when one is free.
type slots struct {
	mu      sync.Mutex // protects everything below
	open    int64
	waiting map[*lane]struct{}
}

// claim takes a slot unless limit are taken; l is then notified when one is
// free.
func (s *slots) claim(limit int64, l *lane) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open < limit {
		s.open++
		return true
	}
	if s.waiting == nil {
		s.waiting = make(map[*lane]struct{})
	}
	s.waiting[l] = struct{}{}
	return false
}

// free gives a slot back. REQUIRES: no lock of a site is held.
func (s *slots) free() {
	s.mu.Lock()
	s.open--
	waiting := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for l := range waiting {
		l.site.notified(l)
	}
}
