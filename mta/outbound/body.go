package outbound

import (
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
	var rp reply
	var fail *message.Reply
	var err error
	if size > readAhead {
		rp, fail, err = t.watched()
	} else {
		w := c.newBodyWriter()
		err = t.write(&w)
		t.res.Bytes = w.sent
		limit := c.opts.Timeouts.Dot
		if err != nil {
			limit = earlyGrace
		}
		rp, fail = c.read(message.StageDot, limit)
	}
	if err != nil {
		t.cutShort(rp, fail, err)
		return
	}
	t.dot(rp, fail)
}

// write puts the message and the final dot on the wire.
func (t *transaction) write(w *bodyWriter) error {
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
	return w.flush()
}

// watched writes a long message while listening: a server that has had enough
// says so in the middle (RFC 5321, 3.8 and 4.2.5), and may stop reading.
func (t *transaction) watched() (rp reply, fail *message.Reply, err error) {
	c := t.c
	early, done := make(chan struct{}), make(chan struct{})
	c.raw.SetReadDeadline(time.Time{}) // the write deadlines end this, then the dot's
	go func() {
		defer close(done)
		rp, fail = c.read(message.StageDot, 0)
		close(early)
		c.raw.SetWriteDeadline(time.Unix(1, 0)) // wakes a writer that is stuck
	}()
	w := c.newBodyWriter()
	w.early = early
	err = t.write(&w)
	t.res.Bytes = w.sent
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
		c.abandon()
		return
	}
	said := c.remote(message.StageDot, rp)
	result := resultOf(said)
	if c.r != c.w {
		result = t.afterword(result)
	}
	c.dirty = false
	t.settleAll(result, said)
	if rp.code == 421 {
		c.abandon()
	}
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
