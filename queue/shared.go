package queue

import (
	"sync"

	"github.com/tradewind-mta/tradewind/message"
)

// sharedBytes bounds the bodies that shared keeps.
const sharedBytes = 16 << 20

// shared remembers messages with several recipients that were read from disk:
// where one recipient is being delivered to, the next ones are near. What was
// loaded first goes first.
type shared struct {
	mu     sync.Mutex // protects everything below
	byID   map[message.ID]sharedMessage
	order  []message.ID
	octets int
}

type sharedMessage struct {
	msg  *message.Message
	body []byte
}

func (s *shared) get(id message.ID) (sharedMessage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.byID[id]
	return m, ok
}

// cost is what one entry takes up, roughly.
func (m *sharedMessage) cost() int { return 1024 + len(m.body) }

func (s *shared) put(m sharedMessage) {
	if m.msg.RecipientCount < 2 || m.cost() > sharedBytes/16 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byID[m.msg.ID]; ok {
		return
	}
	if s.byID == nil {
		s.byID = make(map[message.ID]sharedMessage)
	}
	s.byID[m.msg.ID] = m
	s.order = append(s.order, m.msg.ID)
	s.octets += m.cost()
	for s.octets > sharedBytes {
		old := s.byID[s.order[0]]
		s.octets -= old.cost()
		delete(s.byID, s.order[0])
		s.order = s.order[1:]
	}
}
