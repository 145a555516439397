package loadgen

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"strconv"
)

func (ss *session) data() error {
	if !ss.tx.open || ss.tx.count == 0 {
		ss.say("503 5.5.1 no valid recipients")
		return nil
	}
	ss.say("354 go ahead")
	s := ss.sink
	var d body
	if s.cfg.OnMessage != nil {
		d.keep = s.cfg.KeepBody
		if !s.cfg.NoSum {
			d.sum = sha256.New()
		}
	}
	d.limit = s.cfg.MaxSize
	if err := ss.readData(&d); err != nil {
		return err
	}
	text := "250 2.0.0 ok"
	switch {
	case d.size > s.cfg.MaxSize:
		text = "552 5.3.4 message too large"
	case ss.tx.dot != "":
		text = ss.tx.dot
	}
	if s.cfg.OnMessage != nil {
		ss.hook(&d, text)
	}
	if ss.tx.drop {
		ss.flush() // earlier replies are not what is to be lost
		return errEnd
	}
	if text[0] == '2' {
		s.messages.Add(1)
		s.recipients.Add(int64(ss.tx.count))
		s.octets.Add(d.size)
	}
	ss.reset()
	ss.say(text)
	return nil
}

func (ss *session) hook(d *body, text string) {
	code, _ := strconv.Atoi(text[:3])
	m := &Received{
		Time: ss.sink.cfg.Now(), Client: ss.addr, Helo: ss.helo, TLS: ss.tls,
		From: string(ss.tx.from), To: ss.tx.to, Bounced: ss.tx.bounced,
		Accepted: code == 250, Code: code, Size: d.size, Body: d.kept,
	}
	if d.sum != nil {
		d.sum.Sum(m.Sum[:0])
	}
	ss.sink.cfg.OnMessage(m)
}

// body takes the octets of a message.
type body struct {
	size, limit int64
	sum         hash.Hash // nil: nobody wants to know
	keep        bool
	kept        []byte
}

func (d *body) add(p []byte) {
	d.size += int64(len(p))
	if d.size > d.limit {
		return
	}
	if d.sum != nil {
		d.sum.Write(p)
	}
	if d.keep {
		d.kept = append(d.kept, p...)
	}
}

// readData reads up to the line that is a lone dot, in whole runs: only lines
// that begin with a dot are looked at. A line begins after CRLF and nothing
// else, so that no other sequence can end the message.
func (ss *session) readData(d *body) error {
	start, pos := ss.r, ss.r // a run not yet taken; the line being looked at
	inside := false          // pos is not the beginning of a line
	for {
		i := bytes.IndexByte(ss.in[pos:ss.w], '\n')
		if i < 0 {
			if ss.w-pos > maxLine {
				// Endless line: take it, but for an octet that may be the CR.
				if !inside && ss.in[pos] == '.' {
					d.add(ss.in[start:pos])
					start = pos + 1
				}
				pos, inside = ss.w-1, true
			}
			d.add(ss.in[start:pos])
			ss.r = pos
			if err := ss.fill(); err != nil {
				return err
			}
			start, pos = ss.r, ss.r
			continue
		}
		end := pos + i + 1
		if !inside && ss.in[pos] == '.' {
			d.add(ss.in[start:pos])
			if i == 2 && ss.in[pos+1] == '\r' {
				ss.r = end
				return nil
			}
			start = pos + 1
		}
		inside = i == 0 || ss.in[end-2] != '\r'
		pos = end
	}
}
