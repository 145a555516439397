//go:build interop && linux

package interop

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// Postfix's own load tools. They live outside of an ordinary PATH.
const (
	smtpSource = "/usr/sbin/smtp-source"
	smtpSink   = "/usr/sbin/smtp-sink"
)

// listening waits until somebody answers at addr.
func listening(t *testing.T, addr string) {
	t.Helper()
	eventually(t, addr+" answers", func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

func TestSMTPSourceSubmitsAThousandMessages(t *testing.T) {
	t.Parallel()
	sink := receive(t, "127.0.0.1:0", loadgen.SinkConfig{})
	e := start(t, toSink(sink.addr))
	const n = 1000
	for _, c := range []struct {
		name string
		args []string
	}{
		{"five sessions", []string{"-s", "5"}},
		{"a connection for each message", []string{"-s", "10", "-d"}},
		{"three recipients each", []string{"-s", "5", "-r", "3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := sink.Counts()
			mustRun(t, smtpSource, append(c.args, "-m", strconv.Itoa(n), "-l", "4096", "-N", "-f", "source@example.com", "-t", "rcpt@example.net", e.smtp[0])...)
			recipients := int64(n)
			if c.name == "three recipients each" {
				recipients *= 3
			}
			eventually(t, "the sink has them all", func() bool {
				return sink.Counts().Recipients-before.Recipients >= recipients
			})
			if got := sink.Counts().Recipients - before.Recipients; got != recipients {
				t.Errorf("%d recipients, want %d", got, recipients)
			}
		})
	}
	all := e.settled(t, 5*n)
	if a, d := len(only(all, "message.accepted")), len(only(all, "message.delivered")); a != 5*n || d != 5*n {
		t.Errorf("%d accepted and %d delivered, want %d", a, d, 5*n)
	}
	e.drained(t)
}

// stone is Postfix's smtp-sink with some of SMTP left out or failing.
type stone struct {
	*process
	name, domain, addr, dump string
}

func sinkOf(t *testing.T, name string, args ...string) *stone {
	t.Helper()
	// Not t.TempDir: nobody else may go through that.
	dump, err := os.MkdirTemp("", "tradewind-stone-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dump) })
	if err := os.Chmod(dump, 0o777); err != nil {
		t.Fatal(err)
	}
	s := &stone{name: name, domain: name + ".example", addr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), dump: dump}
	if os.Getuid() == 0 {
		args = append(args, "-u", "nobody") // it insists
	}
	s.process = launch(t, exec.Command(smtpSink, append(args, "-d", filepath.Join(dump, "mail."), s.addr, "100")...))
	listening(t, s.addr)
	return s
}

// mails are the messages dumped so far, less the fields smtp-sink puts on top.
func (s *stone) mails(t *testing.T) (all [][]byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dump, "mail.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasSuffix(b, []byte("\n\n")) { // smtp-sink is still writing
			continue
		}
		all = append(all, b)
	}
	return all
}

func TestSMTPSinkLacksExtensions(t *testing.T) {
	t.Parallel()
	stones := []*stone{
		sinkOf(t, "full"),
		sinkOf(t, "no-8bitmime", "-8"),
		sinkOf(t, "no-esmtp", "-e"),
		sinkOf(t, "no-pipelining", "-p"),
		sinkOf(t, "no-enhanced-codes", "-E"),
		sinkOf(t, "no-auth", "-a"),
		sinkOf(t, "bare", "-8", "-p", "-E", "-N", "-a", "-C", "-F"),
	}
	var config strings.Builder
	for _, s := range stones {
		fmt.Fprintf(&config, "[[route]]\ndomains = [%q]\nnext_hops = [%q]\ntls = \"off\"\n", s.domain, s.addr)
	}
	doors, rest, _ := strings.Cut(toSink("127.0.0.1:1"), "[[route]]")
	e := start(t, doors+config.String()+"[[route]]"+rest)

	const text = "Grüße: naïve façade, 日本語.\r\n.\r\n..two\r\nend\r\n"
	const each = 20
	for _, s := range stones {
		c := dial(t, e.smtp[0])
		c.ask("EHLO client.example", "250")
		for i := range each {
			c.ask("MAIL FROM:<me@example.com> BODY=8BITMIME", "250")
			c.ask(fmt.Sprintf("RCPT TO:<u%d@%s>", i, s.domain), "250")
			c.ask("DATA", "354")
			c.say("From: me@example.com\r\nTo: you@" + s.domain + "\r\nSubject: eight bits\r\n" +
				"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
				strings.ReplaceAll(text, "\r\n.", "\r\n..") + ".\r\n")
			c.expect("250")
		}
		c.ask("QUIT", "221")
	}
	all := e.settled(t, each*len(stones))
	if d := len(only(all, "message.delivered")); d != each*len(stones) {
		t.Errorf("%d delivered, want %d: %+v", d, each*len(stones), only(all, "message.bounced"))
	}
	for _, s := range stones {
		t.Run(s.name, func(t *testing.T) {
			var mails [][]byte
			eventually(t, "the dumps are complete", func() bool {
				mails = s.mails(t)
				return len(mails) >= each
			})
			if len(mails) != each {
				t.Errorf("%d messages, want %d", len(mails), each)
			}
			for _, raw := range mails {
				m, err := mail.ReadMessage(bytes.NewReader(raw))
				if err != nil {
					t.Fatalf("%v\n%s", err, raw)
				}
				var body io.Reader = m.Body
				encoding := m.Header.Get("Content-Transfer-Encoding")
				switch strings.ToLower(encoding) {
				case "quoted-printable":
					body = quotedprintable.NewReader(body)
				case "base64":
					body = base64.NewDecoder(base64.StdEncoding, body)
				}
				got, err := io.ReadAll(body)
				if err != nil {
					t.Fatal(err)
				}
				want := strings.ReplaceAll(text, "\r\n", "\n")
				if got := strings.TrimRight(strings.ReplaceAll(string(got), "\r\n", "\n"), "\n") + "\n"; got != want {
					t.Errorf("the text is %q, want %q, by %q", got, want, encoding)
				}
				stripped := s.name == "no-8bitmime" || s.name == "no-esmtp" || s.name == "bare"
				if eight := bytes.ContainsFunc(raw, func(r rune) bool { return r > 0x7E }); eight == stripped {
					t.Errorf("eight-bit octets: %v, want %v\n%s", eight, !stripped, raw)
				}
				if _, _, err := mime.ParseMediaType(m.Header.Get("Content-Type")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	e.drained(t)
}

func TestSMTPSinkFails(t *testing.T) {
	t.Parallel()
	cases := []struct {
		*stone
		typ, stage string
		code       int
	}{
		{sinkOf(t, "hard-rcpt", "-f", "rcpt"), "message.bounced", "rcpt", 500},
		{sinkOf(t, "hard-mail", "-f", "mail"), "message.bounced", "mail", 500},
		{sinkOf(t, "hard-data", "-f", "data"), "message.bounced", "data", 500},
		{sinkOf(t, "hard-dot", "-f", "."), "message.bounced", "dot", 500},
		{sinkOf(t, "soft-rcpt", "-r", "rcpt"), "message.deferred", "rcpt", 450},
		{sinkOf(t, "soft-dot", "-r", "."), "message.deferred", "dot", 450},
		{sinkOf(t, "hang-up-at-data", "-q", "data"), "message.deferred", "data", 0},
	}
	var config strings.Builder
	for _, s := range cases {
		fmt.Fprintf(&config, "[[route]]\ndomains = [%q]\nnext_hops = [%q]\ntls = \"off\"\n", s.domain, s.addr)
	}
	doors, rest, _ := strings.Cut(toSink("127.0.0.1:1"), "[[route]]")
	e := start(t, doors+config.String()+"[[route]]"+rest)
	for _, c := range cases {
		if dialogue, status := swaks(t, e.smtp[0], "--to", "you@"+c.domain); status != 0 {
			t.Fatalf("exit status %d\n%s", status, dialogue)
		}
	}
	for _, c := range cases {
		var got []fact
		eventually(t, c.name+" leads to "+c.typ, func() bool {
			got = nil
			for _, f := range only(e.events(t), c.typ) {
				if strings.HasSuffix(f.Recipient, "@"+c.domain) {
					got = append(got, f)
				}
			}
			return len(got) > 0
		})
		if r := got[0].Reply; r.Stage != c.stage || c.code != 0 && r.Code != c.code {
			t.Errorf("%s: %+v, want stage %s, code %d", c.name, r, c.stage, c.code)
		}
		if got[0].Terminal != (c.typ == "message.bounced") {
			t.Errorf("%s: terminal is %v", c.name, got[0].Terminal)
		}
	}
	e.drained(t)
}
