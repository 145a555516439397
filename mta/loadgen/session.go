package loadgen

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	inSize  = 64 << 10
	maxLine = 4 << 10 // of a command
)

// session is one connection to a Sink.
type session struct {
	sink    *Sink
	nc, raw net.Conn
	addr    string
	client  *client
	above   bool // above the limit of connections
	in, out []byte
	r, w    int
	armed   time.Time // when the read deadline was last moved
	busy    atomic.Bool
	quit    bool

	helo     string
	tls      bool
	messages int
	tx       transaction
	over     func() // ends the transaction for SinkConfig.OnMail
}

// transaction is the state between MAIL and the end of the message; it is
// replaced as a whole.
type transaction struct {
	open    bool
	from    []byte
	count   int
	to      []string // kept for the hook only
	bounced []string
	domain  []byte
	dot     string
	drop    bool
}

var errEnd = errors.New("loadgen: connection over")

func (ss *session) serve() {
	s := ss.sink
	defer s.leave(ss)
	defer ss.raw.Close()
	defer ss.reset()
	b, _ := s.bufs.Get().(*[2][]byte)
	if b == nil {
		b = &[2][]byte{make([]byte, inSize), make([]byte, 0, 4<<10)}
	}
	ss.in, ss.out = b[0], b[1][:0]
	defer func() {
		b[1] = ss.out[:0]
		s.bufs.Put(b)
	}()
	if ss.above {
		s.refused.Add(1)
		ss.say(s.prof.connections)
		ss.flush()
		return
	}
	ss.say("220 " + s.cfg.Hostname + " ESMTP")
	for !ss.quit {
		line, err := ss.line()
		if err != nil {
			if s.isClosed() {
				ss.say("421 4.3.2 shutting down")
				ss.flush()
			}
			return
		}
		if ss.command(line) != nil {
			return
		}
	}
	ss.flush()
}

// nudge wakes a session that waits between messages, so that it can leave.
func (ss *session) nudge() {
	if !ss.busy.Load() {
		ss.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// say queues a reply and counts it.
func (ss *session) say(text string) {
	if code, err := strconv.Atoi(text[:3]); err == nil && code >= 200 && code < 600 {
		ss.sink.replies[code-200].Add(1)
	}
	ss.out = append(append(ss.out, text...), '\r', '\n')
	if strings.HasPrefix(text, "421") {
		ss.quit = true
	}
}

func (ss *session) flush() error {
	if len(ss.out) == 0 {
		return nil
	}
	if d := ss.sink.cfg.Latency; d > 0 {
		ss.sink.pause(d)
	}
	ss.raw.SetWriteDeadline(time.Now().Add(ss.sink.cfg.IdleTimeout))
	_, err := ss.nc.Write(ss.out)
	ss.out = ss.out[:0]
	return err
}

// pause waits, though not into a shutdown.
func (s *Sink) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.closed:
	}
}

// fill reads more. Replies go out first: the peer may be waiting for them.
func (ss *session) fill() error {
	if err := ss.flush(); err != nil {
		return err
	}
	if ss.r > 0 {
		ss.w = copy(ss.in, ss.in[ss.r:ss.w])
		ss.r = 0
	}
	if ss.w == len(ss.in) {
		return errEnd
	}
	// A timer moved for every command would cost more than the command.
	idle := ss.sink.cfg.IdleTimeout
	if now := time.Now(); now.Sub(ss.armed) > idle/8 {
		ss.armed = now
		ss.raw.SetReadDeadline(now.Add(idle))
	}
	if ss.sink.isClosed() && !ss.busy.Load() {
		return errEnd
	}
	n, err := ss.nc.Read(ss.in[ss.w:])
	ss.w += n
	if n > 0 {
		return nil
	}
	return err
}

// line returns the next command line without its CRLF.
func (ss *session) line() ([]byte, error) {
	for {
		if i := bytes.IndexByte(ss.in[ss.r:ss.w], '\n'); i >= 0 {
			l := ss.in[ss.r : ss.r+i]
			ss.r += i + 1
			return bytes.TrimSuffix(l, []byte{'\r'}), nil
		}
		if ss.w-ss.r > maxLine {
			return nil, errEnd
		}
		if err := ss.fill(); err != nil {
			return nil, err
		}
	}
}

func (ss *session) command(line []byte) error {
	var verb [4]byte
	if len(line) < 4 {
		ss.say("500 5.5.2 unknown command")
		return nil
	}
	copy(verb[:], bytes.ToUpper(line[:4]))
	rest := line[4:]
	switch string(verb[:]) {
	case "MAIL":
		ss.mail(rest)
	case "RCPT":
		return ss.rcpt(rest)
	case "DATA":
		return ss.data()
	case "EHLO":
		ss.reset()
		ss.helo = string(bytes.TrimSpace(rest))
		ss.hello()
	case "HELO":
		ss.reset()
		ss.helo = string(bytes.TrimSpace(rest))
		ss.say("250 " + ss.sink.cfg.Hostname)
	case "RSET":
		ss.reset()
		ss.say("250 2.0.0 reset")
	case "NOOP":
		ss.say("250 2.0.0 ok")
	case "QUIT":
		ss.say("221 2.0.0 bye")
		ss.quit = true
	case "STAR":
		return ss.startTLS()
	default:
		ss.say("502 5.5.1 not implemented")
	}
	return nil
}

func (ss *session) reset() {
	if ss.over != nil {
		ss.over()
		ss.over = nil
	}
	ss.tx = transaction{from: ss.tx.from[:0], domain: ss.tx.domain[:0]}
	ss.busy.Store(false)
}

func (ss *session) hello() {
	cfg := &ss.sink.cfg
	lines := []string{cfg.Hostname + " greets you", "ENHANCEDSTATUSCODES", "SIZE " + strconv.FormatInt(cfg.MaxSize, 10), "DSN"}
	if !cfg.NoPipelining {
		lines = append(lines, "PIPELINING")
	}
	if !cfg.No8BITMIME {
		lines = append(lines, "8BITMIME")
	}
	if !cfg.NoSMTPUTF8 {
		lines = append(lines, "SMTPUTF8")
	}
	if cfg.TLS && !ss.tls {
		lines = append(lines, "STARTTLS")
	}
	for _, l := range lines[:len(lines)-1] {
		ss.out = append(append(append(ss.out, "250-"...), l...), "\r\n"...)
	}
	ss.say("250 " + lines[len(lines)-1])
}

func (ss *session) startTLS() error {
	if ss.sink.tls == nil || ss.tls {
		ss.say("502 5.5.1 not implemented")
		return nil
	}
	if ss.r != ss.w {
		return errEnd // commands before the handshake are not the client's
	}
	ss.say("220 2.0.0 go ahead")
	if err := ss.flush(); err != nil {
		return err
	}
	conn := tls.Server(ss.raw, ss.sink.tls)
	if err := conn.Handshake(); err != nil {
		return err
	}
	ss.nc, ss.tls = conn, true
	ss.helo = ""
	ss.reset()
	return nil
}

func (ss *session) mail(arg []byte) {
	addr, params, ok := path(arg, " FROM:")
	switch {
	case !ok:
		ss.say("501 5.5.4 MAIL FROM:<address> expected")
		return
	case ss.tx.open:
		ss.say("503 5.5.1 one sender at a time")
		return
	case ss.helo == "":
		ss.say("503 5.5.1 EHLO first")
		return
	}
	s := ss.sink
	if limit := s.cfg.Limits.MessagesPerConnection; limit > 0 && ss.messages >= limit {
		ss.say(s.prof.messages)
		return
	}
	if !s.withinRate(ss.client) {
		ss.say(s.prof.rate)
		return
	}
	if n, ok := sizeOf(params); ok && n > s.cfg.MaxSize {
		ss.say("552 5.3.4 message too large")
		return
	}
	ss.reset()
	if s.cfg.OnMail != nil {
		var reply string
		if reply, ss.over = s.cfg.OnMail(ss.addr, string(addr)); reply != "" {
			ss.over = nil
			ss.say(reply)
			return
		}
	}
	ss.tx.open = true
	ss.tx.from = append(ss.tx.from, addr...)
	ss.busy.Store(true)
	ss.messages++
	ss.say("250 2.1.0 ok")
}

// withinRate counts a message against its client's minute.
func (s *Sink) withinRate(cl *client) bool {
	limit := s.cfg.Limits.MessagesPerMinute
	if limit <= 0 {
		return true
	}
	minute := s.cfg.Now().Unix() / 60
	s.mu.Lock()
	defer s.mu.Unlock()
	if cl.minute != minute {
		cl.minute, cl.count = minute, 0
	}
	if cl.count >= limit {
		return false
	}
	cl.count++
	return true
}

func (ss *session) rcpt(arg []byte) error {
	addr, _, ok := path(arg, " TO:")
	switch {
	case !ss.tx.open:
		ss.say("503 5.5.1 MAIL first")
		return nil
	case !ok || len(addr) == 0:
		ss.say("501 5.5.4 RCPT TO:<address> expected")
		return nil
	}
	s := ss.sink
	if limit := s.cfg.Limits.RecipientsPerMessage; limit > 0 && ss.tx.count >= limit {
		ss.say(s.prof.recipients)
		return nil
	}
	if s.prof.oneDomain {
		domain := addr[bytes.LastIndexByte(addr, '@')+1:]
		if ss.tx.count > 0 && !bytes.EqualFold(domain, ss.tx.domain) {
			ss.say("451 4.3.0 Multiple destination domains per transaction is unsupported. Please try again.")
			return nil
		}
		ss.tx.domain = append(ss.tx.domain[:0], domain...)
	}
	v := s.judge(ss.tx.from, addr)
	if v.wait > 0 {
		if err := ss.flush(); err != nil {
			return err
		}
		s.pause(v.wait)
	}
	if v.reply != "" {
		ss.say(v.reply)
		return nil
	}
	ss.tx.count++
	if v.dot != "" {
		ss.tx.dot = v.dot
	}
	ss.tx.drop = ss.tx.drop || v.drop
	if s.cfg.OnMessage != nil {
		to := string(addr)
		ss.tx.to = append(ss.tx.to, to)
		if v.bounce {
			ss.tx.bounced = append(ss.tx.bounced, to)
		}
	}
	ss.say("250 2.1.5 ok")
	return nil
}

// path cuts "FROM:<address> parameters" apart. A quoted local part may hold a
// '>'.
func path(arg []byte, key string) (addr, params []byte, ok bool) {
	if len(arg) < len(key) || !strings.EqualFold(string(arg[:len(key)]), key) {
		return nil, nil, false
	}
	arg = bytes.TrimLeft(arg[len(key):], " ")
	if len(arg) == 0 || arg[0] != '<' {
		return nil, nil, false
	}
	quoted := false
	for i := 1; i < len(arg); i++ {
		switch c := arg[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == '>' && !quoted:
			return arg[1:i], arg[i+1:], true
		}
	}
	return nil, nil, false
}

// sizeOf reads the SIZE parameter of MAIL (RFC 1870).
func sizeOf(params []byte) (int64, bool) {
	for p := range bytes.FieldsSeq(params) {
		if len(p) > 5 && strings.EqualFold(string(p[:5]), "SIZE=") {
			n, err := strconv.ParseInt(string(p[5:]), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
