package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// receiver is a mail host that says exactly what a story tells it to, and
// writes down what it hears.
type receiver struct {
	name    string
	without []string // extensions not offered
	tls     string   // "", "good", "broken", "early"

	mu       sync.Mutex // protects everything below
	state    string     // "", "down", "silent"
	rules    []*rule
	released chan struct{}
	conns    int
	open     map[net.Conn]struct{}
	mails    []*mail
	wg       sync.WaitGroup
}

// rule is one scripted answer.
type rule struct {
	stage string // banner, ehlo, starttls, mail, rcpt, data, dot
	text  string // a reply, "drop" or "hold"
	to    string // at rcpt: this recipient only
	times int    // how often it applies still; negative: for ever
}

// mail is one message as it came in, whatever was said to it.
type mail struct {
	at         time.Duration // since the beginning of the story
	conn       int
	open       bool // MAIL was taken
	helo       string
	tls        bool
	from       string
	to         []string
	mailParams string
	rcptParams []string
	body       []byte
	code       string // of the reply after the dot; "" when there was none
}

func (m *mail) accepted() bool { return strings.HasPrefix(m.code, "250") }

func newReceiver(name string) *receiver {
	return &receiver{name: name, released: make(chan struct{}), open: make(map[net.Conn]struct{})}
}

var extensions = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN", "SIZE 50000000"}

// connect opens a connection to the receiver, as its state allows.
func (r *receiver) connect(ctx context.Context, w *world) (net.Conn, error) {
	r.mu.Lock()
	state := r.state
	r.mu.Unlock()
	switch state {
	case "down":
		return nil, errors.New("connection refused")
	case "silent":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	near, far := loadgen.Pipe()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns++
	s := &receiving{receiver: r, world: w, nc: far, in: bufio.NewReader(far), number: r.conns}
	r.open[far] = struct{}{}
	r.wg.Go(func() {
		s.serve()
		s.nc.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.open, far)
	})
	return near, nil
}

// answer is what the script has for a stage, or normal.
func (r *receiver) answer(stage, to, normal string) string {
	r.mu.Lock()
	text, released := normal, r.released
	for i, rule := range r.rules {
		if rule.stage != stage || rule.to != "" && !strings.EqualFold(rule.to, to) {
			continue
		}
		if rule.times--; rule.times == 0 {
			r.rules = slices.Delete(r.rules, i, i+1)
		}
		text = rule.text
		break
	}
	r.mu.Unlock()
	if text == "hold" {
		<-released
		return normal
	}
	return text
}

// release lets go of everybody who is held.
func (r *receiver) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.released)
	r.released = make(chan struct{})
}

// end closes what is open and waits.
func (r *receiver) end() {
	r.release()
	r.mu.Lock()
	for c := range r.open {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// receiving is one connection.
type receiving struct {
	*receiver
	world  *world
	nc     net.Conn
	in     *bufio.Reader
	number int
	secure bool
	helo   string
}

var errOver = errors.New("over")

// say sends a reply; it returns errOver when the connection ends with it.
func (s *receiving) say(text string) error {
	if text == "drop" {
		return errOver
	}
	for line := range strings.SplitSeq(text, "\n") {
		if _, err := s.nc.Write([]byte(line + "\r\n")); err != nil {
			return err
		}
	}
	if strings.HasPrefix(text, "421") || strings.HasPrefix(text, "554 go away") {
		return errOver
	}
	return nil
}

func (s *receiving) line() (string, error) {
	line, err := s.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	if !strings.HasSuffix(line, "\r\n") {
		s.world.t.Errorf("%s: command line %q does not end with CRLF", s.name, line)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

func (s *receiving) serve() {
	if s.say(s.answer("banner", "", "220 "+s.name+" ESMTP")) != nil {
		return
	}
	m := &mail{}
	for {
		line, err := s.line()
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO":
			s.helo, m = rest, &mail{}
			err = s.say(s.answer("ehlo", "", s.greeting()))
		case "HELO":
			s.helo, m = rest, &mail{}
			err = s.say("250 " + s.name)
		case "STARTTLS":
			err = s.startTLS()
		case "MAIL":
			m = &mail{conn: s.number, helo: s.helo, tls: s.secure}
			m.from, m.mailParams = path(rest)
			text := s.answer("mail", "", "250 2.1.0 ok")
			m.open = strings.HasPrefix(text, "250")
			err = s.say(text)
		case "RCPT":
			err = s.rcpt(m, rest)
		case "DATA":
			err = s.data(m)
			m = &mail{}
		case "RSET":
			m = &mail{}
			err = s.say("250 2.0.0 ok")
		case "QUIT":
			s.say("221 2.0.0 bye")
			return
		default:
			err = s.say("500 5.5.1 what?")
		}
		if err != nil {
			return
		}
	}
}

func (s *receiving) greeting() string {
	lines := []string{"250-" + s.name + " greets you"}
	for _, e := range extensions {
		if word, _, _ := strings.Cut(e, " "); !slices.Contains(s.without, word) {
			lines = append(lines, "250-"+e)
		}
	}
	if s.tls != "" && !s.secure {
		lines = append(lines, "250-STARTTLS")
	}
	return strings.Join(append(lines, "250 HELP"), "\n")
}

func path(s string) (addr, params string) {
	_, s, _ = strings.Cut(s, "<")
	addr, params, _ = strings.Cut(s, ">")
	return addr, strings.TrimSpace(params)
}

func (s *receiving) rcpt(m *mail, rest string) error {
	to, params := path(rest)
	if !m.open {
		return s.say("503 5.5.1 MAIL first")
	}
	text := s.answer("rcpt", to, "250 2.1.5 ok")
	if strings.HasPrefix(text, "250") {
		m.to = append(m.to, to)
		m.rcptParams = append(m.rcptParams, params)
	}
	return s.say(text)
}

func (s *receiving) data(m *mail) error {
	text := "354 go ahead"
	if len(m.to) == 0 {
		text = "503 5.5.1 no valid recipients"
	}
	text = s.answer("data", "", text)
	if err := s.say(text); err != nil || !strings.HasPrefix(text, "354") {
		return err
	}
	for {
		line, err := s.in.ReadBytes('\n')
		if err != nil {
			return err
		}
		if bytes.Equal(line, []byte(".\r\n")) {
			break
		}
		m.body = append(m.body, bytes.TrimPrefix(line, []byte("."))...)
	}
	m.at = time.Since(s.world.began)
	text = s.answer("dot", "", "250 2.0.0 taken")
	if text != "drop" {
		m.code = text
	}
	s.mu.Lock()
	s.mails = append(s.mails, m)
	s.mu.Unlock()
	return s.say(text)
}

func (s *receiving) startTLS() error {
	text := s.answer("starttls", "", "220 2.0.0 go ahead")
	if err := s.say(text); err != nil || !strings.HasPrefix(text, "220") {
		return err
	}
	switch s.tls {
	case "broken":
		s.in.ReadByte() // the client begins the handshake
		fallthrough
	case "early":
		s.nc.Write([]byte("this is not TLS at all, whatever was said before\r\n"))
		return errOver
	}
	c := tls.Server(s.nc, &tls.Config{Certificates: []tls.Certificate{certificate()}})
	if err := c.Handshake(); err != nil {
		return err
	}
	s.nc, s.in, s.secure = c, bufio.NewReader(c), true
	return nil
}

// certificate is what every receiver shows; nobody vouches for it.
var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// counts is what "expect sink" can ask for.
func (r *receiver) counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := map[string]int{"connections": r.conns, "messages": 0, "refused": 0, "recipients": 0, "largest": 0, "open": len(r.open)}
	for _, m := range r.mails {
		if m.accepted() {
			n["messages"]++
			n["recipients"] += len(m.to)
			n["largest"] = max(n["largest"], len(m.to))
		} else {
			n["refused"]++
		}
	}
	return n
}

// received is a copy of the list of messages.
func (r *receiver) received() []*mail {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.mails)
}

// checkWire says what is wrong with the octets of a message: RFC 5321, 2.3.8 and
// 4.5.3.1.6.
func checkWire(body []byte) error {
	for n := 1; len(body) > 0; n++ {
		line, rest, ok := bytes.Cut(body, []byte("\r\n"))
		switch {
		case !ok:
			return fmt.Errorf("line %d has no CRLF", n)
		case bytes.ContainsAny(line, "\r\n\x00"):
			return fmt.Errorf("line %d holds a bare CR, LF or NUL", n)
		case len(line) > 998:
			return fmt.Errorf("line %d has %d octets", n, len(line))
		}
		body = rest
	}
	return nil
}
