//go:build race

package queue

// underRace says whether the race detector is built in.
const underRace = true
