package report

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/dkim"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/token"
)

// verdict is what reading a report came to, before the journal is asked.
type verdict struct {
	kind kind
	// One of: fact, held (quarantine for a reason), slow (move to the other
	// lane), retry (later), or nothing, which counts the report and drops it.
	fact  *fact
	held  reason
	slow  bool
	retry bool
}

// fact is something that a report says about the recipient of its token.
type fact struct {
	claims *token.Claims
	typ    message.EventType
	origin string
	detail string
	// bounces are what a bounce says of each address.
	bounces []bounce.Recipient
}

// judge reads one report. It panics on no input, but should it all the same,
// the report is held: one of them must not stop the engine at every start.
func (m *Mailbox) judge(ctx context.Context, lane byte, r *record) (v verdict) {
	defer func() {
		if p := recover(); p != nil {
			m.d.Logger.Error("reading a report panicked", "panic", p)
			v = verdict{kind: kindUnreadable, held: heldUnreadable}
		}
	}()
	to, c, _ := m.open(r.to)
	rep := bounce.Parse(r.raw, bounce.Options{Classifier: m.d.Rules()})
	switch to {
	case toBounce:
		return m.judgeBounce(ctx, lane, r, rep, c)
	case toFeedback:
		switch rep.Kind {
		case bounce.KindComplaint:
			return m.judgeComplaint(ctx, lane, r, rep, nil)
		case bounce.KindAutoReply:
			return verdict{kind: kindAutoReply}
		}
		return verdict{kind: kindOf(rep.Kind), held: heldMisdirected}
	case toUnsubscribe:
		return m.judgeUnsubscribe(r, rep, c)
	}
	// A key has been removed, or the domain changed, since it was taken.
	return verdict{kind: kindOf(rep.Kind), held: heldNoToken}
}

// judgeBounce reads mail to a return path, whose token says who it is about.
func (m *Mailbox) judgeBounce(ctx context.Context, lane byte, r *record, rep *bounce.Report, c *token.Claims) verdict {
	k := kindOf(rep.Kind)
	switch rep.Kind {
	case bounce.KindComplaint:
		return m.judgeComplaint(ctx, lane, r, rep, c)
	case bounce.KindAutoReply, bounce.KindDelivered:
		return verdict{kind: k}
	case bounce.KindBounce, bounce.KindDelay:
		if !slices.ContainsFunc(rep.Recipients, func(x bounce.Recipient) bool { return x.Action == bounce.ActionFailed }) {
			return verdict{kind: k} // a warning: they still try
		}
		if c.All {
			// Every recipient of the message knows this address, and what the
			// text says proves nothing.
			return verdict{kind: k, held: heldAmbiguous}
		}
		return verdict{kind: k, fact: &fact{claims: c, typ: message.EventBounced, origin: "dsn", bounces: rep.Recipients}}
	}
	return verdict{kind: kindUnreadable, held: heldUnreadable}
}

// harmless are types of feedback that are no complaint.
var harmless = []string{"not-spam", "auth-failure", "dmarc", "dkim"}

// judgeComplaint reads a complaint. c is the token it was sent to, if any.
func (m *Mailbox) judgeComplaint(ctx context.Context, lane byte, r *record, rep *bounce.Report, c *token.Claims) verdict {
	v := verdict{kind: kindComplaint}
	if slices.Contains(harmless, rep.FeedbackType) {
		return v
	}
	if c = m.identify(rep, c); c == nil {
		v.held = heldNoToken
		return v
	}
	if !m.listed(r) {
		if lane == store.LaneFast {
			v.slow = true
			return v
		}
		ok, err := m.signed(ctx, r, rep)
		switch {
		case errors.Is(err, dkim.ErrKeyUnavailable) && r.tries < maxTries:
			v.retry = true
			return v
		case !ok:
			v.held = heldUnsigned
			return v
		}
	}
	if c.All {
		v.held = heldAmbiguous
		return v
	}
	v.fact = &fact{claims: c, typ: message.EventComplained, origin: "arf", detail: rep.FeedbackType}
	if strings.HasPrefix(rep.FeedbackType, "opt-out") {
		v.fact.typ = message.EventUnsubscribed
	}
	return v
}

// maxTokens bounds the tokens tried of one report.
const maxTokens = 24

// identify finds whom a complaint is about: by the address it was sent to, then
// by the return path, the Message-ID, the feedback ids and X-Report-Ref of the
// header it encloses, in the order of how hard they are to bring in from
// another message. The first that names a recipient wins; one that only names
// the message is better than nothing.
func (m *Mailbox) identify(rep *bounce.Report, first *token.Claims) *token.Claims {
	ring := m.d.Ring()
	best := first
	tried := 0
	try := func(kind token.Kind, text string) {
		if tried++; tried > maxTokens {
			return
		}
		c, err := ring.Open(kind, m.c.Domain, strings.TrimSpace(text))
		switch {
		case err != nil:
		case best == nil, best.All && !c.All && c.Message == best.Message:
			best = c
		case best.Tenant == "" && c.Message == best.Message && c.N == best.N && c.All == best.All:
			best = c // says the same in full, for when the journal has forgotten
		}
	}
	t := rep.Tokens()
	for _, s := range t.ReturnPath {
		local, domain, _ := strings.Cut(s, "@")
		if strings.EqualFold(domain, m.c.Domain) && len(local) > 1 && strings.EqualFold(local[:1], BouncePrefix) {
			try(token.ReturnPath, local[1:])
		}
	}
	left, _, _ := strings.Cut(t.MessageID, "@")
	try(token.MessageID, left)
	for _, s := range append(t.FeedbackID, rep.Original.Get("CFBL-Feedback-ID")) {
		for part := range strings.SplitSeq(s, ":") {
			try(token.FeedbackID, part)
		}
	}
	for _, f := range t.Extra {
		if strings.EqualFold(f.Name, "X-Report-Ref") {
			try(token.ReportRef, f.Value)
		}
	}
	return best
}

// listed reports whether a complaint comes from a network that is trusted.
func (m *Mailbox) listed(r *record) bool {
	return slices.ContainsFunc(m.c.Reporters.Networks, func(p netip.Prefix) bool { return p.Contains(r.client) })
}

// verifyTime bounds the look-ups for one complaint.
const verifyTime = 20 * time.Second

// signed reports whether a complaint carries a valid signature of its author's
// domain, or of a domain that is trusted.
func (m *Mailbox) signed(ctx context.Context, r *record, rep *bounce.Report) (bool, error) {
	if m.d.TXT == nil {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, verifyTime)
	defer cancel()
	signers, err := dkim.Verify(ctx, r.raw, m.d.TXT)
	if err != nil {
		return false, err
	}
	author := ""
	if rep.Feedback != nil {
		_, domain, _ := strings.Cut(rep.Feedback.Reporter, "@")
		author, _ = message.ParseDomain(domain)
	}
	for _, d := range signers {
		if author != "" && within(author, d) {
			return true, nil
		}
		for _, t := range m.c.Reporters.Domains {
			if within(d, t) {
				return true, nil
			}
		}
	}
	return false, nil
}

// within reports whether name is domain or below it.
func within(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// judgeUnsubscribe reads mail to an unsubscribe address. Its token, which only
// the recipient was sent, is the whole request; what the mail says is not read,
// but for the longer token in its subject.
func (m *Mailbox) judgeUnsubscribe(r *record, rep *bounce.Report, c *token.Claims) verdict {
	switch rep.Kind {
	case bounce.KindAutoReply:
		return verdict{kind: kindAutoReply}
	case bounce.KindBounce, bounce.KindDelay, bounce.KindDelivered:
		return verdict{kind: kindOf(rep.Kind), held: heldMisdirected}
	}
	v := verdict{kind: kindUnsubscribe}
	switch {
	case r.from == "":
		v.held = heldMisdirected // a machine's mail, whoever made it
	case c.All:
		v.held = heldAmbiguous
	default:
		subject := strings.TrimSpace(rep.Header.Get("Subject"))
		full, err := m.d.Ring().Open(token.Unsubscribe, m.c.Domain, subject)
		if err == nil && full.Message == c.Message && full.N == c.N && !full.All {
			c = full
		}
		v.fact = &fact{claims: c, typ: message.EventUnsubscribed, origin: "mail"}
	}
	return v
}
