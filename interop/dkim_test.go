//go:build interop && linux

package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

const (
	opendkim = "/usr/sbin/opendkim-testmsg"
	python   = "/usr/bin/python3" // Debian's own: the packages are installed for it
)

// dkimpyScript verifies every signature of every message and prints, for each
// message, how many there are and how many hold.
const dkimpyScript = `
import base64, dkim, json, sys
job = json.load(sys.stdin)
def txt(name, timeout=5):
    return job["zone"][name.decode().rstrip(".")].encode()
def good(message, i):
    try:
        return dkim.DKIM(message).verify(idx=i, dnsfunc=txt)
    except dkim.ValidationError:
        return False
for raw in job["messages"]:
    message = base64.b64decode(raw)
    n = sum(h[0].lower() == b"dkim-signature" for h in dkim.DKIM(message).headers)
    print(n, sum(bool(good(message, i)) for i in range(n)))
`

// signedMails are header and body of mail that signers have been known to get
// wrong on its way; {from} stands for the sender.
var signedMails = map[string]string{
	"plain":          "Subject: hello\r\n\r\nA line.\r\n",
	"folded":         "Subject: this one is\r\n folded\r\n\tmore  than   once\r\nX-Long: " + strings.Repeat("word ", 180) + "\r\n\r\nA line.\r\n",
	"eight bits":     "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße, 日本語\r\n",
	"empty body":     "Subject: nothing\r\n\r\n",
	"blank lines":    "Subject: blank\r\n\r\n\r\n\r\ntext \t \r\n\r\n\r\n",
	"dots":           "Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n",
	"a megabyte":     "Subject: big\r\n\r\n" + strings.Repeat(strings.Repeat("0123456789", 7)+"\r\n", 1<<20/72),
	"longest lines":  "Subject: wide\r\n\r\n" + strings.Repeat(strings.Repeat("x", 998)+"\r\n", 5),
	"two recipients": "Subject: two\r\nCc: Another <other@example.net>,\r\n Third <third@example.net>\r\n\r\nA line.\r\n",
}

func TestIndependentVerifiersAcceptWhatTheEngineSigned(t *testing.T) {
	t.Parallel()
	if !alone(t) {
		return
	}
	sink := receive(t, "127.0.0.1:0", loadgen.SinkConfig{})
	zone := zonetest.New()
	records := make(map[string]string)
	dir := t.TempDir()
	config := toSink(sink.addr)
	// opendkim-testmsg is content with one good signature, so that each
	// algorithm has a domain to itself, and a third one both.
	add := func(domain, selector, kind string, additional bool) {
		file := filepath.Join(dir, domain+"."+selector+".pem")
		name := selector + "._domainkey." + domain
		records[name] = keygen(t, kind, domain, selector, file)
		var quoted strings.Builder
		for rest := records[name]; rest != ""; {
			n := min(len(rest), 200)
			fmt.Fprintf(&quoted, " %q", rest[:n])
			rest = rest[n:]
		}
		zone.Set(name+".", "TXT"+quoted.String())
		config += fmt.Sprintf("[[dkim]]\ndomain = %q\nselector = %q\nkey_file = %q\nadditional = %v\n", domain, selector, file, additional)
	}
	add("rsa.example", "s1", "rsa2048", false)
	add("ed.example", "s1", "ed25519", false)
	add("both.example", "s1", "rsa2048", false)
	add("both.example", "s2", "ed25519", true)
	dns, err := zone.Listen("127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	resolveAt(t, "127.0.0.1")

	e := start(t, config)
	domains := []string{"rsa.example", "ed.example", "both.example"}
	c := dial(t, e.smtp[0])
	c.ask("EHLO client.example", "250")
	for name, rest := range signedMails {
		for _, d := range domains {
			c.ask("MAIL FROM:<me@"+d+"> BODY=8BITMIME", "250")
			c.ask("RCPT TO:<you@example.net>", "250")
			c.ask("DATA", "354")
			msg := fmt.Sprintf("X-Case: %s\r\nDate: Sun, 22 Nov 2026 10:00:00 +0000\r\nMessage-ID: <%s@%s>\r\nFrom: Me <me@%s>\r\nTo: you@example.net\r\n",
				name, strings.ReplaceAll(name, " ", "-"), d, d) + rest
			c.say(strings.ReplaceAll(msg, "\r\n.", "\r\n..") + ".\r\n")
			c.expect("250")
		}
	}
	got := sink.wait(t, len(signedMails)*len(domains))
	e.drained(t)

	verify := func(msg []byte) (string, error) {
		cmd := exec.CommandContext(t.Context(), opendkim, "-t", t.TempDir())
		cmd.Stdin = bytes.NewReader(msg)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatalf("%v; scripts/install-deps installs it", err)
		}
		return string(out), err
	}
	messages := make([][]byte, len(got))
	for i, m := range got {
		messages[i] = m.Body
		if out, err := verify(m.Body); err != nil {
			t.Errorf("opendkim refuses %q from <%s>: %v\n%s\n%.1500s", header(t, m.Body).Get("X-Case"), m.From, err, out, m.Body)
		}
		// It must be able to say no.
		if out, err := verify(bytes.Replace(m.Body, []byte("Subject: "), []byte("Subject: x"), 1)); err == nil {
			t.Errorf("opendkim accepts %q with another subject\n%s", header(t, m.Body).Get("X-Case"), out)
		}
	}

	job, err := json.Marshal(map[string]any{"zone": records, "messages": messages})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", dkimpyScript)
	cmd.Stdin = bytes.NewReader(job)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("dkimpy: %v\n%s", err, stderr.Bytes())
	}
	verdicts := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(verdicts) != len(got) {
		t.Fatalf("%d verdicts for %d messages", len(verdicts), len(got))
	}
	for i, m := range got {
		want := "1 1"
		if strings.HasSuffix(m.From, "@both.example") {
			want = "2 2"
		}
		if verdicts[i] != want {
			t.Errorf("dkimpy: %q from <%s>: signatures and good ones %s, want %s", header(t, m.Body).Get("X-Case"), m.From, verdicts[i], want)
		}
	}
}
