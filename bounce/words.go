package bounce

import (
	"strings"
	"unicode/utf8"

	"github.com/tradewind-mta/tradewind/message"
)

// words is a server's answer found in running text.
type words struct {
	code     int
	enhanced message.Enhanced
	stage    message.Stage
	text     string // what to classify: without wrapper and codes in front
	full     string // on one line, as found
	unproven bool   // nothing says that a server answered this
}

func (w *words) reply() *message.Reply {
	return &message.Reply{Code: w.code, Enhanced: w.enhanced, Text: w.text, Stage: w.stage}
}

// readWords reads a diagnostic: the codes in it, the step of the conversation
// it names, and the part that is the server's own.
func readWords(s string) words {
	w := words{full: oneLine(s)}
	s = w.full
	low := strings.ToLower(s)
	w.stage = stageIn(low)
	// What stands before "said:" names hosts, which would be read as reasons.
	for _, lead := range []string{" said: ", " responded with failure: ", "remote server returned '", "it responded as follows: ", "this error: ", "was rejected by the server: ", " - unknown address error ", " - other mail system problem "} {
		if i := strings.Index(low, lead); i >= 0 && i < 400 {
			s, low = s[i+len(lead):], low[i+len(lead):]
			break
		}
	}
	// "554 <user@example.org>... 550 Host unknown": the second is the server's.
	if i := strings.Index(s, "... "); i > 0 && i+8 < len(s) {
		if code, n := replyCodeAt(s, i+4); n > 0 && code >= 400 {
			s, low = s[i+4:], low[i+4:]
		}
	}
	for _, tail := range []string{" (in reply to", " (state ", " (delivery attempts"} {
		if i := strings.LastIndex(low, tail); i > 0 {
			s, low = s[:i], low[:i]
		}
	}
	codeEnd := 0
	w.code, w.enhanced, codeEnd = codesIn(s)
	w.text = s
	if codeEnd > 0 && codeEnd < len(s) {
		// Words before the code stay when they carry meaning of their own.
		if head := strings.TrimSpace(s[:codeEnd]); len(head) < 24 || strings.Contains(low, "error from remote") || strings.Contains(low, "did not like our") {
			w.text = strings.TrimLeft(s[codeEnd:], " -'\"")
		}
	}
	return w
}

// oneLine joins lines and bounds the length.
func oneLine(s string) string {
	const limit = 2000
	var b strings.Builder
	b.Grow(min(len(s), limit) + 8)
	space := false
	for i := 0; i < len(s) && b.Len() < limit; i++ {
		if c := s[i]; c <= ' ' || c == 0x7F {
			space = true
			continue
		}
		if space && b.Len() > 0 {
			b.WriteByte(' ')
		}
		space = false
		b.WriteByte(s[i])
	}
	return strings.ToValidUTF8(b.String(), "")
}

// stageIn finds the step of the conversation that text names. low is lower
// case.
func stageIn(low string) message.Stage {
	for _, x := range []struct {
		text  string
		stage message.Stage
	}{
		{"in reply to end of data", message.StageDot},
		{"end of data", message.StageDot},
		{"after end of message", message.StageDot},
		{"our final data", message.StageDot},
		{"after i sent the message", message.StageDot},
		{"in reply to data command", message.StageData},
		{"in reply to rcpt to", message.StageRcpt},
		{"after rcpt to", message.StageRcpt},
		{"our rcpt to", message.StageRcpt},
		{"[rcpt_to]", message.StageRcpt},
		{"rcpt command", message.StageRcpt},
		{"does not like recipient", message.StageRcpt},
		{"in reply to mail from", message.StageMail},
		{"after mail from", message.StageMail},
		{"our mail from", message.StageMail},
		{"does not like sender", message.StageMail},
		{"after initial connection", message.StageBanner},
		{"refused to talk to me", message.StageBanner},
		{"while sending rcpt", message.StageRcpt},
		{"while sending mail from", message.StageMail},
		{"smtp command data", message.StageDot},
	} {
		if strings.Contains(low, x.text) {
			return x.stage
		}
	}
	return message.StageNone
}

// codesIn finds the reply code and the enhanced code that tell most: a pair of
// both first, then the first enhanced code that is not x.0.0. end is where the
// code at the front ends, 0 when there is none.
func codesIn(s string) (code int, enhanced message.Enhanced, end int) {
	paired := false
	for i := 0; i < len(s); i++ {
		if s[i] < '2' || s[i] > '5' || i > 0 && isWordByte(s[i-1]) && !endsWide(s[:i]) {
			continue
		}
		if c, n := replyCodeAt(s, i); n > 0 {
			e, m := enhancedAt(s, skipSeparators(s, n))
			if m == 0 {
				// 550 550 5.1.1, 550-'5.7.1
				if _, k := replyCodeAt(s, skipSeparators(s, n)); k > 0 {
					if e, m = enhancedAt(s, skipSeparators(s, k)); m > 0 {
						n = k
					}
				}
			}
			if m > 0 && !paired && e[1]+e[2] > 0 {
				code, enhanced, paired = c, e, true
				if end == 0 {
					end = m
				}
			} else if code == 0 {
				code = c
				if m > 0 && enhanced == (message.Enhanced{}) {
					enhanced = e
				}
				if end == 0 {
					end = max(n, m)
				}
			}
			i = max(n, m) - 1
			continue
		}
		if e, n := enhancedAt(s, i); n > 0 {
			if !paired && (enhanced == (message.Enhanced{}) || enhanced[1]+enhanced[2] == 0) {
				enhanced = e
				if end == 0 && i < 3 {
					end = n
				}
			}
			i = n - 1
		}
	}
	return code, enhanced, end
}

func isWordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '=' || c == '@' || c == '/' || c == '&' || c == '+' || c >= 0x80
}

// endsWide reports a string that ends in a character of a script that puts no
// spaces between words: "原因：550".
func endsWide(s string) bool {
	if s[len(s)-1] < utf8.RuneSelf {
		return false
	}
	r, _ := utf8.DecodeLastRuneInString(s)
	return r >= 0x2E80 && r != utf8.RuneError
}

// beginsWide is endsWide for the other end.
func beginsWide(s string) bool {
	r, _ := utf8.DecodeRuneInString(s)
	return r >= 0x2E80 && r != utf8.RuneError
}

// skipSeparators skips what servers put between the two codes.
func skipSeparators(s string, i int) int {
	for n := 0; i < len(s) && n < 4 && strings.IndexByte(" -'\"#:(<", s[i]) >= 0; n++ {
		i++
	}
	return i
}

// replyCodeAt reads an SMTP code at i and returns the index after it, 0 if
// there is none. Numbers in prose are kept out by what must follow.
func replyCodeAt(s string, i int) (code, end int) {
	if i+3 > len(s) || s[i] < '2' || s[i] > '5' || s[i+1] < '0' || s[i+1] > '9' || s[i+2] < '0' || s[i+2] > '9' {
		return 0, 0
	}
	if i+3 < len(s) && strings.IndexByte(" -:,;]#)'<", s[i+3]) < 0 && !beginsWide(s[i+3:]) {
		return 0, 0
	}
	if s[i] == '3' {
		return 0, 0
	}
	// "within 450 seconds", "over 500 messages": SMTP uses the second digits 0
	// to 5, and a few servers 7.
	if s[i+1] > '5' && s[i+1] != '7' {
		return 0, 0
	}
	low := strings.ToLower(s[min(i+3, len(s)):min(i+15, len(s))])
	for _, unit := range []string{" second", " minute", " hour", " day", " byte", " kb", " mb", " messages", " recipients", " times", " kilo", " octets"} {
		if strings.HasPrefix(low, unit) {
			return 0, 0
		}
	}
	return int(s[i]-'0')*100 + int(s[i+1]-'0')*10 + int(s[i+2]-'0'), i + 3
}

// enhancedAt reads an enhanced code at i and returns the index after it, 0 if
// there is none. Four numbers in a row are an IP address or a version.
func enhancedAt(s string, i int) (e message.Enhanced, end int) {
	if i+5 > len(s) || s[i] != '2' && s[i] != '4' && s[i] != '5' || s[i+1] != '.' {
		return e, 0
	}
	e[0] = uint16(s[i] - '0')
	j := i + 2
	for part := 1; part <= 2; part++ {
		start := j
		for j < len(s) && j-start < 3 && '0' <= s[j] && s[j] <= '9' {
			e[part] = e[part]*10 + uint16(s[j]-'0')
			j++
		}
		if j == start {
			return message.Enhanced{}, 0
		}
		if part == 1 {
			if j >= len(s) || s[j] != '.' {
				return message.Enhanced{}, 0
			}
			j++
		}
	}
	if j < len(s) && ('0' <= s[j] && s[j] <= '9' || s[j] == '.' && j+1 < len(s) && '0' <= s[j+1] && s[j+1] <= '9') {
		return message.Enhanced{}, 0
	}
	return e, j
}
