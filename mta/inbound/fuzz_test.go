package inbound

import (
	"bytes"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tradewind-mta/tradewind/message"
)

// FuzzConnection says data to the engine in reads that end at each 0xFE octet,
// after a greeting or, if deep, after a whole envelope. Whatever happens, the
// replies are well formed, accepted messages are clean, and nothing is left.
func FuzzConnection(f *testing.F) {
	for _, d := range dialogues {
		f.Add([]byte(strings.Join(d.groups, "\xfe")), false)
		f.Add([]byte(strings.Join(d.groups[max(len(d.groups)-1, 0):], "\xfe")), true)
	}
	f.Add([]byte("DATA\r\n\xfehello\r\n.\r\nQUIT\r\n"), true)
	f.Add([]byte("BDAT 5\r\nhelloBDAT 2 LAST\r\n\r\n"), true)
	f.Add([]byte("AUTH PLAIN AHUAcA==\r\n\xfeAUTH LOGIN\r\n\xfedQ==\r\n\xfecA==\r\n"), false)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), false)
	cfg := testConfig()
	cfg.MaxMessageBytes, cfg.MaxRecipients = 4000, 5
	cfg.AllowLoopbackAuth = true
	f.Fuzz(func(t *testing.T, data []byte, deep bool) {
		m := &mailbox{passwords: map[string]string{"u": "p"}}
		s := New(cfg, m, Deps{})
		nc := &scriptConn{chunks: [][]byte{[]byte(hello)}}
		if deep {
			nc.chunks = append(nc.chunks, []byte(envelope))
		}
		nc.chunks = append(nc.chunks, bytes.Split(data, []byte{0xFE})...)
		newConn(s, nc).serve()
		if testutil.ToFloat64(s.m.refusals[refusedPanic]) != 0 {
			t.Error("panicked")
		}
		if !nc.closed {
			t.Error("not closed")
		}
		checkReplies(t, nc.out.String())
		for _, text := range m.messages {
			if longest, _, clean := checkLines([]byte(text)); !clean || longest > 998 || len(text) > 4000 {
				t.Errorf("accepted %q", text)
			}
		}
		if n := strings.Count(nc.out.String(), "Ok: queued"); n != len(m.messages) {
			t.Errorf("%d messages, %d acknowledged", len(m.messages), n)
		}
		for _, call := range m.calls {
			if strings.ContainsAny(call, "\r\n\x00") {
				t.Errorf("backend called with %q", call)
			}
		}
		for i := range s.m.sessions {
			if s.m.sessions[i].Load() != 0 {
				t.Errorf("session left in state %s", phaseNames[i])
			}
		}
		if s.bufs.used.Load() != 0 {
			t.Error("buffers left")
		}
	})
}

// checkReplies holds what we say to RFC 5321, 4.2.
func checkReplies(t *testing.T, out string) {
	t.Helper()
	for line := range strings.SplitSeq(strings.TrimSuffix(out, "\r\n"), "\r\n") {
		if len(line) < 4 || len(line) > 510 || line[0] < '2' || line[0] > '5' || (line[3] != ' ' && line[3] != '-') || !printableText(line, 510) {
			t.Errorf("bad reply line %q", line)
		}
	}
}

// FuzzMessageText frames arbitrary text, cut in two, as the referee does.
func FuzzMessageText(f *testing.F) {
	f.Add([]byte("hi\r\n.\r\n"), 3)
	f.Add([]byte("..\r\n.x\r\n...\r\n.\r\n"), 5)
	f.Add([]byte("a\n.\r\n.\r\r\n.\r\n"), 8)
	f.Add([]byte(".\r\n"), 1)
	f.Add(append(bytes.Repeat([]byte("x\r\n"), 9000), ".\r\n"...), 20000)
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		w := referee(string(text))
		if len(w.messages)+w.refused == 0 {
			return
		}
		cut = min(max(cut, 0), len(text))
		cfg := testConfig()
		cfg.MaxTextLine = 1 << 30
		m := &mailbox{}
		out := talk(t, cfg, m, firstEnvelope, string(text[:cut]), string(text[cut:]))
		first := w.refused == 0 || len(w.messages) > 0 && strings.HasPrefix(codes(out), "220 250 250 250 354 250")
		switch {
		case first && (len(m.messages) == 0 || m.messages[0] != w.messages[0]):
			t.Errorf("got %q, want %q", m.messages, w.messages)
		case !first && !strings.HasPrefix(codes(out), "220 250 250 250 354 550"):
			t.Errorf("got %s for a message to refuse", codes(out))
		}
	})
}

// FuzzPath: every address that is taken prints as something that parses to
// itself, and no path swallows a parameter.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"<a@b.test> SIZE=1", `<"a> b"@b.test>`, `<"a\"b"@b.test>`, "<>", "<@a,@b:c@d.test>", "<\u00fc@b\u00fccher.test>", `<"@x.test>`, "<a@[IPv6:::1]>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		path, rest, ok := cutPath(s)
		if !ok {
			return
		}
		if "<"+path+">"+rest != s {
			t.Fatalf("%q was cut into %q and %q", s, path, rest)
		}
		a, e := parsePath(path, true)
		if e != nil {
			return
		}
		again, err := message.ParseAddress(a.String())
		if err != nil || again != a {
			t.Errorf("%q printed as %q, which parses to %q, %v", path, a, again, err)
		}
		if a.Local() != path[:len(a.Local())] {
			t.Errorf("local part of %q became %q", path, a.Local())
		}
	})
}

// FuzzParams: what the parameters of MAIL and RCPT decode to is fit for one
// line of a report.
func FuzzParams(f *testing.F) {
	for _, s := range []string{
		" SIZE=1 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=a+2Bb AUTH=<>",
		" NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;a+40b", ` ORCPT=utf-8;\x{FC}@b.test`, " ORCPT=utf-8;\u00fc@b.test",
		" X", " A=B", " ENVID=+0D+0A",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var o smtp.MailOptions
		if parseMailParams(s, &o) == nil {
			if o.Size < 0 || !cleanText(o.EnvelopeID) || o.Auth != nil && !cleanText(*o.Auth) {
				t.Errorf("%q: %+v", s, o)
			}
		}
		var r smtp.RcptOptions
		if parseRcptParams(s, true, &r) == nil {
			if !cleanText(r.OriginalRecipient) || len(r.Notify) > 3 {
				t.Errorf("%q: %+v", s, r)
			}
		}
	})
}

func FuzzXtext(f *testing.F) {
	f.Add("a+2Bb")
	f.Add("\x00\xff =+")
	f.Fuzz(func(t *testing.T, s string) {
		enc := string(appendXtext(nil, s))
		if got, ok := decodeXtext(enc); !ok || got != s {
			t.Errorf("%q became %q became %q", s, enc, got)
		}
		if got, ok := decodeXtext(s); ok {
			again, ok := decodeXtext(string(appendXtext(nil, got)))
			if !ok || again != got {
				t.Errorf("%q decodes to %q and back to %q", s, got, again)
			}
		}
		if got, ok := decodeUTF8Addr(s); ok && !cleanText(got) {
			t.Errorf("%q decodes to %q", s, got)
		}
	})
}
