package app

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/smtp"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

const webhookConfig = `
hostname = "mta.example"
data_dir = "data"
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.0/8"]
[events]
webhook_http = true
webhook_networks = ["127.0.0.0/8"]
webhooks_per_tenant = 2
[[tenant]]
name = "acme"
[[route]]
domains = ["*"]
next_hops = ["127.0.0.1:1"]
tls = "off"
`

// TestWebhookGetsSignedEventsAlsoAfterARestart makes a webhook, has it told of
// mail in two lives of the engine, and removes it.
func TestWebhookGetsSignedEventsAlsoAfterARestart(t *testing.T) {
	t.Parallel()
	type post struct {
		header http.Header
		body   []byte
	}
	posts := make(chan post, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		posts <- post{r.Header, b}
	}))
	defer srv.Close()
	fs := vfs.NewMem()
	a, stop := life(t, fs, webhookConfig)
	hook, err := a.hooks.Add(t.Context(), configs.DefaultTenant, api.Webhook{URL: srv.URL, Types: []message.EventType{message.EventAccepted}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(hook.Secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	send := func(to string) {
		t.Helper()
		if err := smtp.SendMail(a.SMTPAddr(0).String(), nil, "s@sender.example", []string{to}, []byte("From: s@sender.example\r\n\r\nx\r\n")); err != nil {
			t.Fatal(err)
		}
		p := <-posts
		mac := hmac.New(sha256.New, key)
		io.WriteString(mac, p.header.Get("Webhook-Id")+"."+p.header.Get("Webhook-Timestamp")+".")
		mac.Write(p.body)
		if got, want := p.header.Get("Webhook-Signature"), "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)); got != want {
			t.Errorf("signature %s, want %s", got, want)
		}
		var events []struct{ Type, Recipient string }
		if err := json.Unmarshal(p.body, &events); err != nil {
			t.Fatal(err)
		}
		// What the first life was told of too late to hear our answer comes again.
		if n := len(events); n == 0 || n > 2 || events[n-1].Type != "message.accepted" || events[n-1].Recipient != to {
			t.Errorf("got %s, want the acceptance for %s last", p.body, to)
		}
	}
	send("a@example.net")
	stop()
	a, stop = life(t, fs, webhookConfig)
	send("b@example.net")

	list, err := a.hooks.List(t.Context(), configs.DefaultTenant)
	if err != nil || len(list) != 1 || list[0].ID != hook.ID || list[0].State != "running" || list[0].Secret != "" {
		t.Errorf("got %+v, %v", list, err)
	}
	if err := a.hooks.Replay(t.Context(), configs.DefaultTenant, hook.ID, new(uint64)); err != nil {
		t.Error(err)
	}
	if p := <-posts; !strings.Contains(string(p.body), "a@example.net") {
		t.Errorf("replayed %s, want the first message too", p.body)
	}
	if err := a.hooks.Remove(t.Context(), configs.DefaultTenant, hook.ID); err != nil {
		t.Error(err)
	}
	stop()
	a, stop = life(t, fs, webhookConfig)
	defer stop()
	if list, err := a.hooks.List(t.Context(), ""); err != nil || len(list) > 0 {
		t.Errorf("after the removal: %+v, %v", list, err)
	}
}

// TestWebhooksBelongToTheirTenantAndAreCounted also looks for the secret in
// what is stored.
func TestWebhooksBelongToTheirTenantAndAreCounted(t *testing.T) {
	t.Parallel()
	a, stop := life(t, vfs.NewMem(), webhookConfig)
	defer stop()
	ctx := t.Context()
	var first api.Webhook
	for i := range 3 {
		h, err := a.hooks.Add(ctx, "acme", api.Webhook{URL: "https://hooks.example/"})
		var p *api.Problem
		switch {
		case i < 2 && err != nil:
			t.Fatal(err)
		case i == 2 && (!errors.As(err, &p) || p.Code != "too_many_webhooks"):
			t.Errorf("the third: got %v, want too_many_webhooks", err)
		case i == 0:
			first = h
		}
	}
	if list, _ := a.hooks.List(ctx, "rival"); len(list) > 0 {
		t.Errorf("another tenant sees %+v", list)
	}
	if err := a.hooks.Remove(ctx, "rival", first.ID); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("another tenant removes: got %v, want ErrNotFound", err)
	}
	if err := a.hooks.Replay(ctx, "rival", first.ID, nil); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("another tenant replays: got %v, want ErrNotFound", err)
	}
	for _, url := range []string{"ftp://x.example/", "https://user@x.example/"} {
		if _, err := a.hooks.Add(ctx, "rival", api.Webhook{URL: url}); err == nil {
			t.Errorf("%s: got no error", url)
		}
	}
	err := a.ledger.Each(store.WebhookSpan(), func(_, v []byte) (bool, error) {
		if strings.Contains(string(v), first.Secret) || strings.Contains(string(v), "whsec") {
			t.Error("a secret is stored in clear")
		}
		return true, nil
	})
	if err != nil {
		t.Error(err)
	}
}
