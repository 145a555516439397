package mta_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/throttle"
)

// backlog is mail for the sites of limitsZone, of one tenant and campaign.
func backlog(n int) []mail {
	list := make([]mail, n)
	for i := range list {
		site := "ab"[i%2]
		list[i] = mail{
			from: fmt.Sprintf("t0.c0.%c@s0.example", site), tenant: "t0", campaign: "c0",
			to: []string{fmt.Sprintf("r%d@%c%d.example", i, site, i/2%2)},
		}
	}
	return list
}

// TestEveryRateIsUsedInFullAndNoMore puts one rate at a time in force while mail
// waits: within a minute all but one per cent of it is sent, and nowhere is it
// exceeded.
func TestEveryRateIsUsedInFullAndNoMore(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key   string
		rates string
		times float64 // how many counters of this kind there are
	}{
		{"rate", "40/s", 4}, // two sources toward two sites
		{"source_rate", "3000/min", 2},
		{"provider_rate", "70/s burst 10", 1},
		{"provider_rate", "7/300ms burst 3", 1},
		{"tenant_rate", "2000/min burst 5", 1},
		{"campaign_rate", "25/s", 1},
		{"sender_domain_rate", "1200/min", 1},
	} {
		t.Run(c.key+" "+c.rates, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rate, err := throttle.ParseRate(c.rates)
				if err != nil {
					t.Fatal(err)
				}
				o := newObserver(t)
				o.rates[c.key] = []throttle.Rate{rate}
				w := newWorld(t, worldConfig{
					shaping: fmt.Sprintf("[provider.p]\nmx_suffix = [\".p.example\"]\n%s = %q\n", c.key, c.rates),
					zone:    limitsZone, settings: sources(2),
				})
				defer w.end()
				for _, addr := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
					w.host(addr, loadgen.SinkConfig{
						Latency: 20 * time.Millisecond,
						OnMail:  func(client, from string) (string, func()) { return "", o.began(client, from) },
					})
				}
				perMinute := rate.PerSecond() * 60 * c.times
				w.accept(backlog(int(perMinute*1.3) + 100)...)
				time.Sleep(10 * time.Second)
				before := w.count(message.EventDelivered)
				time.Sleep(time.Minute)
				got := float64(w.count(message.EventDelivered) - before)
				if got < 0.99*perMinute || got > 1.01*perMinute {
					t.Errorf("%.0f messages in a minute, want %.0f", got, perMinute)
				}
				if f := o.failed(); f != "" {
					t.Error(f)
				}
			})
		})
	}
}

// TestEveryConnectionLimitIsUsed puts one limit of connections at a time in
// force while mail waits, and averages what is open over half a minute.
func TestEveryConnectionLimitIsUsed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key   string
		limit int
		times int // how many counters of this kind there are
	}{
		{"connections", 3, 4},
		{"source_connections", 5, 2},
		{"provider_connections", 7, 1},
		{"mx_connections", 4, 3},
		{"max_connections", 9, 1},
		{"tenant_concurrency", 6, 1},
		{"campaign_concurrency", 4, 1},
	} {
		if brief() && c.key != "connections" && c.key != "tenant_concurrency" {
			continue // the others are counted by the same code
		}
		t.Run(c.key, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				set := sources(2)
				doc := "[provider.p]\nmx_suffix = [\".p.example\"]\n"
				set.Config = mta.DefaultConfig()
				set.Config.IdleConnection = 5 * time.Second
				if c.key == "max_connections" {
					set.Config.MaxConnections = c.limit
				} else {
					doc += fmt.Sprintf("%s = %d\n", c.key, c.limit)
				}
				o := newObserver(t)
				o.counts[c.key] = int64(c.limit)
				w := newWorld(t, worldConfig{shaping: doc, zone: limitsZone, settings: set})
				defer w.end()
				usage := &usage{last: time.Now()}
				var mu sync.Mutex
				site := map[string]string{"192.0.2.1": "a", "192.0.2.2": "", "192.0.2.3": "b"}
				count := func(n int) { mu.Lock(); defer mu.Unlock(); usage.add(n) }
				transactions := strings.HasSuffix(c.key, "_concurrency")
				w.opened = func(source, addr string) {
					o.connected(source, site[addr], addr)
					if !transactions {
						count(1)
					}
				}
				w.closed = func(source, addr string) {
					o.disconnected(source, site[addr], addr)
					if !transactions {
						count(-1)
					}
				}
				for _, addr := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
					w.host(addr, loadgen.SinkConfig{
						Latency: 50 * time.Millisecond,
						OnMail: func(client, from string) (string, func()) {
							over := o.began(client, from)
							if !transactions {
								return "", over
							}
							count(1)
							return "", func() { over(); count(-1) }
						},
					})
				}
				w.accept(backlog(9000)...)
				time.Sleep(20 * time.Second)
				mu.Lock()
				usage.start()
				mu.Unlock()
				time.Sleep(30 * time.Second)
				mu.Lock()
				got := usage.mean()
				mu.Unlock()
				if w.queue.Stats().Waiting == 0 {
					t.Fatal("nothing waits any more: the test tests less than it says")
				}
				want := float64(c.limit * c.times)
				if transactions {
					want /= 2 // the host is done before its last reply is on its way
				}
				if least := 0.95 * want; got < least {
					t.Errorf("%.2f in use on average, want at least %.2f of %.0f", got, least, want)
				}
				if f := o.failed(); f != "" {
					t.Error(f)
				}
			})
		})
	}
}

// usage averages a count over time.
type usage struct {
	n     int
	last  time.Time
	began time.Time
	area  float64
}

func (u *usage) add(n int) {
	u.settle()
	u.n += n
}

func (u *usage) settle() {
	now := time.Now()
	u.area += float64(u.n) * now.Sub(u.last).Seconds()
	u.last = now
}

func (u *usage) start() {
	u.settle()
	u.area, u.began = 0, u.last
}

func (u *usage) mean() float64 {
	u.settle()
	return u.area / u.last.Sub(u.began).Seconds()
}

// TestWaitingForAPermitIsNotAsking lets mail wait for slots that stay taken: the
// limits are asked once for each thing that happens, not over and over.
func TestWaitingForAPermitIsNotAsking(t *testing.T) {
	t.Parallel()
	for name, rules := range map[string]string{
		"connections":          "connections = 1\n",
		"all sources":          "provider_connections = 1\n",
		"address":              "mx_connections = 1\n",
		"tenant concurrency":   "tenant_concurrency = 1\n",
		"campaign concurrency": "campaign_concurrency = 1\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, worldConfig{
					shaping: "[provider.p]\nmx_suffix = [\".p.example\"]\n" + rules,
					zone:    limitsZone, settings: sources(3),
				})
				defer w.end()
				for _, addr := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
					w.host(addr, loadgen.SinkConfig{Latency: 10 * time.Second})
				}
				w.accept(backlog(500)...)
				time.Sleep(10 * time.Minute)
				done := float64(w.count(message.EventDelivered))
				refused := w.metric("tradewind_throttle_refusals_total")
				if done == 0 || refused > 12*done+20 {
					t.Errorf("%.0f permits were refused for %.0f deliveries", refused, done)
				}
			})
		})
	}
}

// TestSuspendedMailIsNotAskedForAndGoesOnWhenResumed suspends by each kind of
// selector: nothing of it is sent, nothing polls, all else goes on, and it goes
// out at once when it is resumed or the time is over.
func TestSuspendedMailIsNotAskedForAndGoesOnWhenResumed(t *testing.T) {
	t.Parallel()
	for name, sel := range map[string]throttle.Selector{
		"domain":          {Domain: "a0.example"},
		"provider":        {Provider: "p"},
		"tenant":          {Tenant: "t0"},
		"campaign":        {Tenant: "t0", Campaign: "c0"},
		"source":          {Source: "ip1"},
		"source, tenant":  {Source: "ip1", Tenant: "t0"},
		"domain, sources": {Domain: "a0.example", Source: "ip2"},
	} {
		for _, timed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s timed=%t", name, timed), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { checkSuspension(t, sel, timed) })
			})
		}
	}
}

func checkSuspension(t *testing.T, sel throttle.Selector, timed bool) {
	w := newWorld(t, worldConfig{
		shaping: "[provider.p]\nmx_suffix = [\".p.example\"]\n", zone: limitsZone, settings: sources(2),
	})
	defer w.end()
	var mu sync.Mutex
	var wrong int
	suspended := true
	for _, addr := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
		w.host(addr, loadgen.SinkConfig{OnMessage: func(m *loadgen.Received) {
			s := readSender(m.From)
			mu.Lock()
			defer mu.Unlock()
			mail := throttle.Selector{Provider: "p", Tenant: s.tenant, Campaign: s.campaign, Source: m.Client, Domain: message.MustAddress(m.To[0]).Domain()}
			if suspended && covers(sel, mail) {
				wrong++
			}
		}})
	}
	var until time.Time
	if timed {
		until = time.Now().Add(time.Hour)
	}
	w.eng.Suspend(sel, until, "test")
	w.mta.SuspensionsChanged()
	list := backlog(60)
	for i := range list {
		if i%3 == 0 {
			list[i].tenant = "t1"
			list[i].from = "t1" + list[i].from[2:]
		}
	}
	w.accept(list...)
	time.Sleep(50 * time.Minute)
	held := 0
	for _, m := range list {
		mail := throttle.Selector{Provider: "p", Tenant: m.tenant, Campaign: m.campaign, Domain: message.MustAddress(m.to[0]).Domain(), Source: sel.Source}
		if covers(sel, mail) && sel.Source == "" {
			held++
		}
	}
	if got := w.count(message.EventDelivered); got != len(list)-held {
		t.Errorf("%d of %d delivered while suspended, want %d", got, len(list), len(list)-held)
	}
	if n := w.metric("tradewind_throttle_refusals_total"); n > 20 {
		t.Errorf("%.0f permits were asked for in vain", n)
	}
	mu.Lock()
	suspended = false
	mu.Unlock()
	if timed {
		time.Sleep(11 * time.Minute)
		w.mta.SuspensionsChanged() // as the engine does at that time
		time.Sleep(time.Second)
	} else {
		w.eng.Resume(sel)
		w.mta.SuspensionsChanged()
		time.Sleep(time.Second)
	}
	if got := w.count(message.EventDelivered); got != len(list) {
		t.Errorf("%d of %d delivered after all", got, len(list))
	}
	if wrong > 0 {
		t.Errorf("%d messages went although suspended", wrong)
	}
}

// covers reports whether a selector names mail.
func covers(sel, mail throttle.Selector) bool {
	fits := func(want, have string) bool { return want == "" || want == have }
	return fits(sel.Domain, mail.Domain) && fits(sel.Provider, mail.Provider) && fits(sel.Tenant, mail.Tenant) &&
		fits(sel.Campaign, mail.Campaign) && fits(sel.Source, mail.Source)
}

// TestOpenConnectionsGoOnWhenNoMoreMayBeOpened keeps a lane at two connections in
// several ways. None of them is about the two that are open: they carry as much
// as with a plain limit of two.
func TestOpenConnectionsGoOnWhenNoMoreMayBeOpened(t *testing.T) {
	t.Parallel()
	const refused = "421 4.7.0 we would like fewer"
	delivered := func(t *testing.T, rules string, limits loadgen.Limits) (n int) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, worldConfig{
				shaping: "[provider.p]\nmx_suffix = [\".p.example\"]\n" + rules, settings: sources(1),
				zone: "d.example. MX 10 mx.p.example.\nmx.p.example. A 192.0.2.9\n",
			})
			defer w.end()
			var told atomic.Bool
			w.host("192.0.2.9", loadgen.SinkConfig{
				Latency: 50 * time.Millisecond, Limits: limits,
				OnMail: func(string, string) (string, func()) {
					if strings.Contains(rules, "fewer") && w.count(message.EventDelivered) > 100 && !told.Swap(true) {
						return refused, nil
					}
					return "", nil
				},
			})
			list := make([]mail, 5000)
			for i := range list {
				list[i] = mail{from: "t0.c0.b@s0.example", tenant: "t0", campaign: "c0", to: []string{fmt.Sprintf("r%d@d.example", i)}}
			}
			w.accept(list...)
			time.Sleep(20 * time.Second)
			before := w.count(message.EventDelivered)
			time.Sleep(2 * time.Minute)
			n = w.count(message.EventDelivered) - before
			if w.queue.Stats().Waiting == 0 {
				t.Error("nothing waits any more: the test tests less than it says")
			}
		})
		return n
	}
	want := delivered(t, "connections = 2\n", loadgen.Limits{})
	for _, c := range []struct {
		name, rules string
		limits      loadgen.Limits
	}{
		{"connection rate", "connection_rate = \"2/hour burst 2\"\n", loadgen.Limits{}},
		{"host", "", loadgen.Limits{Connections: 2}},
		{"hold", `
connections = 10
[[provider.p.rule]]
name = "fewer"
code = [421]
pattern = 'would like fewer'
scope = "source"
action = "connections"
connections = 2
for = "1h"
basis = "guess 2026-11-26"
match = ["` + refused + `"]
not = ["421 4.7.0 later"]
`, loadgen.Limits{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := delivered(t, c.rules, c.limits); got < want*98/100 {
				t.Errorf("%d delivered in two minutes, %d with a plain limit", got, want)
			}
		})
	}
}

// TestFreeSlotIsOfferedToOneOfManyDestinations lets three hundred destinations
// wait for three connections: those that are closed wake whoever is next, and
// not everybody.
func TestFreeSlotIsOfferedToOneOfManyDestinations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const sites = 300
		var zone strings.Builder
		var list []mail
		for i := range 3 * sites {
			if i < sites {
				fmt.Fprintf(&zone, "d%d.example. MX 10 mx.d%d.example.\nmx.d%d.example. A 192.0.2.1\n", i, i, i)
			}
			list = append(list, mail{from: "a@s.example", tenant: "t", to: []string{fmt.Sprintf("r@d%d.example", i%sites)}})
		}
		set := sources(1)
		set.Config = mta.DefaultConfig()
		set.Config.MaxConnections = 3
		w := newWorld(t, worldConfig{zone: zone.String(), settings: set})
		defer w.end()
		w.host("192.0.2.1", loadgen.SinkConfig{Latency: time.Second})
		w.accept(list...)
		time.Sleep(time.Hour)
		if got := w.count(message.EventDelivered); got != len(list) {
			t.Errorf("%d of %d delivered", got, len(list))
		}
		if held := w.metric("tradewind_delivery_held_total"); held > float64(3*len(list)) {
			t.Errorf("%.0f permits were refused for %d deliveries", held, len(list))
		}
	})
}

// TestWordsOnAUsedConnectionCount hangs up with 421 on connections that have
// carried mail: where the rules know the words they are in force, and otherwise
// the message goes out on another connection at once.
func TestWordsOnAUsedConnectionCount(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reply    string
		deferred int
	}{
		"known":   {"421 4.7.0 you are sending too fast", 1},
		"unknown": {"421 4.3.0 some other time", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, worldConfig{
					shaping: `
[default]
connections = 1
[[default.rule]]
name = "fast"
text = "too fast"
scope = "source"
action = "suspend"
for = "1h"
`, zone: "d.example. MX 10 mx.d.example.\nmx.d.example. A 192.0.2.1\n", settings: sources(1),
				})
				defer w.end()
				var mails atomic.Int64
				w.host("192.0.2.1", loadgen.SinkConfig{OnMail: func(string, string) (string, func()) {
					if mails.Add(1) == 3 {
						return c.reply, nil
					}
					return "", nil
				}})
				list := make([]mail, 10)
				for i := range list {
					list[i] = mail{from: "a@s.example", tenant: "t", to: []string{fmt.Sprintf("r%d@d.example", i)}}
				}
				w.accept(list...)
				time.Sleep(30 * time.Minute)
				want := len(list)
				if c.deferred > 0 {
					want = 2 // the rest waits for the hour to pass
				}
				if got := w.count(message.EventDelivered); got != want {
					t.Errorf("%d delivered, want %d", got, want)
				}
				if got := w.count(message.EventDeferred); got != c.deferred {
					t.Errorf("%d deferred, want %d", got, c.deferred)
				}
			})
		})
	}
}

// TestMailGoesBySourcesThatMayDial has one source that may open a connection an
// hour, to a host that takes one message on each: its share goes by the other.
func TestMailGoesBySourcesThatMayDial(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, worldConfig{
			shaping:  "[default]\nmessages_per_connection = 1\n[source.ip1]\nconnection_rate = \"1/hour\"\n",
			zone:     "d.example. MX 10 mx.d.example.\nmx.d.example. A 192.0.2.1\n",
			settings: sources(2),
		})
		defer w.end()
		w.host("192.0.2.1", loadgen.SinkConfig{Latency: 20 * time.Millisecond})
		list := make([]mail, 200)
		for i := range list {
			list[i] = mail{from: "a@s.example", tenant: "t", to: []string{fmt.Sprintf("r%d@d.example", i)}}
		}
		w.accept(list...)
		time.Sleep(time.Minute)
		if got := w.count(message.EventDelivered); got != len(list) {
			t.Errorf("%d of %d delivered in a minute", got, len(list))
		}
	})
}
