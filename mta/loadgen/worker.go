package loadgen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// worker is one connection at a time and all it needs.
type worker struct {
	run  *run
	conn net.Conn
	in   []byte
	r, w int
	out  []byte
	msg  []byte // the message with its final dot; ids are written into it
	pipe bool
	rep  Report
	lat  latencies

	ahead int  // number of a message taken and not sent
	held  bool // there is one
	said  bool // and its envelope is on its way on conn
}

func (w *worker) work(ctx context.Context) error {
	defer func() {
		if w.conn != nil {
			w.conn.Close()
		}
	}()
	broken := 0
	for {
		n, ok := w.next(ctx)
		if !ok {
			break
		}
		for w.conn == nil {
			err := w.open(ctx)
			if err == nil {
				break
			}
			if broken++; broken >= maxBroken || ctx.Err() != nil {
				return fmt.Errorf("loadgen: %s: %w", w.run.Target, err)
			}
		}
		conn := w.conn
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		id := w.run.tmpl.number(w.msg, w.run.FirstID+n)
		start := time.Now()
		if w.run.OnBegin != nil {
			w.run.OnBegin(id, start)
		}
		code, text, err := w.send(ctx, n)
		at := time.Now()
		stop()
		w.count(code, at.Sub(start))
		if w.run.OnAck != nil {
			w.run.OnAck(id, code, text, at)
		}
		if err != nil || code == 421 {
			w.conn.Close()
			w.conn, w.said = nil, false
			if broken++; broken >= maxBroken && err != nil {
				return fmt.Errorf("loadgen: %s: %w", w.run.Target, err)
			}
			continue
		}
		broken = 0
	}
	if w.conn != nil {
		w.conn.SetDeadline(time.Now().Add(time.Second))
		w.conn.Write([]byte("QUIT\r\n"))
		w.reply()
	}
	return nil
}

func (w *worker) count(code int, took time.Duration) {
	w.rep.Sent++
	switch code / 100 {
	case 2:
		w.rep.Accepted++
		w.rep.Max = max(w.rep.Max, took)
		w.lat.add(took)
	case 4:
		w.rep.Deferred++
	case 5:
		w.rep.Rejected++
	default:
		w.rep.Unknown++
	}
}

func (w *worker) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.run.Timeout)
	defer cancel()
	conn, err := w.run.Dial(ctx, "tcp", w.run.Target)
	if err != nil {
		return err
	}
	w.conn, w.r, w.w = conn, 0, 0
	if err = w.greet(); err != nil {
		conn.Close()
		w.conn = nil
	}
	return err
}

func (w *worker) greet() error {
	w.conn.SetDeadline(time.Now().Add(w.run.Timeout))
	code, text, err := w.reply()
	if err == nil && code != 220 {
		err = fmt.Errorf("greeting: %d %s", code, text)
	}
	if err != nil {
		return err
	}
	if _, err = w.conn.Write([]byte("EHLO load.example\r\n")); err != nil {
		return err
	}
	code, text, err = w.reply()
	if err == nil && code != 250 {
		err = fmt.Errorf("EHLO: %d %s", code, text)
	}
	w.pipe = !w.run.NoPipelining && strings.Contains(strings.ToUpper(text), "PIPELINING")
	return err
}

// next returns the number of the message to send: the one whose envelope may
// be on its way already, or a new one.
func (w *worker) next(ctx context.Context) (n int, ok bool) {
	if w.held {
		w.held = false
		return w.ahead, true
	}
	return w.run.take(ctx)
}

// send sends message n. An error means that the connection is of no more use;
// code is then 0, unless a reply had settled the message before.
func (w *worker) send(ctx context.Context, n int) (code int, text string, err error) {
	w.conn.SetDeadline(time.Now().Add(w.run.Timeout))
	switch {
	case w.said:
		w.said = false
		code, text, err = w.replies(w.run.Recipients + 2)
	case w.pipe:
		w.out = w.appendEnvelope(w.out[:0], n)
		if err = w.flush(); err == nil {
			code, text, err = w.replies(w.run.Recipients + 2)
		}
	default:
		code, text, err = w.stepwise(n)
	}
	if code != 354 {
		return w.giveUp(code, text, err)
	}
	msg := w.msg
	if w.run.Chain && w.pipe {
		if w.ahead, w.held = w.run.take(ctx); w.held {
			// The message is the first part of the next group (RFC 2920, 3.1).
			msg = w.appendEnvelope(msg, w.ahead)
			w.said = true
		}
	}
	if _, err = w.conn.Write(msg); err != nil {
		return 0, "", err
	}
	w.msg = msg[:len(w.run.tmpl.bytes)] // keeps the room behind it
	return w.reply()
}

// stepwise says the envelope one command at a time.
func (w *worker) stepwise(n int) (code int, text string, err error) {
	w.out = w.appendMail(w.out[:0])
	if code, text, err = w.exchange(); code/100 != 2 {
		return code, text, err
	}
	for i := range w.run.Recipients {
		w.out = w.appendRcpt(w.out[:0], n, i)
		if code, text, err = w.exchange(); code/100 != 2 {
			return code, text, err
		}
	}
	w.out = append(w.out[:0], "DATA\r\n"...)
	return w.exchange()
}

func (w *worker) appendEnvelope(b []byte, n int) []byte {
	b = w.appendMail(b)
	for i := range w.run.Recipients {
		b = w.appendRcpt(b, n, i)
	}
	return append(b, "DATA\r\n"...)
}

func (w *worker) appendMail(b []byte) []byte {
	b = append(append(b, "MAIL FROM:<"...), w.run.From...)
	return append(b, ">\r\n"...)
}

func (w *worker) appendRcpt(b []byte, n, i int) []byte {
	b = append(b, "RCPT TO:<"...)
	b = w.appendTo(b, (w.run.FirstID+n)*w.run.Recipients+i)
	return append(b, ">\r\n"...)
}

func (w *worker) flush() error {
	_, err := w.conn.Write(w.out)
	w.out = w.out[:0]
	return err
}

func (w *worker) exchange() (code int, text string, err error) {
	if err = w.flush(); err != nil {
		return 0, "", err
	}
	return w.reply()
}

// replies reads so many replies; the first refusal counts, otherwise the last.
func (w *worker) replies(n int) (code int, text string, err error) {
	for range n {
		c, t, err := w.reply()
		if err != nil {
			return code, text, err
		}
		if code < 400 {
			code, text = c, t
		} else if c == 354 {
			// A recipient was refused and another taken: DATA is on. What is
			// half taken counts as refused, so the message is not sent.
			return code, text, errors.New("loadgen: DATA accepted after a refusal")
		}
	}
	return code, text, nil
}

// giveUp leaves the transaction, so that the next MAIL is not out of order.
func (w *worker) giveUp(code int, text string, err error) (int, string, error) {
	if err != nil || code == 421 {
		return code, text, err
	}
	w.out = append(w.out[:0], "RSET\r\n"...)
	if _, err = w.conn.Write(w.out); err == nil {
		_, _, err = w.reply()
	}
	return code, text, err
}

func (w *worker) appendTo(b []byte, n int) []byte {
	p := w.run.To
	user, rest, _ := strings.Cut(p, "%d")
	b = append(b, user...)
	if len(user) == len(p) {
		return b
	}
	b = strconv.AppendInt(b, int64(n), 10)
	mid, end, two := strings.Cut(rest, "%d")
	b = append(b, mid...)
	if two {
		b = strconv.AppendInt(b, int64(n%w.run.Domains), 10)
	}
	return append(b, end...)
}

// reply reads one reply. The text is kept for refusals and EHLO only.
func (w *worker) reply() (code int, text string, err error) {
	for {
		i := bytes.IndexByte(w.in[w.r:w.w], '\n')
		if i < 0 {
			if err := w.fill(); err != nil {
				return 0, "", err
			}
			continue
		}
		line := bytes.TrimRight(w.in[w.r:w.r+i], "\r")
		w.r += i + 1
		if len(line) < 3 {
			return 0, "", fmt.Errorf("reply %q", line)
		}
		if code, err = strconv.Atoi(string(line[:3])); err != nil || code < 200 || code > 599 {
			return 0, "", fmt.Errorf("reply %q", line)
		}
		more := len(line) > 3 && line[3] == '-'
		if (more || code >= 400 || text != "") && len(text) < 4<<10 && len(line) > 4 {
			text += string(line[4:]) + "\n"
		}
		if !more {
			return code, strings.TrimSuffix(text, "\n"), nil
		}
	}
}

func (w *worker) fill() error {
	if w.r > 0 {
		w.w = copy(w.in, w.in[w.r:w.w])
		w.r = 0
	}
	if w.w == len(w.in) {
		return errors.New("reply too long")
	}
	n, err := w.conn.Read(w.in[w.w:])
	w.w += n
	if n > 0 {
		return nil
	}
	return err
}
