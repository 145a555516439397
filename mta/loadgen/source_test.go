package loadgen_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// collect is a hook that keeps what the sink received.
type collect struct {
	mu   sync.Mutex
	msgs []*loadgen.Received
}

func (c *collect) add(r *loadgen.Received) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.msgs = append(c.msgs, r)
}

// start returns a sink in the present bubble and the listener it serves.
func start(t *testing.T, cfg loadgen.SinkConfig) (*loadgen.Sink, *loadgen.Listener) {
	t.Helper()
	s, err := loadgen.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := loadgen.Listen()
	go s.Serve(l)
	t.Cleanup(func() { s.Shutdown(context.Background()) })
	return s, l
}

func TestEveryMessageOfTheSourceIsCountedOnceAtBothEnds(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"text", "html", "dots"} {
		for _, how := range []string{"pipelined", "chained", "step by step"} {
			t.Run(body+", "+how, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var got collect
					s, l := start(t, loadgen.SinkConfig{OnMessage: got.add, KeepBody: true})
					var mu sync.Mutex
					acks := map[string]int{}
					rep, err := loadgen.Source{
						Dial: l.Dial, Connections: 4, Messages: 200, Size: 3000, Recipients: 3, Body: body, NoPipelining: how == "step by step", Chain: how == "chained",
						OnAck: func(id string, code int, _ string, _ time.Time) {
							mu.Lock()
							defer mu.Unlock()
							acks[id] = code
						},
					}.Run(t.Context())
					if err != nil || rep.Accepted != 200 || rep.Sent != 200 {
						t.Fatalf("%+v, %v", rep, err)
					}
					if c := s.Counts(); c.Messages != 200 || c.Recipients != 600 || c.Connections > 4 || c.Replies[354] != 200 {
						t.Errorf("sink counted %+v", c)
					}
					seen := map[string]bool{}
					for _, m := range got.msgs {
						id := string(m.Body[len("X-Load-ID: "):][:10])
						if seen[id] || acks[id] != 250 {
							t.Errorf("message %s: seen before %v, acknowledged %d", id, seen[id], acks[id])
						}
						seen[id] = true
						if bytes.Count(m.Body, []byte(id)) != 4 || len(m.To) != 3 {
							t.Errorf("message %s is incomplete", id)
						}
						if m.Size < 2900 || m.Size > 3100 {
							t.Errorf("message of %d octets, want 3000", m.Size)
						}
					}
				})
			})
		}
	}
}

func TestSourceKeepsToItsRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, l := start(t, loadgen.SinkConfig{})
		rep, err := loadgen.Source{Dial: l.Dial, Connections: 3, Messages: 101, Size: 400, Rate: 10}.Run(t.Context())
		if err != nil || rep.Accepted != 101 || rep.Elapsed != 10*time.Second {
			t.Errorf("%+v, %v; want 101 messages in 10 s", rep, err)
		}
	})
}

func TestSourceReportsLatencyOfTheTarget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, l := start(t, loadgen.SinkConfig{Latency: 50 * time.Millisecond})
		rep, err := loadgen.Source{Dial: l.Dial, Messages: 20, Size: 400}.Run(t.Context())
		if err != nil || rep.Max != 100*time.Millisecond || rep.P50 < 93*time.Millisecond || rep.P50 > 107*time.Millisecond {
			t.Errorf("%+v, %v; want two round trips of 50 ms", rep, err)
		}
	})
}

func TestSourceCallsMessagesUnknownWhenTheConnectionDiesBehindTheDot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, l := start(t, loadgen.SinkConfig{})
		unknown := 0
		rep, err := loadgen.Source{
			Dial: l.Dial, Messages: 5, Size: 400, To: "drop+%d@d%d.example",
			OnAck: func(_ string, code int, _ string, _ time.Time) {
				if code == 0 {
					unknown++
				}
			},
		}.Run(t.Context())
		if err != nil || rep.Unknown != 5 || unknown != 5 || s.Counts().Messages != 0 {
			t.Errorf("%+v, %v, %d acknowledged as unknown", rep, err, unknown)
		}
	})
}

func TestChainedSourceAccountsForEveryMessageWhenConnectionsDie(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"user%d@d%d.example", "drop+%d@d%d.example", "reject+%d@d%d.example", "data-defer+%d@d%d.example"} {
		synctest.Test(t, func(t *testing.T) {
			s, l := start(t, loadgen.SinkConfig{Limits: loadgen.Limits{MessagesPerConnection: 7}})
			var mu sync.Mutex
			acks := map[string]int{}
			rep, err := loadgen.Source{
				Dial: l.Dial, Messages: 100, Connections: 3, Size: 400, To: to, Chain: true,
				OnAck: func(id string, code int, _ string, _ time.Time) {
					mu.Lock()
					defer mu.Unlock()
					if _, twice := acks[id]; twice {
						t.Errorf("message %s acknowledged twice", id)
					}
					acks[id] = code
				},
			}.Run(t.Context())
			n := rep.Accepted + rep.Deferred + rep.Rejected + rep.Unknown
			if rep.Sent != n || int64(len(acks)) != n || rep.Accepted != s.Counts().Messages {
				t.Errorf("%s: %+v, %d acknowledged, %d at the sink", to, rep, len(acks), s.Counts().Messages)
			}
			if err == nil && n != 100 {
				t.Errorf("%s: %d messages of 100, and no error", to, n)
			}
		})
	}
}

func TestSourceGivesUpOnATargetThatIsNotThere(t *testing.T) {
	t.Parallel()
	l := loadgen.Listen()
	l.Close()
	rep, err := loadgen.Source{Dial: l.Dial, Target: "192.0.2.1:25", Messages: 5}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "192.0.2.1:25") || rep.Sent != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestSourceStopsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, l := start(t, loadgen.SinkConfig{Latency: time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), 10500*time.Millisecond)
		defer cancel()
		rep, err := loadgen.Source{Dial: l.Dial, Messages: 100, Size: 400}.Run(ctx)
		if err == nil || rep.Accepted+rep.Unknown != rep.Sent || rep.Unknown > 1 || rep.Elapsed != 10500*time.Millisecond {
			t.Errorf("%+v, %v", rep, err)
		}
	})
}

// BenchmarkSource is client and sink together over loopback TCP, two
// connections.
func BenchmarkSource(b *testing.B) {
	for _, bc := range []struct {
		size  int
		chain bool
	}{{1 << 10, false}, {10 << 10, false}, {10 << 10, true}, {100 << 10, false}} {
		b.Run(fmt.Sprintf("%dKB/chain=%v", bc.size>>10, bc.chain), func(b *testing.B) {
			s, err := loadgen.New(loadgen.SinkConfig{})
			if err != nil {
				b.Fatal(err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			go s.Serve(l)
			defer s.Shutdown(context.Background())
			before := cpuTime()
			rep, err := loadgen.Source{Target: l.Addr().String(), Connections: 2, Messages: b.N, Size: bc.size, Chain: bc.chain}.Run(context.Background())
			if err != nil || rep.Accepted != int64(b.N) {
				b.Fatalf("%+v, %v", rep, err)
			}
			b.ReportMetric(rep.Rate(), "msg/s")
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-µs/msg")
		})
	}
}
