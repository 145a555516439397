package test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/emersion/go-msgauth/dkim"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// TestTwentyThousandMessagesAreAllDeliveredOnceAndSigned injects by SMTP, over
// many connections, what a host greylists five per cent of.
func TestTwentyThousandMessagesAreAllDeliveredOnceAndSigned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const clients = 20
		each := 1000
		if brief() {
			each = 100
		}
		w := newWorld(t, "volume.example. MX 10 mx.volume.example.\nmx.volume.example. A 192.0.2.1\n", "")
		defer w.end()
		w.machine = newMachine(w, vfs.NewMem()) // no crash here, and much cheaper
		var mu sync.Mutex
		seen := make(map[string]int, clients*each)
		unsigned := 0
		record, err := w.txt("s1._domainkey.sender.example")
		if err != nil {
			t.Fatal(err)
		}
		lookup := &dkim.VerifyOptions{LookupTXT: func(string) ([]string, error) { return record, nil }}
		sink, err := loadgen.New(loadgen.SinkConfig{
			DeferPercent: 5, GreylistDelay: 4 * time.Minute, KeepBody: true,
			OnMessage: func(m *loadgen.Received) {
				list, err := dkim.VerifyWithOptions(bytes.NewReader(m.Body), lookup)
				good := err == nil && len(list) == 1 && list[0].Err == nil && checkWire(m.Body) == nil
				mu.Lock()
				defer mu.Unlock()
				seen[strings.Join(m.To, ",")]++
				if !good {
					unsigned++
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.other = func(string) (net.Conn, error) {
			near, far := loadgen.Pipe()
			go sink.ServeConn(far)
			return near, nil
		}
		w.start()
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() { submitMany(t, w, c, each) })
		}
		wg.Wait()
		<-time.After(30 * time.Minute)
		synctest.Wait()
		for c := range clients {
			for i := range each {
				if to := volumeRecipient(c, i); seen[to] != 1 {
					t.Errorf("%s: delivered %d times", to, seen[to])
				}
			}
		}
		if len(seen) != clients*each || unsigned > 0 {
			t.Errorf("got %d recipients, %d messages without a good signature; want %d and 0", len(seen), unsigned, clients*each)
		}
		counts := sink.Counts()
		if counts.Replies[451] < int64(clients*each*4/100) {
			t.Errorf("only %d attempts were greylisted: the test tests less than it says", counts.Replies[451])
		}
		w.stop()
		w.verify()
		if err := sink.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func volumeRecipient(c, i int) string { return fmt.Sprintf("u%d.%d@volume.example", c, i) }

// submitMany hands over n messages on one connection.
func submitMany(t *testing.T, w *world, c, n int) {
	conn, err := w.machine.client(t.Context(), submissionAddr)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	cl := &client{rw: bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))}
	if !cl.say("", 220) || !cl.say("EHLO client.example", 250) {
		t.Errorf("client %d: %s", c, cl.last)
		return
	}
	body := strings.Repeat("Once upon a time there was a message that had to get through.\r\n", 8)
	for i := range n {
		to := volumeRecipient(c, i)
		text := "From: a@sender.example\r\nTo: " + to + "\r\nSubject: Volume\r\n\r\n" + body
		if reply := cl.send("a@sender.example", []string{to}, "", "", text); !strings.HasPrefix(reply, "250") {
			t.Errorf("client %d, message %d: %s", c, i, reply)
			return
		}
	}
}
