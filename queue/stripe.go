package queue

import (
	"hash/maphash"
	"sync"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// stripes is how many locks the messages with several recipients share.
const stripes = 256

// stripeCounts bounds the messages that one stripe remembers.
const stripeCounts = 64

// stripe guards the messages that fall to it while somebody finds out whether a
// recipient is their last, and remembers how many of them wait, so that a message
// to thousands is not counted again for each: recipients leave and never come.
type stripe struct {
	sync.Mutex
	left map[message.ID]int
}

// leave takes gone recipients off the count of a message and returns how many are
// left. REQUIRES: s is locked, and stays so until the batch that settles them is
// visible.
func (s *stripe) leave(db *store.DB, id message.ID, gone int) (int, error) {
	left, known := s.left[id]
	if !known {
		err := db.Each(store.LocatorSpan(id), func(_, _ []byte) (bool, error) {
			left++
			return true, nil
		})
		if err != nil {
			return 0, err
		}
	}
	left -= gone
	if left <= 0 {
		delete(s.left, id)
		return left, nil
	}
	if s.left == nil || len(s.left) >= stripeCounts {
		s.left = make(map[message.ID]int)
	}
	s.left[id] = left
	return left, nil
}

// stripeNumber chooses the lock of a message with several recipients.
func (m *Manager) stripeNumber(id message.ID) uint64 {
	return maphash.Bytes(m.seed, id[:]) % stripes
}
