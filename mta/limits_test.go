package mta_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/throttle"
)

// observer stands at the hosts and counts what they see, knowing nothing but
// the limits.
type observer struct {
	t      *testing.T
	counts map[string]int64
	rates  map[string][]throttle.Rate

	mu      sync.Mutex // protects everything below
	open    map[string]int64
	peak    map[string]int64
	times   map[string][]time.Time
	failure string
}

func newObserver(t *testing.T) *observer {
	return &observer{
		t: t, counts: map[string]int64{}, rates: map[string][]throttle.Rate{},
		open: map[string]int64{}, peak: map[string]int64{}, times: map[string][]time.Time{},
	}
}

func (o *observer) fail(format string, args ...any) {
	if o.failure == "" {
		o.failure = time.Now().UTC().Format(time.TimeOnly) + " " + fmt.Sprintf(format, args...)
	}
}

// enter counts one more of what a limit of this key counts. REQUIRES: o.mu.
func (o *observer) enter(key, what string) {
	k := key + " " + what
	o.open[k]++
	o.peak[k] = max(o.peak[k], o.open[k])
	if limit, ok := o.counts[key]; ok && o.open[k] > limit {
		o.fail("%s: %d at once, limit %d", k, o.open[k], limit)
	}
}

// leave is the reverse of enter. REQUIRES: o.mu.
func (o *observer) leave(key, what string) { o.open[key+" "+what]-- }

// passed notes n of what a rate of this key counts, and checks every window that
// ends now. REQUIRES: o.mu.
func (o *observer) passed(key, what string, n int) {
	rates := o.rates[key]
	if len(rates) == 0 {
		return
	}
	k, now := key+" "+what, time.Now()
	times := o.times[k]
	for range n {
		times = append(times, now)
	}
	o.times[k] = times
	for _, r := range rates {
		first, _ := slices.BinarySearchFunc(times, r.Per, func(at time.Time, per time.Duration) int {
			if now.Sub(at) >= per {
				return -1
			}
			return 1
		})
		if got := int64(len(times) - first); got > r.N+r.Burst-1 {
			o.fail("%s: %d within %v, limit %v", k, got, r.Per, r)
		}
	}
}

// sender is what the local part and the domain of MAIL FROM say in these tests:
// "tenant.campaign.site.recipientdomain@senderdomain".
type sender struct{ tenant, campaign, site, domain string }

func readSender(from string) sender {
	local, domain, _ := strings.Cut(from, "@")
	p := strings.Split(local, ".")
	return sender{tenant: p[0], campaign: p[1], site: p[2], domain: domain}
}

func (o *observer) connected(source, site, addr string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if site != "" {
		o.enter("connections", source+" "+site)
		o.passed("connection_rate", source+" "+site, 1)
	}
	o.enter("source_connections", source)
	o.enter("provider_connections", "")
	o.enter("mx_connections", addr)
	o.enter("max_connections", "")
	o.passed("source_connection_rate", source, 1)
	o.passed("provider_connection_rate", "", 1)
}

func (o *observer) disconnected(source, site, addr string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if site != "" {
		o.leave("connections", source+" "+site)
	}
	o.leave("source_connections", source)
	o.leave("provider_connections", "")
	o.leave("mx_connections", addr)
	o.leave("max_connections", "")
}

// began counts one transaction.
func (o *observer) began(source, from string) (over func()) {
	s := readSender(from)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.passed("rate", source+" "+s.site, 1)
	o.passed("source_rate", source, 1)
	o.passed("provider_rate", "", 1)
	o.passed("tenant_rate", s.tenant, 1)
	o.passed("campaign_rate", s.tenant+"/"+s.campaign, 1)
	o.passed("sender_domain_rate", s.domain, 1)
	o.enter("tenant_concurrency", s.tenant)
	o.enter("campaign_concurrency", s.tenant+"/"+s.campaign)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.leave("tenant_concurrency", s.tenant)
		o.leave("campaign_concurrency", s.tenant+"/"+s.campaign)
	}
}

var (
	countKeys = []string{"connections", "source_connections", "provider_connections", "mx_connections", "tenant_concurrency", "campaign_concurrency", "messages_per_connection", "recipients"}
	rateKeys  = []string{
		"connection_rate", "source_connection_rate", "provider_connection_rate", "rate", "source_rate",
		"provider_rate", "tenant_rate", "campaign_rate", "sender_domain_rate",
	}
)

// sites are two MX sets of one provider that share an address.
const limitsZone = `
a0.example. MX 10 mx1.p.example.
a1.example. MX 10 mx1.p.example.
b0.example. MX 10 mx2.p.example.
b1.example. MX 10 mx2.p.example.
mx1.p.example. A 192.0.2.1
mx1.p.example. A 192.0.2.2
mx2.p.example. A 192.0.2.2
mx2.p.example. A 192.0.2.3
`

// stormReplies are what hosts say out of the blue, with rules about them.
var stormReplies = []string{"451 hold source", "451 hold sender", "421 slow down", "451 fewer", "421 hold source now", "451 4.3.0 later"}

const stormRules = `
[[provider.p.rule]]
name = "hold-source"
text = "hold source"
scope = "source"
action = "recover"
for = "10m"
[[provider.p.rule]]
name = "hold-sender"
text = "hold sender"
scope = "sender-domain"
action = "recover"
for = "10m"
[[provider.p.rule]]
name = "slow"
text = "slow down"
scope = "source"
action = "backoff"
[[provider.p.rule]]
name = "fewer"
text = "fewer"
scope = "source"
action = "connections"
connections = 1
for = "1m"
`

// randomLimits writes rules at random and tells the observer of them.
func randomLimits(rng *rand.Rand, o *observer) string {
	var doc strings.Builder
	doc.WriteString("[provider.p]\nmx_suffix = [\".p.example\"]\n")
	for _, k := range countKeys {
		if rng.IntN(2) == 0 {
			o.counts[k] = 1 + rng.Int64N(8)
			fmt.Fprintf(&doc, "%s = %d\n", k, o.counts[k])
		}
	}
	for _, k := range rateKeys {
		if rng.IntN(3) > 0 {
			continue
		}
		var list []string
		for range 1 + rng.IntN(2) {
			per := []time.Duration{time.Second, time.Minute, 300 * time.Millisecond, 7 * time.Second}[rng.IntN(4)]
			num := 1 + rng.Int64N(int64(max(per/(10*time.Millisecond), 2)))
			r, err := throttle.NewRate(num, per, 1+rng.Int64N(min(num, 5)))
			if err != nil {
				o.t.Fatal(err)
			}
			list = append(list, fmt.Sprintf("%q", r))
			o.rates[k] = append(o.rates[k], r)
		}
		fmt.Fprintf(&doc, "%s = [%s]\n", k, strings.Join(list, ", "))
	}
	return doc.String()
}

// TestNoLimitIsExceededAtTheHosts runs the whole of delivery under random rules,
// sources, pools and replies, and lets the hosts count.
func TestNoLimitIsExceededAtTheHosts(t *testing.T) {
	t.Parallel()
	seeds := 12
	if v := os.Getenv("TRADEWIND_LIMIT_SEEDS"); v != "" {
		seeds, _ = strconv.Atoi(v)
	}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { checkLimits(t, seed) })
		})
	}
}

func checkLimits(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 5))
	o := newObserver(t)
	doc := randomLimits(rng, o)
	if seed%4 < 2 { // in half of those with and of those without a storm
		doc += "pipeline_messages = true\n"
	}
	storm := seed%2 == 1
	if storm {
		doc += stormRules
	}
	set := sources(3)
	set.Config = mta.DefaultConfig()
	set.Config.IdleConnection = 2 * time.Second
	if rng.IntN(2) == 0 {
		set.Config.MaxConnections = 1 + rng.IntN(10)
		o.counts["max_connections"] = int64(set.Config.MaxConnections)
	}
	set.Pools = append(set.Pools, mta.Pool{Name: "b", Sources: []mta.PoolMember{{Source: "ip1", Weight: 1}, {Source: "ip2", Weight: 3}}})
	w := newWorld(t, worldConfig{shaping: doc, zone: limitsZone, settings: set})
	defer w.end()
	watchHosts(w, o, rng, storm)
	var list []mail
	for range 600 {
		site, tenant, campaign := "ab"[rng.IntN(2)], rng.IntN(3), rng.IntN(2)
		m := mail{
			from:   fmt.Sprintf("t%d.c%d.%c@s%d.example", tenant, campaign, site, rng.IntN(3)),
			tenant: fmt.Sprintf("t%d", tenant), campaign: fmt.Sprintf("c%d", campaign),
			pool: []string{"", "b"}[rng.IntN(2)], class: message.Class(rng.IntN(2)),
		}
		for i := range 1 + rng.IntN(3) {
			m.to = append(m.to, fmt.Sprintf("r%d@%c%d.example", i, site, rng.IntN(2)))
		}
		list = append(list, m)
	}
	w.accept(list...)
	for range 60 { // the rest is waiting; a breach shows soon
		time.Sleep(time.Minute)
		if o.failed() != "" {
			break
		}
	}
	if f := o.failed(); f != "" {
		t.Errorf("%s\nunder:\n%s", f, doc)
	}
	if n := w.count(message.EventDelivered); n < 20 {
		t.Errorf("only %d recipients were delivered: the test tests less than it says; counts %v, %+v, sites %+v; under:\n%s", n, w.counts, w.queue.Stats(), w.mta.Sites(9), doc)
	}
}

func (o *observer) failed() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failure
}

// watchHosts puts hosts at the addresses of limitsZone.
func watchHosts(w *world, o *observer, rng *rand.Rand, storm bool) {
	// Connections to the shared address may be of either site: they are counted
	// for all but that.
	site := map[string]string{"192.0.2.1": "a", "192.0.2.2": "", "192.0.2.3": "b"}
	w.opened = func(source, addr string) { o.connected(source, site[addr], addr) }
	w.closed = func(source, addr string) { o.disconnected(source, site[addr], addr) }
	w.goodbye = time.Duration(rng.IntN(200)) * time.Millisecond
	w.mailed = func(source string, n int) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if limit, ok := o.counts["messages_per_connection"]; ok && int64(n) > limit {
			o.fail("%d messages on a connection of %s, limit %d", n, source, limit)
		}
	}
	var mu sync.Mutex // for rng
	for _, addr := range slices.Sorted(maps.Keys(site)) {
		w.host(addr, loadgen.SinkConfig{
			Latency: time.Duration(rng.IntN(40)) * time.Millisecond,
			OnMail: func(client, from string) (string, func()) {
				over := o.began(client, from)
				mu.Lock()
				defer mu.Unlock()
				if storm && rng.IntN(40) == 0 {
					over()
					return stormReplies[rng.IntN(len(stormReplies))], nil
				}
				return "", over
			},
			OnMessage: func(m *loadgen.Received) {
				o.mu.Lock()
				defer o.mu.Unlock()
				if limit, ok := o.counts["recipients"]; ok && int64(len(m.To)) > limit {
					o.fail("%d recipients in one transaction, limit %d", len(m.To), limit)
				}
			},
		})
	}
}
