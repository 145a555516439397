package test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

var rewrite = flag.Bool("rewrite", false, "put the events that came into the stories")

// TestStories tells every story under stories.
func TestStories(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("stories/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) { tell(t, name, archive) })
			if *rewrite && !t.Skipped() {
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// story is one file on its way through its commands.
type story struct {
	*world
	files   map[string]string
	line    int               // of the command, for messages
	ids     map[string]string // messages by the names the story gave them
	waiting []chan string     // replies to background injections
}

// command is one line and the indented ones below it.
type command struct {
	line  int // from 1
	words []string
	args  map[string][]string // the words of the form key=value
	raw   string
	block []string
}

// tell runs a story. It ends the test at the first thing that is not as told.
func tell(t *testing.T, name string, archive *txtar.Archive) {
	files := map[string]string{}
	for _, f := range archive.Files {
		files[f.Name] = string(f.Data)
	}
	w := newWorld(t, files["zone"], files["config.toml"])
	defer w.end()
	w.start()
	s := &story{world: w, files: files, ids: map[string]string{}}
	lines := strings.Split(string(archive.Comment), "\n")
	commands, err := parse(lines)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	shift := 0
	for _, c := range commands {
		s.line = c.line
		blockAt := c.line + shift
		before := len(c.block)
		err := s.run(c)
		if *rewrite && len(c.block) > 0 && c.words[0] == "expect" {
			lines = append(lines[:blockAt:blockAt], append(c.block, lines[blockAt+before:]...)...)
			shift += len(c.block) - before
		}
		if err != nil {
			t.Errorf("%s:%d: %s: %v", name, c.line, c.raw, err)
			break
		}
	}
	archive.Comment = []byte(strings.Join(lines, "\n"))
	if !t.Failed() {
		s.finish()
	}
	if t.Failed() {
		t.Logf("log of the engine:\n%s", s.log)
	}
}

// finish stops the engine and checks what every story promises.
func (s *story) finish() {
	s.t.Helper()
	for _, r := range s.sinks {
		r.release()
	}
	s.machine.disk.open()
	synctest.Wait()
	if s.done == nil {
		s.start()
	}
	s.checkEvents()
	s.stop()
	s.verify()
	_, unsigned := s.files["unsigned"]
	for _, r := range s.sinks {
		for i, m := range r.received() {
			if err := s.verifyMail(m, !unsigned); err != nil {
				s.t.Errorf("message %d at %s: %v\n%s", i+1, r.name, err, m.body)
			}
		}
	}
}

// parse takes a story apart into commands.
func parse(lines []string) (list []*command, err error) {
	for i, line := range lines {
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "" || strings.HasPrefix(trimmed, "#"):
			continue
		case line[0] == ' ' || line[0] == '\t':
			if len(list) == 0 || list[len(list)-1].line+len(list[len(list)-1].block) != i {
				return nil, fmt.Errorf("line %d belongs to no command", i+1)
			}
			last := list[len(list)-1]
			last.block = append(last.block, line)
			continue
		}
		c := &command{line: i + 1, raw: trimmed, args: map[string][]string{}}
		head := trimmed
		if j := strings.IndexByte(trimmed, '{'); j >= 0 && strings.HasPrefix(trimmed, "post") {
			head = trimmed[:j]
			c.args["json"] = []string{trimmed[j:]}
		}
		words, err := split(head)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		for _, w := range words {
			if key, value, ok := strings.Cut(w, "="); ok && key != "" && !strings.ContainsAny(key, " .@:") {
				c.args[key] = append(c.args[key], value)
				continue
			}
			c.words = append(c.words, w)
		}
		list = append(list, c)
	}
	return list, nil
}

// split takes a line apart at spaces that are not within quotes.
func split(line string) (words []string, err error) {
	var b strings.Builder
	quoted, some := false, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, some = !quoted, true
		case r == ' ' && !quoted:
			if some {
				words = append(words, b.String())
			}
			b.Reset()
			some = false
		default:
			b.WriteRune(r)
			some = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote is not closed")
	}
	if some {
		words = append(words, b.String())
	}
	return words, nil
}

// arg is the value of key=value, or normal.
func (c *command) arg(key, normal string) string {
	if v := c.args[key]; len(v) > 0 {
		return v[0]
	}
	return normal
}

func (c *command) number(key string, normal int) int {
	n, err := strconv.Atoi(c.arg(key, ""))
	if err != nil {
		return normal
	}
	return n
}

// word is the i-th word, or "".
func (c *command) word(i int) string {
	if i < len(c.words) {
		return c.words[i]
	}
	return ""
}

// expand replaces ${id} and ${+2h}.
func (s *story) expand(text string) string {
	return os.Expand(text, func(name string) string {
		if d, err := time.ParseDuration(name); err == nil {
			return time.Now().Add(d).UTC().Format(time.RFC3339)
		}
		if id, ok := s.ids[name]; ok {
			return id
		}
		s.t.Fatalf("line %d: nothing is called %q", s.line, name)
		return ""
	})
}

func (s *story) run(c *command) error {
	for i := range c.words {
		c.words[i] = s.expand(c.words[i])
	}
	for key, values := range c.args {
		for i := range values {
			c.args[key][i] = s.expand(values[i])
		}
	}
	switch c.word(0) {
	case "inject":
		return s.inject(c)
	case "post":
		return s.post(c)
	case "cancel":
		return s.cancelMail(c)
	case "suppress":
		return s.suppress(c)
	case "remember":
		return s.remember(c)
	case "bring":
		return s.bring(c)
	case "sink":
		return s.sink(c)
	case "dns":
		return s.dns(c)
	case "expect":
		synctest.Wait()
		return s.expect(c)
	}
	return s.engine(c)
}

// engine runs the commands about time and the engine itself.
func (s *story) engine(c *command) error {
	switch c.word(0) {
	case "advance":
		d, err := time.ParseDuration(c.word(1))
		if err != nil {
			return err
		}
		<-time.After(d)
		synctest.Wait()
	case "start":
		s.start()
	case "stop":
		s.stop()
	case "stopping":
		s.world.cancel()
		synctest.Wait()
	case "stopped":
		if err := <-s.done; err != nil {
			return err
		}
		s.done = nil
	case "restart":
		s.stop()
		s.start()
	case "crash", "kill":
		s.crash(c.word(0) == "crash")
	case "verify":
		s.stop()
		s.verify()
		s.start()
	case "reload":
		s.config = s.files[c.word(1)]
		cfg, err := configs.Parse(c.word(1), []byte(s.configuration(s.config)))
		if err != nil {
			return err
		}
		if _, err := s.reloader(cfg); err != nil {
			return err
		}
		synctest.Wait()
	case "disk":
		return s.disk(c)
	default:
		return fmt.Errorf("there is no command %q", c.word(0))
	}
	return nil
}

func (s *story) disk(c *command) error {
	switch c.word(1) {
	case "hold":
		s.machine.disk.hold()
	case "go":
		s.machine.disk.open()
	default:
		var free configs.ByteSize
		if err := free.UnmarshalText([]byte(c.arg("free", ""))); err != nil {
			return err
		}
		s.machine.disk.free.Store(uint64(free))
		<-time.After(2 * time.Second) // it looks every second
	}
	synctest.Wait()
	return nil
}

func (s *story) dns(c *command) error {
	name := c.word(2)
	switch c.word(1) {
	case "fail":
		mode, ok := map[string]zonetest.Mode{
			"servfail": zonetest.ServFail, "refused": zonetest.Refused, "nxdomain": zonetest.NXDomain,
			"timeout": zonetest.Timeout, "unreachable": zonetest.Unreachable,
		}[c.word(3)]
		if !ok {
			return fmt.Errorf("%q is not a way to fail", c.word(3))
		}
		s.zone.Fail(name, mode, c.words[4:]...)
	case "ok":
		s.zone.Fail(name, zonetest.OK)
	case "set":
		s.zone.Set(name, c.words[3:]...)
	case "remove":
		s.zone.Remove(name)
	default:
		return fmt.Errorf("dns cannot %q", c.word(1))
	}
	return nil
}

func (s *story) sink(c *command) error {
	name := c.word(1)
	if ip := c.arg("ip", ""); ip != "" {
		r := newReceiver(name)
		r.tls = c.arg("tls", "")
		if without := c.arg("without", ""); without != "" {
			r.without = strings.Split(without, ",")
		}
		s.sinks[name], s.byIP[ip] = r, r
		return nil
	}
	r := s.sinks[name]
	if r == nil {
		return fmt.Errorf("there is no sink %q", name)
	}
	switch c.word(2) {
	case "reply":
		r.mu.Lock()
		defer r.mu.Unlock()
		text := strings.ReplaceAll(c.word(4), `\n`, "\n")
		r.rules = append(r.rules, &rule{stage: c.word(3), text: text, to: c.arg("to", ""), times: c.number("times", -1)})
	case "clear":
		r.mu.Lock()
		defer r.mu.Unlock()
		r.rules = nil
	case "release":
		r.release()
		synctest.Wait()
	case "up", "down", "silent":
		r.mu.Lock()
		defer r.mu.Unlock()
		r.state = strings.TrimPrefix(c.word(2), "up")
	default:
		return fmt.Errorf("a sink cannot %q", c.word(2))
	}
	return nil
}
