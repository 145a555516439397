package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// relay is one of those that are compared.
type relay interface {
	label() string
	// can says why it takes no part in a cell, "" when it does.
	can(c *cell) string
	// start begins with an empty store, set up for c and sending to sink.
	start(ctx context.Context, c *cell, sink string) error
	stop()
	smtp() string // its listeners
	http() string
	pid() int // of the root of its processes
	usage() (usage, error)
	delivers() bool
	slow() bool // many processes, and gets fewer messages
}

const nameTradewind = "Tradewind"

// freePort returns a port of loopback that nobody listens on.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func freeAddr() (string, error) {
	port, err := freePort()
	return fmt.Sprintf("127.0.0.1:%d", port), err
}

// listening waits until something greets at addr.
func listening(ctx context.Context, addr string) error {
	var last error
	for range 300 {
		var c net.Conn
		if c, last = net.DialTimeout("tcp", addr, time.Second); last == nil {
			c.SetDeadline(time.Now().Add(time.Second))
			_, last = c.Read(make([]byte, 3))
			c.Close()
			if last == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("nobody answers at %s: %w", addr, last)
}

// process is a command with its log in a file.
type process struct {
	cmd *exec.Cmd
	log *os.File
}

func launch(log string, name string, args ...string) (*process, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(name, args...), log: f}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if err := p.cmd.Start(); err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

// stop ends the process, by force when it does not follow.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	p.cmd.Wait() // its status is no news: it was told to end
	kill.Stop()
	p.log.Close()
}

// said is the end of the log, for an error.
func (p *process) said() string {
	raw, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-1000):])
}

// tradewind is the binary under test.
type tradewind struct {
	name, binary, dir string
	backlog           string
	lanes             int    // connections of a lane, if not the usual
	next              string // next hop in place of the sink
	keep              bool   // go on with the store that is there

	p                             *process
	smtpAddr, httpAddr, adminAddr string
}

func (t *tradewind) label() string  { return t.name }
func (t *tradewind) smtp() string   { return t.smtpAddr }
func (t *tradewind) http() string   { return t.httpAddr }
func (t *tradewind) pid() int       { return t.p.cmd.Process.Pid }
func (t *tradewind) delivers() bool { return t.next == "" }
func (t *tradewind) slow() bool     { return false }

func (t *tradewind) usage() (usage, error) { return usageOf(t.pid()) }

func (t *tradewind) can(*cell) string { return "" }

func (t *tradewind) start(ctx context.Context, c *cell, sink string) (err error) {
	data := filepath.Join(t.dir, "data")
	if !t.keep {
		if err := os.RemoveAll(t.dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return err
	}
	if c.backlog {
		data = t.backlog
	}
	for _, addr := range []*string{&t.smtpAddr, &t.httpAddr, &t.adminAddr} {
		if *addr, err = freeAddr(); err != nil {
			return err
		}
	}
	if t.next != "" {
		sink = t.next
	}
	conf := filepath.Join(t.dir, "tradewind.toml")
	lanes := cmp.Or(t.lanes, 2000)
	text := fmt.Sprintf(tradewindConf, data, t.smtpAddr, t.httpAddr, t.adminAddr, sink, lanes, lanes+100)
	if c.key != "" {
		key := filepath.Join(t.dir, "key.pem")
		if out, err := exec.CommandContext(ctx, t.binary, "dkim", "keygen", "--type", c.key, "--domain", "sender.example", "--selector", "s1", "--out", key).CombinedOutput(); err != nil {
			return fmt.Errorf("dkim keygen: %w: %s", err, out)
		}
		text += fmt.Sprintf("[[dkim]]\ndomain = \"sender.example\"\nselector = \"s1\"\nkey_file = %q\n", key)
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	if t.p, err = launch(filepath.Join(t.dir, "log"), t.binary, "serve", "-c", conf); err != nil {
		return err
	}
	if err := listening(ctx, t.smtpAddr); err != nil {
		err = fmt.Errorf("%w\n%s", err, t.p.said())
		t.stop()
		return err
	}
	return nil
}

func (t *tradewind) stop() { t.p.stop() }

// tradewindConf is all that differs from the defaults. 2,000 connections and a
// short retry are for the distant and the greylisting sink.
const tradewindConf = `hostname = "mta.bench.example"
data_dir = %q
[[smtp]]
listen = %q
relay_from = ["127.0.0.0/8"]
[http]
api = %q
admin = %q
trust_loopback = true
[[route]]
domains = ["*"]
next_hops = [%q]
tls = "off"
[queue]
retry = ["2s"]
[delivery]
lane_connections = %d
max_connections = %d
`

// bare is a receiver that throws mail away: what the SMTP of the near side
// alone costs, with the same source.
type bare struct {
	binary string
	p      *process
	addr   string
}

func (b *bare) label() string         { return "bare receiver" }
func (b *bare) smtp() string          { return b.addr }
func (b *bare) http() string          { return "" }
func (b *bare) pid() int              { return b.p.cmd.Process.Pid }
func (b *bare) delivers() bool        { return false }
func (b *bare) slow() bool            { return false }
func (b *bare) usage() (usage, error) { return usageOf(b.pid()) }
func (b *bare) stop()                 { b.p.stop() }

func (b *bare) can(c *cell) string {
	if c.http || c.key != "" || c.latency > 0 || c.greylist > 0 || c.backlog {
		return "it only receives"
	}
	return ""
}

func (b *bare) start(ctx context.Context, _ *cell, _ string) (err error) {
	if b.addr, err = freeAddr(); err != nil {
		return err
	}
	if b.p, err = launch(os.DevNull, b.binary, "sink", "--listen", b.addr); err != nil {
		return err
	}
	return listening(ctx, b.addr)
}

// errNoPostfix says why Postfix cannot be measured.
var errNoPostfix = errors.New("cannot run Postfix")

// postfix is an instance of Debian's Postfix with directories of its own.
type postfix struct {
	dir, version string
	addr         string
	master       int
}

func newPostfix(dir string) (*postfix, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("%w: it starts as root only", errNoPostfix)
	}
	out, err := exec.Command("/usr/sbin/postconf", "-dh", "mail_version").Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %w (scripts/install-deps installs it)", errNoPostfix, err)
	}
	return &postfix{dir: dir, version: strings.TrimSpace(string(out))}, nil
}

func (p *postfix) label() string         { return "Postfix" }
func (p *postfix) smtp() string          { return p.addr }
func (p *postfix) http() string          { return "" }
func (p *postfix) pid() int              { return p.master }
func (p *postfix) delivers() bool        { return true }
func (p *postfix) slow() bool            { return true }
func (p *postfix) usage() (usage, error) { return usageOf(p.master) }

func (p *postfix) can(c *cell) string {
	switch {
	case c.http:
		return "it has no HTTP"
	case c.key != "":
		return "it signs through a milter, whose cost that would be"
	case c.backlog:
		return "the backlog is Tradewind's"
	}
	return ""
}

func (p *postfix) start(ctx context.Context, _ *cell, sink string) error {
	if err := os.RemoveAll(p.dir); err != nil {
		return err
	}
	for _, d := range []string{"", "conf", "queue", "data", "log"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o755); err != nil {
			return err
		}
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	p.addr = fmt.Sprintf("127.0.0.1:%d", port)
	for name, text := range map[string]string{"main.cf": p.mainCF(sink), "master.cf": p.masterCF(fmt.Sprint(port))} {
		if err := os.WriteFile(filepath.Join(p.dir, "conf", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if out, err := exec.CommandContext(ctx, "chown", "postfix", filepath.Join(p.dir, "data")).CombinedOutput(); err != nil {
		return fmt.Errorf("chown: %w: %s", err, out)
	}
	if out, err := p.command("start"); err != nil {
		return fmt.Errorf("postfix start: %w: %s", err, out)
	}
	if err := listening(ctx, p.addr); err != nil {
		p.stop()
		return err
	}
	raw, err := os.ReadFile(filepath.Join(p.dir, "queue/pid/master.pid"))
	if err == nil {
		_, err = fmt.Sscan(string(raw), &p.master)
	}
	return err
}

func (p *postfix) command(what string) ([]byte, error) {
	return exec.Command("/usr/sbin/postfix", "-c", filepath.Join(p.dir, "conf"), what).CombinedOutput()
}

func (p *postfix) stop() {
	if out, err := p.command("abort"); err != nil {
		progress("postfix abort: %v: %s", err, out)
		return
	}
	// Its processes end by themselves, and write until they do.
	for range 100 {
		if _, err := statOf(p.master); err != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// mainCF is tuned for this load: no lookups, no rate limits, no delays, many
// processes that live long, connections to the sink reused, retries after
// seconds.
func (p *postfix) mainCF(sink string) string {
	host, port, _ := strings.Cut(sink, ":")
	return strings.NewReplacer("{dir}", p.dir, "{sink}", "["+host+"]:"+port).Replace(`compatibility_level = 3.6
queue_directory = {dir}/queue
data_directory = {dir}/data
maillog_file_prefixes = {dir}
maillog_file = {dir}/log/maillog
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mta.bench.example
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
local_recipient_maps =
relay_domains =
relayhost = {sink}
disable_dns_lookups = yes
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_client_message_rate_limit = 0
smtpd_client_recipient_rate_limit = 0
smtpd_tls_security_level = none
smtp_tls_security_level = none
smtputf8_enable = no
in_flow_delay = 0
default_process_limit = 200
max_use = 10000
initial_destination_concurrency = 200
default_destination_concurrency_limit = 200
default_destination_recipient_limit = 100
smtp_connection_cache_destinations = {sink}
smtp_connection_reuse_time_limit = 300s
qmgr_message_active_limit = 40000
qmgr_message_recipient_limit = 40000
minimal_backoff_time = 2s
maximal_backoff_time = 2s
queue_run_delay = 1s
message_size_limit = 20000000
notify_classes =
`)
}

func (p *postfix) masterCF(port string) string {
	return strings.ReplaceAll(`127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
tlsmgr    unix  - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
`, "{port}", port)
}
