package outbound

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// tape is a connection that plays what it is given, one part per Read, and
// records what is written. It never waits.
type tape struct {
	parts   [][]byte
	written bytes.Buffer
	// dotted is how much had been written when the final dot was; reads counts
	// the parts played since.
	dotted, reads int
	closed        bool
}

func (f *tape) Read(p []byte) (int, error) {
	if f.closed {
		return 0, net.ErrClosed
	}
	if len(f.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(p, f.parts[0])
	if f.parts[0] = f.parts[0][n:]; len(f.parts[0]) == 0 {
		f.parts = f.parts[1:]
	}
	if f.dotted > 0 {
		f.reads++
	}
	return n, nil
}

func (f *tape) Write(p []byte) (int, error) {
	if f.closed {
		return 0, net.ErrClosed
	}
	f.written.Write(p)
	if f.dotted == 0 && bytes.HasSuffix(f.written.Bytes(), []byte("\r\n.\r\n")) {
		f.dotted = f.written.Len()
	}
	return len(p), nil
}

func (f *tape) Close() error                     { f.closed = true; return nil }
func (f *tape) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (f *tape) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (f *tape) SetDeadline(time.Time) error      { return nil }
func (f *tape) SetReadDeadline(time.Time) error  { return nil }
func (f *tape) SetWriteDeadline(time.Time) error { return nil }

// sendOn sends one message on a conversation already greeted.
func sendOn(f *tape, header [][]byte, body []byte, plain bool) *Result {
	c := &Conn{raw: f, nc: f, caps: Caps{Pipelining: true}}
	c.opts.Timeouts = c.opts.Timeouts.withDefaults()
	return c.Send(context.Background(), &Envelope{
		From:   message.MustAddress("a@example.com"),
		To:     []message.Recipient{{Address: message.MustAddress("b@example.net")}},
		Header: header, Body: body, Plain: plain,
	})
}

const envelopeWire = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"

// checkWire holds the bytes of one message to the promise: refused unsent, or
// lines of at most 998 octets ended by CRLF, none of them a lone dot but the
// last, that unstuff to what was handed in. It is written octet by octet on
// purpose, unlike the code it judges.
func checkWire(t *testing.T, header [][]byte, body []byte) (sent bool) {
	t.Helper()
	f := &tape{parts: [][]byte{[]byte("250 ok\r\n250 ok\r\n354 go\r\n"), []byte("250 ok\r\n")}}
	res := sendOn(f, header, body, false)
	out := res.Outcomes[0]
	if out.Result == message.Failed {
		if !out.Reply.Local || out.Reply.Enhanced != (message.Enhanced{5, 6, 0}) || f.written.Len() > 0 || !res.Usable {
			t.Fatalf("%q: refused with %v after %q", body, out.Reply, f.written.Bytes())
		}
		return false
	}
	if out.Result != message.Delivered {
		t.Fatalf("%q: %v", body, out.Reply)
	}
	if !bytes.HasPrefix(body, []byte(".")) && !bytes.Contains(body, []byte("\n.")) {
		known := &tape{parts: [][]byte{[]byte("250 ok\r\n250 ok\r\n354 go\r\n"), []byte("250 ok\r\n")}}
		if sendOn(known, header, body, true); !bytes.Equal(known.written.Bytes(), f.written.Bytes()) {
			t.Fatalf("%q: known to be plain it became %q", body, known.written.Bytes())
		}
	}
	wire, ok := bytes.CutPrefix(f.written.Bytes(), []byte(envelopeWire))
	if !ok {
		t.Fatalf("%q: wrote %q", body, f.written.Bytes())
	}
	if res.Bytes != int64(len(wire)) {
		t.Fatalf("%q: %d octets reported, %d written", body, res.Bytes, len(wire))
	}
	var got, line []byte
	ended := false
	for i := 0; i < len(wire); i++ {
		switch ch := wire[i]; {
		case ended:
			t.Fatalf("%q: octets behind the final dot in %q", body, wire)
		case ch == 0 || ch == '\n':
			t.Fatalf("%q: octet %d in %q", body, ch, wire)
		case ch != '\r':
			line = append(line, ch)
		case i+1 == len(wire) || wire[i+1] != '\n':
			t.Fatalf("%q: bare CR in %q", body, wire)
		default:
			i++
			switch {
			case string(line) == ".":
				ended = true
			case len(line) > 0 && line[0] == '.':
				line = line[1:]
				fallthrough
			default:
				if len(line) > 998 {
					t.Fatalf("line of %d octets", len(line))
				}
				got = append(append(got, line...), "\r\n"...)
			}
			line = line[:0]
		}
	}
	if want := append(bytes.Join(header, nil), body...); !ended || !bytes.Equal(got, want) {
		t.Fatalf("%q: arrives as %q (ended %v)", want, got, ended)
	}
	return true
}

func TestWireCarriesExactlyTheMessageOrNothing(t *testing.T) {
	t.Parallel()
	alphabet := []byte("\r\n.\x00a")
	sent, refused := 0, 0
	var walk func(prefix []byte)
	walk = func(prefix []byte) {
		if checkWire(t, nil, prefix) {
			sent++
		} else {
			refused++
		}
		if len(prefix) == 7 {
			return
		}
		for _, c := range alphabet {
			walk(append(prefix[:len(prefix):len(prefix)], c))
		}
	}
	walk(nil)
	if sent+refused != 97656 || sent < 30 {
		t.Errorf("%d sent, %d refused", sent, refused)
	}
}

func TestWireCarriesLongMessagesInManyParts(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		part := func(lines int) []byte {
			var b []byte
			for range lines {
				switch r.IntN(5) {
				case 0:
					b = append(b, '.')
				case 1:
					b = append(b, ".."...)
				}
				b = append(b, strings.Repeat("x", r.IntN(990))...)
				b = append(b, "\r\n"...)
			}
			return b
		}
		var header [][]byte
		for range r.IntN(10) {
			header = append(header, part(r.IntN(3)))
		}
		if !checkWire(t, header, part(r.IntN(40))) {
			t.Fatal("refused")
		}
	}
}

func TestHeaderPartsAreHeldToTheSameRules(t *testing.T) {
	t.Parallel()
	for _, h := range []string{"A: b", "A: b\n", "A: b\r", "A: \x00\r\n", "A: \r b\r\n", strings.Repeat("x", 999) + "\r\n"} {
		if checkWire(t, [][]byte{[]byte("X: y\r\n"), []byte(h)}, []byte("\r\nbody\r\n")) {
			t.Errorf("%q was sent", h)
		}
	}
}

func FuzzWire(f *testing.F) {
	for _, s := range []string{"", "a\r\n", ".\r\n", "..\r\n.a\r\n", "a\n.\r\n", "\r\n.\r\n", "a\r.\r\n", "\x00"} {
		f.Add([]byte(s), []byte(s))
	}
	f.Fuzz(func(t *testing.T, header, body []byte) {
		if len(header)+len(body) > readAhead {
			return // the tape does not play to a reader beside the writer
		}
		checkWire(t, [][]byte{header}, body)
	})
}

// FuzzConversation plays anything to a client that wants to deliver one message.
// The input is cut at 0xFF into what comes in one piece.
func FuzzConversation(f *testing.F) {
	for _, s := range []string{
		"220 hi\r\n\xff250-mx\r\n250 PIPELINING\r\n\xff250 ok\r\n250 ok\r\n354 go\r\n\xff250 queued\r\n\xff221 bye\r\n",
		"220 hi\r\n\xff502 no\r\n\xff250 mx\r\n\xff250 ok\r\n\xff250 ok\r\n\xff354 go\r\n\xff250 queued\r\n421 bye\r\n",
		"220 hi\r\n\xff250-mx\r\n250-SIZE 10\r\n250 LIMITS RCPTMAX=1\r\n\xff",
		"220 hi\r\n\xff250-mx\r\n250-PIPELINING\r\n250 DSN\r\n\xff250 ok\r\n550 no\r\n354 go\r\n\xff550 no\r\n",
		"220 hi\r\n\xff250-mx\r\n250 STARTTLS\r\n\xff220 go\r\n\xff\x16\x03\x03\x00\x00",
		"554-no\r\n554 service\r\n", "220 hi\r\n250 x\r\n", "2", "\r\n\r\n", "421 \x1b[2J\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tp := &tape{}
		for part := range bytes.SplitSeq(data, []byte{0xFF}) {
			if len(part) > 0 {
				tp.parts = append(tp.parts, bytes.Clone(part))
			}
		}
		closed := 0
		c, fail := Dial(context.Background(), Options{
			Dial:    func(context.Context, string, string) (net.Conn, error) { return tp, nil },
			EHLO:    "mta1.example.com",
			OnClose: func() { closed++ },
		})
		if fail != nil {
			if fail.Stage == message.StageNone || !tp.closed || closed != 1 {
				t.Fatalf("%+v, closed %d", fail, closed)
			}
			return
		}
		tp.dotted = 0
		e := &Envelope{
			From: message.MustAddress("a@example.com"),
			To:   []message.Recipient{{Address: message.MustAddress("b@example.net")}, {Address: message.MustAddress("c@example.net")}},
			Body: []byte("Subject: x\r\n\r\n.\r\n"),
		}
		res := c.Send(context.Background(), e)
		for _, o := range res.Outcomes {
			if o.Reply == nil || len(o.Reply.Text) > maxReply+2*maxLine || o.Finished.Before(o.Started) {
				t.Fatalf("outcome %+v", o)
			}
			switch o.Result {
			case message.Delivered:
				if o.Reply.Code/100 != 2 || tp.dotted == 0 || tp.reads == 0 {
					t.Fatalf("delivered by %v: dot written %v, read behind it %d", o.Reply, tp.dotted > 0, tp.reads)
				}
			case message.Unknown:
				if tp.dotted == 0 || res.Usable {
					t.Fatalf("unknown without a dot, or usable: %v", o.Reply)
				}
			case message.Failed:
				if o.Reply.Code/100 != 5 {
					t.Fatalf("failed by %v", o.Reply)
				}
			}
		}
		if tp.dotted > 0 && tp.written.Len() > tp.dotted {
			t.Fatalf("%q behind the final dot", tp.written.Bytes()[tp.dotted:])
		}
		if res.Usable == tp.closed {
			t.Fatalf("usable %v, closed %v", res.Usable, tp.closed)
		}
		c.Quit(context.Background())
		if closed != 1 {
			t.Fatalf("closed %d times", closed)
		}
	})
}
