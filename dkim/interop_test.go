//go:build interop && linux

package dkim

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Two verifiers nobody here wrote. Debian packages: opendkim-tools,
// python3-dkim, python3-nacl. A missing tool fails the test.
const (
	opendkim = "/usr/sbin/opendkim-testmsg"
	python   = "/usr/bin/python3" // Debian's own: the packages are installed for it
)

// dkimpyScript verifies every signature of every message by itself and prints
// a line for each message. Messages and keys come as JSON.
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
def verdict(message):
    count = sum(h[0].lower() == b"dkim-signature" for h in dkim.DKIM(message).headers)
    if count != 2:
        return "found %d signatures" % count
    bad = [i for i in range(count) if not good(message, i)]
    return "bad: %s" % bad if bad else "good"
for message in job["messages"]:
    print(verdict(base64.b64decode(message)))
`

const insideNamespace = "DKIM_INTEROP_INSIDE"

// opendkim-testmsg asks the system's resolver on port 53, so the test runs
// again in network and mount namespaces of its own, where that is ours. No
// privilege is needed, nor does any question leave the machine.
func TestIndependentVerifiersAcceptOurSignatures(t *testing.T) {
	if os.Getenv(insideNamespace) == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), insideNamespace+"=1", "RES_OPTIONS=timeout:2 attempts:1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		t.Logf("inside:\n%s", out)
		if err != nil {
			t.Fatalf("in namespaces: %v", err)
		}
		if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Fatal("the test did not run in the namespaces")
		}
		return
	}

	for _, tool := range []string{opendkim, python} {
		if _, err := os.Stat(tool); err != nil {
			t.Fatal(err)
		}
	}
	rings := make(map[string]*Ring)
	records := make(map[string]string)
	for kind, k := range testKeys() {
		rings[kind] = mustNew(t, Config{
			Keys:   []KeyConfig{{Domain: "example.com", Selector: kind, PEM: k.PEM}},
			Expiry: DefaultExpiry,
		})
		records[kind+"._domainkey.example.com"] = k.Record
	}
	serveZone(t, records)
	cases := interopCases(t, rings)

	t.Run("opendkim", func(t *testing.T) {
		// It stops at the first signature it likes, so each stands alone. Most
		// of its time goes into waiting.
		var g errgroup.Group
		g.SetLimit(8)
		for _, c := range cases {
			for kind, fields := range c.fields {
				g.Go(func() error {
					cmd := exec.CommandContext(t.Context(), opendkim, "-t", t.TempDir())
					cmd.Stdin = bytes.NewReader(join(fields, c.msg))
					out, err := cmd.CombinedOutput()
					if (err == nil) != c.good {
						t.Errorf("%s, %s: got %v, want good: %v\n%s\n%s", c.name, kind, err, c.good, out, fields)
					}
					return nil
				})
			}
		}
		g.Wait()
	})

	t.Run("dkimpy", func(t *testing.T) {
		var messages [][]byte
		for _, c := range cases {
			messages = append(messages, join(c.fields["rsa2048"], c.fields["ed25519"], c.msg))
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
			t.Fatalf("%v\n%s", err, stderr.Bytes())
		}
		verdicts := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(verdicts) != len(cases) {
			t.Fatalf("%d verdicts for %d messages", len(verdicts), len(cases))
		}
		for i, c := range cases {
			want := "good"
			if !c.good {
				want = "bad: [0, 1]"
			}
			if verdicts[i] != want {
				t.Errorf("%s: got %q, want %q", c.name, verdicts[i], want)
			}
		}
	})
}

// interopCase is a message, its signature by each ring, and whether they hold.
type interopCase struct {
	name   string
	msg    []byte
	fields map[string][]byte
	good   bool
}

// interopCases are the messages of the corpus, as signed and spoiled.
func interopCases(t *testing.T, rings map[string]*Ring) (cases []interopCase) {
	t.Helper()
	for name, msg := range corpus() {
		switch name {
		case "duplicate fields", "From only":
			continue // no messages by RFC 5322, 3.6, which OpenDKIM insists on
		case "spaces around the colon":
			continue // both verifiers do not know a field by such a name
		}
		fields := make(map[string][]byte)
		for kind, r := range rings {
			// They hold t= and x= against the clock.
			f, err := r.Sign(t.Context(), Request{Message: msg, From: "example.com", Now: time.Now()})
			if err != nil {
				t.Fatal(err)
			}
			fields[kind] = f
		}
		if !bytes.HasSuffix(msg, crlf) {
			msg = join(msg, crlf) // as SMTP will send it
		}
		cases = append(cases, interopCase{name, msg, fields, true})
		header, body, _ := bytes.Cut(msg, []byte("\r\n\r\n"))
		cases = append(cases, interopCase{name + " with a changed body", join(header, []byte("\r\n\r\nx"), body), fields, false})
		if name != "bulk mail" {
			continue
		}
		for _, added := range DefaultOversign() {
			field := []byte("\r\n" + added + ": x@example.org\r\n\r\n")
			cases = append(cases, interopCase{name + " with another " + added, join(header, field, body), fields, false})
		}
	}
	return cases
}

// serveZone makes 127.0.0.1:53 of this namespace answer for records and the
// system's resolver ask there.
func serveZone(t *testing.T, records map[string]string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatalf("bring lo up: %v", err)
	}
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind resolv.conf: %v", err)
	}

	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
		if record, ok := records[name]; ok && q.Question[0].Qtype == dns.TypeTXT {
			m.Answer = []dns.RR{&dns.TXT{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60},
				Txt: SplitTXT(record),
			}}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		w.WriteMsg(m)
	})
	udp, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: answer}, {Listener: tcp, Handler: answer}} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.ActivateAndServe()
		}()
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
}
