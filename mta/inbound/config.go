package inbound

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/emersion/go-smtp"
)

// Config describes one listener. The zero value of every field but Hostname
// stands for the default its comment states; counts and sizes below zero and
// durations below zero are refused by Validate.
type Config struct {
	// Hostname is the name in the banner and in the EHLO reply. Required.
	Hostname string
	// Banner is the text after the host name in the 220 line: printable ASCII,
	// at most 200 octets. Default: "ESMTP".
	Banner string

	// TLS enables STARTTLS, or TLS from the first byte with ImplicitTLS.
	// Default: nil, no TLS.
	TLS *tls.Config
	// ImplicitTLS starts TLS before the banner (RFC 8314, 3.3). Needs TLS.
	// Default: false.
	ImplicitTLS bool
	// AllowLoopbackAuth permits AUTH without TLS to clients on a loopback
	// address. Everyone else gets 538 until TLS is up. Default: false.
	AllowLoopbackAuth bool

	// MaxMessageBytes is the largest message accepted, in octets after
	// dot-unstuffing; exactly this many still pass. Default: 50 MiB.
	MaxMessageBytes int64
	// MaxBufferedBytes bounds what the bodies under reception hold in memory,
	// all connections together, in octets, not counting the first 64 KiB of
	// each. A message that does not fit is refused with 452. Default: 1 GiB.
	MaxBufferedBytes int64
	// MaxRecipients is the most recipients of one transaction; further ones
	// get 452 4.5.3 (RFC 5321, 4.5.3.1.10). Default: 1000.
	MaxRecipients int
	// MaxLineLength is the longest command line in octets, CRLF included; a
	// longer one ends the connection. 512 to 65536. Default: 2048.
	MaxLineLength int
	// MaxTextLine is the longest line of a message in octets, without CRLF
	// (RFC 5321, 4.5.3.1.6). A message with a longer one is refused with 554
	// 5.6.0. Raise it where what follows re-encodes. Default: 998.
	MaxTextLine int

	// MaxConns is the most connections at once. Default: 2000.
	MaxConns int
	// MaxConnsPerAddr is the most connections at once from one IPv4 address or
	// one IPv6 /64. Default: 100.
	MaxConnsPerAddr int
	// MaxMessagesPerConn closes a connection with 421 at the MAIL after this
	// many accepted messages. Default: 0, no limit.
	MaxMessagesPerConn int

	// IdleTimeout is how long a client may wait with its next command (RFC
	// 5321, 4.5.3.2.7). It also bounds how long we wait for a client to read
	// a reply. Time-outs are armed coarsely: a wait ends between once and
	// 9/8 times its setting. Default: 5 m.
	IdleTimeout time.Duration
	// CommandTimeout is how long a begun command line may take to end, and how
	// long a TLS handshake may take. Default: 30 s.
	CommandTimeout time.Duration
	// DataTimeout is how long a client may pause within a message, and the
	// head start on MinDataRate. Default: 3 m.
	DataTimeout time.Duration
	// MinDataRate is the least average speed of a message, in octets per
	// second, once DataTimeout has passed. Default: 500.
	MinDataRate int
	// DrainTimeout is how long the rest of a refused message is read, to reach
	// the next command, before the connection is closed. Default: 10 s.
	DrainTimeout time.Duration
	// TotalTimeout is the age at which a connection is closed at its next idle
	// moment; a transaction under way may finish, within as long again.
	// Default: 1 h.
	TotalTimeout time.Duration
	// BannerDelay is how long we wait before the banner for clients that talk
	// first; those are turned away with 554. Default: 0, no check.
	BannerDelay time.Duration

	// MaxAuthFailures closes the connection with 421 at this many failed AUTH
	// commands. Default: 3.
	MaxAuthFailures int
	// AuthLockout is how long an address (IPv6: /64) may not try AUTH after
	// MaxAuthFailures failures, on whatever connections; it doubles with each
	// further one, up to an hour. Default: 10 s.
	AuthLockout time.Duration
	// MaxErrors closes a connection with 421 at this many protocol errors
	// since the last accepted message. Default: 20.
	MaxErrors int
	// MaxRefusals does the same for MAIL, RCPT and message contents that the
	// backend refused. Default: 200.
	MaxRefusals int
	// MaxJunk does the same for commands that lead nowhere: NOOP, RSET, VRFY,
	// HELP, repeated EHLO. Default: 100.
	MaxJunk int
}

// Deps are what a Server takes from its surroundings. Every field may be nil.
type Deps struct {
	// Logger gets connection failures at debug and panics at error.
	Logger *slog.Logger
	// Now is the clock; it must agree with the one behind the connections'
	// deadlines. Nil means time.Now.
	Now func() time.Time
	// Metrics is what to count in; servers may share one. Nil means that
	// nobody looks.
	Metrics *Metrics
	// Pressure is asked on accept, before MAIL and before DATA, and says why
	// mail cannot be taken just now (4xx, RFC 5321, 3.8), or nil. It is called
	// on the hot path and must not block.
	Pressure func() *smtp.SMTPError
}

const (
	minLine   = 512 // RFC 5321, 4.5.3.1.4
	maxBanner = 200
)

// withDefaults returns c with zero fields replaced by their defaults.
func (c Config) withDefaults() Config {
	setDefault(&c.Banner, "ESMTP")
	setDefault(&c.MaxMessageBytes, 50<<20)
	setDefault(&c.MaxBufferedBytes, 1<<30)
	setDefault(&c.MaxRecipients, 1000)
	setDefault(&c.MaxLineLength, 2048)
	setDefault(&c.MaxTextLine, 998)
	setDefault(&c.MaxConns, 2000)
	setDefault(&c.MaxConnsPerAddr, 100)
	setDefault(&c.IdleTimeout, 5*time.Minute)
	setDefault(&c.CommandTimeout, 30*time.Second)
	setDefault(&c.DataTimeout, 3*time.Minute)
	setDefault(&c.MinDataRate, 500)
	setDefault(&c.DrainTimeout, 10*time.Second)
	setDefault(&c.TotalTimeout, time.Hour)
	setDefault(&c.MaxAuthFailures, 3)
	setDefault(&c.AuthLockout, 10*time.Second)
	setDefault(&c.MaxErrors, 20)
	setDefault(&c.MaxRefusals, 200)
	setDefault(&c.MaxJunk, 100)
	return c
}

func setDefault[T comparable](field *T, def T) {
	var zero T
	if *field == zero {
		*field = def
	}
}

// Validate reports everything wrong with c, joined, or nil.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("inbound: "+format, args...))
	}
	if c.Hostname == "" || !printable(c.Hostname, 255) {
		bad("hostname %q is empty or not printable ASCII", c.Hostname)
	}
	if c.Banner != "" && !printableText(c.Banner, maxBanner) {
		bad("banner is not printable ASCII of at most %d octets", maxBanner)
	}
	if c.ImplicitTLS && c.TLS == nil {
		bad("implicit TLS needs a certificate")
	}
	if c.MaxLineLength != 0 && (c.MaxLineLength < minLine || c.MaxLineLength > freeBytes) {
		bad("max line length %d is not between %d and %d", c.MaxLineLength, minLine, freeBytes)
	}
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"max message bytes", c.MaxMessageBytes},
		{"max buffered bytes", c.MaxBufferedBytes},
		{"max recipients", int64(c.MaxRecipients)},
		{"max text line", int64(c.MaxTextLine)},
		{"max connections", int64(c.MaxConns)},
		{"max connections per address", int64(c.MaxConnsPerAddr)},
		{"max messages per connection", int64(c.MaxMessagesPerConn)},
		{"idle timeout", int64(c.IdleTimeout)},
		{"command timeout", int64(c.CommandTimeout)},
		{"data timeout", int64(c.DataTimeout)},
		{"min data rate", int64(c.MinDataRate)},
		{"drain timeout", int64(c.DrainTimeout)},
		{"total timeout", int64(c.TotalTimeout)},
		{"banner delay", int64(c.BannerDelay)},
		{"max auth failures", int64(c.MaxAuthFailures)},
		{"auth lockout", int64(c.AuthLockout)},
		{"max errors", int64(c.MaxErrors)},
		{"max refusals", int64(c.MaxRefusals)},
		{"max junk", int64(c.MaxJunk)},
	} {
		if f.value < 0 {
			bad("%s is negative", f.name)
		}
	}
	return errors.Join(errs...)
}

// printable reports whether s is at most limit octets of graphic ASCII.
func printable(s string, limit int) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= limit
}

// printableText is printable with spaces allowed.
func printableText(s string, limit int) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= limit
}
