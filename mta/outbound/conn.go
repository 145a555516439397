package outbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

const (
	readSize  = maxLine  // of which a reply of several recipients takes one or two
	writeSize = 16 << 10 // one TLS record
)

// buffers is what a connection needs while it talks: about 4 KiB, and 16 more
// where bodies are copied, under TLS.
type buffers struct {
	read  [readSize]byte
	write []byte // commands, and up to writeSize of a body where writev is not to be had
	text  []byte // the reply just read; at most maxReply
	ahead []byte // commands that follow a message
	vec   net.Buffers
}

func newBuffers() *buffers {
	return &buffers{write: make([]byte, 0, 1<<10), text: make([]byte, 0, 512)}
}

// Buffers is shared by any number of connections; those that lie idle in a
// Pool give theirs back to it. The zero value is ready to use.
type Buffers struct{ pool sync.Pool }

func (b *Buffers) get() *buffers {
	if v, ok := b.pool.Get().(*buffers); ok {
		return v
	}
	return newBuffers()
}

// Conn is one open conversation, greeted and ready for MAIL. It serves one
// goroutine at a time; only Close may be called beside another method.
type Conn struct {
	opts Options
	raw  net.Conn // the socket: deadlines, probing, closing
	nc   net.Conn // raw, or TLS over it: reading and writing
	buf  *buffers // nil while idle
	r, w int      // buf.read[r:w] has been received and not used
	caps Caps
	tls  string
	// latest is when the present envelope must be answered; zero means no such
	// limit is running.
	latest time.Time

	messages int          // MAIL commands sent
	begun    *transaction // whose commands followed the last message
	dirty    bool
	broken   bool // REQUIRES nothing further is read or written
	parted   bool // the server's end has been waited for
	lastUsed time.Time

	vecw      net.Buffers // the part of buf.vec being written; here to stay off the heap
	closeOnce sync.Once
	forget    func() bool // ends the watch over opts.Life; nil without one
}

// Caps returns what the server offered in its last EHLO.
func (c *Conn) Caps() *Caps { return &c.caps }

// TLS returns version and cipher suite, "" in clear.
func (c *Conn) TLS() string { return c.tls }

// Host returns the mail exchanger's name.
func (c *Conn) Host() string { return c.opts.Host }

// Messages returns how many transactions were begun.
func (c *Conn) Messages() int { return c.messages }

// LastUsed returns when the last transaction or RSET ended, or the greeting.
func (c *Conn) LastUsed() time.Time { return c.lastUsed }

// Close closes the socket without a word. It may be called more than once and
// while another method runs, which then fails.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		c.raw.Close() // its error helps nobody: the socket is gone either way
		if c.forget != nil {
			c.forget()
		}
		if c.opts.OnClose != nil {
			c.opts.OnClose()
		}
	})
	return nil
}

// Quit says QUIT if the conversation still stands, waits for the answer as long
// as Timeouts.Quit allows and then for the server to close, and closes. The
// answer is not looked at: no message depends on it.
func (c *Conn) Quit(ctx context.Context) {
	defer c.Close()
	defer c.watch(ctx)()
	if c.forsake() {
		return // QUIT would be taken for the message
	}
	if c.broken {
		c.linger(false)
		return
	}
	c.acquire()
	if c.command(message.StageQuit, c.opts.Timeouts.Quit, "QUIT") == nil {
		c.read(message.StageQuit, c.opts.Timeouts.Quit)
	}
	c.broken = true
	c.release()
	c.linger(true)
}

// Reset says RSET and waits for the answer, which also proves that the peer is
// there. Send does this by itself where it must. The error is a *message.Reply;
// after one the connection is closed.
func (c *Conn) Reset(ctx context.Context) *message.Reply {
	c.forsake()
	if c.broken {
		return c.local(message.StageRset, status442, "the connection is closed")
	}
	defer c.watch(ctx)()
	c.acquire()
	rp, fail := c.exchange(message.StageRset, c.opts.Timeouts.Rset, "RSET")
	if fail == nil && rp.code/100 != 2 {
		fail = c.remote(message.StageRset, rp)
	}
	if fail != nil {
		c.abandon()
		return fail
	}
	c.dirty = false
	c.lastUsed = time.Now()
	return nil
}

// live begins the watch over opts.Life.
func (c *Conn) live() {
	if c.opts.Life != nil && c.opts.Life.Done() != nil {
		c.forget = context.AfterFunc(c.opts.Life, func() { c.raw.Close() })
	}
}

// watch closes the socket when ctx ends; the result ends the watch, and is false
// when ctx has ended.
func (c *Conn) watch(ctx context.Context) func() bool {
	switch {
	case ctx.Done() == nil:
		return func() bool { return true }
	case c.forget != nil && ctx.Done() == c.opts.Life.Done():
		return func() bool { return ctx.Err() == nil }
	}
	return context.AfterFunc(ctx, func() { c.raw.Close() })
}

func (c *Conn) acquire() {
	if c.buf != nil {
		return
	}
	if c.opts.Buffers != nil {
		c.buf = c.opts.Buffers.get()
	} else {
		c.buf = newBuffers()
	}
}

// release gives the buffers back while the connection lies idle.
func (c *Conn) release() {
	if c.buf == nil || c.opts.Buffers == nil || c.r != c.w {
		return
	}
	c.r, c.w = 0, 0
	c.opts.Buffers.pool.Put(c.buf)
	c.buf = nil
}

// abandon closes a conversation that cannot go on.
func (c *Conn) abandon() {
	c.broken = true
	c.linger(false)
	c.Close()
	c.r, c.w = 0, 0
	if c.buf != nil {
		c.release()
	}
}

// forsake gives the conversation up if a message has been begun, and reports
// whether it did: the server waits for that message and for nothing else.
func (c *Conn) forsake() bool {
	if c.begun == nil {
		return false
	}
	c.begun = nil
	c.abandon()
	return true
}

// Drop gives the conversation up without a word, whatever state it is in, and
// closes once the server has closed, or a short time has passed.
func (c *Conn) Drop() { c.abandon() }

// Enhanced status codes of the failures we report ourselves (RFC 3463).
var (
	status441 = message.Enhanced{4, 4, 1} // no answer from host
	status442 = message.Enhanced{4, 4, 2} // bad connection
	status450 = message.Enhanced{4, 5, 0} // other protocol status
	status475 = message.Enhanced{4, 7, 5} // cryptographic failure
)

// local makes a reply in the place of one the server did not give. Its code is
// 0: nobody answered.
func (c *Conn) local(stage message.Stage, e message.Enhanced, text string) *message.Reply {
	return &message.Reply{
		Enhanced: e, Text: text, Stage: stage, Local: true,
		RemoteHost: c.opts.Host, RemoteIP: c.opts.Addr.Addr(), TLS: c.tls,
	}
}

// remote keeps what the server said.
func (c *Conn) remote(stage message.Stage, rp reply) *message.Reply {
	return &message.Reply{
		Code: rp.code, Enhanced: rp.enhanced, Text: string(rp.text), Stage: stage,
		RemoteHost: c.opts.Host, RemoteIP: c.opts.Addr.Addr(), TLS: c.tls,
	}
}

// lost describes a failed read or write.
func (c *Conn) lost(stage message.Stage, err error, doing string) *message.Reply {
	text := ""
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		text = "timed out " + doing
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		text = "connection closed by the peer " + doing
	case errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		text = "canceled " + doing
	default:
		text = "connection lost " + doing + ": " + cause(err)
	}
	return c.local(stage, status442, text)
}

// cause strips the operation and the addresses from a network error: the reply
// names the peer already.
func cause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	var sys *os.SyscallError
	if errors.As(err, &sys) && sys.Err != nil {
		err = sys.Err
	}
	s := err.Error()
	if len(s) > maxKept {
		s = s[:maxKept]
	}
	return s
}

// quiet reports an error if the server has said something unasked: whatever it
// was, the next command's reply could no longer be told apart. A 421 is what it
// says; other codes are not, because they belong to nothing of ours.
// REQUIRES: no command is outstanding.
func (c *Conn) quiet(stage message.Stage) *message.Reply {
	if c.r == c.w {
		return nil
	}
	rp, fail := c.read(stage, time.Second)
	if fail != nil {
		return fail
	}
	if rp.code == 421 {
		return c.remote(stage, rp)
	}
	return c.local(stage, status450, fmt.Sprintf("protocol error: unexpected reply %d %q", rp.code, clip(rp.text, 64)))
}

// command writes one command line.
func (c *Conn) command(stage message.Stage, limit time.Duration, line string) *message.Reply {
	if fail := c.quiet(stage); fail != nil {
		return fail
	}
	c.buf.write = append(append(c.buf.write[:0], line...), "\r\n"...)
	return c.flush(stage, limit)
}

// exchange writes one command line and reads its reply. A 421 is a failure at
// any stage (RFC 5321, 3.8): the server is about to close.
func (c *Conn) exchange(stage message.Stage, limit time.Duration, line string) (reply, *message.Reply) {
	if fail := c.command(stage, limit, line); fail != nil {
		return reply{}, fail
	}
	rp, fail := c.read(stage, limit)
	if fail == nil && rp.code == 421 {
		fail = c.remote(stage, rp)
	}
	return rp, fail
}

// flush writes the commands gathered in buf.write.
func (c *Conn) flush(stage message.Stage, limit time.Duration) *message.Reply {
	c.trace(c.buf.write)
	c.raw.SetWriteDeadline(time.Now().Add(limit))
	_, err := c.nc.Write(c.buf.write)
	c.buf.write = c.buf.write[:0]
	if err == nil {
		return nil
	}
	// A server that says why before it hangs up deserves to be heard.
	fail := c.lost(stage, err, "sending a command")
	if rp, bad := c.read(stage, time.Second); bad == nil && rp.code >= 400 {
		return c.remote(stage, rp)
	}
	return fail
}

// traced reports whether somebody follows the dialogue now.
func (c *Conn) traced() bool {
	return c.opts.Trace != nil && (c.opts.Traced == nil || c.opts.Traced.Load())
}

// trace shows commands to whoever follows the dialogue.
func (c *Conn) trace(commands []byte) {
	if !c.traced() {
		return
	}
	for line := range bytes.Lines(commands) {
		c.opts.Trace('>', hideSecrets(bytes.TrimRight(line, "\r\n")))
	}
}

func hideSecrets(line []byte) []byte {
	const plain = "AUTH PLAIN "
	if bytes.HasPrefix(line, []byte(plain)) {
		return []byte(plain + "***")
	}
	return line
}

func tlsName(s tls.ConnectionState) string {
	return tls.VersionName(s.Version) + " " + tls.CipherSuiteName(s.CipherSuite)
}
