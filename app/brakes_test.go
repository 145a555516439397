package app

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/throttle"
)

// TestComplaintsThatComeLaterPullTheBrake has one tenant deliver enough for a
// sample and then be complained about; another's complaints stay below.
func TestComplaintsThatComeLaterPullTheBrake(t *testing.T) {
	t.Parallel()
	rules := filepath.Join(t.TempDir(), "brake.toml")
	text := "[brake.spam]\nscope = \"tenant\"\ncomplaints = 0.1\nsample = 10\naction = \"hold\"\n"
	if err := os.WriteFile(rules, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a, stop := life(t, vfs.NewMem(), fmt.Sprintf("hostname = \"mta.example\"\ndata_dir = \"data\"\n[shaping]\nfiles = [%q]\n", rules))
	defer stop()
	lane := a.throttle.Lane(throttle.Target{Source: "default", Pool: "default", Site: "x.example", Domain: "x.example"})
	defer lane.Close()
	var events []*message.Event
	for _, tenant := range []string{"good", "bad"} {
		for range 20 {
			lane.Observe(time.Now(), &throttle.Observation{Result: message.Delivered, Tenant: tenant, Domain: "x.example", Recipients: 1})
		}
		n := 1
		if tenant == "bad" {
			n = 3
		}
		for i := range n {
			events = append(events, &message.Event{
				Type: message.EventComplained, Time: time.Now(), Tenant: tenant, Recipient: fmt.Sprintf("r%d@x.example", i), Terminal: true,
			})
		}
	}
	if err := a.publish(events...); err != nil {
		t.Fatal(err)
	}
	// The event that says so is written last.
	var suspended []string
	for after := uint64(0); len(suspended) == 0; {
		if err := a.spool.Sequence().Wait(t.Context(), after); err != nil {
			t.Fatal(err)
		}
		next, err := a.journal.Read(after, 100, func(_ uint64, typ message.EventType, raw []byte) error {
			if typ == message.EventEgressSuspended {
				suspended = append(suspended, string(raw))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		after = max(after, next)
	}
	if len(suspended) != 1 || !strings.Contains(suspended[0], `"tenant":"bad"`) || !strings.Contains(suspended[0], "brake spam") {
		t.Errorf("got %q, want one event about the tenant bad", suspended)
	}
	list := a.throttle.Suspensions(time.Now())
	if len(list) != 1 || list[0].Selector.Tenant != "bad" {
		t.Errorf("got %+v, want the tenant bad and nobody else", list)
	}
}
