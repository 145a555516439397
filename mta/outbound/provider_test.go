package outbound_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/mta/outbound"
)

// A provider that hangs up after so many messages is no failure: the message
// that met the 421 goes at once over a new connection, and none is counted as
// deferred.
func TestHundredMessagesRideOutALimitPerConnection(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	cfg := loadgen.SinkConfig{Profile: "yahoo", OnMessage: func(r *loadgen.Received) { seen[r.To[0]]++ }}
	withSink(t, cfg, func(t *testing.T, s *loadgen.Sink, o outbound.Options) {
		ctx := context.Background()
		o.Buffers = new(outbound.Buffers)
		p := outbound.NewPool[string](outbound.PoolConfig{})
		defer p.Close(ctx)
		for i := range 100 {
			e := envelope(fmt.Sprintf("user%d@yahoo.example", i))
			for attempt := 0; ; attempt++ {
				c := p.Get("yahoo")
				if c == nil {
					c = mustDial(t, o)
				}
				res := c.Send(ctx, e)
				p.Put("yahoo", c)
				if res.Outcomes[0].Result == message.Delivered {
					break
				}
				if !res.Stale || attempt > 0 {
					t.Fatalf("message %d: %v, stale %v", i, res.Outcomes[0].Reply, res.Stale)
				}
			}
		}
		if c := s.Counts(); c.Connections != 5 || c.Messages != 100 || c.Peak != 1 || len(seen) != 100 {
			t.Errorf("%+v, %d distinct", c, len(seen))
		}
	})
}
