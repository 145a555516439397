package inbound

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	firstEnvelope  = "EHLO x\r\nMAIL FROM:<a@a.test>\r\nRCPT TO:<a@a.test>\r\nDATA\r\n"
	secondEnvelope = "MAIL FROM:<b@b.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n"
	secondBody     = "bye\r\n.\r\n"
)

// want is what RFC 5321 makes of a stream.
type want struct {
	messages []string
	refused  int // messages refused for their framing
	mails    int // MAIL commands run, the first one included
}

// referee judges what follows the first DATA, by splitting strings: slow,
// short, and sharing nothing with the engine.
func referee(stream string) want {
	w := want{mails: 1}
	message := func() bool {
		text, rest, found := strings.Cut("\r\n"+stream, "\r\n.\r\n")
		if !found {
			return false
		}
		stream = rest
		lines := strings.Split(text, "\r\n")[1:]
		for i, l := range lines {
			if strings.ContainsAny(l, "\r\n\x00") {
				w.refused++
				return true
			}
			lines[i] = strings.TrimPrefix(l, ".") + "\r\n"
		}
		w.messages = append(w.messages, strings.Join(lines, ""))
		return true
	}
	if !message() {
		return w
	}
	state := 0
	for {
		line, rest, found := strings.Cut(stream, "\n")
		if !found || !strings.HasSuffix(line, "\r") || strings.ContainsAny(line[:len(line)-1], "\r\x00") {
			return w
		}
		stream = rest
		switch l := strings.TrimSuffix(line, "\r"); {
		case state == 0 && l == "MAIL FROM:<b@b.test>":
			w.mails++
			state = 1
		case state == 1 && l == "RCPT TO:<b@b.test>":
			state = 2
		case state == 2 && l == "DATA":
			state = 0
			if !message() {
				return w
			}
		}
	}
}

// TestOnlyCRLFDotCRLFEndsAMessage puts every string of up to seven octets over
// {CR, LF, dot, NUL, a} between a body and a second envelope: 97,656 streams,
// each whole and octet by octet; up to length four also cut in two at every
// offset, and above that at every offset in and next to the string. The second
// envelope's text always comes in a read of its own, so that nothing but the
// framing of the first message keeps it from being taken.
func TestOnlyCRLFDotCRLFEndsAMessage(t *testing.T) {
	t.Parallel()
	for part := range 5 {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			e := newEnumerator(t)
			longest := 7
			if testing.Short() {
				longest = 5
			}
			if part == 0 {
				e.check("")
			}
			for n := 1; n <= longest; n++ {
				e.enumerate(make([]byte, n), part)
			}
			t.Logf("%d streams, %d connections", e.streams, e.runs)
		})
	}
}

type enumerator struct {
	t             *testing.T
	m             *mailbox
	s             *Server
	nc            scriptConn
	streams, runs int
}

func newEnumerator(t *testing.T) *enumerator {
	m := &mailbox{}
	cfg := testConfig()
	cfg.MaxErrors = 100
	return &enumerator{t: t, m: m, s: New(cfg, m, Deps{})}
}

func (e *enumerator) enumerate(s []byte, first int) {
	const alphabet = "\r\n.\x00a"
	s[0] = alphabet[first]
	for n := 0; ; n++ {
		rest := n
		for i := 1; i < len(s); i++ {
			s[i] = alphabet[rest%len(alphabet)]
			rest /= len(alphabet)
		}
		if rest > 0 {
			return
		}
		e.check(string(s))
	}
}

func (e *enumerator) check(s string) {
	e.streams++
	const body = "hi"
	a, b := body+s+secondEnvelope, secondBody
	w := referee(a + b)
	e.run(s, w, a, b)
	single := make([]string, 0, len(a)+len(b))
	for i := range a {
		single = append(single, a[i:i+1])
	}
	for i := range b {
		single = append(single, b[i:i+1])
	}
	e.run(s, w, single...)
	last := len(body) + len(s) + 3
	if len(s) <= 4 {
		last = len(a) - 1
		for i := 1; i < len(b); i++ {
			e.run(s, w, a, b[:i], b[i:])
		}
	}
	for i := 1; i <= last; i++ {
		e.run(s, w, a[:i], a[i:], b)
	}
}

func (e *enumerator) run(s string, w want, chunks ...string) {
	e.runs++
	*e.m = mailbox{calls: e.m.calls[:0], messages: e.m.messages[:0]}
	e.nc.chunks = append(e.nc.chunks[:0], []byte(firstEnvelope))
	for _, c := range chunks {
		e.nc.chunks = append(e.nc.chunks, []byte(c))
	}
	e.nc.out.Reset()
	newConn(e.s, &e.nc).serve()

	mails := 0
	for _, c := range e.m.calls {
		if strings.HasPrefix(c, "MAIL ") {
			mails++
		}
	}
	refused := bytes.Count(e.nc.out.Bytes(), []byte("550 5.6.0"))
	taken := bytes.Count(e.nc.out.Bytes(), []byte("250 2.0.0 Ok: queued"))
	if !slices.Equal(e.m.messages, w.messages) || mails != w.mails || refused != w.refused || taken != len(w.messages) {
		e.t.Fatalf("%q in %q:\ngot  %q, %d MAIL, %d refused, %d acknowledged\nwant %q, %d MAIL, %d refused\n%s",
			s, chunks, e.m.messages, mails, refused, taken, w.messages, w.mails, w.refused, e.nc.out.String())
	}
}
