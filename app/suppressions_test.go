package app

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/message"
)

func TestOnlyThePersonLiftsWhatTheyAskedFor(t *testing.T) {
	t.Parallel()
	a, end := begin(t, small(t), Options{FS: vfs.NewMem()})
	defer end()
	v := suppressionView{a.list}
	for reason, want := range map[string]error{
		"unsubscribe": api.ErrForbidden, "complaint": api.ErrForbidden, "erasure": api.ErrForbidden,
		"manual": nil, "hard_bounce": nil,
	} {
		addr := message.MustAddress(reason + "@rcpt.example")
		if err := v.Add(t.Context(), configs.DefaultTenant, []api.Suppression{{Address: addr, Reason: reason}}); err != nil {
			t.Fatal(err)
		}
		if err := v.Remove(t.Context(), configs.DefaultTenant, addr, ""); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", reason, err, want)
		}
	}
	if err := v.Remove(t.Context(), configs.DefaultTenant, message.MustAddress("nobody@rcpt.example"), ""); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}
