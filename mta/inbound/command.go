package inbound

import (
	"bytes"
	"strconv"

	"github.com/emersion/go-smtp"
)

// transaction is everything between MAIL and the reply to its message. It is
// made by MAIL and dropped as a whole; no field outlives it.
type transaction struct {
	rcpts    int
	overflow int // recipients beyond the limit
	mail     smtp.MailOptions
	rcpt     smtp.RcptOptions // shared by recipients without parameters

	body   []byte // what BDAT brought so far is body[:size]
	size   int
	chunks int
	plain  bool // of the whole message; see BytesSession
}

// verb is a command we know.
type verb uint8

const (
	verbUnknown verb = iota
	verbEhlo
	verbHelo
	verbMail
	verbRcpt
	verbData
	verbBdat
	verbRset
	verbNoop
	verbQuit
	verbVrfy
	verbHelp
	verbAuth
	verbStartTLS
	verbUnsupported // known from the RFCs, not offered
	verbForeign     // another protocol's
)

// parseVerb compares whole words, with ASCII folding alone.
func parseVerb(w []byte) verb {
	var b [10]byte
	if len(w) > len(b) {
		return verbUnknown
	}
	for i, ch := range w {
		if 'a' <= ch && ch <= 'z' {
			ch -= 'a' - 'A'
		}
		b[i] = ch
	}
	switch string(b[:len(w)]) {
	case "EHLO":
		return verbEhlo
	case "HELO":
		return verbHelo
	case "MAIL":
		return verbMail
	case "RCPT":
		return verbRcpt
	case "DATA":
		return verbData
	case "BDAT":
		return verbBdat
	case "RSET":
		return verbRset
	case "NOOP":
		return verbNoop
	case "QUIT":
		return verbQuit
	case "VRFY":
		return verbVrfy
	case "HELP":
		return verbHelp
	case "AUTH":
		return verbAuth
	case "STARTTLS":
		return verbStartTLS
	case "EXPN", "TURN", "ETRN", "ATRN", "SEND", "SOML", "SAML", "LHLO", "BURL":
		return verbUnsupported
	case "GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "PRI":
		return verbForeign
	}
	return verbUnknown
}

// command runs one line. The table of what is allowed when is in the methods
// it calls: each begins with the phases it needs.
func (c *Conn) command(line []byte) {
	if c.tx == nil && c.srv.draining.Load() {
		c.lost(errDraining)
		return
	}
	word, arg, _ := bytes.Cut(line, []byte{' '})
	switch parseVerb(word) {
	case verbEhlo:
		c.hello(arg, true)
	case verbHelo:
		c.hello(arg, false)
	case verbMail:
		c.mail(string(arg))
	case verbRcpt:
		c.rcpt(string(arg))
	case verbData:
		c.data(arg)
	case verbBdat:
		c.bdat(arg)
	case verbRset:
		if c.refuseArg(arg) {
			return
		}
		c.endTransaction()
		if c.junk() {
			c.say(replyReset)
		}
	case verbNoop:
		if c.junk() {
			c.say(replyNoop)
		}
	case verbVrfy:
		if c.junk() {
			c.say(replyVrfy)
		}
	case verbHelp:
		if c.junk() {
			c.say(replyHelp)
		}
	case verbQuit:
		if c.refuseArg(arg) {
			return
		}
		c.say(replyQuit)
		c.closing = true
	case verbAuth:
		c.auth(arg)
	case verbStartTLS:
		c.startTLS(arg)
	case verbUnsupported:
		c.protocolError(errNotHere)
	case verbForeign:
		c.foreign()
	case verbUnknown:
		// "Host: example.com" is a header line of HTTP.
		if n := len(word); n > 1 && word[n-1] == ':' {
			c.foreign()
			return
		}
		c.protocolError(errUnknownVerb)
	}
}

// foreign ends a connection that speaks HTTP: a browser made to post mail
// commands must not get as far as its request body.
func (c *Conn) foreign() {
	c.srv.m.refuse(refusedSyntax)
	c.bye(replyNotSMTP)
}

func (c *Conn) refuseArg(arg []byte) bool {
	if len(bytes.TrimRight(arg, " ")) == 0 {
		return false
	}
	c.protocolError(errBadSyntax)
	return true
}

// protocolError answers a command that was malformed or out of place.
func (c *Conn) protocolError(e *smtp.SMTPError) {
	c.reject(refusedSyntax, e, &c.errorCount, c.srv.cfg.MaxErrors)
}

// refused answers a command or a message that was understood and not wanted.
func (c *Conn) refused(why refusal, e *smtp.SMTPError) {
	c.reject(why, e, &c.refusalCount, c.srv.cfg.MaxRefusals)
}

// reject answers e, and 421 in its place once count reaches limit.
func (c *Conn) reject(why refusal, e *smtp.SMTPError, count *int, limit int) {
	c.srv.m.refuse(why)
	if *count++; *count >= limit {
		c.srv.m.refuse(refusedJunk)
		c.bye(replyTooManyErrors)
		return
	}
	c.sayError(e)
}

// junk counts a command that leads nowhere and reports whether to answer it.
func (c *Conn) junk() bool {
	if c.junkCount++; c.junkCount < c.srv.cfg.MaxJunk {
		return true
	}
	c.srv.m.refuse(refusedJunk)
	c.bye(replyTooManyErrors)
	return false
}

// endTransaction drops the transaction, if there is one.
func (c *Conn) endTransaction() {
	tx := c.tx
	if tx == nil {
		return
	}
	c.tx = nil
	c.srv.bufs.put(tx.body)
	c.setPhase(phaseReady)
	defer func() {
		// Only for finish, where nobody is left to recover for us.
		if c.closing {
			if v := recover(); v != nil {
				c.panicked(v)
			}
		}
	}()
	c.session.Reset()
}

// hello is EHLO and HELO: at any time, and like RSET in a transaction (RFC
// 5321, 4.1.4).
func (c *Conn) hello(arg []byte, extended bool) {
	name := bytes.Trim(arg, " ")
	if len(name) == 0 || !printable(string(name), 255) {
		c.protocolError(errBadHello)
		return
	}
	c.endTransaction()
	if c.session != nil && !c.junk() {
		return
	}
	before := c.helo
	c.helo = string(name)
	if c.session == nil {
		s, err := c.srv.backend.NewSession(c)
		if err != nil {
			c.helo = before
			c.refused(refusedBackend, asSMTPError(err, errInternal))
			return
		}
		c.session = s
		c.bytesTo, _ = s.(BytesSession)
		c.setPhase(phaseReady)
	}
	// Asked before the reply begins: this is the backend's code, and a panic
	// must not leave half a reply behind.
	plain, login := c.mechanisms()
	if !extended {
		c.out = append(append(append(c.out, "250 "...), c.srv.cfg.Hostname...), "\r\n"...)
		return
	}
	c.out = append(append(append(c.out, "250-"...), c.srv.cfg.Hostname...), "\r\n"...)
	c.say("250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250-DSN\r\n")
	if c.tls == nil && c.srv.cfg.TLS != nil {
		c.say("250-STARTTLS\r\n")
	}
	if plain || login {
		c.say("250-AUTH")
		if plain {
			c.say(" PLAIN")
		}
		if login {
			c.say(" LOGIN")
		}
		c.say("\r\n")
	}
	c.out = append(c.out, "250 SIZE "...)
	c.out = strconv.AppendInt(c.out, c.srv.cfg.MaxMessageBytes, 10)
	c.say("\r\n")
}

// cutArg takes "FROM:" or "TO:" off arg, and the blanks that many clients put
// after the colon.
func cutArg(arg, prefix string) (string, bool) {
	if len(arg) < len(prefix) || !foldEq(arg[:len(prefix)], prefix) {
		return "", false
	}
	arg = arg[len(prefix):]
	for len(arg) > 0 && arg[0] == ' ' {
		arg = arg[1:]
	}
	return arg, true
}

func (c *Conn) mail(arg string) {
	if c.phase != phaseReady {
		c.protocolError(errNotNow)
		return
	}
	cfg := &c.srv.cfg
	arg, ok := cutArg(arg, "FROM:")
	if !ok {
		c.protocolError(errBadSyntax)
		return
	}
	path, params, ok := cutPath(arg)
	if !ok {
		c.protocolError(errBadSender)
		return
	}
	tx := new(transaction)
	if e := parseMailParams(params, &tx.mail); e != nil {
		c.protocolError(e)
		return
	}
	from := ""
	if path != "" {
		a, e := parsePath(path, tx.mail.UTF8)
		if e != nil {
			c.protocolError(e)
			return
		}
		from = a.String()
	}
	if tx.mail.Size > cfg.MaxMessageBytes {
		c.refused(refusedSize, errTooBig)
		return
	}
	if cfg.MaxMessagesPerConn > 0 && c.messages >= cfg.MaxMessagesPerConn {
		c.bye(replyTooManyMsgs)
		return
	}
	if age := c.age(); age >= cfg.TotalTimeout {
		c.srv.m.refuse(refusedTimeout)
		c.bye(replyTotal)
		return
	}
	if e := c.srv.pressure(); e != nil {
		c.refused(refusedPressure, e)
		return
	}
	if err := c.session.Mail(from, &tx.mail); err != nil {
		c.refused(refusedBackend, asSMTPError(err, errInternal))
		return
	}
	c.tx = tx
	c.setPhase(phaseMail)
	c.say(replyMail)
}

func (c *Conn) rcpt(arg string) {
	if c.phase != phaseMail && c.phase != phaseRcpt {
		c.protocolError(errNotNow)
		return
	}
	tx := c.tx
	arg, ok := cutArg(arg, "TO:")
	if !ok {
		c.protocolError(errBadSyntax)
		return
	}
	path, params, ok := cutPath(arg)
	if !ok {
		c.protocolError(errBadAddress)
		return
	}
	opts := &tx.rcpt
	if params != "" {
		opts = new(smtp.RcptOptions)
		if e := parseRcptParams(params, tx.mail.UTF8, opts); e != nil {
			c.protocolError(e)
			return
		}
	}
	to, e := parsePath(path, tx.mail.UTF8)
	if e != nil {
		c.protocolError(e)
		return
	}
	if tx.rcpts >= c.srv.cfg.MaxRecipients {
		// No error of the client's (RFC 5321, 4.5.3.1.10), but not for ever.
		if tx.overflow++; tx.overflow > 50*c.srv.cfg.MaxRecipients {
			c.srv.m.refuse(refusedJunk)
			c.bye(replyTooManyErrors)
			return
		}
		c.sayError(errRecipients)
		return
	}
	if err := c.session.Rcpt(to.String(), opts); err != nil {
		c.refused(refusedBackend, asSMTPError(err, errInternal))
		return
	}
	tx.rcpts++
	c.setPhase(phaseRcpt)
	c.say(replyRcpt)
}
