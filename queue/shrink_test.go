package queue

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

// A run that fails when certain steps come in a certain order stands for a bug.
func TestShrinkKeepsOnlyTheStepsThatTheFailureNeeds(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 6))
		steps := modelSteps(seed, 1000)
		needed := []step{{doAccept, 1}, {doLease, 2}, {doCrash, 3}, {doCancel, 4}}
		at := []int{r.IntN(200), 200 + r.IntN(200), 400 + r.IntN(200), 600 + r.IntN(300)}
		for i, s := range needed {
			steps[at[i]] = s
		}
		runs := 0
		fails := func(list []step) (int, error) {
			runs++
			found := 0
			for i, s := range list {
				if s == needed[found] {
					if found++; found == len(needed) {
						return i + 1, errors.New("the bug")
					}
				}
			}
			return len(list), nil
		}
		if got := shrink(seed, steps, fails); !slices.Equal(got, needed) {
			t.Errorf("seed %d: shrunk to %v, want %v", seed, got, needed)
		}
		if runs > 500 {
			t.Errorf("seed %d: %d runs to shrink a thousand steps, want at most 500", seed, runs)
		}
	}
}

// TestModelCatchesABugAndShrinksIt breaks the queue on purpose: now and then an item
// of a window is forgotten.
func TestModelCatchesABugAndShrinksIt(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed < 50; seed++ {
		steps := modelSteps(seed, 400)
		broken := func(list []step) (int, error) { return runBroken(seed, list) }
		n, err := broken(steps)
		if err == nil {
			continue
		}
		short := shrink(seed, steps[:n], broken)
		if _, err := broken(short); err == nil {
			t.Fatalf("seed %d: what is left after shrinking does not fail", seed)
		}
		if len(short) > 20 {
			t.Errorf("seed %d: shrunk to %d steps, want a handful: %v", seed, len(short), short)
		}
		return
	}
	t.Fatal("the model never noticed a lost item: it cannot tell")
}
