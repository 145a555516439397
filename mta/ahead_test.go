package mta_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// oneLane is a world with a single lane of n connections, and mail for it.
func oneLane(t *testing.T, n int, pipeline bool) (*world, []mail) {
	w := newWorld(t, worldConfig{
		shaping:  fmt.Sprintf("[provider.p]\nmx_suffix = [\".p.example\"]\nconnections = %d\npipeline_messages = %v\n", n, pipeline),
		zone:     "d.example. MX 10 mx.p.example.\nmx.p.example. A 192.0.2.9\n",
		settings: sources(1),
	})
	list := make([]mail, 2000)
	for i := range list {
		list[i] = mail{from: "a@s.example", tenant: "t", to: []string{fmt.Sprintf("r%d@d.example", i)}}
	}
	return w, list
}

// TestBusyLaneNeedsOneRoundTripAMessage counts what a lane carries in a minute
// that has all its connections open, toward a host 100 ms away.
func TestBusyLaneNeedsOneRoundTripAMessage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		off, deaf bool // not configured, not offered
		want      int  // messages a minute
	}{
		"pipelined":   {want: 2 * 600},
		"turned off":  {off: true, want: 2 * 300},
		"not offered": {deaf: true, want: 2 * 150},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, list := oneLane(t, 2, !c.off)
				defer w.end()
				w.host("192.0.2.9", loadgen.SinkConfig{Latency: 100 * time.Millisecond, NoPipelining: c.deaf})
				w.accept(list...)
				time.Sleep(10 * time.Second)
				before := w.count(message.EventDelivered)
				time.Sleep(time.Minute)
				if got := w.count(message.EventDelivered) - before; got < c.want*97/100 || got > c.want*103/100 {
					t.Errorf("%d messages a minute, want %d", got, c.want)
				}
			})
		})
	}
}

// TestIdleConnectionsAreUsedBeforeMessagesQueueUp sends three messages at once to
// a host that takes three connections: none waits behind another.
func TestIdleConnectionsAreUsedBeforeMessagesQueueUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, list := oneLane(t, 3, true)
		defer w.end()
		w.host("192.0.2.9", loadgen.SinkConfig{Latency: time.Second})
		w.accept(list[:60]...)
		time.Sleep(3 * time.Minute) // the lane has grown, and its connections are gone
		if n := w.count(message.EventDelivered); n != 60 {
			t.Fatalf("%d of 60 delivered", n)
		}
		w.accept(list[60:63]...)
		// Greeting, EHLO, envelope, message; the answer to the last is the fourth.
		time.Sleep(4*time.Second + 500*time.Millisecond)
		if n := w.count(message.EventDelivered); n != 63 {
			t.Errorf("%d of 3 delivered after four round trips", n-60)
		}
	})
}

// TestHostThatDoesNotBearMessagesBegunAheadIsLeftAlone sends to a host that offers
// PIPELINING and refuses for good whoever says MAIL before it has answered the
// message before. Nobody is bounced for it, and it sees that once an hour.
func TestHostThatDoesNotBearMessagesBegunAheadIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, list := oneLane(t, 2, true)
		defer w.end()
		var mu sync.Mutex
		ended, refused := map[string]time.Time{}, 0
		w.host("192.0.2.9", loadgen.SinkConfig{
			Latency: 2 * time.Second,
			OnMail: func(client, _ string) (string, func()) {
				mu.Lock()
				defer mu.Unlock()
				if ended[client].Equal(time.Now()) { // no time for an answer in between
					refused++
					return "554 5.5.0 SMTP synchronization error", nil
				}
				return "", func() {
					mu.Lock()
					defer mu.Unlock()
					ended[client] = time.Now()
				}
			},
		})
		w.accept(list...)
		time.Sleep(3 * time.Hour)
		mu.Lock()
		defer mu.Unlock()
		if n := w.count(message.EventDelivered); n != len(list) {
			t.Errorf("%d of %d delivered, %d bounced, %d deferred", n, len(list), w.count(message.EventBounced), w.count(message.EventDeferred))
		}
		if refused == 0 || refused > 3*2 {
			t.Errorf("the host saw it %d times in three hours", refused)
		}
	})
}
