//go:build soak && linux

package interop

import (
	"bytes"
	"encoding/csv"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

var (
	soakFor  = flag.Duration("soak", time.Minute, "how long TestSoak lasts")
	soakRate = flag.Float64("rate", 0, "messages a second of TestSoak; 0 means 70 % of what a short burst reaches")
	soakOut  = flag.String("out", "", "directory for soak.csv and soak.svg; \"\" means nowhere")
)

// usage is what a process holds on to at one moment.
type usage struct {
	at         time.Duration // since the start of the soak
	memory     int64         // resident, octets
	goroutines int
	files      int   // open descriptors
	disk       int64 // under its data_dir, octets
	waiting    int
	delivered  int // since the start of the soak
}

// soak is one run.
type soak struct {
	t     *testing.T
	e     *engine
	began time.Time

	mu       sync.Mutex // protects everything below
	seen     map[string]uint8
	samples  []usage
	restarts []time.Duration
	down     bool
}

// sampleEvery is how often usage is looked at.
const sampleEvery = 5 * time.Second

// sample looks at the engine until stop is closed.
func (s *soak) sample(stop <-chan struct{}) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		if !s.down {
			if u, ok := s.look(); ok {
				s.samples = append(s.samples, u)
			}
		}
		s.mu.Unlock()
	}
}

// look takes one sample. REQUIRES: s.mu.
func (s *soak) look() (u usage, ok bool) {
	pid := s.e.cmd.Process.Pid
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, false
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		return u, false
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, false
	}
	_, metrics := get(s.t, s.e.admin+"/metrics")
	u = usage{
		at: time.Since(s.began), memory: kib << 10, files: len(files), delivered: len(s.seen),
		goroutines: int(metric(metrics, "go_goroutines")), waiting: int(metric(metrics, "tradewind_queue_recipients")),
	}
	// Files come and go while they are counted.
	filepath.WalkDir(filepath.Join(s.e.dir, "data"), func(_ string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if info, err := d.Info(); err == nil {
				u.disk += info.Size()
			}
		}
		return nil
	})
	return u, true
}

// metric is the value of a metric without labels.
func metric(text []byte, name string) float64 {
	for line := range bytes.Lines(text) {
		if v, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			f, _ := strconv.ParseFloat(string(bytes.TrimSpace(v)), 64)
			return f
		}
	}
	return -1
}

// restart stops the engine in order and starts it again.
func (s *soak) restart() {
	s.mu.Lock()
	s.down = true
	s.restarts = append(s.restarts, time.Since(s.began))
	s.mu.Unlock()
	s.e.drained(s.t)
	s.e.run(s.t)
	s.mu.Lock()
	s.down = false
	s.mu.Unlock()
}

func (s *soak) delivered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// TestSoak keeps the real binary under 70 % of the load it can take, a tenth of it
// greylisted and some of it refused, stops and starts it in between, and holds that
// nothing is lost or sent twice, and that what the process holds on to does not
// grow with what went through.
func TestSoak(t *testing.T) {
	s := &soak{t: t, seen: make(map[string]uint8)}
	sink, addr := serveSink(t, "127.0.0.1:0", loadgen.SinkConfig{DeferPercent: 10, RejectPercent: 2, OnMessage: func(r *loadgen.Received) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, to := range r.To {
			s.seen[to]++
		}
	}})
	keyFile := filepath.Join(t.TempDir(), "s1.pem")
	mustRun(t, binary, "dkim", "keygen", "--type", "ed25519", "--domain", "sender.example", "--selector", "s1", "--out", keyFile)
	s.e = start(t, toSink(addr)+`
[events]
retention = "2m"
file_max_size = "32MiB"
file_keep = 2
[[dkim]]
domain = "sender.example"
selector = "s1"
key_file = "`+keyFile+`"
`)
	sent := 0
	refused := func() int { return int(sink.Counts().Replies[550]) }
	load := func(n int, rate float64) loadgen.Report {
		r, err := loadgen.Source{
			Target: s.e.smtp[0], Connections: 8, Messages: n, Rate: rate, Size: 10 << 10,
			From: "news@sender.example", To: "user%d@d%d.example", FirstID: sent,
		}.Run(t.Context())
		if err != nil || r.Accepted != int64(n) {
			t.Fatalf("load: %+v, %v", r, err)
		}
		sent += n
		eventually(t, "what was sent is settled", func() bool { return s.delivered()+refused() >= sent })
		return r
	}
	rate := *soakRate
	if rate == 0 {
		burst := min(20_000, max(2000, int(soakFor.Seconds()*20)))
		began := time.Now()
		load(burst, 0)
		rate = 0.7 * float64(burst) / time.Since(began).Seconds()
	}

	// Twelve spells of load with restarts between them in the first half; the
	// second half runs through.
	const spells = 12
	s.began = time.Now()
	stop, sampled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sampled)
		s.sample(stop)
	}()
	for i := range spells {
		if i > 0 && i <= spells/2 && i%2 == 0 {
			s.restart()
		}
		n := max(1, int(rate*soakFor.Seconds()/spells))
		r := load(n, rate)
		t.Logf("spell %2d: %7d delivered, %5d refused, p99 of the reply to the dot %v", i+1, s.delivered(), refused(), r.P99.Round(time.Millisecond))
	}
	close(stop)
	<-sampled
	s.e.drained(t)
	if got := len(s.seen) + refused(); got != sent {
		t.Errorf("%d recipients got mail or a refusal, want %d", got, sent)
	}
	for to, n := range s.seen {
		if n != 1 {
			t.Errorf("%s: %d times", to, n)
		}
	}
	t.Logf("%d messages at %.0f/s in %v", sent, rate, time.Since(s.began).Round(time.Second))
	s.flat()
	if *soakOut != "" {
		s.write(fmt.Sprintf("Soak: %.0f messages/s, a tenth greylisted, 2 %% refused", rate))
	}
}

// flat compares the last quarter with the one in which the restarts ended.
func (s *soak) flat() {
	s.t.Helper()
	n := len(s.samples)
	if n < 8 {
		s.t.Fatalf("%d samples are too few to tell", n)
	}
	middle, end := s.samples[n/2:3*n/4], s.samples[3*n/4:]
	for _, c := range []struct {
		what      string
		of        func(usage) int64
		allowance int64 // a short run ends before memtables and caches are full
	}{
		{"memory", func(u usage) int64 { return u.memory }, 96 << 20},
		{"goroutines", func(u usage) int64 { return int64(u.goroutines) }, 50},
		{"files", func(u usage) int64 { return int64(u.files) }, 50},
		{"disk", func(u usage) int64 { return u.disk }, 384 << 20},
	} {
		early, late := middleOf(middle, c.of), middleOf(end, c.of)
		s.t.Logf("%s: %d in the third quarter, %d in the last", c.what, early, late)
		if late > early+early/4+c.allowance {
			s.t.Errorf("%s grew from %d to %d", c.what, early, late)
		}
	}
}

func middleOf(list []usage, of func(usage) int64) int64 {
	values := make([]int64, len(list))
	for i, u := range list {
		values[i] = of(u)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// write puts the samples into a table and a plot.
func (s *soak) write(title string) {
	s.t.Helper()
	var table, picture bytes.Buffer
	c := csv.NewWriter(&table)
	c.Write([]string{"seconds", "memory_bytes", "goroutines", "files", "disk_bytes", "waiting", "delivered"}) // errors come from Flush
	var at, marks []float64
	lines := []series{{"memory, MiB", "", nil}, {"goroutines", "", nil}, {"open files", "", nil}, {"disk, MiB", "", nil}, {"waiting", "", nil}}
	for _, u := range s.samples {
		c.Write([]string{
			fmt.Sprintf("%.0f", u.at.Seconds()), fmt.Sprint(u.memory), fmt.Sprint(u.goroutines),
			fmt.Sprint(u.files), fmt.Sprint(u.disk), fmt.Sprint(u.waiting), fmt.Sprint(u.delivered),
		})
		at = append(at, u.at.Seconds())
		for i, v := range []float64{float64(u.memory >> 20), float64(u.goroutines), float64(u.files), float64(u.disk >> 20), float64(u.waiting)} {
			lines[i].values = append(lines[i].values, v)
		}
	}
	for _, r := range s.restarts {
		marks = append(marks, r.Seconds())
	}
	c.Flush()
	if err := c.Error(); err != nil {
		s.t.Fatal(err)
	}
	if err := plot(&picture, title, at, marks, lines); err != nil {
		s.t.Fatal(err)
	}
	for name, b := range map[string][]byte{"soak.csv": table.Bytes(), "soak.svg": picture.Bytes()} {
		if err := os.WriteFile(filepath.Join(*soakOut, name), b, 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}
