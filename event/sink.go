// Package event keeps the journal of facts and carries it to whoever wants to
// know.
//
// The Journal writes an event into the same batch as the change it explains
// (promise P2) and hands events out in the order of their numbers, never one
// whose predecessor may still be written. Sinks read it through a Runner, each
// with a durable cursor of its own: every event reaches every sink at least
// once, in order, with a stable id, and a dead sink delays only itself
// (promise P7). Consumers tell duplicates by the event's id and order the
// events of one recipient by its seq.
//
// The sinks here are JSON lines, accounting CSV as PowerMTA writes it, and
// webhooks after the Standard Webhooks specification. Who may read which
// tenant's events through the API is for package api to say; what a fact means
// for a queue or a suppression list is decided before it is journalled.
package event

import (
	"context"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Bounds of a batch. A sink gets what has gathered when either is reached, so
// that at low volume nobody waits longer than a second.
const (
	MaxBatch     = 500
	MaxBatchSize = 1 << 20 // bytes of JSON; one larger event still travels alone
	MaxBatchWait = time.Second
)

// Record is one event on its way to a sink.
type Record struct {
	Seq  uint64
	Type message.EventType
	// JSON is the event as one object without a line break.
	JSON []byte
}

// Sink takes events in order. Its name is part of the key of its durable
// cursor: two sinks must not share one, and renaming a sink starts it afresh.
type Sink interface {
	Name() string
	// Deliver takes a batch whole or returns an error, after which the same
	// batch comes again. It is called by one goroutine at a time, and may keep
	// neither the slice nor the JSON. It returns nil only when the events are
	// as safe as the sink promises to make them.
	Deliver(ctx context.Context, batch []Record) error
}
