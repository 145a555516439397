package throttle

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var mxAddr = netip.MustParseAddr("192.0.2.25")

// engine makes an engine under one file at the epoch.
func engine(t testing.TB, doc string) *Engine {
	t.Helper()
	return New(mustLoad(t, doc), Options{Now: func() time.Time { return epoch }})
}

func TestDomainsFollowTheirMXNotTheirName(t *testing.T) {
	t.Parallel()
	r := mustLoad(t, `
[provider.yahoo]
mx_suffix = [".yahoodns.net"]
[provider.yahoojp]
domain = ["yahoo.co.jp"]
[provider.google]
mx_suffix = [".google.com"]
mx_host = ["mx.special.example"]
[provider.special]
mx_suffix = [".special.example"]
[provider.range]
address = ["203.0.113.0/24"]
`)
	for _, c := range []struct {
		hosts  []string
		addr   string
		domain string
		want   string
	}{
		{[]string{"mx-att.mail.am0.yahoodns.net."}, "", "att.net", "yahoo"},
		{[]string{"MTA5.am0.YahooDNS.net"}, "", "cox.net", "yahoo"},
		{[]string{"mx1.mail.yahoo.co.jp"}, "", "yahoo.co.jp", "yahoojp"},
		{[]string{"aspmx.l.google.com"}, "", "yahoo.co.jp", "google"},
		{[]string{"mx.special.example"}, "", "x.example", "google"},
		{[]string{"mx2.special.example"}, "", "x.example", "special"},
		{[]string{"mx.other.example"}, "203.0.113.9", "x.example", "range"},
		{[]string{"notgoogle.com"}, "", "x.example", DefaultProvider},
	} {
		eng := New(r, Options{})
		target := Target{Source: "ip1", Site: "s", Hosts: c.hosts, Domain: c.domain}
		if c.addr != "" {
			target.Addrs = []netip.Addr{netip.MustParseAddr(c.addr)}
		}
		if got := eng.Lane(target).Provider(); got != c.want {
			t.Errorf("provider of %v %s %s = %s, want %s", c.hosts, c.addr, c.domain, got, c.want)
		}
	}
}

func TestEachLevelMayOverrideAndUnset(t *testing.T) {
	t.Parallel()
	eng := engine(t, `
[default]
connections = 10
rate = "100/s"
recipients = 50
[provider.p]
mx_suffix = [".p.example"]
connections = 5
rate = "none"
[provider.p.source.ip2]
connections = "none"
[domain."big.example"]
connections = 7
recipients = "none"
[source.ip3]
connections = 2
`)
	for _, c := range []struct {
		source, host, domain string
		key                  Key
		want, line           string
	}{
		{"ip1", "mx.p.example", "a.example", KeyConnections, "5", "test.toml:8 provider.p.connections"},
		{"ip1", "mx.p.example", "big.example", KeyConnections, "7", "test.toml:13 domain.big.example.connections"},
		{"ip2", "mx.p.example", "a.example", KeyConnections, "none", ""},
		{"ip3", "mx.p.example", "big.example", KeyConnections, "2", "test.toml:16 source.ip3.connections"},
		{"ip1", "mx.p.example", "a.example", KeyRate, "none", ""},
		{"ip1", "mx.q.example", "a.example", KeyRate, "100/s", "test.toml:4 default.rate"},
		{"ip1", "mx.q.example", "big.example", KeyRecipients, "none", ""},
	} {
		l := eng.Lane(Target{Source: c.source, Site: c.host, Hosts: []string{c.host}, Domain: c.domain})
		v := l.Limits(c.domain).Value(c.key)
		line := ""
		if v != nil {
			line = v.Origin.String()
		}
		if v.String() != c.want || line != c.line {
			t.Errorf("%s of %s via %s to %s = %s from %q, want %s from %q", c.key, c.domain, c.source, c.host, v, line, c.want, c.line)
		}
	}
}

func TestRefusalSaysWhichRuleAndWhen(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[default]\nrate = \"6/min\"\nconnections = 1\n")
	l := eng.Lane(Target{Source: "ip1", Site: "s"})
	conn := l.Connect(epoch, mxAddr)
	if !conn.OK {
		t.Fatal("first connection refused")
	}
	if g := l.Connect(epoch, mxAddr); g.OK || g.Limit != LimitConnections || !g.At.IsZero() || g.Rule.Line != 3 {
		t.Errorf("second connection: %v %v %v at %v", g.OK, g.Limit, g.Rule, g.At)
	}
	if g := l.Send(epoch, Mail{}); !g.OK {
		t.Errorf("first message refused by %v", g.Limit)
	}
	g := l.Send(epoch, Mail{})
	if g.OK || g.Limit != LimitRate || g.Rule.Line != 2 {
		t.Fatalf("second message: %v %v %v", g.OK, g.Limit, g.Rule)
	}
	if wait := g.At.Sub(epoch); wait < 9990*time.Millisecond || wait > 10010*time.Millisecond {
		t.Errorf("asked to wait %v, want 10s", wait)
	}
	if g := l.Send(g.At, Mail{}); !g.OK {
		t.Errorf("at the time given: refused by %v until %v", g.Limit, g.At)
	}
}

func TestWaitingLaneIsNotifiedOnceWhenASlotIsFree(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[provider.p]\nmx_suffix = [\".p.example\"]\nprovider_connections = 1\n")
	var calls [2]int
	var lanes [2]*Lane
	for i := range lanes {
		host := fmt.Sprintf("mx%d.p.example", i)
		lanes[i] = eng.Lane(Target{Source: "ip1", Site: host, Hosts: []string{host}})
		lanes[i].Notify(func(Freed) { calls[i]++ })
	}
	conn := lanes[0].Connect(epoch, mxAddr)
	for range 3 {
		if g := lanes[1].Connect(epoch, mxAddr); g.OK || g.Limit != LimitProviderConnections {
			t.Fatalf("second connection: %v %v", g.OK, g.Limit)
		}
	}
	conn.Release()
	conn.Release() // does nothing
	if calls != [2]int{0, 1} {
		t.Errorf("notified %v times, want 0 and 1", calls)
	}
	again := lanes[1].Connect(epoch, mxAddr)
	again.Release()
	if calls != [2]int{0, 1} {
		t.Errorf("notified %v times without waiting, want 0 and 1", calls)
	}
}

func TestEveryUserOfALaneIsNotified(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[default]\nconnections = 1\n")
	target := Target{Source: "ip1", Site: "s"}
	var calls [3]int
	var stop [3]func()
	l := eng.Lane(target)
	for i := range calls {
		stop[i] = eng.Lane(target).Notify(func(Freed) { calls[i]++ })
	}
	stop[1]()
	first := l.Connect(epoch, mxAddr)
	if g := l.Connect(epoch, mxAddr); g.OK {
		t.Fatal("two connections, want one")
	}
	first.Release()
	if calls != [3]int{1, 0, 1} {
		t.Errorf("notified %v times, want all but the one that stopped", calls)
	}
}

func TestOneAddressIsCountedOverAllSites(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[default]\nmx_connections = 2\n")
	woken := 0
	var grants []Grant
	for i := range 3 {
		l := eng.Lane(Target{Source: "ip1", Site: fmt.Sprint(i), Hosts: []string{"mx.example"}})
		l.Notify(func(Freed) { woken++ })
		g := l.Connect(epoch, mxAddr)
		if g.OK != (i < 2) {
			t.Errorf("connection %d: %v by %v", i, g.OK, g.Limit)
		}
		grants = append(grants, g)
	}
	grants[0].Release()
	if woken != 1 {
		t.Errorf("%d lanes woken, want 1", woken)
	}
}

func TestStricterDomainIsHeldToItsOwnRateAndToTheLanes(t *testing.T) {
	t.Parallel()
	eng := engine(t, `
[default]
rate = "10/s"
[domain."slow.example"]
rate = "1/s"
[domain."fast.example"]
rate = "100/s"
`)
	l := eng.Lane(Target{Source: "ip1", Site: "s", Domain: "a.example"})
	send := func(now time.Time, domain string) Grant { return l.Send(now, Mail{Domain: domain}) }
	if g := send(epoch, "slow.example"); !g.OK {
		t.Fatalf("refused by %v", g.Limit)
	}
	// The slow one has used the lane's turn, too.
	if g := send(epoch, "a.example"); g.OK || g.Limit != LimitRate {
		t.Errorf("other domain at once: %v %v", g.OK, g.Limit)
	}
	later := epoch.Add(200 * time.Millisecond)
	if g := send(later, "slow.example"); g.OK || g.Limit != LimitDomain {
		t.Errorf("slow domain after 200 ms: %v %v", g.OK, g.Limit)
	}
	if g := send(later, "a.example"); !g.OK {
		t.Errorf("other domain after 200 ms: refused by %v", g.Limit)
	}
	if g := send(later, "fast.example"); !g.OK {
		t.Errorf("fast domain: refused by %v", g.Limit)
	}
}

func TestRefusedPermitChargesNothing(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[default]\nrate = \"10/s\"\ntenant_rate = \"1/h\"\n")
	l := eng.Lane(Target{Source: "ip1", Site: "s"})
	l.Send(epoch, Mail{Tenant: "a"})
	now := epoch.Add(time.Second)
	for range 100 {
		if g := l.Send(now, Mail{Tenant: "a"}); g.OK || g.Limit != LimitTenant {
			t.Fatalf("tenant a: %v %v", g.OK, g.Limit)
		}
	}
	if g := l.Send(now, Mail{Tenant: "b"}); !g.OK {
		t.Errorf("tenant b was charged for tenant a's refusals: %v", g.Limit)
	}
}

func TestTransactionsTooLargeAreToBeSplit(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[default]\nrecipients = 20\nrecipient_rate = \"100/s burst 10\"\nmessages_per_connection = 2\ntls = \"required\"\n")
	l := eng.Lane(Target{Source: "ip1", Site: "s"})
	if got := l.MaxRecipients("d.example"); got != 10 {
		t.Errorf("MaxRecipients = %d, want 10", got)
	}
	if g := l.Send(epoch, Mail{Recipients: 11}); g.OK || g.Limit != LimitRecipients || g.Max != 10 {
		t.Errorf("11 recipients: %v %v max %d", g.OK, g.Limit, g.Max)
	}
	if g := l.Send(epoch, Mail{Recipients: 10}); !g.OK {
		t.Errorf("10 recipients: %v", g.Limit)
	}
	if g := l.Send(epoch, Mail{Recipients: 1}); g.OK || g.Limit != LimitRecipientRate {
		t.Errorf("another: %v %v", g.OK, g.Limit)
	}
	if g := l.Send(epoch, Mail{Sent: 2}); g.OK || g.Limit != LimitMessagesPerConnection {
		t.Errorf("third on a connection: %v %v", g.OK, g.Limit)
	}
	if got, o := l.TLS("d.example"); got != TLSRequired || o.Line != 5 {
		t.Errorf("TLS = %v from %v", got, o)
	}
}

// TestConcurrentConnectionsNeverExceedTheLimit lets goroutines fight for few
// slots while the rules are reloaded under them, once with the same provider
// and once with one of another name, which every lane moves to.
func TestConcurrentConnectionsNeverExceedTheLimit(t *testing.T) {
	t.Parallel()
	const limit = 5
	doc := fmt.Sprintf("[provider.p]\nmx_suffix = [\".p.example\"]\nprovider_connections = %d\ntenant_concurrency = 3\n", limit)
	for _, name := range []string{"provider.p", "provider.q"} {
		t.Run("reload to "+name, func(t *testing.T) {
			t.Parallel()
			eng := engine(t, doc)
			first := mustLoad(t, doc)
			other := mustLoad(t, strings.Replace(doc, "provider.p", name, 1)+"rate = \"1000000/s\"\n")
			var open, under, granted atomic.Int64
			var wg sync.WaitGroup
			for i := range 16 {
				host := fmt.Sprintf("mx%d.p.example", i%4)
				l := eng.Lane(Target{Source: fmt.Sprint("ip", i%3), Site: host, Hosts: []string{host}})
				wg.Go(func() {
					for range 2000 {
						g := l.Connect(epoch, mxAddr)
						if !g.OK {
							continue
						}
						if n := open.Add(1); n > limit {
							t.Errorf("%d connections open, limit %d", n, limit)
						}
						granted.Add(1)
						if s := l.Send(epoch, Mail{Tenant: "t"}); s.OK {
							// Transactions under way stay counted where they
							// began, so this holds only under one name.
							if n := under.Add(1); n > 3 && name == "provider.p" {
								t.Errorf("%d transactions of a tenant, limit 3", n)
							}
							next := l.Send(epoch, Mail{Tenant: "t", Follows: &s})
							if !next.OK && name == "provider.p" {
								t.Errorf("a transaction that follows another was refused: %v", next.Limit)
							}
							s.Release()
							under.Add(-1)
							next.Release()
						}
						open.Add(-1)
						g.Release()
					}
				})
			}
			wg.Go(func() {
				for range 100 {
					eng.Reload(other)
					eng.Reload(first)
				}
			})
			wg.Wait()
			if granted.Load() == 0 {
				t.Error("no connection was granted")
			}
		})
	}
}

func TestFollowingTransactionTakesOverThePlaceOfTheOneBefore(t *testing.T) {
	t.Parallel()
	doc := "[provider.p]\nmx_suffix = [\".p.example\"]\ntenant_concurrency = 2\n[domain.\"d.example\"]\nconnections = 2\n"
	eng := engine(t, doc)
	l := eng.Lane(Target{Source: "ip1", Site: "s", Hosts: []string{"mx.p.example"}})
	m := Mail{Tenant: "t", Domain: "d.example"}
	send := func(m Mail, want bool) Grant {
		t.Helper()
		g := l.Send(epoch, m)
		if g.OK != want {
			t.Fatalf("granted %v by %v, want %v", g.OK, g.Limit, want)
		}
		return g
	}
	a, b := send(m, true), send(m, true)
	for range 3 {
		send(m, false) // two are under way
		for _, g := range []*Grant{&a, &b} {
			follows := m
			follows.Follows = g
			next := send(follows, true)
			send(m, false)
			send(follows, false) // the place has gone over already
			g.Release()
			send(m, false)
			*g = next
		}
	}
	other := m
	other.Tenant, other.Follows = "u", &a // from the same domain, of which two are under way
	next := send(other, true)
	a.Release() // which leaves its tenant's place free, and not the domain's
	send(m, false)
	next.Release()
	c := send(m, true)
	send(m, false)
	b.Release()
	c.Release()
	a, b = send(m, true), send(m, true)
	send(m, false)
	a.Release()
	b.Release()
}

func TestLaneThatChangesProviderTakesItsConnectionsAlong(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[provider.a]\nmx_suffix = [\".x.example\"]\nprovider_connections = 2\n")
	l := eng.Lane(Target{Source: "ip1", Site: "s", Hosts: []string{"mx.x.example"}})
	one, two := l.Connect(epoch, mxAddr), l.Connect(epoch, mxAddr)
	eng.Reload(mustLoad(t, "[provider.b]\nmx_suffix = [\".x.example\"]\nprovider_connections = 2\n"))
	if got := l.Provider(); got != "b" {
		t.Fatalf("provider after reload = %s, want b", got)
	}
	if g := l.Connect(epoch, mxAddr); g.OK {
		t.Error("a third connection was granted after the reload")
	}
	one.Release()
	if g := l.Connect(epoch, mxAddr); !g.OK {
		t.Errorf("after a release: refused by %v", g.Limit)
	}
	two.Release()
}

func TestNewRatesApplyAtOnceAfterReload(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[default]\nrate = \"1/d\"\n")
	l := eng.Lane(Target{Source: "ip1", Site: "s"})
	l.Send(epoch, Mail{})
	eng.Reload(mustLoad(t, "[default]\nrate = \"10/s\"\n"))
	// The message of the day before counts as one of ten in the last second.
	g := l.Send(epoch.Add(time.Second), Mail{})
	if wait := g.At.Sub(epoch.Add(time.Second)); g.OK || wait > 101*time.Millisecond {
		t.Errorf("refused by %v for %v", g.Limit, wait)
	}
	if g := l.Send(g.At, Mail{}); !g.OK {
		t.Errorf("refused by %v until %v", g.Limit, g.At)
	}
}

func TestClosedIdleLanesAreForgotten(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[default]\nrate = \"1/min\"\n")
	for i := range 100 {
		l := eng.Lane(Target{Source: "ip1", Site: fmt.Sprint(i)})
		l.Send(epoch, Mail{})
		l.Close()
	}
	eng.Sweep(epoch.Add(time.Second))
	if got := len(eng.lanes); got != 100 {
		t.Errorf("%d lanes a second later, want 100: their rate is not free again", got)
	}
	eng.Sweep(epoch.Add(2 * time.Minute))
	if len(eng.lanes)+len(eng.groups) != 0 {
		t.Errorf("%d lanes, %d groups left, want none", len(eng.lanes), len(eng.groups))
	}
}

func TestWeightsHoldOverManyTinyQueues(t *testing.T) {
	t.Parallel()
	eng := New(mustLoad(t, ""), Options{Pools: []Pool{{Name: "bulk", Sources: []WeightedSource{{"a", 100}, {"b", 1}}}}})
	count := map[string]int{}
	for range 10_100 {
		count[eng.Pick("bulk", "gmail", nil)]++
	}
	if count["a"] != 10_000 || count["b"] != 100 {
		t.Errorf("picked %v, want a 10000, b 100", count)
	}
	if got := eng.Pick("bulk", "gmail", func(s string) bool { return s == "b" }); got != "b" {
		t.Errorf("only b is eligible, picked %q", got)
	}
	if got := eng.Pick("bulk", "gmail", func(string) bool { return false }); got != "" {
		t.Errorf("none is eligible, picked %q", got)
	}
	if got := eng.Pick("none", "gmail", nil); got != "" {
		t.Errorf("unknown pool, picked %q", got)
	}
}

func TestRateReadsAsItWasWritten(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"100/s", "5000/h", "1/1m30s", "200/min burst 20", "50000/d"} {
		r, err := ParseRate(s)
		if err != nil || r.String() != s {
			t.Errorf("ParseRate(%q) = %q, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "100", "x/s", "0/s", "-1/s", "1/0s", "5/fortnight", "10/s burst 0", "10/s burst 11", "2000000/s", "1/99999h", strings.Repeat("9", 30) + "/s"} {
		if r, err := ParseRate(s); err == nil {
			t.Errorf("ParseRate(%q) = %v, want an error", s, r)
		}
	}
}

// TestRateIsExactUnderConcurrency lets goroutines race for one provider's rate
// while each attempt moves the clock by ten microseconds, seen in any order.
func TestRateIsExactUnderConcurrency(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[provider.p]\nmx_suffix = [\".p.example\"]\nprovider_rate = \"1000/s\"\n")
	const attempts = 200_000 // two seconds
	var tick, granted atomic.Int64
	var wg sync.WaitGroup
	for i := range 16 {
		host := fmt.Sprintf("mx%d.p.example", i%4)
		l := eng.Lane(Target{Source: fmt.Sprint("ip", i%3), Site: host, Hosts: []string{host}})
		wg.Go(func() {
			for {
				n := tick.Add(1)
				if n > attempts {
					return
				}
				if g := l.Send(epoch.Add(time.Duration(n)*10*time.Microsecond), Mail{}); g.OK {
					granted.Add(1)
					g.Release()
				}
			}
		})
	}
	wg.Wait()
	if got := granted.Load(); got > 2000 || got < 1980 {
		t.Errorf("%d granted in two seconds at 1000/s, want 1980 to 2000", got)
	}
}

func TestProviderKnownByDomainHoldsWhicheverDomainCameFirst(t *testing.T) {
	t.Parallel()
	eng := engine(t, "[provider.jp]\ndomain = [\"d.example\"]\nprovider_connections = 1\n")
	target := Target{Source: "ip1", Site: "s", Hosts: []string{"mx.s.example"}, Domain: "other.example"}
	l := eng.Lane(target)
	if got := l.Provider(); got != DefaultProvider {
		t.Fatalf("provider = %s, want %s", got, DefaultProvider)
	}
	conn := l.Connect(epoch, mxAddr)
	target.Domain = "d.example"
	if got := eng.Lane(target).Provider(); got != "jp" || l.Provider() != "jp" {
		t.Errorf("provider = %s, want jp", got)
	}
	if g := l.Connect(epoch, mxAddr); g.OK || g.Limit != LimitProviderConnections {
		t.Errorf("second connection: %v %v; the first must count", g.OK, g.Limit)
	}
	conn.Release()
	if g := l.Connect(epoch, mxAddr); !g.OK {
		t.Errorf("after its release: refused by %v", g.Limit)
	}
}
