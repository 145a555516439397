package outbound

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Dial connects, waits for the greeting, says EHLO (or HELO where that is
// refused), brings up TLS as Options.TLS asks, says EHLO again, and logs in
// when told to. The error is a *message.Reply: the server's, or a local one
// with code 0.
//
// When a handshake fails under Opportunistic, the reply has StageSTARTTLS and
// Fallback remembers the host, so that the next Dial goes in clear: the caller
// may dial once more at once. A server that talks between STARTTLS and the
// handshake is not remembered, because that is how an attacker would ask for
// clear text.
func Dial(ctx context.Context, o Options) (*Conn, *message.Reply) {
	o.Timeouts = o.Timeouts.withDefaults()
	c := &Conn{opts: o}
	if o.EHLO == "" || strings.ContainsFunc(o.EHLO, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, c.local(message.StageEHLO, status450, "our EHLO name is not a domain")
	}
	if o.Auth != nil && o.TLS != Verify {
		return nil, c.local(message.StageAuth, status475, "a login needs the TLS policy verify")
	}
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	cctx, cancel := context.WithTimeout(ctx, o.Timeouts.Connect)
	raw, err := dial(cctx, "tcp", o.Addr.String())
	cancel()
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	c.raw, c.nc = raw, raw
	c.live()
	stop := c.watch(ctx)
	c.acquire()
	fail := c.greet()
	if !stop() && fail == nil {
		fail = c.local(message.StageEHLO, status442, "canceled")
	}
	if fail != nil {
		c.hangUp(fail)
		return nil, fail
	}
	c.lastUsed = time.Now()
	return c, nil
}

func (c *Conn) unreachable(ctx context.Context, err error) *message.Reply {
	var timeout net.Error
	text := cause(err)
	switch {
	case ctx.Err() != nil:
		text = "canceled while connecting"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		text = "timed out while connecting"
	}
	return c.local(message.StageConnect, status441, text)
}

// hangUp ends a conversation that never came to mail. A server that answered
// in form is told goodbye without waiting; any other is dropped.
func (c *Conn) hangUp(fail *message.Reply) {
	if !fail.Local && fail.Code != 421 && c.r == c.w {
		c.command(message.StageQuit, time.Second, "QUIT")
	}
	c.abandon()
}

// greet goes from the open socket to the state in which MAIL may be said.
func (c *Conn) greet() *message.Reply {
	t := &c.opts.Timeouts
	rp, fail := c.read(message.StageBanner, t.Banner)
	if fail != nil {
		return fail
	}
	if rp.code != 220 {
		return c.refused(message.StageBanner, rp)
	}
	if fail = c.hello(); fail != nil {
		return fail
	}
	if fail = c.secure(); fail != nil {
		return fail
	}
	if c.opts.Auth != nil {
		if fail = c.login(); fail != nil {
			return fail
		}
	}
	return c.quiet(message.StageEHLO)
}

// refused is the failure for a reply that is not the one hoped for. One that
// is positive all the same is out of turn, and what follows cannot be trusted.
func (c *Conn) refused(stage message.Stage, rp reply) *message.Reply {
	fail := c.remote(stage, rp)
	if rp.code < 400 {
		fail.Local = true
		fail.Code = 0
		fail.Enhanced = status450
		fail.Text = "protocol error: reply out of turn: " + string(clip(rp.text, maxKept))
	}
	return fail
}

func (c *Conn) hello() *message.Reply {
	limit := c.opts.Timeouts.EHLO
	rp, fail := c.exchange(message.StageEHLO, limit, "EHLO "+c.opts.EHLO)
	if fail != nil {
		return fail
	}
	if rp.code == 250 {
		c.caps = parseCaps(rp.text)
		return nil
	}
	if rp.code < 500 {
		return c.refused(message.StageEHLO, rp)
	}
	// RFC 5321, 3.2: a server from before 1995 may not know EHLO.
	c.caps = Caps{}
	rp, fail = c.exchange(message.StageEHLO, limit, "HELO "+c.opts.EHLO)
	if fail == nil && rp.code != 250 {
		fail = c.refused(message.StageEHLO, rp)
	}
	return fail
}

// secure brings up TLS (RFC 3207) as far as the policy wants it.
func (c *Conn) secure() *message.Reply {
	o := &c.opts
	mandatory := o.TLS == Required || o.TLS == Verify
	switch {
	case o.TLS == Off:
		return nil
	case !c.caps.StartTLS && mandatory:
		return c.local(message.StageSTARTTLS, message.Enhanced{4, 7, 10}, "STARTTLS is required and not offered")
	case !c.caps.StartTLS:
		return nil
	case !mandatory && o.Fallback.clear(o.Host, o.Source):
		return nil
	}
	rp, fail := c.exchange(message.StageSTARTTLS, o.Timeouts.STARTTLS, "STARTTLS")
	if fail != nil {
		return fail
	}
	if rp.code != 220 {
		if rp.code >= 400 && !mandatory {
			return nil // offered, then refused: the conversation stands, in clear
		}
		return c.refused(message.StageSTARTTLS, rp)
	}
	if c.r != c.w {
		// Whoever wrote this wrote it before the handshake: it is not from the
		// host the certificate will name.
		return c.local(message.StageSTARTTLS, status475, "protocol error: data between STARTTLS and the handshake")
	}
	conn := tls.Client(c.raw, o.tlsConfig())
	c.raw.SetDeadline(time.Now().Add(o.Timeouts.STARTTLS))
	if err := conn.Handshake(); err != nil {
		fail = c.lost(message.StageSTARTTLS, err, "during the TLS handshake")
		fail.Enhanced = status475
		if !mandatory && !errors.Is(err, net.ErrClosed) { // not when we hung up ourselves
			o.Fallback.remember(o.Host, o.Source)
		}
		return fail
	}
	c.nc = conn
	c.tls = tlsName(conn.ConnectionState())
	return c.hello()
}

func (o *Options) tlsConfig() *tls.Config {
	cfg := &tls.Config{}
	if o.TLSConfig != nil {
		cfg = o.TLSConfig.Clone()
	}
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12) // RFC 8996
	if _, err := netip.ParseAddr(o.Host); err != nil || o.TLS == Verify {
		cfg.ServerName = strings.TrimSuffix(o.Host, ".")
	}
	cfg.InsecureSkipVerify = o.TLS != Verify
	return cfg
}

// login says AUTH PLAIN with an initial response (RFC 4954, 4).
// REQUIRES: the certificate was verified; Dial sees to it.
func (c *Conn) login() *message.Reply {
	if !c.caps.AuthPlain {
		return c.local(message.StageAuth, message.Enhanced{4, 7, 0}, "AUTH PLAIN is not offered")
	}
	a := c.opts.Auth
	if strings.ContainsRune(a.User+a.Password, 0) {
		return c.local(message.StageAuth, message.Enhanced{4, 7, 0}, "NUL in credentials")
	}
	line := "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+a.User+"\x00"+a.Password))
	rp, fail := c.exchange(message.StageAuth, c.opts.Timeouts.Auth, line)
	if fail == nil && rp.code != 235 {
		fail = c.refused(message.StageAuth, rp)
	}
	return fail
}
