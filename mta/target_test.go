package mta

import (
	"fmt"
	"testing"
)

func TestTargetsOfAMillionDomainsAreNotAllRemembered(t *testing.T) {
	t.Parallel()
	m := &MTA{targets: make(map[targetKey]*target)}
	busy := targetKey{"default", "busy.example"}
	m.targets[busy] = &target{resolving: true}
	for i := range 4 * maxTargets {
		m.forgetTargets()
		m.targets[targetKey{"default", fmt.Sprintf("d%d.example", i)}] = &target{}
		if len(m.targets) > maxTargets {
			t.Fatalf("%d targets are remembered, want at most %d", len(m.targets), maxTargets)
		}
	}
	if m.targets[busy] == nil {
		t.Error("a target was forgotten while it was being resolved: its queues would wait for ever")
	}
}
