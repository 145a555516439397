package inbound

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// testTLS returns a server configuration with a throw-away certificate and a
// client configuration that trusts it.
func testTLS(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"mx.test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{RootCAs: pool, ServerName: "mx.test"}
}

func (c *client) startTLS(cfg *tls.Config) *client {
	c.t.Helper()
	tc := tls.Client(c.nc, cfg)
	if err := tc.Handshake(); err != nil {
		c.t.Errorf("handshake: %v", err)
	}
	return newClient(c.t, tc)
}

func TestStartTLSForgetsWhatWasSaidBefore(t *testing.T) {
	server, trusting := testTLS(t)
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.TLS = server
		m := &mailbox{passwords: map[string]string{"u": "p"}}
		_, l, stop := start(t, cfg, m, Deps{})
		defer stop()
		c := newClient(t, l.dial("192.0.2.1"))
		c.expect("220")
		c.do("STARTTLS", "503")
		out := c.do("EHLO x", "250")
		if !strings.Contains(out, "STARTTLS") || strings.Contains(out, "AUTH") {
			t.Errorf("in clear: %q", out)
		}
		c.do("AUTH PLAIN AHUAcA==", "538 5.7.11")
		c.do("MAIL FROM:<>", "250")
		c.do("STARTTLS", "503")
		c.do("RSET", "250")
		c.do("STARTTLS x", "501")
		c.do("STARTTLS", "220")
		c = c.startTLS(trusting)
		c.do("MAIL FROM:<>", "503")
		out = c.do("EHLO x", "250")
		if strings.Contains(out, "STARTTLS") || !strings.Contains(out, "AUTH PLAIN LOGIN") {
			t.Errorf("under TLS: %q", out)
		}
		c.do("STARTTLS", "503")
		c.do("AUTH PLAIN AHUAcA==", "235")
		c.do("MAIL FROM:<>", "250")
		c.do("RCPT TO:<b@b.test>", "250")
		c.do("DATA", "354")
		c.do("x\r\n.", "250")
		c.nc.Close()
	})
}

func TestBytesSentWithStartTLSEndTheConnection(t *testing.T) {
	t.Parallel()
	server, _ := testTLS(t)
	cfg := testConfig()
	cfg.TLS = server
	for _, injected := range []string{"RSET\r\n", envelope, "\x16\x03\x01", "x"} {
		m := &mailbox{}
		nc := &scriptConn{}
		out := talkTo(New(cfg, m, Deps{}), nc, hello, "STARTTLS\r\n"+injected, envelope)
		if got, want := codes(out), "220 250 554"; got != want || !nc.closed {
			t.Errorf("%q: got %s, want %s", injected, got, want)
		}
		if strings.Contains(strings.Join(m.calls, " "), "MAIL") {
			t.Errorf("%q: run %q", injected, m.calls)
		}
	}
}

func TestFailedHandshakeEndsTheConnectionWithoutAnotherWordInClear(t *testing.T) {
	t.Parallel()
	server, _ := testTLS(t)
	for _, garbage := range []string{"EHLO x\r\n" + envelope, strings.Repeat("\x00", 100), "\x16\x03\x01\x00\x05hello", ""} {
		for _, implicit := range []bool{false, true} {
			cfg := testConfig()
			cfg.TLS, cfg.ImplicitTLS = server, implicit
			m := &mailbox{}
			nc := &scriptConn{}
			chunks := []string{hello, "STARTTLS\r\n", garbage, hello + envelope}
			if implicit {
				chunks = chunks[2:]
			}
			s := New(cfg, m, Deps{})
			out := talkTo(s, nc, chunks...)
			want := "220 250 220"
			if implicit {
				want = ""
			}
			if i := strings.Index(out, "Ready to start TLS\r\n"); i >= 0 {
				out = out[:i+len("Ready to start TLS\r\n")] // an alert may follow
			} else if implicit {
				out = ""
			}
			if got := codes(out); got != want || !nc.closed {
				t.Errorf("%q: got %s, want %s", garbage, got, want)
			}
			if strings.Contains(strings.Join(m.calls, " "), "MAIL") {
				t.Errorf("%q: run %q", garbage, m.calls)
			}
			if n := testutil.ToFloat64(s.m.refusals[refusedTLS]); n != 1 {
				t.Errorf("%q: %v TLS failures counted", garbage, n)
			}
		}
	}
}

func TestStalledHandshakeIsCutOff(t *testing.T) {
	server, _ := testTLS(t)
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.TLS, cfg.ImplicitTLS = server, true
		_, l, stop := start(t, cfg, &mailbox{}, Deps{})
		defer stop()
		began := time.Now()
		c := newClient(t, l.dial("192.0.2.1"))
		c.expectClosed()
		within(t, began, 30*time.Second, 31*time.Second)
	})
}

// A chunk that is cut by the end of the connection counts as short with or
// without a proper TLS close.
func TestShortChunkUnderTLSIsNeverAcknowledged(t *testing.T) {
	server, trusting := testTLS(t)
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.TLS, cfg.ImplicitTLS = server, true
		m := &mailbox{}
		_, l, stop := start(t, cfg, m, Deps{})
		for _, notify := range []bool{true, false} {
			raw := l.dial("192.0.2.1")
			c := newClient(t, raw).startTLS(trusting)
			c.expect("220")
			c.do("EHLO x", "250")
			c.do("MAIL FROM:<>", "250")
			c.do("RCPT TO:<b@b.test>", "250")
			c.send("BDAT 1000 LAST\r\nhello, this is short\r\n")
			if notify {
				go io.Copy(io.Discard, raw)
				c.nc.(*tls.Conn).CloseWrite()
			}
			raw.Close()
		}
		synctest.Wait()
		stop()
		if len(m.messages) > 0 {
			t.Errorf("took %q", m.messages)
		}
	})
}
