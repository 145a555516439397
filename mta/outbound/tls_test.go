package outbound_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

// certificate makes a self-signed certificate; extra grows it.
func certificate(t *testing.T, name string, from, to time.Time, extra int) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: from, NotAfter: to, IsCA: true, BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Value: make([]byte, extra)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// tlsServer offers STARTTLS with cfg and takes one message at a time.
func tlsServer(c net.Conn, cfg *tls.Config) {
	defer c.Close()
	c.Write([]byte("220 hi\r\n"))
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch strings.ToUpper(line[:4]) {
		case "EHLO":
			c.Write([]byte("250-mx\r\n250-AUTH LOGIN plain\r\n250 STARTTLS\r\n"))
		case "STAR":
			c.Write([]byte("220 go\r\n"))
			tc := tls.Server(c, cfg)
			if tc.Handshake() != nil {
				return
			}
			c, r = tc, bufio.NewReader(tc)
		case "AUTH":
			if line == "AUTH PLAIN AHVzZXIAc2VjcmV0\r\n" {
				c.Write([]byte("235 welcome\r\n"))
			} else {
				c.Write([]byte("535 5.7.8 no\r\n"))
			}
		default:
			c.Write([]byte("221 bye\r\n"))
		}
	}
}

func TestCertificateIsHeldToThePolicy(t *testing.T) {
	t.Parallel()
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where bubbles begin
	day := 24 * time.Hour
	good := certificate(t, "mx.example.net", start.Add(-day), start.Add(day), 0)
	other := certificate(t, "mx.example.org", start.Add(-day), start.Add(day), 0)
	expired := certificate(t, "mx.example.net", start.Add(-2*day), start.Add(-day), 0)
	future := certificate(t, "mx.example.net", start.Add(day), start.Add(2*day), 0)
	huge := certificate(t, "mx.example.net", start.Add(-day), start.Add(day), 1<<20)
	var chain tls.Certificate = good
	chain.Certificate = append([][]byte{}, good.Certificate...)
	for range 200 {
		chain.Certificate = append(chain.Certificate, other.Certificate[0])
	}
	for _, tc := range []struct {
		name    string
		cert    tls.Certificate
		trusted bool
		version uint16
		fails   map[outbound.TLSPolicy]bool
	}{
		{"valid", good, true, 0, nil},
		{"self-signed", good, false, 0, map[outbound.TLSPolicy]bool{outbound.Verify: true}},
		{"other name", other, true, 0, map[outbound.TLSPolicy]bool{outbound.Verify: true}},
		{"expired", expired, true, 0, map[outbound.TLSPolicy]bool{outbound.Verify: true}},
		{"not yet valid", future, true, 0, map[outbound.TLSPolicy]bool{outbound.Verify: true}},
		{"of 1 MB", huge, true, 0, map[outbound.TLSPolicy]bool{outbound.Opportunistic: true, outbound.Required: true, outbound.Verify: true}},
		{"with a chain of 200", chain, true, 0, nil},
		{"TLS 1.0 only", good, true, tls.VersionTLS10, map[outbound.TLSPolicy]bool{outbound.Opportunistic: true, outbound.Required: true, outbound.Verify: true}},
	} {
		for _, policy := range []outbound.TLSPolicy{outbound.Opportunistic, outbound.Off, outbound.Required, outbound.Verify} {
			t.Run(tc.name+"/"+policy.String(), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					roots := x509.NewCertPool()
					if tc.trusted {
						roots.AddCert(tc.cert.Leaf)
					}
					cfg := &tls.Config{Certificates: []tls.Certificate{tc.cert}, MaxVersion: tc.version, MinVersion: tls.VersionTLS10}
					o := testOptions(pipeTo(func(c net.Conn) { tlsServer(c, cfg) }))
					o.TLS = policy
					o.TLSConfig = &tls.Config{RootCAs: roots}
					c, fail := outbound.Dial(t.Context(), o)
					if tc.fails[policy] {
						if fail == nil {
							c.Close()
							t.Fatal("connected")
						}
						if fail.Stage != message.StageSTARTTLS || fail.Enhanced != (message.Enhanced{4, 7, 5}) || !fail.Local || !fail.Temporary() {
							t.Errorf("got %+v", fail)
						}
						return
					}
					if fail != nil {
						t.Fatal(fail)
					}
					if clear := c.TLS() == ""; clear != (policy == outbound.Off) {
						t.Errorf("TLS %q", c.TLS())
					}
					if policy != outbound.Off && c.TLS() != "TLS 1.3 TLS_AES_128_GCM_SHA256" {
						t.Errorf("TLS %q", c.TLS())
					}
					c.Quit(t.Context())
				})
			})
		}
	}
}

// pipeTo is a dialer whose connections serve answers.
func pipeTo(serve func(net.Conn)) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := loadgen.Pipe()
		go serve(server)
		return client, nil
	}
}

func TestFailedHandshakeIsRememberedPerHostAndSourceUntilItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(pipeTo(func(c net.Conn) { tlsServer(c, &tls.Config{}) })) // no certificate
		o.Fallback = outbound.NewFallback(10, time.Hour, nil)
		try := func(source string, policy outbound.TLSPolicy) string {
			o.Source, o.TLS = source, policy
			c, fail := outbound.Dial(t.Context(), o)
			if fail != nil {
				return fail.Stage.String()
			}
			defer c.Quit(t.Context())
			return "clear" + c.TLS()
		}
		for i, step := range []struct {
			source string
			policy outbound.TLSPolicy
			want   string
		}{
			{"ip1", outbound.Required, "starttls"}, // not remembered
			{"ip1", outbound.Opportunistic, "starttls"},
			{"ip1", outbound.Opportunistic, "clear"},
			{"ip2", outbound.Opportunistic, "starttls"},
			{"ip1", outbound.Required, "starttls"},
			{"ip1", outbound.Verify, "starttls"},
		} {
			if got := try(step.source, step.policy); got != step.want {
				t.Errorf("step %d: got %s, want %s", i, got, step.want)
			}
		}
		time.Sleep(time.Hour)
		if got := try("ip1", outbound.Opportunistic); got != "starttls" {
			t.Errorf("after the TTL: %s", got)
		}
		for i := range 50 {
			o.Host = "mx" + string(rune('a'+i%26)) + ".example.org"
			try("ip1", outbound.Opportunistic)
		}
		if n := o.Fallback.Len(); n > 10 {
			t.Errorf("%d hosts remembered, want at most 10", n)
		}
	})
}

func TestTalkBeforeTheHandshakeIsNoReasonToGoInClear(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(pipeTo(func(c net.Conn) {
			defer c.Close()
			c.Write([]byte("220 hi\r\n"))
			r := bufio.NewReader(c)
			r.ReadString('\n')
			c.Write([]byte("250-mx\r\n250 STARTTLS\r\n"))
			r.ReadString('\n')
			c.Write([]byte("220 go\r\n250-mx\r\n250 AUTH PLAIN\r\n"))
		}))
		o.Fallback = outbound.NewFallback(0, 0, nil)
		_, fail := outbound.Dial(t.Context(), o)
		if fail == nil || fail.Stage != message.StageSTARTTLS || o.Fallback.Len() != 0 {
			t.Errorf("%v, %d remembered", fail, o.Fallback.Len())
		}
	})
}

func TestHandshakeWeCancelledIsNotHeldAgainstTheHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(pipeTo(func(c net.Conn) {
			defer c.Close()
			c.Write([]byte("220 hi\r\n"))
			r := bufio.NewReader(c)
			r.ReadString('\n')
			c.Write([]byte("250-mx\r\n250 STARTTLS\r\n"))
			r.ReadString('\n')
			c.Write([]byte("220 go\r\n"))
			io.Copy(io.Discard, r)
		}))
		o.Fallback = outbound.NewFallback(0, 0, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, fail := outbound.Dial(ctx, o); fail == nil || o.Fallback.Len() != 0 {
			t.Errorf("%v, %d remembered", fail, o.Fallback.Len())
		}
	})
}

func TestLoginHappensUnderVerifiedTLSOnlyAndIsNeverTraced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		cert := certificate(t, "mx.example.net", now.Add(-time.Hour), now.Add(time.Hour), 0)
		roots := x509.NewCertPool()
		roots.AddCert(cert.Leaf)
		var trace strings.Builder
		o := testOptions(pipeTo(func(c net.Conn) { tlsServer(c, &tls.Config{Certificates: []tls.Certificate{cert}}) }))
		o.TLSConfig = &tls.Config{RootCAs: roots}
		o.Auth = &outbound.Auth{User: "user", Password: "secret"}
		o.Trace = func(d byte, line []byte) { trace.WriteString(string(d) + " " + string(line) + "\n") }
		for _, p := range []outbound.TLSPolicy{outbound.Off, outbound.Opportunistic, outbound.Required} {
			o.TLS = p
			if _, fail := outbound.Dial(t.Context(), o); fail == nil || fail.Stage != message.StageAuth {
				t.Errorf("%v: %v", p, fail)
			}
		}
		if trace.Len() > 0 {
			t.Errorf("something was said: %s", trace.String())
		}
		o.TLS = outbound.Verify
		c, fail := outbound.Dial(t.Context(), o)
		if fail != nil {
			t.Fatal(fail)
		}
		c.Quit(t.Context())
		if got := trace.String(); strings.Contains(got, "AHVz") || !strings.Contains(got, "> AUTH PLAIN ***\n< 235 welcome\n") {
			t.Errorf("trace:\n%s", got)
		}
		o.Auth.Password = "wrong"
		_, fail = outbound.Dial(t.Context(), o)
		if fail == nil || fail.Stage != message.StageAuth || fail.Code != 535 {
			t.Errorf("wrong password: %v", fail)
		}
	})
}

func TestConnectFailuresSayWhy(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		dial func(context.Context, string, string) (net.Conn, error)
		want string
	}{
		{"refused", func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
		}, "connection refused"},
		{"no answer", func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, "timed out while connecting"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				_, fail := outbound.Dial(t.Context(), testOptions(tc.dial))
				if fail == nil || fail.Stage != message.StageConnect || fail.Text != tc.want || !fail.Local || fail.Code != 0 || !fail.Temporary() {
					t.Errorf("got %+v", fail)
				}
			})
		})
	}
}
