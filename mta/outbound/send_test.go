package outbound_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

func testOptions(dial func(context.Context, string, string) (net.Conn, error)) outbound.Options {
	return outbound.Options{
		Dial: dial, EHLO: "mta1.example.com", Host: "mx.example.net",
		Addr: netip.MustParseAddrPort("192.0.2.25:25"), Source: "ip1",
	}
}

func rcpts(addrs ...string) []message.Recipient {
	var to []message.Recipient
	for i, a := range addrs {
		to = append(to, message.Recipient{N: uint32(i), Address: message.MustAddress(a)})
	}
	return to
}

func envelope(to ...string) *outbound.Envelope {
	return &outbound.Envelope{
		From: message.MustAddress("a@example.com"), To: rcpts(to...),
		Header: [][]byte{[]byte("Received: by us\r\n")},
		Body:   []byte("Subject: x\r\n\r\n.dot\r\n..\r\nend\r\n"),
	}
}

// withSink runs f in a bubble beside a sink.
func withSink(t *testing.T, cfg loadgen.SinkConfig, f func(t *testing.T, s *loadgen.Sink, o outbound.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, err := loadgen.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		l := loadgen.Listen()
		go s.Serve(l)
		defer s.Shutdown(context.Background())
		f(t, s, testOptions(l.Dial))
	})
}

func TestMessageArrivesAsHandedInWhateverItsDotsAndSize(t *testing.T) {
	t.Parallel()
	for _, lines := range []int{0, 1, 400, 4000, 40000} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d lines, TLS %v", lines, secure), func(t *testing.T) {
				t.Parallel()
				var got []*loadgen.Received
				cfg := loadgen.SinkConfig{TLS: secure, Hostname: "mx.example.net", OnMessage: func(r *loadgen.Received) { got = append(got, r) }}
				withSink(t, cfg, func(t *testing.T, s *loadgen.Sink, o outbound.Options) {
					ctx := context.Background()
					c, fail := outbound.Dial(ctx, o)
					if fail != nil {
						t.Fatal(fail)
					}
					defer c.Quit(ctx)
					e := envelope("b@example.net", "c@example.net")
					for i := range lines {
						e.Body = append(e.Body, []string{".\r\n", "..x\r\n", "plain text that is somewhat longer\r\n", "\r\n"}[i%4]...)
					}
					for range 3 {
						res := c.Send(ctx, e)
						for _, out := range res.Outcomes {
							if out.Result != message.Delivered || !out.Attempted || out.Reply.Code != 250 || out.Reply.Stage != message.StageDot {
								t.Fatalf("got %v %v", out.Result, out.Reply)
							}
						}
						if !res.Usable {
							t.Error("connection not usable after success")
						}
					}
					want := sha256.Sum256(append(bytes.Clone(e.Header[0]), e.Body...))
					if len(got) != 3 || got[2].Sum != want {
						t.Errorf("%d messages, the last with other bytes than sent", len(got))
					}
					if got[0].TLS != secure || (c.TLS() != "") != secure {
						t.Errorf("TLS at the sink %v, here %q, want %v", got[0].TLS, c.TLS(), secure)
					}
				})
			})
		}
	}
}
