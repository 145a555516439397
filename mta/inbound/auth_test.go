package inbound

import (
	"encoding/base64"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestAuth runs with AUTH permitted on loopback, so that it needs no TLS.
func TestAuth(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, send, want string }{
		{"plain", "AUTH PLAIN " + b64("\x00u\x00p") + "|", "235"},
		{"plain in two steps", "AUTH PLAIN|" + b64("\x00u\x00p") + "|", "334 235"},
		{"login", "auth login|" + b64("u") + "|" + b64("p") + "|", "334 334 235"},
		{"login with initial response", "AUTH LOGIN " + b64("u") + "|" + b64("p") + "|", "334 235"},
		{"wrong password", "AUTH PLAIN " + b64("\x00u\x00x") + "|", "535"},
		{"wrong password by login", "AUTH LOGIN|" + b64("u") + "|" + b64("x") + "|", "334 334 535"},
		{"NUL in a login name", "AUTH LOGIN|" + b64("u\x00p") + "|", "334 535"},
		{"canceled", "AUTH LOGIN|*|NOOP|", "334 501 250"},
		{"not base64", "AUTH PLAIN !!!|", "501"},
		{"not base64 in a response", "AUTH PLAIN|!!!|", "334 501"},
		{"malformed response", "AUTH PLAIN " + b64("u") + "|", "454"},
		{"empty response", "AUTH PLAIN =|", "454"},
		{"unknown mechanism", "AUTH CRAM-MD5|", "504"},
		{"no mechanism", "AUTH|", "504"},
		{"twice", "AUTH PLAIN " + b64("\x00u\x00p") + "|AUTH PLAIN " + b64("\x00u\x00p") + "|", "235 503"},
		{"in a transaction", "MAIL FROM:<>|AUTH PLAIN " + b64("\x00u\x00p") + "|", "250 503"},
		{"three failures", strings.Repeat("AUTH PLAIN "+b64("\x00u\x00x")+"|", 5), "535 535 421"},
		{"response too long", "AUTH PLAIN|" + strings.Repeat("A", 3000) + "|", "334 500"},
		{"pipelined after AUTH", "AUTH PLAIN " + b64("\x00u\x00p") + "\r\nNOOP|", "554"},
		{"pipelined after a response", "AUTH PLAIN|" + b64("\x00u\x00p") + "\r\nNOOP|", "334 554"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig()
			cfg.AllowLoopbackAuth = true
			m := &mailbox{passwords: map[string]string{"u": "p"}}
			chunks := []string{hello}
			for c := range strings.SplitSeq(strings.TrimSuffix(tt.send, "|"), "|") {
				chunks = append(chunks, c+"\r\n")
			}
			out := talk(t, cfg, m, chunks...)
			if got := strings.TrimPrefix(codes(out), "220 250 "); got != tt.want {
				t.Errorf("got %s, want %s\n%s", got, tt.want, out)
			}
		})
	}
}

func TestAuthOnLoopbackIsForLoopbackClients(t *testing.T) {
	t.Parallel()
	for ip, want := range map[string]string{"127.0.0.5": "235", "::1": "235", "192.0.2.1": "538", "::ffff:127.0.0.1": "235"} {
		cfg := testConfig()
		cfg.AllowLoopbackAuth = true
		m := &mailbox{passwords: map[string]string{"u": "p"}}
		nc := &scriptConn{remote: &net.TCPAddr{IP: net.ParseIP(ip)}}
		out := talkTo(New(cfg, m, Deps{}), nc, hello, "AUTH PLAIN "+b64("\x00u\x00p")+"\r\n")
		if got := lastReply(out)[:3]; got != want {
			t.Errorf("from %s: got %s, want %s", ip, got, want)
		}
		if offered := strings.Contains(out, "AUTH"); offered != (want == "235") {
			t.Errorf("from %s: offered %v", ip, offered)
		}
	}
}

// Guesses from one address, on as many connections as it likes, reach the
// backend ever more rarely.
func TestPasswordGuessesAreSlowedDownByAddress(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	cfg := testConfig()
	cfg.AllowLoopbackAuth = true
	m := &mailbox{passwords: map[string]string{"u": "p"}, quiet: true}
	s := New(cfg, m, Deps{Now: func() time.Time { return now }})
	guess := "AUTH PLAIN " + b64("\x00u\x00x") + "\r\n"
	for range 10_000 { // a connection a second
		talkTo(s, &scriptConn{}, hello, guess, guess, guess)
		now = now.Add(time.Second)
	}
	if m.guesses > 15 {
		t.Errorf("%d guesses of 30,000 reached the backend in three hours", m.guesses)
	}
	out := talkTo(s, &scriptConn{}, hello, "AUTH PLAIN "+b64("\x00u\x00p")+"\r\n")
	if !strings.Contains(out, "454 4.7.0") {
		t.Errorf("locked out, but heard %q", lastReply(out))
	}
	other := &scriptConn{remote: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	out = talkTo(s, other, hello, "AUTH PLAIN "+b64("\x00u\x00p")+"\r\n")
	if got := lastReply(out)[:3]; got != "235" {
		t.Errorf("another address: %q", lastReply(out))
	}
}

func TestLockoutTableIsBounded(t *testing.T) {
	t.Parallel()
	var a admission
	a.init(testConfig().withDefaults())
	now := time.Unix(1_700_000_000, 0)
	for i := range 3 * maxLockouts {
		ip := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		a.authFailed(netip.PrefixFrom(ip, 32), now.Add(time.Duration(i)))
	}
	if len(a.failures) > maxLockouts {
		t.Errorf("%d entries, want at most %d", len(a.failures), maxLockouts)
	}
}

func TestAddressesAreCountedByWhatASubscriberGets(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"192.0.2.7":            "192.0.2.7/32",
		"::ffff:192.0.2.7":     "192.0.2.7/32",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"fe80::1%eth0":         "fe80::/64",
	} {
		addr := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(in), 1))
		if got := addrKey(addr).String(); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	if got := addrKey(&net.UnixAddr{Name: "/run/x"}); got.IsValid() {
		t.Errorf("unix socket: got %s", got)
	}
}
