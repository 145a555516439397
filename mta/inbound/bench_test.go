package inbound

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"golang.org/x/sys/unix"
)

// discard is the backend of the benchmarks.
type discard struct{}

func (discard) Reset()                                 {}
func (discard) Logout() error                          { return nil }
func (discard) Mail(string, *smtp.MailOptions) error   { return nil }
func (discard) Rcpt(string, *smtp.RcptOptions) error   { return nil }
func (discard) DataBytes([]byte, bool) (string, error) { return "", nil }
func (discard) Data(r io.Reader) error                 { _, err := io.Copy(io.Discard, r); return err }

// benchBody is text of about n octets in lines of 76.
func benchBody(n int) []byte {
	b := []byte("From: a@a.test\r\nTo: b@b.test\r\nSubject: benchmark\r\n\r\n")
	line := append(bytes.Repeat([]byte{'x'}, 74), '\r', '\n')
	for len(b) < n {
		b = append(b, line...)
	}
	return b
}

// pump sends n messages down one connection, envelope pipelined, and reads
// whatever comes back by counting replies.
func pump(nc net.Conn, n int, body []byte) error {
	buf := make([]byte, 4096)
	replies := func(n int) error {
		for n > 0 {
			k, err := nc.Read(buf)
			if err != nil {
				return err
			}
			n -= bytes.Count(buf[:k], []byte{'\n'})
		}
		return nil
	}
	if err := replies(1); err != nil {
		return err
	}
	if _, err := io.WriteString(nc, "HELO client.test\r\n"); err != nil {
		return err
	}
	if err := replies(1); err != nil {
		return err
	}
	head := []byte("MAIL FROM:<sender@a.test>\r\nRCPT TO:<recipient@b.test>\r\nDATA\r\n")
	text := append(bytes.Clone(body), ".\r\n"...)
	for range n {
		if _, err := nc.Write(head); err != nil {
			return err
		}
		if err := replies(3); err != nil {
			return err
		}
		if _, err := nc.Write(text); err != nil {
			return err
		}
		if err := replies(1); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkLoopback is messages over loopback TCP on four connections, load
// generator included, for this engine and for go-smtp's server.
func BenchmarkLoopback(b *testing.B) {
	for _, size := range []int{1 << 10, 10 << 10, 100 << 10} {
		body := benchBody(size)
		b.Run(fmt.Sprintf("tradewind/%dKB", size>>10), func(b *testing.B) {
			l := listen(b)
			s := New(testConfig(), BackendFunc(func(*Conn) (smtp.Session, error) { return discard{}, nil }), Deps{})
			go s.Serve(l)
			benchClients(b, l, body)
			s.Shutdown(context.Background())
		})
		b.Run(fmt.Sprintf("go-smtp/%dKB", size>>10), func(b *testing.B) {
			l := listen(b)
			s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return discard{}, nil }))
			s.Domain = "mx.test"
			go s.Serve(l)
			benchClients(b, l, body)
			s.Close()
		})
	}
}

func listen(b *testing.B) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	return l
}

func benchClients(b *testing.B, l net.Listener, body []byte) {
	const clients = 4
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	var wg sync.WaitGroup
	before := cpuTime(b)
	b.ResetTimer()
	for i := range clients {
		n := b.N / clients
		if i < b.N%clients {
			n++
		}
		wg.Go(func() {
			nc, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Error(err)
				return
			}
			defer nc.Close()
			if err := pump(nc, n, body); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N)/1e3, "cpu-µs/msg")
}

// cpuTime is what this process, load generator and all, has used so far. It
// says more than elapsed time on a machine that others use as well.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEngine is the engine without sockets.
func BenchmarkEngine(b *testing.B) {
	for _, size := range []int{1 << 10, 10 << 10, 100 << 10} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			body := append(benchBody(size), ".\r\n"...)
			head := []byte("MAIL FROM:<sender@a.test>\r\nRCPT TO:<recipient@b.test>\r\nDATA\r\n")
			s := New(testConfig(), BackendFunc(func(*Conn) (smtp.Session, error) { return discard{}, nil }), Deps{})
			nc := &repeatConn{hello: []byte(hello), head: head, body: body, left: b.N}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			b.ResetTimer()
			newConn(s, nc).serve()
		})
	}
}

// repeatConn says hello once and then head and body, each in as many reads as
// the engine asks for, left times.
type repeatConn struct {
	scriptConn
	hello, head, body []byte
	at, part, left    int
}

func (c *repeatConn) Read(p []byte) (int, error) {
	if c.hello != nil {
		n := copy(p, c.hello)
		c.hello = nil
		return n, nil
	}
	if c.left == 0 {
		return 0, io.EOF
	}
	src := c.head
	if c.part == 1 {
		src = c.body
	}
	n := copy(p, src[c.at:])
	if c.at += n; c.at == len(src) {
		c.at = 0
		c.left -= c.part
		c.part ^= 1
	}
	return n, nil
}

func (c *repeatConn) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkFraming is the line scan alone.
func BenchmarkFraming(b *testing.B) {
	body := append(benchBody(10<<10), ".\r\n"...)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		var f framing
		if _, done := f.feed(body); !done || !f.clean(body[:f.line]) {
			b.Fatal("not a message")
		}
	}
}

// BenchmarkIdleConnections reports what one connection that has said EHLO
// costs: heap and stack, over in-memory connections.
func BenchmarkIdleConnections(b *testing.B) {
	const count = 5000
	cfg := testConfig()
	cfg.MaxConns, cfg.MaxConnsPerAddr = count, count
	for b.Loop() {
		var before, after runtime.MemStats
		s := New(cfg, BackendFunc(func(*Conn) (smtp.Session, error) { return discard{}, nil }), Deps{})
		l := newPipeListener()
		go s.Serve(l)
		clients := make([]net.Conn, count)
		runtime.GC()
		runtime.ReadMemStats(&before)
		buf := make([]byte, 1024)
		for i := range clients {
			clients[i] = l.dial("192.0.2.1")
			clients[i].Read(buf)
			io.WriteString(clients[i], hello)
			clients[i].Read(buf)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse-before.HeapInuse)/count, "heap-B/conn")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/count, "stack-B/conn")
		for _, c := range clients {
			c.Close()
		}
		s.Shutdown(context.Background())
	}
}
