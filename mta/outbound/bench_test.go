package outbound_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

// BenchmarkSend sends over one loopback connection to a sink in the same
// process: what it shows is client and server together.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{1 << 10, 10 << 10, 100 << 10} {
		for _, secure := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dKB/tls=%v", size>>10, secure), func(b *testing.B) {
				c := benchConn(b, secure)
				e := &outbound.Envelope{
					From:   message.MustAddress("a@example.com"),
					To:     rcpts("b@example.net"),
					Header: [][]byte{[]byte("Received: by us\r\n")},
					Body:   bytes.Repeat([]byte("This line has seventy-six octets, as lines of text and base64 mostly have.\r\n"), size/76),
				}
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				b.SetBytes(int64(len(e.Body)))
				b.ReportAllocs()
				for b.Loop() {
					if out := c.Send(ctx, e).Outcomes[0]; out.Result != message.Delivered {
						b.Fatal(out.Reply)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			})
		}
	}
}

func benchConn(b *testing.B, secure bool) *outbound.Conn {
	b.Helper()
	s, err := loadgen.New(loadgen.SinkConfig{TLS: secure})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go s.Serve(l)
	o := testOptions(nil)
	o.Addr = netip.MustParseAddrPort(l.Addr().String())
	c, fail := outbound.Dial(context.Background(), o)
	if fail != nil {
		b.Fatal(fail)
	}
	b.Cleanup(func() {
		c.Quit(context.Background())
		s.Shutdown(context.Background())
	})
	return c
}
