package outbound_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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

// receiving runs f in a bubble with a connection to a sink, which keeps what it gets
// in *got.
func receiving(t *testing.T, secure bool, f func(t *testing.T, c *outbound.Conn, got *[]*loadgen.Received)) {
	t.Helper()
	var got []*loadgen.Received
	cfg := loadgen.SinkConfig{TLS: secure, Hostname: "mx.example.net", OnMessage: func(r *loadgen.Received) { got = append(got, r) }}
	withSink(t, cfg, func(t *testing.T, s *loadgen.Sink, o outbound.Options) {
		c, fail := outbound.Dial(context.Background(), o)
		if fail != nil {
			t.Fatal(fail)
		}
		defer c.Quit(context.Background())
		f(t, c, &got)
	})
}

func TestMessageArrivesAsHandedInWhateverItsDotsAndSize(t *testing.T) {
	t.Parallel()
	for _, lines := range []int{0, 1, 400, 4000, 40000} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d lines, TLS %v", lines, secure), func(t *testing.T) {
				t.Parallel()
				receiving(t, secure, func(t *testing.T, c *outbound.Conn, list *[]*loadgen.Received) {
					e := envelope("b@example.net", "c@example.net")
					for i := range lines {
						e.Body = append(e.Body, []string{".\r\n", "..x\r\n", "plain text that is somewhat longer\r\n", "\r\n"}[i%4]...)
					}
					for range 3 {
						res := c.Send(context.Background(), e)
						for _, out := range res.Outcomes {
							if out.Result != message.Delivered || !out.Attempted || out.Reply.Code != 250 || out.Reply.Stage != message.StageDot {
								t.Fatalf("got %v %v", out.Result, out.Reply)
							}
						}
						if !res.Usable {
							t.Error("connection not usable after success")
						}
					}
					got, want := *list, sha256.Sum256(append(bytes.Clone(e.Header[0]), e.Body...))
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

func TestMessagesBegunAheadArriveAsHandedIn(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		for _, size := range []int{10, 16<<10 - 150, 16 << 10, 100 << 10} {
			receiving(t, secure, func(t *testing.T, c *outbound.Conn, got *[]*loadgen.Received) {
				list := make([]*outbound.Envelope, 5)
				for i := range list {
					list[i] = envelope(fmt.Sprintf("b%d@example.net", i))
					for j := 0; len(list[i].Body) < size; j++ {
						list[i].Body = fmt.Appendf(list[i].Body, "..%d of %d\r\n", j, i)
					}
				}
				for i, e := range list {
					e.Next = func() *outbound.Envelope { return list[min(i+1, len(list)-1)] }
					if i == len(list)-1 {
						e.Next = nil
					}
				}
				var sent int64
				for i, e := range list {
					res := c.Send(context.Background(), e)
					if out := res.Outcomes[0]; out.Result != message.Delivered {
						t.Fatalf("message %d: %v", i, out.Reply)
					}
					if begun := res.Next != nil; begun != (i < len(list)-1) {
						t.Fatalf("message %d: next begun %v", i, begun)
					}
					if i > 0 && res.Bytes != sent {
						t.Errorf("message %d took %d octets, the one before %d", i, res.Bytes, sent)
					}
					sent = res.Bytes
				}
				for i, r := range *got {
					if want := sha256.Sum256(append(bytes.Clone(list[i].Header[0]), list[i].Body...)); r.Sum != want {
						t.Errorf("TLS %v, size %d: message %d has other bytes than sent", secure, size, i)
					}
				}
				if len(*got) != len(list) || c.Messages() != len(list) {
					t.Errorf("%d messages of %d, %d counted", len(*got), len(list), c.Messages())
				}
			})
		}
	}
}

// takeOne plays a server that offers PIPELINING up to the final dot of the first
// message.
func takeOne(server net.Conn) *bufio.Reader {
	r := bufio.NewReader(server)
	fmt.Fprint(server, "220 hi\r\n")
	hear(r, "EHLO mta1.example.com")
	fmt.Fprint(server, "250-hi\r\n250 PIPELINING\r\n")
	hear(r, "DATA")
	fmt.Fprint(server, "250 ok\r\n250 ok\r\n354 go\r\n")
	hear(r, ".")
	return r
}

// hear reads up to a line, or the end.
func hear(r *bufio.Reader, until string) {
	for line, err := "", error(nil); line != until+"\r\n" && err == nil; {
		line, err = r.ReadString('\n')
	}
}

// A connection on which a message has been begun serves only that one: QUIT or
// another envelope would become part of its body.
func TestConnectionWithABegunMessageSaysNothingElse(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*outbound.Conn){
		"Quit":  func(c *outbound.Conn) { c.Quit(context.Background()) },
		"Drop":  func(c *outbound.Conn) { c.Drop() },
		"Reset": func(c *outbound.Conn) { c.Reset(context.Background()) },
		"Put": func(c *outbound.Conn) {
			p := outbound.NewPool[int](outbound.PoolConfig{})
			p.Put(1, c)
			if n := p.Len(); n != 0 {
				t.Errorf("%d idle connections", n)
			}
			p.Close(context.Background())
		},
		"another message": func(c *outbound.Conn) {
			if res := c.Send(context.Background(), envelope("z@example.net")); res.Usable || !res.Stale || res.Outcomes[0].Attempted {
				t.Errorf("got %+v", res)
			}
		},
	} {
		got, rest := 0, ""
		synctest.Test(t, func(t *testing.T) {
			done := make(chan struct{})
			o := testOptions(func(context.Context, string, string) (net.Conn, error) {
				client, server := loadgen.Pipe()
				go func() {
					defer close(done)
					defer server.Close()
					r := takeOne(server)
					got++
					hear(r, "DATA")
					fmt.Fprint(server, "250 queued\r\n250 ok\r\n250 ok\r\n354 go\r\n")
					b, _ := io.ReadAll(r)
					rest = string(b)
				}()
				return client, nil
			})
			c, fail := outbound.Dial(context.Background(), o)
			if fail != nil {
				t.Fatal(fail)
			}
			e := envelope("b@example.net")
			e.Next = func() *outbound.Envelope { return envelope("c@example.net") }
			if res := c.Send(context.Background(), e); res.Outcomes[0].Result != message.Delivered || res.Next == nil || !res.Usable {
				t.Errorf("got %+v", res)
			}
			leave(c)
			<-done
			c.Close()
		})
		if got != 1 || rest != "" {
			t.Errorf("%s: after %d messages the server read %q in place of the next", name, got, rest)
		}
	}
}

// cutConn breaks behind the final dot when more follows it.
type cutConn struct{ net.Conn }

func (c cutConn) Write(p []byte) (int, error) {
	const dot = "\r\n.\r\n"
	i := bytes.Index(p, []byte(dot+"MAIL"))
	if i < 0 {
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:i+len(dot)])
	return n, errors.Join(err, errors.New("cut"))
}

// A message whose final dot is out counts as sent, whatever became of what was
// to follow it: otherwise it would be sent again without a word about that.
func TestMessageIsOutWhenOnlyWhatFollowsItIsLost(t *testing.T) {
	t.Parallel()
	for reply, want := range map[string]message.Result{
		"250 queued\r\n": message.Delivered, "451 later\r\n": message.Deferred, "": message.Unknown,
	} {
		synctest.Test(t, func(t *testing.T) {
			done := make(chan struct{})
			o := testOptions(func(context.Context, string, string) (net.Conn, error) {
				client, server := loadgen.Pipe()
				go func() {
					defer close(done)
					defer server.Close()
					takeOne(server)
					fmt.Fprint(server, reply)
				}()
				return cutConn{client}, nil
			})
			c, fail := outbound.Dial(context.Background(), o)
			if fail != nil {
				t.Fatal(fail)
			}
			e := envelope("b@example.net")
			e.Next = func() *outbound.Envelope { return envelope("c@example.net") }
			res := c.Send(context.Background(), e)
			if out := res.Outcomes[0]; out.Result != want || res.Next != nil || res.Usable {
				t.Errorf("after %q: %v (%v), usable %v, begun %v", reply, out.Result, out.Reply, res.Usable, res.Next != nil)
			}
			c.Quit(context.Background())
			<-done
		})
	}
}
