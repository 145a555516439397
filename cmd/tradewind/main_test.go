package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// shell runs a command line.
func shell(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return status, out.String(), errs.String()
}

func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	status, out, _ := shell(t, "help")
	if status != 0 {
		t.Errorf("help: status %d", status)
	}
	for _, c := range commands() {
		if !strings.Contains(out, c.name) {
			t.Errorf("help does not list %q", c.name)
		}
		status, _, errs := shell(t, append(strings.Fields(c.name), "--help")...)
		if status != 0 || !strings.Contains(errs, "tradewind "+c.name) || !strings.Contains(errs, c.short) {
			t.Errorf("%s --help: status %d, %q", c.name, status, errs)
		}
	}
}

func TestMistakesOnTheCommandLineAreTold(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"sned"}, `no command "sned"`},
		{[]string{"queue", "sohw"}, `no command "queue sohw"`},
		{[]string{"serve"}, "-c FILE is missing"},
		{[]string{"check", "--colour"}, "colour"},
		{[]string{"queue", "show"}, "exactly one message id"},
		{[]string{"bounce", "parse"}, "at least one file"},
		{[]string{"top", "--every", "1ms"}, "at least 100ms"},
	} {
		if status, _, errs := shell(t, tc.args...); status != 2 || !strings.Contains(errs, tc.want) {
			t.Errorf("%q: status %d, %q; want 2 and %q", tc.args, status, errs, tc.want)
		}
	}
}

func TestCheckReportsEveryProblemWithItsKey(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "bad.toml")
	text := "hostnam = \"x\"\n[queue]\nretry = [\"1ms\"]\n[http]\napi = \"nonsense\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	status, _, errs := shell(t, "check", "-c", file)
	if status != 1 {
		t.Errorf("status %d, want 1", status)
	}
	for _, want := range []string{"hostnam: unknown key; did you mean hostname?", "queue.retry[0]", "http.api"} {
		if !strings.Contains(errs, want) {
			t.Errorf("%q is missing in:\n%s", want, errs)
		}
	}
}

// TestOperatorCommandsTalkToARunningEngine sends one message through an engine
// and asks about it in every way.
func TestOperatorCommandsTalkToARunningEngine(t *testing.T) {
	t.Parallel()
	sink, err := loadgen.New(loadgen.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go sink.Serve(l)
	defer sink.Shutdown(t.Context())
	cfg, err := configs.Parse("test", fmt.Appendf(nil, `
hostname = "mta.example"
data_dir = %q
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.0/8"]
[http]
api = "127.0.0.1:0"
admin = "127.0.0.1:0"
trust_loopback = true
[[route]]
domains = ["*"]
next_hops = [%q]
tls = "off"
`, t.TempDir(), l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	a, err := app.New(cfg, app.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	engine := []string{"--api", "http://" + a.HTTPAddr("api").String(), "--admin", "http://" + a.HTTPAddr("admin").String()}
	ask := func(args ...string) string {
		t.Helper()
		status, out, errs := shell(t, append(args, engine...)...)
		if status != 0 {
			t.Fatalf("%q: status %d, %s", args, status, errs)
		}
		return out
	}

	traced := make(chan string, 1)
	go func() {
		status, out, errs := shell(t, append([]string{"trace", "--lines", "3"}, engine...)...)
		traced <- fmt.Sprint(status, " ", errs, out)
	}()
	// Mail until the trace, which begins at some moment, has seen three lines.
	id := ""
	for out, n := "", 0; out == ""; n++ {
		if n == 400 {
			t.Fatalf("nothing is delivered: %s\n%s", ask("queue", "list", "--json"), ask("events", "tail", "--once", "--type", "message.delivered,message.deferred"))
		}
		if err := smtp.SendMail(a.SMTPAddr(0).String(), nil, "s@sender.example", []string{"r@rcpt.example"}, []byte("From: s@sender.example\r\n\r\nx\r\n")); err != nil {
			t.Fatal(err)
		}
		select {
		case out = <-traced:
			if !strings.HasPrefix(out, "0 ") || strings.Count(out, "\n") != 3 || !strings.Contains(out, " default 127.0.0.1 ") {
				t.Errorf("trace: %q", out)
			}
		default:
		}
	}
	for id == "" {
		for line := range strings.Lines(ask("events", "tail", "--once", "--type", "message.delivered")) {
			var e struct {
				ID        string `json:"message_id"`
				Recipient string `json:"recipient"`
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil || e.Recipient != "r@rcpt.example" {
				t.Fatalf("events tail: %q, %v", line, err)
			}
			id = e.ID
		}
	}
	if out := ask("queue", "why", id); !strings.Contains(out, "r@rcpt.example: delivered") {
		t.Errorf("queue why: %q", out)
	}
	if out := ask("queue", "list"); !strings.Contains(out, "recipients wait") {
		t.Errorf("queue list: %q", out)
	}
	var f frame
	if err := json.Unmarshal([]byte(ask("top", "--frames", "1", "--every", "100ms", "--json")), &f); err != nil || !f.Healthy || f.FreeBytes == 0 || len(f.Providers) == 0 {
		t.Errorf("top: %+v, %v", f, err)
	}
	if out := ask("top", "--frames", "1", "--every", "100ms"); !strings.Contains(out, "storage ok") || !strings.Contains(out, "route") {
		t.Errorf("top: %q", out)
	}
}

func TestAddressAndWarmupAreExplainedWithoutAnEngine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, shaping := filepath.Join(dir, "tradewind.toml"), filepath.Join(dir, "shaping.toml")
	for name, text := range map[string]string{
		file: fmt.Sprintf(`hostname = "mta.example"
data_dir = %q
[shaping]
files = [%q]
[[source]]
name = "ip7"
address = "192.0.2.7"
[[route]]
domains = ["a.example"]
next_hops = ["192.0.2.1:25"]
`, filepath.Join(dir, "data"), shaping),
		shaping: "[source.ip7]\nwarmup = \"standard\"\n[domain.\"a.example\"]\nrate = \"3/s\"\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args   []string
		status int
		want   []string
	}{
		{[]string{"explain", "address", "-c", file, "x@a.example"}, 0, []string{"provider: route", "from source ip7", "3/s", shaping + ":", "a message now:    yes", "at most 3 messages/s", "warming up, day 1: 200 recipients today, 0 sent", "alone"}},
		{[]string{"warmup", "plan", "-c", file, "--days", "3"}, 0, []string{"ip7 at any provider", "day   1         200", "day   3        1000", "alone"}},
		{[]string{"explain", "address", "-c", file, "a@b..c"}, 1, []string{"address"}},
		{[]string{"explain", "address", "-c", file, "--pool", "x", "x@a.example"}, 1, []string{`named "x"`}},
		{[]string{"explain", "address", "-c", filepath.Join(dir, "none.toml"), "x@a.example"}, 1, []string{"none.toml"}},
		{[]string{"explain", "address", "--admin", "http://127.0.0.1:1", "x@a.example"}, 1, []string{"is the engine running", "-c FILE"}},
		{[]string{"warmup", "plan", "--admin", "http://127.0.0.1:1"}, 1, []string{"is the engine running", "-c FILE"}},
		{[]string{"explain", "reply", "-c", file, "--mx", "aspmx.l.google.com", "421 4.7.28 your IP address"}, 0, []string{"provider:   gmail", "quota-ip"}},
	} {
		status, out, errs := shell(t, c.args...)
		for _, want := range c.want {
			if status != c.status || !strings.Contains(out+errs, want) {
				t.Errorf("%q: status %d, want %d and %q:\n%s%s", c.args, status, c.status, want, out, errs)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		t.Error("the data directory was made")
	}
}
