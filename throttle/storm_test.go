package throttle

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

var epoch = time.Date(2026, 11, 2, 8, 0, 0, 0, time.UTC)

// mustLoad loads one file that has to be free of problems.
func mustLoad(t testing.TB, doc string) *Rules {
	t.Helper()
	r, problems := Load(File{Name: "test.toml", Data: []byte(doc)})
	for _, p := range problems {
		t.Errorf("unexpected problem: %v", p)
	}
	return r
}

// clock is a queue of things to do in virtual time.
type clock struct {
	now  time.Time
	todo events
	seq  int
}

type scheduled struct {
	at  time.Time
	seq int
	do  func()
}

type events []scheduled

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(scheduled)) }
func (q *events) Pop() any {
	x := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return x
}

func (c *clock) at(t time.Time, do func()) {
	c.seq++
	heap.Push(&c.todo, scheduled{t, c.seq, do})
}

func (c *clock) run(end time.Time) {
	for len(c.todo) > 0 && !c.todo[0].at.After(end) {
		e := heap.Pop(&c.todo).(scheduled)
		c.now = e.at
		e.do()
	}
	c.now = end
}

// ledger counts permits on its own, knowing only the limits, and complains
// when one is exceeded.
type ledger struct {
	t     *testing.T
	open  map[string]int64
	times map[string][]time.Time
}

func (b *ledger) enter(key string, limit int64) {
	b.open[key]++
	if limit > 0 && b.open[key] > limit {
		b.t.Fatalf("%s: %d at once, limit %d", key, b.open[key], limit)
	}
}

func (b *ledger) leave(key string) { b.open[key]-- }

// count notes n permits and checks the window that ends with them.
func (b *ledger) count(key string, now time.Time, rates []Rate, n int) {
	if len(rates) == 0 {
		return
	}
	times := b.times[key]
	for range n {
		times = append(times, now)
	}
	longest := rates[0].Per
	for _, r := range rates {
		longest = max(longest, r.Per)
		first, _ := slices.BinarySearchFunc(times, r.Per, func(at time.Time, per time.Duration) int {
			if now.Sub(at) >= per {
				return -1
			}
			return 1
		})
		n := int64(len(times) - first)
		if n > r.N+r.Burst-1 {
			b.t.Fatalf("%s: %d within %v, limit %v", key, n, r.Per, r)
		}
	}
	if len(times) > 1000 && now.Sub(times[500]) > longest {
		times = slices.Delete(times, 0, 500)
	}
	b.times[key] = times
}

// world is a random set of limits with lanes that have more to send than they
// may.
type world struct {
	clock  clock
	rng    *rand.Rand
	eng    *Engine
	book   ledger
	counts map[string]int64
	rates  map[string][]Rate
	sent   int
	parked int

	storm     bool
	heldUntil map[string]time.Time // by "source X" or "sender X"
	deferrals int
}

// stormRules give the random worlds replies that hold and slow things.
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

var stormReplies = []string{"hold source", "hold sender", "slow down", "fewer"}

var countKeys = []string{"connections", "source_connections", "provider_connections", "mx_connections", "messages_per_connection", "tenant_concurrency", "campaign_concurrency", "recipients"}

var rateKeys = []string{"connection_rate", "source_connection_rate", "provider_connection_rate", "rate", "source_rate", "provider_rate", "recipient_rate", "tenant_rate", "campaign_rate", "sender_domain_rate"}

// sectioned is a recipient domain with limits of its own.
const sectioned = "own.example"

// limits writes random limits of these keys and notes them under their names
// after a prefix.
func (w *world) limits(doc *strings.Builder, prefix string, counts, rates []string) {
	for _, k := range counts {
		if w.rng.IntN(2) == 0 {
			w.counts[prefix+k] = 1 + w.rng.Int64N(12)
			fmt.Fprintf(doc, "%s = %d\n", k, w.counts[prefix+k])
		}
	}
	for _, k := range rates {
		if w.rng.IntN(3) > 0 {
			continue
		}
		n := 1 + w.rng.IntN(2)
		var list []string
		for range n {
			per := []time.Duration{time.Second, time.Minute, 300 * time.Millisecond, 7 * time.Second}[w.rng.IntN(4)]
			num := 1 + w.rng.Int64N(int64(max(per/(5*time.Millisecond), 2)))
			r, err := NewRate(num, per, 1+w.rng.Int64N(min(num, 5)))
			if err != nil {
				w.book.t.Fatal(err)
			}
			list = append(list, fmt.Sprintf("%q", r))
			w.rates[prefix+k] = append(w.rates[prefix+k], r)
		}
		fmt.Fprintf(doc, "%s = [%s]\n", k, strings.Join(list, ", "))
	}
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 1)), counts: map[string]int64{}, rates: map[string][]Rate{}}
	w.clock.now = epoch
	w.book = ledger{t: t, open: map[string]int64{}, times: map[string][]time.Time{}}
	var doc strings.Builder
	doc.WriteString("[domain.\"" + sectioned + "\"]\n")
	w.limits(&doc, "domain ", []string{"connections", "messages_per_connection", "recipients"}, []string{"rate"})
	doc.WriteString("[provider.p]\nmx_suffix = [\".p.example\"]\n")
	w.limits(&doc, "", countKeys, rateKeys)
	if w.storm = seed%2 == 1; w.storm {
		w.heldUntil = map[string]time.Time{}
		doc.WriteString(stormRules)
	}
	t.Log("\n" + doc.String())
	w.eng = New(mustLoad(t, doc.String()), Options{Now: func() time.Time { return w.clock.now }})
	return w
}

// worker opens connections and sends on them for as long as the world lasts.
type worker struct {
	w            *world
	lane         *Lane
	src, site    string
	conn         Grant
	mx           netip.Addr
	sent         int
	waiting      bool
	tenant, camp string
	sender       string
	domain       string // of the message in hand
	rcpts        int    // of the message in hand, 0: none
}

// domainLimit is the limit of a key for the worker's recipient domain.
func (k *worker) domainLimit(key string) int64 {
	if n := k.w.counts["domain "+key]; n > 0 && k.domain == sectioned {
		return n
	}
	return k.w.counts[key]
}

func (k *worker) step() {
	w := k.w
	if !k.conn.OK {
		k.connect()
		return
	}
	if k.rcpts == 0 {
		k.rcpts = 1 + w.rng.IntN(4)
		k.domain = []string{"d.example", sectioned}[w.rng.IntN(2)]
	}
	m := Mail{Domain: k.domain, Tenant: k.tenant, Campaign: k.camp, SenderDomain: k.sender, Sent: k.sent, Recipients: k.rcpts}
	g := k.lane.Send(w.clock.now, m)
	switch {
	case g.OK:
		k.transact(g)
	case g.Limit == LimitRecipients:
		if g.Max < 1 || g.Max >= k.rcpts {
			w.book.t.Fatalf("%d recipients are too many, %d would do", k.rcpts, g.Max)
		}
		k.rcpts = g.Max
		w.clock.at(w.clock.now, k.step)
	case g.Limit == LimitMessagesPerConnection || w.rng.IntN(20) == 0:
		k.disconnect()
		w.clock.at(w.clock.now, k.step)
	default:
		k.wait(g)
	}
}

func (k *worker) connect() {
	w := k.w
	k.mx = netip.AddrFrom4([4]byte{192, 0, 2, byte(w.rng.IntN(3))})
	g := k.lane.Connect(w.clock.now, k.mx)
	if !g.OK {
		k.wait(g)
		return
	}
	k.conn, k.sent = g, 0
	now := w.clock.now
	w.book.enter("lane "+k.src+" "+k.site, w.counts["connections"])
	w.book.enter("source "+k.src, w.counts["source_connections"])
	w.book.enter("provider", w.counts["provider_connections"])
	w.book.enter("mx "+k.mx.String(), w.counts["mx_connections"])
	w.book.count("c lane "+k.src+" "+k.site, now, w.rates["connection_rate"], 1)
	w.book.count("c source "+k.src, now, w.rates["source_connection_rate"], 1)
	w.book.count("c provider", now, w.rates["provider_connection_rate"], 1)
	w.clock.at(now.Add(time.Duration(w.rng.IntN(50))*time.Millisecond), k.step)
}

func (k *worker) transact(g Grant) {
	w, now := k.w, k.w.clock.now
	k.sent++
	w.sent++
	if n := k.domainLimit("messages_per_connection"); n > 0 && int64(k.sent) > n {
		w.book.t.Fatalf("%d messages on a connection, limit %d", k.sent, n)
	}
	if n := k.domainLimit("recipients"); n > 0 && int64(k.rcpts) > n {
		w.book.t.Fatalf("%d recipients in a transaction, limit %d", k.rcpts, n)
	}
	domain := "domain " + k.src + " " + k.domain
	w.book.enter("tenant "+k.tenant, w.counts["tenant_concurrency"])
	w.book.enter("campaign "+k.tenant+" "+k.camp, w.counts["campaign_concurrency"])
	if k.domain == sectioned {
		w.book.enter(domain, w.counts["domain connections"])
		w.book.count(domain, now, w.rates["domain rate"], 1)
	}
	// A looser rate of the domain takes the place of the lane's.
	if own, lane := w.rates["domain rate"], w.rates["rate"]; k.domain != sectioned || own == nil || tightest(own) <= tightest(lane) {
		w.book.count("lane "+k.src+" "+k.site, now, lane, 1)
	}
	w.book.count("recipients "+k.src+" "+k.site, now, w.rates["recipient_rate"], k.rcpts)
	w.book.count("source "+k.src, now, w.rates["source_rate"], 1)
	w.book.count("provider", now, w.rates["provider_rate"], 1)
	w.book.count("tenant "+k.tenant, now, w.rates["tenant_rate"], 1)
	w.book.count("campaign "+k.tenant+" "+k.camp, now, w.rates["campaign_rate"], 1)
	w.book.count("sender "+k.sender, now, w.rates["sender_domain_rate"], 1)
	for _, key := range []string{"source " + k.src, "sender " + k.sender} {
		if until := w.heldUntil[key]; now.Before(until) {
			w.book.t.Fatalf("%s sends at %v, held until %v", key, now, until)
		}
	}
	w.clock.at(now.Add(time.Duration(w.rng.IntN(40))*time.Millisecond), func() {
		w.book.leave("tenant " + k.tenant)
		w.book.leave("campaign " + k.tenant + " " + k.camp)
		if k.domain == sectioned {
			w.book.leave(domain)
		}
		k.observe()
		k.rcpts = 0
		g.Release()
		if w.rng.IntN(30) == 0 {
			k.disconnect()
		}
		k.step()
	})
}

// observe reports success, or in a storm now and then one of the replies, and
// notes what has to stand still from then on.
func (k *worker) observe() {
	w := k.w
	if !w.storm {
		return
	}
	o := &Observation{Result: message.Delivered, Domain: k.domain, Tenant: k.tenant, Campaign: k.camp, SenderDomain: k.sender}
	if w.rng.IntN(200) == 0 {
		w.deferrals++
		text := stormReplies[w.rng.IntN(len(stormReplies))]
		o.Result, o.Reply = message.Deferred, &message.Reply{Code: 421, Text: text}
	}
	for _, a := range k.lane.Observe(w.clock.now, o) {
		if a.Kind != ActDefer {
			continue
		}
		key := "source " + a.Key
		if a.Scope == ScopeSenderDomain {
			key = "sender " + a.Key
		}
		w.heldUntil[key] = a.Until
	}
}

// tightest is the strictest of some rates per second, 0 for none.
func tightest(rates []Rate) float64 {
	least := 0.0
	for _, r := range rates {
		if least == 0 || r.PerSecond() < least {
			least = r.PerSecond()
		}
	}
	return least
}

func (k *worker) disconnect() {
	w := k.w
	w.book.leave("lane " + k.src + " " + k.site)
	w.book.leave("source " + k.src)
	w.book.leave("provider")
	w.book.leave("mx " + k.mx.String())
	k.conn.Release()
	k.conn = Grant{}
}

// wait sleeps until the time of a refusal, or until notified.
func (k *worker) wait(g Grant) {
	w := k.w
	if g.At.IsZero() {
		k.waiting = true
		w.parked++
		return
	}
	if !g.At.After(w.clock.now) {
		w.book.t.Fatalf("refused by %v until %v, which is not after %v", g.Limit, g.At, w.clock.now)
	}
	w.clock.at(g.At, k.step)
}

func (k *worker) wake() {
	if k.waiting {
		k.waiting = false
		k.w.parked--
		k.w.clock.at(k.w.clock.now, k.step)
	}
}

func TestNoLimitIsEverExceededInAStorm(t *testing.T) {
	t.Parallel()
	var deferrals atomic.Int64
	t.Cleanup(func() {
		if n := deferrals.Load(); n < 100 && !brief() {
			t.Errorf("only %d deferrals in all storms", n)
		}
	})
	worlds := uint64(40)
	if brief() {
		worlds = 10
	}
	for seed := range worlds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, seed)
			workers := 0
			for s := range 1 + w.rng.IntN(4) {
				for site := range 1 + w.rng.IntN(4) {
					src, name := fmt.Sprint("ip", s), fmt.Sprint("site", site)
					lane := w.eng.Lane(Target{
						Source: src, SourceAddr: netip.AddrFrom4([4]byte{198, 51, 100, byte(s)}),
						Site: name, Hosts: []string{"mx." + name + ".p.example"}, Domain: "d.example",
					})
					var mine []*worker
					for i := range 1 + w.rng.IntN(8) {
						k := &worker{w: w, lane: lane, src: src, site: name,
							tenant: fmt.Sprint("t", i%3), camp: fmt.Sprint("c", i%2), sender: fmt.Sprint("s", i%2, ".example")}
						mine = append(mine, k)
						w.clock.at(epoch, k.step)
						workers++
					}
					lane.Notify(func(Freed) {
						for _, k := range mine {
							k.wake()
						}
					})
				}
			}
			span := 90 * time.Second
			if w.storm {
				span = 25 * time.Minute
			}
			w.clock.run(epoch.Add(span))
			deferrals.Add(int64(w.deferrals))
			if w.sent == 0 {
				t.Error("nothing was sent")
			}
			if w.parked == workers {
				t.Error("all workers sleep and nobody will wake them")
			}
		})
	}
}

// TestLimitsAreUsedWhereverTheyBind puts random rates at all levels over lanes
// with endless mail of every tenant, campaign, sender and domain: what goes out
// in a minute has to be what the tightest level allows, and no level may let
// more than its burst out beyond its rate.
func TestLimitsAreUsedWhereverTheyBind(t *testing.T) {
	t.Parallel()
	type level struct{ minute, burst float64 } // messages over all its places
	all := []string{"rate", "source_rate", "provider_rate", "recipient_rate", "tenant_rate", "campaign_rate", "sender_domain_rate", "domain rate"}
	clear := map[string]int{} // how often a level was the only one that bound
	worlds := uint64(72)
	if brief() {
		worlds = 15
	}
	for seed := range worlds {
		rng := rand.New(rand.NewPCG(seed, 2))
		few := func() int { return 1 + rng.IntN(2) }
		sources, sites, tenants, campaigns, senders, domains, rcpts := 1+rng.IntN(3), few(), few(), few(), few(), few(), 1+rng.IntN(3)
		var doc, section strings.Builder
		levels := map[string]level{}
		rate := func(w *strings.Builder, name string, places, each int) {
			// Each level in turn is sure to be there, and rather tight.
			room := 1.0
			if name == all[seed%uint64(len(all))] {
				room = 0.5
			} else if rng.IntN(8) > 2 {
				return
			}
			// About as much in all at each level, so that any of them may bind.
			n := 1 + int(room*float64(60+rng.IntN(200)))*each/places
			levels[name] = level{60 * float64(n*places) / float64(each), float64(places)}
			// Recipients come in one go: the burst has to take those of a message.
			fmt.Fprintf(w, "%s = \"%d/s burst %d\"\n", strings.TrimPrefix(name, "domain "), n, each)
		}
		rate(&doc, "rate", sources*sites, 1)
		rate(&doc, "source_rate", sources, 1)
		rate(&doc, "provider_rate", 1, 1)
		rate(&doc, "recipient_rate", sources*sites, rcpts)
		rate(&doc, "tenant_rate", tenants, 1)
		rate(&doc, "campaign_rate", tenants*campaigns, 1)
		rate(&doc, "sender_domain_rate", tenants*senders, 1)
		rate(&section, "domain rate", sources*domains, 1)
		if own := levels["domain rate"].minute; own > 0 && own/float64(domains) > levels["rate"].minute/float64(sites) {
			delete(levels, "rate") // a looser rate of all domains takes its place
		}
		text := "[provider.p]\nmx_suffix=[\".p.example\"]\n" + doc.String()
		for d := range domains {
			text += fmt.Sprintf("[domain.\"d%d.example\"]\n%s", d, section.String())
		}
		eng := engine(t, text)
		c := clock{now: epoch}
		sent := 0
		for lane := range sources * sites {
			host := fmt.Sprintf("mx%d.p.example", lane%sites)
			l := eng.Lane(Target{Source: fmt.Sprint("ip", lane/sites), Site: host, Hosts: []string{host}})
			for mail := range tenants * campaigns * senders * domains {
				tenant, rest := mail%tenants, mail/tenants
				m := Mail{
					Tenant: fmt.Sprint("t", tenant), Campaign: fmt.Sprint("c", rest%campaigns),
					SenderDomain: fmt.Sprintf("s%d.t%d.example", rest/campaigns%senders, tenant),
					Domain:       fmt.Sprintf("d%d.example", rest/campaigns/senders), Recipients: rcpts,
				}
				var step func()
				step = func() {
					g := l.Send(c.now, m)
					if !g.OK {
						c.at(g.At, step)
						return
					}
					g.Release()
					sent++
					c.at(c.now, step) // after the others who may go now
				}
				c.at(epoch, step)
			}
		}
		c.run(epoch.Add(time.Minute))
		want, second, by := math.Inf(1), math.Inf(1), ""
		for name, l := range levels {
			if float64(sent) > l.minute+l.burst {
				t.Errorf("seed %d: sent %d in a minute, %s allows %.0f and %.0f at once\n%s", seed, sent, name, l.minute, l.burst, text)
			}
			switch {
			case l.minute < want:
				want, second, by = l.minute, want, name
			case l.minute < second:
				second = l.minute
			}
		}
		least := 0.95
		if second > 1.25*want {
			least = 0.99
			clear[by]++
		}
		if float64(sent) < least*want {
			t.Errorf("seed %d: sent %d in a minute, want %.0f by %s, at least %.0f %%, of levels %v\n%s", seed, sent, want, by, 100*least, levels, text)
		}
	}
	for _, name := range all {
		if clear[name] < 2 && !brief() {
			t.Errorf("%s was the tightest in %d worlds only", name, clear[name])
		}
	}
}

// TestEverySlotIsUsed lets many more want to work than one kind of count allows:
// all slots have to be in use nearly all the time.
func TestEverySlotIsUsed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key     string
		section string
		places  int // at which the count holds: 2 sources, 2 sites, 3 tenants of 2 campaigns, 1 domain
	}{
		{"connections", "default", 4}, {"source_connections", "default", 4}, // no provider: a site of its own each
		{"connections", "provider.p", 4}, {"source_connections", "provider.p", 2}, {"provider_connections", "provider.p", 1},
		{"mx_connections", "provider.p", 1}, {"tenant_concurrency", "provider.p", 3}, {"campaign_concurrency", "provider.p", 6},
		{"connections", "domain.\"d.example\"", 2},
	} {
		t.Run(c.section+" "+c.key, func(t *testing.T) {
			t.Parallel()
			const limit = 7
			doc := ""
			if strings.HasPrefix(c.section, "domain") {
				doc = "[provider.p]\nmx_suffix=[\".p.example\"]\n"
			}
			doc += fmt.Sprintf("[%s]\n%s = %d\n", c.section, c.key, limit)
			if c.section == "provider.p" {
				doc += "mx_suffix=[\".p.example\"]\n"
			}
			clk := clock{now: epoch}
			eng := New(mustLoad(t, doc), Options{Now: func() time.Time { return clk.now }})
			var busy, most int
			var used time.Duration
			for i := range 4 {
				host := fmt.Sprintf("mx%d.p.example", i%2)
				l := eng.Lane(Target{Source: fmt.Sprint("ip", i/2), Site: host, Hosts: []string{host}, Domain: "d.example"})
				if strings.HasPrefix(c.section, "domain") {
					// Another domain shares the lane: its connections are not limited,
					// so the transactions of this one are.
					eng.Lane(Target{Source: fmt.Sprint("ip", i/2), Site: host, Hosts: []string{host}, Domain: "other.example"})
				}
				var asleep []func()
				for j := range 12 {
					var step func()
					step = func() {
						var g Grant
						if strings.HasSuffix(c.key, "_concurrency") || strings.HasPrefix(c.section, "domain") {
							g = l.Send(clk.now, Mail{Domain: "d.example", Tenant: fmt.Sprint("t", j%3), Campaign: fmt.Sprint("c", j%2)})
						} else {
							g = l.Connect(clk.now, mxAddr)
						}
						if !g.OK {
							asleep = append(asleep, step)
							return
						}
						busy++
						most = max(most, busy)
						took := time.Duration(50+(i*7+j*13)%100) * time.Millisecond
						used += took
						clk.at(clk.now.Add(took), func() {
							busy--
							g.Release()
							step()
						})
					}
					clk.at(epoch, step)
				}
				l.Notify(func(Freed) {
					woken := asleep
					asleep = nil
					for _, step := range woken {
						clk.at(clk.now, step)
					}
				})
			}
			clk.run(epoch.Add(time.Minute))
			slots := limit * c.places
			if share := used.Seconds() / 60 / float64(slots); most != slots || share < 0.95 {
				t.Errorf("%d of %d slots at most, %.1f %% of them in use", most, slots, 100*share)
			}
		})
	}
}

// TestEveryLimitIsUsed offers endless mail to one limit at a time.
func TestEveryLimitIsUsed(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"rate", "source_rate", "provider_rate", "tenant_rate", "campaign_rate", "sender_domain_rate"} {
		for _, rate := range []string{"1/s", "3/s", "100/s", "977/s", "1000/min", "6000/h", "100000/d burst 7", "200/s burst 20"} {
			t.Run(key+" "+rate, func(t *testing.T) {
				t.Parallel()
				r, err := ParseRate(rate)
				if err != nil {
					t.Fatal(err)
				}
				eng := New(mustLoad(t, fmt.Sprintf("[default]\n%s = %q\n", key, rate)), Options{Now: func() time.Time { return epoch }})
				lane := eng.Lane(Target{Source: "ip1", Site: "s"})
				mail := Mail{Domain: "d.example", Tenant: "t", Campaign: "c", SenderDomain: "s.example"}
				span := max(time.Minute, r.Per)
				now, sent := epoch, int64(0)
				for now.Sub(epoch) < span {
					g := lane.Send(now, mail)
					if g.OK {
						sent++
						g.Release()
						continue
					}
					// Timers wake late; up to the slack that costs nothing.
					now = g.At.Add(min(3*time.Millisecond, r.Per/500))
				}
				want := r.PerSecond() * span.Seconds()
				if most := want + float64(r.Burst) - 1; float64(sent) > most || float64(sent) < 0.99*want-1 {
					t.Errorf("sent %d in %v, want %.1f to %.1f", sent, span, 0.99*want, most)
				}
			})
		}
	}
}
