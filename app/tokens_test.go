package app

import (
	"bytes"
	"net/mail"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/token"
)

func TestTokensOfOldMailOpenAfterARotationAndAReload(t *testing.T) {
	t.Parallel()
	cfg := configs.Default()
	cfg.DataDir = t.TempDir()
	a := &App{cfg: &cfg, opt: Options{Now: time.Now}}
	if err := a.openTokens(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(TokenKeyFile(&cfg))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("key file: %v, %v", info, err)
	}
	m := &message.Message{Tenant: "acme", Accepted: time.Now()}
	r := &message.Recipient{Address: message.MustAddress("ann@example.net"), N: 2}
	old := a.mint.seal(token.ReturnPath, "b.example", claims(m, r))
	if _, err := RotateTokenKeys(&cfg, time.Now()); err != nil {
		t.Fatal(err)
	}
	ring, err := a.tokenRing(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ring.Open(token.ReturnPath, "b.example", old)
	if err != nil || c.N != 2 || !ring.Confirms(c, "acme", r.Address) {
		t.Errorf("old token: %+v, %v", c, err)
	}
	a.mint.ring.Store(ring)
	if now := a.mint.seal(token.ReturnPath, "b.example", claims(m, r)); now == old {
		t.Error("the old key still seals")
	}
	if err := os.WriteFile(TokenKeyFile(&cfg), []byte("1 x y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.tokenRing(&cfg); err == nil || !strings.Contains(err.Error(), "token.keys") {
		t.Errorf("damaged file: %v", err)
	}
}

// What a message carries is what comes back, so the two must agree.
func TestMintedFieldsOpenAndSayNothingToStrangers(t *testing.T) {
	t.Parallel()
	cfg := configs.Default()
	cfg.Bounce.Domain, cfg.Bounce.FeedbackID, cfg.Bounce.CFBL, cfg.Bounce.ListUnsubscribe = "Bounces.Example.com", "shop01", true, true
	a := &App{cfg: &cfg, opt: Options{Now: time.Now, Memory: true}}
	if err := a.openTokens(); err != nil {
		t.Fatal(err)
	}
	ring := a.mint.ring.Load()
	var ids message.IDSource
	m := &message.Message{ID: ids.New(time.Now()), Tenant: "acme", Campaign: "spring: 50% off", Accepted: time.Now(), NotBefore: time.Now().Add(240 * time.Hour)}
	r := &message.Recipient{Address: message.MustAddress("ann.secret@example.net")}
	text := a.mint.fields(m, r, inject.Present{})
	parsed, err := mail.ReadMessage(bytes.NewReader(append(text, "\r\n"...)))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if low := strings.ToLower(string(text)); strings.Contains(low, "ann.") || strings.Contains(low, "secret") {
		t.Errorf("the fields name the recipient:\n%s", text)
	}
	for line := range strings.SplitSeq(string(text), "\r\n") {
		if len(line) > 998 {
			t.Errorf("line of %d octets", len(line))
		}
	}
	const domain = "bounces.example.com"
	h := parsed.Header
	parts := strings.Split(h.Get("Feedback-ID"), ":")
	if len(parts) != 4 || parts[0] != "spring--50--off" || parts[1] != "acme" || parts[3] != "shop01" {
		t.Fatalf("Feedback-ID: %q", parts)
	}
	if got, want := h.Get("CFBL-Address"), "fbl@"+domain+"; report=arf"; got != want {
		t.Errorf("CFBL-Address: %q, want %q", got, want)
	}
	unsubscribe := strings.TrimSuffix(strings.TrimPrefix(h.Get("List-Unsubscribe"), "<mailto:u"), ">")
	address, subject, _ := strings.Cut(unsubscribe, "@"+domain+"?subject=")
	path := a.mint.returnPath(m, r)
	for kind, s := range map[token.Kind]string{
		token.ReturnPath: strings.TrimPrefix(path.Local(), "b"), token.MessageID: a.mint.messageID(m, r),
		token.FeedbackID: parts[2], token.ReportRef: h.Get("X-Report-Ref"),
		token.UnsubscribeAddress: address, token.Unsubscribe: subject,
	} {
		c, err := ring.Open(kind, domain, s)
		if err != nil || c.Message != m.ID || c.All || !ring.Confirms(c, "acme", r.Address) {
			t.Errorf("kind %d: %+v, %v", kind, c, err)
			continue
		}
		if age := time.Until(c.Sent); age < 9*24*time.Hour {
			t.Errorf("kind %d: a scheduled message is said to be sent %v", kind, c.Sent)
		}
	}
	if len(path.Local()) > 64 || path.Domain() != domain {
		t.Errorf("return path %s", path)
	}

	// Nothing about a recipient in what all of them see, and nothing beside what
	// the sender set.
	shared := string(a.mint.fields(m, nil, inject.Present{FeedbackID: true, CFBLAddress: true}))
	if strings.Contains(shared, "Feedback") || strings.Contains(shared, "Unsubscribe") || !strings.Contains(shared, "X-Report-Ref") {
		t.Errorf("shared message that brings its own: %q", shared)
	}
}
