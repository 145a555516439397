package queue

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// fromEnv reads a number from the environment: how much of a random test to
// run, or which seed.
func fromEnv(t *testing.T, name string, def uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// seedFrom is where a random test starts: at 1 unless the environment says
// otherwise, so that a run that fails is a change that fails. name holds a seed of
// this test, TRADEWIND_SEED one of all of them, or "random" to draw one.
func seedFrom(t *testing.T, name string) uint64 {
	t.Helper()
	all := uint64(1)
	if os.Getenv("TRADEWIND_SEED") == "random" {
		all = rand.Uint64N(1 << 32)
	} else {
		all = fromEnv(t, "TRADEWIND_SEED", all)
	}
	seed := fromEnv(t, name, all)
	t.Logf("%s=%d", name, seed)
	return seed
}

// shortened is how much of a random test to run: full, or short with -short, or
// raced with -short under the race detector. Built for that, Pebble checks its own
// invariants at every step, and a storm of a third of a second takes half a minute.
// What the detector finds it finds in the first of many runs that are alike; the
// full numbers are what make test runs.
func shortened(full, short, raced uint64) uint64 {
	switch {
	case !testing.Short():
		return full
	case underRace:
		return raced
	}
	return short
}

// runLength is how many steps one model run takes before its queue is drained.
const runLength = 2000

// modelSteps makes the steps of a run. How often each action comes up varies
// from run to run, so that some runs hardly settle and others hardly accept.
func modelSteps(seed uint64, n int) []step {
	r := rand.New(rand.NewPCG(seed, 2))
	weights := [actions]int{
		doAccept: 5 + r.IntN(20), doLease: 20 + r.IntN(30), doSettle: 15 + r.IntN(30), doRelease: r.IntN(6),
		doCancel: r.IntN(6), doAdvance: 1 + r.IntN(6), doEvict: r.IntN(4), doReap: 1 + r.IntN(3), doCheck: 1,
	}
	total := 0
	for _, n := range weights {
		total += n
	}
	steps := make([]step, n)
	for i := range steps {
		do := action(0)
		for pick := r.IntN(total); pick >= weights[do]; do++ {
			pick -= weights[do]
		}
		switch r.IntN(400) { // rare ones
		case 0:
			do = doRestart
		case 1:
			do = doCrash
		}
		steps[i] = step{do, r.Uint64()}
	}
	return steps
}

// modelConfig keeps everything in memory so small that refill, search and
// eviction are the rule.
func modelConfig(seed uint64) Config {
	r := rand.New(rand.NewPCG(seed, 3))
	cfg := DefaultConfig()
	cfg.Window = []int{1, 2, 5, 20}[r.IntN(4)]
	cfg.MaxItems = cfg.Window * []int{1, 2, 10}[r.IntN(3)]
	cfg.MaxActive = []int{1, 2, 5, 100}[r.IntN(4)]
	cfg.BodyCache = []int64{0, 500, 1 << 20}[r.IntN(3)]
	cfg.MaxAge = []time.Duration{time.Hour, 30 * time.Hour}[r.IntN(2)]
	return cfg
}

// runModel takes a fresh queue through the steps and returns what went wrong,
// and after how many of them.
func runModel(seed uint64, steps []step, bubble func(time.Duration)) (at int, err error) {
	return runMachine(seed, steps, bubble, func(*machine, step) {})
}

// runBroken is runModel on a queue that forgets, now and then, the oldest item of
// one of its windows.
func runBroken(seed uint64, steps []step) (at int, err error) {
	return runMachine(seed, steps, nil, func(w *machine, s step) {
		if s.do != doRelease {
			return
		}
		for _, q := range w.inMemory() {
			q.mu.Lock()
			if len(q.window) > 1 {
				q.window = q.window[1:]
				w.m.items.Add(-1)
				q.mu.Unlock()
				return
			}
			q.mu.Unlock()
		}
	})
}

// runMachine is runModel with something done behind the queue's back after each
// step.
func runMachine(seed uint64, steps []step, bubble func(time.Duration), meddle func(*machine, step)) (at int, err error) {
	start := time.Unix(1_800_000_000, 0)
	if bubble != nil {
		start = time.Now()
	}
	w := &machine{
		cfg: modelConfig(seed), bubble: bubble, fs: vfs.NewCrashableMem(), o: newOracle(start),
		maxWaiting: []int{20, 100, 600}[seed%3],
	}
	if err := w.open(); err != nil {
		return 0, err
	}
	for i, s := range steps {
		if err := w.run(s); err != nil {
			w.stop()
			return i + 1, err
		}
		meddle(w, s)
	}
	if err := w.drain(rand.New(rand.NewPCG(seed, 4))); err != nil {
		w.stop()
		return len(steps), fmt.Errorf("drain: %w", err)
	}
	return len(steps), w.stop()
}

// shrink drops steps as long as the run still fails, for at most a minute.
func shrink(seed uint64, steps []step, fails func([]step) (int, error)) []step {
	until := time.Now().Add(time.Minute)
	for size := len(steps) / 2; size > 0; size /= 2 {
		for from := 0; from < len(steps) && time.Now().Before(until); {
			less := slices.Delete(slices.Clone(steps), from, min(from+size, len(steps)))
			if n, err := fails(less); err != nil {
				steps = less[:n]
			} else {
				from += size
			}
		}
	}
	return steps
}

func (s step) String() string {
	return fmt.Sprintf("{%s, %d}", [...]string{
		"doAccept", "doLease", "doSettle", "doRelease", "doCancel", "doAdvance", "doEvict", "doReap", "doCheck", "doRestart", "doCrash",
	}[s.do], s.seed)
}

// TestQueueBehavesAsTheModelOverAMillionOperations compares the queue with a
// simple model of it. TRADEWIND_MODEL_OPS asks for more operations and
// TRADEWIND_MODEL_SEED for the runs from one seed on.
func TestQueueBehavesAsTheModelOverAMillionOperations(t *testing.T) {
	t.Parallel()
	ops := fromEnv(t, "TRADEWIND_MODEL_OPS", shortened(1_000_000, 16_000, 8_000))
	first := seedFrom(t, "TRADEWIND_MODEL_SEED")
	t.Logf("%d operations", ops)
	const workers = 4
	for k := range uint64(workers) {
		t.Run(fmt.Sprintf("worker%d", k), func(t *testing.T) {
			t.Parallel()
			for seed := first + k; (seed-first)*runLength < ops && !t.Failed(); seed += workers {
				steps := modelSteps(seed, runLength)
				n, err := runModel(seed, steps, nil)
				if err == nil {
					continue
				}
				run := func(s []step) (int, error) { return runModel(seed, s, nil) }
				short := shrink(seed, steps[:n], run)
				_, again := run(short)
				var list strings.Builder
				for _, s := range short {
					fmt.Fprintf(&list, "\n\t%v", s)
				}
				t.Errorf("seed %d, step %d: %v\nshrunk to %d steps (%v):%s", seed, n, err, len(short), again, list.String())
			}
		})
	}
}

// TestQueueBehavesAsTheModelWithItsOwnTimers is the same with Run doing the
// promotions, searches and sweeps in virtual time.
func TestQueueBehavesAsTheModelWithItsOwnTimers(t *testing.T) {
	t.Parallel()
	first := seedFrom(t, "TRADEWIND_MODEL_SEED")
	steps := int(shortened(runLength, runLength, 300))
	for seed := first; seed < first+shortened(6, 1, 1); seed++ {
		synctest.Test(t, func(t *testing.T) {
			pass := func(d time.Duration) {
				time.Sleep(d)
				synctest.Wait()
			}
			if n, err := runModel(seed, modelSteps(seed, steps), pass); err != nil {
				t.Errorf("seed %d, step %d: %v", seed, n, err)
			}
		})
	}
}
