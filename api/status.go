package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// MessageStatus is what the queue knows of a message that is not settled.
type MessageStatus struct {
	Recipients []RecipientStatus
}

// RecipientStatus is where one recipient stands.
type RecipientStatus struct {
	N           uint32
	Address     message.Address
	State       string // scheduled, queued, deferred, sending
	Attempt     int
	NextAttempt time.Time
	Reply       *message.Reply // the last one, if any
	// Holding names the rule or counter that holds it back.
	Holding string
}

type recipientView struct {
	ID          string `json:"id"`
	Email       string `json:"email"`
	State       string `json:"state"`
	Attempt     int    `json:"attempt,omitempty"`
	NextAttempt string `json:"next_attempt,omitempty"`
	Reply       string `json:"reply,omitempty"`
	Holding     string `json:"holding,omitempty"`
}

// maxHistory bounds the events told with a message.
const maxHistory = 1000

// getMessage tells where a message stands and what happened to it.
func (a *api) getMessage(w http.ResponseWriter, r *http.Request, p *Principal) error {
	id, n, all, err := message.ParseRecipientID(r.PathValue("id"))
	if err != nil {
		return ErrNotFound
	}
	if _, err := query(r); err != nil {
		return err
	}
	st, err := a.deps.Queue.Status(r.Context(), p.Tenant, id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	events, _, err := a.deps.Journal.Read(r.Context(), 0, EventFilter{Tenant: p.Tenant, Message: id}, maxHistory)
	if err != nil {
		return err
	}
	if st == nil && len(events) == 0 {
		return ErrNotFound
	}
	out := struct {
		ID         string            `json:"id"`
		Recipients []recipientView   `json:"recipients"`
		Events     []json.RawMessage `json:"events"`
	}{ID: id.String(), Recipients: []recipientView{}, Events: []json.RawMessage{}}
	waiting := map[uint32]bool{}
	if st != nil {
		for _, s := range st.Recipients {
			if !all && s.N != n {
				continue
			}
			waiting[s.N] = true
			out.Recipients = append(out.Recipients, s.view(id))
		}
	}
	settled := map[uint32]int{} // index in out.Recipients
	for i := range events {
		e := &events[i]
		if !all && e.N != n {
			continue
		}
		out.Events = append(out.Events, e.AppendJSON(nil))
		if waiting[e.N] || precedence(e) == 0 {
			continue
		}
		v := recipientView{ID: message.RecipientID(id, e.N), Email: e.Recipient, Attempt: e.Attempt,
			State: strings.TrimPrefix(e.Type.String(), "message.")}
		if e.Reply != nil {
			v.Reply = e.Reply.Error()
		}
		k, found := settled[e.N]
		switch {
		case !found:
			settled[e.N] = len(out.Recipients)
			out.Recipients = append(out.Recipients, v)
		case precedence(e) >= rank(out.Recipients[k].State):
			out.Recipients[k] = v
		}
	}
	if len(out.Events) == 0 && len(out.Recipients) == 0 {
		return ErrNotFound // no such recipient
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *RecipientStatus) view(id message.ID) recipientView {
	v := recipientView{ID: message.RecipientID(id, s.N), Email: s.Address.String(), State: s.State, Attempt: s.Attempt, Holding: s.Holding}
	if !s.NextAttempt.IsZero() {
		v.NextAttempt = s.NextAttempt.UTC().Format(time.RFC3339)
	}
	if s.Reply != nil {
		v.Reply = s.Reply.Error()
	}
	return v
}

// precedence orders the states of a recipient, so that late or repeated events
// cannot make it go backwards. Zero is no state.
func precedence(e *message.Event) int {
	return rank(strings.TrimPrefix(e.Type.String(), "message."))
}

func rank(state string) int {
	switch state {
	case "accepted":
		return 1
	case "deferred":
		return 2
	case "expired", "rejected", "suppressed", "canceled":
		return 3
	case "delivered":
		return 4
	case "bounced":
		return 5
	case "complained":
		return 6
	}
	return 0
}

// deleteMessage cancels what is not sent yet.
func (a *api) deleteMessage(w http.ResponseWriter, r *http.Request, p *Principal) error {
	id, n, all, err := message.ParseRecipientID(r.PathValue("id"))
	if err != nil {
		return ErrNotFound
	}
	if _, err := query(r); err != nil {
		return err
	}
	count, err := a.deps.Queue.Cancel(r.Context(), p.Tenant, id, n, all)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]int{"canceled": count})
}

// query reads the query parameters; only those named, each once, may stand
// there, for a misspelt filter would show or remove too much.
func query(r *http.Request, names ...string) (map[string]string, error) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problem(http.StatusBadRequest, "bad_query", "the query cannot be read")
	}
	out := make(map[string]string, len(v))
	var f faults
	for name, values := range v {
		known := false
		for _, n := range names {
			known = known || n == name
		}
		switch {
		case !known:
			f.add(name, "unknown_field", "there is no such parameter")
		case len(values) > 1:
			f.add(name, "duplicate", "the parameter may stand only once")
		default:
			out[name] = values[0]
		}
	}
	return out, f.err()
}

// limitOf reads a page size.
func limitOf(q map[string]string) (int, error) {
	const initial, most = 100, 1000
	if q["limit"] == "" {
		return initial, nil
	}
	n, err := strconv.Atoi(q["limit"])
	if err != nil || n < 1 || n > most {
		return 0, fieldProblem("limit", "invalid", "must be a number from 1 to %d", most)
	}
	return n, nil
}
