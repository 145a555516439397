package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/store"
)

// waiting makes the spool of a stopped engine with n messages in tables and blob
// files, and returns its configuration file.
func waiting(t *testing.T, dir string, n int) string {
	t.Helper()
	file := filepath.Join(dir, "tradewind.toml")
	text := fmt.Appendf(nil, `
hostname = "mta.example"
data_dir = %q
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.0/8"]
[[route]]
domains = ["*"]
next_hops = ["127.0.0.1:1"]
tls = "off"
`, filepath.Join(dir, "data"))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := configs.Parse("test", text)
	if err != nil {
		t.Fatal(err)
	}
	a, err := app.New(cfg, app.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	body := append([]byte("From: s@sender.example\r\n\r\n"), bytes.Repeat([]byte("0123456789\r\n"), 400)...)
	var sent error
	for range n {
		sent = errors.Join(sent, smtp.SendMail(a.SMTPAddr(0).String(), nil, "s@sender.example", []string{"r@rcpt.example"}, body))
	}
	stop()
	if err := errors.Join(sent, <-ended); err != nil {
		t.Fatal(err)
	}
	if err := withSpool(file, (*store.DB).Flush); err != nil {
		t.Fatal(err)
	}
	return file
}

// spoil turns over bytes of all files with one ending. It leaves their ends alone
// and the first block, which holds the format: without them a store does not open.
func spoil(t *testing.T, dir, ext string) (names []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "data", "spool", "*"+ext))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s: %v", ext, err)
	}
	for i, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for at := 8 << 10; at < len(data)*3/4; at += 100 {
			data[at] ^= 0x55
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		names[i] = filepath.Base(name)
	}
	return names
}

func TestExportOfADamagedSpoolTellsWhatIsMissing(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		ext        string
		incomplete bool
	}{
		{".blob", false},
		{".sst", true},
	} {
		t.Run(tc.ext, func(t *testing.T) {
			t.Parallel()
			const n = 100
			dir := t.TempDir()
			file := waiting(t, dir, n)
			status, _, errs := shell(t, "queue", "export", "-c", file)
			if status != 0 || errs != fmt.Sprintf("%d messages, %d recipients exported; 0 could not be read\n", n, n) {
				t.Fatalf("whole: status %d, %q", status, errs)
			}
			spoiled := spoil(t, dir, tc.ext)
			status, out, errs := shell(t, "queue", "export", "-c", file)
			if status != 0 || !strings.Contains(out, `"end":true`) {
				t.Errorf("status %d, %q", status, errs)
			}
			var messages, recipients, skipped int
			if _, err := fmt.Sscanf(errs, "%d messages, %d recipients exported; %d could not be read", &messages, &recipients, &skipped); err != nil {
				t.Fatalf("%q: %v", errs, err)
			}
			if messages >= n || !tc.incomplete && messages+skipped != n {
				t.Errorf("of %d messages: %q", n, errs)
			}
			named := false
			for _, name := range spoiled {
				for line := range strings.Lines(errs) {
					named = named || strings.HasPrefix(line, "damaged: ") && strings.Contains(line, name)
				}
			}
			if !named {
				t.Errorf("none of %q is named: %q", spoiled, errs)
			}
			if got := strings.Contains(errs, "there was more"); got != tc.incomplete {
				t.Errorf("there was more: %v, want %v: %q", got, tc.incomplete, errs)
			}
		})
	}
}
