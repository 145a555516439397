package test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
)

// expect checks one thing. What is not as expected comes back as an error, with
// a diff where there are several lines.
func (s *story) expect(c *command) error {
	switch c.word(1) {
	case "events":
		return s.expectEvents(c)
	case "sink":
		return s.expectSink(c)
	case "mail":
		return s.expectMail(c)
	case "order":
		return s.expectOrder(c)
	case "before":
		return s.expectBefore(c)
	case "queue":
		return s.expectQueue(c)
	case "status":
		return s.expectStatus(c)
	case "log", "nolog":
		if has := strings.Contains(s.log.String(), c.word(2)); has != (c.word(1) == "log") {
			return fmt.Errorf("the log has it: %v", has)
		}
		return nil
	case "reply":
		return s.expectReply(c)
	case "suppressed":
		return s.expectSuppressed(c)
	case "held":
		return s.expectHeld(c)
	case "metric":
		return s.expectMetric(c)
	}
	return fmt.Errorf("there is nothing called %q to expect", c.word(1))
}

// expectMetric compares a metric of this life of the engine, over all labels.
func (s *story) expectMetric(c *command) error {
	families, err := s.metrics.Gather()
	if err != nil {
		return err
	}
	total := 0.0
	for _, f := range families {
		if f.GetName() == c.word(2) {
			for _, m := range f.Metric {
				total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	if got := fmt.Sprint(total); got != c.word(3) {
		return fmt.Errorf("%s is %s, want %s", c.word(2), got, c.word(3))
	}
	return nil
}

// expectEvents compares the events of a recipient with the lines of the block.
// Each line names the type and the fields it cares about.
func (s *story) expectEvents(c *command) error {
	filter := url.Values{"recipient": {c.word(2)}}
	if m := c.arg("message", ""); m != "" {
		filter.Set("message", s.id(m))
	}
	var want, got []string
	for i, line := range c.block {
		words, err := split(strings.TrimSpace(line))
		if err != nil {
			return fmt.Errorf("line %d: %w", c.line+1+i, err)
		}
		want = append(want, s.expand(join(words)))
	}
	list := slices.DeleteFunc(s.events(filter), func(e happened) bool { return !strings.HasPrefix(e.Type, "message.") })
	for i := range list {
		keys := []string{"attempt", "code"}
		if i < len(c.block) {
			keys = keysOf(c.block[i])
		}
		got = append(got, s.describe(&list[i], keys))
	}
	if *rewrite {
		c.block = c.block[:0:0]
		for _, g := range got {
			c.block = append(c.block, "\t"+g)
		}
		return nil
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("events (-want +got):\n%s", diff)
	}
	return nil
}

// keysOf lists the fields a line names.
func keysOf(line string) (keys []string) {
	words, _ := split(strings.TrimSpace(line)) // read before
	for _, w := range words[1:] {
		key, _, _ := strings.Cut(w, "=")
		keys = append(keys, key)
	}
	return keys
}

// join writes words with quotes where they need them.
func join(words []string) string {
	for i, w := range words {
		if strings.Contains(w, " ") {
			key, value, _ := strings.Cut(w, "=")
			words[i] = key + `="` + value + `"`
		}
	}
	return strings.Join(words, " ")
}

// describe writes an event with the fields named.
func (s *story) describe(e *happened, keys []string) string {
	words := []string{strings.TrimPrefix(e.Type, "message.")}
	for _, key := range keys {
		words = append(words, key+"="+s.field(e, key))
	}
	return join(words)
}

func (s *story) field(e *happened, key string) string {
	since := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return t.Sub(s.began).Round(time.Second).String()
	}
	switch key {
	case "at":
		return since(e.Time)
	case "next":
		return since(e.Next)
	case "attempt":
		return strconv.Itoa(e.Attempt)
	case "code":
		return strconv.Itoa(e.Reply.Code)
	case "enhanced":
		return e.Reply.Enhanced
	case "text":
		return e.Reply.Text
	case "stage":
		return e.Reply.Stage
	case "host":
		return e.Reply.Host
	case "tls":
		return strconv.FormatBool(e.Reply.TLS != "")
	case "category":
		return e.Category
	case "suppressing":
		return strconv.FormatBool(e.Suppressing)
	case "tenant":
		return e.Tenant
	case "campaign":
		return e.Campaign
	case "class":
		return e.Class
	case "pool":
		return e.Egress.Pool
	case "source":
		return e.Egress.Source
	case "metadata":
		return strings.ReplaceAll(string(e.Metadata), `"`, "") // quotes group words here
	case "origin":
		return e.Origin
	case "detail":
		return e.Detail
	}
	return "no such field"
}

func (s *story) expectSink(c *command) error {
	r := s.sinks[c.word(2)]
	if r == nil {
		return fmt.Errorf("there is no such sink")
	}
	counts := r.counts()
	for key, values := range c.args {
		got, ok := counts[key]
		if !ok {
			return fmt.Errorf("a sink does not count %s", key)
		}
		if strconv.Itoa(got) != values[0] {
			return fmt.Errorf("%s: got %d", key, got)
		}
	}
	return nil
}

func (s *story) expectMail(c *command) error {
	r := s.sinks[c.word(2)]
	n, err := strconv.Atoi(c.word(3))
	if err != nil || r == nil {
		return fmt.Errorf("expect mail SINK NUMBER")
	}
	list := r.received()
	if n > len(list) {
		return fmt.Errorf("only %d came", len(list))
	}
	m := list[n-1]
	fields := map[string]string{
		"from": m.from, "to": strings.Join(m.to, ","), "tls": strconv.FormatBool(m.tls), "helo": m.helo,
		"params": m.mailParams, "rcptparams": strings.Join(m.rcptParams, ","),
		"at": m.at.Round(time.Second).String(),
	}
	for key, values := range c.args {
		got := fields[key]
		if got == values[0] || strings.HasSuffix(key, "params") && strings.Contains(got, values[0]) && values[0] != "" {
			continue
		}
		return fmt.Errorf("%s: got %q", key, got)
	}
	text := strings.ReplaceAll(string(m.body), "\r\n", "\n")
	for _, line := range c.block {
		verb, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		what = s.expand(what)
		has := strings.Contains(text, what)
		if verb != "has" && verb != "lacks" {
			return fmt.Errorf("%q is neither has nor lacks", verb)
		}
		if has != (verb == "has") {
			return fmt.Errorf("%s %q: not so:\n%s", verb, what, text)
		}
	}
	return nil
}

// expectOrder compares the recipients of the messages a sink took, in order.
func (s *story) expectOrder(c *command) error {
	r := s.sinks[c.word(2)]
	if r == nil {
		return fmt.Errorf("there is no such sink")
	}
	var got []string
	for _, m := range r.received() {
		if m.accepted() {
			got = append(got, strings.Join(m.to, ","))
		}
	}
	if diff := cmp.Diff(c.words[3:], got); diff != "" {
		return fmt.Errorf("order (-want +got):\n%s", diff)
	}
	return nil
}

// expectBefore checks that, behind the last message to one recipient, at least n
// to another one were still to come.
func (s *story) expectBefore(c *command) error {
	r := s.sinks[c.word(2)]
	n, err := strconv.Atoi(c.word(5))
	if err != nil || r == nil {
		return fmt.Errorf("expect before SINK RECIPIENT OTHER NUMBER")
	}
	behind := -1
	for _, m := range r.received() {
		switch {
		case !m.accepted():
		case slices.Contains(m.to, c.word(3)):
			behind = 0
		case slices.Contains(m.to, c.word(4)) && behind >= 0:
			behind++
		}
	}
	if behind < n {
		return fmt.Errorf("only %d came after it", behind)
	}
	return nil
}

func (s *story) expectQueue(c *command) error {
	_, _, body := s.request("", adminAddr, "GET", "/v1/queues", nil, nil)
	var out struct{ Waiting int }
	if err := json.Unmarshal(body, &out); err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	if strconv.Itoa(out.Waiting) != c.word(2) {
		return fmt.Errorf("got %d", out.Waiting)
	}
	return nil
}

func (s *story) expectStatus(c *command) error {
	code, _, body := s.request("default", apiAddr, "GET", "/v1/messages/"+s.id(c.word(2)), nil, nil)
	var out struct {
		Recipients []struct {
			State   string
			Attempt int
			Next    time.Time `json:"next_attempt"`
			Reply   string
			Holding string
		}
	}
	if err := json.Unmarshal(body, &out); err != nil || code != 200 || len(out.Recipients) == 0 {
		return fmt.Errorf("status %d: %v: %s", code, err, body)
	}
	r := out.Recipients[0]
	next := "never"
	if !r.Next.IsZero() {
		next = r.Next.Sub(s.began).Round(time.Second).String()
	}
	got := map[string]string{"state": r.State, "attempt": strconv.Itoa(r.Attempt), "next": next, "reply": r.Reply, "holding": r.Holding}
	for key, values := range c.args {
		if key == "reply" && strings.Contains(r.Reply, values[0]) {
			continue
		}
		if got[key] != values[0] {
			return fmt.Errorf("%s: got %q", key, got[key])
		}
	}
	return nil
}

// expectReply takes the answer to the first injection still in the background;
// "none" means that there is none yet.
func (s *story) expectReply(c *command) error {
	if len(s.waiting) == 0 {
		return fmt.Errorf("nothing is in the background")
	}
	select {
	case got := <-s.waiting[0]:
		s.waiting = s.waiting[1:]
		if !strings.HasPrefix(got, c.word(2)) {
			return fmt.Errorf("got %q", got)
		}
	default:
		if c.word(2) != "none" {
			return fmt.Errorf("there is no answer yet")
		}
	}
	return nil
}

// checkEvents holds every recipient's events to their promises: numbered from 1
// without a gap, in the order of time, and nothing after a final one.
func (s *story) checkEvents() {
	s.t.Helper()
	last := map[string]happened{}
	for _, e := range s.events(nil) {
		if e.RecipientID == "" {
			continue
		}
		old, seen := last[e.RecipientID]
		switch {
		case e.Seq != old.Seq+1:
			s.t.Errorf("recipient %s: event %d follows %d", e.RecipientID, e.Seq, old.Seq)
		case !seen && e.Type != "message.accepted":
			s.t.Errorf("recipient %s begins with %s", e.RecipientID, e.Type)
		case e.Time.Before(old.Time):
			s.t.Errorf("recipient %s: %s at %v is earlier than %s at %v", e.RecipientID, e.Type, e.Time, old.Type, old.Time)
		case old.Terminal && e.isLate():
			e.Terminal = true // nothing else may follow either
		case old.Terminal:
			s.t.Errorf("recipient %s: %s follows the final %s", e.RecipientID, e.Type, old.Type)
		}
		last[e.RecipientID] = e
	}
}
