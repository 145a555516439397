package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/app"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/throttle"
)

// operators is a world with two tenants, two pools and one host that takes all.
func operators(t *testing.T) (w *world, sink *loadgen.Sink) {
	w = newWorld(t, "a.example. MX 10 mx.a.example.\nmx.a.example. A 192.0.2.1\nb.example. MX 10 aspmx.l.google.com.\naspmx.l.google.com. A 192.0.2.2\n", `
[[tenant]]
name = "acme"
[[tenant]]
name = "other"
[[source]]
name = "ip1"
address = "198.51.100.1"
[[source]]
name = "ip2"
address = "198.51.100.2"
[[pool]]
name = "default"
sources = [{ source = "ip1", weight = 1 }]
[[pool]]
name = "spare"
sources = [{ source = "ip2", weight = 1 }]
`)
	sink, err := loadgen.New(loadgen.SinkConfig{TLS: true})
	if err != nil {
		t.Fatal(err)
	}
	w.other = func(string) (net.Conn, error) {
		near, far := loadgen.Pipe()
		go sink.ServeConn(far)
		return near, nil
	}
	w.start()
	return w, sink
}

// admin asks the admin listener and decodes the last line of the answer.
func (w *world) admin(method, target, body string, want int, out any) {
	w.t.Helper()
	status, _, text := w.request("default", adminAddr, method, target, []byte(body), http.Header{"Content-Type": {"application/json"}})
	if status != want {
		w.t.Fatalf("%s %s: %d %s, want %d", method, target, status, text, want)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if out == nil {
		return
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), out); err != nil {
		w.t.Fatalf("%s %s: %v in %s", method, target, err, text)
	}
}

// send injects n messages of a tenant to addresses at a domain.
func (w *world) send(tenant, domain string, n int) {
	w.t.Helper()
	for i := range n {
		body := fmt.Sprintf(`{"from":{"email":"a@sender.example"},"to":[{"email":"r%d@%s"}],"subject":"x","text":"x","campaign":"c"}`, i, domain)
		if status, _, text := w.request(tenant, apiAddr, "POST", "/v1/messages", []byte(body), http.Header{"Content-Type": {"application/json"}}); status != http.StatusAccepted {
			w.t.Fatalf("inject: %d %s", status, text)
		}
	}
	time.Sleep(10 * time.Second)
}

// answered is what an operation says.
type answered struct {
	Applied    bool        `json:"applied"`
	Done       int         `json:"done"`
	Recipients queue.Tally `json:"recipients"`
}

func TestOperatorSuspendsAndResumesOverRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, sink := operators(t)
		defer w.end()
		var got answered
		w.admin("POST", "/v1/suspensions", `{"tenant":"acme","for":"2h","reason":"asked by acme"}`, 200, &got)
		w.send("acme", "a.example", 2)
		if got.Applied || sink.Counts().Messages != 2 {
			t.Fatalf("a dry run changed something: %+v, %d messages went", got, sink.Counts().Messages)
		}
		w.admin("POST", "/v1/suspensions?apply=true", `{"tenant":"acme","for":"2h","reason":"asked by acme"}`, 201, nil)
		w.send("acme", "a.example", 3)
		w.send("other", "a.example", 1)
		w.admin("POST", "/v1/suspensions", `{"tenant":"acme"}`, 200, &got)
		if n := sink.Counts().Messages; n != 3 || got.Recipients.Total() != 3 {
			t.Errorf("%d went, and %+v wait; want 3 and 3", n, got.Recipients)
		}
		w.crash(true)
		time.Sleep(time.Hour)
		var list struct {
			Suspensions []struct {
				Selector map[string]string `json:"selector"`
				Reason   string            `json:"reason"`
			} `json:"suspensions"`
		}
		w.admin("GET", "/v1/suspensions", "", 200, &list)
		if len(list.Suspensions) != 1 || list.Suspensions[0].Selector["tenant"] != "acme" || !strings.Contains(list.Suspensions[0].Reason, "asked by acme") {
			t.Errorf("after a power cut: %+v", list)
		}
		if n := sink.Counts().Messages; n != 3 {
			t.Errorf("%d went, want none of the suspended tenant", n)
		}
		time.Sleep(61 * time.Minute) // it runs out by itself
		if n := sink.Counts().Messages; n != 6 {
			t.Errorf("%d went when the time was over, want 6", n)
		}
		w.admin("POST", "/v1/suspensions?apply=true", `{"domain":"a.example"}`, 201, nil)
		w.send("other", "a.example", 1)
		day := 24 * time.Hour
		if brief() {
			day = time.Hour
		}
		time.Sleep(day)
		w.admin("DELETE", "/v1/suspensions", `{"domain":"a.example"}`, 200, &got)
		if got.Applied || got.Recipients.Total() != 1 || sink.Counts().Messages != 6 {
			t.Errorf("dry run of resume: %+v, %d went", got, sink.Counts().Messages)
		}
		w.admin("DELETE", "/v1/suspensions?apply=true", `{"domain":"a.example"}`, 200, nil)
		time.Sleep(10 * time.Second)
		if n := sink.Counts().Messages; n != 7 {
			t.Errorf("%d went after it was resumed, want 7", n)
		}
		w.admin("DELETE", "/v1/suspensions?apply=true", `{"domain":"a.example"}`, 404, nil)
		var events struct{ Events []map[string]any }
		_, _, text := w.request("", apiAddr, "GET", "/v1/events?type=egress.suspended,egress.resumed", nil, nil)
		if err := json.Unmarshal(text, &events); err != nil || len(events.Events) != 4 {
			t.Errorf("%d events of suspensions, %v: %s; want two and two", len(events.Events), err, text)
		}
		w.stop()
		w.verify()
	})
}

func TestOperatorBouncesDeletesAndReroutes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, sink := operators(t)
		defer w.end()
		w.admin("POST", "/v1/suspensions?apply=true", `{"source":"ip1"}`, 201, nil)
		w.send("acme", "a.example", 4)
		w.send("acme", "b.example", 5)
		w.send("other", "a.example", 6)
		for _, c := range []struct {
			operation, body string
			want            int
		}{
			{"bounce", `{"tenant":"acme","domain":"a.example","reason":"wrong list"}`, 4},
			{"delete", `{"provider":"gmail"}`, 5},
			{"reroute", `{"source":"ip1","pool":"spare"}`, 6},
		} {
			var got answered
			w.admin("POST", "/v1/queues/"+c.operation, c.body, 200, &got)
			if got.Applied || got.Recipients.Total() != c.want {
				t.Errorf("%s, dry run: %+v, want %d", c.operation, got, c.want)
			}
			if n := sink.Counts().Messages; n != 0 {
				t.Fatalf("%s: %d messages went during the dry run", c.operation, n)
			}
			w.admin("POST", "/v1/queues/"+c.operation+"?apply=true", c.body, 200, &got)
			if !got.Applied || got.Done != c.want {
				t.Errorf("%s: %+v, want %d done", c.operation, got, c.want)
			}
			time.Sleep(10 * time.Second)
		}
		if n := sink.Counts().Messages; n != 6 {
			t.Errorf("%d went from the other pool, want 6", n)
		}
		for _, c := range []struct{ target, body string }{
			{"/v1/queues/bounce", `{}`},
			{"/v1/queues/bounce", `{"provider":"nobody"}`},
			{"/v1/queues/delete", `{"source":"ip9"}`},
			{"/v1/queues/reroute", `{"tenant":"acme"}`},
			{"/v1/queues/reroute", `{"tenant":"acme","pool":"none"}`},
			{"/v1/queues/delete", `{"tenant":"acme","pool":"spare"}`},
			{"/v1/suspensions", `{"tenant":"acme","for":"soon"}`},
			{"/v1/suspensions", `{"tenant":"acme","until":"2001-01-01"}`},
			{"/v1/suspensions", `{"message":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}`},
		} {
			w.admin("POST", c.target+"?apply=true", c.body, 422, nil)
		}
		w.admin("POST", "/v1/queues/drop", `{"tenant":"acme"}`, 404, nil)
		w.stop()
		w.verify()
	})
}

// TestPostponedMailNamesItsHold lets Gmail defer the mail of one identity of the
// sender, and asks about mail that has not been tried for it, also after a crash.
func TestPostponedMailNamesItsHold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ reply, want string }{
		"DKIM domain": {"421 4.7.28 Gmail has detected an unusual rate of mail originating from your DKIM domain [sender.example 36]", "backoff of dkim-domain sender.example at gmail by shaping.toml (shipped):"},
		"SPF domain":  {"421 4.7.28 Gmail has detected an unusual rate of mail originating from your SPF domain [sender.example 36]", "backoff of sender-domain sender.example at gmail by shaping.toml (shipped):"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, _ := operators(t)
				defer w.end()
				sink, err := loadgen.New(loadgen.SinkConfig{TLS: true, OnMail: func(_, from string) (string, func()) {
					if strings.HasSuffix(from, "@sender.example") {
						return c.reply, nil
					}
					return "", nil
				}})
				if err != nil {
					t.Fatal(err)
				}
				w.other = func(string) (net.Conn, error) {
					near, far := loadgen.Pipe()
					go sink.ServeConn(far)
					return near, nil
				}
				w.send("acme", "b.example", 3)
				id := func() (last string) {
					var list struct {
						Events []struct {
							ID string `json:"message_id"`
						}
					}
					_, _, text := w.request("", apiAddr, "GET", "/v1/events?type=message.accepted", nil, nil)
					if err := json.Unmarshal(text, &list); err != nil || len(list.Events) != 3 {
						t.Fatalf("events: %v %s", err, text)
					}
					return list.Events[2].ID
				}()
				began := time.Now()
				for _, when := range []string{"while it runs", "after a crash"} {
					var m, api struct {
						Recipients []struct {
							State, Holding string
							Attempt        int
							Next           time.Time `json:"next_attempt"`
						}
					}
					w.admin("GET", "/v1/explain?message="+id, "", 200, &m)
					if len(m.Recipients) != 1 {
						t.Fatalf("%s: %+v", when, m)
					}
					r := m.Recipients[0]
					_, until, ok := strings.Cut(r.Holding, " until ")
					end, err := time.Parse(time.RFC3339, until)
					if !strings.HasPrefix(r.Holding, c.want) || !ok || err != nil || end.Sub(began) > 11*time.Minute || end.Before(began) {
						t.Errorf("%s: held by %q, want %q", when, r.Holding, c.want)
					}
					if r.Attempt != 0 || r.Next.Before(end.Add(-time.Second)) || r.Next.After(end.Add(2*time.Minute)) {
						t.Errorf("%s: %d attempts, the next at %v; want none and one when the hold ends at %v", when, r.Attempt, r.Next, end)
					}
					_, _, text := w.request("", apiAddr, "GET", "/v1/messages/"+id, nil, nil)
					if err := json.Unmarshal(text, &api); err != nil || len(api.Recipients) != 1 || api.Recipients[0].Holding != r.Holding {
						t.Errorf("%s: the API says %s, %v; want %q", when, text, err, r.Holding)
					}
					if when == "while it runs" {
						w.crash(true)
					}
				}
				time.Sleep(2 * time.Hour)
				w.stop()
				w.verify()
			})
		})
	}
}

// sameWithoutEngine asks the configuration alone and compares the answers.
func (w *world) sameWithoutEngine(address string, want *mta.Destination) {
	w.t.Helper()
	cfg, err := configs.Parse("story", []byte(w.configuration(w.config)))
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := app.NewPlan(cfg, app.Options{Exchange: w.machine.exchange})
	if err != nil {
		w.t.Fatal(err)
	}
	defer p.Close()
	got, err := p.Address(w.t.Context(), "", address)
	if err != nil {
		w.t.Fatal(err)
	}
	if diff := cmp.Diff(want, &got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		w.t.Errorf("without an engine (-want +got):\n%s", diff)
	}
	var out struct{ Plans []throttle.WarmupPlan }
	w.admin("GET", "/v1/warmup", "", 200, &out)
	if diff := cmp.Diff(out.Plans, p.Warmups()); diff != "" {
		w.t.Errorf("warm-ups without an engine (-want +got):\n%s", diff)
	}
	if _, err := p.Address(w.t.Context(), "", "a@b..c"); err == nil {
		w.t.Error("a@b..c is explained")
	}
	if _, err := p.Address(w.t.Context(), "nowhere", address); err == nil {
		w.t.Error("a pool that does not exist is explained")
	}
}

func TestEngineExplainsAddressesRepliesAndMessages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, _ := operators(t)
		defer w.end()
		var d mta.Destination
		w.admin("GET", "/v1/explain?address=somebody@b.example", "", 200, &d)
		if d.Provider != "gmail" || d.TLS != "required" || len(d.Hosts) != 1 || len(d.Sources) != 1 {
			t.Fatalf("got %+v", d)
		}
		x := d.Sources[0]
		limits := map[string]string{}
		for _, s := range x.Settings {
			limits[s.Key] = s.Value
			if s.Origin.Line == 0 || s.Origin.File == "" || s.Origin.Basis == "" {
				t.Errorf("%s = %s comes from nowhere: %+v", s.Key, s.Value, s.Origin)
			}
		}
		if limits["tls"] != "required" || !x.Connect.OK || !x.Send.OK || x.MaxRateBy == nil {
			t.Errorf("limits %v, connect %+v, send %+v, rate by %v", limits, x.Connect, x.Send, x.MaxRateBy)
		}
		var r struct {
			Category string
			Shaping  struct{ Provider, Rule, Scope, Action string }
		}
		w.admin("GET", "/v1/explain?mx=aspmx.l.google.com&reply=421+4.7.28+Gmail+has+detected+an+unusual+rate+of+mail+originating+from+your+IP+address", "", 200, &r)
		if r.Shaping.Provider != "gmail" || r.Shaping.Scope != "source" || r.Shaping.Action != "recover" || r.Category == "" {
			t.Errorf("reply: %+v", r)
		}
		w.sameWithoutEngine("somebody@b.example", &d)
		w.admin("POST", "/v1/suspensions?apply=true", `{"provider":"gmail"}`, 201, nil)
		w.send("acme", "b.example", 1)
		var list struct {
			Events []struct {
				ID string `json:"message_id"`
			}
		}
		_, _, text := w.request("", apiAddr, "GET", "/v1/events?type=message.accepted", nil, nil)
		if err := json.Unmarshal(text, &list); err != nil || len(list.Events) != 1 {
			t.Fatalf("events: %v %s", err, text)
		}
		var m struct {
			Recipients []struct{ State, Holding string }
		}
		w.admin("GET", "/v1/explain?message="+list.Events[0].ID, "", 200, &m)
		if len(m.Recipients) != 1 || m.Recipients[0].Holding != "suspension of provider gmail until it is resumed: suspended by loopback" {
			t.Errorf("message: %+v, want it held by the suspension", m)
		}
		w.admin("GET", "/v1/explain?address=somebody@b.example", "", 200, &d)
		if d.Sources[0].Send.OK || d.Sources[0].Send.Limit != "suspended" {
			t.Errorf("suspended, and a message now: %+v", d.Sources[0].Send)
		}
		w.admin("GET", "/v1/explain", "", 422, nil)
		w.admin("GET", "/v1/explain?message=x", "", 422, nil)
		w.admin("GET", "/v1/explain?reply=x", "", 422, nil)
		w.admin("GET", "/v1/explain?address=a@b..c", "", 422, nil)
	})
}
