package report

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
	"github.com/tradewind-mta/tradewind/token"
)

func want(t *testing.T, what string, got []string, list ...string) {
	t.Helper()
	if d := cmp.Diff(list, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestBounceBecomesOneEventHoweverOftenItIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s := w.send("acme", "ann@example.net", false)
	for range 3 {
		w.bring(mail{to: w.returnPath(s), raw: dsn("ann@example.net", "5.1.1", gone)})
	}
	want(t, "events", w.late(s), "3 message.bounced dsn bad-mailbox true")
	want(t, "quarantine", w.quarantined())
	if got := testutil.ToFloat64(w.m.reports[kindBounce][resultDuplicate]); got != 2 {
		t.Errorf("%v duplicates counted, want 2", got)
	}
	e, err := w.journal.History(s.id, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := e[2].Reply
	if r == nil || r.Code != 550 || r.Enhanced.String() != "5.1.1" || r.RemoteHost != "mail.example.net" || !strings.Contains(r.Text, "User unknown") {
		t.Errorf("the server's words are lost: %+v", r)
	}
	if w.count.Load() != 0 || w.bytes.Load() != 0 {
		t.Errorf("%d reports of %d bytes are said to wait", w.count.Load(), w.bytes.Load())
	}
}

// The recipient comes from the token. What the text says of others, or of
// whom it likes, changes nothing.
func TestBounceConcernsWhomTheTokenNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	ann, bob := w.send("acme", "ann@example.net", false), w.send("acme", "bob@example.net", false)
	w.bring(mail{to: w.returnPath(ann), raw: dsn("bob@example.net", "5.1.1", "550 5.1.1 User unknown")})
	want(t, "events of ann", w.late(ann), "3 message.bounced dsn bad-mailbox true")
	want(t, "events of bob", w.late(bob))

	// Another tenant's message, the same address: theirs alone.
	theirs := w.send("other", "bob@example.net", false)
	w.bring(mail{to: w.returnPath(theirs), raw: dsn("bob@example.net", "5.1.1", "550 5.1.1 User unknown")})
	want(t, "events of other's bob", w.late(theirs), "3 message.bounced dsn bad-mailbox true")
	want(t, "events of acme's bob", w.late(bob))
}

func TestForgeriesChangeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	ann := w.send("acme", "ann@example.net", false)
	path := w.returnPath(ann)
	fake := dsn("ann@example.net", "5.1.1", gone)
	flip := func(s string, i int) string {
		c := byte('a')
		if s[i] == c {
			c = 'b'
		}
		return s[:i] + string(c) + s[i+1:]
	}
	admitted := func(local, at string) bool {
		return w.bring(mail{to: message.MustAddress(local + "@" + at), raw: fake})
	}
	for i := 1; i < len(path.Local()); i++ {
		if admitted(flip(path.Local(), i), domain) {
			t.Errorf("admitted with octet %d changed", i)
		}
	}
	for _, local := range []string{"postmaster", "ann", "b", "u", "b0", UnsubscribePrefix + path.Local()[1:], path.Local()[1:],
		BouncePrefix + w.unsubscribe(ann).Local()[1:], BouncePrefix + w.seal(token.MessageID, &ann.claims)} {
		if admitted(local, domain) {
			t.Errorf("%s is admitted", local)
		}
	}
	if admitted(path.Local(), "example.com") {
		t.Error("mail for another domain is admitted")
	}
	// Tokens that were sealed for somebody else under the same message: only
	// who has the key can make these, and the journal knows better.
	wrong := ann.claims
	wrong.Tenant = "other"
	w.bring(mail{to: message.MustAddress(BouncePrefix + w.seal(token.ReturnPath, &wrong) + "@" + domain), raw: fake})
	// A plain fake at the address that takes complaints.
	w.bring(mail{to: feedback, raw: fake})
	// Complaints: no signature, a broken one, a signer who is not the author, no
	// token, a token in the text.
	ref := "X-Report-Ref: " + w.seal(token.ReportRef, &ann.claims)
	w.bring(mail{to: feedback, from: "fbl@reporter.example", raw: arf("abuse", "fbl@reporter.example", ref)})
	w.bring(mail{to: feedback, raw: strings.Replace(w.sign(arf("abuse", "fbl@reporter.example", ref)), "a complaint", "no complaint", 1)})
	w.bring(mail{to: feedback, raw: w.sign(arf("abuse", "fbl@yahoo.example", ref))})
	w.bring(mail{to: feedback, raw: w.sign(arf("abuse", "fbl@reporter.example"))})
	w.bring(mail{to: feedback, raw: w.sign(strings.Replace(arf("abuse", "fbl@reporter.example"), "This is", ref+"\nThis is", 1))})
	// Even at an address with a token.
	w.bring(mail{to: path, raw: arf("abuse", "fbl@reporter.example")})
	want(t, "events", w.late(ann))
	want(t, "quarantine", w.quarantined(), "bounce mismatch", "bounce misdirected", "complaint unsigned", "complaint unsigned",
		"complaint unsigned", "complaint no_token", "complaint no_token", "complaint unsigned")
	if _, hit, err := w.list.Check("acme", "", ann.address); hit || err != nil {
		t.Errorf("ann is suppressed: %t, %v", hit, err)
	}
}

func TestComplaintCountsWhenItsAuthorSigned(t *testing.T) {
	t.Parallel()
	const reporter = "fbl@reporter.example"
	complained, left := "3 message.complained arf complaint true", "3 message.unsubscribed arf  true"
	tests := []struct {
		name string
		cfg  Config
		mail func(w *world, s *sent) mail
		want []string
	}{
		{"X-Report-Ref", Config{}, func(w *world, s *sent) mail {
			return mail{to: feedback, raw: w.sign(arf("abuse", reporter, "X-Report-Ref: "+w.seal(token.ReportRef, &s.claims)))}
		}, []string{complained}},
		{"Message-ID", Config{}, func(w *world, s *sent) mail {
			return mail{to: feedback, raw: w.sign(arf("fraud", reporter, "Message-ID: <"+strings.ToUpper(w.seal(token.MessageID, &s.claims))+"@example.com>"))}
		}, []string{complained}},
		{"Feedback-ID", Config{}, func(w *world, s *sent) mail {
			return mail{to: feedback, raw: w.sign(arf("abuse", reporter, "Feedback-ID: spring:acme:"+w.seal(token.FeedbackID, &s.claims)+":shop01"))}
		}, []string{complained}},
		{"CFBL-Feedback-ID", Config{}, func(w *world, s *sent) mail {
			return mail{to: feedback, raw: w.sign(arf("abuse", reporter, "CFBL-Feedback-ID: "+w.seal(token.FeedbackID, &s.claims)))}
		}, []string{complained}},
		{"Return-Path", Config{}, func(w *world, s *sent) mail {
			return mail{to: feedback, raw: w.sign(arf("abuse", reporter, "Return-Path: <"+w.returnPath(s).String()+">"))}
		}, []string{complained}},
		{"sent to the return path", Config{}, func(w *world, s *sent) mail {
			return mail{to: w.returnPath(s), raw: w.sign(arf("abuse", reporter))}
		}, []string{complained}},
		{"from below the signing domain", Config{}, func(w *world, s *sent) mail {
			return mail{to: feedback, raw: w.sign(arf("abuse", "fbl@eu.reporter.example", "X-Report-Ref: "+w.seal(token.ReportRef, &s.claims)))}
		}, []string{complained}},
		{"opt-out", Config{}, func(w *world, s *sent) mail {
			return mail{to: feedback, raw: w.sign(arf("opt-out", reporter, "X-Report-Ref: "+w.seal(token.ReportRef, &s.claims)))}
		}, []string{left}},
		{"not spam", Config{}, func(w *world, s *sent) mail {
			return mail{to: feedback, raw: w.sign(arf("not-spam", reporter, "X-Report-Ref: "+w.seal(token.ReportRef, &s.claims)))}
		}, nil},
		{"listed network", Config{Reporters: Reporters{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}, func(w *world, s *sent) mail {
			return mail{to: feedback, client: "192.0.2.7", raw: arf("abuse", "x@y.example", "X-Report-Ref: "+w.seal(token.ReportRef, &s.claims))}
		}, []string{complained}},
		{"listed domain", Config{Reporters: Reporters{Domains: []string{"reporter.example"}}}, func(w *world, s *sent) mail {
			return mail{to: feedback, raw: w.sign(arf("abuse", "x@y.example", "X-Report-Ref: "+w.seal(token.ReportRef, &s.claims)))}
		}, []string{complained}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tt.cfg)
			s := w.send("acme", "ann@example.net", false)
			m := tt.mail(w, s)
			w.bring(m)
			w.bring(m)
			want(t, "events", w.late(s), tt.want...)
			want(t, "quarantine", w.quarantined())
		})
	}
}

func TestComplaintWaitsForNameServersThatFailAndThenCountsOrNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	ask := w.txt
	w.txt = func(string) ([]string, error) { return nil, errors.New("servfail") }
	s := w.send("acme", "ann@example.net", false)
	raw := w.sign(arf("abuse", "fbl@reporter.example", "X-Report-Ref: "+w.seal(token.ReportRef, &s.claims)))
	w.bring(mail{to: feedback, raw: raw})
	want(t, "events", w.late(s))
	want(t, "quarantine", w.quarantined())
	if w.count.Load() != 1 {
		t.Fatalf("%d reports wait, want 1", w.count.Load())
	}
	w.txt = ask
	w.drain()
	want(t, "events before its time", w.late(s))
	w.now = w.now.Add(time.Minute)
	w.drain()
	want(t, "events", w.late(s), "3 message.complained arf complaint true")

	w.txt = func(string) ([]string, error) { return nil, errors.New("servfail") }
	other := w.send("acme", "bob@example.net", false)
	w.bring(mail{to: feedback, raw: w.sign(arf("abuse", "fbl@reporter.example", "X-Report-Ref: "+w.seal(token.ReportRef, &other.claims)))})
	for range 100 {
		w.now = w.now.Add(10 * time.Minute)
		w.drain()
	}
	want(t, "events", w.late(other))
	want(t, "quarantine", w.quarantined(), "complaint unsigned")
}

func TestRequestToUnsubscribeWorksWithoutTheJournalToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s := w.send("acme", "ann@example.net", false)
	const empty = "From: ann@example.net\nSubject: unsubscribe\n\n"
	w.bring(mail{to: w.unsubscribe(s), from: "ann@example.net", raw: empty})
	w.bring(mail{to: w.unsubscribe(s), from: "ann@example.net", raw: empty})
	want(t, "events", w.late(s), "3 message.unsubscribed mail  true")

	// Years later: the journal has let go of the message, the address has not
	// expired, and the subject says the rest.
	old := &sent{id: ids.New(w.now.AddDate(-2, 0, 0)), address: message.MustAddress("bob@example.net")}
	old.claims = token.Claims{Message: old.id, Sent: w.now.AddDate(-2, 0, 0), Tenant: "acme", Campaign: "summer", Address: old.address}
	w.bring(mail{to: w.unsubscribe(old), from: "bob@example.net", raw: empty})
	want(t, "quarantine", w.quarantined(), "unsubscribe forgotten")
	w.bring(mail{to: w.unsubscribe(old), from: "bob@example.net", raw: "From: bob@example.net\nSubject: " + w.seal(token.Unsubscribe, &old.claims) + "\n\n"})
	want(t, "events", w.late(old), "0 message.unsubscribed mail  true")

	// Machines do not ask to be left alone.
	third := w.send("acme", "cay@example.net", false)
	w.bring(mail{to: w.unsubscribe(third), raw: empty})
	w.bring(mail{to: w.unsubscribe(third), raw: dsn("cay@example.net", "5.1.1", gone)})
	w.bring(mail{to: w.unsubscribe(third), from: "cay@example.net", raw: "From: cay@example.net\nSubject: Out of office\nAuto-Submitted: auto-replied\n\nback soon\n"})
	want(t, "events of a machine", w.late(third))
}

func TestWhatProvesNothingIsCountedOrHeld(t *testing.T) {
	t.Parallel()
	delayed := strings.NewReplacer("Action: failed", "Action: delayed").Replace(dsn("ann@example.net", "4.4.1", "450 4.4.1 connection timed out"))
	relayed := strings.NewReplacer("Action: failed", "Action: delivered").Replace(dsn("ann@example.net", "2.0.0", "250 ok"))
	away := "From: ann@example.net\nSubject: Out of office\nAuto-Submitted: auto-replied\n\nback soon\n"
	w := newWorld(t, Config{})
	s := w.send("acme", "ann@example.net", false)
	shared := s.claims
	shared.All, shared.Address = true, message.Address{}
	all := message.MustAddress(BouncePrefix + w.seal(token.ReturnPath, &shared) + "@" + domain)
	for _, m := range []mail{
		{to: w.returnPath(s), raw: delayed}, {to: w.returnPath(s), raw: relayed}, {to: w.returnPath(s), raw: away}, {to: feedback, raw: away},
		{to: w.returnPath(s), from: "ann@example.net", raw: "From: ann@example.net\nSubject: hi\n\nhow are you?\n"},
		{to: all, raw: dsn("ann@example.net", "5.1.1", gone)},
		{to: feedback, raw: w.sign(arf("abuse", "fbl@reporter.example", "X-Report-Ref: "+w.seal(token.ReportRef, &shared)))},
	} {
		w.bring(m)
	}
	want(t, "events", w.late(s))
	want(t, "quarantine", w.quarantined(), "unreadable unreadable", "bounce ambiguous", "complaint ambiguous")
	for k, n := range map[kind]float64{kindDelay: 1, kindDelivered: 1, kindAutoReply: 2} {
		if got := testutil.ToFloat64(w.m.reports[k][resultCounted]); got != n {
			t.Errorf("%v of kind %s counted, want %v", got, kindNames[k], n)
		}
	}
}

func TestTokenOfMailTooOldToBounceIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s := w.send("acme", "ann@example.net", false)
	w.now = w.now.Add(17 * 24 * time.Hour)
	if err := w.Admit(w.returnPath(s)); err != nil {
		t.Errorf("within its life: %v", err)
	}
	w.now = w.now.Add(48 * time.Hour)
	if err := w.Admit(w.returnPath(s)); !errors.Is(err, ErrUnknown) {
		t.Errorf("after its life: %v", err)
	}
	if err := w.Admit(w.unsubscribe(s)); err != nil {
		t.Errorf("a request to unsubscribe: %v", err)
	}
}

// The queue numbers the events of a recipient who waits, so a fact about them
// waits as well. That they must not be mailed does not.
func TestFactAboutAWaitingRecipientSuppressesAtOnceAndIsToldLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s := w.send("acme", "ann@example.net", true)
	w.bring(mail{to: w.unsubscribe(s), from: "ann@example.net", raw: "From: ann@example.net\nSubject: x\n\n"})
	want(t, "events while queued", w.late(s))
	if e, hit, err := w.list.Check("acme", "", s.address); !hit || err != nil || e.Reason.String() != "unsubscribe" {
		t.Fatalf("suppressed: %t, %v, %v", hit, e.Reason, err)
	}
	b := w.spool.NewBatch(0)
	defer b.Close()
	b.Delete(store.LocatorKey(nil, s.id, 0))
	w.journal.Append(b, &message.Event{Type: message.EventSuppressed, MessageID: s.id, Recipient: "ann@example.net", RecipientSeq: 2, Tenant: "acme", Terminal: true})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(2 * time.Minute)
	w.drain()
	want(t, "events", w.late(s), "2 message.suppressed   false", "3 message.unsubscribed mail  true")
	if w.count.Load() != 0 {
		t.Errorf("%d reports wait", w.count.Load())
	}
}

func TestTakenReportSurvivesAPowerCutAndIsReadOnce(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	w := &world{t: t, fs: fs, dir: "data", now: time.Now().Truncate(time.Second)}
	w.build()
	s := w.send("acme", "ann@example.net", false)
	m := mail{to: w.returnPath(s), raw: dsn("ann@example.net", "5.1.1", gone)}
	w.take(m)
	w.fs = fs.CrashClone(vfs.CrashCloneCfg{})
	w.start()
	if w.count.Load() != 1 || w.bytes.Load() == 0 {
		t.Fatalf("after the power cut %d reports of %d bytes wait", w.count.Load(), w.bytes.Load())
	}
	w.drain()
	want(t, "events", w.late(s), "3 message.bounced dsn bad-mailbox true")
	w.fs = w.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
	w.start()
	w.drain()
	want(t, "events after another", w.late(s), "3 message.bounced dsn bad-mailbox true")
	if w.count.Load() != 0 {
		t.Errorf("%d reports wait still", w.count.Load())
	}
}

func TestQuarantineIsBoundedAndTheOldestGoFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{MaxHeld: 10, MaxHeldBytes: 40_000})
	for i := range 30 {
		w.now = w.now.Add(time.Second)
		raw := "From: a@b.example\nSubject: no report " + strings.Repeat("x", i) + "\n\nbody\n"
		if i >= 20 {
			raw += strings.Repeat("y", 10_000)
		}
		w.bring(mail{to: feedback, raw: raw})
		count, size := w.quarantine()
		if count > 10 || size > 40_000 {
			t.Fatalf("%d reports, %d bytes", count, size)
		}
	}
	list, err := w.Held(0, 100)
	if err != nil || len(list) != 3 {
		t.Fatalf("%d held, %v; want the last three", len(list), err)
	}
	last := list[2]
	h, err := w.Show(last.ID)
	if err != nil || !strings.Contains(string(h.Contents), strings.Repeat("x", 29)) || h.To != feedback.String() || h.Size != last.Size {
		t.Errorf("shown: %+v, %v", h, err)
	}
	if more, err := w.Held(list[0].ID, 1); err != nil || len(more) != 1 || more[0].ID != list[1].ID {
		t.Errorf("second page: %v, %v", more, err)
	}
	if _, err := w.Show(1 << 60); !errors.Is(err, ErrNotHeld) {
		t.Errorf("unknown id: %v", err)
	}
	w.now = w.now.Add(27 * 24 * time.Hour)
	if err := w.expire(); err != nil {
		t.Fatal(err)
	}
	if n, _ := w.quarantine(); n != 3 {
		t.Errorf("%d held after 27 days, want 3", n)
	}
	w.now = w.now.Add(2 * 24 * time.Hour)
	if err := w.expire(); err != nil {
		t.Fatal(err)
	}
	if n, size := w.quarantine(); n != 0 || size != 0 {
		t.Errorf("%d held, %d bytes, after 29 days", n, size)
	}
}

func TestReportsBeyondTheirSpaceAreRefusedForNow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{MaxWaiting: 3000})
	env := Envelope{To: []message.Address{feedback}}
	body := []byte(strings.Repeat("x", 1400))
	for range 2 {
		if err := w.Take(env, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Take(env, body); !errors.Is(err, ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	w.drain()
	if err := w.Take(env, body); err != nil {
		t.Errorf("after the work: %v", err)
	}
}

func TestUnreadableRecordIsHeldAndStandsInNobodysWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s := w.send("acme", "ann@example.net", false)
	b := w.spool.NewBatch(0)
	defer b.Close()
	b.Set(store.ReportKey(nil, store.LaneFast, time.Time{}, b.Reserve(1), 77), []byte("\x09 what is this"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	w.bring(mail{to: w.returnPath(s), raw: dsn("ann@example.net", "5.1.1", gone)})
	want(t, "events", w.late(s), "3 message.bounced dsn bad-mailbox true")
	if got := w.quarantined(); len(got) != 1 {
		t.Errorf("quarantine %q", got)
	}
}

func TestRunReadsWhatComesUntilItIsStopped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	s := w.send("acme", "ann@example.net", false)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { done <- w.Run(ctx) }()
	w.take(mail{to: w.returnPath(s), raw: dsn("ann@example.net", "5.1.1", gone)})
	for {
		here := w.journal.Horizon()
		list, err := w.journal.History(s.id, 0)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(list, func(e *message.Event) bool { return e.Type == message.EventBounced }) {
			break
		}
		if err := w.journal.Wait(ctx, here); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func FuzzRecord(f *testing.F) {
	r := record{received: time.Unix(1<<30, 0), from: "a@b.example", to: feedback, client: netip.MustParseAddr("192.0.2.1"), tries: 3}
	f.Add(append(r.appendHead(nil), "text"...))
	h := heldReport{&record{to: feedback, raw: []byte("x")}, kindBounce, heldMismatch}
	f.Add(h.append(nil))
	f.Add([]byte{recordVersion})
	key := store.HeldKey(nil, time.Unix(1, 0), 7, 9)
	f.Fuzz(func(t *testing.T, v []byte) {
		var r record
		if r.decode(v) == nil {
			again := append(r.appendHead(nil), r.raw...)
			var back record
			if err := back.decode(again); err != nil || back.to != r.to || string(back.raw) != string(r.raw) {
				t.Errorf("%q read as %+v, and again as %+v: %v", v, r, back, err)
			}
		}
		if h, err := decodeHeld(key, v); err != nil || h.ID != 7 {
			t.Errorf("held: %+v, %v", h, err)
		}
	})
}
