//go:build interop && linux

package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/mail"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// keygen makes a key with the binary and returns its TXT record.
func keygen(t *testing.T, kind, domain, selector, file string) (record string) {
	t.Helper()
	zone := mustRun(t, binary, "dkim", "keygen", "--type", kind, "--domain", domain, "--selector", selector, "--out", file)
	return txtOf(t, zone)
}

func TestTwentyThousandMessagesSurviveGreylisting(t *testing.T) {
	t.Parallel()
	const n = 20_000
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "s1.pem")
	// Ed25519 keeps the test cheap; interop with RSA has a test of its own.
	record := keygen(t, "ed25519", "sender.example", "s1", keyFile)

	// The sink is the program's, the counting is ours: by message and recipient.
	sink := receive(t, "127.0.0.1:0", loadgen.SinkConfig{DeferPercent: 5})
	e := start(t, toSink(sink.addr)+`
[[dkim]]
domain = "sender.example"
selector = "s1"
key_file = "`+keyFile+`"
`)
	var sent loadgen.Report
	out := mustRun(t, binary, "inject", "--target", e.smtp[0], "--messages", strconv.Itoa(n), "--connections", "10",
		"--size", "2048", "--from", "news@sender.example", "--to", "user%d@d%d.example", "--json")
	if err := json.Unmarshal([]byte(out), &sent); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if sent.Accepted != n {
		t.Fatalf("%d of %d accepted: %s", sent.Accepted, n, out)
	}
	got := sink.wait(t, n)
	e.settled(t, n)
	e.drained(t)
	if late := len(sink.messages()); late != n {
		t.Errorf("the sink has %d messages, want %d", late, n)
	}

	seen := make(map[string]int, n)
	for _, m := range got {
		seen[m.To[0]]++
	}
	for i := range n {
		to := fmt.Sprintf("user%d@d%d.example", i, i%10)
		if c := seen[to]; c != 1 {
			t.Errorf("%s: delivered %d times", to, c)
		}
	}
	if deferred := sink.Counts().Replies[451]; deferred < n/100*3 || deferred > n/100*7 {
		t.Errorf("%d greylisted, want about %d", deferred, n/20)
	}
	opt := &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		if name != "s1._domainkey.sender.example" {
			return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
		}
		return []string{record}, nil
	}}
	for _, m := range got {
		v, err := dkim.VerifyWithOptions(bytes.NewReader(m.Body), opt)
		if err != nil || len(v) != 1 || v[0].Err != nil || v[0].Domain != "sender.example" {
			t.Fatalf("<%s>: signature %+v, %v\n%.1000s", m.To[0], v, err, m.Body)
		}
	}
	t.Logf("%d messages, %d greylisted, %.0f accepted a second", n, sink.Counts().Replies[451], sent.Rate())
}

// The program's own sink and load source, without a line of ours between them.
func TestSinkAndInjectCountTheSame(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	sink := launch(t, exec.CommandContext(context.Background(), binary, "sink", "--listen", addr, "--defer", "5"))
	sink.waitSaid(t, "listening on")
	e := start(t, toSink(addr))
	mustRun(t, binary, "inject", "--target", e.smtp[0], "--messages", "2000", "--connections", "4", "--size", "1000")
	all := e.settled(t, 2000)
	e.drained(t)
	if status := sink.stop(t); status != 0 {
		t.Errorf("the sink's exit status is %d", status)
	}
	var counts loadgen.Counts
	said := sink.said()
	if err := json.Unmarshal([]byte(said[bytes.IndexByte([]byte(said), '{'):]), &counts); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if d := len(only(all, "message.delivered")); counts.Messages != 2000 || d != 2000 {
		t.Errorf("the sink has %d messages, %d were delivered, want 2000", counts.Messages, d)
	}
	if d := int64(len(only(all, "message.deferred"))); d == 0 || d != counts.Replies[451] {
		t.Errorf("%d deferred by the events, %d by the sink", d, counts.Replies[451])
	}
}

// header reads a message's fields.
func header(t *testing.T, msg []byte) mail.Header {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(msg))
	if err != nil {
		t.Fatalf("%v\n%.1000s", err, msg)
	}
	return m.Header
}
