package outbound

import (
	"context"
	"net"
	"runtime"
	"strings"
	"testing"
)

// TestOpenConnectionsStayWithinTheirMemory counts heap, so it does not run
// beside others.
func TestOpenConnectionsStayWithinTheirMemory(t *testing.T) {
	const n = 1000
	shared := new(Buffers)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	measure := func(keep func(*Conn)) int {
		conns := make([]*Conn, n)
		before := heap()
		for i := range conns {
			hello := []byte("250-mx\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n")
			tp := &tape{parts: [][]byte{[]byte("220 hi\r\n"), hello}}
			c, fail := Dial(context.Background(), Options{
				Dial: func(context.Context, string, string) (net.Conn, error) { return tp, nil },
				EHLO: "mta1.example.com", Buffers: shared,
			})
			if fail != nil {
				t.Fatal(fail)
			}
			keep(c)
			conns[i] = c
		}
		after := heap()
		runtime.KeepAlive(conns)
		return int(after-before) / n
	}
	busy := measure(func(*Conn) {})
	idle := measure(func(c *Conn) { c.release() })
	t.Logf("%d octets a connection in use, %d idle", busy, idle)
	if busy > 7<<10 || idle > 4<<10 {
		t.Errorf("%d octets a connection in use, %d idle; want at most 7 KiB and 4 KiB", busy, idle)
	}
}

func TestHostileReplyCostsNoMoreThanItsBounds(t *testing.T) {
	line := []byte("250-" + strings.Repeat("x", 1000) + "\r\n")
	for name, part := range map[string][]byte{"lines": line, "one line": []byte(strings.Repeat("2", 4096))} {
		tp := &tape{}
		for range 10_000 {
			tp.parts = append(tp.parts, part)
		}
		_, fail := Dial(context.Background(), Options{
			Dial: func(context.Context, string, string) (net.Conn, error) { return tp, nil },
			EHLO: "mta1.example.com",
		})
		if fail == nil || len(tp.parts) < 9_980 {
			t.Errorf("%s: %v after %d parts", name, fail, 10_000-len(tp.parts))
		}
	}
}
