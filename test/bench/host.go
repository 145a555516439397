package main

import (
	"fmt"
	"slices"
	"time"
)

// hostWatch is what watchHost saw.
type hostWatch struct {
	ok   bool            // it could watch
	late []time.Duration // each time that nothing ran, how long
	of   time.Duration   // how long it watched
}

// waitFor is how long all but share of what comes at random moments would have
// waited at the least if nothing ran during the pauses, of a time that long.
func waitFor(pauses []time.Duration, of time.Duration, share float64) time.Duration {
	lo, hi := time.Duration(0), time.Duration(0)
	if len(pauses) > 0 {
		hi = slices.Max(pauses)
	}
	for hi-lo > time.Microsecond {
		mid := (lo + hi) / 2
		longer := time.Duration(0) // in it: moments from which the wait is longer than mid
		for _, p := range pauses {
			longer += max(0, p-mid)
		}
		if float64(longer) > share*float64(of) {
			lo = mid
		} else {
			hi = mid
		}
	}
	return hi
}

// text says what the host did to the machine meanwhile, and what p99 that makes.
func (w hostWatch) text() (text string, p99 time.Duration) {
	if !w.ok {
		return "whether the host took the CPUs away meanwhile could not be watched", 0
	}
	var sum, longest time.Duration
	for _, d := range w.late {
		sum += d
		longest = max(longest, d)
	}
	p99 = waitFor(w.late, w.of, 0.01)
	return fmt.Sprintf("meanwhile the host had all CPUs stand still for more than 1 ms %.1f times a second, %.1f %% of the time, longest %s: the p99 of waiting for that alone is %s",
		float64(len(w.late))/w.of.Seconds(), 100*sum.Seconds()/w.of.Seconds(), ms(longest.Seconds()), ms(p99.Seconds())), p99
}
