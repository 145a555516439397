package mta

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

// Config is the [delivery] table.
type Config struct {
	// Port is the TCP port of mail exchangers.
	Port uint16 `toml:"port"`
	// MaxConnections bounds the connections of the whole engine.
	MaxConnections int `toml:"max_connections"`
	// LaneConnections bounds the connections of one source to one site,
	// whatever the shaping rules allow.
	LaneConnections int `toml:"lane_connections"`
	// IdleConnection is how long an unused connection is kept open.
	IdleConnection time.Duration `toml:"idle_connection"`
	// TLS is the policy where no route has one: off, opportunistic, required or
	// verify. The shaping rules may ask for more: the stricter holds, in the
	// order opportunistic, off, required, verify.
	TLS string `toml:"tls"`
	// RetryConnection is the pause of a lane after no host could be reached. It
	// doubles with each failure in a row up to MaxRetryConnection.
	RetryConnection    time.Duration `toml:"retry_connection"`
	MaxRetryConnection time.Duration `toml:"max_retry_connection"`
	// HostDown is how long a host that could not be reached is passed over
	// while others can.
	HostDown time.Duration `toml:"host_down"`
	// NotifyDelay is the age at which a sender who wants to know is told that
	// the message is late; 0 means never.
	NotifyDelay time.Duration `toml:"notify_delay"`
	// DrainTimeout is how long transactions under way may take to finish when
	// the engine stops.
	DrainTimeout time.Duration `toml:"drain_timeout"`
	// Timeouts of the stages of a conversation.
	Timeouts Timeouts `toml:"timeouts"`
}

// Timeouts is the [delivery.timeouts] table.
type Timeouts struct {
	Connect  time.Duration `toml:"connect"`
	Banner   time.Duration `toml:"banner"`
	EHLO     time.Duration `toml:"ehlo"`
	STARTTLS time.Duration `toml:"starttls"`
	Mail     time.Duration `toml:"mail"`
	Rcpt     time.Duration `toml:"rcpt"`
	Data     time.Duration `toml:"data"`
	Body     time.Duration `toml:"body"`
	Dot      time.Duration `toml:"dot"`
}

// DefaultConfig holds the defaults of the reference file.
func DefaultConfig() Config {
	return Config{
		Port:               25,
		MaxConnections:     10_000,
		LaneConnections:    500,
		IdleConnection:     10 * time.Second,
		TLS:                "opportunistic",
		RetryConnection:    30 * time.Second,
		MaxRetryConnection: 10 * time.Minute,
		HostDown:           2 * time.Minute,
		NotifyDelay:        4 * time.Hour,
		DrainTimeout:       30 * time.Second,
		Timeouts: Timeouts{
			Connect: 30 * time.Second, Banner: time.Minute, EHLO: time.Minute,
			STARTTLS: 30 * time.Second, Mail: 5 * time.Minute, Rcpt: 5 * time.Minute,
			Data: 2 * time.Minute, Body: time.Hour, Dot: 10 * time.Minute,
		},
	}
}

// Validate returns every problem, each naming its key.
func (c *Config) Validate() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("delivery."+format, args...)) }
	if c.Port == 0 {
		bad("port: must not be 0")
	}
	if c.MaxConnections < 1 {
		bad("max_connections: %d is less than 1", c.MaxConnections)
	}
	if c.LaneConnections < 1 {
		bad("lane_connections: %d is less than 1", c.LaneConnections)
	}
	if _, err := outbound.ParseTLSPolicy(c.TLS); err != nil {
		bad("tls: %v", err)
	}
	for name, d := range map[string]time.Duration{
		"idle_connection": c.IdleConnection, "retry_connection": c.RetryConnection,
		"max_retry_connection": c.MaxRetryConnection, "host_down": c.HostDown,
		"drain_timeout": c.DrainTimeout,
	} {
		if d <= 0 {
			bad("%s: %v is not positive", name, d)
		}
	}
	if c.NotifyDelay < 0 {
		bad("notify_delay: %v is negative", c.NotifyDelay)
	}
	return errs
}

func (t Timeouts) outbound() outbound.Timeouts {
	return outbound.Timeouts{
		Connect: t.Connect, Banner: t.Banner, EHLO: t.EHLO, STARTTLS: t.STARTTLS,
		Mail: t.Mail, Rcpt: t.Rcpt, Data: t.Data, Body: t.Body, Dot: t.Dot,
	}
}

// Source is a [[source]]: an address we send from.
type Source struct {
	Name string `toml:"name"`
	// Address is the IP address to bind to; empty leaves it to the system.
	Address string `toml:"address"`
	// EHLO is the name to greet with; empty means the hostname.
	EHLO string `toml:"ehlo"`
	// SOCKS5 is the "host:port" of a SOCKS5 proxy that connects for us, from an
	// address of its own; "user:password@host:port" logs in.
	SOCKS5 string `toml:"socks5"`
	// HAProxy is the "host:port" of a proxy that is told by a PROXY v2 header
	// which Address to connect from and where to.
	HAProxy string `toml:"haproxy"`
}

// IP is the parsed Address; invalid when the system chooses.
func (s *Source) IP() netip.Addr {
	ip, _ := netip.ParseAddr(s.Address) // checked by Validate
	return ip
}

// Validate returns every problem.
func (s *Source) Validate() (errs []error) {
	if s.Name == "" {
		errs = append(errs, fmt.Errorf("name: required"))
	}
	if s.Address != "" {
		if _, err := netip.ParseAddr(s.Address); err != nil {
			errs = append(errs, fmt.Errorf("address: %q is not an IP address", s.Address))
		}
	}
	if s.SOCKS5 != "" && s.HAProxy != "" {
		errs = append(errs, fmt.Errorf("haproxy: a source goes through one proxy, and socks5 is set"))
	}
	if s.SOCKS5 != "" {
		if _, _, err := socksServer(s.SOCKS5); err != nil {
			errs = append(errs, fmt.Errorf("socks5: %w", err))
		}
	}
	if s.HAProxy != "" {
		if err := proxyServer(s.HAProxy); err != nil {
			errs = append(errs, fmt.Errorf("haproxy: %w", err))
		}
		if s.Address == "" {
			errs = append(errs, fmt.Errorf("haproxy: the source needs an address for the proxy to send from"))
		}
	}
	if s.EHLO != "" {
		if _, err := message.ParseDomain(s.EHLO); err != nil {
			errs = append(errs, fmt.Errorf("ehlo: %w", err))
		}
	}
	return errs
}

// Pool is a [[pool]]: the sources that share a stream of mail, by weight.
type Pool struct {
	Name    string       `toml:"name"`
	Sources []PoolMember `toml:"sources"`
}

// PoolMember is one source of a pool.
type PoolMember struct {
	Source string `toml:"source"`
	Weight int    `toml:"weight"`
}

// Campaign is the weight of one campaign among its tenant's mail.
type Campaign struct {
	Name   string `toml:"name"`
	Weight int    `toml:"weight"`
}

// DefaultPool is the pool of mail that names none. Without configuration it
// holds one source that leaves the address to the system.
const DefaultPool = "default"

// Route is a [[route]]: where mail for some domains goes instead of its MX.
type Route struct {
	// Domains are exact names, "*.example.com" for everything below
	// example.com, or "*". The first route that matches wins.
	Domains []string `toml:"domains"`
	// NextHops are "host", "host:port" or "address:port", in order of
	// preference. Addresses that mail is never sent to otherwise, such as
	// loopback, are allowed here.
	NextHops []string `toml:"next_hops"`
	// TLS is the policy toward them; empty means delivery.tls.
	TLS string `toml:"tls"`
}

// Validate returns every problem.
func (r *Route) Validate() (errs []error) {
	if len(r.Domains) == 0 {
		errs = append(errs, fmt.Errorf("domains: required"))
	}
	for i, d := range r.Domains {
		name := strings.TrimPrefix(d, "*.")
		if d == "*" {
			continue
		}
		if _, err := message.ParseDomain(name); err != nil {
			errs = append(errs, fmt.Errorf("domains[%d]: %w", i, err))
		}
	}
	if len(r.NextHops) == 0 {
		errs = append(errs, fmt.Errorf("next_hops: required"))
	}
	for i, h := range r.NextHops {
		if _, _, err := splitHop(h, 25); err != nil {
			errs = append(errs, fmt.Errorf("next_hops[%d]: %w", i, err))
		}
	}
	if r.TLS != "" {
		if _, err := outbound.ParseTLSPolicy(r.TLS); err != nil {
			errs = append(errs, fmt.Errorf("tls: %w", err))
		}
	}
	return errs
}

// matches reports whether the route is for domain.
func (r *Route) matches(domain string) bool {
	for _, d := range r.Domains {
		if d == "*" || strings.EqualFold(d, domain) {
			return true
		}
		if suffix, ok := strings.CutPrefix(d, "*"); ok && len(domain) > len(suffix) && strings.EqualFold(domain[len(domain)-len(suffix):], suffix) {
			return true
		}
	}
	return false
}

// splitHop takes a next hop apart.
func splitHop(hop string, port uint16) (host string, p uint16, err error) {
	if ip, err := netip.ParseAddr(strings.Trim(hop, "[]")); err == nil {
		return ip.String(), port, nil
	}
	host, portText, err := net.SplitHostPort(hop)
	if err != nil {
		if strings.Contains(hop, ":") {
			return "", 0, fmt.Errorf("%q is not host, host:port or [IPv6]:port", hop)
		}
		host = hop
	} else {
		n, err := net.LookupPort("tcp", portText)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("%q has no usable port", hop)
		}
		port = uint16(n)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return host, port, nil
	}
	name, err := message.ParseDomain(host)
	if err != nil {
		return "", 0, fmt.Errorf("%q: %w", hop, err)
	}
	return name, port, nil
}
