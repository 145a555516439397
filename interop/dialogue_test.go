//go:build interop && linux

package interop

import (
	"bufio"
	"net"
	"strings"
	"testing"
	"time"
)

// client speaks SMTP by hand.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

// dial connects and reads the greeting.
func dial(t *testing.T, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	c := &client{t, conn, bufio.NewReader(conn)}
	c.expect("220")
	return c
}

// say sends text as it is.
func (c *client) say(text string) {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(text)); err != nil {
		c.t.Fatalf("%.80q: %v", text, err)
	}
}

// reply reads one reply, or returns what ended the connection.
func (c *client) reply() (string, error) {
	var all strings.Builder
	for {
		line, err := c.in.ReadString('\n')
		all.WriteString(line)
		if err != nil || len(line) < 4 || line[3] != '-' {
			return all.String(), err
		}
	}
}

func (c *client) expect(want string) {
	c.t.Helper()
	got, err := c.reply()
	if err != nil || !strings.HasPrefix(got, want) {
		c.t.Fatalf("got %q, %v; want %s", got, err, want)
	}
}

// ask sends a command and holds the reply to its beginning.
func (c *client) ask(command, want string) {
	c.t.Helper()
	c.say(command + "\r\n")
	got, err := c.reply()
	if err != nil || !strings.HasPrefix(got, want) {
		c.t.Fatalf("%.80s: got %q, %v; want %s", command, got, err, want)
	}
}
