//go:build !linux

package main

import "time"

// watchHost needs Linux.
func watchHost() (stop func() (late []time.Duration, of time.Duration, ok bool)) {
	return func() ([]time.Duration, time.Duration, bool) { return nil, 0, false }
}
