package outbound

import (
	"strconv"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// answer reads one reply. ok is false when the conversation is over: the failure
// has then been dealt with.
func (t *transaction) answer(stage message.Stage, limit time.Duration) (rp reply, ok bool) {
	rp, fail := t.c.read(stage, limit)
	switch {
	case fail != nil:
	case rp.code == 421:
		// RFC 5321, 3.8: the server shuts down; it is said about no recipient.
		fail = t.c.remote(stage, rp)
	case rp.code/100 == 3 && stage != message.StageData:
		fail = t.c.refused(stage, rp)
	default:
		return rp, true
	}
	t.gone(fail)
	return reply{}, false
}

// pipelined sends the envelope in one write, or a few when there are many
// recipients, and reports whether the body may follow.
func (t *transaction) pipelined(clear bool) bool {
	c, b := t.c, t.c.buf
	limits := &c.opts.Timeouts
	b.write = b.write[:0]
	if !clear {
		b.write = append(b.write, "RSET\r\n"...)
	}
	var refusal *message.Reply
	for lo, first := 0, true; ; first = false {
		hi := len(t.e.To)
		if !t.begun {
			b.write, hi = t.appendGroup(b.write, lo)
			if fail := c.flush(message.StageMail, limits.Mail); fail != nil {
				t.gone(fail)
				return false
			}
		}
		last := hi == len(t.e.To)
		if first {
			if !clear && !t.reset() {
				return false
			}
			rp, ok := t.answer(message.StageMail, limits.Mail)
			if !ok {
				return false
			}
			t.answered, t.mail = true, rp.code
			if rp.code/100 != 2 {
				refusal = c.remote(message.StageMail, rp)
			}
		}
		if !t.group(lo, hi, refusal) {
			return false
		}
		if last {
			break
		}
		if refusal != nil { // no more RCPT, no DATA
			t.settleAll(resultOf(refusal), refusal)
			return false
		}
		lo = hi
	}
	rp, ok := t.answer(message.StageData, limits.Data)
	if !ok {
		return false
	}
	if refusal != nil {
		t.settleAll(resultOf(refusal), refusal)
	}
	return t.data(rp)
}

// stepwise says the same one command at a time.
func (t *transaction) stepwise(clear bool) bool {
	c, b := t.c, t.c.buf
	limits := &c.opts.Timeouts
	say := func(stage message.Stage, limit time.Duration) bool {
		fail := c.quiet(stage)
		if fail == nil {
			fail = c.flush(stage, limit)
		}
		if fail != nil {
			t.gone(fail)
		}
		return fail == nil
	}
	if !clear {
		b.write = append(b.write[:0], "RSET\r\n"...)
		if !say(message.StageRset, limits.Rset) || !t.reset() {
			return false
		}
	}
	b.write = t.appendMail(b.write[:0])
	if !say(message.StageMail, limits.Mail) {
		return false
	}
	rp, ok := t.answer(message.StageMail, limits.Mail)
	if !ok {
		return false
	}
	t.answered = true
	if rp.code/100 != 2 {
		refusal := c.remote(message.StageMail, rp)
		t.settleAll(resultOf(refusal), refusal)
		return false
	}
	for i := range t.e.To {
		if t.settled(i) {
			continue
		}
		b.write = t.appendRcpt(b.write[:0], i)
		if !say(message.StageRcpt, limits.Rcpt) || !t.group(i, i+1, nil) {
			return false
		}
	}
	if t.left == 0 {
		return false
	}
	b.write = append(b.write[:0], "DATA\r\n"...)
	if !say(message.StageData, limits.Data) {
		return false
	}
	if rp, ok = t.answer(message.StageData, limits.Data); !ok {
		return false
	}
	return t.data(rp)
}

// reset reads the reply to RSET.
func (t *transaction) reset() bool {
	rp, ok := t.answer(message.StageRset, t.c.opts.Timeouts.Rset)
	if ok && rp.code/100 != 2 {
		t.gone(t.c.remote(message.StageRset, rp))
		return false
	}
	return ok
}

// appendGroup adds RCPT commands from recipient lo on, MAIL in front of the first
// group and DATA behind the last, and returns where it stopped.
func (t *transaction) appendGroup(b []byte, lo int) (_ []byte, hi int) {
	if lo == 0 {
		b = t.appendMail(b)
	}
	n := 0
	for hi = lo; hi < len(t.e.To); hi++ {
		if t.settled(hi) {
			continue
		}
		if n == maxGroup || len(b) > maxGroupBytes {
			break
		}
		b = t.appendRcpt(b, hi)
		n++
	}
	if hi == len(t.e.To) {
		b = append(b, "DATA\r\n"...)
	}
	return b, hi
}

// follow asks for the message that comes next and returns the commands that
// begin it, to be written behind the present one. Nil means that nothing
// follows: there is none, or it would have to be looked at first.
func (t *transaction) follow() (*transaction, []byte) {
	c := t.c
	if t.e.Next == nil || !c.caps.Pipelining || !c.spare() {
		return nil, nil
	}
	e := t.e.Next()
	if e == nil {
		return nil, nil
	}
	next := c.newTransaction(e)
	next.begun = true
	next.preflight()
	if next.left == 0 {
		return nil, nil
	}
	b, hi := next.appendGroup(c.buf.ahead[:0], 0)
	if hi < len(e.To) || len(b) > maxGroupBytes {
		return nil, nil
	}
	c.buf.ahead = b
	return next, b
}

// group reads the replies to the RCPT commands for [lo, hi). Once MAIL has been
// refused they say nothing new and are only counted off.
func (t *transaction) group(lo, hi int, refusal *message.Reply) bool {
	for i := lo; i < hi; i++ {
		if t.settled(i) {
			continue
		}
		rp, ok := t.answer(message.StageRcpt, t.c.opts.Timeouts.Rcpt)
		if !ok {
			return false
		}
		if refusal == nil && rp.code >= 400 {
			said := t.c.remote(message.StageRcpt, rp)
			t.settle(i, resultOf(said), said)
		}
	}
	return true
}

// data acts on the reply to DATA and reports whether the body may follow.
func (t *transaction) data(rp reply) bool {
	c := t.c
	switch {
	case rp.code == 354 && t.left > 0:
		return true
	case rp.code == 354:
		// RFC 2920, 3.1: DATA was on its way when all recipients were refused;
		// a lone dot ends what nobody is to get.
		c.buf.write = append(c.buf.write[:0], ".\r\n"...)
		fail := c.quiet(message.StageDot)
		if fail == nil {
			fail = c.flush(message.StageDot, c.opts.Timeouts.Mail)
		}
		if fail == nil {
			rp, fail = c.read(message.StageDot, c.opts.Timeouts.Mail)
		}
		if fail != nil || rp.code == 421 || rp.code/100 == 3 || c.r != c.w {
			c.abandon()
			return false
		}
		c.dirty = false
		return false
	case rp.code < 400:
		t.shifted(c.refused(message.StageData, rp))
		return false
	case c.r != c.w:
		t.shifted(c.quiet(message.StageData))
		return false
	}
	said := c.remote(message.StageData, rp)
	t.settleAll(resultOf(said), said)
	return false
}

// shifted gives up a conversation in which a reply too many was seen, so that
// none can be told to belong to its command. What the server seemed to say about
// single recipients is not believed either: rather late than bounced for
// nothing.
func (t *transaction) shifted(fail *message.Reply) {
	t.slipped = true
	for i := range t.res.Outcomes {
		if o := &t.res.Outcomes[i]; o.Reply == nil || !o.Reply.Local {
			*o = message.Outcome{Reply: fail, Attempted: t.answered}
		}
	}
	t.left = 0
	t.c.abandon()
}

func (t *transaction) appendMail(b []byte) []byte {
	c, e := t.c, t.e
	b = append(b, "MAIL FROM:<"...)
	b = append(e.From.Append(b), '>')
	if c.caps.size {
		size := int64(len(e.Body))
		for _, h := range e.Header {
			size += int64(len(h))
		}
		b = strconv.AppendInt(append(b, " SIZE="...), size, 10)
	}
	if e.EightBit || e.UTF8 {
		b = append(b, " BODY=8BITMIME"...)
	}
	if t.utf8 {
		b = append(b, " SMTPUTF8"...)
	}
	if c.caps.DSN {
		if e.Ret == "FULL" || e.Ret == "HDRS" {
			b = append(append(b, " RET="...), e.Ret...)
		}
		if e.EnvID != "" && len(e.EnvID) <= 100 && printable(e.EnvID) {
			b = appendXtext(append(b, " ENVID="...), e.EnvID)
		}
	}
	return append(b, "\r\n"...)
}

func (t *transaction) appendRcpt(b []byte, i int) []byte {
	r := &t.e.To[i]
	b = append(b, "RCPT TO:<"...)
	b = append(r.Address.Append(b), '>')
	if t.c.caps.DSN {
		if r.Notify != 0 {
			b = appendNotify(b, r.Notify)
		}
		// An original recipient beyond ASCII would need the utf-8 address type
		// of RFC 6533; without it the parameter is better left out.
		if r.ORcpt != "" && len(r.ORcpt) <= 500 && printable(r.ORcpt) {
			b = appendORcpt(append(b, " ORCPT="...), r.ORcpt)
		}
	}
	return append(b, "\r\n"...)
}

// appendORcpt writes "type;xtext"; the type is an atom and not encoded.
func appendORcpt(b []byte, s string) []byte {
	for i := range len(s) {
		if s[i] == ';' {
			b = append(b, s[:i+1]...)
			return appendXtext(b, s[i+1:])
		}
	}
	return appendXtext(append(b, "rfc822;"...), s)
}
