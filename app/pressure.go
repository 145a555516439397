package app

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"
	"golang.org/x/sync/errgroup"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// pressure stands between the doors and the queue: it refuses mail when storage
// has failed, hangs, falls behind or is nearly full, before anything is
// acknowledged. What waits is delivered all the same.
type pressure struct {
	a       *App
	full    atomic.Bool
	stalled atomic.Bool
	behind  atomic.Bool
	bytes   atomic.Int64 // of mail that waits for its commit
}

const (
	// lookEvery is how often stalls are looked for.
	lookEvery = 250 * time.Millisecond
	// spaceEvery is how many looks lie between two at the free space.
	spaceEvery = 4
)

// run watches the disk, and marks how far the stores have come.
func (p *pressure) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.watch(ctx) })
	g.Go(func() error { return p.mark(ctx) }) // waits when the disk does
	return g.Wait()
}

// markEvery bounds what a damaged end of a log can hide.
const markEvery = time.Second

func (p *pressure) mark(ctx context.Context) error {
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, db := range []*store.DB{p.a.spool, p.a.ledger} {
			if err := db.Mark(p.a.opt.Now()); err != nil && !errors.Is(err, store.ErrDead) {
				p.a.log.Warn("the store cannot be marked", "err", err)
			}
		}
	}
}

// recall finds the last event about a recipient whose record is damaged.
func (a *App) recall(id message.ID, n uint32) *message.Event {
	events, err := a.journal.History(id, n)
	if err != nil || len(events) == 0 {
		return nil
	}
	return events[len(events)-1]
}

func (p *pressure) watch(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		p.lookForStall()
		if n%spaceEvery == 0 {
			p.lookForSpace()
			p.lookAtCompactions()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// lookForSpace takes mail only while there is room for it and the ballast lies
// where it belongs.
func (p *pressure) lookForSpace() {
	free, err := p.a.ballast.Free()
	if err != nil {
		return // a file system that cannot tell has no watermark
	}
	missing := uint64(p.a.ballast.Missing())
	low := free < uint64(p.a.cfg.Store.LowSpace)+missing
	if !low && missing > 0 {
		if err := p.a.ballast.Lay(); err != nil {
			p.a.log.Warn("the ballast cannot be laid in", "err", err)
			low = true
		}
	}
	if p.full.Swap(low) != low {
		if low {
			p.a.log.Error("the disk is nearly full: no mail is accepted until there is room", "free", free, "ballast_missing", missing)
		} else {
			p.a.log.Info("there is room on the disk again", "free", free)
		}
	}
}

// lookForStall notices that the disk keeps commits waiting, and that it does so
// no longer.
func (p *pressure) lookForStall() {
	limit := p.a.cfg.Store.Stall
	d := p.a.spool.Stalled(p.a.opt.Now())
	if stalled := limit > 0 && d >= limit; p.stalled.Swap(stalled) != stalled {
		if stalled {
			p.a.log.Error("the disk does not answer: no mail is accepted until it does", "for", d, "commits", p.a.spool.Committing())
		} else {
			p.a.log.Info("the disk answers again")
		}
	}
}

// What waits for compaction in the spool when mail is refused, and when it is
// taken again; see store.DB.Uncompacted.
const (
	mostUncompacted = 200
	fewUncompacted  = 100
)

// lookAtCompactions takes no more mail while the spool cannot put in order what
// it has, so that there is room for what deliveries write.
func (p *pressure) lookAtCompactions() {
	n := p.a.spool.Uncompacted()
	behind := n >= mostUncompacted || n > fewUncompacted && p.behind.Load()
	if p.behind.Swap(behind) != behind {
		if behind {
			p.a.log.Error("the spool falls behind with its compactions: no mail is accepted until it has caught up; if a damaged file was named, it will not, and queue export is the way out",
				"tables", n, "damage", p.a.spool.DamageMet())
		} else {
			p.a.log.Info("the spool has caught up with its compactions")
		}
	}
}

var (
	errBehind  = errors.New("app: the spool falls behind with its compactions")
	errStalled = errors.New("app: the disk does not answer")
	errWaiting = errors.New("app: too much mail waits for the disk")
)

// err says why mail cannot be taken now, or nil.
func (p *pressure) err() error {
	if err := p.a.spool.Err(); err != nil {
		return errors.Join(message.ErrBusy, err)
	}
	if p.full.Load() {
		return message.ErrFull
	}
	if p.stalled.Load() {
		return errors.Join(message.ErrBusy, errStalled)
	}
	if p.behind.Load() {
		return errors.Join(message.ErrBusy, errBehind)
	}
	return nil
}

// smtp is err as a reply.
func (p *pressure) smtp() *smtp.SMTPError {
	switch err := p.err(); {
	case err == nil:
		return nil
	case errors.Is(err, message.ErrFull):
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "Not enough space; try again later"}
	}
	return &smtp.SMTPError{Code: 421, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "Storage trouble; try again later"}
}

// capped refuses mail of a tenant that has as much waiting as it may. Doors that
// hand over mail at the same time can go past the limit by what they hold.
func (p *pressure) capped(subs []*message.Submission) error {
	more := make(map[string]int, 1)
	for _, s := range subs {
		more[s.Message.Tenant] += len(s.Recipients)
	}
	for name, n := range more {
		t, _, err := p.a.tenant(name)
		if err != nil {
			return err
		}
		if waiting := p.a.queue.WaitingOf(name); t.MaxQueued > 0 && waiting+n > t.MaxQueued {
			return fmt.Errorf("%w: %d recipients of tenant %s wait, its max_queued is %d", message.ErrFull, waiting, name, t.MaxQueued)
		}
	}
	return nil
}

// Accept hands mail to the queue. What waits for a commit at the same time is
// bounded, except that one call may always wait.
func (p *pressure) Accept(ctx context.Context, subs []*message.Submission) error {
	if err := p.err(); err != nil {
		return err
	}
	size := int64(0)
	for _, s := range subs {
		size += int64(len(s.Body))
	}
	if err := p.capped(subs); err != nil {
		return err
	}
	defer p.bytes.Add(-size)
	if now := p.bytes.Add(size); now > int64(p.a.cfg.Store.CommitMemory) && now > size {
		return errors.Join(message.ErrBusy, errWaiting)
	}
	err := p.a.queue.Accept(ctx, subs)
	if errors.Is(err, store.ErrDead) {
		return errors.Join(message.ErrBusy, err)
	}
	return err
}
