package mx

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// ErrRefused is wrapped by the errors of Check and Control.
var ErrRefused = errors.New("address refused")

// refusedNet is a network no mail is sent to, and why.
type refusedNet struct {
	prefix netip.Prefix
	why    string
}

// The networks of the IANA special-purpose registries that no mail host on the
// Internet has. Both tables are constants in all but keyword.
var refused4 = [...]refusedNet{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), "carrier-grade NAT"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private"},
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments"},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), "6to4 relay"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking"},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved or broadcast"},
}

var refused6 = [...]refusedNet{
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("::/96"), "IPv4-compatible"},
	{netip.MustParsePrefix("64:ff9b::/96"), "NAT64"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "NAT64"},
	{netip.MustParsePrefix("2001::/32"), "Teredo"},
	{netip.MustParsePrefix("2001::/23"), "protocol assignments"},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation"},
	{netip.MustParsePrefix("2002::/16"), "6to4"},
	{netip.MustParsePrefix("3fff::/20"), "documentation"},
	{netip.MustParsePrefix("fc00::/7"), "private"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("fec0::/10"), "site-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// global6 is all the IPv6 space that is allocated for global unicast.
var global6 = netip.MustParsePrefix("2000::/3")

// nat64 is the well-known prefix of RFC 6052; its last 32 bits are an IPv4
// address.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// Check returns an error that wraps ErrRefused when mail must not be sent to
// addr: it is loopback, unspecified, link-local, multicast, private (RFC 1918,
// RFC 4193), carrier-grade NAT, documentation, reserved, an IPv4 address in
// any IPv6 clothing (mapped, compatible, NAT64, 6to4, Teredo), has a zone, or
// is one of our own. Config.AllowNets lifts all but the last two: an IPv4-mapped
// address when its IPv4 address is allowed, and 64:ff9b::/96 (NAT64) only as
// far as the IPv4 address within may be mailed to as well.
func (r *Resolver) Check(addr netip.Addr) error {
	if !addr.IsValid() || addr.Zone() != "" {
		return refuse(addr, "not a global address")
	}
	if r.isOwn(addr) {
		return refuse(addr, "our own")
	}
	if r.allowed(addr) {
		if nat64.Contains(addr) {
			b := addr.As16()
			return r.Check(netip.AddrFrom4([4]byte(b[12:])))
		}
		return nil
	}
	nets := refused6[:]
	if addr.Is4() {
		nets = refused4[:]
	}
	for _, n := range nets {
		if n.prefix.Contains(addr) {
			return refuse(addr, n.why)
		}
	}
	if addr.Is4In6() {
		return refuse(addr, "IPv4-mapped")
	}
	if addr.Is6() && !global6.Contains(addr) {
		return refuse(addr, "not a global address")
	}
	return nil
}

func refuse(addr netip.Addr, why string) error {
	return fmt.Errorf("%w: %s is %s", ErrRefused, addr, why)
}

// allowed reports that the operator opted in to addr. A mapped address counts
// as the IPv4 address that the system would connect to.
func (r *Resolver) allowed(addr netip.Addr) bool {
	addr = addr.Unmap()
	return slices.ContainsFunc(r.cfg.AllowNets, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func (r *Resolver) isOwn(addr netip.Addr) bool {
	if r.cfg.OwnAddrs == nil {
		return false
	}
	addr = addr.Unmap()
	return slices.ContainsFunc(r.cfg.OwnAddrs(), func(own netip.Addr) bool {
		return own.Unmap().WithZone("") == addr
	})
}

// Control is a net.Dialer.Control that applies Check to the address the system
// is about to connect to, so that nothing between resolution and connection
// can change it. Whatever is not an IP address and a port is refused.
func (r *Resolver) Control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %q is not an IP address and port", ErrRefused, address)
	}
	return r.Check(ap.Addr())
}
