//go:build linux && (interop || soak || backlog)

package interop

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// receiver is a sink in this process that keeps what it accepted.
type receiver struct {
	*loadgen.Sink
	addr string

	mu  sync.Mutex // protects everything below
	got []*loadgen.Received
}

// receive starts a sink on addr, "127.0.0.1:0" for any port.
func receive(t *testing.T, addr string, cfg loadgen.SinkConfig) *receiver {
	t.Helper()
	r := &receiver{}
	cfg.KeepBody = true
	cfg.OnMessage = func(m *loadgen.Received) {
		if !m.Accepted {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got = append(r.got, m)
	}
	r.Sink, r.addr = serveSink(t, addr, cfg)
	return r
}

// serveSink runs a sink until the test ends.
func serveSink(t *testing.T, addr string, cfg loadgen.SinkConfig) (*loadgen.Sink, string) {
	t.Helper()
	sink, err := loadgen.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		sink.Serve(l)
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		sink.Shutdown(ctx) // its error says that connections were cut
		<-done
	})
	return sink, l.Addr().String()
}

// messages returns what has come in.
func (r *receiver) messages() []*loadgen.Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*loadgen.Received(nil), r.got...)
}

// wait returns the first n messages once they have come in.
func (r *receiver) wait(t *testing.T, n int) (got []*loadgen.Received) {
	t.Helper()
	eventually(t, fmt.Sprintf("the sink has %d messages", n), func() bool {
		got = r.messages()
		return len(got) >= n
	})
	return got
}

// toSink is the configuration that most tests add to: a door for loopback and
// everything delivered to one sink.
func toSink(addr string) string {
	return `
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.1/32"]
[http]
api = "127.0.0.1:0"
admin = "127.0.0.1:0"
trust_loopback = true
[queue]
retry = ["1s", "2s"]
jitter = 0.0
[[route]]
domains = ["*"]
next_hops = ["` + addr + `"]
tls = "off"
`
}

// bodyOf is what follows the header of a message.
func bodyOf(msg []byte) []byte {
	_, body, _ := bytes.Cut(msg, []byte("\r\n\r\n"))
	return body
}
