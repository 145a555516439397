package main

import (
	"context"
	"encoding/xml"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestQuantilesAreTakenFromTheSortedList(t *testing.T) {
	t.Parallel()
	list := make([]int64, 1000)
	for i := range list {
		list[i] = int64(time.Duration(1000-i) * time.Millisecond)
	}
	got := quantilesOf(list)
	if want := (quantiles{P50: 0.501, P90: 0.901, P99: 0.991, P999: 1, Max: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := quantilesOf(nil); got != (quantiles{}) {
		t.Errorf("of nothing: got %+v", got)
	}
}

func TestRatiosAreTakenWithinARound(t *testing.T) {
	t.Parallel()
	r := &report{options: &options{}}
	for round, slow := range []time.Duration{1, 10, 1} { // the machine was busy in the second
		r.Samples = append(r.Samples,
			&sample{Relay: "a", Cell: "c", Round: round, Messages: 100, CPU: 2 * slow * time.Second},
			&sample{Relay: "b", Cell: "c", Round: round, Messages: 200, CPU: slow * time.Second})
	}
	if got, want := r.ratio("c", "a", "b", (*sample).cpu), (spread{4, 4, 4}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := collect(r.of("c", "b"), (*sample).cpu).text(0); got != "5000 (5000–50000)" {
		t.Errorf("got %q", got)
	}
}

func TestLedgerNoticesWhatIsLostAndWhatComesTwice(t *testing.T) {
	t.Parallel()
	l := newLedger("user", 2, 2)
	at := l.start.Add(time.Second)
	for _, to := range []string{"user0@a", "user1@a", "user1@a", "user2@a", "warm1@a", "user9@a", "userx@a"} {
		l.deliver(to, at)
	}
	if got := []int64{l.missing.Load(), l.twice.Load(), l.foreign.Load()}; !slices.Equal(got, []int64{1, 1, 3}) {
		t.Errorf("missing, twice, foreign: got %v, want [1 1 3]", got)
	}
	select {
	case <-l.done:
		t.Error("done before the last delivery")
	default:
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	l.deliver("user3@a", at)
	if err := l.wait(t.Context()); err != nil {
		t.Error(err)
	}
	if got := time.Duration(l.arrived[1].Load()); got != time.Second {
		t.Errorf("arrived after %v, want 1s", got)
	}
}

func TestPageKeepsWhatStandsAroundTheRegion(t *testing.T) {
	t.Parallel()
	page := "# Head\n" + regionStart + "old\n" + regionEnd + "tail\n"
	once, err := replaceRegion(page, "new\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := "# Head\n" + regionStart + "\nnew\n\n" + regionEnd + "tail\n"; once != want {
		t.Errorf("got %q, want %q", once, want)
	}
	if twice, err := replaceRegion(once, "new\n"); err != nil || twice != once {
		t.Errorf("again: got %q, %v", twice, err)
	}
	if _, err := replaceRegion("# no region\n", ""); err == nil {
		t.Error("a page without a region was written")
	}
}

// The page of the figures must have its region, or an hour of measuring is lost
// at the end.
func TestBenchmarksPageHasTheRegion(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/BENCHMARKS.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replaceRegion(string(page), ""); err != nil {
		t.Error(err)
	}
}

func TestPlotsAreWellFormed(t *testing.T) {
	t.Parallel()
	r := &report{options: &options{}, order: []string{nameTradewind, "a <b> & c"}, cells: matrix()[:2]}
	for _, c := range r.cells {
		for _, relay := range r.order {
			r.Samples = append(r.Samples, &sample{Relay: relay, Cell: c.name, Messages: 10, CPU: time.Second, Elapsed: time.Second})
		}
	}
	r.Findings = []finding{{Name: "volume", What: "many", Values: map[string]float64{"cpu_us": 0}}}
	list := r.plots()
	if len(list) != 4 {
		t.Errorf("got %d plots, want 4", len(list))
	}
	for _, p := range list {
		if err := xml.Unmarshal(p.svg, new(struct{})); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
	page := r.markdown("bench")
	for _, want := range []string{"](bench/cpu.svg)", "CPU of a <b> & c / CPU of Tradewind | 1.00"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not in\n%s", want, page)
		}
	}
}

func TestNamesChooseCells(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"-only", "10k,vol*"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, name := range []string{"10k", "10k-rsa", "volume", "1k"} {
		if o.wants(name) {
			got = append(got, name)
		}
	}
	if want := []string{"10k", "volume"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, args := range [][]string{{"-rounds", "0"}, {"-scale", "-1"}, {"word"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}

func TestProfileIsReadFromTheHeadOfItsListing(t *testing.T) {
	t.Parallel()
	for out, want := range map[string]time.Duration{
		"Type: cpu\nDuration: 8s, Total samples = 5.66s (70.75%)\nShowing nodes accounting for 0.56s, 9.89% of 5.66s total\n": 560 * time.Millisecond,
		"Showing nodes accounting for 50ms, 0.7% of 7s total\n":                                                               50 * time.Millisecond,
		"Showing nodes accounting for 1.50mins, 99% of 1.51mins total\n":                                                      90 * time.Second,
		"Type: cpu\nno samples\n": 0,
	} {
		if got, err := accounted(out); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", out, got, err, want)
		}
	}
}

func TestWaitForPausesIsThatOfRandomMoments(t *testing.T) {
	t.Parallel()
	ten := slices.Repeat([]time.Duration{10 * time.Millisecond}, 10)
	for _, c := range []struct {
		pauses []time.Duration
		share  float64
		want   time.Duration
	}{
		{nil, 0.01, 0},
		{ten, 0.1, 0},                     // a tenth of the moments waits at all
		{ten, 0.05, 5 * time.Millisecond}, // half of those waits longer than half a pause
		{ten, 0.01, 9 * time.Millisecond},
		{ten[:1], 0.01, 0}, // a hundredth of the time stands still
		{append(ten, time.Second), 0.5, 500 * time.Millisecond},
	} {
		got := waitFor(c.pauses, time.Second, c.share)
		if d := got - c.want; d > 10*time.Microsecond || d < -10*time.Microsecond {
			t.Errorf("%d pauses, %v: %v, want %v", len(c.pauses), c.share, got, c.want)
		}
	}
}
