package app

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/smtp"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// TestTraceShowsADialogueAndEndsWithTheEngine follows one delivery, with a
// filter that leaves another destination out.
func TestTraceShowsADialogueAndEndsWithTheEngine(t *testing.T) {
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
	_, port, _ := net.SplitHostPort(l.Addr().String())
	a, stop := life(t, vfs.NewMem(), fmt.Sprintf(`
hostname = "mta.example"
data_dir = "data"
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.0/8"]
[http]
api = "127.0.0.1:0"
admin = "127.0.0.1:0"
trust_loopback = true
[[route]]
domains = ["quiet.example"]
next_hops = ["127.0.0.1:%s"]
tls = "off"
[[route]]
domains = ["*"]
next_hops = ["localhost:%s"]
tls = "off"
`, port, port))
	stop = sync.OnceFunc(stop)
	defer stop()

	resp, err := http.Get("http://" + a.HTTPAddr("admin").String() + "/v1/trace?host=LOCALHOST")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, to := range []string{"a@quiet.example", "b@loud.example"} {
		if err := smtp.SendMail(a.SMTPAddr(0).String(), nil, "s@sender.example", []string{to}, []byte("From: s@sender.example\r\n\r\nsecret body\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	dec := json.NewDecoder(resp.Body)
	wanted := []string{"RCPT TO:<b@loud.example>", "DATA", "354"}
	for len(wanted) > 0 {
		var line mta.TraceLine
		if err := dec.Decode(&line); err != nil {
			t.Fatalf("the trace ended before %q: %v", wanted[0], err)
		}
		if line.Host != "localhost" || line.Conn == 0 || line.Source == "" || line.Text == "secret body" {
			t.Errorf("got %+v", line)
		}
		if len(line.Text) >= len(wanted[0]) && line.Text[:len(wanted[0])] == wanted[0] {
			wanted = wanted[1:]
		}
	}
	stop()
	for {
		var line mta.TraceLine
		if dec.Decode(&line) != nil {
			break // the engine has ended the stream
		}
	}
}
