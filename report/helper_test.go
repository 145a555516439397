package report

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/dkim"
	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/suppression"
	"github.com/tradewind-mta/tradewind/token"
)

const domain = "bounces.example.com"

// world is a mailbox with real parts around it.
type world struct {
	t       testing.TB
	fs      vfs.FS
	dir     string
	now     time.Time
	spool   *store.DB
	ledger  *store.DB
	journal *event.Journal
	list    *suppression.List
	ring    *token.Ring
	rules   *bounce.Classifier
	signer  *dkim.Ring // of reporter.example
	txt     func(name string) ([]string, error)
	cfg     Config
	*Mailbox
}

func newWorld(t testing.TB, cfg Config) *world {
	t.Helper()
	w := &world{t: t, fs: vfs.NewMem(), dir: "data", now: time.Now().Truncate(time.Second), cfg: cfg}
	w.build()
	return w
}

func (w *world) build() {
	t := w.t
	t.Helper()
	rules, err := os.ReadFile("../configs/bounce.toml")
	if err != nil {
		t.Fatal(err)
	}
	if w.rules, err = bounce.NewClassifier(rules); err != nil {
		t.Fatal(err)
	}
	if w.ring, err = token.NewRing(token.Key{Secret: [token.SecretLen]byte{1}}); err != nil {
		t.Fatal(err)
	}
	pem, txt, err := dkim.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	w.signer, err = dkim.New(dkim.Config{Keys: []dkim.KeyConfig{{Domain: "*", Selector: "s1", PEM: pem, SigningDomain: "reporter.example"}}}, dkim.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	w.txt = func(name string) ([]string, error) {
		if name == "s1._domainkey.reporter.example" {
			return []string{strings.Join(txt, "")}, nil
		}
		return nil, nil
	}
	w.start()
}

// start opens everything on w.fs.
func (w *world) start() {
	t := w.t
	t.Helper()
	open := func(kind store.Kind) *store.DB {
		db, err := store.Open(w.dir, kind, store.Options{FS: w.fs})
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	w.spool, w.ledger = open(store.Spool), open(store.Ledger)
	now := func() time.Time { return w.now }
	w.journal = event.NewJournal(w.spool, event.Config{Now: now})
	var err error
	w.list, err = suppression.New(w.ledger, suppression.Config{Key: make([]byte, suppression.MinKey), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.cfg
	cfg.Domain, cfg.Life = domain, 17*24*time.Hour
	if cfg.Feedback == nil {
		cfg.Feedback = []string{"fbl"}
	}
	w.Mailbox, err = New(cfg, Deps{
		DB: w.spool, Journal: w.journal, List: w.list, Now: now,
		Ring: func() *token.Ring { return w.ring }, Rules: func() *bounce.Classifier { return w.rules },
		TXT: func(_ context.Context, name string) ([]string, error) { return w.txt(name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	spool, ledger := w.spool, w.ledger
	t.Cleanup(func() { // of whatever engine was the last
		for _, db := range []*store.DB{spool, ledger} {
			if err := db.Close(); err != nil && !errors.Is(err, store.ErrDead) {
				t.Error(err)
			}
		}
	})
}

// sent is a message of ours that was delivered, to be reported about.
type sent struct {
	id      message.ID
	claims  token.Claims
	address message.Address
}

var ids message.IDSource

// send journals that acme sent a message to address and, unless it waits in
// the queue, that it was delivered.
func (w *world) send(tenant, address string, queued bool) *sent {
	w.t.Helper()
	s := &sent{id: ids.New(w.now), address: message.MustAddress(address)}
	s.claims = token.Claims{Message: s.id, Sent: w.now, Tenant: tenant, Campaign: "spring", Address: s.address}
	b := w.spool.NewBatch(0)
	defer b.Close()
	e := message.Event{Type: message.EventAccepted, MessageID: s.id, Recipient: address, RecipientSeq: 1, Tenant: tenant, Campaign: "spring", Time: w.now}
	w.journal.Append(b, &e)
	e.Type, e.RecipientSeq, e.Terminal = message.EventDelivered, 2, true
	if queued {
		b.Set(store.LocatorKey(nil, s.id, 0), []byte("x"))
	} else {
		w.journal.Append(b, &e)
	}
	if err := b.Commit(); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) seal(kind token.Kind, c *token.Claims) string {
	w.t.Helper()
	s, err := w.ring.Seal(kind, domain, c)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) returnPath(s *sent) message.Address {
	return message.MustAddress(BouncePrefix + w.seal(token.ReturnPath, &s.claims) + "@" + domain)
}

func (w *world) unsubscribe(s *sent) message.Address {
	return message.MustAddress(UnsubscribePrefix + w.seal(token.UnsubscribeAddress, &s.claims) + "@" + domain)
}

var feedback = message.MustAddress("fbl@" + domain)

// mail is something that comes in.
type mail struct {
	from   string
	to     message.Address
	client string
	raw    string
}

// bring admits and takes mail, and works it off. It reports whether it was
// admitted.
func (w *world) bring(m mail) bool {
	w.t.Helper()
	if !w.take(m) {
		return false
	}
	w.drain()
	return true
}

func (w *world) take(m mail) bool {
	w.t.Helper()
	if err := w.Admit(m.to); err != nil {
		if !errors.Is(err, ErrUnknown) {
			w.t.Fatal(err)
		}
		return false
	}
	env := Envelope{To: []message.Address{m.to}}
	if m.from != "" {
		env.From = message.MustAddress(m.from)
	}
	if m.client != "" {
		env.Client = netip.MustParseAddr(m.client)
	}
	if err := w.Take(env, []byte(strings.ReplaceAll(m.raw, "\n", "\r\n"))); err != nil {
		w.t.Fatal(err)
	}
	return true
}

// drain works off everything that is due.
func (w *world) drain() {
	w.t.Helper()
	for range 1000 {
		worked := false
		for lane := range byte(lanes) {
			list, _, err := w.next(&laneState{number: lane})
			if err != nil {
				w.t.Fatal(err)
			}
			if len(list) == 0 {
				continue
			}
			worked = true
			if err := w.work(w.t.Context(), lane, list); err != nil {
				w.t.Fatal(err)
			}
		}
		if !worked {
			return
		}
	}
	w.t.Fatal("the work does not end")
}

// late returns the events of a message behind its delivery, as text.
func (w *world) late(s *sent) []string {
	w.t.Helper()
	list, err := w.journal.History(s.id, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		if e.Type == message.EventAccepted || e.Type == message.EventDelivered {
			continue
		}
		if e.Recipient != s.address.String() || e.Tenant != s.claims.Tenant {
			w.t.Errorf("event about %s of %s, want %s of %s", e.Recipient, e.Tenant, s.address, s.claims.Tenant)
		}
		out = append(out, fmt.Sprintf("%d %s %s %s %t", e.RecipientSeq, e.Type, e.Origin, e.Category, e.Suppressing))
	}
	return out
}

// quarantined lists why reports are held.
func (w *world) quarantined() []string {
	w.t.Helper()
	list, err := w.Held(0, 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, h := range list {
		out = append(out, h.Kind+" "+h.Reason)
	}
	return out
}

// dsn is a bounce of Postfix's making about an address.
func dsn(address, status, words string) string {
	return `From: MAILER-DAEMON@mx.example.net
To: somebody@example.com
Subject: Undelivered Mail Returned to Sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

I'm sorry to have to inform you that your message could not be delivered.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net

Final-Recipient: rfc822; ` + address + `
Action: failed
Status: ` + status + `
Remote-MTA: dns; mail.example.net
Diagnostic-Code: smtp; ` + words + `

--b--
`
}

const gone = "550 5.1.1 <ann@example.net>: Recipient address rejected: User unknown"

// arf is a complaint whose enclosed header has the given fields.
func arf(kind, from string, fields ...string) string {
	return `From: ` + from + `
To: fbl@` + domain + `
Subject: complaint
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="b"

--b
Content-Type: text/plain

This is a complaint.
--b
Content-Type: message/feedback-report

Feedback-Type: ` + kind + `
User-Agent: test/1
Version: 1

--b
Content-Type: text/rfc822-headers

From: news@example.com
Subject: hello
` + strings.Join(fields, "\n") + `

--b--
`
}

// sign signs mail as reporter.example.
func (w *world) sign(raw string) string {
	w.t.Helper()
	crlf := []byte(strings.ReplaceAll(raw, "\n", "\r\n"))
	fields, err := w.signer.Sign(w.t.Context(), dkim.Request{Message: crlf, From: "reporter.example", Now: time.Now()})
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.ReplaceAll(string(fields), "\r\n", "\n") + raw
}
