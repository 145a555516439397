package crash

import (
	"context"
	"flag"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// Flags, behind -args.
var (
	cycles = flag.Int("cycles", 20, "how often the engine is killed")
	seed   = flag.Uint64("seed", 1, "seed of the random moments; 0 draws one")
)

func random(t *testing.T) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d", s)
	return rand.New(rand.NewPCG(s, 1))
}

// load is what every test here sends.
func load(l *ledger, target string) loadgen.Source {
	s := loadgen.Source{Target: target, Size: 4 << 10, Connections: 8, Messages: 1 << 20, Timeout: 10 * time.Second}
	if l != nil {
		s.OnAck = l.onAck
	}
	return s
}

// TestKilledEngineLosesNothingItAcknowledged kills the engine at random moments
// under load, some of them while it starts, and lets the ledger judge.
func TestKilledEngineLosesNothingItAcknowledged(t *testing.T) {
	r := random(t)
	l := newLedger(t, load(nil, ""))
	sink, addr := startSink(t, loadgen.SinkConfig{
		OnMessage: l.onMessage, DeferPercent: 10, RejectPercent: 3, Seed: r.Uint64(), Latency: 2 * time.Millisecond,
	})
	e := newEngine(t, build(t), t.TempDir(), addr, "")
	n := *cycles
	if testing.Short() {
		n = min(n, 3)
	}
	var starts []time.Duration
	for i := range n {
		e.start()
		begun := time.Now()
		if i > 0 {
			l.kills[i-1].restarted = begun
		}
		if r.IntN(8) > 0 {
			e.mustBeReady(time.Minute)
			starts = append(starts, time.Since(begun))
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s := load(l, e.smtp)
			s.FirstID, s.Rate = (i+1)<<20, 2000
			s.Run(ctx) // it ends with an error when the target dies
		}()
		<-time.After(time.Duration(r.IntN(1500)) * time.Millisecond)
		open := sink.Counts().Open
		at := time.Now()
		e.kill()
		cancel()
		<-ended
		l.kills = append(l.kills, kill{at: at, open: int(open)})
	}
	e.start()
	begun := time.Now()
	l.kills[n-1].restarted = begun
	e.mustBeReady(time.Minute)
	e.drain(l, 2*time.Minute)
	drained := time.Since(begun)
	e.stop()
	rep := e.verify()
	if rep.Recipients != 0 || rep.Quarantine != 0 {
		t.Errorf("%d recipients wait and %d records are in quarantine after everything has ended", rep.Recipients, rep.Quarantine)
	}
	v := l.verdict()
	slices.Sort(starts)
	inFlight := 0
	for _, k := range l.kills {
		inFlight += k.open
	}
	t.Logf("%d kills with %d connections to the sink open in all; ready again after %v (median), %v (longest); drained in %v",
		n, inFlight, starts[len(starts)/2].Round(time.Millisecond), starts[len(starts)-1].Round(time.Millisecond), drained.Round(time.Millisecond))
	report(t, v)
}
