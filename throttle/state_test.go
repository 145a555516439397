package throttle

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/message"
)

// ledgerDisk stands in for the store: it keeps what was saved durably.
type ledgerDisk struct {
	t     *testing.T
	parts Parts
	eng   *Engine
	asked bool
}

func (d *ledgerDisk) save(now time.Time, running bool) {
	d.t.Helper()
	s := d.eng.Snapshot(now)
	if running {
		d.eng.Reserve(s)
	}
	p, err := s.Parts()
	if err != nil {
		d.t.Fatal(err)
	}
	d.parts = p
	d.eng.Reserved(s)
	d.asked = false
}

func (d *ledgerDisk) start(r *Rules, now func() time.Time) {
	d.t.Helper()
	s, err := d.parts.Snapshot()
	if err != nil {
		d.t.Fatal(err)
	}
	d.eng = New(r, Options{Now: now, Reserve: func() { d.asked = true }})
	if err := d.eng.Restore(s); err != nil {
		d.t.Fatal(err)
	}
}

// TestWarmupNeverExceedsItsDayWhateverCrashes sends as much as it may over a
// month, ends now and then in order and now and then without a last save, and
// counts per UTC day.
func TestWarmupNeverExceedsItsDayWhateverCrashes(t *testing.T) {
	t.Parallel()
	for _, crashes := range []bool{false, true} {
		t.Run(fmt.Sprintf("crashes=%t", crashes), func(t *testing.T) {
			t.Parallel()
			var volumes []int64
			doc := ""
			for d := range int64(30) {
				volumes = append(volumes, 500+d*d*40)
				doc += fmt.Sprintf("%d,", volumes[d])
			}
			r := mustLoad(t, "[source.new]\nwarmup = \"w\"\n[warmup.w]\nvolumes = ["+doc+"]\n")
			rng := rand.New(rand.NewPCG(7, 7))
			now := epoch.Truncate(24 * time.Hour)
			disk := &ledgerDisk{t: t}
			clock := func() time.Time { return now }
			disk.start(r, clock)
			sent := map[int64]int64{}
			restarts := map[int64]int64{}
			target := Target{Source: "new", Site: "s", Hosts: []string{"mx.s.example"}}
			lane := disk.eng.Lane(target)
			for range 30 {
				midnight := now
				day := now.Unix() / 86400
				now = now.Add(time.Hour)
				for now.Before(midnight.Add(23 * time.Hour)) {
					n := 1 + rng.IntN(3)
					g := lane.Send(now, Mail{Recipients: n})
					switch {
					case g.OK:
						g.Release()
						sent[day] += int64(n)
						lane.Observe(now, &Observation{Result: message.Delivered})
					case disk.asked:
						disk.save(now, true)
						continue
					case g.Max > 0:
						lane.Send(now, Mail{Recipients: g.Max})
						sent[day] += int64(g.Max)
					case g.Limit == LimitWarmup:
						now = midnight.Add(23 * time.Hour)
						continue
					}
					now = now.Add(200 * time.Millisecond)
					if rng.IntN(2000) == 0 {
						if restarts[day]++; !crashes {
							disk.save(now, false)
						}
						disk.start(r, clock)
						lane = disk.eng.Lane(target)
					}
				}
				now = midnight.Add(24 * time.Hour)
			}
			days := slices.Sorted(maps.Keys(sent))
			if len(days) != 30 {
				t.Fatalf("mail on %d days, want 30", len(days))
			}
			crashed := int64(0)
			for i, day := range days {
				least := volumes[i]
				if crashes {
					// A crash wastes what was reserved and not used: a block, and
					// half of the one before.
					least -= 2 * restarts[day] * max(minBlock, volumes[i]/100)
				}
				crashed += restarts[day]
				if sent[day] > volumes[i] || sent[day] < least {
					t.Errorf("day %d: %d sent, want %d and at least %d", i+1, sent[day], volumes[i], least)
				}
			}
			if crashed < 20 {
				t.Errorf("only %d restarts: the test tests less than it says", crashed)
			}
		})
	}
}

func TestPartsOfAnotherVersionAreNamedAndTheOthersKept(t *testing.T) {
	t.Parallel()
	e := engine(t, "")
	e.Suspend(Selector{Tenant: "t"}, time.Time{}, "asked for")
	p, err := e.Snapshot(epoch).Parts()
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(p)); !slices.Equal(got, slices.Sorted(slices.Values(PartNames()))) {
		t.Errorf("parts %v, want %v", got, PartNames())
	}
	before := maps.Clone(p)
	p["holds"] = []byte{99, '[', ']'}
	p["rates"] = []byte{stateVersion, '{'}
	if d := cmp.Diff([]string{"holds", "rates"}, slices.Sorted(maps.Keys(p.Changed(before)))); d != "" {
		t.Errorf("changed parts (-want +got):\n%s", d)
	}
	s, err := p.Snapshot()
	if !errors.Is(err, ErrSnapshot) {
		t.Errorf("Snapshot = %v, want ErrSnapshot", err)
	}
	if len(s.Suspensions) != 1 || len(s.Holds)+len(s.Rates) != 0 {
		t.Errorf("got %+v, want the suspension alone", s)
	}
}

func FuzzSavedState(f *testing.F) {
	f.Add("holds", []byte(`[{"provider":"p","scope":"source","state":"held","raw_key":["ip1"],"base_ns":1,"step_ns":1}]`))
	f.Add("warmups", []byte(`[{"source":"a","provider":"p","day":3,"date":20000,"sent":5,"reserved":9}]`))
	f.Add("suspensions", []byte(`[{"selector":{"tenant":"t"},"since":"2026-11-02T08:00:00Z"}]`))
	f.Add("rates", []byte(`[{"level":7,"scope":"tenant","key":["t"],"used":["2026-11-02T08:00:00Z"]}]`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		p := Parts{name: append([]byte{stateVersion}, data...)}
		s, err := p.Snapshot()
		if err != nil && !errors.Is(err, ErrSnapshot) {
			t.Fatalf("unexpected error %v", err)
		}
		e := New(&Rules{}, Options{Now: func() time.Time { return epoch }})
		if err := e.Restore(s); err != nil {
			t.Fatal(err)
		}
		e.Lane(Target{Source: "a", Site: "s"}).Send(epoch, Mail{Tenant: "t"})
		if _, err := e.Snapshot(epoch).Parts(); err != nil {
			t.Fatalf("what was restored cannot be saved: %v", err)
		}
	})
}
