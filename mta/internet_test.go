package mta_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta/loadgen"
	"github.com/tradewind-mta/tradewind/queue"
)

// internet is the mail hosts of a small Internet, each a profile of the sink,
// with its share of the mail.
var internet = []struct {
	profile, domain, host, addr string
	share                       int // per cent
	tls                         bool
}{
	{"gmail", "gmail.example", "aspmx.l.google.com", "192.0.2.1", 40, true},
	{"yahoo", "yahoo.example", "mta5.am0.yahoodns.net", "192.0.2.2", 20, true},
	{"outlook", "outlook.example", "outlook-com.olc.protection.outlook.com", "192.0.2.3", 20, true},
	{"orange", "orange.example", "smtp-in.orange.fr", "192.0.2.4", 5, false},
	{"greylist", "grey.example", "mx.grey.example", "192.0.2.5", 10, false},
	{"tarpit", "tar.example", "mx.tar.example", "192.0.2.6", 5, false},
}

// TestSimulatedInternetTakesEverything sends to all of them at once, under the
// shipped rules, from two sources. TRADEWIND_INTERNET sets how many messages
// (10,000 without, 2,000 with -short), TRADEWIND_PLOT the file for the picture.
func TestSimulatedInternetTakesEverything(t *testing.T) {
	t.Parallel()
	n := 10_000
	if testing.Short() {
		n = 2000
	}
	if v := os.Getenv("TRADEWIND_INTERNET"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) { simulate(t, n) })
}

func simulate(t *testing.T, n int) {
	var zone strings.Builder
	for _, h := range internet {
		fmt.Fprintf(&zone, "%s. MX 10 %s.\n%s. A %s\n", h.domain, h.host, h.host, h.addr)
	}
	set := sources(2)
	data, err := os.ReadFile("../configs/bounce.toml")
	if err != nil {
		t.Fatal(err)
	}
	if set.Rules, err = bounce.NewClassifier(data); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, worldConfig{
		shaping: shippedRules(t), zone: zone.String(), settings: set,
		queue: func(c *queue.Config) { c.Window = 1000 },
	})
	defer w.end()
	film := newFilm()
	w.opened = func(_, addr string) { film.connection(addr, 1) }
	w.closed = func(_, addr string) { film.connection(addr, -1) }
	w.heard = film.event
	for _, h := range internet {
		w.host(h.addr, loadgen.SinkConfig{Profile: h.profile, TLS: h.tls, Latency: map[bool]time.Duration{true: 20 * time.Millisecond}[h.profile != "tarpit"]})
	}
	list := make([]mail, 0, n)
	for i := range n {
		h := internet[0]
		for at, j := i*37%100, 0; j < len(internet); j++ {
			if h = internet[j]; at < h.share {
				break
			}
			at -= h.share
		}
		list = append(list, mail{
			from: fmt.Sprintf("a@s%d.example", i%5), sign: fmt.Sprintf("s%d.example", i%5), tenant: fmt.Sprintf("t%d", i%5),
			to: []string{fmt.Sprintf("r%d@%s", i, h.domain)},
		})
	}
	w.accept(list...)
	hours := 0
	for ; w.count(message.EventDelivered) < n && hours < 48; hours++ {
		time.Sleep(time.Hour)
	}
	if got := w.count(message.EventDelivered); got != n {
		t.Errorf("%d of %d delivered", got, n)
	}
	if b := w.count(message.EventBounced) + w.count(message.EventExpired); b > 0 {
		t.Errorf("%d bounced or expired", b)
	}
	film.report(t)
	if name := os.Getenv("TRADEWIND_PLOT"); name != "" {
		if err := os.WriteFile(name, film.svg(n), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// frame is what happened at one provider in one minute.
type frame struct {
	delivered, deferred, open int
}

// film is what happened minute by minute.
type film struct {
	mu     sync.Mutex // protects everything below
	began  time.Time
	open   map[string]int
	frames map[string][]frame // by profile
	words  map[string]int     // replies that deferred after the first hour
}

func newFilm() *film {
	return &film{began: time.Now(), open: map[string]int{}, frames: map[string][]frame{}, words: map[string]int{}}
}

func profileOf(addrOrDomain string) string {
	for _, h := range internet {
		if h.addr == addrOrDomain || h.domain == addrOrDomain {
			return h.profile
		}
	}
	return ""
}

// now returns the frame of this minute. REQUIRES: f.mu.
func (f *film) now(profile string) *frame {
	minute := int(time.Since(f.began) / time.Minute)
	list := f.frames[profile]
	for len(list) <= minute {
		list = append(list, frame{open: f.open[profile]})
	}
	f.frames[profile] = list
	return &list[minute]
}

func (f *film) connection(addr string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := profileOf(addr)
	f.open[p] += n
	fr := f.now(p)
	fr.open = max(fr.open, f.open[p])
}

func (f *film) event(e *message.Event) {
	_, domain, _ := strings.Cut(e.Recipient, "@")
	p := profileOf(domain)
	if p == "" {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch e.Type {
	case message.EventDelivered:
		f.now(p).delivered++
	case message.EventDeferred:
		f.now(p).deferred++
		if time.Since(f.began) > time.Hour {
			text := e.Detail
			if e.Reply != nil {
				text = e.Reply.Error()
			}
			f.words[p+": "+text]++
		}
	}
}

// secrets are the refusals that tell of a limit of which no rule knows: the
// connections of the tarpit, the messages a minute of Orange and Outlook.
var secrets = []string{
	"tarpit: banner: 421 4.7.0 too many connections",
	"orange: mail: 421 mwinf5c04 ME Service refuse",
	"outlook: mail: 451 4.7.650",
}

// report complains about deferrals that a good sender would have avoided: all
// after the first hour but the greylister's, who defers everybody once, and a
// few each hour that find out where a secret limit is, and whether it still is.
func (f *film) report(t *testing.T) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for words, n := range f.words {
		looks := 0
		if slices.ContainsFunc(secrets, func(s string) bool { return strings.HasPrefix(words, s) }) {
			profile, _, _ := strings.Cut(words, ":")
			looks = 4 * (1 + len(f.frames[profile])/60)
		}
		if !strings.HasPrefix(words, "greylist") && n > looks {
			t.Errorf("%d deferrals after the first hour: %s", n, words)
		}
	}
	for _, h := range internet {
		total, deferred, late := 0, 0, 0
		for minute, fr := range f.frames[h.profile] {
			total += fr.delivered
			deferred += fr.deferred
			if minute >= 60 {
				late += fr.deferred
			}
		}
		t.Logf("%-9s %7d delivered, %6d deferred, %2d of them after the first hour, in %d minutes", h.profile, total, deferred, late, len(f.frames[h.profile]))
	}
}

// svg draws rate, connections and deferrals of each provider over time.
func (f *film) svg(n int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	const width, height, left = 760, 110, 150
	minutes := 1
	for _, list := range f.frames {
		minutes = max(minutes, len(list))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"11\">\n", left+width+20, len(internet)*(height+16)+50)
	fmt.Fprintf(&b, "<text x=\"8\" y=\"16\">%d messages at once under the shipped rules, %d minutes: <tspan fill=\"#1f77b4\">messages/min</tspan>, <tspan fill=\"#2ca02c\">connections</tspan>, <tspan fill=\"#d62728\">deferrals/min</tspan>, each to its own scale</text>\n", n, minutes)
	for i, h := range internet {
		top := 30 + i*(height+16)
		fmt.Fprintf(&b, "<text x=\"8\" y=\"%d\" font-weight=\"bold\">%s</text><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#ccc\"/>\n", top+14, h.profile, left, top, width, height)
		for j, line := range []struct {
			colour, name string
			value        func(frame) int
		}{
			{"#1f77b4", "messages/min", func(fr frame) int { return fr.delivered }},
			{"#2ca02c", "connections", func(fr frame) int { return fr.open }},
			{"#d62728", "deferrals/min", func(fr frame) int { return fr.deferred }},
		} {
			most := 0
			for _, fr := range f.frames[h.profile] {
				most = max(most, line.value(fr))
			}
			fmt.Fprintf(&b, "<text x=\"8\" y=\"%d\" fill=\"%s\">%s: up to %d</text>\n", top+32+16*j, line.colour, line.name, most)
			if most == 0 {
				continue
			}
			fmt.Fprintf(&b, "<polyline fill=\"none\" stroke=\"%s\" points=\"", line.colour)
			for m, fr := range f.frames[h.profile] {
				fmt.Fprintf(&b, "%.1f,%.1f ", float64(left)+float64(m)*width/float64(minutes), float64(top+height)-float64(line.value(fr))*(height-4)/float64(most))
			}
			b.WriteString("\"/>\n")
		}
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// TestSecretLimitCostsOnlyRareLooks sends for a day to a host that takes ten
// messages a minute from an address and keeps that to itself. After the first
// hour, in which that is found out, a deferral is avoidable unless it comes of a
// look above: after about 1, 3, 7 and 15 hours, with what was under way then.
func TestSecretLimitCostsOnlyRareLooks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, worldConfig{
			shaping: shippedRules(t), zone: "secret.example. MX 10 mx.secret.example.\nmx.secret.example. A 192.0.2.9\n",
			settings: sources(1), queue: func(c *queue.Config) { c.Window = 100 },
		})
		defer w.end()
		var mu sync.Mutex
		began, hours := time.Now(), map[int]int{}
		w.heard = func(e *message.Event) {
			if e.Type == message.EventDeferred {
				mu.Lock()
				defer mu.Unlock()
				hours[int(time.Since(began)/time.Hour)]++
			}
		}
		w.host("192.0.2.9", loadgen.SinkConfig{Latency: 20 * time.Millisecond, Limits: loadgen.Limits{MessagesPerMinute: 10}})
		const day = 24
		n := 10 * 60 * day
		list := make([]mail, n)
		for i := range list {
			list[i] = mail{from: "a@s.example", sign: "s.example", tenant: "t", to: []string{fmt.Sprintf("r%d@secret.example", i)}}
		}
		w.accept(list...)
		time.Sleep(day * time.Hour)
		mu.Lock()
		defer mu.Unlock()
		later := 0
		for hour, deferred := range hours {
			if hour > 0 {
				later += deferred
			}
		}
		if hours[0] == 0 {
			t.Error("nothing was deferred in the first hour: the host has no limit")
		}
		if later > 8 {
			t.Errorf("%d deferred after the first hour, by the hour %v", later, hours)
		}
		if got := w.count(message.EventDelivered); got < n*95/100 {
			t.Errorf("%d delivered of the %d that the host would have taken", got, n)
		}
		t.Logf("%d of %d delivered, deferrals by the hour %v", w.count(message.EventDelivered), n, hours)
	})
}
