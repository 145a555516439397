package outbound_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

// A script is what a server says and what it must hear, and what the client
// must make of it:
//
//	set KEY [VALUE]   to N, messages N, from ADDR, rcpt ADDR (more), eightbit,
//	                  utf8, size N, notify, envid, tls POLICY, body QUOTED,
//	                  ahead: each message is begun behind the one before it
//	greet [CAP,...]   the greeting, then EHLO and its reply
//	< LINE            the server says LINE
//	<" QUOTED         the server says exactly this
//	> LINE            the server must hear LINE
//	body              the server reads up to and with the final dot
//	take N            the server reads N octets
//	sleep D           the server waits (virtual time)
//	drip D            the server sends one octet each D, for ever
//	trickle N         the server reads N octets every 100 s until the end
//	deaf              whatever still comes is of no interest
//	close             the server closes
//	= dial STAGE CODE [TEXT]
//	= M.R RESULT STAGE CODE [TEXT]   outcome of recipient R of message M
//	= M usable|spent [stale] [ahead]
//	= took D          from dial to the last outcome
//
// When a script ends, nothing but QUIT may still come.
type script struct {
	steps []string
	o     outbound.Options
	e     outbound.Envelope
	msgs  int
	ahead bool
	want  []string
}

func parseScript(t *testing.T, text string) *script {
	s := &script{msgs: 1, o: testOptions(nil)}
	s.e = *envelope("b0@example.net")
	s.e.Header = nil
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		word, arg, _ := strings.Cut(line, " ")
		switch word {
		case "", "#":
		case "=":
			s.want = append(s.want, arg)
		case "set":
			s.set(t, arg)
		default:
			s.steps = append(s.steps, line)
		}
	}
	return s
}

func (s *script) set(t *testing.T, arg string) {
	key, val, _ := strings.Cut(arg, " ")
	n, _ := strconv.Atoi(val)
	switch key {
	case "to":
		s.e.To = nil
		for i := range n {
			s.e.To = append(s.e.To, rcpts(fmt.Sprintf("b%d@example.net", i))...)
		}
	case "rcpt":
		s.e.To = append(s.e.To, rcpts(val)...)
	case "messages":
		s.msgs = n
	case "ahead":
		s.ahead = true
	case "from":
		s.e.From = message.Address{}
		if val != "<>" {
			s.e.From = message.MustAddress(val)
		}
	case "eightbit":
		s.e.EightBit = true
	case "utf8":
		s.e.UTF8 = true
	case "size":
		s.e.Body = []byte(strings.Repeat(strings.Repeat("x", 62)+"\r\n", n/64))
	case "body":
		b, err := strconv.Unquote(val)
		if err != nil {
			t.Fatal(err)
		}
		s.e.Body = []byte(b)
	case "notify":
		s.e.To[0].Notify = message.NotifyFailure | message.NotifyDelay
		s.e.To[0].ORcpt = "rfc822;old+name@example.net"
	case "envid":
		s.e.EnvID, s.e.Ret = "a=b c", "HDRS"
	case "tls":
		p, err := outbound.ParseTLSPolicy(val)
		if err != nil {
			t.Fatal(err)
		}
		s.o.TLS = p
	default:
		t.Fatalf("set %s?", arg)
	}
}

// serve plays the server. The result is what went wrong.
func (s *script) serve(c net.Conn) string {
	defer c.Close()
	r := bufio.NewReader(c)
	hear := func(want string) string {
		got, err := r.ReadString('\n')
		if got != want+"\r\n" {
			return fmt.Sprintf("heard %q (%v), want %q", got, err, want)
		}
		return ""
	}
	for _, step := range s.steps {
		word, arg, _ := strings.Cut(step, " ")
		wrong := ""
		switch word {
		case "<":
			c.Write([]byte(arg + "\r\n"))
		case `<"`:
			q, err := strconv.Unquote(arg)
			if err != nil {
				return err.Error()
			}
			c.Write([]byte(q))
		case ">":
			wrong = hear(arg)
		case "greet":
			c.Write([]byte("220 mx.example.net\r\n"))
			wrong = hear("EHLO mta1.example.com")
			c.Write([]byte("250-mx.example.net\r\n"))
			for cap := range strings.SplitSeq(arg, ",") {
				if cap != "" {
					c.Write([]byte("250-" + cap + "\r\n"))
				}
			}
			c.Write([]byte("250 HELP\r\n"))
		case "body":
			for line := ""; line != ".\r\n"; {
				var err error
				if line, err = r.ReadString('\n'); err != nil {
					return "body: " + err.Error()
				}
			}
		case "take":
			n, _ := strconv.Atoi(arg)
			if _, err := r.Discard(n); err != nil {
				return "take: " + err.Error()
			}
		case "sleep":
			d, _ := time.ParseDuration(arg)
			time.Sleep(d)
		case "drip":
			d, _ := time.ParseDuration(arg)
			for {
				if _, err := c.Write([]byte("2")); err != nil {
					return ""
				}
				time.Sleep(d)
			}
		case "trickle":
			n, _ := strconv.Atoi(arg)
			for {
				if _, err := r.Discard(n); err != nil {
					return ""
				}
				time.Sleep(100 * time.Second)
			}
		case "deaf":
			r.WriteTo(io.Discard)
			return ""
		case "close":
			return ""
		default:
			return "step " + step
		}
		if wrong != "" {
			return wrong
		}
	}
	for {
		line, err := r.ReadString('\n')
		if line == "QUIT\r\n" {
			c.Write([]byte("221 bye\r\n"))
		} else if line != "" {
			return fmt.Sprintf("heard %q behind the end of the script", line)
		}
		if err != nil {
			return ""
		}
	}
}

func (s *script) run(t *testing.T) {
	var wrong string
	done := make(chan struct{})
	s.o.Dial = func(context.Context, string, string) (net.Conn, error) {
		client, server := loadgen.Pipe()
		go func() { defer close(done); wrong = s.serve(server) }()
		return client, nil
	}
	start := time.Now()
	ctx := context.Background()
	var got []string
	c, fail := outbound.Dial(ctx, s.o)
	if fail != nil {
		got = append(got, fmt.Sprintf("dial %v %d %s", fail.Stage, fail.Code, fail.Text))
	}
	list := make([]outbound.Envelope, s.msgs)
	for m := range list {
		list[m] = s.e
		if s.ahead && m+1 < s.msgs {
			list[m].Next = func() *outbound.Envelope { return &list[m+1] }
		}
	}
	for m := 0; m < s.msgs && c != nil; m++ {
		res := c.Send(ctx, &list[m])
		for r, out := range res.Outcomes {
			got = append(got, fmt.Sprintf("%d.%d %v %v %d %s", m, r, out.Result, out.Reply.Stage, out.Reply.Code, out.Reply.Text))
		}
		state := "spent"
		if res.Usable {
			state = "usable"
		}
		if res.Stale {
			state += " stale"
		}
		if res.Next != nil {
			state += " ahead"
		}
		got = append(got, fmt.Sprintf("%d %s", m, state))
	}
	got = append(got, fmt.Sprintf("took %v", time.Since(start)))
	if c != nil {
		c.Quit(ctx)
	}
	<-done
	if wrong != "" {
		t.Error("the server", wrong)
	}
	for _, w := range s.want {
		fits := func(g string) bool { return strings.HasPrefix(g, w) }
		if _, state, _ := strings.Cut(w, " "); strings.HasPrefix(state, "usable") || strings.HasPrefix(state, "spent") {
			fits = func(g string) bool { return g == w }
		}
		if !slices.ContainsFunc(got, fits) {
			t.Errorf("want %q among\n%s", w, strings.Join(got, "\n"))
		}
	}
	if len(s.want) == 0 {
		t.Error("the script expects nothing")
	}
}

func TestConversationsGoAsWritten(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/conversations.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range txtar.Parse(text).Files {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { parseScript(t, string(f.Data)).run(t) })
		})
	}
}
