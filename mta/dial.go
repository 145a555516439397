package mta

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/proxy"

	"github.com/tradewind-mta/tradewind/mta/mx"
)

// dialer connects through the network, by the source's proxy if it has one.
// checked connections refuse addresses that mail is never sent to, at the moment
// of connecting.
func dialer(r *mx.Resolver) func(context.Context, *Source, string, string, bool) (net.Conn, error) {
	return func(ctx context.Context, src *Source, network, addr string, checked bool) (net.Conn, error) {
		return dialSource(ctx, src, network, addr, checked, r.Control)
	}
}

func dialSource(ctx context.Context, src *Source, network, addr string, checked bool, control func(string, string, syscall.RawConn) error) (net.Conn, error) {
	d := &net.Dialer{KeepAlive: -1}
	if src.SOCKS5 != "" || src.HAProxy != "" {
		// The proxy connects, so nobody else can look at the address later.
		if checked {
			if err := control(network, addr, nil); err != nil {
				return nil, err
			}
		}
		if src.SOCKS5 != "" {
			return dialSOCKS(ctx, d, src, network, addr)
		}
		return dialHAProxy(ctx, d, src, network, addr)
	}
	if ip := src.IP(); ip.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))
	}
	if checked {
		d.Control = control
	}
	return d.DialContext(ctx, network, addr)
}

// socksServer takes "user:password@host:port" apart.
func socksServer(s string) (server string, auth *proxy.Auth, err error) {
	server = s
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		user, password, ok := strings.Cut(s[:i], ":")
		if !ok || user == "" || len(user) > 255 || len(password) > 255 {
			return "", nil, fmt.Errorf("the login is not user:password of up to 255 octets each")
		}
		server, auth = s[i+1:], &proxy.Auth{User: user, Password: password}
	}
	return server, auth, proxyServer(server)
}

func proxyServer(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not host:port", s)
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
		return fmt.Errorf("%q has no usable port", s)
	}
	return nil
}

// dialSOCKS connects through a SOCKS5 proxy (RFC 1928, 1929).
func dialSOCKS(ctx context.Context, d *net.Dialer, src *Source, network, addr string) (net.Conn, error) {
	server, auth, err := socksServer(src.SOCKS5)
	if err != nil {
		return nil, err
	}
	way := &firstConn{d: d}
	s, err := proxy.SOCKS5("tcp", server, auth, way)
	if err != nil {
		return nil, fmt.Errorf("mta: SOCKS5 proxy: %w", err)
	}
	if _, err := s.(proxy.ContextDialer).DialContext(ctx, network, addr); err != nil {
		if way.c != nil {
			way.c.Close()
		}
		return nil, err
	}
	return way.c, nil
}

// firstConn keeps the connection to the proxy itself: once the proxy has
// connected, it is all that is needed, and unlike the wrapper around it can be
// probed and closed by halves.
type firstConn struct {
	d *net.Dialer
	c net.Conn
}

// Dial is for proxy.Dialer, which prefers DialContext.
func (f *firstConn) Dial(network, addr string) (net.Conn, error) {
	return f.DialContext(context.Background(), network, addr)
}

// DialContext connects to the proxy.
func (f *firstConn) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := f.d.DialContext(ctx, network, addr)
	f.c = c
	return c, err
}

// dialHAProxy connects to a proxy and tells it where to connect from and to.
func dialHAProxy(ctx context.Context, d *net.Dialer, src *Source, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("mta: proxy: %q is not an address and port", addr)
	}
	header, err := proxyHeader(src.IP(), to)
	if err != nil {
		return nil, err
	}
	c, err := d.DialContext(ctx, network, src.HAProxy)
	if err != nil {
		return nil, err
	}
	if by, ok := ctx.Deadline(); ok {
		c.SetWriteDeadline(by)
	}
	if _, err := c.Write(header); err != nil {
		c.Close()
		return nil, fmt.Errorf("mta: proxy header: %w", err)
	}
	c.SetWriteDeadline(time.Time{})
	return c, nil
}

// proxySignature begins every header of version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is the binary header of the PROXY protocol, version 2 (HAProxy,
// proxy-protocol.txt, 2.2): a TCP connection from a source address, any port, to
// a destination.
func proxyHeader(from netip.Addr, to netip.AddrPort) ([]byte, error) {
	from, dest := from.Unmap(), to.Addr().Unmap()
	if !from.IsValid() || from.Is4() != dest.Is4() {
		return nil, fmt.Errorf("mta: proxy: source %v and destination %v are not of one family", from, dest)
	}
	family := byte(0x21) // AF_INET6, STREAM
	if from.Is4() {
		family = 0x11
	}
	b := append([]byte(proxySignature), 0x21, family)
	addrs := append(from.AsSlice(), dest.AsSlice()...)
	addrs = binary.BigEndian.AppendUint16(addrs, 0)
	addrs = binary.BigEndian.AppendUint16(addrs, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(len(addrs)))
	return append(b, addrs...), nil
}
