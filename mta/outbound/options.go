package outbound

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// TLSPolicy says how much encryption a conversation needs.
type TLSPolicy uint8

// The policies. The zero value is Opportunistic.
const (
	Opportunistic TLSPolicy = iota // use STARTTLS when offered; any certificate will do (RFC 7435)
	Off                            // never use STARTTLS
	Required                       // no mail in clear; any certificate, unless TLSConfig.VerifyConnection objects (DANE)
	Verify                         // no mail without a certificate valid for Host (MTA-STS, RFC 8461)
)

var tlsPolicyNames = [...]string{"opportunistic", "off", "required", "verify"}

func (p TLSPolicy) String() string {
	if int(p) < len(tlsPolicyNames) {
		return tlsPolicyNames[p]
	}
	return fmt.Sprintf("tls(%d)", uint8(p))
}

// ParseTLSPolicy reads a policy name as configuration files write it.
func ParseTLSPolicy(s string) (TLSPolicy, error) {
	for i, n := range tlsPolicyNames {
		if n == s {
			return TLSPolicy(i), nil
		}
	}
	return Opportunistic, fmt.Errorf("outbound: TLS policy %q is not one of off, opportunistic, required, verify", s)
}

// Options describes one connection to be made.
type Options struct {
	// Dial opens the TCP connection; binding to a source address happens
	// inside it. Default: a plain net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// EHLO is the name we greet with. It must be a domain or an address
	// literal. No default.
	EHLO string
	// Host is the name of the mail exchanger: what a certificate must be valid
	// for under Verify, the SNI, and the RemoteHost of every reply.
	Host string
	// Addr is where to connect.
	Addr netip.AddrPort
	// Source names the address we send from; with Host it is the key of
	// Fallback.
	Source string

	TLS TLSPolicy
	// TLSConfig is cloned for every handshake; ServerName, MinVersion and
	// InsecureSkipVerify are set from Host and TLS. Default: an empty one,
	// which keeps no sessions.
	TLSConfig *tls.Config
	// Fallback remembers hosts whose handshake fails. Default: none, every
	// opportunistic connection tries again.
	Fallback *Fallback

	// Timeouts holds the limits of every stage; zero fields take the default.
	Timeouts Timeouts
	// Auth logs in after STARTTLS. Only under Verify.
	Auth *Auth
	// Trace receives every command ('>') and every reply line ('<') without
	// line ends, never bodies and never credentials. line is valid during the
	// call only.
	Trace func(direction byte, line []byte)
	// Traced switches Trace off while it is false. Default: always on.
	Traced *atomic.Bool
	// Buffers lends its memory to connections in use. Default: the connection
	// keeps a set of its own.
	Buffers *Buffers
	// Life closes the connection when it ends, at whatever stage and while idle
	// too. It is watched once for each connection: Dial, and methods that are
	// called with Life, do not watch it again. Where thousands of connections
	// share a context, watching it for every message makes all of them wait for
	// its one lock. Default: none.
	Life context.Context
	// OnClose is called once, after the socket has been closed, however that
	// came about: the place to give a connection permit back. It is not called
	// when Dial fails before there was a socket.
	OnClose func()
}

// Auth is a login by AUTH PLAIN (RFC 4616), for smart hosts.
type Auth struct {
	User, Password string
}

// Timeouts limits the stages of a conversation. RFC 5321, 4.5.3.2 gives the
// least a client should wait; where a default is shorter, it says why. Each
// runs from the moment the stage began and covers all of it: bytes that trickle
// in do not extend it.
type Timeouts struct {
	// Connect covers the TCP handshake. Default: 30 s.
	Connect time.Duration
	// Banner is 60 s by default, not the 300 s of 4.5.3.2.1: a host that needs
	// longer has other hosts beside it, and the lane waits.
	Banner time.Duration
	// EHLO covers EHLO and HELO, each. Default: 60 s.
	EHLO time.Duration
	// STARTTLS covers the command and the handshake, each. Default: 30 s.
	STARTTLS time.Duration
	// Auth covers AUTH. Default: 60 s.
	Auth time.Duration
	// Mail and Rcpt: 300 s by default (4.5.3.2.2 and 4.5.3.2.3), each reply.
	Mail, Rcpt time.Duration
	// Data covers DATA up to its reply. Default: 120 s (4.5.3.2.4).
	Data time.Duration
	// Envelope limits all from MAIL to the reply to DATA, however many
	// recipients stand between them. Default: 15 min.
	Envelope time.Duration
	// Block is what each 64 KiB of the message may take. Default: 180 s
	// (4.5.3.2.5), which makes 364 octets per second the slowest rate we bear.
	Block time.Duration
	// Body limits the writing of one message as a whole. Default: 1 h.
	Body time.Duration
	// Dot covers the reply to the final dot. Default: 600 s (4.5.3.2.6):
	// giving up early here is what makes duplicates.
	Dot time.Duration
	// Rset covers RSET. Default: 20 s.
	Rset time.Duration
	// Quit covers QUIT; nothing depends on the answer. Default: 5 s.
	Quit time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Connect, 30*time.Second)
	set(&t.Banner, 60*time.Second)
	set(&t.EHLO, 60*time.Second)
	set(&t.STARTTLS, 30*time.Second)
	set(&t.Auth, 60*time.Second)
	set(&t.Mail, 300*time.Second)
	set(&t.Rcpt, 300*time.Second)
	set(&t.Data, 120*time.Second)
	set(&t.Envelope, 15*time.Minute)
	set(&t.Block, 180*time.Second)
	set(&t.Body, time.Hour)
	set(&t.Dot, 600*time.Second)
	set(&t.Rset, 20*time.Second)
	set(&t.Quit, 5*time.Second)
	return t
}
