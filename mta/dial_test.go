package mta

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// listenOnce serves one connection on the loopback interface.
func listenOnce(t *testing.T, serve func(net.Conn) error) (addr string, done <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ch := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			ch <- err
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		ch <- serve(c)
	}()
	return l.Addr().String(), ch
}

func allowAll(string, string, syscall.RawConn) error { return nil }

// greets is what comes through a proxy once it is connected.
func greets(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || line != "220 behind the proxy\r\n" {
		t.Errorf("through the proxy came %q, %v", line, err)
	}
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("the connection is a %T: it cannot be probed while idle", c)
	}
	c.Close()
}

func TestSourceGoesThroughASOCKSProxy(t *testing.T) {
	t.Parallel()
	addr, done := listenOnce(t, func(c net.Conn) error {
		var b [64]byte
		if _, err := io.ReadFull(c, b[:2]); err != nil {
			return err
		}
		io.ReadFull(c, b[:b[1]])
		c.Write([]byte{5, 2}) // user and password, please (RFC 1929)
		io.ReadFull(c, b[:2])
		user := make([]byte, b[1]+1)
		io.ReadFull(c, user)
		password := make([]byte, user[len(user)-1])
		io.ReadFull(c, password)
		c.Write([]byte{1, 0})
		if _, err := io.ReadFull(c, b[:10]); err != nil { // CONNECT to an IPv4 address
			return err
		}
		if got := fmt.Sprintf("%s %s %v %d", user[:len(user)-1], password, b[4:8], binary.BigEndian.Uint16(b[8:])); got != "me s:3cret [192 0 2 9] 25" {
			return fmt.Errorf("the proxy was asked for %s", got)
		}
		c.Write([]byte{5, 0, 0, 1, 198, 51, 100, 1, 0, 99})
		_, err := io.WriteString(c, "220 behind the proxy\r\n")
		return err
	})
	src := &Source{Name: "s", SOCKS5: "me:s:3cret@" + addr}
	c, err := dialSource(t.Context(), src, "tcp", "192.0.2.9:25", true, allowAll)
	if err != nil {
		t.Fatal(err)
	}
	greets(t, c)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSourceGoesThroughAProxyWithItsHeader(t *testing.T) {
	t.Parallel()
	addr, done := listenOnce(t, func(c net.Conn) error {
		b := make([]byte, 28)
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		want := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + "\xc6\x33\x64\x07" + "\xc0\x00\x02\x09" + "\x00\x00" + "\x00\x19"
		if string(b) != want {
			return fmt.Errorf("header %q, want %q", b, want)
		}
		_, err := io.WriteString(c, "220 behind the proxy\r\n")
		return err
	})
	c, err := dialSource(t.Context(), &Source{Address: "198.51.100.7", HAProxy: addr}, "tcp", "192.0.2.9:25", true, allowAll)
	if err != nil {
		t.Fatal(err)
	}
	greets(t, c)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestProxyIsNotAskedForForbiddenAddresses(t *testing.T) {
	t.Parallel()
	forbidden := errors.New("forbidden")
	deny := func(string, string, syscall.RawConn) error { return forbidden }
	for _, src := range []Source{{SOCKS5: "127.0.0.1:1"}, {Address: "198.51.100.7", HAProxy: "127.0.0.1:1"}} {
		if _, err := dialSource(context.Background(), &src, "tcp", "127.0.0.1:25", true, deny); !errors.Is(err, forbidden) {
			t.Errorf("%+v: %v, want the guard's refusal", src, err)
		}
	}
}

func TestProxyHeaderNeedsOneFamily(t *testing.T) {
	t.Parallel()
	six := netip.MustParseAddr("2001:db8::7")
	if b, err := proxyHeader(six, netip.MustParseAddrPort("[2001:db8::9]:25")); err != nil || len(b) != 16+36 || b[13] != 0x21 {
		t.Errorf("IPv6: %q, %v", b, err)
	}
	if _, err := proxyHeader(six, netip.MustParseAddrPort("192.0.2.9:25")); err == nil {
		t.Error("no error for two families")
	}
}

func TestMistakesInProxiesAreNamed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		src  Source
		want string
	}{
		{Source{Name: "s", SOCKS5: "proxy"}, "socks5"},
		{Source{Name: "s", SOCKS5: "me@proxy:1080"}, "socks5"},
		{Source{Name: "s", SOCKS5: "proxy:0"}, "socks5"},
		{Source{Name: "s", HAProxy: "proxy:2500"}, "needs an address"},
		{Source{Name: "s", Address: "192.0.2.1", HAProxy: ":2500"}, "haproxy"},
		{Source{Name: "s", Address: "192.0.2.1", HAProxy: "p:1", SOCKS5: "p:1"}, "one proxy"},
		{Source{Name: "s", SOCKS5: "me:secret@proxy:1080"}, ""},
		{Source{Name: "s", Address: "192.0.2.1", HAProxy: "[2001:db8::1]:2500"}, ""},
	} {
		got := fmt.Sprint(c.src.Validate())
		if c.want == "" && got != "[]" || !strings.Contains(got, c.want) {
			t.Errorf("%+v: %s, want %q", c.src, got, c.want)
		}
	}
}
