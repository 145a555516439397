package inbound

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// scriptConn is a client that says its chunks one Read at a time, then hangs
// up, and notes what it hears. It needs no goroutine: serve runs in the test.
type scriptConn struct {
	chunks  [][]byte
	out     bytes.Buffer
	end     error // what Read returns when all is said; nil means io.EOF
	remote  net.Addr
	closed  bool
	armings int // deadlines set
}

func (c *scriptConn) Read(p []byte) (int, error) {
	for len(c.chunks) > 0 && len(c.chunks[0]) == 0 {
		c.chunks = c.chunks[1:]
	}
	if len(c.chunks) == 0 {
		if c.end != nil {
			return 0, c.end
		}
		return 0, io.EOF
	}
	n := copy(p, c.chunks[0])
	c.chunks[0] = c.chunks[0][n:]
	return n, nil
}

func (c *scriptConn) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *scriptConn) Close() error                { c.closed = true; return nil }
func (c *scriptConn) LocalAddr() net.Addr         { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 25} }
func (c *scriptConn) RemoteAddr() net.Addr {
	if c.remote != nil {
		return c.remote
	}
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000}
}
func (c *scriptConn) SetDeadline(time.Time) error      { c.armings++; return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

// mailbox is a backend that takes everything, and remembers it, unless told
// otherwise by its fields.
type mailbox struct {
	mu       sync.Mutex // protects the next four; the rest does not change
	calls    []string   // "MAIL a@b", "RCPT a@b", "DATA", "RSET", "LOGOUT"
	messages []string
	mailOpts []smtp.MailOptions
	rcptOpts []smtp.RcptOptions

	mailErr, rcptErr, dataErr error
	words                     string
	passwords                 map[string]string
	guesses                   int
	quiet                     bool        // do not log calls
	work                      func()      // what a message costs
	plain                     atomic.Bool // of the last message
}

func (m *mailbox) NewSession(*Conn) (smtp.Session, error) { return &mailSession{m}, nil }

func (m *mailbox) note(s string) {
	if m.quiet {
		return
	}
	m.mu.Lock()
	m.calls = append(m.calls, s)
	m.mu.Unlock()
}

type mailSession struct{ m *mailbox }

func (s *mailSession) Reset()        { s.m.note("RSET") }
func (s *mailSession) Logout() error { s.m.note("LOGOUT"); return nil }

func (s *mailSession) Mail(from string, o *smtp.MailOptions) error {
	s.m.note("MAIL " + from)
	if s.m.mailErr != nil {
		return s.m.mailErr
	}
	if !s.m.quiet {
		s.m.mu.Lock()
		s.m.mailOpts = append(s.m.mailOpts, *o)
		s.m.mu.Unlock()
	}
	return nil
}

func (s *mailSession) Rcpt(to string, o *smtp.RcptOptions) error {
	s.m.note("RCPT " + to)
	if s.m.rcptErr != nil {
		return s.m.rcptErr
	}
	if !s.m.quiet {
		s.m.mu.Lock()
		s.m.rcptOpts = append(s.m.rcptOpts, *o)
		s.m.mu.Unlock()
	}
	return nil
}

func (s *mailSession) DataBytes(b []byte, plain bool) (string, error) {
	s.m.note("DATA")
	if longest, dots, clean := checkLines(b); plain && (!clean || dots > 0 || longest > 998) {
		panic("not plain: " + string(b))
	}
	s.m.plain.Store(plain)
	if s.m.dataErr != nil {
		return "", s.m.dataErr
	}
	if s.m.work != nil {
		s.m.work()
	}
	s.m.mu.Lock()
	s.m.messages = append(s.m.messages, string(b))
	s.m.mu.Unlock()
	return s.m.words, nil
}

func (s *mailSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	_, err = s.DataBytes(b, false)
	return err
}

func (s *mailSession) AuthMechanisms() []string {
	if s.m.passwords == nil {
		return nil
	}
	return []string{sasl.Plain}
}

func (s *mailSession) Auth(mech string) (sasl.Server, error) {
	if mech != sasl.Plain {
		return nil, errors.New("mechanism not offered")
	}
	return sasl.NewPlainServer(func(_, user, password string) error {
		s.m.guesses++
		if want, ok := s.m.passwords[user]; !ok || want != password {
			return smtp.ErrAuthFailed
		}
		return nil
	}), nil
}

func testConfig() Config { return Config{Hostname: "mx.test"} }

// talk runs a whole connection whose client sends each chunk once the reply to
// the one before is out, and returns what it heard.
func talk(t testing.TB, cfg Config, m *mailbox, chunks ...string) string {
	t.Helper()
	return talkTo(New(cfg, m, Deps{}), &scriptConn{}, chunks...)
}

func talkTo(s *Server, nc *scriptConn, chunks ...string) string {
	for _, c := range chunks {
		nc.chunks = append(nc.chunks, []byte(c))
	}
	newConn(s, nc).serve()
	return nc.out.String()
}

// codes lists the reply codes in out, one for each reply.
func codes(out string) string {
	var list []string
	for line := range strings.SplitSeq(out, "\r\n") {
		if len(line) >= 4 && line[3] == ' ' {
			list = append(list, line[:3])
		}
	}
	return strings.Join(list, " ")
}

// lastReply is the last line of out.
func lastReply(out string) string {
	out = strings.TrimSuffix(out, "\r\n")
	return out[strings.LastIndexByte(out, '\n')+1:]
}

const (
	hello    = "EHLO client.test\r\n"
	envelope = "MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\n"
)
