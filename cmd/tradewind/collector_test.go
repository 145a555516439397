package main

import "testing"

func TestCollectorWaitsForGarbageWorthCollecting(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, c := range []struct {
		live, roots uint64
		want        int
	}{
		{0, 0, 2000},               // just started
		{16 * mib, 0, 400},         // little mail in hand: 64 MiB of garbage
		{64 * mib, 0, 100},         // as the runtime has it
		{200 * mib, 0, 75},         // three quarters
		{200 * mib, 100 * mib, 50}, // the same 150 MiB
	} {
		if got := gcPercent(c.live, c.roots); got != c.want {
			t.Errorf("%d MiB live, %d MiB of roots: %d %%, want %d %%", c.live/mib, c.roots/mib, got, c.want)
		}
	}
}
