package outbound

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/message"
)

func readTape(raw []byte) (reply, *message.Reply, *tape) {
	f := &tape{parts: [][]byte{raw}}
	if len(raw) == 0 {
		f.parts = nil
	}
	c := &Conn{raw: f, nc: f}
	c.acquire()
	rp, fail := c.read(message.StageDot, 1)
	return rp, fail, f
}

func TestReplyIsKeptInTheServersWords(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		in   string
		code int
		enh  message.Enhanced
		text string
	}{
		{"250 2.0.0 ok\r\n", 250, message.Enhanced{2, 0, 0}, "ok"},
		{"250\r\n", 250, message.Enhanced{}, ""},
		{"250 \n", 250, message.Enhanced{}, ""},
		{"550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three\r\n", 550, message.Enhanced{5, 7, 1}, "one\ntwo\nthree"},
		{"554 (554.30) disabled\r\n", 554, message.Enhanced{}, "(554.30) disabled"},
		{"421 5.7.32 mismatch\r\n", 421, message.Enhanced{5, 7, 32}, "mismatch"},
		{"250 2.0.0.1 x\r\n", 250, message.Enhanced{}, "2.0.0.1 x"},
		{"550 5.1234.1 x\r\n", 550, message.Enhanced{}, "5.1234.1 x"},
		{"250 5.123.123\r\n", 250, message.Enhanced{5, 123, 123}, ""},
		{"550 d\xe9j\xe0 \x1b[2J vu\r\n", 550, message.Enhanced{}, "d\xe9j\xe0 \x1b[2J vu"},
		{"250 " + strings.Repeat("x", 2000) + "\r\n", 250, message.Enhanced{}, strings.Repeat("x", 512)},
	} {
		rp, fail, _ := readTape([]byte(tc.in))
		if fail != nil || rp.code != tc.code || rp.enhanced != tc.enh || string(rp.text) != tc.text {
			t.Errorf("%q: %d %v %q (%v)", tc.in, rp.code, rp.enhanced, rp.text, fail)
		}
	}
}

func TestCapsBelieveOnlyWhatMakesSense(t *testing.T) {
	t.Parallel()
	many := "mx"
	for range 70 {
		many += "\nX"
	}
	for _, tc := range []struct {
		in   string
		want Caps
	}{
		{"mx PIPELINING", Caps{}},
		{"mx\npipelining\n8bitmime\nStartTLS\nsmtputf8\ndsn", Caps{Pipelining: true, EightBitMIME: true, StartTLS: true, SMTPUTF8: true, DSN: true,
			Keywords: []string{"PIPELINING", "8BITMIME", "STARTTLS", "SMTPUTF8", "DSN"}}},
		{"mx\nSIZE 1000", Caps{size: true, Size: 1000, Keywords: []string{"SIZE"}}},
		{"mx\nSIZE 0\nSIZE -1\nSIZE 1 2\nSIZE 0x10", Caps{size: true, Keywords: []string{"SIZE", "SIZE", "SIZE", "SIZE"}}},
		{"mx\nLIMITS rcptmax=5 MAILMAX=20 RCPTDOMAINMAX=1", Caps{RcptMax: 5, MailMax: 20, Keywords: []string{"LIMITS"}}},
		{"mx\nLIMITS RCPTMAX=0 MAILMAX=-1 =", Caps{Keywords: []string{"LIMITS"}}},
		{"mx\nAUTH LOGIN plain", Caps{AuthPlain: true, Keywords: []string{"AUTH"}}},
		{"mx\nAUTH=\nAUTH", Caps{Keywords: []string{"AUTH"}}},
		{"mx\nPIPELININ\u0047\nPIPELı\n\u017fIZE 5\n-X\n \nSTARTTLSx", Caps{Pipelining: true, Keywords: []string{"PIPELINING", "STARTTLSX"}}},
		{many + "\nPIPELINING", Caps{Keywords: strings.Split(strings.Repeat("X,", 63)+"X", ",")}},
	} {
		if d := cmp.Diff(tc.want, parseCaps([]byte(tc.in)), cmp.AllowUnexported(Caps{})); d != "" {
			t.Errorf("%q: (-want +got)\n%s", tc.in, d)
		}
	}
}

// FuzzReply holds the reader to its bounds, and to the tool's reader wherever
// both take the same bytes.
func FuzzReply(f *testing.F) {
	for _, s := range []string{
		"250 ok\r\n", "250\r\n", "250-a\r\n250 b\r\n", "250-a\n250 b\n", "550 5.1.1 x\r\n", "199 x\r\n", "600 x\r\n", "25\r\n", "250 a\rb\r\n",
		"250 \x00\r\n", "421-4.7.0 [TSS04]\r\n421 4.7.0 x\r\n", "250-ok\r\n251 ok\r\n", "\r\n", "", "250 2.0.0\r\n",
		strings.Repeat("250-x\r\n", 128), "250 " + strings.Repeat("x", 2044) + "\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rp, fail, tp := readTape(raw)
		if fail != nil {
			if !fail.Local || fail.Code != 0 || len(fail.Text) > 1024 {
				t.Fatalf("%+v", fail)
			}
			return
		}
		left := 0
		for _, p := range tp.parts {
			left += len(p)
		}
		used := raw[:len(raw)-left]
		if len(used) > maxReply+readSize || len(rp.text) > maxReply || rp.code < 200 || rp.code > 599 {
			t.Fatalf("%d octets read, %d kept, code %d", len(used), len(rp.text), rp.code)
		}
		lines := bytes.SplitAfter(used, []byte{'\n'})
		var own []byte // this reply's lines, without what was read beyond it
		for _, l := range lines {
			if len(l) > maxKept {
				return // clipped
			}
			own = append(own, l...)
			if len(l) < 4 || l[3] != '-' {
				break
			}
		}
		want, err := message.ParseReply(string(own))
		if err != nil || want.Code != rp.code {
			t.Fatalf("%q: %d %q, but ParseReply has %v, %v", own, rp.code, rp.text, want, err)
		}
	})
}

func FuzzCaps(f *testing.F) {
	f.Add([]byte("mx\nSIZE 1000\nLIMITS RCPTMAX=1 MAILMAX=2\nAUTH PLAIN\nPIPELINING"))
	f.Add([]byte("mx\nSIZE -1\nLIMITS RCPTMAX=0\nAUTH="))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := parseCaps(text)
		if c.Size < 0 || c.RcptMax < 0 || c.MailMax < 0 || c.RcptMax > 999999 || c.MailMax > 999999 || len(c.Keywords) > maxKeywords {
			t.Fatalf("%+v", c)
		}
		for _, k := range c.Keywords {
			if k != strings.ToUpper(k) || k == "" || len(k) > 32 {
				t.Fatalf("keyword %q", k)
			}
		}
	})
}
