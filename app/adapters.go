package app

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/suppression"
	"github.com/tradewind-mta/tradewind/throttle"
)

// queueView answers the API's questions about the queue.
type queueView struct{ a *App }

// holdingWait is how long DNS is asked for what holds a message.
const holdingWait = 2 * time.Second

// Status returns what waits of a message.
func (v queueView) Status(ctx context.Context, tenant string, id message.ID) (*api.MessageStatus, error) {
	msg, places, err := v.a.queue.Status(id, 1000)
	if err != nil {
		return nil, err
	}
	if msg == nil || tenant != "" && msg.Tenant != tenant {
		return nil, api.ErrNotFound
	}
	st := &api.MessageStatus{}
	now := v.a.opt.Now()
	ctx, cancel := context.WithTimeout(ctx, holdingWait)
	defer cancel()
	type kind struct {
		queue  store.QueueKey
		sender string
	}
	said := map[kind]string{}
	for _, p := range places {
		r := api.RecipientStatus{N: p.N, Address: p.Recipient, Attempt: p.Attempt, NextAttempt: p.Due, Reply: p.LastReply, State: "queued"}
		switch {
		case p.Leased:
			r.State = "sending"
		case p.Attempt > 0:
			r.State = "deferred"
		case p.Due.After(now):
			r.State = "scheduled"
		}
		if !p.Leased {
			sender := msg.Sender(&message.Recipient{ReturnPath: p.ReturnPath}).Domain()
			k := kind{p.Queue, strings.ToLower(sender)}
			text, ok := said[k]
			if !ok {
				text = v.a.mta.HoldingMail(ctx, p.Queue, throttle.Mail{
					Domain: p.Recipient.Domain(), Tenant: msg.Tenant, Campaign: msg.Campaign, SenderDomain: k.sender, DKIMDomain: msg.HeaderFrom,
				})
				said[k] = text
			}
			r.Holding = text
			if text == "" && p.Due.IsZero() {
				r.Holding = v.a.mta.Holding(p.Queue)
			}
		}
		st.Recipients = append(st.Recipients, r)
	}
	return st, nil
}

// Cancel takes recipients out of the queue.
func (v queueView) Cancel(_ context.Context, tenant string, id message.ID, n uint32, all bool) (int, error) {
	msg, _, err := v.a.queue.Status(id, 1)
	if err != nil {
		return 0, err
	}
	if msg == nil || tenant != "" && msg.Tenant != tenant {
		return 0, api.ErrNotFound
	}
	only := &n
	if all {
		only = nil
	}
	count, err := v.a.queue.Cancel(id, only, "canceled through the API")
	switch {
	case errors.Is(err, queue.ErrInFlight), errors.Is(err, queue.ErrNotQueued):
		return 0, errors.Join(api.ErrConflict, err)
	}
	return count, err
}

// Replay finds a remembered request.
func (v queueView) Replay(_ context.Context, key [32]byte) (*message.Idempotency, error) {
	return v.a.queue.Idempotent(key)
}

// journalView reads events for the API.
type journalView struct{ j *event.Journal }

// scanLimit bounds the events looked at for one answer when a filter lets few
// pass; the caller goes on from the cursor.
const scanLimit = 50_000

// Read returns events behind a cursor that pass a filter.
func (v journalView) Read(ctx context.Context, after uint64, f api.EventFilter, limit int) ([]message.Event, uint64, error) {
	if !f.Message.IsZero() {
		return v.history(after, f, limit)
	}
	var list []message.Event
	next := after
	for scanned := 0; len(list) < limit && scanned < scanLimit && ctx.Err() == nil; {
		from := next
		var err error
		next, err = v.j.Read(from, min(500, limit-len(list)), func(_ uint64, typ message.EventType, raw []byte) error {
			scanned++
			if len(f.Types) > 0 && !containsType(f.Types, typ) {
				return nil
			}
			e, err := event.Parse(raw)
			if err != nil {
				return nil // counted by the journal
			}
			if passes(e, &f) {
				list = append(list, *e)
			}
			return nil
		})
		if err != nil {
			return nil, after, err
		}
		if next == from || next >= v.j.Horizon() {
			break
		}
	}
	return list, next, ctx.Err()
}

func (v journalView) history(after uint64, f api.EventFilter, limit int) ([]message.Event, uint64, error) {
	events, err := v.j.MessageHistory(f.Message)
	if err != nil {
		return nil, after, err
	}
	var list []message.Event
	next := after
	for _, e := range events {
		if e.Seq <= after || !passes(e, &f) || len(f.Types) > 0 && !containsType(f.Types, e.Type) {
			continue
		}
		if len(list) == limit {
			break
		}
		list = append(list, *e)
		next = e.Seq
	}
	return list, next, nil
}

func containsType(types []message.EventType, t message.EventType) bool {
	for _, v := range types {
		if v == t {
			return true
		}
	}
	return false
}

func passes(e *message.Event, f *api.EventFilter) bool {
	if f.Tenant != "" && e.Tenant != f.Tenant {
		return false
	}
	if !f.Message.IsZero() && e.MessageID != f.Message {
		return false
	}
	return f.Recipient.IsZero() || strings.EqualFold(e.Recipient, f.Recipient.String())
}

// suppressionView keeps the suppression list for the API.
type suppressionView struct{ l *suppression.List }

func suppressionEntry(e suppression.Entry) api.Suppression {
	s := api.Suppression{
		Address: e.Address, Stream: e.Stream, Reason: e.Reason.String(), Source: e.Source,
		Created: e.First, Expires: e.Expires,
	}
	if !e.LastEvent.IsZero() {
		s.Evidence = e.LastEvent.String()
	}
	return s
}

// List returns entries in a stable order.
func (v suppressionView) List(_ context.Context, tenant string, addr message.Address, after string, limit int) ([]api.Suppression, string, error) {
	if !addr.IsZero() {
		e, err := v.l.Get(tenant, "", addr)
		if errors.Is(err, suppression.ErrNotFound) {
			return nil, "", nil
		}
		if err != nil {
			return nil, "", err
		}
		s := suppressionEntry(e)
		s.Address = addr
		return []api.Suppression{s}, "", nil
	}
	entries, next, err := v.l.List(tenant, after, limit)
	if err != nil {
		return nil, "", err
	}
	list := make([]api.Suppression, len(entries))
	for i, e := range entries {
		list[i] = suppressionEntry(e)
	}
	return list, next, nil
}

// Add stores entries durably.
func (v suppressionView) Add(_ context.Context, tenant string, entries []api.Suppression) error {
	add := make([]suppression.Addition, 0, len(entries))
	for _, e := range entries {
		reason, err := suppression.ParseReason(e.Reason)
		if err != nil {
			reason = suppression.Manual
		}
		add = append(add, suppression.Addition{
			Tenant: tenant, Stream: e.Stream, Address: e.Address, Reason: reason, Expires: e.Expires, Source: "api",
		})
	}
	return v.l.Add(add...)
}

// Remove takes an address off the list.
func (v suppressionView) Remove(_ context.Context, tenant string, addr message.Address, stream string) error {
	by := suppression.ByTenant
	if tenant == "" {
		by = suppression.ByOperator
	}
	err := v.l.Remove(by, tenant, stream, addr, "api")
	switch {
	case errors.Is(err, suppression.ErrNotFound):
		return api.ErrNotFound
	case errors.Is(err, suppression.ErrForbidden):
		return errors.Join(api.ErrForbidden, err)
	}
	return err
}

// restartKeys names the settings that differ and take effect at a restart only.
func restartKeys(old, now *configs.Config) (keys []string) {
	for key, pair := range map[string][2]any{
		"hostname":    {old.Hostname, now.Hostname},
		"data_dir":    {old.DataDir, now.DataDir},
		"smtp":        {old.SMTP, now.SMTP},
		"http":        {old.HTTP, now.HTTP},
		"inject":      {old.Inject, now.Inject},
		"store":       {old.Store, now.Store},
		"dns":         {old.DNS, now.DNS},
		"events":      {old.Events, now.Events},
		"suppression": {old.Suppression, now.Suppression},
		"bounce":      {bounceRestart(old), bounceRestart(now)},
		"token":       {old.Token.Life, now.Token.Life},
		"log":         {old.Log, now.Log},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			keys = append(keys, key)
		}
	}
	return keys
}

// bounceRestart is the part of [bounce] that takes effect at a restart only.
func bounceRestart(cfg *configs.Config) configs.Bounce {
	b := cfg.Bounce
	b.Rules = ""
	return b
}

// registerMetrics exports what the queue and the stores count.
func (a *App) registerMetrics() {
	gauge := func(name, help string, fn func() float64) {
		a.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, fn))
	}
	gauge("tradewind_queue_recipients", "Recipients that wait, on disk and in memory.", func() float64 { return float64(a.queue.Stats().Waiting) })
	gauge("tradewind_queue_window_recipients", "Of them, ready ones held in memory.", func() float64 { return float64(a.queue.Stats().InMemory) })
	gauge("tradewind_queue_active", "Queues in memory.", func() float64 { return float64(a.queue.Stats().Queues) })
	gauge("tradewind_queue_body_bytes", "Bodies held in memory before their first attempt.", func() float64 { return float64(a.queue.Stats().BodyBytes) })
	gauge("tradewind_queue_quarantined", "Unreadable records set aside since the start.", func() float64 { return float64(a.queue.Stats().Quarantined) })
	gauge("tradewind_store_free_bytes", "Free space where the stores lie.", func() float64 {
		free, err := a.spool.Free()
		if err != nil {
			return -1
		}
		return float64(free)
	})
	gauge("tradewind_store_disk_bytes", "Space the spool uses.", func() float64 { return float64(a.spool.Metrics().DiskSpaceUsage()) })
	gauge("tradewind_store_commits", "Commits that wait for the disk.", func() float64 { return float64(a.spool.Committing()) })
	gauge("tradewind_store_stall_seconds", "For how long none of them has ended.", func() float64 { return a.spool.Stalled(a.opt.Now()).Seconds() })
	gauge("tradewind_store_uncompacted_tables", "Tables of the spool that were flushed and wait for compaction: some forty in good order, and at 200 no mail is accepted.", func() float64 {
		return float64(a.spool.Uncompacted())
	})
	gauge("tradewind_store_damage", "Reads since the start that met data which is not what was written; a lost end of a log counts as one.", func() float64 {
		return float64(a.spool.DamageMet() + a.ledger.DamageMet())
	})
	gauge("tradewind_store_healthy", "1 while storage can be trusted, 0 after a failure.", func() float64 {
		if a.spool.Err() != nil || a.ledger.Err() != nil {
			return 0
		}
		return 1
	})
}
