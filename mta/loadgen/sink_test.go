package loadgen_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// talk writes in to a sink and returns all it says until it closes.
func talk(t *testing.T, s *loadgen.Sink, in string) string {
	t.Helper()
	client, server := loadgen.Pipe()
	defer client.Close()
	go s.ServeConn(server)
	go client.Write([]byte(in))
	out, err := io.ReadAll(client)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return string(out)
}

func codes(out string) string {
	var c []string
	for line := range strings.Lines(out) {
		if len(line) > 3 && line[3] == ' ' {
			c = append(c, line[:3])
		}
	}
	return strings.Join(c, " ")
}

func mustSink(t *testing.T, cfg loadgen.SinkConfig) *loadgen.Sink {
	t.Helper()
	s, err := loadgen.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSinkAnswersACommandAtATimeOrAllAtOnce(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, want string }{
		{"QUIT\r\n", "220 221"},
		{"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nhi\r\n.\r\nQUIT\r\n", "220 250 250 250 354 250 221"},
		{"ehlo x\r\nmail from: <>\r\nrcpt to:<\"a>b\"@d.example>\r\ndata\r\n.\r\nquit\r\n", "220 250 250 250 354 250 221"},
		{"HELO x\r\nMAIL FROM:<a@b.example> SIZE=99999999999\r\nQUIT\r\n", "220 250 552 221"},
		{"MAIL FROM:<a@b.example>\r\nQUIT\r\n", "220 503 221"},
		{"EHLO x\r\nRCPT TO:<a@b.example>\r\nDATA\r\nQUIT\r\n", "220 250 503 503 221"},
		{"EHLO x\r\nMAIL FROM:<a@b.example>\r\nMAIL FROM:<a@b.example>\r\nRSET\r\nMAIL FROM:a@b.example\r\nQUIT\r\n", "220 250 250 503 250 501 221"},
		{"EHLO x\r\nBDAT 5 LAST\r\nNOOP\r\nx\r\nQUIT\r\n", "220 250 502 250 500 221"},
		{"EHLO x\r\nSTARTTLS\r\nQUIT\r\n", "220 250 502 221"},
		{"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<reject+1@d.example>\r\nDATA\r\nRCPT TO:<defer+1@d.example>\r\nRCPT TO:<data-reject+@d.example>\r\nDATA\r\n.\r\nQUIT\r\n",
			"220 250 250 550 503 451 250 354 550 221"},
		{"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<close+@d.example>\r\nDATA\r\n", "220 250 250 421"},
		{"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<drop+@d.example>\r\nDATA\r\n.\r\nQUIT\r\n", "220 250 250 250 354"},
		{"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<defer2+@d.example>\r\nRCPT TO:<defer2+@d.example>\r\nRCPT TO:<defer2+@d.example>\r\nQUIT\r\n", "220 250 250 451 451 250 221"},
	} {
		for _, whole := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				s := mustSink(t, loadgen.SinkConfig{})
				var out string
				if whole {
					out = talk(t, s, tc.in)
				} else {
					out = drip(t, s, tc.in)
				}
				if got := codes(out); got != tc.want {
					t.Errorf("%q (whole %v):\n got %s\nwant %s", tc.in, whole, got, tc.want)
				}
			})
		}
	}
}

// drip is talk with one octet at a time.
func drip(t *testing.T, s *loadgen.Sink, in string) string {
	t.Helper()
	client, server := loadgen.Pipe()
	defer client.Close()
	go s.ServeConn(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range len(in) {
			client.Write([]byte{in[i]})
			time.Sleep(time.Millisecond) // virtual
		}
	}()
	out, err := io.ReadAll(client)
	<-done
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return string(out)
}

// judgeData is the oracle: the message that ends at the first CRLF.CRLF, or
// ok = false when there is none.
func judgeData(in string) (msg string, rest string, ok bool) {
	head, rest, ok := strings.Cut("\r\n"+in, "\r\n.\r\n")
	if !ok {
		return "", "", false
	}
	msg = strings.ReplaceAll(head+"\r\n", "\r\n.", "\r\n")
	return msg[2:], rest, true
}

func TestSinkEndsAMessageAtCRLFDotCRLFAndNowhereElse(t *testing.T) {
	t.Parallel()
	const prolog = "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
	alphabet := "\r\n.\x00a"
	var got []*loadgen.Received
	s := mustSink(t, loadgen.SinkConfig{KeepBody: true, OnMessage: func(r *loadgen.Received) { got = append(got, r) }})
	check := func(in string, split int) {
		t.Helper()
		got = got[:0]
		in += "\r\n.\r\n"
		want, _, _ := judgeData(in)
		all := prolog + in
		at := len(prolog) + split
		c := &scripted{parts: [][]byte{[]byte(all[:at]), []byte(all[at:])}}
		s.ServeConn(c)
		if len(got) < 1 || string(got[0].Body) != want || got[0].Size != int64(len(want)) || got[0].Sum != sha256.Sum256([]byte(want)) {
			t.Fatalf("%q split at %d: got %d messages, want %q", in, split, len(got), want)
		}
	}
	var walk func(prefix string)
	walk = func(prefix string) {
		for split := 0; split <= len(prefix)+5; split++ {
			check(prefix, split)
		}
		if len(prefix) == 5 {
			return
		}
		for _, c := range alphabet {
			walk(prefix + string(c))
		}
	}
	walk("")
	for _, n := range []int{4000, 4096, 4097, 65534, 65535, 65536, 65537, 200_000} {
		x := strings.Repeat("x", n)
		for _, in := range []string{x, "." + x, x + "\r\n." + x, x + "\n.", x + "\r", x + "\r\n."} {
			check(in, len(in)/2)
		}
	}
}

// scripted is a connection that plays its parts and swallows what is said.
type scripted struct {
	net.Conn
	parts [][]byte
	said  bytes.Buffer
}

func (c *scripted) Read(p []byte) (int, error) {
	if len(c.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.parts[0])
	if c.parts[0] = c.parts[0][n:]; len(c.parts[0]) == 0 {
		c.parts = c.parts[1:]
	}
	return n, nil
}

func (c *scripted) Write(p []byte) (int, error)      { return c.said.Write(p) }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

func FuzzSink(f *testing.F) {
	f.Add([]byte("EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nhi\r\n.\r\nQUIT\r\n"))
	f.Add([]byte("ehlo\r\nmail from:<\"\\\"> size=1\r\nrcpt to:<x>\r\ndata\r\n.\n.\r\n..\r\n.\r\n"))
	f.Add([]byte("\r\n\r\nMAIL\r\nRCPT\r\nDATA"))
	f.Fuzz(func(t *testing.T, in []byte) {
		n := 0
		s, err := loadgen.New(loadgen.SinkConfig{MaxSize: 1000, OnMessage: func(r *loadgen.Received) { n++ }})
		if err != nil {
			t.Fatal(err)
		}
		c := &scripted{parts: [][]byte{bytes.Clone(in)}}
		s.ServeConn(c)
		if dots := bytes.Count(in, []byte(".\r\n")); n > dots {
			t.Fatalf("%d messages out of %d dots", n, dots)
		}
		for line := range bytes.Lines(c.said.Bytes()) {
			if len(line) < 5 || line[0] < '2' || line[0] > '5' || !bytes.HasSuffix(line, []byte("\r\n")) {
				t.Fatalf("said %q", line)
			}
		}
		if s.Counts().Open != 0 {
			t.Fatal("connection still counted")
		}
	})
}

const oneMail = "MAIL FROM:<a@b.example>\r\nRCPT TO:<u@d.example>\r\nDATA\r\n.\r\n"

func TestProfilesEnforceTheirLimitsInTheirOwnWords(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		profile  string
		conns    int
		messages int
		over     string // connection above the limit
		spent    string // message above the limit
	}{
		{"gmail", 5, 50, "421 4.7.28", "421 4.7.0 Try again later"},
		{"yahoo", 10, 20, "421 4.7.0 [TSS04]", "421 Max message per connection reached"},
		{"outlook", 5, 50, "421 RP-003", "421 RP-002"},
		{"orange", 2, 100, "421 mwinf5c04 ME Trop de connexions", "421 mwinf5c04 ME Trop de messages"},
	} {
		t.Run(tc.profile, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, l := start(t, loadgen.SinkConfig{Profile: tc.profile})
				for i := range tc.conns + 1 {
					c, err := l.Dial(t.Context(), "", "")
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					line, err := bufio.NewReader(c).ReadString('\n')
					want := "220 "
					if i == tc.conns {
						want = tc.over
					}
					if !strings.HasPrefix(line, want) {
						t.Errorf("connection %d: %q (%v), want %q", i, line, err, want)
					}
				}
				if c := s.Counts(); c.Refused != 1 || c.Peak != int64(tc.conns+1) {
					t.Errorf("%+v", c)
				}
			})
			synctest.Test(t, func(t *testing.T) {
				s := mustSink(t, loadgen.SinkConfig{Profile: tc.profile})
				out := talk(t, s, "EHLO x\r\n"+strings.Repeat(oneMail, tc.messages)+"MAIL FROM:<a@b.example>\r\n")
				if n := s.Counts().Messages; n != int64(tc.messages) || !strings.Contains(out, "\r\n"+tc.spent) {
					t.Errorf("%d messages, then %q", n, out[len(out)-100:])
				}
			})
		})
	}
}

func TestProfilesHaveWordsForEverything(t *testing.T) {
	t.Parallel()
	want := []string{"accept", "greylist", "tarpit", "gmail", "yahoo", "outlook", "orange", "mixed"}
	if got := loadgen.Profiles(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, p := range want {
		if p == "greylist" || p == "tarpit" {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			s := mustSink(t, loadgen.SinkConfig{Profile: p})
			out := talk(t, s, "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<reject+1@d.example>\r\nRCPT TO:<defer+1@d.example>\r\nRCPT TO:<data-reject+1@d.example>\r\nDATA\r\n.\r\n"+
				"MAIL FROM:<a@b.example>\r\nRCPT TO:<data-defer+1@d.example>\r\nDATA\r\n.\r\nQUIT\r\n")
			got := strings.Fields(codes(out))
			if len(got) < 10 || got[3][0] != '5' || got[4][0] != '4' || got[7][0] != '5' || got[11][0] != '4' {
				t.Errorf("%s: %v", p, got)
			}
		})
	}
	if _, err := loadgen.New(loadgen.SinkConfig{Profile: "hotmail"}); err == nil {
		t.Error("an unknown profile was taken")
	}
}

func TestRateLimitOpensAgainWithTheNextMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := mustSink(t, loadgen.SinkConfig{Limits: loadgen.Limits{MessagesPerMinute: 3}})
		in := "EHLO x\r\n" + strings.Repeat("MAIL FROM:<a@b.example>\r\nRSET\r\n", 5) + "QUIT\r\n"
		if got := codes(talk(t, s, in)); got != "220 250 250 250 250 250 250 250 451 250 451 250 221" {
			t.Errorf("first minute: %s", got)
		}
		time.Sleep(time.Minute)
		if got := codes(talk(t, s, in)); got != "220 250 250 250 250 250 250 250 451 250 451 250 221" {
			t.Errorf("second minute: %s", got)
		}
	})
}

func TestGreylistLetsAPairThroughAfterItsDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := mustSink(t, loadgen.SinkConfig{Profile: "greylist"})
		try := func(from, to string) string {
			got := codes(talk(t, s, "EHLO x\r\nMAIL FROM:<"+from+">\r\nRCPT TO:<"+to+">\r\nQUIT\r\n"))
			return strings.Fields(got)[3]
		}
		if got := try("a@b.example", "c@d.example"); got != "451" {
			t.Errorf("first attempt: %s", got)
		}
		time.Sleep(59 * time.Second)
		if got := try("a@b.example", "c@d.example"); got != "451" {
			t.Errorf("too early: %s", got)
		}
		time.Sleep(time.Second)
		if got := try("a@b.example", "c@d.example"); got != "250" {
			t.Errorf("after the delay: %s", got)
		}
		if got := try("x@b.example", "c@d.example"); got != "451" {
			t.Errorf("another sender: %s", got)
		}
	})
}

func TestPercentagesHitTheirShareAndTheSameRecipientsEveryTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		run := func(cfg loadgen.SinkConfig, rounds int) (counts []map[int]int64) {
			s := mustSink(t, cfg)
			for range rounds {
				before := s.Counts().Replies
				var in strings.Builder
				in.WriteString("EHLO x\r\nMAIL FROM:<a@b.example>\r\n")
				for i := range 2000 {
					fmt.Fprintf(&in, "RCPT TO:<user%d@d.example>\r\n", i)
				}
				in.WriteString("QUIT\r\n")
				talk(t, s, in.String())
				diff := s.Counts().Replies
				for k, v := range before {
					diff[k] -= v
				}
				counts = append(counts, diff)
			}
			return counts
		}
		near := func(n, want int64) bool { return n > want*3/4 && n < want*5/4 }
		if c := run(loadgen.SinkConfig{DeferPercent: 10, RejectPercent: 5}, 2); !near(c[0][451], 200) || !near(c[0][550], 100) || c[1][451] != 0 || c[1][550] != c[0][550] {
			t.Errorf("by recipient: %v", c)
		}
		if c := run(loadgen.SinkConfig{DeferPercent: 10, DeferRandom: true}, 2); !near(c[0][451], 200) || !near(c[1][451], 200) {
			t.Errorf("at random: %v", c)
		}
		if c := run(loadgen.SinkConfig{Profile: "mixed"}, 1); !near(c[0][550], 100) || !near(c[0][452], 60) || c[0][451] == 0 || c[0][450] == 0 {
			t.Errorf("mixed: %v", c)
		}
	})
}

func TestLatencyIsPaidOnceForRepliesThatGoTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := mustSink(t, loadgen.SinkConfig{Latency: time.Second})
		begin := time.Now()
		talk(t, s, "EHLO x\r\n"+oneMail+"QUIT\r\n")
		if took := time.Since(begin); took != 2*time.Second { // the greeting, then all the rest
			t.Errorf("took %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := mustSink(t, loadgen.SinkConfig{})
		begin := time.Now()
		talk(t, s, "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<slow+1@d.example>\r\nQUIT\r\n")
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("slow+ took %v", took)
		}
	})
}

func TestShutdownLetsAMessageEndAndSendsTheIdleAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := mustSink(t, loadgen.SinkConfig{})
		l := loadgen.Listen()
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		dial := func(say string) *bufio.Reader {
			c, err := l.Dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			c.Write([]byte(say))
			if strings.Contains(say, "DATA") {
				go func() {
					time.Sleep(10 * time.Second) // virtual
					c.Write([]byte("hi\r\n.\r\n"))
				}()
			}
			return bufio.NewReader(c)
		}
		idle, busy := dial("EHLO x\r\n"), dial("EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n")
		synctest.Wait()
		begin := time.Now()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("took %v", took)
		}
		if err := <-served; !errors.Is(err, loadgen.ErrClosed) {
			t.Error(err)
		}
		a, _ := io.ReadAll(idle)
		b, _ := io.ReadAll(busy)
		if got := codes(string(a)); got != "220 250 421" {
			t.Errorf("idle: %s", got)
		}
		if got := codes(string(b)); got != "220 250 250 250 354 250 421" {
			t.Errorf("busy: %s", got)
		}
		if err := s.Serve(loadgen.Listen()); !errors.Is(err, loadgen.ErrClosed) {
			t.Errorf("serving again: %v", err)
		}
	})
}

func TestShutdownThatMayNotWaitCutsConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := mustSink(t, loadgen.SinkConfig{})
		l := loadgen.Listen()
		go s.Serve(l)
		c, err := l.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("EHLO x\r\nMAIL FROM:<a@b.example>\r\n"))
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || s.Counts().Open != 0 {
			t.Errorf("%v, %d open", err, s.Counts().Open)
		}
	})
}

func TestSinkSpeaksTLSWithACertificateItsRootsVerify(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := mustSink(t, loadgen.SinkConfig{TLS: true, Hostname: "mx.example.net"})
		client, server := loadgen.Pipe()
		defer client.Close()
		go s.ServeConn(server)
		r := bufio.NewReader(client)
		say := func(line, want string) {
			client.Write([]byte(line))
			for {
				got, err := r.ReadString('\n')
				if err != nil || !strings.HasPrefix(got, want) {
					t.Fatalf("%q: %q, %v", line, got, err)
				}
				if got[3] == ' ' {
					return
				}
			}
		}
		say("", "220")
		say("EHLO x\r\n", "250")
		say("STARTTLS\r\n", "220")
		tc := tls.Client(client, &tls.Config{RootCAs: s.Roots(), ServerName: "mx.example.net"})
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		client, r = tc, bufio.NewReader(tc)
		say("MAIL FROM:<a@b.example>\r\n", "503") // what was said in clear is forgotten
		say("EHLO x\r\n", "250")
		say("MAIL FROM:<a@b.example>\r\n", "250")
	})
}

func TestPipeBehavesLikeAConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := loadgen.Pipe()
		begin := time.Now()
		b.SetReadDeadline(begin.Add(time.Minute))
		if _, err := b.Read(make([]byte, 1)); !isTimeout(err) || time.Since(begin) != time.Minute {
			t.Errorf("read: %v after %v", err, time.Since(begin))
		}
		a.SetWriteDeadline(time.Now().Add(time.Minute))
		if n, err := a.Write(make([]byte, 1<<20)); !isTimeout(err) || n != 64<<10 {
			t.Errorf("write into a full window: %d, %v", n, err)
		}
		a.SetWriteDeadline(time.Time{})
		go func() {
			time.Sleep(time.Minute)
			b.SetReadDeadline(time.Time{})
			io.CopyN(io.Discard, b, 64<<10)
		}()
		if n, err := a.Write([]byte("more")); n != 4 || err != nil {
			t.Errorf("write once there is room: %d, %v", n, err)
		}
		a.Close()
		got, err := io.ReadAll(b)
		if string(got) != "more" || err != nil {
			t.Errorf("what was written before the close: %q, %v", got, err)
		}
		if _, err := b.Write([]byte("x")); err == nil {
			t.Error("wrote to a closed peer")
		}
		b.Close()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
	})
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
