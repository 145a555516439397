package app

import (
	"context"
	"time"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/report"
	"github.com/tradewind-mta/tradewind/suppression"
)

// suppressor is the sink that turns bounces, complaints and requests into
// suppressions. It stands behind the journal rather than in the commit of the
// event because the list lies in another store: the sink's cursor makes the
// step repeatable, and repeating it changes nothing.
type suppressor struct {
	list        *suppression.List
	rules       func() *bounce.Classifier
	perCampaign bool
}

// suppressWait is how long facts may gather before they suppress: much less than
// the second in which they must.
const suppressWait = 100 * time.Millisecond

// Name is the name of the sink's cursor.
func (*suppressor) Name() string { return "suppression" }

// wants picks the events that may matter. Deliveries, which are most of them,
// matter only to mailboxes that failed before.
func (s *suppressor) wants(r event.Record) bool {
	switch r.Type {
	case message.EventBounced, message.EventExpired, message.EventComplained, message.EventUnsubscribed:
		return true
	case message.EventDelivered:
		return s.list.CountsSoft()
	}
	return false
}

// Deliver suppresses recipients whose bounces prove them gone or who asked for
// it, and counts the failures that prove nothing alone.
func (s *suppressor) Deliver(_ context.Context, batch []event.Record) error {
	var add []suppression.Addition
	for _, r := range batch {
		e, err := event.Parse(r.JSON)
		if err != nil {
			continue // counted by the journal
		}
		addr, err := message.ParseAddress(e.Recipient)
		if err != nil {
			continue
		}
		a, ok := report.Addition(e, addr, s.perCampaign)
		switch {
		case ok:
			add = append(add, a)
		case e.Type == message.EventDelivered:
			err = s.list.Delivered(e.Tenant, addr)
		case s.soft(e):
			_, err = s.list.SoftBounce(e.Tenant, addr, e.Time, e.Origin == "dsn", message.EventID(e.Time, e.Seq))
		}
		if err != nil {
			return err
		}
	}
	if len(add) == 0 {
		return nil
	}
	return s.list.Add(add...)
}

// soft reports whether a message that was given up is held against the mailbox:
// the words must be about it, not about us, the way there or the contents.
func (s *suppressor) soft(e *message.Event) bool {
	category := e.Category
	switch e.Type {
	case message.EventBounced:
	case message.EventExpired:
		if e.Reply == nil || e.Reply.Local {
			return false
		}
		category = message.NoCategory
		if rules := s.rules(); rules != nil {
			category = rules.Classify(e.Reply, e.Reply.RemoteHost).Category
		}
	default:
		return false
	}
	switch category {
	case message.BadMailbox, message.InactiveMailbox, message.QuotaIssues, message.BadDomain:
		return true
	}
	return false
}

// suppressionPolicy turns [suppression] into the list's policy.
func suppressionPolicy(c *configs.Suppression) suppression.Policy {
	p := suppression.Policy{
		HardBounce: c.ExpireHardBounce, SoftBounce: c.ExpireSoftBounce, Manual: c.ExpireManual, Import: c.ExpireImport,
		SoftCount: c.SoftBounces, SoftWindow: c.SoftWindow,
	}
	if p.SoftCount == 0 {
		p.SoftCount = -1 // for the list 0 means its default
	}
	return p
}

var _ event.Sink = (*suppressor)(nil)
