package event

import (
	"fmt"
	"net/netip"
	"syscall"
)

// special holds what is neither private nor loopback and still not the public
// Internet (the IANA special-purpose registries; RFC 6890).
var special = [...]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT, and some clouds' metadata
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001::/23"), // Teredo and its neighbours carry IPv4 within
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // 6to4
	netip.MustParsePrefix("3fff::/20"),
}

var globalUnicast6 = netip.MustParsePrefix("2000::/3")

// Public reports whether ip is an ordinary address of the public Internet. In
// IPv6 only 2000::/3 is: that leaves out mapped and translated IPv4.
func Public(ip netip.Addr) bool {
	ip = ip.Unmap()
	if !ip.IsValid() || !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return false
	}
	if ip.Is6() && !globalUnicast6.Contains(ip) {
		return false
	}
	for _, p := range special {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// PublicOnly returns a net.Dialer Control function that lets connections go to
// public addresses and to those in allow only. It sees the address that the
// connection is really made to, after name resolution, so that a name which
// answers differently the second time gains nothing.
func PublicOnly(allow ...netip.Prefix) func(network, address string, c syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("event: webhook may not connect to %q", address)
		}
		ip := ap.Addr().Unmap().WithZone("")
		if Public(ip) {
			return nil
		}
		for _, p := range allow {
			if p.Contains(ip) {
				return nil
			}
		}
		return fmt.Errorf("event: webhook may not connect to %s: not a public address", ip)
	}
}
