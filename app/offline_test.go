package app

import (
	"context"
	"errors"
	"testing"

	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/suppression"
)

var errFound = errors.New("found")

func TestChangesMadeWithoutAnEngineAreJournalledByItsNextStart(t *testing.T) {
	t.Parallel()
	cfg := configs.Default()
	cfg.Hostname, cfg.DataDir = "mta.example", t.TempDir()
	list, closeAll, err := OpenSuppressions(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	ann := message.MustAddress("ann@example.net")
	if err := list.Add(suppression.Addition{Tenant: "default", Address: ann, Reason: suppression.Unsubscribe}); err != nil {
		t.Fatal(err)
	}
	if err := closeAll(); err != nil {
		t.Fatal(err)
	}
	a, err := New(&cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenSuppressions(&cfg); err == nil {
		t.Error("the list can be opened while an engine runs")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	err = a.journal.Tail(ctx, 0, func(r event.Record) error {
		if r.Type == message.EventSuppressionAdded {
			return errFound
		}
		return nil
	})
	if !errors.Is(err, errFound) {
		t.Errorf("no event: %v", err)
	}
	if reason, hit, err := a.suppressed(ctx, "default", "", ann); !hit || err != nil || reason != "unsubscribe" {
		t.Errorf("suppressed %t for %q, %v", hit, reason, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
