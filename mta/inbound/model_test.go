package inbound

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
)

// model is the reference for the dialogue: what RFC 5321 and RFC 3030 say about
// order, in a page. It knows no bytes and no buffers, only whole commands.
type model struct {
	state    string // "greeting", "ready", "mail", "rcpt", "chunks"
	rcpts    []string
	from     string
	text     string
	closed   bool
	messages []string
	errors   int
	refusals int
	junk     int
}

// step is one command of a random dialogue: what is sent, and for the model
// what it means.
type step struct {
	verb  string
	arg   string
	send  string
	text  string // of DATA, sent once 354 is out; of BDAT, sent at once
	short bool   // DATA's text is cut off by the end of the connection
}

func (m *model) drop() { m.from, m.rcpts, m.text = "", nil, "" }

func (m *model) tooMany(n *int, limit int) bool {
	*n++
	return *n >= limit
}

func (m *model) fail(code string) string {
	if m.tooMany(&m.errors, 20) {
		m.closed = true
		return "421"
	}
	return code
}

func (m *model) refuse(code string) string {
	if m.tooMany(&m.refusals, 200) {
		m.closed = true
		return "421"
	}
	return code
}

func (m *model) useless(code string) string {
	if m.tooMany(&m.junk, 100) {
		m.closed = true
		return "421"
	}
	return code
}

// accept is the end of a message that came whole.
func (m *model) accept(text string) string {
	from, rcpts := m.from, m.rcpts
	m.drop()
	m.state = "ready"
	if strings.Contains(strings.ReplaceAll(text, "\r\n", ""), "\n") {
		return m.fail("550")
	}
	if strings.Contains(text, "refuse me") {
		return m.refuse("451")
	}
	m.messages = append(m.messages, from+" "+strings.Join(rcpts, ",")+" "+text)
	m.errors, m.refusals, m.junk = 0, 0, 0
	return "250"
}

// reply runs one step and returns the codes of its replies.
func (m *model) reply(s step) string {
	switch s.verb {
	case "EHLO":
		if s.arg == "" {
			return m.fail("501")
		}
		first := m.state == "greeting"
		m.drop()
		m.state = "ready"
		if first {
			return "250"
		}
		return m.useless("250")
	case "MAIL":
		switch {
		case m.state != "ready":
			return m.fail("503")
		case s.arg == "bad":
			return m.fail("501")
		case strings.HasPrefix(s.arg, "no"):
			return m.refuse("550")
		}
		m.state, m.from = "mail", s.arg
		return "250"
	case "RCPT":
		switch {
		case m.state != "mail" && m.state != "rcpt":
			return m.fail("503")
		case s.arg == "bad":
			return m.fail("501")
		case len(m.rcpts) == 5:
			return "452"
		case strings.HasPrefix(s.arg, "no"):
			return m.refuse("550")
		}
		m.state = "rcpt"
		m.rcpts = append(m.rcpts, s.arg)
		return "250"
	case "DATA":
		if m.state != "rcpt" {
			return m.fail("503")
		}
		if s.short {
			m.closed = true
			return "354 421"
		}
		return "354 " + m.accept(s.text)
	case "BDAT":
		switch {
		case s.arg == "bad":
			m.drop()
			if m.state != "greeting" {
				m.state = "ready"
			}
			return m.fail("501")
		case s.arg == "unreadable":
			m.closed = true
			return "501"
		case m.state != "rcpt" && m.state != "chunks":
			m.drop()
			if m.state != "greeting" {
				m.state = "ready"
			}
			return m.fail("503")
		}
		m.state = "chunks"
		m.text += s.text
		if s.arg == "LAST" {
			return m.accept(m.text)
		}
		return "250"
	case "RSET":
		m.drop()
		if m.state != "greeting" {
			m.state = "ready"
		}
		return m.useless("250")
	case "NOOP":
		return m.useless("250")
	case "QUIT":
		m.closed = true
		return "221"
	case "AUTH":
		if m.state == "greeting" {
			return m.fail("503")
		}
		return m.fail("502") // nor does this backend offer it
	case "STARTTLS":
		return m.fail("502") // not configured
	}
	return m.fail("500")
}

// randomStep favours what leads somewhere, so that deep states are reached.
func randomStep(r *rand.Rand, state string) step {
	likely := map[string]string{"greeting": "EHLO", "ready": "MAIL", "mail": "RCPT", "rcpt": "RCPT DATA BDAT", "chunks": "BDAT"}
	verbs := []string{"EHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "WHAT", "AUTH", "STARTTLS"}
	if r.IntN(3) > 0 {
		verbs = strings.Fields(likely[state])
	} else if r.IntN(4) > 0 {
		verbs = slices.DeleteFunc(verbs, func(v string) bool { return v == "QUIT" })
	}
	s := step{verb: verbs[r.IntN(len(verbs))]}
	pick := func(args ...string) string { return args[r.IntN(len(args))] }
	switch s.verb {
	case "EHLO":
		s.arg = pick("x", "x", "x", "")
		s.send = strings.TrimSuffix("EHLO "+s.arg, " ") + "\r\n"
	case "MAIL", "RCPT":
		s.arg = pick("a@a.test", "b@b.test", "c@c.test", "no@a.test", "bad")
		s.send = map[string]string{"MAIL": "MAIL FROM:<", "RCPT": "RCPT TO:<"}[s.verb] + s.arg + ">\r\n"
	case "DATA", "BDAT":
		s.text = pick("", "hello\r\n", "RSET\r\nMAIL FROM:<no@a.test>\r\n", "refuse me\r\n", "bare\nline\r\n", "QUIT\r\n", "a\r\nb\r\n\r\n")
		if s.verb == "DATA" {
			s.short = r.IntN(20) == 0
			s.send = "DATA\r\n"
			break
		}
		s.arg = pick("", "", "", "LAST", "LAST", "LAST", "bad", "unreadable")
		switch s.arg {
		case "bad":
			s.send = fmt.Sprintf("BDAT %d FIRST\r\n%s", len(s.text), s.text)
		case "unreadable":
			s.send = "BDAT x LAST\r\n" + s.text
		default:
			s.send = strings.TrimSuffix(fmt.Sprintf("BDAT %d %s", len(s.text), s.arg), " ") + "\r\n" + s.text
		}
	default:
		s.send = s.verb + "\r\n"
	}
	return s
}

// choosy is the backend of the model check: it judges by what it is given and
// notes each message with the envelope it came in.
type choosy struct {
	from     string
	rcpts    []string
	messages []string
}

func (c *choosy) Reset()        { c.from, c.rcpts = "", nil }
func (c *choosy) Logout() error { return nil }

func (c *choosy) Mail(from string, _ *smtp.MailOptions) error {
	if strings.HasPrefix(from, "no") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "No"}
	}
	c.from, c.rcpts = from, nil
	return nil
}

func (c *choosy) Rcpt(to string, _ *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "no") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "No"}
	}
	c.rcpts = append(c.rcpts, to)
	return nil
}

func (c *choosy) DataBytes(b []byte, _ bool) (string, error) {
	if strings.Contains(string(b), "refuse me") {
		return "", errors.New("an internal matter")
	}
	c.messages = append(c.messages, c.from+" "+strings.Join(c.rcpts, ",")+" "+string(b))
	return "", nil
}

// Data makes choosy a session for go-smtp too.
func (c *choosy) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil {
		_, err = c.DataBytes(b, false)
	}
	return err
}

// TestDialogueAgreesWithTheModel runs random dialogues of up to 40 commands,
// cut into reads at random, against the model: the same replies in the same
// order, and the same messages. It makes a million steps, or as many as
// TRADEWIND_MODEL_STEPS says; the seed of a failure is in its message.
func TestDialogueAgreesWithTheModel(t *testing.T) {
	t.Parallel()
	steps := 1_000_000
	if s := os.Getenv("TRADEWIND_MODEL_STEPS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		steps = n
	} else if testing.Short() {
		steps = 50_000
	}
	b := &choosy{}
	cfg := testConfig()
	cfg.MaxRecipients = 5
	s := New(cfg, BackendFunc(func(*Conn) (smtp.Session, error) { return b, nil }), Deps{})
	done, taken := 0, 0
	for seed := uint64(1); done < steps; seed++ {
		n, accepted := modelRun(t, s, b, seed)
		done += n
		taken += accepted
		if t.Failed() {
			return
		}
	}
	t.Logf("%d steps, %d messages", done, taken)
	if taken < done/100 {
		t.Errorf("only %d messages in %d steps: the dialogues lead nowhere", taken, done)
	}
}

func modelRun(t *testing.T, s *Server, b *choosy, seed uint64) (steps, accepted int) {
	r := rand.New(rand.NewPCG(seed, 0))
	*b = choosy{}
	m := &model{state: "greeting"}
	want := []string{"220"}
	var script []step
	var groups []string // texts between which the client waits
	group, cut := "", false
	for n := 1 + r.IntN(40); len(script) < n && !m.closed; {
		st := randomStep(r, m.state)
		script = append(script, st)
		group += st.send
		reply := m.reply(st)
		want = append(want, strings.Fields(reply)...)
		if strings.HasPrefix(reply, "354") {
			groups = append(groups, group)
			group = ""
			if cut = st.short; cut {
				groups = append(groups, st.text)
			} else {
				groups = append(groups, st.text+".\r\n")
			}
		} else if r.IntN(3) == 0 {
			groups = append(groups, group)
			group = ""
		}
	}
	// After the end the client talks on: nothing of it may be heard. (After a
	// cut-off message there is no more to say: the connection is at its end.)
	if !cut {
		group += "NOOP\r\n" + envelope
	}
	groups = append(groups, group)
	if !m.closed {
		for _, st := range []step{{verb: "NOOP"}, {verb: "MAIL", arg: "a@a.test"}, {verb: "RCPT", arg: "b@b.test"}} {
			if !m.closed {
				want = append(want, m.reply(st))
			}
		}
	}
	nc := &scriptConn{}
	for _, g := range groups {
		for len(g) > 0 {
			n := len(g)
			if r.IntN(4) == 0 {
				n = 1 + r.IntN(n)
			}
			nc.chunks = append(nc.chunks, []byte(g[:n]))
			g = g[n:]
		}
	}
	newConn(s, nc).serve()
	got := codes(nc.out.String())
	if got != strings.Join(want, " ") || !slices.Equal(b.messages, m.messages) {
		t.Errorf("seed %d: replies\n got %s\nwant %s\nmessages\n got %q\nwant %q\nscript %q",
			seed, got, strings.Join(want, " "), b.messages, m.messages, groups)
	}
	return len(script), len(m.messages)
}
