package outbound

import (
	"context"
	"strconv"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

const (
	maxGroup      = 100         // recipients whose replies we let stand unread
	maxGroupBytes = 14 << 10    // octets of commands in one write
	earlyGrace    = time.Second // for a reply that explains why the peer hung up
)

// Envelope is one message for one transaction. Send reads it and keeps nothing.
type Envelope struct {
	From message.Address
	To   []message.Recipient // Address, ORcpt and Notify are used

	// EnvID and Ret are the DSN parameters of RFC 3461, decoded; they are sent
	// to servers that offer DSN.
	EnvID, Ret string
	// EightBit says that the message holds octets above 0x7F, UTF8 that its
	// header does. Addresses are looked at by Send itself.
	EightBit, UTF8 bool

	// Header holds what goes in front of Body: signatures, trace fields. Each
	// part, and Body, is whole lines ended by CRLF, not dot-stuffed.
	Header [][]byte
	Body   []byte
	// Plain says that Body's lines are known to be whole and clean, none of them
	// too long and none beginning with a dot: they are not searched again.
	Plain bool

	// Next, if set, is asked for the message to come after this one, at most
	// once and in the goroutine of Send, when all that remains is to write this
	// message to a server that offers PIPELINING. See Result.Next.
	Next func() *Envelope
}

// Result is what came of one Send.
type Result struct {
	// Outcomes has one entry for each of Envelope.To, in the same order. An
	// outcome that is not Attempted was settled before the server had answered
	// anything about this message: a local refusal, a dead connection, a
	// recipient above LIMITS RCPTMAX.
	Outcomes []message.Outcome
	// Usable says that the connection may take another message. If it is
	// false, call Quit; the connection may be closed already.
	Usable bool
	// Stale says that a connection used before turned out to be closed, or
	// about to be (421), before this message was looked at: a new connection
	// may be tried at once, without counting this as an attempt.
	Stale bool
	// Bytes counts what was written of the message itself, dot-stuffing and
	// final dot included.
	Bytes int64
	// Next is what Envelope.Next returned, if its commands went out behind the
	// final dot: the connection then serves nothing but a Send of it, and Quit,
	// Drop and Close give it up. It is nil if they did not, or if the connection
	// is not usable any more; that message has then not been begun.
	Next *Envelope
}

// transaction is the state of one Send; there is a new one for every message.
type transaction struct {
	c    *Conn
	e    *Envelope
	res  *Result
	dots []int // per part of the message: lines that begin with a dot
	few  [8]int
	utf8 bool
	// left counts the recipients without an outcome.
	left int
	// answered is set by the first reply that is about this message.
	answered bool
	// begun says that the commands are out, in one group, behind the message
	// before; ready, that they have been answered and the body may follow.
	begun, ready bool
	mail         int  // code of the reply to MAIL
	slipped      bool // a reply too many was seen
}

func (c *Conn) newTransaction(e *Envelope) *transaction {
	return &transaction{c: c, e: e, left: len(e.To), res: &Result{Outcomes: make([]message.Outcome, len(e.To))}}
}

// Send sends one message. Cancelling ctx drops the connection, at whatever
// stage: outcomes are then Deferred, or Unknown behind the final dot.
//
// MAIL, RCPT and DATA go out in one write where the server offers PIPELINING
// (RFC 2920), with RSET in front if an earlier transaction was left open. Those
// of the message that comes next may follow the final dot in the same write
// (3.1): with Envelope.Next a message costs one round trip instead of two. Send
// then returns when they have been answered. Only a 354 in its place proves that
// no stray line was taken for the reply to the dot: replies that are out of step
// make the outcome Unknown where it cannot be told.
func (c *Conn) Send(ctx context.Context, e *Envelope) *Result {
	started := time.Now()
	t := c.begun
	c.begun = nil
	switch {
	case t == nil:
		t = c.newTransaction(e)
	case t.e != e: // the server waits for another message
		c.abandon()
		t = c.newTransaction(e)
	}
	t.run(ctx)
	finished := time.Now()
	for i := range t.res.Outcomes {
		t.res.Outcomes[i].Started, t.res.Outcomes[i].Finished = started, finished
	}
	c.lastUsed = finished
	c.latest = time.Time{}
	if c.begun != nil {
		t.res.Next = c.begun.e
	}
	t.res.Usable = t.res.Next != nil || !c.broken && c.spare()
	return t.res
}

// spare reports whether the server takes another message on this connection.
func (c *Conn) spare() bool { return c.caps.MailMax == 0 || c.messages < c.caps.MailMax }

func (t *transaction) run(ctx context.Context) {
	c := t.c
	switch {
	case t.begun && !t.ready:
		return // that was all
	case t.begun && ctx.Err() != nil:
		t.gone(c.local(message.StageData, status442, "canceled before sending"))
		return
	case t.begun:
		t.converse(ctx, true, true)
		return
	case len(t.e.To) == 0:
		return
	case c.broken:
		t.res.Stale = c.messages > 0
		t.settleAll(message.Deferred, c.local(message.StageMail, status442, "the connection is closed"))
		return
	case ctx.Err() != nil:
		t.settleAll(message.Deferred, c.local(message.StageMail, status442, "canceled before sending"))
		return
	}
	t.preflight()
	if t.left == 0 {
		return
	}
	c.acquire()
	reused := c.messages > 0
	clear := !c.dirty
	t.converse(ctx, reused, clear)
}

// converse takes the envelope and then the message through the dialogue. clear
// says that no transaction was left open.
func (t *transaction) converse(ctx context.Context, reused, clear bool) {
	c := t.c
	stop := c.watch(ctx)
	if !t.begun {
		if fail := c.quiet(message.StageMail); fail != nil {
			stop()
			t.gone(fail)
			return
		}
		c.messages++
		c.dirty = true
		c.latest = time.Now().Add(c.opts.Timeouts.Envelope)
		if c.caps.Pipelining {
			t.ready = t.pipelined(clear)
		} else {
			t.ready = t.stepwise(clear)
		}
		c.latest = time.Time{}
	}
	if t.ready {
		t.body()
	}
	if next := c.begun; next != nil {
		next.res.Stale = c.broken && !next.answered && ctx.Err() == nil
	}
	t.res.Stale = reused && c.broken && !t.answered && ctx.Err() == nil
	if !stop() {
		c.abandon()
	}
}

// preflight refuses, before a word is said, what this server cannot take and
// what nobody may be sent.
func (t *transaction) preflight() {
	c, e := t.c, t.e
	refuse := func(code int, s message.Enhanced, text string) {
		fail := c.local(message.StageMail, s, text)
		fail.Code = code
		t.settleAll(resultOf(fail), fail)
	}
	var size int64
	t.dots = t.few[:0]
	for i := 0; i <= len(e.Header); i++ {
		part := e.Body
		if i < len(e.Header) {
			part = e.Header[i]
		}
		size += int64(len(part))
		if e.Plain && i == len(e.Header) {
			t.dots = append(t.dots, 0)
			break
		}
		n, err := checkLines(part)
		if err != nil {
			refuse(554, message.Enhanced{5, 6, 0}, err.Error())
			return
		}
		t.dots = append(t.dots, n)
	}
	if c.caps.Size > 0 && size > c.caps.Size {
		refuse(552, message.Enhanced{5, 3, 4}, "the message of "+strconv.FormatInt(size, 10)+
			" octets is larger than the "+strconv.FormatInt(c.caps.Size, 10)+" the server takes (SIZE)")
		return
	}
	t.utf8 = e.UTF8 || e.From.UTF8()
	if t.utf8 && !c.caps.SMTPUTF8 {
		refuse(553, message.Enhanced{5, 6, 7}, "the server does not offer SMTPUTF8, and sender or header need it")
		return
	}
	if (e.EightBit || e.UTF8) && !c.caps.EightBitMIME {
		refuse(554, message.Enhanced{5, 6, 3}, "the server does not offer 8BITMIME, and the message is not 7-bit")
		return
	}
	limit := c.caps.RcptMax
	for i := range e.To {
		switch {
		case e.To[i].Address.UTF8() && !c.caps.SMTPUTF8:
			fail := c.local(message.StageRcpt, message.Enhanced{5, 6, 7}, "the server does not offer SMTPUTF8, and the address needs it")
			fail.Code = 553
			t.settle(i, message.Failed, fail)
		case e.To[i].Address.IsZero():
			fail := c.local(message.StageRcpt, message.Enhanced{5, 1, 3}, "no recipient address")
			fail.Code = 553
			t.settle(i, message.Failed, fail)
		case c.caps.RcptMax > 0 && limit == 0:
			t.settle(i, message.Deferred, c.local(message.StageRcpt, message.Enhanced{4, 5, 3}, "more recipients than the server takes in one transaction (LIMITS RCPTMAX)"))
		default:
			limit--
			t.utf8 = t.utf8 || e.To[i].Address.UTF8()
		}
	}
}

func (t *transaction) settled(i int) bool { return t.res.Outcomes[i].Reply != nil }

func (t *transaction) settle(i int, r message.Result, reply *message.Reply) {
	if t.settled(i) {
		return
	}
	t.res.Outcomes[i] = message.Outcome{Result: r, Reply: reply, Attempted: t.answered}
	t.left--
}

func (t *transaction) settleAll(r message.Result, reply *message.Reply) {
	for i := range t.res.Outcomes {
		t.settle(i, r, reply)
	}
}

// gone gives the connection up before the message was out: all who have no
// answer of their own wait, even if the last words were a 5xx, because those
// were about the conversation.
func (t *transaction) gone(fail *message.Reply) {
	t.settleAll(message.Deferred, fail)
	t.c.abandon()
}

// resultOf is what a reply means for a recipient without knowing the provider:
// 5xx is final, all else waits (RFC 5321, 4.2.1), and so does 552 for too many
// recipients (4.5.3.1.10).
func resultOf(r *message.Reply) message.Result {
	switch {
	case r.Code/100 == 2:
		return message.Delivered
	case r.Temporary(), r.Code == 552 && r.Enhanced[1] == 5 && r.Enhanced[2] == 3:
		return message.Deferred
	}
	return message.Failed
}
