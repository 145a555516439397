package inbound

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChunksMakeAMessage(t *testing.T) {
	t.Parallel()
	const body = "Subject: x\r\n\r\n.\r\n..\r\nend\r\n"
	for size := 1; size <= len(body); size++ {
		var b strings.Builder
		n := 0
		for rest := body; rest != ""; n++ {
			k := min(size, len(rest))
			last := ""
			if k == len(rest) {
				last = " last"
			}
			fmt.Fprintf(&b, "BDAT %d%s\r\n%s", k, last, rest[:k])
			rest = rest[k:]
		}
		m := &mailbox{}
		out := talk(t, testConfig(), m, hello, envelope+b.String()+"QUIT\r\n")
		want := "220 250 250 250 " + strings.Repeat("250 ", n) + "221"
		if got := codes(out); got != want {
			t.Errorf("chunks of %d: got %s, want %s", size, got, want)
		}
		if diff := cmp.Diff([]string{body}, m.messages); diff != "" {
			t.Errorf("chunks of %d (-want +got):\n%s", size, diff)
		}
	}
}

// TestRefusedChunkIsEatenOrEndsTheConnection sends chunks that hold commands:
// whatever is wrong with the chunk, none of them may be run.
func TestRefusedChunkIsEatenOrEndsTheConnection(t *testing.T) {
	t.Parallel()
	const evil = "RSET\r\nMAIL FROM:<evil@a.test>\r\nRCPT TO:<evil@b.test>\r\nBDAT 3 LAST\r\nx\r\n"
	n := len(evil)
	for _, tt := range []struct{ before, command, want string }{
		{"", fmt.Sprintf("BDAT %d LAST", n), "503 250"},
		{"MAIL FROM:<>\r\n", fmt.Sprintf("BDAT %d LAST", n), "250 503 250"},
		{envelope, fmt.Sprintf("BDAT %d LAST X", n), "250 250 501 250"},
		{envelope, fmt.Sprintf("BDAT %d LAST1", n), "250 250 501 250"},
		{envelope, fmt.Sprintf("BDAT %d  LAST", n), "250 250 501 250"},
		{envelope, fmt.Sprintf("BDAT %d FIRST", n), "250 250 501 250"},
		{envelope, fmt.Sprintf("BDAT 0%d LAST X", n), "250 250 501 250"},
		{envelope, "BDAT", "250 250 501"},
		{envelope, "BDAT LAST", "250 250 501"},
		{envelope, "BDAT -1 LAST", "250 250 501"},
		{envelope, "BDAT +5 LAST", "250 250 501"},
		{envelope, "BDAT 0x10 LAST", "250 250 501"},
		{envelope, "BDAT 5x LAST", "250 250 501"},
		{envelope, "BDAT  5 LAST", "250 250 501"},
		{envelope, "BDAT 4294967296 LAST", "250 250 552"},
		{envelope, "BDAT 18446744073709551616 LAST", "250 250 501"},
		{envelope + "BDAT 1\r\nx", fmt.Sprintf("BDAT %d LAST!", n), "250 250 250 501 250"},
	} {
		for _, joined := range []bool{true, false} {
			m := &mailbox{}
			chunks := []string{hello, tt.before, tt.command + "\r\n", evil, "NOOP\r\n"}
			if joined {
				chunks = []string{hello, strings.Join(chunks[1:], "")}
			}
			out := talk(t, testConfig(), m, chunks...)
			if got := strings.TrimPrefix(codes(out), "220 250 "); got != tt.want {
				t.Errorf("%q after %q: got %s, want %s", tt.command, tt.before, got, tt.want)
			}
			if len(m.messages) > 0 || strings.Contains(strings.Join(m.calls, " "), "evil") {
				t.Errorf("%q after %q: run %q", tt.command, tt.before, m.calls)
			}
		}
	}
}

func TestChunkTooLargeIsEaten(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.MaxMessageBytes = 100
	for _, tt := range []struct {
		sizes []int
		want  string
	}{
		{[]int{99}, "250 250"},
		{[]int{100}, "250 250"},
		{[]int{101}, "552 250"},
		{[]int{50, 50}, "250 250 250"},
		{[]int{50, 51}, "250 552 250"},
		{[]int{60, 60, 60}, "250 552 503 250"},
		{[]int{60_000}, "552 250"},
		{[]int{100_000}, "552"},
	} {
		var b strings.Builder
		for i, n := range tt.sizes {
			last := ""
			if i == len(tt.sizes)-1 {
				last = " LAST"
			}
			fmt.Fprintf(&b, "BDAT %d%s\r\n%s\r\n", n, last, strings.Repeat("x", n-2))
		}
		m := &mailbox{}
		out := talk(t, cfg, m, hello, envelope, b.String(), "NOOP\r\n")
		if got := strings.TrimPrefix(codes(out), "220 250 250 250 "); got != tt.want {
			t.Errorf("chunks of %v: got %s, want %s", tt.sizes, got, tt.want)
		}
	}
}

// TestShortChunkIsNeverAcknowledged cuts the connection at every offset.
func TestShortChunkIsNeverAcknowledged(t *testing.T) {
	t.Parallel()
	const send = "BDAT 9\r\nhello\r\na\nBDAT 7 LAST\r\nbye bye"
	for _, end := range []error{nil, timeoutError{}} {
		for cut := range len(send) {
			m := &mailbox{}
			nc := &scriptConn{end: end}
			out := talkTo(New(testConfig(), m, Deps{}), nc, hello, envelope, send[:cut])
			if len(m.messages) > 0 || strings.Contains(out, "queued") || !nc.closed {
				t.Errorf("cut at %d: acknowledged\n%s", cut, out)
			}
		}
	}
}

func TestChunkContentsAreHeldToTheRulesOfText(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		"":                "250",
		"a\r\n":           "250",
		"a":               "250", // the last line is ended
		"\r\n.\r\nQUIT":   "250",
		"a\rb\r\n":        "550",
		"a\nb\r\n":        "550",
		"a\r":             "550",
		"a\n":             "550",
		"\n":              "550",
		"a\x00b\r\n":      "550",
		"\r\r\n":          "550",
		"a\r\n\r\n\n\r\n": "550",
	} {
		m := &mailbox{}
		out := talk(t, testConfig(), m, hello, envelope, fmt.Sprintf("BDAT %d LAST\r\n%s", len(body), body), "NOOP\r\n")
		if got := codes(out); got != "220 250 250 250 "+want+" 250" {
			t.Errorf("%q: got %s, want %s", body, got, want)
		}
		if want == "250" && (len(m.messages) != 1 || strings.TrimSuffix(m.messages[0], "\r\n") != strings.TrimSuffix(body, "\r\n")) {
			t.Errorf("%q: got %q", body, m.messages)
		}
	}
}

func TestChunksAreCounted(t *testing.T) {
	t.Parallel()
	m := &mailbox{}
	s := New(testConfig(), m, Deps{})
	out := talkTo(s, &scriptConn{}, hello, envelope, strings.Repeat("BDAT 1\r\nx", maxChunks), "BDAT 1 LAST\r\nx", "NOOP\r\n")
	if got, want := codes(out)[len(codes(out))-7:], "554 250"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	out = talkTo(s, &scriptConn{}, hello, envelope, strings.Repeat("BDAT 1\r\nx", 1_000_000))
	if !strings.HasSuffix(codes(out), "421") || len(m.messages) > 0 {
		t.Errorf("a million chunks: last reply %q", lastReply(out))
	}
}

// Two messages in one read: the first is acknowledged on the wire before the
// backend is asked to take the second.
func TestMessageIsAcknowledgedBeforeTheNextIsTaken(t *testing.T) {
	t.Parallel()
	nc := &scriptConn{}
	var heard []string
	m := &mailbox{words: "taken"}
	m.work = func() { heard = append(heard, lastReply(nc.out.String())) }
	one := envelope + "BDAT 3 LAST\r\nx\r\n"
	talkTo(New(testConfig(), m, Deps{}), nc, hello, one+one)
	if diff := cmp.Diff([]string{"250 2.1.5 Recipient ok", "250 2.1.5 Recipient ok"}, heard); diff != "" {
		t.Errorf("last reply on the wire at each message (-want +got):\n%s", diff)
	}
	if n := strings.Count(nc.out.String(), "taken"); n != 2 {
		t.Errorf("%d acknowledgements, want 2", n)
	}
}

func TestDataAndChunksDoNotMix(t *testing.T) {
	t.Parallel()
	m := &mailbox{}
	out := talk(t, testConfig(), m, hello, envelope, "BDAT 1\r\nx", "DATA\r\n", "RCPT TO:<c@c.test>\r\n", "MAIL FROM:<>\r\n", "BDAT 3 LAST\r\ny\r\n", "BDAT 1 LAST\r\nz")
	if got, want := codes(out), "220 250 250 250 250 503 503 503 250 503"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if diff := cmp.Diff([]string{"xy\r\n"}, m.messages); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPlainMessagesAreToldFromOthers(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 999)
	for _, tt := range []struct {
		text  string
		plain bool
	}{
		{"Subject: x\r\n\r\nbody\r\n", true},
		{"\r\n", true},
		{long[1:] + "\r\n", true},
		{long + "\r\n", false},
		{".\r\n", false},
		{"a\r\n.b\r\n", false},
		{"a\r\n..\r\nb\r\n", false},
	} {
		cfg := testConfig()
		cfg.MaxTextLine = 2000
		stuffed := strings.ReplaceAll("\r\n"+tt.text, "\r\n.", "\r\n..")[2:]
		half := len(tt.text) / 2
		for _, way := range []struct{ name, first, then string }{
			{"DATA", "DATA\r\n", stuffed + ".\r\n"},
			{"BDAT", "", fmt.Sprintf("BDAT %d LAST\r\n%s", len(tt.text), tt.text)},
			{"two chunks", fmt.Sprintf("BDAT %d\r\n%s", half, tt.text[:half]), fmt.Sprintf("BDAT %d LAST\r\n%s", len(tt.text)-half, tt.text[half:])},
		} {
			m := &mailbox{}
			m.plain.Store(!tt.plain)
			talk(t, cfg, m, hello+envelope+way.first, way.then)
			if len(m.messages) != 1 || m.messages[0] != tt.text {
				t.Errorf("%s of %.20q: got %.40q", way.name, tt.text, m.messages)
			}
			if m.plain.Load() != tt.plain {
				t.Errorf("%s of %.20q: plain is %v", way.name, tt.text, !tt.plain)
			}
		}
	}
}
