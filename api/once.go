package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

// running are the idempotency keys of requests in progress; it is bounded by
// the requests there are.
type running struct {
	mu   sync.Mutex // protects keys
	keys map[[32]byte]struct{}
}

// once is one request under an idempotency key; the zero value is a request
// without.
type once struct {
	api    *api
	record *message.Idempotency
	// replay is the answer of an earlier, equal request.
	replay []byte
}

// begin claims key for a request made of parts. It returns a problem when
// another request holds it, or used it for something else. end must be called.
func (a *api) begin(ctx context.Context, p *Principal, key, kind, query string, body []byte) (*once, error) {
	o := &once{}
	if key == "" {
		return o, nil
	}
	if why := badKey(key); why != "" {
		return nil, fieldProblem("Idempotency-Key", "invalid", "%s", why)
	}
	if a.deps.Replays == nil {
		return nil, problem(http.StatusNotImplemented, "not_configured", "this instance keeps no idempotency keys")
	}
	o.record = &message.Idempotency{
		// The credential belongs to the key: two of them may use the same one.
		Key:     fingerprint([]byte(p.Tenant), []byte(p.Name), []byte(key)),
		Request: fingerprint([]byte(kind), []byte(query), body),
		Expires: a.deps.Now().Add(a.cfg.ReplayFor),
	}
	// First the claim, then the look: the other way round, a request that
	// ends in between would be done twice.
	if !a.running.claim(o.record.Key) {
		e := problem(http.StatusConflict, "idempotency_in_progress", "a request with this Idempotency-Key is being worked on")
		e.retryAfter = time.Second
		return nil, e
	}
	o.api = a
	old, err := a.deps.Replays.Replay(ctx, o.record.Key)
	switch {
	case err != nil:
		o.end()
		return nil, unavailable("unavailable", fmt.Errorf("api: look up idempotency key: %w", err))
	case old == nil || !old.Expires.After(a.deps.Now()):
		return o, nil
	case !bytes.Equal(old.Request[:], o.record.Request[:]):
		o.end()
		return nil, problem(http.StatusConflict, "idempotency_mismatch", "this Idempotency-Key was used for another request")
	}
	o.replay = old.Response
	return o, nil
}

func badKey(key string) string {
	if len(key) > 256 {
		return "longer than 256 characters"
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return "must be printable ASCII without spaces"
		}
	}
	return ""
}

// remember puts the answer beside the first message, to be stored with it.
func (o *once) remember(ps []*inject.Prepared, answer []byte) {
	if o.record == nil {
		return
	}
	for _, p := range ps {
		if len(p.Submissions) > 0 {
			o.record.Response = answer
			p.Submissions[0].Idempotency = o.record
			return
		}
	}
}

// end lets go of the key.
func (o *once) end() {
	if o.api != nil {
		o.api.running.release(o.record.Key)
		o.api = nil
	}
}

func (r *running) claim(key [32]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, held := r.keys[key]; held {
		return false
	}
	if r.keys == nil {
		r.keys = make(map[[32]byte]struct{})
	}
	r.keys[key] = struct{}{}
	return true
}

func (r *running) release(key [32]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.keys, key)
}
