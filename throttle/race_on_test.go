//go:build race

package throttle

import "testing"

// brief says whether a test is to do with less than it can: with -short and under
// the race detector, which makes virtual hours long.
func brief() bool { return testing.Short() }
