package app

import (
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/configs"
)

// life runs an engine on fs until stop is called.
func life(t *testing.T, fs vfs.FS, config string) (a *App, stop func()) {
	t.Helper()
	cfg, err := configs.Parse("test", []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	a, err = New(cfg, Options{FS: fs, Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	return a, func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
