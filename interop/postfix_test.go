//go:build interop && linux

package interop

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mainCF delivers everything for one domain into a maildir and changes nothing
// of what comes in. {dir} is the instance's directory.
const mainCF = `compatibility_level = 3.6
queue_directory = {dir}/queue
data_directory = {dir}/data
maillog_file = /dev/stdout
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.postfix.example
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
local_recipient_maps =
relay_domains =
smtpd_relay_restrictions = reject_unauth_destination
virtual_mailbox_domains = postfix.example
virtual_mailbox_maps = static:inbox/
virtual_mailbox_base = {dir}/mail
virtual_mailbox_limit = 0
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
local_header_rewrite_clients =
message_drop_headers =
smtpd_client_connection_count_limit = 0
smtpd_timeout = 30s
message_size_limit = 20000000
mailbox_size_limit = 0
`

const masterCF = `127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
proxymap  unix  - - n - - proxymap
flush     unix  n - n 1000? 0 flush
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
virtual   unix  - n n - - virtual
anvil     unix  - - n - 1 anvil
tlsmgr    unix  - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
`

// postfix runs an instance of Postfix with directories of its own, which no
// Postfix of this machine knows of. It needs root, as Postfix does.
func postfix(t *testing.T) (addr, maildir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("Postfix starts as root only; run the interop tests as root, in a container for instance")
	}
	// Not t.TempDir: Postfix's own users must get in.
	dir, err := os.MkdirTemp("", "tradewind-postfix-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const nobody = 65534
	for _, d := range []string{"", "conf", "queue", "data", "mail"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(dir, "mail"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "chown", "postfix", filepath.Join(dir, "data"))
	port := freePort(t)
	fill := strings.NewReplacer("{dir}", dir, "{port}", fmt.Sprint(port), "{uid}", fmt.Sprint(nobody), "{gid}", fmt.Sprint(nobody))
	conf := filepath.Join(dir, "conf")
	for name, text := range map[string]string{"main.cf": mainCF, "master.cf": masterCF} {
		if err := os.WriteFile(filepath.Join(conf, name), []byte(fill.Replace(text)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := launch(t, exec.Command("/usr/sbin/postfix", "-c", conf, "start-fg"))
	t.Cleanup(func() {
		// Its parts leave the process group it was started in.
		exec.Command("/usr/sbin/postfix", "-c", conf, "abort").Run()
		p.stop(t)
	})
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	listening(t, addr)
	return addr, filepath.Join(dir, "mail", "inbox")
}

// trace matches the fields that hosts on the way put on top, with their
// continuation lines.
var trace = regexp.MustCompile(`^(?:(?:Return-Path|X-Original-To|Delivered-To|Received):[^\n]*\n(?:[ \t][^\n]*\n)*)+`)

// varied is a message of kind i%len(kinds), in CRLF lines.
func varied(i int) []byte {
	head := fmt.Sprintf("Date: Sun, 22 Nov 2026 10:00:00 +0000\r\nMessage-ID: <case-%d@example.com>\r\nFrom: Me <me@example.com>\r\nTo: you@postfix.example\r\nSubject: case %d\r\nX-Case: %d\r\n", i, i, i)
	kinds := []string{
		"\r\nA line.\r\n",
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße, 日本語, \x80\xff\r\n",
		"X-Long: " + strings.Repeat("word ", 190) + "\r\nX-Folded: one\r\n two\r\n\tthree\r\nReferences:" + strings.Repeat("\r\n <0123456789@example.com>", 100) + "\r\n\r\nA line.\r\n",
		"\r\n.\r\n..\r\n.leading\r\nmiddle . dot\r\n...\r\n",
		"\r\n",
		"\r\n\r\n\r\ntext \t\r\n\r\n\r\n",
		"\r\n" + strings.Repeat("y", 998) + "\r\n",
		"\r\nFrom here a mailbox may change things\r\n>From there too\r\n",
		"Content-Type: multipart/mixed; boundary=\"b\"\r\nMIME-Version: 1.0\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>x</p>\r\n--b\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat("AAECAwQFBgcICQ==\r\n", 50) + "--b--\r\n",
		"\r\n" + strings.Repeat(fmt.Sprintf("%070d\r\n", i), 1<<20/72),
	}
	return []byte(head + kinds[i%len(kinds)])
}

func TestPostfixReceivesEveryByte(t *testing.T) {
	t.Parallel()
	addr, maildir := postfix(t)
	e := start(t, toSink(addr))
	const n = 200
	c := dial(t, e.smtp[0])
	c.ask("EHLO client.example", "250")
	for i := range n {
		c.ask("MAIL FROM:<me@example.com> BODY=8BITMIME", "250")
		c.ask("RCPT TO:<you@postfix.example>", "250")
		c.ask("DATA", "354")
		c.say(strings.ReplaceAll(string(varied(i)), "\r\n.", "\r\n..") + ".\r\n")
		c.expect("250")
	}
	c.ask("QUIT", "221")
	all := e.settled(t, n)
	if d := len(only(all, "message.delivered")); d != n {
		t.Fatalf("%d of %d delivered; bounced: %+v", d, n, only(all, "message.bounced"))
	}
	e.drained(t)

	var files []string
	eventually(t, "Postfix has delivered them all", func() bool {
		var err error
		if files, err = filepath.Glob(filepath.Join(maildir, "new", "*")); err != nil {
			t.Fatal(err)
		}
		return len(files) >= n
	})
	if len(files) != n {
		t.Errorf("%d files, want %d", len(files), n)
	}
	seen := make(map[string]bool, n)
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := header(t, raw).Get("X-Case")
		if seen[name] {
			t.Errorf("case %s arrived twice", name)
		}
		seen[name] = true
		var i int
		if _, err := fmt.Sscan(name, &i); err != nil {
			t.Fatalf("%v\n%.1000s", err, raw)
		}
		top := trace.Find(raw)
		if len(top) == 0 || bytes.Count(top, []byte("Received:")) != 2 {
			t.Errorf("case %d: the fields on top are\n%s", i, top)
		}
		// A maildir keeps lines as this system does.
		want := bytes.ReplaceAll(varied(i), []byte("\r\n"), []byte("\n"))
		if got := raw[len(top):]; !bytes.Equal(got, want) {
			at := 0
			for at < len(got) && at < len(want) && got[at] == want[at] {
				at++
			}
			t.Errorf("case %d differs at octet %d of %d:\ngot  %.200q\nwant %.200q", i, at, len(want), got[at:], want[at:])
		}
	}
}
