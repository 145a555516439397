package message

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Stage is the step of an SMTP conversation that a reply or a failure belongs
// to. The names appear in events and shaping rules.
type Stage uint8

// Stages, in the order of a conversation.
const (
	StageNone     Stage = iota
	StageResolve        // DNS, before any connection
	StageConnect        // TCP
	StageBanner         // the 220 greeting
	StageEHLO           // EHLO or HELO
	StageSTARTTLS       // STARTTLS and the handshake
	StageAuth
	StageMail
	StageRcpt
	StageData // DATA up to 354
	StageBody // while the body is being written
	StageDot  // the reply to the final dot
	StageRset
	StageQuit
)

var stageNames = [...]string{"", "resolve", "connect", "banner", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot", "rset", "quit"}

func (s Stage) String() string {
	if int(s) < len(stageNames) {
		return stageNames[s]
	}
	return "stage(" + strconv.Itoa(int(s)) + ")"
}

// ParseStage reads a stage name; unknown text is StageNone.
func ParseStage(s string) Stage {
	for i, n := range stageNames {
		if n == s {
			return Stage(i)
		}
	}
	return StageNone
}

// Enhanced is an enhanced status code of RFC 3463, class.subject.detail. The
// zero value means none was given.
type Enhanced [3]uint16

func (e Enhanced) String() string {
	if e == (Enhanced{}) {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", e[0], e[1], e[2])
}

// ParseEnhanced reads the code that s begins with and returns what follows it,
// less one space. ok is false, and rest is s, when s begins with none: class
// 2, 4 or 5, then two numbers of one to three digits (RFC 3463, 2).
func ParseEnhanced(s string) (e Enhanced, rest string, ok bool) {
	if len(s) < 5 || (s[0] != '2' && s[0] != '4' && s[0] != '5') || s[1] != '.' {
		return Enhanced{}, s, false
	}
	e[0] = uint16(s[0] - '0')
	i := 2
	for part := 1; part <= 2; part++ {
		start := i
		for i < len(s) && i-start < 3 && '0' <= s[i] && s[i] <= '9' {
			e[part] = e[part]*10 + uint16(s[i]-'0')
			i++
		}
		if i == start {
			return Enhanced{}, s, false
		}
		if part == 1 {
			if i >= len(s) || s[i] != '.' {
				return Enhanced{}, s, false
			}
			i++
		}
	}
	if i < len(s) && s[i] != ' ' && s[i] != '\n' && s[i] != '\t' {
		return Enhanced{}, s, false
	}
	return e, strings.TrimPrefix(s[i:], " "), true
}

// Reply is what a server said, or what we say in its place when it said
// nothing (Local). It is an error; a *Reply is how delivery failures travel.
type Reply struct {
	Code     int // 200 to 599; 0 when nobody answered
	Enhanced Enhanced
	// Text is the server's words without the codes: lines joined by "\n",
	// bytes as received but for the cap on length. Escape it where shown.
	Text  string
	Stage Stage

	RemoteHost string // MX host name
	RemoteIP   netip.Addr
	TLS        string // version and cipher, "" in clear
	// Local is set when we made the reply ourselves: a time-out, a refused
	// connection, a DNS failure.
	Local bool
}

// Temporary reports whether trying again may help. Only a 5xx code from a
// server, or one we chose ourselves, is permanent: mail lost is worse than
// mail late.
func (r *Reply) Temporary() bool { return r.Code < 500 || r.Code > 599 }

// Positive reports a 2xx or 3xx code.
func (r *Reply) Positive() bool { return r.Code >= 200 && r.Code < 400 }

// Error formats the reply on one line.
func (r *Reply) Error() string {
	b := make([]byte, 0, 64+len(r.Text))
	if r.Stage != StageNone {
		b = append(append(b, r.Stage.String()...), ": "...)
	}
	return string(r.AppendText(b))
}

// AppendText appends "code enhanced text" on one line, line breaks and control
// bytes replaced by spaces.
func (r *Reply) AppendText(b []byte) []byte {
	if r.Code != 0 {
		b = strconv.AppendInt(b, int64(r.Code), 10)
		b = append(b, ' ')
	}
	if r.Enhanced != (Enhanced{}) {
		b = append(append(b, r.Enhanced.String()...), ' ')
	}
	for i := range len(r.Text) {
		if c := r.Text[i]; c < ' ' || c == 0x7F {
			b = append(b, ' ')
		} else {
			b = append(b, c)
		}
	}
	return b
}

// ParseReply reads a reply as people paste it: "421 4.7.28 text", with
// "421-…" continuation lines allowed. It is for tools and tests; the wire has
// a stricter reader.
func ParseReply(s string) (*Reply, error) {
	r := &Reply{}
	for i, line := range strings.Split(strings.TrimSpace(s), "\n") {
		line = strings.TrimRight(line, "\r")
		if len(line) < 3 || (len(line) > 3 && line[3] != ' ' && line[3] != '-') {
			return nil, fmt.Errorf("message: %q does not begin with a reply code", line)
		}
		code, err := strconv.Atoi(line[:3])
		if err != nil || code < 200 || code > 599 {
			return nil, fmt.Errorf("message: %q is not a reply code between 200 and 599", line[:3])
		}
		r.Code = code
		text := strings.TrimPrefix(strings.TrimPrefix(line[3:], "-"), " ")
		e, rest, ok := ParseEnhanced(text)
		if ok {
			r.Enhanced, text = e, rest
		}
		if i > 0 {
			r.Text += "\n"
		}
		r.Text += text
	}
	return r, nil
}
