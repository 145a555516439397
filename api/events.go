package api

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// parseCursor reads a place in the journal: the next of an answer, or the id of
// an event.
func parseCursor(s string) (uint64, error) {
	if id, err := message.ParseID(s); err == nil {
		return message.EventSeq(id), nil
	}
	after, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fieldProblem("after", "invalid", "must be the next of an earlier answer, or the id of an event")
	}
	return after, nil
}

// getEvents pages through the journal. The cursor of an answer is where the
// next question begins; it moves on even when nothing matched.
func (a *api) getEvents(w http.ResponseWriter, r *http.Request, p *Principal) error {
	q, err := query(r, "after", "limit", "type", "recipient", "message")
	if err != nil {
		return err
	}
	limit, err := limitOf(q)
	if err != nil {
		return err
	}
	var after uint64
	if s := q["after"]; s != "" {
		if after, err = parseCursor(s); err != nil {
			return err
		}
	}
	f := EventFilter{Tenant: p.Tenant}
	if s := q["type"]; s != "" {
		for name := range strings.SplitSeq(s, ",") {
			t, err := message.ParseEventType(name)
			if err != nil {
				return fieldProblem("type", "invalid", "%.60q is not an event type", name)
			}
			f.Types = append(f.Types, t)
		}
	}
	if s := q["recipient"]; s != "" {
		if f.Recipient, err = message.ParseAddress(s); err != nil {
			return fieldProblem("recipient", "address", "%v", err)
		}
	}
	if s := q["message"]; s != "" {
		if f.Message, err = message.ParseID(s); err != nil {
			return fieldProblem("message", "invalid", "is not a message id")
		}
	}
	events, next, err := a.deps.Journal.Read(r.Context(), after, f, limit)
	if err != nil {
		return err
	}
	b := append(make([]byte, 0, 64+512*len(events)), `{"events":[`...)
	for i := range events {
		if i > 0 {
			b = append(b, ',')
		}
		b = events[i].AppendJSON(b)
	}
	b = append(b, `],"next":"`...)
	b = strconv.AppendUint(b, next, 10)
	b = append(b, `"}`...)
	writeBytes(w, http.StatusOK, b)
	return nil
}
