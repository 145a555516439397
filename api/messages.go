package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

// accepted is the answer to POST /v1/messages.
type accepted struct {
	// ID names the first message, for those who sent only one.
	ID         string `json:"id,omitempty"`
	Accepted   int    `json:"accepted"`
	Suppressed int    `json:"suppressed"`
	Refused    int    `json:"refused"`
	// Durability says what this answer has waited for.
	Durability message.Durability `json:"durability"`
	Recipients []recipientReply   `json:"recipients"`
}

type recipientReply struct {
	ID     string `json:"id,omitempty"`
	Email  string `json:"email"`
	Status string `json:"status"` // accepted, suppressed, refused
	// Reason says why a suppressed recipient gets nothing.
	Reason string      `json:"reason,omitempty"`
	Error  *FieldError `json:"error,omitempty"`
}

func (a *accepted) add(r recipientReply) {
	switch r.Status {
	case "accepted":
		a.Accepted++
	case "suppressed":
		a.Suppressed++
	default:
		a.Refused++
	}
	a.Recipients = append(a.Recipients, r)
}

func (a *api) postMessages(w http.ResponseWriter, r *http.Request, p *Principal) error {
	kind, err := contentType(r)
	if err != nil {
		return err
	}
	if p.Tenant == "" {
		return problem(http.StatusForbidden, "forbidden", "the key belongs to no tenant and cannot send")
	}
	switch kind {
	case "application/x-ndjson", "application/jsonl", "application/x-jsonlines":
		return a.streamMessages(w, r, p)
	case "", "application/json", "message/rfc822", "message/global":
	default:
		return problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "send application/json, application/x-ndjson or message/rfc822")
	}
	if r.URL.RawQuery != "" && kind != "message/rfc822" && kind != "message/global" {
		return fieldProblem("query", "unknown_field", "query parameters belong to message/rfc822 bodies")
	}
	l := &loan{from: &a.memory}
	defer l.giveBack()
	body, err := readBody(r, a.cfg.MaxBody, l)
	if err != nil {
		return err
	}
	once, err := a.begin(r.Context(), p, r.Header.Get("Idempotency-Key"), kind, r.URL.RawQuery, body)
	if err != nil {
		return err
	}
	defer once.end()
	if once.replay != nil {
		w.Header().Set("Idempotent-Replayed", "true")
		writeBytes(w, http.StatusAccepted, once.replay)
		return nil
	}
	q := &messageRequest{}
	if strings.HasPrefix(kind, "message/") {
		q, err = fromQuery(r, body)
	} else {
		err = decodeJSON(body, q, l)
	}
	if err != nil {
		return err
	}
	if q.IdempotencyKey != "" {
		return fieldProblem("idempotency_key", "invalid", "a single request carries its key in the Idempotency-Key header")
	}
	answer, ps, err := a.prepare(r, q, p, l)
	if err != nil {
		return err
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("api: answer: %w", err)
	}
	if err := a.allow(p, answer.Accepted); err != nil {
		return err
	}
	once.remember(ps, b)
	if err := a.deps.Inject.Accept(r.Context(), ps); err != nil {
		return err
	}
	writeBytes(w, http.StatusAccepted, b)
	return nil
}

func (a *api) allow(p *Principal, n int) error {
	if a.deps.Allow == nil || n == 0 {
		return nil
	}
	wait := a.deps.Allow(p, n)
	if wait <= 0 {
		return nil
	}
	e := problem(http.StatusTooManyRequests, "rate_limited", "the tenant may not hand over more mail now")
	e.retryAfter = wait
	return e
}

// fromQuery reads the envelope of a message/rfc822 body: query parameters, or
// X-Tradewind-From and X-Tradewind-To request headers for those who keep
// addresses out of access logs.
func fromQuery(r *http.Request, body []byte) (*messageRequest, error) {
	q := &messageRequest{Raw: string(body)}
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problem(http.StatusBadRequest, "bad_query", "the query cannot be read")
	}
	single := map[string]*string{
		"campaign": &q.Campaign, "pool": &q.Pool, "class": &q.Class, "send_at": &q.SendAt, "expires_at": &q.Expires, "from": &q.ReturnPath,
	}
	for name, values := range v {
		switch to := single[name]; {
		case name == "to":
			for _, s := range values {
				q.To = append(q.To, person{Email: s})
			}
		case name == "tag":
			q.Tags = values
		case len(values) > 1:
			return nil, fieldProblem(name, "duplicate", "the parameter may stand only once")
		case name == "sandbox":
			if q.Sandbox, err = strconv.ParseBool(values[0]); err != nil {
				return nil, fieldProblem(name, "invalid", "not one of true, false")
			}
		case to == nil:
			return nil, fieldProblem(name, "unknown_field", "there is no such parameter")
		default:
			*to = values[0]
		}
	}
	for _, s := range r.Header.Values("X-Tradewind-To") {
		for one := range strings.SplitSeq(s, ",") {
			q.To = append(q.To, person{Email: strings.TrimSpace(one)})
		}
	}
	if s := r.Header.Get("X-Tradewind-From"); s != "" {
		q.ReturnPath = s
	}
	return q, nil
}

// prepare takes one request up to the point where only the commit is missing.
func (a *api) prepare(r *http.Request, q *messageRequest, p *Principal, l *loan) (*accepted, []*inject.Prepared, error) {
	var f faults
	env := q.envelope(p, &f)
	env.Client = clientAddress(r)
	switch n := q.recipients(); {
	case n == 0:
		f.add("to", "missing", "the message has no recipients")
	case n > a.cfg.MaxRecipients:
		// Nothing else is looked at: it would only cost.
		return nil, nil, fieldProblem("recipients", "limit", "more than %d recipients; send the rest in another request or stream them", a.cfg.MaxRecipients)
	case len(q.Recipients) > 0 && n > len(q.Recipients):
		f.add("recipients", "conflict", "cannot stand beside to, cc or bcc: those share one message, recipients have one each")
	}
	if q.Raw != "" {
		return a.prepareRaw(r.Context(), q, env, l, &f)
	}
	s := compile(q, a.deps.Inject.MaxSize(), &f)
	if env.From.IsZero() && q.From != nil {
		env.From, _ = message.ParseAddress(q.From.Email) // compile has reported the error
	}
	if len(q.Recipients) > 0 {
		if err := f.err(); err != nil {
			return nil, nil, err
		}
		return a.preparePersonal(r.Context(), q, s, env, l)
	}
	var all []message.Address
	for _, g := range [...]struct {
		field string
		list  persons
	}{{"to", q.To}, {"cc", q.Cc}, {"bcc", q.Bcc}} {
		var seen faults // compile has reported to and cc
		if g.field == "bcc" {
			all = append(all, addresses(g.field, g.list, &f)...)
			continue
		}
		all = append(all, addresses(g.field, g.list, &seen)...)
	}
	if err := f.err(); err != nil {
		return nil, nil, err
	}
	body, ascii, bad := s.render(nil, nil, message.Address{})
	if bad != nil {
		return nil, nil, invalid([]FieldError{*bad})
	}
	env.ASCII = ascii
	return a.prepareShared(r.Context(), env, all, nil, body, l)
}

// prepareRaw prepares a whole message that the client made.
func (a *api) prepareRaw(ctx context.Context, q *messageRequest, env inject.Envelope, l *loan, f *faults) (*accepted, []*inject.Prepared, error) {
	for field, set := range map[string]bool{
		"from": q.From != nil, "reply_to": len(q.ReplyTo) > 0, "subject": q.Subject != "", "text": q.Text != "", "html": q.HTML != "",
		"amp": q.AMP != "", "attachments": len(q.Attach) > 0, "headers": len(q.Headers) > 0, "substitutions": len(q.Values) > 0,
	} {
		if set {
			f.add(field, "conflict", "cannot stand beside raw; the envelope sender of raw mail is return_path")
		}
	}
	raw := []byte(q.Raw)
	if !bytes.ContainsRune(raw, ':') {
		// No header is without a colon and no base64 has one.
		b, err := base64.StdEncoding.AppendDecode(nil, raw)
		if err != nil {
			f.add("raw", "base64", "is neither a message nor base64")
		}
		raw = b
	}
	all := addresses("to", q.To, f)
	all = append(all, addresses("cc", q.Cc, f)...)
	all = append(all, addresses("bcc", q.Bcc, f)...)
	var meta []json.RawMessage
	for i := range q.Recipients {
		rc := &q.Recipients[i]
		if len(rc.Values) > 0 || len(rc.Headers) > 0 {
			f.add(fmt.Sprintf("recipients[%d]", i), "conflict", "raw mail cannot be personalised")
		}
		all = append(all, addresses(fmt.Sprintf("recipients[%d]", i), persons{{Email: rc.Email}}, f)...)
		m, err := inject.Metadata(rc.Metadata)
		if err != nil {
			f.add(fmt.Sprintf("recipients[%d].metadata", i), "invalid", "%v", err)
		}
		meta = append(meta, m)
	}
	if err := f.err(); err != nil {
		return nil, nil, err
	}
	env.SenderIsAuthor = env.From.IsZero()
	return a.prepareShared(ctx, env, all, meta, raw, l)
}

// prepareShared prepares one message for everybody.
func (a *api) prepareShared(ctx context.Context, env inject.Envelope, all []message.Address, meta []json.RawMessage, body []byte, l *loan) (*accepted, []*inject.Prepared, error) {
	env.Recipients = make([]message.Recipient, len(all))
	for i, addr := range all {
		env.Recipients[i].Address = addr
		if meta != nil {
			env.Recipients[i].Metadata = meta[i]
		}
	}
	if err := l.take(2 * len(body)); err != nil {
		return nil, nil, err
	}
	p, err := a.deps.Inject.Prepare(ctx, env, body)
	if err != nil {
		return nil, nil, err
	}
	answer := &accepted{Durability: env.Durability}
	for i := range p.Result.Recipients {
		answer.add(reply(&p.Result.Recipients[i]))
	}
	if len(p.Submissions) == 0 {
		return nil, nil, allRefused(answer, "to")
	}
	answer.ID = p.Result.ID.String()
	return answer, []*inject.Prepared{p}, nil
}

// preparePersonal prepares one message for each recipient. One who cannot be
// served is listed and does not keep the others waiting.
func (a *api) preparePersonal(ctx context.Context, q *messageRequest, s *skeleton, env inject.Envelope, l *loan) (*accepted, []*inject.Prepared, error) {
	answer := &accepted{Durability: env.Durability, Recipients: make([]recipientReply, 0, len(q.Recipients))}
	ps := make([]*inject.Prepared, 0, len(q.Recipients))
	// Prepare keeps env.Tags and env.Metadata, but neither the list of
	// recipients nor the body, so both are used again.
	env.Recipients = make([]message.Recipient, 1)
	var body []byte
	charged := 0
	for i := range q.Recipients {
		rc := &q.Recipients[i]
		fe, p, err := a.personal(ctx, s, &env, rc, &body)
		if err != nil {
			return nil, nil, err
		}
		if n := cap(body) + cap(s.scratch); n > charged {
			if err := l.take(n - charged); err != nil {
				return nil, nil, err
			}
			charged = n
		}
		if fe != nil {
			fe.Field = strings.TrimSuffix(fmt.Sprintf("recipients[%d].%s", i, fe.Field), ".")
			answer.add(recipientReply{Email: rc.Email, Status: "refused", Error: fe})
			continue
		}
		out := reply(&p.Result.Recipients[0])
		if out.Error != nil {
			out.Error.Field = fmt.Sprintf("recipients[%d].email", i)
		}
		answer.add(out)
		if len(p.Submissions) == 0 {
			continue
		}
		if err := l.take(len(p.Submissions[0].Body)); err != nil {
			return nil, nil, err
		}
		ps = append(ps, p)
	}
	if len(ps) == 0 {
		return nil, nil, allRefused(answer, "recipients")
	}
	answer.ID = ps[0].Result.ID.String()
	return answer, ps, nil
}

// personal prepares the message of one recipient. A FieldError is theirs
// alone, an error concerns the whole request.
func (a *api) personal(ctx context.Context, s *skeleton, env *inject.Envelope, rc *recipient, body *[]byte) (*FieldError, *inject.Prepared, error) {
	addr, err := message.ParseAddress(rc.Email)
	if err != nil {
		return &FieldError{"email", "address", err.Error()}, nil, nil
	}
	if why := badName(rc.Name); why != "" {
		return &FieldError{"name", "invalid", why}, nil, nil
	}
	if len(rc.Values) > maxSubstitutions {
		return &FieldError{"substitutions", "limit", fmt.Sprintf("more than %d substitutions", maxSubstitutions)}, nil, nil
	}
	meta, err := inject.Metadata(rc.Metadata)
	if err != nil {
		return &FieldError{"metadata", "invalid", err.Error()}, nil, nil
	}
	b, ascii, fe := s.render((*body)[:0], rc, addr)
	*body = b
	if fe != nil {
		own := *fe
		return &own, nil, nil
	}
	env.ASCII = ascii
	env.Recipients[0] = message.Recipient{Address: addr, Metadata: meta}
	p, err := a.deps.Inject.Prepare(ctx, *env, b)
	var bad *inject.Error
	switch {
	case errors.As(err, &bad) && bad.Code == inject.CodeTooLarge:
		return &FieldError{"", bad.Code, bad.Message}, nil, nil
	case err != nil:
		return nil, nil, err
	}
	return nil, p, nil
}

func reply(r *inject.RecipientResult) recipientReply {
	out := recipientReply{ID: r.ID, Email: r.Address.String(), Status: "accepted"}
	switch {
	case r.Refused != nil:
		out.Status = "refused"
		out.Error = &FieldError{fieldName(r.Refused.Field), r.Refused.Code, r.Refused.Message}
	case r.Suppressed != "":
		out.Status, out.Reason = "suppressed", r.Suppressed
	}
	return out
}

// allRefused is the answer when nobody is left.
func allRefused(answer *accepted, field string) error {
	var f faults
	for _, r := range answer.Recipients {
		if r.Error != nil {
			f.add(r.Error.Field, r.Error.Code, "%s", r.Error.Message)
		}
	}
	p := invalid(f.errs)
	p.Code, p.Detail = "no_recipient_accepted", "none of the "+field+" could be accepted"
	return p
}

// clientAddress is the peer's address, for Received.
func clientAddress(r *http.Request) string {
	host, _, found := strings.Cut(r.RemoteAddr, "]")
	if found {
		return strings.TrimPrefix(host, "[")
	}
	host, _, _ = strings.Cut(r.RemoteAddr, ":")
	return host
}

// fingerprint is the hash of what a request asks for.
func fingerprint(parts ...[]byte) [32]byte {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p)) // so that no two lists hash alike
		h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}
