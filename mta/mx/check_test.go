package mx

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

// spellings are addresses and whether mail may go there by default. The reason
// is part of the error's text.
var spellings = []struct{ addr, why string }{
	{"0.0.0.0", "unspecified"},
	{"0.1.2.3", "unspecified"},
	{"10.0.0.1", "private"},
	{"10.255.255.255", "private"},
	{"100.64.0.1", "carrier-grade NAT"},
	{"100.127.255.255", "carrier-grade NAT"},
	{"127.0.0.1", "loopback"},
	{"127.255.255.254", "loopback"},
	{"169.254.169.254", "link-local"},
	{"172.16.0.1", "private"},
	{"172.31.255.255", "private"},
	{"192.0.0.1", "protocol assignments"},
	{"192.0.2.1", "documentation"},
	{"192.88.99.1", "6to4 relay"},
	{"192.168.1.1", "private"},
	{"198.18.0.1", "benchmarking"},
	{"198.51.100.1", "documentation"},
	{"203.0.113.1", "documentation"},
	{"224.0.0.1", "multicast"},
	{"239.255.255.255", "multicast"},
	{"240.0.0.1", "reserved"},
	{"255.255.255.255", "broadcast"},
	{"::", "unspecified"},
	{"::1", "loopback"},
	{"0:0:0:0:0:0:0:1", "loopback"},
	{"::127.0.0.1", "IPv4-compatible"},
	{"::8.8.8.8", "IPv4-compatible"},
	{"::ffff:127.0.0.1", "IPv4-mapped"},
	{"::ffff:7f00:1", "IPv4-mapped"},
	{"::ffff:10.0.0.1", "IPv4-mapped"},
	{"::ffff:8.8.8.8", "IPv4-mapped"},
	{"::ffff:0:127.0.0.1", "not a global address"},
	{"64:ff9b::127.0.0.1", "NAT64"},
	{"64:ff9b::8.8.8.8", "NAT64"},
	{"64:ff9b:1::10.0.0.1", "NAT64"},
	{"100::1", "not a global address"},
	{"2001::1", "Teredo"},
	{"2001:10::1", "protocol assignments"},
	{"2001:db8::1", "documentation"},
	{"2002:7f00:1::", "6to4"},
	{"2002:808:808::1", "6to4"},
	{"3fff::1", "documentation"},
	{"4000::1", "not a global address"},
	{"5f00::1", "not a global address"},
	{"fc00::1", "private"},
	{"fd12:3456::1", "private"},
	{"fe80::1", "link-local"},
	{"fe80::1%eth0", "not a global address"},
	{"2a00:1450::1%eth0", "not a global address"},
	{"fec0::1", "site-local"},
	{"ff02::1", "multicast"},
	{"8.8.8.7", "our own"},
	{"::ffff:8.8.8.7", "our own"},
	{"2a00:1450::7", "our own"},
	{"1.1.1.1", ""},
	{"8.8.8.8", ""},
	{"100.63.255.255", ""},
	{"100.128.0.1", ""},
	{"126.255.255.255", ""},
	{"128.0.0.1", ""},
	{"172.15.255.255", ""},
	{"172.32.0.1", ""},
	{"192.0.1.1", ""},
	{"198.17.255.255", ""},
	{"198.20.0.1", ""},
	{"223.255.255.255", ""},
	{"2001:200::1", ""},
	{"2001:4860:4860::8888", ""},
	{"2003::1", ""},
	{"2a00:1450::1", ""},
	{"3ffe::1", ""},
}

func TestMailGoesOnlyToAddressesOfTheInternet(t *testing.T) {
	t.Parallel()
	r := newResolver(t, zonetest.New(), func(c *Config, _ *Deps) {
		c.AllowNets = nil
		c.OwnAddrs = func() []netip.Addr {
			return []netip.Addr{netip.MustParseAddr("8.8.8.7"), netip.MustParseAddr("2a00:1450::7")}
		}
	})
	refused := 0
	for _, tt := range spellings {
		addr := netip.MustParseAddr(tt.addr)
		atDial := r.Control("tcp", netip.AddrPortFrom(addr, 25).String(), nil)
		for how, err := range map[string]error{"Check": r.Check(addr), "Control": atDial} {
			switch {
			case tt.why == "" && err != nil:
				t.Errorf("%s %s: got %v, want none", how, tt.addr, err)
			case tt.why != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tt.why)):
				t.Errorf("%s %s: got %v, want it refused as %s", how, tt.addr, err, tt.why)
			}
		}
		if tt.why != "" {
			refused++
		}
	}
	if refused < 40 {
		t.Errorf("only %d spellings are refused", refused)
	}
	if err := r.Check(netip.Addr{}); !errors.Is(err, ErrRefused) {
		t.Errorf("no address: got %v", err)
	}
	for _, s := range []string{"", "example.com:25", "8.8.8.8", "unix.sock", "8.8.8.8:99999", "[::1%eth0]:25"} {
		if err := r.Control("tcp", s, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("Control %q: got %v, want it refused", s, err)
		}
	}
}

func TestAllowedNetworksAreTheOperatorsChoice(t *testing.T) {
	t.Parallel()
	own := netip.MustParseAddr("10.0.0.9")
	r := newResolver(t, zonetest.New(), func(c *Config, _ *Deps) {
		c.AllowNets = []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/8"),
			netip.MustParsePrefix("fd00::/8"),
			netip.MustParsePrefix("64:ff9b::/96"),
		}
		c.OwnAddrs = func() []netip.Addr { return []netip.Addr{own} }
	})
	for s, ok := range map[string]bool{
		"10.1.2.3":             true,
		"::ffff:10.1.2.3":      true,
		"fd00::1":              true,
		"64:ff9b::8.8.8.8":     true,
		"64:ff9b::10.1.2.3":    true,
		"64:ff9b::10.0.0.9":    false,
		"64:ff9b::127.0.0.1":   false,
		"64:ff9b::192.168.1.1": false,
		"10.0.0.9":             false,
		"::ffff:10.0.0.9":      false,
		"fd00::1%eth0":         false,
		"192.168.1.1":          false,
		"::ffff:192.168.1.1":   false,
		"127.0.0.1":            false,
	} {
		if err := r.Check(netip.MustParseAddr(s)); (err == nil) != ok {
			t.Errorf("%s: got %v, want allowed %v", s, err, ok)
		}
	}
}

func TestDialIsRefusedAfterARebinding(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newResolver(t, zonetest.New(), nil)

	// Whatever name or answer led here, the system is about to connect to us.
	d := net.Dialer{Control: r.Control}
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want the address refused", err)
	}

	allowed := newResolver(t, zonetest.New(), func(c *Config, _ *Deps) {
		c.AllowNets = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	d = net.Dialer{Control: allowed.Control}
	c, err = d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("got %v where the operator allowed it", err)
	}
	c.Close()
}
