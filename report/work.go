package report

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/suppression"
)

// Run reads what came until ctx ends; what it has not read then waits for the
// next start. It returns nil when ctx ends, and an error when storage fails.
func (m *Mailbox) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for lane := range byte(lanes) {
		g.Go(func() error { return m.read(ctx, &laneState{number: lane}) })
	}
	g.Go(func() error { return m.clean(ctx) })
	return g.Wait()
}

// idle is how long a lane sleeps at the longest.
const idle = time.Minute

// read works off one lane.
func (m *Mailbox) read(ctx context.Context, lane *laneState) error {
	for ctx.Err() == nil {
		list, then, err := m.next(lane)
		if err != nil {
			return fmt.Errorf("report: %w", err)
		}
		if len(list) > 0 {
			if err := m.work(ctx, lane.number, list); err != nil {
				return err
			}
			if ctx.Err() == nil {
				lane.done = lane.upto
			}
			continue
		}
		wait := idle
		if !then.IsZero() {
			wait = min(wait, max(then.Sub(m.d.Now()), time.Millisecond))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-m.wake[lane.number]:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// verifiers is how many complaints of a batch wait for name servers at once.
const verifiers = 16

// work reads a batch and commits what it came to.
func (m *Mailbox) work(ctx context.Context, lane byte, list []*record) error {
	verdicts := make([]verdict, len(list))
	var g errgroup.Group
	g.SetLimit(verifiers)
	for i, r := range list {
		if lane == store.LaneFast {
			verdicts[i] = m.judge(ctx, lane, r)
			continue
		}
		g.Go(func() error {
			verdicts[i] = m.judge(ctx, lane, r)
			return nil
		})
	}
	g.Wait() // none of them fails
	if ctx.Err() != nil {
		return nil // cut short: what was judged may be wrong
	}
	b := m.d.DB.NewBatch(0)
	defer b.Close()
	s := settling{m: m, b: b, lane: lane, late: m.d.Journal.Late(b), now: m.d.Now()}
	for i, r := range list {
		if err := s.settle(r, &verdicts[i]); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	if err := s.hold(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	m.count.Add(-s.gone)
	m.bytes.Add(-s.goneBytes)
	for _, done := range s.done {
		done()
	}
	if s.moved {
		m.poke(store.LaneSlow)
	}
	if len(s.urgent) > 0 {
		if err := m.d.List.Add(s.urgent...); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	return nil
}

// settling puts the verdicts of one batch into effect.
type settling struct {
	m    *Mailbox
	b    *store.Batch
	lane byte
	late *event.Late
	now  time.Time

	gone      int64 // reports that wait no more
	goneBytes int64
	moved     bool     // something went to the slow lane
	done      []func() // counts, once committed
	held      []heldReport
	urgent    []suppression.Addition
}

// maxTries is how often a complaint's keys are looked up, some two hours in all.
const maxTries = 8

// pause is how long a report waits before try n.
func pause(n int) time.Duration { return min(time.Minute<<min(n, 6), time.Hour) }

func (s *settling) settle(r *record, v *verdict) error {
	s.b.Delete(r.key(s.lane))
	if v.fact != nil {
		if err := s.apply(r, v); err != nil {
			return err
		}
	}
	switch {
	case v.retry:
		r.at = s.now.Add(pause(r.tries))
		r.tries++
		r.put(s.b, s.lane)
		return nil
	case v.slow:
		r.at = s.now
		r.put(s.b, store.LaneSlow)
		s.moved = true
		return nil
	}
	s.gone++
	s.goneBytes += int64(r.size)
	result := resultCounted
	switch {
	case v.held != heldNot:
		s.held = append(s.held, heldReport{r, v.kind, v.held})
		result = resultHeld
		s.done = append(s.done, s.m.m.held[v.held].Inc)
	case v.fact != nil && v.fact.typ == message.NoEvent:
		result = resultDuplicate
	case v.fact != nil:
		result = resultEvent
		s.done = append(s.done, func() { s.m.m.delay.Observe(max(0, s.now.Sub(r.received).Seconds())) })
	}
	s.done = append(s.done, s.m.m.reports[v.kind][result].Inc)
	return nil
}

// apply adds the event of a fact, or finds why not: v then says what becomes of
// the report instead.
func (s *settling) apply(r *record, v *verdict) error {
	f := v.fact
	p, err := s.late.Look(f.claims.Message, f.claims.N)
	if err != nil {
		return err
	}
	e := &message.Event{Type: f.typ, Time: s.now, MessageID: f.claims.Message, N: f.claims.N, Origin: f.origin, Detail: f.detail}
	var who message.Address
	switch {
	case p.Last != nil:
		if who, err = message.ParseAddress(p.Last.Recipient); err != nil {
			v.fact, v.held = nil, heldMismatch
			return nil
		}
		e.Tenant, e.Campaign, e.Recipient = p.Last.Tenant, p.Last.Campaign, p.Last.Recipient
	case f.claims.Tenant != "" && !f.claims.Address.IsZero():
		who = f.claims.Address
		e.Tenant, e.Campaign, e.Recipient = f.claims.Tenant, f.claims.Campaign, who.String()
	default:
		v.fact, v.held = nil, heldForgotten
		return nil
	}
	if !s.m.d.Ring().Confirms(f.claims, e.Tenant, who) {
		v.fact, v.held = nil, heldMismatch
		return nil
	}
	if f.typ == message.EventBounced {
		describe(e, f.bounces, who)
	} else {
		e.Category, e.Suppressing = message.Complaint, true
		if f.typ == message.EventUnsubscribed {
			e.Category = message.NoCategory
		}
	}
	switch {
	case p.Has(f.typ), p.Last == nil && s.m.known(e, who):
		f.typ = message.NoEvent // told before
	case p.Queued:
		// The queue numbers this recipient's events until it lets go of them.
		// Whether they may be mailed does not wait for that.
		if a, ok := Addition(e, who, s.m.c.PerCampaign); ok && r.tries == 0 {
			s.urgent = append(s.urgent, a)
		}
		v.fact, v.retry = nil, true
	default:
		s.late.Add(p, e)
	}
	return nil
}

// known reports whether an event that the journal has forgotten was told
// before, by the suppression it left.
func (m *Mailbox) known(e *message.Event, who message.Address) bool {
	a, ok := Addition(e, who, m.c.PerCampaign)
	if !ok {
		return false
	}
	old, err := m.d.List.Get(a.Tenant, a.Stream, who)
	return err == nil && old.Reason == a.Reason
}

// Bounds on what a report may write into an event.
const (
	maxWords = 1000
	maxHost  = 255
)

// describe fills in what a bounce says: the words about who, if it names them,
// else about the first address that failed. Mail is forwarded, and then others
// fail in their stead; whom it concerns the token has said already.
func describe(e *message.Event, list []bounce.Recipient, who message.Address) {
	var best *bounce.Recipient
	for i := range list {
		x := &list[i]
		if x.Action != bounce.ActionFailed {
			continue
		}
		if best == nil {
			best = x
		}
		if same(x.Address, who) || same(x.Original, who) {
			best = x
			break
		}
	}
	e.Category, e.Suppressing = best.Category, best.Suppress
	enhanced, _, _ := message.ParseEnhanced(best.Status)
	e.Reply = &message.Reply{Code: best.Code, Enhanced: enhanced, Text: cut(best.Diagnostic, maxWords), RemoteHost: cut(best.RemoteMTA, maxHost)}
	if best.Rule != "" {
		e.Detail = "rule " + best.Rule
	}
}

func same(text string, a message.Address) bool {
	b, err := message.ParseAddress(text)
	return err == nil && b.Key() == a.Key()
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// Addition is the suppression that an event about who asks for, if it does.
func Addition(e *message.Event, who message.Address, perCampaign bool) (suppression.Addition, bool) {
	a := suppression.Addition{Tenant: e.Tenant, Address: who, At: e.Time, Source: e.Origin}
	if e.Seq > 0 {
		a.Evidence = message.EventID(e.Time, e.Seq)
	}
	if !e.Suppressing {
		return a, false
	}
	switch e.Type {
	case message.EventBounced:
		a.Reason = suppression.HardBounce
		if a.Source == "" {
			a.Source = "reply"
		}
	case message.EventComplained:
		a.Reason = suppression.Complaint
	case message.EventUnsubscribed:
		a.Reason = suppression.Unsubscribe
		if perCampaign {
			a.Stream = e.Campaign
		}
	default:
		return a, false
	}
	return a, true
}
