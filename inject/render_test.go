package inject

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// TestMessagesShareNoMemory uses one buffer for all bodies, as the HTTP door does,
// and many goroutines: what was prepared stays as it was.
func TestMessagesShareNoMemory(t *testing.T) {
	t.Parallel()
	door, _ := newDoor(t, Config{}, Deps{
		Fields: func(m *message.Message, r *message.Recipient, _ Present) []byte {
			return []byte("X-For: " + strings.Repeat(r.Address.Local()+" ", 150) + "\r\n")
		},
	})
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			var buf []byte
			var subs []*Submission
			var want [][]byte
			for n := range 300 {
				who := fmt.Sprintf("g%dn%d", g, n)
				cut := ""
				if n%7 == 0 {
					cut = "Bcc: hidden@example.net\r\n"
				}
				end := "\r\n"
				if n%5 == 0 {
					end = ""
				}
				buf = append(buf[:0], "From: news@example.com\r\n"+cut+"Subject: "+who+"\r\n\r\n"+strings.Repeat(who+"\r\n", n)+"for "+who+end...)
				p, err := door.Prepare(t.Context(), envelope(who+"@example.net"), buf)
				if err != nil {
					t.Error(err)
					return
				}
				body := p.Submissions[0].Body
				subs, want = append(subs, p.Submissions[0]), append(want, bytes.Clone(body))
				given := strings.TrimSuffix(strings.Replace(string(buf), cut, "", 1), "\r\n") + "\r\n"
				if !strings.HasSuffix(string(body), given) {
					t.Errorf("%q does not end as it came: %q", body, given)
				}
			}
			clear(buf[:cap(buf)])
			for n, s := range subs {
				who := fmt.Sprintf("g%dn%d", g, n)
				if !bytes.Equal(s.Body, want[n]) {
					t.Errorf("the message for %s has changed: %q", who, s.Body)
				}
				if got := strings.Count(string(s.Body), who+" "); got != 150 {
					t.Errorf("the message for %s names them %d times: %q", who, got, s.Body)
				}
			}
		})
	}
	all.Wait()
}

func TestDateIsThatOfTheSecond(t *testing.T) {
	t.Parallel()
	var d dates
	zone := time.FixedZone("", 3*3600)
	for _, at := range []time.Time{noon, noon.Add(999 * time.Millisecond), noon.In(zone), noon.Add(time.Second), noon.Add(-time.Hour).In(zone), noon} {
		want := at.UTC().Format(time.RFC1123Z)
		if got := string(d.append([]byte("Date: "), at)); got != "Date: "+want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestHeaderIsSearchedAlsoWhenTheRestIsKnown(t *testing.T) {
	t.Parallel()
	door, _ := newDoor(t, Config{}, Deps{})
	for _, tc := range []struct {
		header string
		plain  bool
		code   string
	}{
		{"From: a@example.com\n", true, ""},
		{".Dot: x\nFrom: a@example.com\n", false, ""},
		{"From: a@example.com\n.Dot: x\n", false, ""},
		{"From: a@example.com\nX: \x00\n", false, CodeNUL},
		{"From: a@example.com\nX: a\rb\n", false, CodeBareNewline},
		{"From: a@example.com\nX: " + strings.Repeat("x", 999) + "\n", false, CodeLineLength},
	} {
		env := envelope("bob@example.net")
		env.ASCII = true
		p, err := door.Prepare(t.Context(), env, crlf(tc.header+"\nHello\n"))
		if tc.code != "" {
			if e, ok := err.(*Error); !ok || e.Code != tc.code {
				t.Errorf("%.40q: got %v, want %s", tc.header, err, tc.code)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Submissions[0].Message.Plain; got != tc.plain {
			t.Errorf("%q: plain is %v", tc.header, got)
		}
	}
}
