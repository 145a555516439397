package inject

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Prepared is a message that has passed every check and waits for Accept.
type Prepared struct {
	// Submissions is one message for all recipients, or one for each where
	// the tenant's mail is rewritten. It is empty when every recipient was
	// refused.
	Submissions []*Submission
	Result      *Result

	door       Door
	suppressed int
	repeats    []repeat
}

// repeat says that recipient at of the envelope is recipient first once more.
type repeat struct{ at, first int }

// draft is a message on its way through Prepare.
type draft struct {
	env     Envelope
	body    []byte // as given, or re-encoded
	head    header
	shape   shape // of the part below the header
	from    message.Address
	tenant  Tenant
	now     time.Time
	expires time.Time
}

// Prepare checks and normalises body, which must be CRLF lines without dot
// stuffing, and expands it into submissions. It does not keep body. Nothing is
// stored; the error is an *Error.
func (i *Injector) Prepare(ctx context.Context, env Envelope, body []byte) (*Prepared, error) {
	if env.Door == "" {
		env.Door = DoorInternal
	}
	p, err := i.prepare(ctx, env, body)
	if err != nil {
		r := refused
		if err.Temporary() {
			r = deferred
		}
		i.metric.count(env.Door, r, 1)
		return nil, err
	}
	return p, nil
}

func (i *Injector) prepare(ctx context.Context, env Envelope, body []byte) (*Prepared, *Error) {
	switch {
	case len(env.Recipients) == 0:
		return nil, &Error{Field: "recipients", Code: CodeNoRecipients, SMTP: 554, Enhanced: badSyntax, Message: "the message has no recipients"}
	case len(env.Recipients) > i.cfg.MaxRecipients:
		return nil, &Error{Field: "recipients", Code: CodeLimit, SMTP: 452, Enhanced: message.Enhanced{4, 5, 3},
			Message: fmt.Sprintf("more than %d recipients", i.cfg.MaxRecipients)}
	}
	d := &draft{env: env, body: body, now: i.deps.Now().Truncate(time.Millisecond)}
	if err := d.read(i.cfg.MaxSize); err != nil {
		return nil, err
	}
	if err := d.head.controls(d.body, &d.env); err != nil {
		return nil, err
	}
	if err := d.env.check(); err != nil {
		return nil, err
	}
	if d.head.received > i.cfg.MaxReceived {
		return nil, &Error{Field: "Received", Code: CodeLoop, SMTP: 554, Enhanced: loops, Message: "the message is going round in circles"}
	}
	if err := i.admit(d); err != nil {
		return nil, err
	}
	if err := i.schedule(d); err != nil {
		return nil, err
	}
	return i.expand(ctx, d)
}

// read checks the octets, brings the lines to their length and scans the
// header.
func (d *draft) read(maxSize int) *Error {
	if len(d.body) > maxSize {
		return &Error{Field: "body", Code: CodeTooLarge, SMTP: 552, Enhanced: tooLarge, Message: fmt.Sprintf("the message is larger than %d octets", maxSize)}
	}
	end := headerEnd(d.body)
	var s shape
	if d.env.Plain {
		s.eightBit = HasEightBit(d.body[end:])
	} else {
		_, err := measure(d.body[:end])
		if err == nil && !d.env.ASCII {
			s, err = measure(d.body[end:])
		}
		if err != nil {
			return err
		}
	}
	if err := d.head.scan(d.body); err != nil {
		return err
	}
	d.env.Plain = d.env.Plain || d.env.ASCII && !dotted(d.body[:end])
	if !s.long {
		d.shape = s
		d.head.dropEmpty(d.body)
		return nil
	}
	// RFC 5322, 2.1.1: such lines cannot be sent. Nobody has signed them yet
	// on our behalf, so encode them here, never at the edge of the network.
	b, rerr := Reencode(d.body)
	if rerr != nil {
		return refuse("body", CodeLineLength, "a line is longer than %d octets and cannot be encoded: %v", maxLine, rerr)
	}
	d.body, d.head = b, header{}
	var err *Error
	if d.shape, err = measure(b[headerEnd(b):]); err != nil {
		return err
	}
	if err := d.head.scan(b); err != nil {
		return err
	}
	d.head.dropEmpty(b)
	return nil
}

// dotted reports whether a line of b begins with a dot.
func dotted(b []byte) bool {
	return bytes.HasPrefix(b, []byte(".")) || bytes.Contains(b, []byte("\n."))
}

// admit holds the message to what its tenant may do.
func (i *Injector) admit(d *draft) *Error {
	if i.deps.Tenant != nil {
		t, known, err := i.deps.Tenant(d.env.Tenant)
		switch {
		case err != nil:
			return later("tenant", err)
		case !known:
			return &Error{Field: "tenant", Code: CodeUnknownTenant, SMTP: 550, Enhanced: badPolicy, Message: "no such tenant"}
		case t.Suspended:
			return &Error{Field: "tenant", Code: CodeForbidden, SMTP: 451, Enhanced: message.Enhanced{4, 7, 1}, Message: "the tenant is suspended"}
		}
		d.tenant = t
	}
	if !d.head.has(from) {
		err := refuse("From", CodeMissing, "the message has no From field")
		err.SMTP = 550
		return err
	}
	a, err := mailbox(text(d.body, d.head.value[from]))
	if err != nil {
		err.SMTP = 550
		return err
	}
	d.from = a
	if d.env.SenderIsAuthor {
		d.env.From = a
	}
	if d.env.Internal {
		return nil
	}
	if !allowedDomain(d.tenant.SenderDomains, a.Domain()) {
		return forbid("From", "the tenant may not send as %s", a.Domain())
	}
	if !d.env.From.IsZero() && !allowedDomain(d.tenant.SenderDomains, d.env.From.Domain()) {
		return forbid("sender", "the tenant may not use envelope senders at %s", d.env.From.Domain())
	}
	if d.env.Pool == "" {
		d.env.Pool = d.tenant.Pool
	} else if len(d.tenant.Pools) > 0 && d.env.Pool != d.tenant.Pool && !slices.Contains(d.tenant.Pools, d.env.Pool) {
		return forbid("pool", "the tenant may not use this pool")
	}
	return nil
}

func allowedDomain(allowed []string, domain string) bool {
	if len(allowed) == 0 {
		return true
	}
	for _, a := range allowed {
		if domain == a || (len(domain) > len(a) && strings.HasSuffix(domain, a) && domain[len(domain)-len(a)-1] == '.') {
			return true
		}
	}
	return false
}

// schedule settles when the message is due and when it expires. A client can
// shorten its life, not lengthen it.
func (i *Injector) schedule(d *draft) *Error {
	due := d.now
	switch at := d.env.SendAt; {
	case !at.After(d.now):
		d.env.SendAt = time.Time{} // due already
	case at.Sub(d.now) > i.cfg.MaxDelay:
		return refuse("send_at", CodeLimit, "more than %v ahead", i.cfg.MaxDelay)
	default:
		due = at
	}
	age := i.cfg.MaxAge
	if d.tenant.MaxAge > 0 {
		age = d.tenant.MaxAge
	}
	d.expires = due.Add(age)
	if e := d.env.Expires; !e.IsZero() {
		if !e.After(due) {
			return refuse("expires_at", CodeInvalid, "the message would expire before it is due")
		}
		if e.Before(d.expires) {
			d.expires = e
		}
	}
	return nil
}

// expand turns the draft into submissions.
func (i *Injector) expand(ctx context.Context, d *draft) (*Prepared, *Error) {
	p := &Prepared{Result: &Result{}, door: d.env.Door}
	rcpts, reasons, err := i.recipients(ctx, d, p)
	if err != nil {
		return nil, err
	}
	if len(rcpts) == 0 {
		p.name()
		return p, nil
	}
	personal := i.deps.Rewrite != nil && d.tenant.Rewrite && d.env.Class != message.Security && !d.env.Internal
	if !personal && !i.apart(d, len(rcpts)) {
		s, err := i.submission(d, rcpts, reasons, false)
		if err != nil {
			return nil, err
		}
		p.Submissions = []*Submission{s}
	} else {
		p.Submissions = make([]*Submission, 0, len(rcpts))
		for k := range rcpts {
			var reason []string
			if reasons != nil && reasons[k] != "" {
				reason = reasons[k : k+1 : k+1]
			}
			s, err := i.submission(d, rcpts[k:k+1:k+1], reason, personal && reason == nil)
			if err != nil {
				return nil, err
			}
			p.Submissions = append(p.Submissions, s)
		}
	}
	p.name()
	return p, nil
}

// recipients lists whom to accept, with the reasons of those suppressed (nil
// when there are none), and begins the result.
func (i *Injector) recipients(ctx context.Context, d *draft, p *Prepared) ([]message.Recipient, []string, *Error) {
	in := d.env.Recipients
	rcpts := make([]message.Recipient, 0, len(in))
	var reasons []string
	var seen map[message.Address]int // nil for short lists, where a scan is cheaper
	if len(in) > 8 {
		seen = make(map[message.Address]int, len(in))
	}
	p.Result.Recipients = make([]RecipientResult, len(in))
	for k := range in {
		a := in[k].Address
		out := &p.Result.Recipients[k]
		out.Address = a
		if a.IsZero() {
			return nil, nil, refuse("recipients", CodeInvalid, "a recipient has no address")
		}
		if first := firstOf(in[:k], seen, a); first < k {
			p.repeats = append(p.repeats, repeat{k, first})
			continue
		}
		m, err := Metadata(in[k].Metadata)
		if err != nil {
			return nil, nil, refuse("recipients.metadata", CodeInvalid, "%s", err.Error())
		}
		if i.deps.Suppressed != nil && !d.env.Internal {
			reason, hit, err := i.deps.Suppressed(ctx, d.env.Tenant, d.env.Campaign, a)
			if err != nil {
				return nil, nil, later("recipients", err)
			}
			if hit && i.cfg.RefuseSuppressed {
				out.Refused = &Error{Field: "recipients", Code: CodeSuppressed, SMTP: 550, Enhanced: badPolicy, Message: "the recipient is suppressed"}
				continue
			}
			if hit {
				if reason == "" {
					reason = CodeSuppressed
				}
				if reasons == nil {
					reasons = make([]string, len(rcpts), len(in))
				}
				out.Suppressed = reason
				p.suppressed++
			}
		}
		if reasons != nil {
			reasons = append(reasons, out.Suppressed)
		}
		r := in[k]
		r.N, r.Metadata, r.ReturnPath = uint32(len(rcpts)), m, message.Address{}
		rcpts = append(rcpts, r)
	}
	return rcpts, reasons, nil
}

// firstOf is where a stands first in in, or len(in) when it does not; seen, if
// not nil, is an index of in and takes a.
func firstOf(in []message.Recipient, seen map[message.Address]int, a message.Address) int {
	if seen == nil {
		if n := slices.IndexFunc(in, func(r message.Recipient) bool { return r.Address == a }); n >= 0 {
			return n
		}
		return len(in)
	}
	n, found := seen[a]
	if !found {
		n = len(in)
		seen[a] = n
	}
	return n
}

// name completes the result with the names of message and recipients.
func (p *Prepared) name() {
	if len(p.Submissions) > 0 {
		p.Result.ID = p.Submissions[0].Message.ID
	}
	k := 0
	for _, s := range p.Submissions {
		for _, r := range s.Recipients {
			// Submissions hold the first occurrence of each accepted address,
			// in the order of the result.
			for p.Result.Recipients[k].Address != r.Address {
				k++
			}
			p.Result.Recipients[k].ID = message.RecipientID(s.Message.ID, r.N)
			k++
		}
	}
	for _, r := range p.repeats {
		p.Result.Recipients[r.at] = p.Result.Recipients[r.first]
	}
}

// submission makes one message for rcpts and its final bytes.
func (i *Injector) submission(d *draft, rcpts []message.Recipient, reasons []string, rewrite bool) (*Submission, *Error) {
	env := &d.env
	m := &message.Message{
		ID:         i.deps.IDs.New(d.now),
		Tenant:     env.Tenant,
		Campaign:   env.Campaign,
		Pool:       env.Pool,
		Class:      env.Class,
		Tags:       env.Tags,
		Metadata:   env.Metadata,
		From:       env.From,
		EnvID:      env.EnvID,
		Ret:        env.Ret,
		Accepted:   d.now,
		NotBefore:  env.SendAt,
		Expires:    d.expires,
		EightBit:   d.shape.eightBit,
		UTF8:       d.head.utf8,
		Internal:   env.Internal,
		Sandbox:    env.Sandbox,
		Durability: env.Durability,
		Origin:     env.Origin,
		Client:     env.Client,

		HeaderFrom:     d.from.Domain(),
		RecipientCount: len(rcpts),
	}
	if m.Origin == "" {
		m.Origin = string(env.Door)
	}
	var only *message.Recipient
	if len(rcpts) == 1 {
		only = &rcpts[0]
		only.N = 0 // a message of its own starts counting at zero
	}
	body := i.render(d, m, only)
	if rewrite {
		var err error
		if body, err = i.rewrite(d, m, &rcpts[0], body); err != nil {
			return nil, later("body", err)
		}
	}
	m.Size = len(body)
	i.returnPaths(d, m, rcpts)
	return &Submission{Message: m, Recipients: rcpts, Suppressed: reasons, Body: body}, nil
}
