//go:build linux && (interop || backlog)

package interop

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

var (
	backlogSize    = flag.Int("recipients", 200_000, "recipients that wait in TestBacklog")
	backlogDomains = flag.Int("domains", 20_000, "domains they are spread over")
	backlogDue     = flag.Float64("due", 0.5, "share of them that waits for its time")
	backlogLoad    = flag.Int("load", 2000, "messages of one measurement of TestBacklog")
	backlogRounds  = flag.Int("rounds", 1, "how often each measurement of TestBacklog is made")
	backlogDir     = flag.String("backlog", "", "where a built backlog is kept for the next run; \"\" means nowhere")
)

// What the engine promises however much waits. A scaled run on a busy machine
// holds it to the memory only; make backlog prints the rest beside the target.
const backlogMemory = 512 << 20

// backlog returns a data_dir that holds the backlog the flags describe.
func backlog(t *testing.T) (dir string) {
	t.Helper()
	s := spool{recipients: *backlogSize, domains: *backlogDomains, due: *backlogDue}
	dir = filepath.Join(t.TempDir(), "data")
	if *backlogDir == "" {
		s.build(t, dir)
		return dir
	}
	kept := filepath.Join(*backlogDir, "data")
	if _, err := os.Stat(kept); err != nil {
		s.build(t, kept)
	}
	atRest(t, kept)
	octets := diskUsage(t, kept)
	t.Logf("%d recipients over %d domains take %d MiB, %.0f octets each", s.recipients, s.domains, octets>>20, float64(octets)/float64(s.recipients))
	if err := os.CopyFS(dir, os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// arrivals is a sink that only counts.
type arrivals struct {
	addr  string
	fresh atomic.Int64 // messages of the load
	old   atomic.Int64 // messages of the backlog
	small atomic.Int64 // messages of the tenant who has few
	first atomic.Int64 // when the first of the backlog came, Unix nanoseconds

	mu     sync.Mutex // protects everything below
	urgent map[string]time.Time
}

func count(t *testing.T) *arrivals {
	t.Helper()
	a := &arrivals{urgent: make(map[string]time.Time)}
	_, a.addr = serveSink(t, "127.0.0.1:0", loadgen.SinkConfig{OnMessage: func(r *loadgen.Received) {
		if !r.Accepted {
			return
		}
		for _, to := range r.To {
			switch {
			case strings.HasPrefix(to, "small"):
				a.small.Add(1)
			case strings.HasPrefix(to, "urgent"):
				a.mu.Lock()
				a.urgent[to] = time.Now()
				a.mu.Unlock()
			case strings.HasSuffix(to, ".fresh.example"):
				a.fresh.Add(1)
			default:
				a.first.CompareAndSwap(0, time.Now().UnixNano())
				a.old.Add(1)
			}
		}
	}})
	return a
}

func (a *arrivals) came(to string) (at time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok = a.urgent[to]
	return at, ok
}

// backlogConfig sends fresh mail to one place and the backlog to another.
func backlogConfig(fresh, old string) string {
	return `
[[smtp]]
listen = "127.0.0.1:0"
relay_from = ["127.0.0.1/32"]
[http]
api = "127.0.0.1:0"
admin = "127.0.0.1:0"
trust_loopback = true
[[tenant]]
name = "small"
[delivery]
retry_connection = "10m"
[[route]]
domains = ["*.fresh.example"]
next_hops = ["` + fresh + `"]
tls = "off"
[[route]]
domains = ["*"]
next_hops = ["` + old + `"]
tls = "off"
`
}

// startOver runs an engine on a data_dir that exists.
func startOver(t *testing.T, dir, config string) *engine {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tradewind.toml")
	head := "hostname = \"mta.interop.example\"\ndata_dir = \"" + dir + "\"\n"
	if err := os.WriteFile(file, []byte(head+config), 0o600); err != nil {
		t.Fatal(err)
	}
	e := &engine{dir: filepath.Dir(dir), config: file}
	e.run(t)
	return e
}

// cpu is what the engine has used of the processors.
func (e *engine) cpu(t *testing.T) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", e.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	ticks := 0
	for _, s := range f[11:13] { // utime and stime
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}

// peak is the most memory the engine ever had resident.
func (e *engine) peak(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// pace is one measurement of accepting and delivering.
type pace struct {
	rate float64       // messages a second, from the first MAIL to the last delivery
	cpu  time.Duration // of the engine, for each message
	p99  time.Duration // from MAIL to the reply to the dot
}

// measure puts the load through the engine.
func measure(t *testing.T, e *engine, a *arrivals, first *int) pace {
	t.Helper()
	n := *backlogLoad
	before, cpu, start := a.fresh.Load(), e.cpu(t), time.Now()
	r, err := loadgen.Source{
		Target: e.smtp[0], Connections: 20, Messages: n, Size: 10 << 10, FirstID: *first,
		From: "news@sender.example", To: "user%d@d%d.fresh.example",
	}.Run(t.Context())
	if err != nil || r.Accepted != int64(n) {
		t.Fatalf("load: %+v, %v", r, err)
	}
	eventually(t, "the load is delivered", func() bool { return a.fresh.Load() >= before+int64(n) })
	*first += n
	return pace{float64(n) / time.Since(start).Seconds(), (e.cpu(t) - cpu) / time.Duration(n), r.P99}
}

func median(list []pace, of func(pace) float64) float64 {
	values := make([]float64, len(list))
	for i, p := range list {
		values[i] = of(p)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// fairly hands over mail for a hundred recipients of another tenant, in domains that
// the backlog has mail for. Half of what is delivered from then on ought to be
// theirs: what counts is how much of the backlog goes before the last of them.
func fairly(t *testing.T, e *engine, a *arrivals) {
	t.Helper()
	const n = 100
	to := make([]string, n)
	for i := range to {
		to[i] = fmt.Sprintf(`"small%d@d%d.example"`, i, i%*backlogDomains)
	}
	raw := `X-Tradewind-Tenant: small\r\nFrom: b@other.example\r\nSubject: few\r\n\r\nfew\r\n`
	began, old := time.Now(), a.old.Load()
	status, body := post(t, e.api+"/v1/messages", "application/json", strings.NewReader(
		`{"return_path":"b@other.example","to":[`+strings.Join(to, ",")+`],"raw":"`+raw+`"}`))
	if status != http.StatusAccepted {
		t.Fatalf("the small tenant: %d %s", status, body)
	}
	accepted, oldThen := time.Since(began), a.old.Load()
	eventually(t, "the small tenant's mail is delivered", func() bool { return a.small.Load() >= n })
	took := time.Since(began)
	t.Logf("a hundred of another tenant: accepted after %v and %d of the backlog, delivered after %v and %d",
		accepted.Round(time.Millisecond), oldThen-old, took.Round(time.Millisecond), a.old.Load()-old)
}

// TestBacklogCostsNeitherMemoryNorTime measures an engine with a backlog beside
// one without: first with the backlog at rest, its next hop being out of reach,
// then with all of it on its way.
func TestBacklogCostsNeitherMemoryNorTime(t *testing.T) {
	dir := backlog(t)
	a := count(t)
	nowhere := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	config := backlogConfig(a.addr, nowhere)

	empty := startOver(t, filepath.Join(t.TempDir(), "data"), config)
	began := time.Now()
	full := startOver(t, dir, config)
	t.Logf("with the backlog at rest the engine is ready after %v", time.Since(began).Round(time.Millisecond))
	var without, with []pace
	first := 0
	measure(t, empty, a, &first) // caches and connections
	measure(t, full, a, &first)
	for i := range *backlogRounds {
		// In turn, so that neither always comes second.
		if i%2 == 0 {
			without = append(without, measure(t, empty, a, &first))
		}
		with = append(with, measure(t, full, a, &first))
		if i%2 != 0 {
			without = append(without, measure(t, empty, a, &first))
		}
	}
	for i := range without {
		t.Logf("empty: %5.0f/s %4v a message, p99 %v; backlog: %5.0f/s %4v a message, p99 %v",
			without[i].rate, without[i].cpu, without[i].p99.Round(time.Millisecond),
			with[i].rate, with[i].cpu, with[i].p99.Round(time.Millisecond))
	}
	rate := func(p pace) float64 { return p.rate }
	cpu := func(p pace) float64 { return float64(p.cpu) }
	t.Logf("rate with the backlog at rest: %.0f %% of the empty queue's; processor time: %.0f %%",
		100*median(with, rate)/median(without, rate), 100*median(with, cpu)/median(without, cpu))
	resting := full.peak(t)
	t.Logf("resident at the most: %d MiB with, %d MiB without", resting>>20, empty.peak(t)>>20)
	empty.drained(t)
	full.drained(t)

	began = time.Now()
	full = startOver(t, dir, backlogConfig(a.addr, a.addr))
	ready := time.Since(began)
	// An own tenant would do as well; urgent mail of the same one must pass its bulk.
	var waits []time.Duration
	post := func(i int) {
		to := fmt.Sprintf("urgent%d@d%d.example", i, i%*backlogDomains)
		sent := time.Now()
		status, body := post(t, full.api+"/v1/messages", "application/json", strings.NewReader(
			`{"from":"a@sender.example","to":["`+to+`"],"subject":"code","text":"1234","class":"transactional"}`))
		if status != http.StatusAccepted {
			t.Fatalf("urgent mail: %d %s", status, body)
		}
		eventually(t, to+" gets its mail", func() bool { _, ok := a.came(to); return ok })
		at, _ := a.came(to)
		waits = append(waits, at.Sub(sent))
	}
	post(0)
	accepted := time.Since(began)
	eventually(t, "the first of the backlog is delivered", func() bool { return a.first.Load() > 0 })
	delivered := time.Unix(0, a.first.Load()).Sub(began)
	t.Logf("from the start of the process: ready %v, first urgent mail through %v, first of the backlog delivered %v",
		ready.Round(time.Millisecond), accepted.Round(time.Millisecond), delivered.Round(time.Millisecond))
	fromOld, fromCPU, from := a.old.Load(), full.cpu(t), time.Now()
	for i := range 10 {
		post(1 + i)
		if a.old.Load() >= int64(float64(*backlogSize)*(1-*backlogDue)*0.9) {
			break
		}
	}
	const spell = 10 * time.Second
	eventually(t, "ten seconds of deliveries", func() bool {
		return time.Since(from) > spell || a.old.Load() >= int64(float64(*backlogSize)*(1-*backlogDue)*0.9)
	})
	sent, took, used := a.old.Load()-fromOld, time.Since(from), full.cpu(t)-fromCPU
	t.Logf("out of the backlog: %.0f/s, %v of the processor each", float64(sent)/took.Seconds(), used/time.Duration(max(sent, 1)))
	if _, metrics := get(t, full.admin+"/metrics"); bytes.Contains(metrics, []byte(`result="bounced"`)) {
		t.Error("mail of the backlog bounced: the rate is not one of deliveries")
	}
	fairly(t, full, a)
	slices.Sort(waits)
	t.Logf("urgent mail behind it: median %v, longest %v", waits[len(waits)/2].Round(time.Millisecond), waits[len(waits)-1].Round(time.Millisecond))
	flowing := full.peak(t)
	t.Logf("resident at the most while it flows: %d MiB", flowing>>20)
	if most := max(resting, flowing); most > backlogMemory {
		t.Errorf("resident at the most %d MiB, want at most %d", most>>20, backlogMemory>>20)
	}
	full.drained(t)
}
