package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// stream is go test -json of these events.
func stream(t *testing.T, events ...event) string {
	t.Helper()
	var b strings.Builder
	for _, e := range events {
		if err := json.NewEncoder(&b).Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// A panic in one of several parallel tests ends the process: test2json reports the
// package as failed, and of the tests it may name only one, or none.
func TestOutputOfTestsThatNeverEndedIsShown(t *testing.T) {
	t.Parallel()
	events := []event{
		{Action: "output", Package: "p", Test: "TestA", Output: "a says this\n"},
		{Action: "output", Package: "p", Test: "TestDone", Output: "done says that\n"},
		{Action: "pass", Package: "p", Test: "TestDone"},
		{Action: "output", Package: "other", Test: "TestC", Output: "of another package\n"},
		{Action: "output", Package: "p", Output: "exit status 2\n"},
		{Action: "output", Package: "p", Test: "TestB", Output: strings.Repeat("x", 3*maxTail) + "panic: the end\n"},
	}
	for i := range 30 {
		events = append(events, event{Action: "output", Package: "p", Test: fmt.Sprintf("TestZ%02d", i), Output: "waits\n"})
	}
	events = append(events, event{Action: "fail", Package: "p"})
	var out strings.Builder
	total, err := read(strings.NewReader(stream(t, events...)), &out)
	if err != nil {
		t.Fatal(err)
	}
	if total != (counts{passed: 1, failed: 1}) {
		t.Errorf("counted %+v, want one passed and one failed", total)
	}
	got := out.String()
	for _, want := range []string{"TestA, which said last:\na says this\n", "TestB, which", "xpanic: the end\n", "TestZ17", "12 more", "exit status 2\n", "fail p: 1 passed"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing", want)
		}
	}
	for _, not := range []string{"done says", "another package", "TestZ18"} {
		if strings.Contains(got, not) {
			t.Errorf("%q is there", not)
		}
	}
	if most := maxTails*(maxTail+100) + 1000; len(got) > most {
		t.Errorf("%d bytes, want at most %d", len(got), most)
	}
}

func TestFailedTestIsShownOnce(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	total, err := read(strings.NewReader(stream(t,
		event{Action: "output", Package: "p", Test: "TestA", Output: "got 1, want 2\n"},
		event{Action: "fail", Package: "p", Test: "TestA"},
		event{Action: "output", Package: "p", Output: "FAIL\n"},
		event{Action: "fail", Package: "p"},
		event{Action: "skip", Package: "q"},
	)+"not JSON\n"), &out)
	if err != nil || total != (counts{failed: 1}) {
		t.Errorf("counted %+v, %v; want one failed", total, err)
	}
	if want := "got 1, want 2\nFAIL\n  fail p: 0 passed, 1 failed, 0 skipped in 0s\nnot JSON\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
