package test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// TestBounceStormStopsNeitherTheListenerNorTheSending brings ten thousand
// bounces over forty connections, each fact five times, while mail goes out.
func TestBounceStormStopsNeitherTheListenerNorTheSending(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const clients, storms = 4, 40
		each := 500
		if brief() {
			each = 60
		}
		w := newWorld(t, "volume.example. MX 10 mx.volume.example.\nmx.volume.example. A 192.0.2.1\n", `
[[smtp]]
listen = "127.0.0.1:2525"
relay_from = ["127.0.0.0/8"]
[[smtp]]
listen = "127.0.0.1:2526"
role = "bounce"
[bounce]
domain = "bounces.sender.example"
max_waiting = "64MiB"
`)
		defer w.end()
		w.machine = newMachine(w, vfs.NewMem())
		var mu sync.Mutex
		paths := map[string]string{} // by recipient
		count := 0
		sink, err := loadgen.New(loadgen.SinkConfig{OnMessage: func(m *loadgen.Received) {
			mu.Lock()
			defer mu.Unlock()
			count++
			paths[m.To[0]] = m.From
		}})
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
		if len(paths) != clients*each {
			t.Fatalf("%d messages delivered before the storm, want %d", len(paths), clients*each)
		}
		var list [][2]string
		for to, path := range paths {
			list = append(list, [2]string{to, path})
		}
		before := heap()
		for s := range storms {
			wg.Go(func() { bringMany(t, w, list, s*len(list)/8, len(list)/8) })
		}
		for c := range clients {
			wg.Go(func() { submitMany(t, w, clients+c, each) })
		}
		wg.Wait()
		<-time.After(30 * time.Minute)
		synctest.Wait()
		// The disk is in memory here too, so the bound is on both.
		if grown := heap() - before; grown > 200<<20 {
			t.Errorf("the heap grew by %d MiB", grown>>20)
		}
		if count != 2*clients*each {
			t.Errorf("%d messages delivered, want %d", count, 2*clients*each)
		}
		bounced := map[string]int{}
		for _, e := range w.events(nil) {
			if e.Type == "message.bounced" && e.Origin == "dsn" && e.Suppressing {
				bounced[e.Recipient]++
			}
		}
		for _, x := range list {
			if bounced[x[0]] != 1 {
				t.Errorf("%s: %d bounces, want 1", x[0], bounced[x[0]])
			}
		}
		w.stop()
		w.verify()
		if err := sink.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// bringMany brings n bounces on one connection, of list from a place on.
func bringMany(t *testing.T, w *world, list [][2]string, from, n int) {
	conn, err := w.machine.client(t.Context(), bounceAddr)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	cl := &client{rw: bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))}
	if !cl.say("", 220) || !cl.say("EHLO provider.example", 250) {
		t.Errorf("storm: %s", cl.last)
		return
	}
	for i := range n {
		x := list[(from+i)%len(list)]
		text := fmt.Sprintf("From: MAILER-DAEMON@mx.volume.example\r\nSubject: Undelivered Mail\r\nMIME-Version: 1.0\r\n"+
			"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"+
			"Reporting-MTA: dns; mx.volume.example\r\n\r\nFinal-Recipient: rfc822; %s\r\nAction: failed\r\nStatus: 5.1.1\r\n"+
			"Diagnostic-Code: smtp; 550 5.1.1 User unknown\r\n\r\n--b--\r\n", x[0])
		if reply := cl.send("", []string{x[1]}, "", "", text); !strings.HasPrefix(reply, "250") {
			t.Errorf("storm: %s", reply)
			return
		}
	}
}
