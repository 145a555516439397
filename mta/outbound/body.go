package outbound

import (
	"math"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// body sends the message and settles everyone who is left.
func (t *transaction) body() {
	c := t.c
	if c.r != c.w { // said behind 354 and before a single octet of ours
		t.gone(c.quiet(message.StageBody))
		return
	}
	size := len(t.e.Body)
	for _, h := range t.e.Header {
		size += len(h)
	}
	next, ahead := t.follow()
	w := c.newBodyWriter()
	var rp reply
	var fail *message.Reply
	var err error
	if size > readAhead {
		rp, fail, err = t.watched(&w, ahead)
	} else {
		err = t.write(&w, ahead)
		limit := c.opts.Timeouts.Dot
		if err != nil {
			limit = earlyGrace
		}
		rp, fail = c.read(message.StageDot, limit)
	}
	t.res.Bytes = min(w.sent, w.end)
	switch {
	case err == nil && next != nil:
		c.begun = next
		c.messages++
	case err != nil && w.sent < w.end:
		t.cutShort(rp, fail, err)
		return
	case err != nil && fail == nil:
		// The message was out, and what was to follow it was not.
		defer c.abandon()
	}
	t.dot(rp, fail)
}

// write puts the message and the final dot on the wire, and what follows it.
func (t *transaction) write(w *bodyWriter, ahead []byte) error {
	w.end = math.MaxInt64
	for i, h := range t.e.Header {
		if err := w.stuff(h, t.dots[i]); err != nil {
			return err
		}
	}
	if err := w.stuff(t.e.Body, t.dots[len(t.dots)-1]); err != nil {
		return err
	}
	if err := w.add(theEnd); err != nil {
		return err
	}
	w.end = w.sent + int64(w.queued+len(t.c.buf.write))
	if len(ahead) > 0 {
		t.c.trace(ahead)
		if err := w.add(ahead); err != nil {
			return err
		}
	}
	return w.flush()
}

// watched writes a long message while listening: a server that has had enough
// says so in the middle (RFC 5321, 3.8 and 4.2.5), and may stop reading.
func (t *transaction) watched(w *bodyWriter, ahead []byte) (rp reply, fail *message.Reply, err error) {
	c := t.c
	early, done := make(chan struct{}), make(chan struct{})
	c.raw.SetReadDeadline(time.Time{}) // the write deadlines end this, then the dot's
	go func() {
		defer close(done)
		rp, fail = c.read(message.StageDot, 0)
		close(early)
		c.raw.SetWriteDeadline(time.Unix(1, 0)) // wakes a writer that is stuck
	}()
	w.early = early
	err = t.write(w, ahead)
	limit := c.opts.Timeouts.Dot
	if err != nil {
		limit = earlyGrace
	}
	c.raw.SetReadDeadline(time.Now().Add(limit))
	<-done
	return rp, fail, err
}

// cutShort settles a message whose end was never written: no server can have
// taken it.
func (t *transaction) cutShort(rp reply, fail *message.Reply, err error) {
	c := t.c
	switch {
	case fail == nil && rp.code >= 400:
		fail = c.remote(message.StageBody, rp)
	case fail == nil:
		fail = c.refused(message.StageBody, rp)
	default:
		fail = c.lost(message.StageBody, err, "sending the message")
	}
	t.settleAll(resultOf(fail), fail)
	c.abandon()
}

// dot acts on the reply to the final dot.
func (t *transaction) dot(rp reply, fail *message.Reply) {
	c := t.c
	if fail == nil && rp.code/100 == 3 {
		fail = c.refused(message.StageDot, rp)
	}
	if fail != nil {
		fail.Text += " after the final dot"
		t.settleAll(message.Unknown, fail)
		c.begun = nil
		c.abandon()
		return
	}
	said := c.remote(message.StageDot, rp)
	result := resultOf(said)
	c.dirty = false
	switch {
	case rp.code == 421:
		c.begun = nil
		c.abandon()
	case c.begun != nil:
		c.dirty = true
		result = t.inStep(result)
	case c.r != c.w:
		result = t.afterword(result)
	}
	t.settleAll(result, said)
}

// inStep reads the answers to what was begun behind the message. Each must be in
// its place, up to the 354, or a stray line may have been taken for the reply to
// the dot: then that was the answer which came next, and if it was a refusal,
// nobody can say which of the two was meant. A duplicate is then the lesser evil.
func (t *transaction) inStep(result message.Result) message.Result {
	c, next := t.c, t.c.begun
	c.latest = time.Now().Add(c.opts.Timeouts.Envelope)
	next.ready = next.pipelined(true)
	c.latest = time.Time{}
	if next.slipped && next.mail >= 400 && result == message.Delivered {
		return message.Unknown
	}
	return result
}

// afterword deals with what came together with the reply to the dot, and closes.
// A 421 is the server taking its leave. Any other refusal makes it impossible
// to say which of the two lines was the answer; a duplicate is then the lesser
// evil.
func (t *transaction) afterword(result message.Result) message.Result {
	rp, fail := t.c.read(message.StageDot, earlyGrace)
	if fail == nil && rp.code >= 400 && rp.code != 421 && result == message.Delivered {
		result = message.Unknown
	}
	t.c.abandon()
	return result
}
