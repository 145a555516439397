package mta_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// TestStrictestTLSPolicyHolds combines what [delivery] or a route, a provider, a
// domain and a source ask for.
func TestStrictestTLSPolicyHolds(t *testing.T) {
	t.Parallel()
	const provider = "[provider.p]\nmx_suffix = [\".p.example\"]\n"
	for _, c := range []struct {
		name, delivery, route, rules string
		offered                      bool
		want                         string // tls, clear or deferred
	}{
		{"nothing asked, offered", "opportunistic", "", provider, true, "tls"},
		{"nothing asked, not offered", "opportunistic", "", provider, false, "clear"},
		{"provider requires", "opportunistic", "", provider + `tls = "required"`, false, "deferred"},
		{"provider requires, offered", "opportunistic", "", provider + `tls = "required"`, true, "tls"},
		{"provider asks for less than delivery", "required", "", provider + `tls = "opportunistic"`, false, "deferred"},
		{"off against required", "off", "", provider + `tls = "required"`, false, "deferred"},
		{"provider knows it does not work", "opportunistic", "", provider + `tls = "off"`, true, "clear"},
		{"delivery off stays off", "off", "", provider + `tls = "opportunistic"`, true, "clear"},
		{"domain requires", "opportunistic", "", provider + "[domain.\"a0.example\"]\ntls = \"required\"", false, "deferred"},
		{"other domain requires", "opportunistic", "", provider + "[domain.\"a1.example\"]\ntls = \"required\"", false, "clear"},
		{"source requires", "opportunistic", "", provider + "[source.ip1]\ntls = \"required\"", false, "deferred"},
		{"certificate of somebody else", "opportunistic", "", provider + `tls = "verify"`, true, "deferred"},
		{"route off, rules for everybody", "opportunistic", "off", "[default]\ntls = \"opportunistic\"", true, "clear"},
		{"route off, rules require", "opportunistic", "off", "[default]\ntls = \"required\"", false, "deferred"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				set := sources(1)
				set.Config = mta.DefaultConfig()
				set.Config.TLS = c.delivery
				if c.route != "" {
					set.Routes = []mta.Route{{Domains: []string{"*"}, NextHops: []string{"192.0.2.1"}, TLS: c.route}}
				}
				w := newWorld(t, worldConfig{shaping: c.rules, zone: limitsZone, settings: set})
				defer w.end()
				var mu sync.Mutex
				got := "deferred"
				for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
					w.host(addr, loadgen.SinkConfig{TLS: c.offered, OnMessage: func(m *loadgen.Received) {
						mu.Lock()
						defer mu.Unlock()
						got = map[bool]string{true: "tls", false: "clear"}[m.TLS]
					}})
				}
				w.accept(mail{from: "a@s0.example", tenant: "t0", to: []string{"r@a0.example"}})
				time.Sleep(time.Minute)
				mu.Lock()
				defer mu.Unlock()
				if got != c.want {
					t.Errorf("got %s, want %s", got, c.want)
				}
			})
		})
	}
}

func TestConnectionIsNotSharedWithADomainThatAsksForMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, worldConfig{
			shaping: "[provider.p]\nmx_suffix = [\".p.example\"]\n[domain.\"a1.example\"]\ntls = \"required\"\n",
			zone:    limitsZone, settings: sources(1),
		})
		defer w.end()
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			w.host(addr, loadgen.SinkConfig{})
		}
		w.accept(mail{from: "a@s0.example", tenant: "t0", to: []string{"r@a0.example"}})
		time.Sleep(time.Second)
		w.accept(mail{from: "a@s0.example", tenant: "t0", to: []string{"r@a1.example"}})
		time.Sleep(time.Second) // the first connection lies idle in the pool
		if n, d := w.count(message.EventDelivered), w.count(message.EventDeferred); n != 1 || d != 1 {
			t.Errorf("%d delivered and %d deferred, want 1 and 1", n, d)
		}
	})
}

// TestAddressFamilyFollowsRulesAndSource looks at what is dialled.
func TestAddressFamilyFollowsRulesAndSource(t *testing.T) {
	t.Parallel()
	const zone = `
both.example. MX 10 mx.both.example.
mx.both.example. AAAA 2001:db8::1
mx.both.example. A 192.0.2.1
six.example. MX 10 mx.six.example.
mx.six.example. AAAA 2001:db8::2
`
	for _, c := range []struct {
		name, rules, source, domain string
		dialled                     string
		text                        string
	}{
		{"both allowed", "", "", "six.example", "2001:db8::2", ""},
		{"no IPv6 by rule", "[default]\nipv6 = false\n", "", "both.example", "192.0.2.1", ""},
		{"no IPv6 for a domain", "[domain.\"both.example\"]\nipv6 = false\n", "", "both.example", "192.0.2.1", ""},
		{"only IPv6, and a rule against it", "[default]\nipv6 = false\n", "", "six.example", "", "rule IPv6 out"},
		{"source of the other family", "", "198.51.100.1", "six.example", "", "family of source ip1"},
		{"source of one family", "", "198.51.100.1", "both.example", "192.0.2.1", ""},
		{"source of the other one", "", "2001:db8::99", "both.example", "2001:db8::1", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				set := mta.Settings{
					Sources: []mta.Source{{Name: "ip1", Address: c.source}},
					Pools:   []mta.Pool{{Name: mta.DefaultPool, Sources: []mta.PoolMember{{Source: "ip1", Weight: 1}}}},
				}
				w := newWorld(t, worldConfig{shaping: c.rules, zone: zone, settings: set, keep: true})
				defer w.end()
				for _, addr := range []string{"192.0.2.1", "2001:db8::1", "2001:db8::2"} {
					w.host(addr, loadgen.SinkConfig{})
				}
				w.accept(mail{from: "a@s0.example", tenant: "t0", to: []string{"r@" + c.domain}})
				time.Sleep(time.Second)
				w.mu.Lock()
				defer w.mu.Unlock()
				if got := strings.Join(w.dials, " "); got != c.dialled {
					t.Errorf("dialled %q, want %q", got, c.dialled)
				}
				last := w.events[len(w.events)-1]
				if c.text != "" && (last.Reply == nil || !strings.Contains(last.Reply.Text, c.text)) {
					t.Errorf("the last event says %v, want %q", last.Reply, c.text)
				}
			})
		})
	}
}

// TestHeldSenderLeavesTheOthersAtFullSpeed puts mail of two sender domains into
// one queue; the provider defers one of them.
func TestHeldSenderLeavesTheOthersAtFullSpeed(t *testing.T) {
	t.Parallel()
	for scope, text := range map[string]string{"sender-domain": "451 hold sender", "dkim-domain": "451 hold signer"} {
		t.Run(scope, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rules := fmt.Sprintf("[provider.p]\nmx_suffix = [\".p.example\"]\nrate = \"20/s\"\n[[provider.p.rule]]\nname = \"x\"\ntext = %q\nscope = %q\naction = \"recover\"\nfor = \"10m\"\n", text[4:], scope)
				w := newWorld(t, worldConfig{shaping: rules, zone: limitsZone, settings: sources(1)})
				defer w.end()
				var mu sync.Mutex
				held := true
				attempts := map[string]int{}
				for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
					w.host(addr, loadgen.SinkConfig{OnMail: func(_, from string) (string, func()) {
						_, domain, _ := strings.Cut(from, "@")
						mu.Lock()
						defer mu.Unlock()
						attempts[domain]++
						if held && domain == "bad.example" {
							return text, nil
						}
						return "", nil
					}})
				}
				var list []mail
				for i := range 400 {
					d := []string{"bad.example", "good.example"}[i%2]
					list = append(list, mail{from: "a@" + d, sign: d, tenant: "t0", to: []string{fmt.Sprintf("r%d@a0.example", i)}})
				}
				w.accept(list...)
				time.Sleep(15 * time.Second) // 200 at 20/s, and a second for the others
				mu.Lock()
				if attempts["good.example"] != 200 || attempts["bad.example"] > 3 {
					t.Errorf("attempts after 15s: %v, want 200 of good.example and next to none of bad.example", attempts)
				}
				held = false
				mu.Unlock()
				time.Sleep(9 * time.Minute)
				mu.Lock()
				if attempts["bad.example"] > 3 {
					t.Errorf("%d attempts during the hold", attempts["bad.example"])
				}
				mu.Unlock()
				time.Sleep(3 * time.Hour)
				if n := w.count(message.EventDelivered); n != len(list) {
					t.Errorf("%d of %d delivered in the end", n, len(list))
				}
			})
		})
	}
}
