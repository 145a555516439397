package main

import (
	"os"
	"os/exec"
	"testing"
)

func TestUsageHoldsChildrenThatHaveEnded(t *testing.T) {
	t.Parallel()
	before, err := usageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Some hundred thousand additions in a process of their own.
	if err := exec.Command("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done").Run(); err != nil {
		t.Fatal(err)
	}
	after, err := usageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if after.cpu-before.cpu < tick {
		t.Errorf("the child's CPU is missing: %v before, %v after", before.cpu, after.cpu)
	}
}
