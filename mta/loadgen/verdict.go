package loadgen

import (
	"bytes"
	"time"
)

// A recipient's local part can ask for a behaviour, whatever the profile:
//
//	defer+…        451 at RCPT, every time
//	deferN+…       451 at RCPT for the first N attempts, 1 to 9
//	reject+…       550 at RCPT
//	slow+…         the reply to RCPT takes 5 s
//	bounce+…       accepted, and listed in Received.Bounced
//	data-defer+…   451 at the dot
//	data-reject+…  550 at the dot
//	drop+…         the connection is closed instead of a reply to the dot
//	close+…        421 at RCPT, and closed
//
// verdict is what becomes of one recipient.
type verdict struct {
	reply  string        // at RCPT; "" accepts
	wait   time.Duration // before it
	dot    string        // at the dot; "" accepts
	drop   bool          // no reply to the dot
	bounce bool
}

const slowReply = 5 * time.Second

// judge decides about a recipient.
func (s *Sink) judge(from, rcpt []byte) verdict {
	if i := bytes.IndexByte(rcpt, '+'); i > 0 {
		if v, ok := s.scripted(string(rcpt[:i]), rcpt); ok {
			return v
		}
	}
	key := fnv(s.cfg.Seed, rcpt)
	if s.cfg.RejectPercent > 0 && int(key%100) < s.cfg.RejectPercent {
		return verdict{reply: s.prof.rejected}
	}
	if s.prof.mixed {
		if v, ok := s.mixture(from, rcpt, int(key/100%100)); ok {
			return v
		}
	}
	if s.cfg.DeferPercent <= 0 {
		return verdict{}
	}
	if s.cfg.DeferRandom {
		n := s.attempts.Add(1)
		if int(mix(s.cfg.Seed^n)%100) < s.cfg.DeferPercent {
			return verdict{reply: s.prof.deferred}
		}
		return verdict{}
	}
	pair := fnv(fnv(s.cfg.Seed, from), rcpt)
	if int(pair%100) < s.cfg.DeferPercent && s.greylisted(pair, s.cfg.GreylistDelay) {
		return verdict{reply: s.prof.deferred}
	}
	return verdict{}
}

func (s *Sink) scripted(word string, rcpt []byte) (verdict, bool) {
	switch word {
	case "defer":
		return verdict{reply: s.prof.deferred}, true
	case "reject":
		return verdict{reply: s.prof.rejected}, true
	case "slow":
		return verdict{wait: slowReply}, true
	case "bounce":
		return verdict{bounce: true}, true
	case "data-defer":
		return verdict{dot: s.prof.later}, true
	case "data-reject":
		return verdict{dot: s.prof.content}, true
	case "drop":
		return verdict{drop: true}, true
	case "close":
		return verdict{reply: "421 4.3.2 closing"}, true
	}
	if len(word) != 6 || word[:5] != "defer" || word[5] < '1' || word[5] > '9' {
		return verdict{}, false
	}
	key := fnv(s.cfg.Seed, rcpt)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tries) >= maxRemembered {
		clear(s.tries)
	}
	s.tries[key]++
	if s.tries[key] <= int(word[5]-'0') {
		return verdict{reply: s.prof.deferred}, true
	}
	return verdict{}, true
}

// mixture is the mixed profile: of a hundred recipients six are greylisted,
// five unknown, three over quota, two get a rate limit, two are refused for
// their content, two are slow; the rest is taken.
func (s *Sink) mixture(from, rcpt []byte, n int) (verdict, bool) {
	pair := fnv(fnv(s.cfg.Seed, from), rcpt)
	switch {
	case n < 6:
		if s.greylisted(pair, s.cfg.GreylistDelay) {
			return verdict{reply: s.prof.deferred}, true
		}
	case n < 11:
		return verdict{reply: s.prof.rejected}, true
	case n < 14:
		return verdict{reply: "452 4.2.2 mailbox full"}, true
	case n < 16:
		if s.greylisted(pair, s.cfg.GreylistDelay) {
			return verdict{reply: "450 4.2.1 this user is receiving mail too quickly"}, true
		}
	case n < 18:
		return verdict{dot: s.prof.content}, true
	case n < 20:
		return verdict{wait: slowReply / 10}, true
	}
	return verdict{}, false
}

// greylisted reports whether pair has to wait: it comes for the first time, or
// again before delay has gone by.
func (s *Sink) greylisted(pair uint64, delay time.Duration) bool {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	first, seen := s.grey[pair]
	if seen {
		return now.Sub(first) < delay
	}
	if len(s.grey) >= maxRemembered {
		clear(s.grey)
	}
	s.grey[pair] = now
	return true
}

// fnv is FNV-1a with a final mix, so that any digits of it are even.
func fnv(seed uint64, b []byte) uint64 {
	h := 14695981039346656037 ^ seed
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return mix(h)
}

func mix(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}
