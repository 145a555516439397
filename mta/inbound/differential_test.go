package inbound

import (
	"bufio"
	"io"
	"log"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"
)

// differ lists the cases in which the two servers may answer differently.
var differ = map[string]bool{
	"refused-text":   true,
	"nested-mail":    true,
	"exact-size":     true,
	"blank-in-helo":  true,
	"bare-lf":        true,
	"bare-cr":        true,
	"nul":            true,
	"quoted-local":   true,
	"long-text-line": true,
	"no-space-param": true,
	"source-route":   true,
}

// dialogues are said one group after another, each once the replies to the one
// before have come.
var dialogues = []struct {
	id     string
	groups []string
}{
	{"plain", []string{"MAIL FROM:<a@a.test>\r\n", "RCPT TO:<b@b.test>\r\n", "DATA\r\n", "Subject: x\r\n\r\nhello\r\n.\r\n", "QUIT\r\n"}},
	{"pipelined", []string{"MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nRCPT TO:<c@c.test>\r\nDATA\r\n", "x\r\n.\r\n", "QUIT\r\n"}},
	{"two-messages", []string{envelope + "DATA\r\n", "one\r\n.\r\n", envelope + "DATA\r\n", "two\r\n.\r\n", "QUIT\r\n"}},
	{"stuffed", []string{envelope + "DATA\r\n", "..\r\n...\r\n.. x\r\na.b\r\n.\r\n"}},
	{"empty-body", []string{envelope + "DATA\r\n", ".\r\n"}},
	{"null-sender", []string{"MAIL FROM:<>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n", "x\r\n.\r\n"}},
	{"refused-recipient", []string{"MAIL FROM:<a@a.test>\r\nRCPT TO:<no@b.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n", "x\r\n.\r\n"}},
	{"all-recipients-refused", []string{"MAIL FROM:<a@a.test>\r\nRCPT TO:<no@b.test>\r\nDATA\r\nRSET\r\n"}},
	{"refused-sender", []string{"MAIL FROM:<no@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n"}},
	{"refused-text", []string{envelope + "DATA\r\n", "refuse me\r\n.\r\n", "NOOP\r\n"}},
	{"rset", []string{envelope + "RSET\r\nDATA\r\n"}},
	{"ehlo-again", []string{envelope + "EHLO y\r\nDATA\r\n"}},
	{"noop-vrfy", []string{"NOOP\r\nVRFY a\r\n"}},
	{"order", []string{"RCPT TO:<b@b.test>\r\nDATA\r\n"}},
	{"unknown-verb", []string{"WHAT\r\nNOOP\r\n"}},
	{"bad-address", []string{"MAIL FROM:<a a@a.test>\r\nNOOP\r\n"}},
	{"no-brackets", []string{"MAIL FRM:<a@a.test>\r\nNOOP\r\n"}},
	{"size", []string{"MAIL FROM:<a@a.test> SIZE=100\r\nRSET\r\nMAIL FROM:<a@a.test> SIZE=100000\r\n"}},
	{"too-large", []string{envelope + "DATA\r\n", strings.Repeat("0123456789\r\n", 100) + ".\r\n", "NOOP\r\n"}},
	{"eight-bit", []string{"MAIL FROM:<a@a.test> BODY=8BITMIME\r\nRCPT TO:<b@b.test>\r\nDATA\r\n", "h\u00e9\r\n.\r\n"}},
	{"utf8", []string{"MAIL FROM:<\u00fc@a.test> SMTPUTF8\r\nRCPT TO:<b@b.test>\r\n"}},
	{"dsn", []string{"MAIL FROM:<a@a.test> RET=HDRS ENVID=abc\r\nRCPT TO:<b@b.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b@b.test\r\n"}},
	{"bdat", []string{envelope + "BDAT 7 LAST\r\nhello\r\nNOOP\r\n"}},
	{"bdat-two", []string{envelope + "BDAT 3\r\nhelBDAT 4 LAST\r\nlo\r\nNOOP\r\n"}},
	{"bdat-no-rcpt", []string{"MAIL FROM:<a@a.test>\r\nBDAT 7 LAST\r\nhello\r\nNOOP\r\n"}},
	{"recipient-limit", []string{"MAIL FROM:<a@a.test>\r\n" + strings.Repeat("RCPT TO:<b@b.test>\r\n", 7)}},

	{"nested-mail", []string{envelope + "MAIL FROM:<c@c.test>\r\n"}},
	{"exact-size", []string{envelope + "DATA\r\n", strings.Repeat("0123456789\r\n", 41) + "123456\r\n.\r\n"}},
	{"blank-in-helo", []string{"EHLO a b\r\n"}},
	{"verb-suffix", []string{"STARTTLSX\r\n"}},
	{"bare-lf", []string{envelope + "DATA\r\n", "a\nb\r\n.\r\n"}},
	{"bare-cr", []string{envelope + "DATA\r\n", "a\rb\r\n.\r\n"}},
	{"nul", []string{envelope + "DATA\r\n", "a\x00b\r\n.\r\n"}},
	{"notify-conflict", []string{"MAIL FROM:<>\r\nRCPT TO:<b@b.test> NOTIFY=NEVER,DELAY\r\n"}},
	{"quoted-local", []string{"MAIL FROM:<>\r\nRCPT TO:<\"b b\"@b.test>\r\nDATA\r\n", "x\r\n.\r\n"}},
	{"long-text-line", []string{envelope + "DATA\r\n", strings.Repeat("x", 450) + "\r\n.\r\n"}},
	{"no-space-param", []string{"MAIL FROM:<a@a.test>SIZE=1\r\n"}},
	{"source-route", []string{"MAIL FROM:<>\r\nRCPT TO:<@c.test:b@b.test>\r\n"}},
	{"mixed-case-params", []string{"mail from:<a@a.test> Body=8BitMime\r\n"}},
}

// heard is what a dialogue came to: the class of each reply, since the two need
// not agree on 502 or 503, and the messages with their envelopes.
type heard struct {
	Classes  string
	Messages []string
}

func TestOrdinaryDialoguesGoAsWithGoSMTP(t *testing.T) {
	t.Parallel()
	for _, d := range dialogues {
		t.Run(d.id, func(t *testing.T) {
			t.Parallel()
			ours := &choosy{}
			cfg := testConfig()
			cfg.MaxMessageBytes, cfg.MaxRecipients, cfg.MaxTextLine = 500, 5, 400
			s := New(cfg, BackendFunc(func(*Conn) (smtp.Session, error) { return ours, nil }), Deps{})
			got := converse(t, s.Serve, d.groups)
			s.Shutdown(t.Context())
			got.Messages = ours.messages

			theirs := &choosy{}
			ref := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return theirs, nil }))
			ref.Domain, ref.MaxMessageBytes, ref.MaxRecipients = "mx.test", 500, 5
			ref.EnableSMTPUTF8, ref.EnableDSN = true, true
			ref.ErrorLog = log.New(io.Discard, "", 0)
			want := converse(t, ref.Serve, d.groups)
			ref.Shutdown(t.Context())
			want.Messages = theirs.messages

			diff := cmp.Diff(want, got)
			if diff != "" && !differ[d.id] {
				t.Errorf("(-go-smtp +ours):\n%s", diff)
			}
			if diff == "" && differ[d.id] {
				t.Errorf("listed as different, but the same")
			}
		})
	}
}

// converse holds one dialogue over an in-memory connection.
func converse(t *testing.T, serve func(net.Listener) error, groups []string) heard {
	t.Helper()
	l := newPipeListener()
	var wg sync.WaitGroup
	wg.Go(func() { serve(l) })
	nc := l.dial("192.0.2.1")
	defer wg.Wait()
	defer l.Close()
	defer nc.Close()
	// A reply that never comes must not hang the test.
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(nc)
	var classes []string
	hear := func(n int) bool {
		for n > 0 {
			line, err := r.ReadString('\n')
			if err != nil {
				return false
			}
			if len(line) > 3 && line[3] == ' ' {
				classes = append(classes, line[:1])
				n--
			}
		}
		return true
	}
	hear(1)
	for _, g := range append([]string{"EHLO x\r\n"}, groups...) {
		var sent sync.WaitGroup
		sent.Go(func() { io.WriteString(nc, g) })
		ok := hear(repliesTo(g))
		if !ok {
			nc.Close()
		}
		sent.Wait()
		if !ok {
			break
		}
	}
	return heard{Classes: strings.Join(classes, " ")}
}

// repliesTo counts the commands of a group; a text has one reply.
func repliesTo(g string) int {
	if strings.HasSuffix("\r\n"+g, "\r\n.\r\n") {
		return 1
	}
	n := 0
	for line := range strings.Lines(g) {
		if word, _, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " "); len(word) >= 4 && strings.ToUpper(word) == word || strings.HasPrefix(line, "mail") {
			n++
		}
	}
	return n
}
