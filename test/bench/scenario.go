package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// finding is what one scenario found, a row of its table.
type finding struct {
	Name   string
	What   string
	Result string
	Values map[string]float64
}

// scenarios are what the matrix cannot show: Tradewind alone.
func (r *report) scenarios(ctx context.Context) error {
	for _, s := range []struct {
		name string
		long bool // not in the quick run
		run  func(context.Context, *tradewind) error
	}{
		{"profile", false, r.profile},
		{"batch", false, r.batch},
		{"half", false, r.half},
		{"distance", false, r.distance},
		{"volume", true, r.volume},
		{"domains", true, r.domains},
	} {
		if !r.wants(s.name) || (s.long && r.quick) {
			continue
		}
		progress("%s", s.name)
		t := &tradewind{name: nameTradewind, binary: r.binary, dir: filepath.Join(r.work, "scenario")}
		if err := s.run(ctx, t); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (r *report) found(name, what string, values map[string]float64, format string, args ...any) {
	progress("%s: %s: "+format, append([]any{name, what}, args...)...)
	r.Findings = append(r.Findings, finding{name, what, fmt.Sprintf(format, args...), values})
}

// nowhere is a next hop where nobody listens: mail stays in the queue.
const nowhere = "127.0.0.1:1"

// batch sends requests of many personalised messages and delivers none of
// them: the price of a recipient before signing.
func (r *report) batch(ctx context.Context, t *tradewind) error {
	recipients := max(int(10000*r.scale), 100)
	t.next = nowhere
	c := matrix()[0]
	if err := t.start(ctx, &c, ""); err != nil {
		return err
	}
	defer t.stop()
	body, err := batchBody(recipients, 10*kib, time.Time{})
	if err != nil {
		return err
	}
	var costs, times []float64
	for range max(r.rounds, 2) {
		before, err := idle(ctx, t)
		if err != nil {
			return err
		}
		start := time.Now()
		if err := submit(t, body, recipients); err != nil {
			return err
		}
		took := time.Since(start)
		after, err := idle(ctx, t)
		if err != nil {
			return err
		}
		costs = append(costs, float64((after.cpu-before.cpu).Microseconds())/float64(recipients))
		times = append(times, took.Seconds())
	}
	cost, seconds := spreadOf(costs), spreadOf(times)
	r.found("batch", fmt.Sprintf("one HTTP request, %d personalised messages of 10 KiB, durable, not yet signed", recipients),
		map[string]float64{"cpu_us": cost.median, "seconds": seconds.median},
		"%s µs of CPU a recipient; %s s a request", cost.text(0), seconds.text(2))
	return nil
}

// submit posts a request of so many recipients, all of whom must be accepted.
func submit(t *tradewind, body []byte, recipients int) error {
	resp, err := http.Post("http://"+t.http()+"/v1/messages", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct{ Accepted int }
	err = json.NewDecoder(resp.Body).Decode(&answer)
	if err != nil || resp.StatusCode != http.StatusAccepted || answer.Accepted != recipients {
		return fmt.Errorf("%w: status %d, %d of %d recipients accepted, %v", errLost, resp.StatusCode, answer.Accepted, recipients, err)
	}
	return nil
}

// fillBacklog makes a store with mail that is due in a week and returns where it
// lies and how many recipients wait in it.
func (r *report) fillBacklog(ctx context.Context) (dir string, recipients int, err error) {
	const requests = 30
	each := max(int(10000*r.scale), 100)
	progress("filling a store with %d recipients", requests*each)
	t := &tradewind{name: nameTradewind, binary: r.binary, dir: filepath.Join(r.work, "backlog"), next: nowhere}
	if err := t.start(ctx, &matrix()[0], ""); err != nil {
		return "", 0, err
	}
	defer t.stop()
	body, err := batchBody(each, kib, time.Now().AddDate(0, 0, 7))
	if err != nil {
		return "", 0, err
	}
	for range requests {
		if err := submit(t, body, each); err != nil {
			return "", 0, err
		}
	}
	return filepath.Join(t.dir, "data"), requests * each, nil
}

// batchBody is a request of personalised messages of about so many octets. The
// zero time means at once.
func batchBody(recipients, size int, at time.Time) ([]byte, error) {
	type rcpt struct {
		Email         string            `json:"email"`
		Substitutions map[string]string `json:"substitutions"`
	}
	list := make([]rcpt, recipients)
	for i := range list {
		list[i] = rcpt{fmt.Sprintf("user%d@d%d.example", i, i%1000), map[string]string{"name": fmt.Sprintf("Reader %d", i), "city": "Lisbon"}}
	}
	line := "<p>Dear {{name}}, the quick brown fox of {{city}} jumps over the lazy dog.</p>\n"
	rest := "<p>And runs on to the next line, where it meets another dog, as lazy.</p>\n"
	html := line + strings.Repeat(rest, (size-600)/len(rest)) + line
	q := map[string]any{"from": "News <news@sender.example>", "subject": "Hello {{name}}", "html": html, "recipients": list}
	if !at.IsZero() {
		q["send_at"] = at.Format(time.RFC3339)
	}
	return json.Marshal(q)
}

// half offers half of what Tradewind can do at the most, for as long as -stall
// says, and looks at the acknowledgements.
func (r *report) half(ctx context.Context, t *tradewind) error {
	c := matrix()[0]
	peak := r.peak(c.name)
	if peak == 0 {
		s, err := measure(ctx, t, &c, 0, c.count(t, r.scale), 0)
		if err != nil {
			return err
		}
		peak = s.rate()
	}
	rate := peak / 2
	stop := watchHost()
	s, err := measure(ctx, t, &c, 0, int(rate*r.stall.Seconds()), rate)
	host, floor := stop().text()
	if err != nil {
		return err
	}
	r.found("half", fmt.Sprintf("10 KiB at half of the peak, %.0f messages/s for %v", rate, r.stall),
		map[string]float64{"p50": s.Accept.P50, "p99": s.Accept.P99, "max": s.Accept.Max, "gap": s.Longest.Seconds(), "fsyncs": s.Accept.P99 / r.machine.FsyncP50.Seconds(), "host_p99": floor.Seconds()},
		"answer to DATA p50 %s, p99 %s (%.1f × the median fsync), p99.9 %s, longest %s; longest time without an answer %s; %.0f µs of CPU a message; %s",
		ms(s.Accept.P50), ms(s.Accept.P99), s.Accept.P99/r.machine.FsyncP50.Seconds(), ms(s.Accept.P999), ms(s.Accept.Max), ms(s.Longest.Seconds()), s.cpu(), host)
	return nil
}

// distance drains the same queue into a sink that answers at once, over a
// hundred connections, and into one that takes 100 ms, over ten thousand.
func (r *report) distance(ctx context.Context, t *tradewind) error {
	messages := max(int(120000*r.scale), 1000)
	near, err := r.drain(ctx, t, messages, 100, 0)
	if err != nil {
		return err
	}
	far, err := r.drain(ctx, t, messages, min(10000, messages/2), 100*time.Millisecond)
	if err != nil {
		return err
	}
	r.found("distance", "the distant sink beside the one that answers at once",
		map[string]float64{"share": far.rate / near.rate, "octets_per_connection": (far.memory - near.memory) / (far.peak - near.peak)},
		"%.0f %% of its throughput; %.0f KiB more memory for each further connection, of which 10 are the message it carries",
		100*far.rate/near.rate, (far.memory-near.memory)/(far.peak-near.peak)/1024)
	return nil
}

// drained is what emptying a queue came to.
type drained struct {
	rate         float64
	peak, memory float64 // connections at a time; octets
}

// drain fills a queue and measures how fast it empties.
func (r *report) drain(ctx context.Context, t *tradewind, messages, lanes int, latency time.Duration) (d drained, err error) {
	c := matrix()[0]
	f, err := newFar(&c)
	if err != nil {
		return d, err
	}
	defer f.close()
	// Filled while nobody listens at the far end, and delivered after a
	// restart: source and relay do not compete.
	t.next, t.keep, t.lanes = nowhere, false, 0
	if err := t.start(ctx, &c, ""); err != nil {
		return d, err
	}
	l, err := offer(ctx, t, f, &c, "user", messages, 0)
	t.stop()
	if err != nil {
		return d, err
	}
	distant := c
	distant.latency = latency
	g, err := newFar(&distant)
	if err != nil {
		return d, err
	}
	defer g.close()
	g.ledger.Store(l)
	t.next, t.keep, t.lanes = "", true, lanes
	if err := t.start(ctx, &distant, g.addr); err != nil {
		return d, err
	}
	defer t.stop()
	if err := l.wait(ctx); err != nil {
		return d, err
	}
	after, err := idle(ctx, t)
	if err != nil {
		return d, err
	}
	if n := l.twice.Load(); n > 0 {
		return d, fmt.Errorf("%w: %d deliveries too many", errLost, n)
	}
	// In the middle of it: how long the connections take to open, and the last
	// messages to arrive, is another question.
	times := make([]int64, messages)
	for i := range times {
		times[i] = l.arrived[i].Load()
	}
	slices.Sort(times)
	from, to := messages/2, messages*19/20
	d = drained{
		rate: float64(to-from) / time.Duration(times[to]-times[from]).Seconds(),
		peak: float64(g.sink.Counts().Peak), memory: float64(peakOf(t.pid())),
	}
	cpu := float64(after.cpu.Microseconds()) / float64(messages)
	r.found("distance", fmt.Sprintf("%d waiting messages of 10 KiB into a sink that takes %v a reply, up to %d connections", messages, latency, lanes),
		map[string]float64{"rate": d.rate, "connections": d.peak, "memory": d.memory, "cpu_us": cpu},
		"%.0f messages/s from the middle on, %.0f over all of it; %.0f connections at a time; %.0f MiB at the most; %.0f µs of CPU a message",
		d.rate, float64(messages)/time.Duration(times[messages-1]-times[0]).Seconds(), d.peak, d.memory/(1<<20), cpu)
	return d, nil
}

// volume shows that a message costs the same however many there were before.
func (r *report) volume(ctx context.Context, t *tradewind) error {
	counts := []int{1000, 10000, 100000}
	if r.short {
		counts = counts[2:]
	}
	if r.long {
		counts = append(counts, 1000000)
	}
	for _, n := range counts {
		c := matrix()[1] // 1 KiB: the keys are what piles up
		n = max(int(float64(n)*r.scale), 100)
		s, err := measure(ctx, t, &c, 0, n, 0)
		if err != nil {
			return err
		}
		r.found("volume", fmt.Sprintf("%d messages of 1 KiB in one run", n), map[string]float64{"n": float64(n), "cpu_us": s.cpu()},
			"%.0f µs of CPU a message, %.0f messages/s", s.cpu(), s.rate())
	}
	return nil
}

// domains shows that a message costs the same however many destinations there are.
func (r *report) domains(ctx context.Context, t *tradewind) error {
	counts := []int{1, 100, 10000, 100000}
	if r.short {
		counts = counts[3:]
	}
	for _, n := range counts {
		c := matrix()[1]
		c.domains = n
		messages := 100000
		if r.long && n == 100000 {
			messages = 1000000
		}
		messages = max(int(float64(messages)*r.scale), 100)
		s, err := measure(ctx, t, &c, 0, messages, 0)
		if err != nil {
			return err
		}
		r.found("domains", fmt.Sprintf("%d messages of 1 KiB to %d domains", messages, n), map[string]float64{"n": float64(n), "cpu_us": s.cpu()},
			"%.0f µs of CPU a message, %.0f messages/s", s.cpu(), s.rate())
	}
	return nil
}
