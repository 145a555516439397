package main

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// watchHost looks for times in which nothing runs at all because the host of this
// virtual machine has taken its CPUs away, as it does where it shares them out in
// portions: a thread that goes before all others and only ever sleeps for nap
// wakes up late. Without the privilege for such a thread it cannot watch.
func watchHost() (stop func() hostWatch) {
	const nap = 500 * time.Microsecond
	end, found := make(chan struct{}), make(chan hostWatch, 1)
	go func() {
		runtime.LockOSThread() // and ends with the goroutine: nobody inherits its priority
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 50}
		s := hostWatch{ok: unix.SchedSetAttr(0, &attr, 0) == nil}
		began := time.Now()
		for last := began; s.ok; {
			select {
			case <-end:
				s.of = time.Since(began)
				found <- s
				return
			default:
			}
			ts := unix.NsecToTimespec(int64(nap))
			unix.Nanosleep(&ts, nil) // an interruption only makes it shorter
			now := time.Now()
			if d := now.Sub(last) - nap; d > time.Millisecond {
				s.late = append(s.late, d)
			}
			last = now
		}
		found <- s
	}()
	return func() hostWatch {
		close(end)
		return <-found
	}
}
