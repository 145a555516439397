package app

import (
	"context"

	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/throttle"
)

// lateFacts is the sink that shows the brakes what comes back after delivery:
// complaints, and bounces by mail. What servers say at once they see already.
// After a crash the last of it may be counted twice.
type lateFacts struct{ mta func() *mta.MTA }

// Name is the name of the sink's cursor.
func (lateFacts) Name() string { return "brakes" }

func (lateFacts) wants(r event.Record) bool {
	return r.Type == message.EventComplained || r.Type == message.EventBounced
}

// Deliver counts each fact for the tenant and campaign it is about.
func (s lateFacts) Deliver(_ context.Context, batch []event.Record) error {
	for _, r := range batch {
		e, err := event.Parse(r.JSON)
		if err != nil {
			continue // counted by the journal
		}
		complaint := e.Type == message.EventComplained
		if !complaint && e.Origin != "dsn" {
			continue
		}
		s.mta().Report(throttle.Report{
			Tenant: e.Tenant, Campaign: e.Campaign, Complaint: complaint, Bounce: !complaint,
			UnknownUser: !complaint && e.Category == message.BadMailbox,
		})
	}
	return nil
}
