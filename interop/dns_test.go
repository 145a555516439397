//go:build interop && linux

package interop

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

// unbound runs Debian's resolver in front of a zone and returns its address.
func unbound(t *testing.T, zone *zonetest.Zone) string {
	t.Helper()
	upstream, err := zone.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { upstream.Close() })
	dir := t.TempDir()
	host, port, _ := net.SplitHostPort(upstream.Addr())
	own := freePort(t)
	config := fmt.Sprintf(`server:
	interface: 127.0.0.1
	port: %d
	directory: %q
	pidfile: ""
	chroot: ""
	username: ""
	use-syslog: no
	logfile: ""
	verbosity: 1
	num-threads: 1
	do-ip6: no
	do-not-query-localhost: no
	access-control: 127.0.0.0/8 allow
	module-config: "iterator"
	local-zone: "example." nodefault
	minimal-responses: yes
forward-zone:
	name: "."
	forward-addr: %s@%s
remote-control:
	control-enable: no
`, own, dir, host, port)
	file := filepath.Join(dir, "unbound.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "unbound-checkconf", file)
	p := launch(t, exec.Command("unbound", "-d", "-c", file))
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(own))
	p.waitSaid(t, "start of service")
	listening(t, addr)
	return addr
}

func TestMailFindsItsHostThroughUnbound(t *testing.T) {
	t.Parallel()
	// One port on several addresses of loopback stands for port 25 of several
	// hosts. Nobody listens on 127.0.0.30.
	first := receive(t, "127.0.0.11:0", loadgen.SinkConfig{Hostname: "mx1.example"})
	_, port, _ := net.SplitHostPort(first.addr)
	second := receive(t, "127.0.0.12:"+port, loadgen.SinkConfig{Hostname: "mx2.example"})

	zone := zonetest.New()
	zone.Set("mx1.example.", "A 127.0.0.11")
	zone.Set("mx2.example.", "A 127.0.0.12")
	zone.Set("dead.example.", "A 127.0.0.30")
	zone.Set("preference.example.", "MX 20 mx2.example.", "MX 10 mx1.example.")
	zone.Set("failover.example.", "MX 10 dead.example.", "MX 20 mx2.example.")
	zone.Set("implicit.example.", "A 127.0.0.12")
	zone.Set("null.example.", "MX 0 .")
	zone.Set("alias.example.", "CNAME preference.example.")
	zone.Set("nomail.example.", "TXT nothing")
	zone.Fail("broken.example.", zonetest.ServFail)
	// Some 3 KB of exchangers: more than fits a datagram of ours or unbound's.
	many := make([]string, 0, 81)
	for i := range 80 {
		name := fmt.Sprintf("a-rather-long-name-of-exchanger-%d.many.example.", i)
		zone.Set(name, "A 127.0.0.30")
		many = append(many, fmt.Sprintf("MX %d %s", 100+i, name))
	}
	zone.Set("many.example.", append(many, "MX 1 mx2.example.")...)

	e := start(t, `
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.0/8"]
[http]
api = "127.0.0.1:0"
trust_loopback = true
[queue]
retry = ["1s", "2s"]
[dns]
servers = ["`+unbound(t, zone)+`"]
allow_networks = ["127.0.0.0/8"]
[delivery]
port = `+port+`
retry_connection = "1s"
`)
	type verdict struct {
		domain, typ string
		by          *receiver // who gets it
		code        int
	}
	cases := []verdict{
		{"preference.example", "message.delivered", first, 250},
		{"failover.example", "message.delivered", second, 250},
		{"implicit.example", "message.delivered", second, 250},
		{"alias.example", "message.delivered", first, 250},
		{"many.example", "message.delivered", second, 250},
		{"null.example", "message.bounced", nil, 556},
		{"missing.example", "message.bounced", nil, 550},
		{"nomail.example", "message.bounced", nil, 550},
		{"broken.example", "message.deferred", nil, 0},
	}
	for _, c := range cases {
		if dialogue, status := swaks(t, e.smtp[0], "--to", "you@"+c.domain); status != 0 {
			t.Fatalf("exit status %d\n%s", status, dialogue)
		}
	}
	for _, c := range cases {
		t.Run(c.domain, func(t *testing.T) {
			var got *fact
			eventually(t, c.domain+" has an outcome", func() bool {
				for _, f := range e.events(t) {
					if f.Recipient == "you@"+c.domain && f.Type != "message.accepted" {
						got = &f
						return true
					}
				}
				return false
			})
			if got.Type != c.typ || c.code != 0 && got.Reply.Code != c.code {
				t.Fatalf("%+v, want %s with %d", got, c.typ, c.code)
			}
			if c.by == nil {
				return
			}
			found := false
			for _, m := range c.by.messages() {
				found = found || m.To[0] == "you@"+c.domain
			}
			if !found {
				t.Errorf("not at %s: %+v", c.by.addr, got)
			}
		})
	}
	if n := len(first.messages()) + len(second.messages()); n != 5 {
		t.Errorf("%d messages arrived, want 5", n)
	}
	tcp := false
	for _, q := range zone.Queries() {
		tcp = tcp || q.Network == "tcp" && strings.EqualFold(q.Name, "many.example.")
	}
	t.Logf("unbound itself needed TCP for the many exchangers: %v", tcp)

	// What SERVFAIL held back goes out when the domain answers again.
	zone.Fail("broken.example.", zonetest.OK)
	zone.Set("broken.example.", "MX 10 mx1.example.")
	eventually(t, "the deferred message is delivered", func() bool {
		for _, m := range first.messages() {
			if m.To[0] == "you@broken.example" {
				return true
			}
		}
		return false
	})
	e.drained(t)
}
