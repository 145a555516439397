package mta

import "sync/atomic"

// crew is the goroutines that serve lanes. One that has no more to do waits for
// the next lane that needs a runner: a new goroutine begins with a small stack and
// has to copy it into larger ones before the message is loaded, which was 2 % of
// what a message costs where each finds its lane idle.
type crew struct {
	work chan func()
	idle atomic.Int64
}

// maxIdleCrew bounds the goroutines that wait; a burst starts more.
const maxIdleCrew = 64

// begin runs fn in a goroutine of the crew. MTA.wg waits for its end.
func (m *MTA) begin(fn func()) {
	m.wg.Add(1)
	select {
	case m.crew.work <- fn:
	default:
		go m.member(fn)
	}
}

// member runs fn and then what comes, until enough others wait or the engine
// stops.
func (m *MTA) member(fn func()) {
	for {
		fn()
		m.wg.Done()
		if m.crew.idle.Add(1) > maxIdleCrew {
			m.crew.idle.Add(-1)
			return
		}
		select {
		case fn = <-m.crew.work:
			m.crew.idle.Add(-1)
		case <-m.soft.Done():
			return
		}
	}
}
