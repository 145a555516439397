//go:build !race

package throttle

// brief says whether a test is to do with less than it can, which is so under the
// race detector only.
func brief() bool { return false }
