//go:build race

package store

import "testing"

// brief says whether a test is to do with less than it can: with -short and under
// the race detector, for which Pebble checks its own invariants at every step.
func brief() bool { return testing.Short() }
