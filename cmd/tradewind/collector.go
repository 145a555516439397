package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// The garbage collector starts when what is reachable has doubled. An engine with
// little mail in hand has so little of it that a tenth of a second's mail doubles it;
// one with ten thousand connections keeps hundreds of megabytes of garbage. Here it
// starts after leastGarbage, or when the garbage comes to three quarters of what is
// reachable.
const leastGarbage = 64 << 20

// paceCollector sees to that from now on, after each collection, unless GOGC says
// otherwise.
func paceCollector() {
	if os.Getenv("GOGC") == "" {
		p := &pacer{percent: 100, sample: []metrics.Sample{
			{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"},
		}}
		p.collected(0)
	}
}

// pacer sets the collector's pace.
type pacer struct {
	percent int // in force
	sample  []metrics.Sample
}

// collected looks at what the last collection left, and has itself called after the
// next one.
func (p *pacer) collected(int) {
	metrics.Read(p.sample)
	if percent := gcPercent(p.sample[0].Value.Uint64(), p.sample[1].Value.Uint64()+p.sample[2].Value.Uint64()); percent > p.percent*9/8 || percent < p.percent*7/8 {
		p.percent = percent
		debug.SetGCPercent(percent) // stops the world for a moment
	}
	runtime.AddCleanup(new(*pacer), p.collected, 0) // garbage that the next collection finds
}

// gcPercent is the GOGC with which the collector starts as said above: live is the
// heap that is reachable, roots what else it counts.
func gcPercent(live, roots uint64) int {
	garbage := max(leastGarbage, live/4*3)
	return int(min(100*garbage/max(live+roots, 1<<20), 2000))
}
