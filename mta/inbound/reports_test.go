package inbound

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/emersion/go-smtp"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/report"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/suppression"
	"github.com/tradewind-mta/tradewind/token"
)

// newMailbox makes a mailbox for bounces.example.com and the local part of a
// return path there.
func newMailbox(t testing.TB, c report.Config) (*report.Mailbox, string) {
	t.Helper()
	fs := vfs.NewMem()
	open := func(kind store.Kind) *store.DB {
		db, err := store.Open("data", kind, store.Options{FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	spool := open(store.Spool)
	list, err := suppression.New(open(store.Ledger), suppression.Config{Key: make([]byte, suppression.MinKey)})
	if err != nil {
		t.Fatal(err)
	}
	ring, err := token.NewRing(token.Key{Secret: [token.SecretLen]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	c.Domain, c.Feedback, c.Life = "bounces.example.com", []string{"fbl"}, time.Hour
	m, err := report.New(c, report.Deps{
		DB: spool, Journal: event.NewJournal(spool, event.Config{}), List: list,
		Ring: func() *token.Ring { return ring }, Rules: func() *bounce.Classifier { return nil },
		TXT: func(context.Context, string) ([]string, error) { return nil, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := ring.Seal(token.ReturnPath, c.Domain, &token.Claims{Tenant: "acme", Sent: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return m, report.BouncePrefix + s
}

func code(err error) int {
	var e *smtp.SMTPError
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func TestBounceListenerTakesMailForItsAddressesAlone(t *testing.T) {
	t.Parallel()
	m, path := newMailbox(t, report.Config{})
	for _, tt := range []struct {
		name, from, to, body string
		mail, rcpt, data     int // codes of refusals; 0 is taken
	}{
		{name: "bounce", to: path + "@bounces.example.com", body: "Subject: x\r\n\r\n"},
		{name: "bounce in capitals", to: strings.ToUpper(path) + "@BOUNCES.example.com", body: "Subject: x\r\n\r\n"},
		{name: "complaint with a sender", from: "fbl@provider.example", to: "FBL@bounces.example.com", body: "Subject: x\r\n\r\n"},
		{name: "relaying", to: "ann@example.net", rcpt: 550},
		{name: "postmaster", to: "postmaster@bounces.example.com", rcpt: 550},
		{name: "changed token", to: path[:20] + "zz" + path[22:] + "@bounces.example.com", rcpt: 550},
		{name: "bad sender", from: "x", mail: 553},
		{name: "loop", to: path + "@bounces.example.com", body: strings.Repeat("Received: by x\r\n", 51) + "\r\n", data: 554},
		{name: "no loop", to: path + "@bounces.example.com", body: strings.Repeat("Received: by x\r\n", 50) + "\r\nReceived: x\r\n"},
	} {
		s := &reports{mailbox: m}
		if got := code(s.Mail(tt.from, nil)); got != tt.mail {
			t.Errorf("%s: MAIL gets %d, want %d", tt.name, got, tt.mail)
		}
		if tt.mail != 0 {
			continue
		}
		if got := code(s.Rcpt(tt.to, nil)); got != tt.rcpt {
			t.Errorf("%s: RCPT gets %d, want %d", tt.name, got, tt.rcpt)
		}
		if tt.rcpt != 0 {
			continue
		}
		if err := s.Data(strings.NewReader(tt.body)); code(err) != tt.data || err != nil && tt.data == 0 {
			t.Errorf("%s: DATA gets %v, want %d", tt.name, err, tt.data)
		}
	}
}

// A bounce mailbox is what spammers guess at: none of them gets to DATA.
func TestGuessedAddressesAreAllRefused(t *testing.T) {
	t.Parallel()
	m, path := newMailbox(t, report.Config{})
	rnd := rand.New(rand.NewPCG(1, 2))
	const letters = "abcdefghijklmnopqrstuvwxyz234567"
	for range 100_000 {
		b := []byte(path)
		if rnd.IntN(2) == 0 {
			b = make([]byte, 1+rnd.IntN(64))
		}
		for i := range 1 + rnd.IntN(len(b)) {
			b[(i+1)%len(b)] = letters[rnd.IntN(len(letters))]
		}
		if b[0] == 0 {
			b[0] = 'b'
		}
		guess := strings.ReplaceAll(string(b), "\x00", "q")
		if guess == path || guess == "fbl" {
			continue
		}
		if m.Admit(message.MustAddress(guess+"@bounces.example.com")) == nil {
			t.Fatalf("%s is admitted", guess)
		}
	}
}

func TestFullReportSpoolAsksToComeBackLater(t *testing.T) {
	t.Parallel()
	m, path := newMailbox(t, report.Config{MaxWaiting: 10})
	s := &reports{mailbox: m}
	for _, err := range []error{s.Mail("", nil), s.Rcpt(path+"@bounces.example.com", nil)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Data(strings.NewReader("Subject: too long\r\n\r\n")); code(err) != 452 {
		t.Errorf("got %v, want 452", err)
	}
	s.Reset()
	if fmt.Sprint(s.env) != fmt.Sprint(report.Envelope{}) {
		t.Errorf("after a reset the session remembers %+v", s.env)
	}
}
