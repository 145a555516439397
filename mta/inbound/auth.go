package inbound

import (
	"bytes"
	"encoding/base64"
	"errors"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// startTLS is STARTTLS (RFC 3207).
func (c *Conn) startTLS(arg []byte) {
	if c.refuseArg(arg) {
		return
	}
	if c.srv.cfg.TLS == nil {
		c.protocolError(errNotHere)
		return
	}
	if c.tls != nil || c.phase != phaseReady {
		c.protocolError(errNotNow)
		return
	}
	// What was sent in clear before the handshake could come from anyone in
	// between; it must neither be run nor reach the TLS layer.
	if c.talksEarly() {
		return
	}
	if c.readErr != nil {
		c.lost(c.readErr)
		return
	}
	c.say(replyStartTLS)
	c.arm(c.srv.now().Add(c.srv.cfg.CommandTimeout))
	if err := c.flush(); err != nil {
		c.lost(err)
		return
	}
	if !c.handshake() {
		return
	}
	// RFC 3207, 4.2: what was learned before is forgotten.
	c.endSession()
	c.helo, c.authed = "", false
	c.setPhase(phaseGreeting)
}

// authOpen reports whether this connection may authenticate at all: under TLS,
// or on loopback where the operator said so (RFC 4954, 4; RFC 8314, 3).
func (c *Conn) authOpen() bool {
	if c.tls != nil {
		return true
	}
	return c.srv.cfg.AllowLoopbackAuth && clientIP(c.raw.RemoteAddr()).IsLoopback()
}

// mechanisms says what to offer. LOGIN needs nothing from the backend beyond
// PLAIN.
func (c *Conn) mechanisms() (plain, login bool) {
	s, ok := c.session.(smtp.AuthSession)
	if !ok || c.authed || !c.authOpen() {
		return false, false
	}
	for _, m := range s.AuthMechanisms() {
		switch m {
		case sasl.Plain:
			plain = true
		case sasl.Login:
			login = true
		}
	}
	return plain, login || plain
}

// auth is AUTH (RFC 4954) with PLAIN or LOGIN.
func (c *Conn) auth(arg []byte) {
	s, ok := c.session.(smtp.AuthSession)
	switch {
	case c.session != nil && !ok:
		c.protocolError(errNotHere)
		return
	case c.phase != phaseReady || c.authed:
		c.protocolError(errNotNow)
		return
	case !c.authOpen():
		c.protocolError(errAuthNeedsTLS)
		return
	}
	name, initial, hasInitial := bytes.Cut(bytes.TrimRight(arg, " "), []byte{' '})
	plain, login := c.mechanisms()
	isPlain, isLogin := foldEq(string(name), sasl.Plain), foldEq(string(name), sasl.Login)
	if !(plain && isPlain) && !(login && isLogin) {
		c.protocolError(errAuthMechanism)
		return
	}
	// AUTH ends a pipelined group (RFC 4954, 3).
	if c.talksEarly() {
		return
	}
	if !c.srv.adm.authAllowed(c.key, c.srv.now()) {
		// The backend is not asked, so that guessing costs it nothing.
		c.srv.m.refuse(refusedLockout)
		c.authRefused(errAuthTemporary, false)
		return
	}
	mech, err := c.saslServer(s, isLogin)
	if err != nil {
		c.authRefused(asSMTPError(err, errAuthTemporary), false)
		return
	}
	var response []byte
	if hasInitial {
		if response, ok = decodeBase64(initial); !ok {
			c.authRefused(errAuthSyntax, false)
			return
		}
	}
	for range 8 { // PLAIN needs two rounds, LOGIN three
		challenge, done, err := mech.Next(response)
		if err != nil {
			e := asSMTPError(err, errAuthTemporary)
			if errors.Is(err, sasl.ErrUnexpectedClientResponse) {
				e = errAuthFailed
			}
			c.authRefused(e, true)
			return
		}
		if done {
			c.authed = true
			c.srv.adm.authSucceeded(c.key)
			c.say(replyAuthOK)
			return
		}
		if response, ok = c.challenge(challenge); !ok {
			return
		}
	}
	c.authRefused(errAuthFailed, true)
}

// saslServer is the backend's, with LOGIN built on its PLAIN if need be.
func (c *Conn) saslServer(s smtp.AuthSession, login bool) (sasl.Server, error) {
	if !login {
		return s.Auth(sasl.Plain)
	}
	for _, m := range s.AuthMechanisms() {
		if m == sasl.Login {
			return s.Auth(sasl.Login)
		}
	}
	plain, err := s.Auth(sasl.Plain)
	if err != nil {
		return nil, err
	}
	return &loginServer{plain: plain}, nil
}

// challenge sends a challenge and reads the response. ok is false when the
// exchange is over; the reply has then been queued.
func (c *Conn) challenge(challenge []byte) (response []byte, ok bool) {
	c.say("334 ")
	c.out = base64.StdEncoding.AppendEncode(c.out, challenge)
	c.say("\r\n")
	line, err := c.readLine()
	if err != nil {
		c.lost(err)
		return nil, false
	}
	if c.talksEarly() {
		return nil, false
	}
	if string(line) == "*" {
		c.authRefused(errAuthCanceled, false)
		return nil, false
	}
	if response, ok = decodeBase64(line); !ok {
		c.authRefused(errAuthSyntax, false)
		return nil, false
	}
	return response, true
}

// authRefused answers a failed AUTH. Every failure counts toward the end of
// this connection; a wrong password (5xx, guess) also against the address.
func (c *Conn) authRefused(e *smtp.SMTPError, guess bool) {
	c.srv.m.refuse(refusedAuth)
	if guess && e.Code >= 500 {
		c.srv.adm.authFailed(c.key, c.srv.now())
	}
	if c.authFailures++; c.authFailures >= c.srv.cfg.MaxAuthFailures {
		c.bye(replyTooManyAuth)
		return
	}
	c.sayError(e)
}

// decodeBase64 reads an AUTH response. "=" is the empty one (RFC 4954, 4); the
// result is not nil, which for SASL servers means no response at all.
func decodeBase64(s []byte) ([]byte, bool) {
	if string(s) == "=" || len(s) == 0 {
		return []byte{}, true
	}
	b, err := base64.StdEncoding.Strict().AppendDecode([]byte{}, s)
	return b, err == nil
}

// loginServer is the LOGIN mechanism: two prompts, answered in clear text,
// then checked as PLAIN.
type loginServer struct {
	plain   sasl.Server
	user    []byte
	hasUser bool
	asked   bool
}

func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if response == nil && !l.asked {
		l.asked = true
		return []byte("Username:"), false, nil
	}
	// A NUL would move the border between name and password.
	if bytes.IndexByte(response, 0) >= 0 {
		return nil, false, errAuthFailed
	}
	if !l.hasUser {
		l.asked, l.hasUser = true, true
		l.user = bytes.Clone(response)
		return []byte("Password:"), false, nil
	}
	b := append([]byte{0}, l.user...)
	b = append(append(b, 0), response...)
	_, done, err = l.plain.Next(b)
	if err == nil && !done {
		return nil, false, errAuthFailed
	}
	return nil, done, err
}
