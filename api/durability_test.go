package api

import (
	"testing"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

func TestAnswerNamesWhatItHasWaitedFor(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]message.Durability{"k": message.Synced, "hasty": message.Written} {
		w := newWorld(t, Config{}, inject.Deps{})
		var got struct{ Durability string }
		w.post(with(nil), "Authorization", "Bearer "+key).into(202, &got)
		if got.Durability != want.String() {
			t.Errorf("key %s: the answer says %q, want %v", key, got.Durability, want)
		}
		if d := w.queue.subs[0].Message.Durability; d != want {
			t.Errorf("key %s: the queue was asked for %v, want %v", key, d, want)
		}
	}
}
