//go:build interop && linux

package interop

import (
	"bytes"
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// certificate makes a self-signed pair in dir.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	mustRun(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mta.interop.example", "-keyout", key, "-out", cert)
	return cert, key
}

// swaks runs swaks against an address; what it prints is the dialogue. Its exit
// status is 0 if the mail was accepted, 24 to 29 for a refusal at a stage.
func swaks(t *testing.T, addr string, args ...string) (dialogue string, status int) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return tool(t, "swaks", append([]string{"--server", host, "--port", port, "--helo", "client.example", "--from", "me@example.com"}, args...)...)
}

func TestSwaksSubmits(t *testing.T) {
	t.Parallel()
	sink := receive(t, "127.0.0.1:0", loadgen.SinkConfig{})
	dir := t.TempDir()
	cert, key := certificate(t, dir)
	e := start(t, toSink(sink.addr)+`
[[smtp]]
listen = "127.0.0.1:0"
tls_cert = "`+cert+`"
tls_key = "`+key+`"
[[smtp]]
listen = "127.0.0.1:0"
implicit_tls = true
tls_cert = "`+cert+`"
tls_key = "`+key+`"
[[tenant]]
name = "acme"
`)
	open, login, implicit := e.smtp[0], e.smtp[1], e.smtp[2]
	secret := strings.TrimSpace(strings.Split(mustRun(t, binary, "key", "create", "--admin", e.admin, "--name", "swaks", "--tenant", "acme"), "\n")[0])

	// The size and the bytes of an attachment are those of binary mail.
	blob := bytes.Repeat([]byte{0, 1, 2, 0xFF, '\r', '\n', '.', '\n'}, 40<<10)
	attached := filepath.Join(dir, "blob.bin")
	if err := os.WriteFile(attached, blob, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		name, addr string
		args       []string
	}{
		{"in clear", open, nil},
		{"pipelined", open, []string{"--pipeline"}},
		{"with an attachment", open, []string{"--attach", "@" + attached}},
		{"a body of dots", open, []string{"--body", ".\n..\n.leading\n.\n"}},
		{"STARTTLS and AUTH PLAIN", login, []string{"--tls", "--auth", "PLAIN", "--auth-user", "acme", "--auth-password", secret}},
		{"STARTTLS and AUTH LOGIN", login, []string{"--tls", "--auth", "LOGIN", "--auth-user", "acme", "--auth-password", secret}},
		{"implicit TLS and AUTH PLAIN", implicit, []string{"--tlsc", "--auth", "PLAIN", "--auth-user", "acme", "--auth-password", secret}},
		{"pipelined behind STARTTLS and AUTH", login, []string{"--tls", "--pipeline", "--auth", "PLAIN", "--auth-user", "acme", "--auth-password", secret}},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := strings.ToLower(strings.NewReplacer(" ", "-", ",", "").Replace(c.name)) + "@example.net"
			dialogue, status := swaks(t, c.addr, append(c.args, "--to", to, "--header", "X-Case: "+c.name)...)
			if status != 0 {
				t.Fatalf("exit status %d\n%s", status, dialogue)
			}
			var got *loadgen.Received
			eventually(t, "it reaches the sink", func() bool {
				for _, m := range sink.messages() {
					if m.To[0] == to {
						got = m
					}
				}
				return got != nil
			})
			if !bytes.Contains(got.Body, []byte("X-Case: "+c.name+"\r\n")) {
				t.Errorf("the header is gone:\n%.2000s", got.Body)
			}
			with := "with ESMTP id"
			if strings.Contains(c.name, "AUTH") {
				with = "with ESMTPSA id"
			}
			if !bytes.Contains(got.Body, []byte(with)) {
				t.Errorf("no %q in the Received field:\n%.1000s", with, got.Body)
			}
			switch c.name {
			case "with an attachment":
				encoded := bytes.ReplaceAll(got.Body, []byte("\r\n"), nil)
				if !bytes.Contains(encoded, []byte(base64.StdEncoding.EncodeToString(blob))) {
					t.Error("the attachment has changed")
				}
			case "a body of dots":
				if b := bodyOf(got.Body); !bytes.HasPrefix(b, []byte(".\r\n..\r\n.leading\r\n.\r\n")) {
					t.Errorf("body %q", b)
				}
			}
		})
	}

	t.Run("AUTH is not offered in clear, and refused", func(t *testing.T) {
		dialogue, status := swaks(t, login, "--to", "you@example.net", "--auth", "PLAIN", "--auth-user", "acme", "--auth-password", secret)
		if status == 0 || strings.Contains(dialogue, "250-AUTH") || strings.Contains(dialogue, "250 AUTH") {
			t.Errorf("exit status %d\n%s", status, dialogue)
		}
		c := dial(t, login)
		c.ask("EHLO client.example", "250")
		c.ask("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00acme\x00"+secret)), "538 5.7.11")
	})
	t.Run("a wrong password is refused", func(t *testing.T) {
		dialogue, status := swaks(t, login, "--to", "you@example.net", "--tls", "--auth", "PLAIN", "--auth-user", "acme", "--auth-password", secret+"x")
		if status != 28 || !strings.Contains(dialogue, "535 5.7.8") {
			t.Errorf("exit status %d, want 28\n%s", status, dialogue)
		}
	})
	t.Run("no mail without AUTH where it is asked for", func(t *testing.T) {
		dialogue, status := swaks(t, login, "--to", "you@example.net", "--tls")
		if status != 23 || !strings.Contains(dialogue, "530 5.7.0") {
			t.Errorf("exit status %d, want 23\n%s", status, dialogue)
		}
	})
	t.Run("no relaying for a client outside relay_from", func(t *testing.T) {
		dialogue, status := swaks(t, open, "--to", "you@example.net", "--local-interface", "127.0.0.2")
		if status != 23 || !strings.Contains(dialogue, "550 5.7.1") {
			t.Errorf("exit status %d, want 23\n%s", status, dialogue)
		}
	})
	if got, want := len(sink.messages()), 8; got != want {
		t.Errorf("the sink has %d messages, want %d", got, want)
	}
	e.drained(t)
}
