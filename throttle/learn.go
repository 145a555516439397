package throttle

import (
	"strconv"
	"strings"
	"time"
)

// lesson is what a hold has learned about a limit that the provider keeps to
// itself: the level at which it refused while we grew back after a first
// reaction, and the level that worked before that. The first reaction itself
// teaches nothing, for it may have had a passing cause.
//
// Between the two the hold closes in, half the distance at a time. When they
// are close it settles at what works and looks above it rarely: after an hour,
// and after twice as long with each look that goes wrong, up to a day. A look
// that works may have been lucky: the rate grows a little in the hour after it,
// and twice as much in each that follows.
type lesson struct {
	fast   int64 // interval between transactions that was refused; 0: none known
	many   int64 // connections that were refused; 0: none known
	pace   int64 // interval that worked last; 0: not growing
	cap    int64 // connections that worked last; 0: not growing
	wait   int64 // how long the next look above is away once settled
	gain   int64 // per cent by which the rate grows next: the last look worked
	eased  int64 // when a refusal of what had worked last made us go a little slower
	rest   bool  // settled until h.until
	sent   int64 // transactions of this step
	filled bool  // all connections of this step were in use
}

const (
	firstLook = int64(time.Hour)
	lastLook  = nsPerDay
	// settledAt is how close to the refused rate what works has to be: a tenth.
	settledAt = 10
	// lookSteps and closeSteps are how many steps a look lasts, and each approach
	// to the limit: one that counts by the minute does not show at once.
	lookSteps  = 10
	closeSteps = 2
	firstGain  = 10
	mostGain   = 100
	// leastMinute is how many transactions a minute a source must have made for
	// their pace to be taken for what a provider refused while we came back from
	// a pause; of them rampShare per cent go from then on.
	leastMinute = 30
	rampShare   = 75
	// learnedFor is how long a hold that learned a limit is kept without mail.
	learnedFor = 3 * nsPerDay
)

func (l *lesson) learned() bool { return l.fast > 0 || l.many > 0 || l.gain > 0 }

// proved reports whether the step that ends has shown what it was for: a step
// above what is known to work shows nothing unless mail was there to use it.
func (h *hold) proved(now int64) bool {
	l := &h.learned
	return (l.fast == 0 && l.gain == 0 || h.interval >= l.pace || l.sent*h.interval*5 >= (now-h.since)*4) &&
		(l.many == 0 || h.cap <= l.cap || l.filled)
}

// grow takes the next step after one that worked, and reports whether the hold
// is over.
func (h *hold) grow(now int64) (over bool) {
	l := &h.learned
	if !h.proved(now) {
		l.sent, l.filled = 0, false
		h.since, h.until = now, now+closeSteps*h.step
		return false
	}
	was, look := h.learnedKinds(), l.rest
	if l.fast > 0 && h.interval <= l.fast {
		l.fast, l.wait, l.gain = 0, l.wait/2, firstGain // that much is welcome by now
	}
	if l.many > 0 && h.cap >= l.many {
		l.many, l.wait = 0, l.wait/2
	}
	h.taught(was)
	if h.atLimits() {
		return true
	}
	l.pace, l.cap, l.rest, l.sent, l.filled = h.interval, h.cap, false, 0, false
	if h.cap < h.mostConnections(look) {
		h.cap++
	}
	ramp := h.state == StateRamp && h.cap > l.cap // connections first
	if h.interval > 0 && !ramp {
		h.interval = h.faster(look)
	}
	h.since, h.until = now, now+h.step
	switch {
	case ramp && h.interval > 0:
	case h.cap == l.cap && h.interval == l.pace:
		l.rest, l.wait = true, max(l.wait, firstLook)
		h.until = now + l.wait
	case l.gain > 0:
		h.until = now + firstLook
	case look:
		h.until = now + lookSteps*h.step
	case l.learned():
		h.until = now + closeSteps*h.step
	case h.procedure():
		return h.atLimits()
	}
	return false
}

// atLimits reports whether the hold allows as much as the rules.
func (h *hold) atLimits() bool {
	return h.cap >= h.max && h.interval <= h.ceiling
}

// procedure reports whether the hold follows the published recovery procedure,
// which ends where it reaches the limit. Any other hold ends when a step there
// has worked, or a limit just below could never be learned.
func (h *hold) procedure() bool {
	return h.rule.Action == VerbRecover || h.rule.Action == VerbSuspend
}

// mostConnections is how many connections the next step may have. look says
// that it is time to look above what was refused.
func (h *hold) mostConnections(look bool) int64 {
	if h.learned.many > 0 && !look {
		return min(h.max, h.learned.many-1)
	}
	return h.max
}

// faster is the interval of the next step.
func (h *hold) faster(look bool) int64 {
	l := &h.learned
	fast := l.fast
	if l.gain > 0 {
		next := h.interval * 100 / (100 + l.gain)
		l.gain = min(2*l.gain, mostGain)
		return max(next, h.ceiling)
	}
	if fast == 0 {
		// Additive increase: the rate, not the interval, grows evenly.
		rate := 1/float64(h.interval) + 1/(float64(h.ceiling)*paceSteps)
		return max(int64(1/rate), h.ceiling)
	}
	if gap := h.interval - fast; gap*settledAt > h.interval && (look || h.state == StateSlowed) {
		rate := (1/float64(h.interval) + 1/float64(fast)) / 2
		return max(int64(1/rate), h.ceiling)
	}
	if look {
		return max(fast, h.ceiling)
	}
	return h.interval
}

// refusedRate notes a refusal while the rate was growing, goes back to what
// worked and reports that it did. After any other refusal the caller slows down
// as the rules say.
func (h *hold) refusedRate(now int64) bool {
	l := &h.learned
	was := h.learnedKinds()
	switch {
	case l.pace > 0 && h.interval < l.pace:
		l.missed(h.interval == l.fast || l.gain > 0)
		l.fast, l.gain, h.interval = h.interval, 0, l.pace
		h.cap = min(h.cap, l.cap)
	case l.rest && l.fast > 0 && now-l.eased >= firstLook:
		// What is known of the limit was a little too much.
		l.fast, l.eased = h.interval, now
		h.interval += h.interval / settledAt
		l.pace = h.interval
	default:
		if l.learned() {
			l.fast, l.gain = h.interval, 0
		}
		l.pace, l.cap, l.rest = 0, 0, false
		return false
	}
	h.taught(was)
	h.back(now)
	return true
}

// refusedConnections is refusedRate for connections.
func (h *hold) refusedConnections(now int64) bool {
	l := &h.learned
	was := h.learnedKinds()
	if l.cap == 0 || h.cap <= l.cap {
		l.pace, l.cap, l.rest = 0, 0, false
		return false
	}
	l.missed(h.cap == l.many)
	l.many, h.cap = h.cap, l.cap
	if h.state == StateSlowed {
		h.interval = max(h.interval, l.pace)
	}
	h.taught(was)
	h.back(now)
	return true
}

// refusedRamp is refusedRate for a hold that comes back from a pause, whose
// source had so many transactions in the last minute. The next refusal costs a
// pause again, so that the hold closes in once a day, and not with each step.
func (h *hold) refusedRamp(minute int64) {
	l := &h.learned
	was := h.learnedKinds()
	defer h.taught(was)
	switch {
	case l.pace > 0 && h.interval < l.pace:
		l.fast, l.gain, l.wait, h.interval = h.interval, 0, lastLook, l.pace
	case h.interval > 0:
		l.fast, l.gain, h.interval = 0, firstGain, min(2*h.interval, max(slowestPace, h.ceiling))
	case h.state == StateRamp && minute >= leastMinute:
		l.gain = firstGain
		h.interval = max(int64(time.Minute)*100/(minute*rampShare), h.ceiling)
	}
}

// missed doubles the time to the next look if this was one.
func (l *lesson) missed(look bool) {
	if look {
		l.wait = min(max(2*l.wait, firstLook), lastLook)
	}
}

// back returns to what worked. A limit by the minute is used up: nothing would
// be taken before the minute is over.
func (h *hold) back(now int64) {
	l := &h.learned
	l.rest, l.sent, l.filled = false, 0, false
	h.hit, h.since, h.until = now, now, now+h.step
	h.next = max(h.next, now+h.step)
}

// forget drops what was learned, for the limits it lay between have changed.
func (h *hold) forget() {
	was := h.learnedKinds()
	h.learned = lesson{}
	h.taught(was)
}

// learnedKinds tells which limits are learned, for the metrics.
func (h *hold) learnedKinds() [2]bool {
	if h.state == StateNormal {
		return [2]bool{}
	}
	return [2]bool{h.learned.fast > 0 || h.learned.gain > 0, h.learned.many > 0}
}

// taught counts the change since was.
func (h *hold) taught(was [2]bool) { h.m.learn(was, h.learnedKinds()) }

// refusedAt tells what was learned, "" when nothing was.
func (h *hold) refusedAt() string {
	var s []string
	if h.learned.fast > 0 {
		s = append(s, "refused at "+perSecond(h.learned.fast))
	}
	if h.learned.many > 0 {
		s = append(s, "refused at "+strconv.FormatInt(h.learned.many, 10)+" connections")
	}
	return strings.Join(s, ", ")
}

// perSecond is an interval as the rate it makes.
func perSecond(interval int64) string {
	return strconv.FormatFloat(float64(time.Second)/float64(interval), 'g', 3, 64) + "/s"
}

// Pace is the rate that the hold keeps to, "" when it has none.
func (s *HoldState) Pace() string {
	if s.Interval <= 0 {
		return ""
	}
	return perSecond(int64(s.Interval))
}

// Learned says in words which limits the hold has learned and when it looks
// above them, "" when it has learned none.
func (s *HoldState) Learned() string {
	h := hold{learned: lesson{fast: int64(s.TooFast), many: s.TooMany}}
	words := h.refusedAt()
	switch {
	case s.Gain > 0:
		return words + "grows by " + strconv.FormatInt(s.Gain, 10) + " % after " + s.Until.UTC().Format(time.RFC3339)
	case words == "":
		return ""
	case !s.Settled:
		return words + ", closing in"
	}
	if pace := s.Pace(); pace != "" {
		words += ", goes on at " + pace
	}
	return words + ", looks above it at " + s.Until.UTC().Format(time.RFC3339)
}
