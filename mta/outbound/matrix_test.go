package outbound_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

// misdeed is one way to misbehave in the place of a proper reply.
type misdeed struct {
	name string
	// do writes to the client; proper is the reply due. It reports whether the
	// server goes on as if nothing had happened.
	do   func(c net.Conn, proper string) bool
	kind string // refuse4, refuse5, goodbye, broken, extra2, extra5
}

func says(s string) func(net.Conn, string) bool {
	return func(c net.Conn, _ string) bool {
		c.Write([]byte(s))
		return true
	}
}

func misdeeds() []misdeed {
	drip := func(s string, pause time.Duration) func(net.Conn, string) bool {
		return func(c net.Conn, _ string) bool {
			for i := 0; ; i++ {
				if _, err := c.Write([]byte{s[i%len(s)]}); err != nil {
					return false
				}
				time.Sleep(pause) // virtual
			}
		}
	}
	return []misdeed{
		{"says 450", says("450 4.2.0 later\r\n"), "refuse4"},
		{"says 450 on two lines", says("450-4.2.0 later\r\n450 4.2.0 please\r\n"), "refuse4"},
		{"says 450 and ends the line with LF", says("450 4.2.0 later\n"), "refuse4"},
		{"says 450 without text", says("450\r\n"), "refuse4"},
		{"says 554", says("554 5.7.1 never\r\n"), "refuse5"},
		{"says 554 and escape sequences", says("554 5.7.1 \x1b[2J<script>\r\n"), "refuse5"},
		{"says 421", says("421 4.3.2 closing\r\n"), "goodbye"},
		{"says 421 and closes", func(c net.Conn, _ string) bool {
			c.Write([]byte("421 4.3.2 closing\r\n"))
			c.Close()
			return false
		}, "goodbye"},
		{"says 334", says("334 go on\r\n"), "broken"},
		{"says 199", says("199 hm\r\n"), "broken"},
		{"says 600", says("600 hm\r\n"), "broken"},
		{"says 25", says("25\r\n"), "broken"},
		{"says an empty line", says("\r\n"), "broken"},
		{"says words", says("hello there\r\n"), "broken"},
		{"puts a colon behind the code", says("250:ok\r\n"), "broken"},
		{"puts a digit behind the code", says("2500 ok\r\n"), "broken"},
		{"puts a space before the code", says(" 250 ok\r\n"), "broken"},
		{"changes the code", says("250-ok\r\n251 ok\r\n"), "broken"},
		{"changes from good to bad", says("250-ok\r\n550 no\r\n"), "broken"},
		{"puts NUL in the text", says("250 o\x00k\r\n"), "broken"},
		{"puts CR in the text", says("250 o\rk\r\n"), "broken"},
		{"ends lines with CR", says("250 ok\r250 ok\r\n"), "broken"},
		{"sends UTF-16", says("2\x005\x000\x00 \x00\r\x00\n\x00"), "broken"},
		{"sends a TLS alert", says("\x15\x03\x01\x00\x02\x02\x0a\r\n"), "broken"},
		{"sends a line of 2049 octets", says("250 " + strings.Repeat("x", 2043) + "\r\n"), "broken"},
		{"sends a line of 1 MB", says("250 " + strings.Repeat("x", 1<<20) + "\r\n"), "broken"},
		{"sends 129 lines", says(strings.Repeat("250-x\r\n", 128) + "250 x\r\n"), "broken"},
		{"sends a reply of 17 KB", says(strings.Repeat("250-"+strings.Repeat("x", 1000)+"\r\n", 17) + "250 x\r\n"), "broken"},
		{"sends lines without end", func(c net.Conn, _ string) bool {
			for {
				if _, err := c.Write([]byte("250-more\r\n")); err != nil {
					return false
				}
			}
		}, "broken"},
		{"closes", func(c net.Conn, _ string) bool { c.Close(); return false }, "broken"},
		{"closes in the code", func(c net.Conn, _ string) bool {
			c.Write([]byte("25"))
			c.Close()
			return false
		}, "broken"},
		{"closes before the line end", func(c net.Conn, _ string) bool {
			c.Write([]byte("250 ok\r"))
			c.Close()
			return false
		}, "broken"},
		{"closes between two lines", func(c net.Conn, _ string) bool {
			c.Write([]byte("250-ok\r\n"))
			c.Close()
			return false
		}, "broken"},
		{"stalls", func(c net.Conn, _ string) bool {
			c.Read(make([]byte, 1<<20))
			for {
				if _, err := c.Read(make([]byte, 1<<10)); err != nil {
					return false
				}
			}
		}, "broken"},
		{"drips an octet in 9 s", drip("250-it takes time\r\n", 9*time.Second), "broken"},
		{"drips a line in 9 s", drip("250", 3*time.Second), "broken"},
		{"adds a 250", func(c net.Conn, proper string) bool {
			c.Write([]byte(proper + "250 2.0.0 noise\r\n"))
			return true
		}, "extra2"},
		{"adds a 554", func(c net.Conn, proper string) bool {
			c.Write([]byte(proper + "554 5.0.0 noise\r\n"))
			return true
		}, "extra5"},
	}
}

var matrixStages = []message.Stage{
	message.StageBanner, message.StageEHLO, message.StageSTARTTLS, message.StageRset, message.StageMail,
	message.StageRcpt, message.StageData, message.StageDot,
}

// hostile serves one connection and misbehaves once, at stage. The first
// transaction is refused after RCPT, so that the second begins with RSET;
// misbehaviour from RSET on comes in the second.
type hostile struct {
	conn       net.Conn
	stage      message.Stage
	deed       misdeed
	pipelining bool
	at         int  // misbehave in this transaction, from RSET on; 0 means the second
	ahead      bool // the first transaction is not refused, and the second begun behind it
	seen       int  // transactions
	violation  string
}

func (h *hostile) serve() {
	defer h.conn.Close()
	r := bufio.NewReader(h.conn)
	if !h.answer(message.StageBanner, "220 hi\r\n") {
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb := strings.ToUpper(strings.TrimSpace(line))
		ok := true
		switch {
		case strings.HasPrefix(verb, "EHLO"):
			caps := "250-mx\r\n250-8BITMIME\r\n"
			if h.pipelining {
				caps += "250-PIPELINING\r\n"
			}
			if h.stage == message.StageSTARTTLS {
				caps += "250-StartTLS\r\n"
			}
			ok = h.answer(message.StageEHLO, caps+"250 HELP\r\n")
		case strings.HasPrefix(verb, "HELO"):
			h.conn.Write([]byte("250 mx\r\n"))
		case verb == "STARTTLS":
			ok = h.answer(message.StageSTARTTLS, "220 go\r\n")
		case verb == "RSET":
			ok = h.answer(message.StageRset, "250 reset\r\n")
		case strings.HasPrefix(verb, "MAIL"):
			h.seen++
			ok = h.answer(message.StageMail, "250 2.1.0 ok\r\n")
		case strings.HasPrefix(verb, "RCPT"):
			ok = h.answer(message.StageRcpt, "250 2.1.5 ok\r\n")
		case verb == "DATA" && h.seen == 1 && !h.ahead:
			h.conn.Write([]byte("451 4.3.0 not yet\r\n"))
		case verb == "DATA":
			if ok = h.answer(message.StageData, "354 go\r\n"); !ok {
				return
			}
			if h.stage == message.StageData && strings.HasPrefix(h.deed.kind, "refuse") && h.seen == cmp.Or(h.at, 2) {
				continue
			}
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			if n := r.Buffered(); (n > 0) != (h.ahead && h.seen == 1) {
				h.violation = fmt.Sprintf("%d octets behind the final dot of message %d", n, h.seen)
			}
			ok = h.answer(message.StageDot, "250 2.0.0 queued\r\n")
		case verb == "QUIT":
			h.conn.Write([]byte("221 bye\r\n"))
			return
		default:
			h.violation = fmt.Sprintf("command %q", line)
			h.conn.Write([]byte("500 what\r\n"))
		}
		if !ok {
			return
		}
	}
}

func (h *hostile) answer(stage message.Stage, proper string) bool {
	if stage != h.stage || (stage >= message.StageRset && h.seen < 1) || (stage >= message.StageMail && stage != message.StageRset && h.seen != cmp.Or(h.at, 2)) {
		_, err := h.conn.Write([]byte(proper))
		return err == nil
	}
	return h.deed.do(h.conn, proper)
}

// wanted is the rule: what a misdeed at a stage must lead to. dialed is false
// when no conversation may come about.
func wanted(stage message.Stage, kind string) (dialed bool, r message.Result, usable bool) {
	early := stage <= message.StageSTARTTLS
	switch kind {
	case "refuse4", "refuse5":
		switch {
		case stage == message.StageSTARTTLS:
			return true, message.Delivered, true // in clear
		case stage == message.StageEHLO && kind == "refuse5":
			return true, message.Delivered, true // by HELO
		case early:
			return false, 0, false
		case stage == message.StageRset:
			return true, message.Deferred, false
		case kind == "refuse4":
			return true, message.Deferred, true
		}
		return true, message.Failed, true
	case "extra2":
		if stage == message.StageDot {
			return true, message.Delivered, false
		}
	}
	switch {
	case early:
		return false, 0, false
	case stage == message.StageDot && kind != "goodbye":
		return true, message.Unknown, false
	}
	return true, message.Deferred, false
}

func TestEveryMisdeedAtEveryStageEndsAsItMust(t *testing.T) {
	t.Parallel()
	for _, stage := range matrixStages {
		for _, deed := range misdeeds() {
			for _, pipelining := range []bool{true, false} {
				t.Run(fmt.Sprintf("%v/%s/pipelining %v", stage, deed.name, pipelining), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) { misbehave(t, stage, deed, pipelining) })
				})
			}
		}
	}
}

func misbehave(t *testing.T, stage message.Stage, deed misdeed, pipelining bool) {
	ctx := context.Background()
	closed := 0
	h := &hostile{stage: stage, deed: deed, pipelining: pipelining}
	done := make(chan struct{})
	o := testOptions(func(context.Context, string, string) (net.Conn, error) {
		client, server := loadgen.Pipe()
		h.conn = server
		go func() { defer close(done); h.serve() }()
		return client, nil
	})
	o.OnClose = func() { closed++ }
	start := time.Now()
	c, fail := outbound.Dial(ctx, o)
	dialed, result, usable := wanted(stage, deed.kind)
	if c != nil {
		defer c.Close()
	}
	if dialed != (fail == nil) {
		t.Fatalf("dial: %v", fail)
	}
	if fail != nil {
		// What follows the greeting in one breath is noticed before EHLO.
		noticed := stage == message.StageBanner && strings.HasPrefix(deed.kind, "extra") && fail.Stage == message.StageEHLO
		if fail.Stage != stage && !noticed {
			t.Errorf("failure at stage %v, want %v", fail.Stage, stage)
		}
		if closed != 1 {
			t.Errorf("socket closed %d times", closed)
		}
		if took := time.Since(start); took > 2*time.Minute {
			t.Errorf("took %v", took)
		}
		<-done
		return
	}
	if res := c.Send(ctx, envelope("b@example.net")); !res.Usable || res.Outcomes[0].Result != message.Deferred {
		t.Fatalf("first message: %v, usable %v", res.Outcomes[0].Reply, res.Usable)
	}
	start = time.Now()
	res := c.Send(ctx, envelope("b@example.net"))
	out := res.Outcomes[0]
	if out.Result != result || res.Usable != usable {
		t.Errorf("got %v usable=%v (%v), want %v usable=%v", out.Result, res.Usable, out.Reply, result, usable)
	}
	if out.Reply == nil || out.Reply.RemoteHost != "mx.example.net" || out.Reply.RemoteIP != o.Addr.Addr() {
		t.Errorf("reply incomplete: %+v", out.Reply)
	}
	if deed.kind == "broken" && (!out.Reply.Local || out.Reply.Code != 0) {
		t.Errorf("a failure of ours must be marked so: %+v", out.Reply)
	}
	if deed.kind == "refuse5" && out.Result == message.Failed && (out.Reply.Code != 554 || out.Reply.Stage != stage || out.Reply.Enhanced != message.Enhanced{5, 7, 1}) {
		t.Errorf("the server's words are lost: %+v", out.Reply)
	}
	if took := time.Since(start); took > 11*time.Minute {
		t.Errorf("took %v", took)
	}
	if !usable && closed != 1 {
		t.Errorf("socket closed %d times before Quit", closed)
	}
	c.Quit(ctx)
	if closed != 1 {
		t.Errorf("socket closed %d times", closed)
	}
	<-done
	if h.violation != "" {
		t.Error("the server saw", h.violation)
	}
}

// Whatever a server does while the next message has been begun: each message is
// told its own fate, and no stray reply bounces one.
func TestMisdeedsBesideABegunMessageStayWithTheirMessage(t *testing.T) {
	t.Parallel()
	for _, deed := range misdeeds() {
		t.Run("the first dot/"+deed.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				want, next := message.Delivered, message.Deferred
				switch deed.kind {
				case "refuse4":
					want, next = message.Deferred, message.Delivered
				case "refuse5":
					want, next = message.Failed, message.Delivered
				case "goodbye":
					want = message.Deferred
				case "broken", "extra5":
					want = message.Unknown
				}
				misbehaveAhead(t, message.StageDot, 1, deed, want, next)
			})
		})
		for _, stage := range []message.Stage{message.StageMail, message.StageRcpt, message.StageData, message.StageDot} {
			t.Run(fmt.Sprintf("%v of the second/%s", stage, deed.name), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					_, next, _ := wanted(stage, deed.kind)
					misbehaveAhead(t, stage, 2, deed, message.Delivered, next)
				})
			})
		}
	}
}

func misbehaveAhead(t *testing.T, stage message.Stage, at int, deed misdeed, want, next message.Result) {
	ctx := context.Background()
	h := &hostile{stage: stage, deed: deed, pipelining: true, at: at, ahead: true}
	done := make(chan struct{})
	c, fail := outbound.Dial(ctx, testOptions(func(context.Context, string, string) (net.Conn, error) {
		client, server := loadgen.Pipe()
		h.conn = server
		go func() { defer close(done); h.serve() }()
		return client, nil
	}))
	if fail != nil {
		t.Fatal(fail)
	}
	first, second := envelope("b@example.net"), envelope("c@example.net")
	first.Next = func() *outbound.Envelope { return second }
	res := c.Send(ctx, first)
	if out := res.Outcomes[0]; out.Result != want {
		t.Errorf("first message: %v (%v), want %v", out.Result, out.Reply, want)
	}
	if (res.Next == second) != res.Usable {
		t.Errorf("begun %v, usable %v", res.Next == second, res.Usable)
	}
	res = c.Send(ctx, second)
	if out := res.Outcomes[0]; out.Result != next {
		t.Errorf("second message: %v (%v), want %v", out.Result, out.Reply, next)
	}
	c.Quit(ctx)
	<-done
	if h.violation != "" {
		t.Error("the server saw", h.violation)
	}
}
