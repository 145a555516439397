package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/throttle"
)

// operation is what an operator asks to be done to waiting mail. Nothing is
// done without ?apply=true: the answer then says what it would be about.
type operation struct {
	throttle.Selector
	Message string `json:"message,omitempty"`
	Pool    string `json:"pool,omitempty"`  // reroute: where to
	For     string `json:"for,omitempty"`   // suspend: how long
	Until   string `json:"until,omitempty"` // suspend: until when (RFC 3339)
	Reason  string `json:"reason,omitempty"`

	id    message.ID
	until time.Time
}

// operateRoutes are the operations on waiting mail.
func (a *App) operateRoutes() []api.AdminRoute {
	return []api.AdminRoute{
		{Pattern: "GET /v1/suspensions", Serve: a.getSuspensions},
		{Pattern: "POST /v1/suspensions", Serve: a.postSuspension},
		{Pattern: "DELETE /v1/suspensions", Serve: a.deleteSuspension},
		{Pattern: "POST /v1/queues/{operation}", Serve: a.postOperation},
		{Pattern: "GET /v1/explain", Serve: a.getExplain},
		{Pattern: "GET /v1/warmup", Serve: a.getWarmup},
	}
}

// unusable is a 422 about one field.
func unusable(field, format string, args ...any) *api.Problem {
	text := fmt.Sprintf(format, args...)
	return &api.Problem{
		Title: "Unprocessable", Status: http.StatusUnprocessableEntity, Code: "invalid_request", Detail: field + ": " + text,
		Errors: []api.FieldError{{Field: field, Code: "invalid", Message: text}},
	}
}

// readOperation reads and checks the body of a request.
func (a *App) readOperation(w http.ResponseWriter, r *http.Request) (*operation, error) {
	var op operation
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&op); err != nil && !errors.Is(err, io.EOF) {
		return nil, &api.Problem{Title: "Bad Request", Status: http.StatusBadRequest, Code: "bad_json", Detail: err.Error()}
	}
	if op.Domain != "" {
		d, err := message.ParseDomain(op.Domain)
		if err != nil {
			return nil, unusable("domain", "%v", err)
		}
		op.Domain = d
	}
	if op.Provider != "" && op.Provider != throttle.DefaultProvider && !slices.Contains(a.throttle.Rules().Providers(), op.Provider) {
		return nil, unusable("provider", "no shaping file has a [provider.%s]", op.Provider)
	}
	if op.Source != "" && !a.mta.HasSource(op.Source) {
		return nil, unusable("source", "no [[source]] is named %q", op.Source)
	}
	if op.Pool != "" && !a.mta.HasPool(op.Pool) {
		return nil, unusable("pool", "no [[pool]] or [[source]] is named %q", op.Pool)
	}
	if op.Message != "" {
		id, err := message.ParseID(op.Message)
		if err != nil {
			return nil, unusable("message", "%v", err)
		}
		op.id = id
	}
	if op.Selector == (throttle.Selector{}) && op.id.IsZero() {
		return nil, unusable("selector", "name at least one of domain, provider, tenant, campaign, source, message")
	}
	return &op, a.readUntil(&op)
}

func (a *App) readUntil(op *operation) error {
	switch {
	case op.For != "" && op.Until != "":
		return unusable("until", "give either for or until")
	case op.For != "":
		d, err := time.ParseDuration(op.For)
		if err != nil || d <= 0 {
			return unusable("for", "%q is not a duration such as 2h", op.For)
		}
		op.until = a.opt.Now().Add(d)
	case op.Until != "":
		t, err := time.Parse(time.RFC3339, op.Until)
		if err != nil || !t.After(a.opt.Now()) {
			return unusable("until", "%q is not a time to come, such as 2026-11-22T08:00:00Z", op.Until)
		}
		op.until = t
	}
	return nil
}

// filter is what waits of the mail an operation is about.
func (a *App) filter(r *http.Request, op *operation) queue.Filter {
	return queue.Filter{Message: op.id, Match: a.mta.Matcher(r.Context(), op.Selector)}
}

func apply(r *http.Request) bool { return r.URL.Query().Get("apply") == "true" }

func (a *App) getSuspensions(w http.ResponseWriter, _ *http.Request, _ *api.Principal) error {
	now := a.opt.Now()
	suspensions, holds := a.throttle.Suspensions(now), a.throttle.Holds(now)
	if suspensions == nil {
		suspensions = []throttle.Suspension{}
	}
	if holds == nil {
		holds = []throttle.HoldState{}
	}
	return reply(w, http.StatusOK, map[string]any{"suspensions": suspensions, "holds": holds})
}

// postSuspension stops mail before it is sent; what is under way finishes.
func (a *App) postSuspension(w http.ResponseWriter, r *http.Request, p *api.Principal) error {
	op, err := a.readOperation(w, r)
	if err != nil {
		return err
	}
	if !op.id.IsZero() {
		return unusable("message", "a single message cannot be suspended; delete it, or suspend its campaign")
	}
	tally, err := a.queue.Count(r.Context(), a.filter(r, op))
	if err != nil {
		return err
	}
	out := map[string]any{"applied": apply(r), "selector": op.Selector, "recipients": tally}
	if !op.until.IsZero() {
		out["until"] = op.until
	}
	if !apply(r) {
		return reply(w, http.StatusOK, out)
	}
	reason := "suspended by " + p.Name
	if op.Reason != "" {
		reason += ": " + op.Reason
	}
	if !a.throttle.Suspend(op.Selector, op.until, reason) {
		return unusable("selector", "there are too many suspensions")
	}
	if err := a.suspensionChanged(message.EventEgressSuspended, op.Selector, op.until, reason); err != nil {
		return err
	}
	return reply(w, http.StatusCreated, out)
}

// deleteSuspension resumes what a selector stopped: the suspension with exactly
// these fields, and with a provider the holds there that it covers.
func (a *App) deleteSuspension(w http.ResponseWriter, r *http.Request, p *api.Principal) error {
	op, err := a.readOperation(w, r)
	if err != nil {
		return err
	}
	out := map[string]any{"applied": apply(r), "selector": op.Selector}
	if !apply(r) {
		tally, err := a.queue.Count(r.Context(), a.filter(r, op))
		if err != nil {
			return err
		}
		out["recipients"] = tally
		return reply(w, http.StatusOK, out)
	}
	if !a.throttle.Resume(op.Selector) {
		return api.ErrNotFound
	}
	if err := a.suspensionChanged(message.EventEgressResumed, op.Selector, time.Time{}, "resumed by "+p.Name); err != nil {
		return err
	}
	return reply(w, http.StatusOK, out)
}

// suspensionChanged makes a change durable, tells the journal and wakes who it
// concerns.
func (a *App) suspensionChanged(t message.EventType, sel throttle.Selector, until time.Time, reason string) error {
	if err := a.shaping.save(true); err != nil {
		return err
	}
	detail := reason
	if !until.IsZero() {
		detail += ", until " + until.UTC().Format(time.RFC3339)
	}
	err := a.publish(&message.Event{
		Type: t, Time: a.opt.Now(), Tenant: sel.Tenant, Campaign: sel.Campaign, Detail: detail,
		Egress: message.Egress{Source: sel.Source, Provider: sel.Provider, Site: sel.Domain},
	})
	a.mta.SuspensionsChanged()
	a.shaping.poke() // its timer may have to be set
	return err
}

// postOperation bounces, deletes or reroutes what waits. The answer to an
// operation that is applied comes line by line while it goes on, because a
// million recipients take minutes; who hangs up ends it.
func (a *App) postOperation(w http.ResponseWriter, r *http.Request, p *api.Principal) error {
	kind := r.PathValue("operation")
	if kind != "bounce" && kind != "delete" && kind != "reroute" {
		return api.ErrNotFound
	}
	op, err := a.readOperation(w, r)
	if err != nil {
		return err
	}
	if (kind == "reroute") != (op.Pool != "") {
		return unusable("pool", "reroute needs a pool to send from, and nothing else takes one")
	}
	f := a.filter(r, op)
	if !apply(r) {
		tally, err := a.queue.Count(r.Context(), f)
		if err != nil {
			return err
		}
		return reply(w, http.StatusOK, map[string]any{"applied": false, "selector": op.Selector, "recipients": tally})
	}
	reason := op.Reason
	if reason == "" {
		reason = "by " + p.Name
	}
	a.log.Info("an operator changes the queue", "operation", kind, "by", p.Name, "selector", fmt.Sprintf("%+v", op.Selector), "msg_id", op.Message, "reason", op.Reason)
	w.Header().Set("Content-Type", "application/x-ndjson")
	line := json.NewEncoder(w)
	flow := http.NewResponseController(w)
	progress := func(done int) {
		flow.SetWriteDeadline(a.opt.Now().Add(time.Minute)) // its error shows at the next write
		line.Encode(map[string]any{"done": done})
		flow.Flush()
	}
	var done int
	switch kind {
	case "bounce":
		done, err = a.queue.RemoveAll(r.Context(), f, func(it *queue.Item, msg *message.Message) queue.Settlement {
			return a.mta.Refused(it, msg, reason)
		}, progress)
	case "delete":
		done, err = a.queue.RemoveAll(r.Context(), f, func(it *queue.Item, msg *message.Message) queue.Settlement {
			return a.mta.Taken(it, msg, reason)
		}, progress)
	default:
		done, err = a.queue.Reroute(r.Context(), f, op.Pool, progress)
	}
	last := map[string]any{"applied": true, "done": done}
	if err != nil {
		a.log.Error("an operation on the queue ended early", "operation", kind, "done", done, "err", err)
		last["error"] = "ended early; what is done stays done"
	}
	line.Encode(last) // the status has been sent: nothing better can be said
	return nil
}

// getExplain explains an address, a reply or a message.
func (a *App) getExplain(w http.ResponseWriter, r *http.Request, _ *api.Principal) error {
	q := r.URL.Query()
	switch {
	case q.Get("address") != "":
		d, err := explainAddress(r.Context(), a.mta, q.Get("pool"), q.Get("address"))
		if err != nil {
			return err
		}
		return reply(w, http.StatusOK, d)
	case q.Get("reply") != "":
		rep, err := message.ParseReply(q.Get("reply"))
		if err != nil {
			return unusable("reply", "%v", err)
		}
		x, err := ExplainReply(a.cfg, a.throttle.Rules(), rep, q.Get("mx"))
		if err != nil {
			return err
		}
		return reply(w, http.StatusOK, x)
	case q.Get("message") != "":
		id, err := message.ParseID(q.Get("message"))
		if err != nil {
			return unusable("message", "%v", err)
		}
		return a.explainMessage(w, r, id)
	}
	return unusable("query", "give address, reply or message")
}

// ReplyMeaning is what a server's reply means to us.
type ReplyMeaning struct {
	Category   string                    `json:"category"`
	PMTA       string                    `json:"pmta_category"`
	Permanent  bool                      `json:"permanent"`
	Suppress   bool                      `json:"suppress"`
	BounceRule string                    `json:"bounce_rule,omitempty"`
	Confidence int                       `json:"confidence"`
	Shaping    throttle.ReplyExplanation `json:"shaping"`
}

// getWarmup forecasts the coming days of warm-ups.
func (a *App) getWarmup(w http.ResponseWriter, _ *http.Request, _ *api.Principal) error {
	return reply(w, http.StatusOK, map[string]any{"plans": warmupPlans(a.throttle, a.mta, a.opt.Now())})
}

// ExplainReply says what a reply of a host means under bounce rules and shaping
// rules.
func ExplainReply(cfg *configs.Config, shaping *throttle.Rules, rep *message.Reply, host string) (*ReplyMeaning, error) {
	rules, err := BounceRules(cfg)
	if err != nil {
		return nil, err
	}
	rep.RemoteHost = host
	v := rules.Classify(rep, host)
	return &ReplyMeaning{
		Category: v.Category.String(), PMTA: v.Category.PMTA(), Permanent: v.Permanent, Suppress: v.Suppress,
		BounceRule: v.Rule, Confidence: int(v.Confidence), Shaping: shaping.ExplainReply(rep, host, ""),
	}, nil
}

// waiting is a recipient that waits, as /v1/explain tells it.
type waiting struct {
	Email   string    `json:"email"`
	State   string    `json:"state"`
	Attempt int       `json:"attempt"`
	Next    time.Time `json:"next_attempt,omitzero"`
	Reply   string    `json:"reply,omitempty"`
	Holding string    `json:"holding,omitempty"`
}

func (a *App) explainMessage(w http.ResponseWriter, r *http.Request, id message.ID) error {
	st, err := queueView{a}.Status(r.Context(), "", id)
	if err != nil {
		return err
	}
	list := make([]waiting, len(st.Recipients))
	for i, rc := range st.Recipients {
		list[i] = waiting{Email: rc.Address.String(), State: rc.State, Attempt: rc.Attempt, Next: rc.NextAttempt, Holding: rc.Holding}
		if rc.Reply != nil {
			list[i].Reply = rc.Reply.Error()
		}
	}
	return reply(w, http.StatusOK, map[string]any{"recipients": list})
}
