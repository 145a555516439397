package tradewind_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// example is a command of docs/HTTP.md and the answer it shows.
type example struct {
	command string
	status  string
	answer  []string // JSON documents
	line    int
}

var fenced = regexp.MustCompile("(?ms)^```([a-z]+)([^\n]*)\n(.*?)^```$")

func examples(t *testing.T, page string) (list []example) {
	t.Helper()
	text := pages(t)[page]
	for _, m := range fenced.FindAllStringSubmatchIndex(text, -1) {
		info, body := strings.TrimSpace(text[m[4]:m[5]]), text[m[6]:m[7]]
		kind, rest, _ := strings.Cut(info, " ")
		switch kind {
		case "http-example":
			list = append(list, example{command: body, line: 1 + strings.Count(text[:m[0]], "\n")})
		case "http-answer":
			if len(list) == 0 || list[len(list)-1].status != "" {
				t.Fatalf("%s: an answer without a command: %s", page, body)
			}
			e := &list[len(list)-1]
			status, lines, _ := strings.Cut(rest, " ")
			e.status = status
			if lines == "lines" {
				e.answer = strings.Split(strings.TrimSpace(body), "\n")
			} else if body = strings.TrimSpace(body); body != "" {
				e.answer = []string{body}
			}
		}
	}
	return list
}

// words takes a shell command apart: words, quotes, continued lines, variables
// and $'\r\n', which is all the examples need.
func words(command string, vars map[string]string) (list []string) {
	command = strings.ReplaceAll(command, "\\\n", " ")
	var word strings.Builder
	inWord, quote := false, byte(0)
	for i := 0; i < len(command); i++ {
		c := command[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, inWord = c, true
		case quote == 0 && c == '$' && strings.HasPrefix(command[i:], "$'"):
			text, _, _ := strings.Cut(command[i+2:], "'")
			word.WriteString(strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(text))
			inWord, i = true, i+2+len(text)
		case quote != '\'' && c == '$':
			n := i + 1
			for n < len(command) && (command[n] == '_' || 'A' <= command[n] && command[n] <= 'Z') {
				n++
			}
			word.WriteString(vars[command[i+1:n]])
			inWord, i = true, n-1
		case quote == 0 && (c == ' ' || c == '\n'):
			if inWord {
				list = append(list, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		list = append(list, word.String())
	}
	return list
}

// curl does what the command of that name would.
func curl(ctx context.Context, args []string, hosts map[string]string) (status string, body []byte, err error) {
	if len(args) == 0 || args[0] != "curl" {
		return "", nil, fmt.Errorf("not a curl command: %q", args)
	}
	method, target, data := "", "", ""
	header := http.Header{}
	for i := 1; i < len(args); i++ {
		a := args[i]
		value := func() string {
			if i++; i < len(args) {
				return args[i]
			}
			return ""
		}
		switch {
		case a == "-s":
		case a == "-X":
			method = value()
		case a == "-H":
			name, v, _ := strings.Cut(value(), ":")
			header.Add(name, strings.TrimSpace(v))
		case a == "-d", a == "--data-binary":
			data = value()
			if method == "" {
				method = "POST"
			}
			if header.Get("Content-Type") == "" {
				header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
		case strings.HasPrefix(a, "-"):
			return "", nil, fmt.Errorf("option %s is not known here", a)
		default:
			target = a
		}
	}
	for from, to := range hosts {
		target = strings.Replace(target, from, to, 1)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(data))
	if err != nil {
		return "", nil, err
	}
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return fmt.Sprint(resp.StatusCode), body, err
}

// like compares an answer with the one shown, in which "…" stands for any
// value, as the last element of a list for any others, and as a member for any
// further members.
func like(shown, got any, at string) error {
	switch s := shown.(type) {
	case string:
		if s == "…" {
			return nil
		}
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: got %v, want an object", at, got)
		}
		_, open := s["…"]
		for k := range g {
			if _, there := s[k]; !there && !open {
				return fmt.Errorf("%s: the answer has %q as well", at, k)
			}
		}
		for k, v := range s {
			if k == "…" {
				continue
			}
			if _, there := g[k]; !there {
				return fmt.Errorf("%s: the answer has no %q", at, k)
			}
			if err := like(v, g[k], at+"."+k); err != nil {
				return err
			}
		}
		return nil
	case []any:
		g, ok := got.([]any)
		if !ok {
			return fmt.Errorf("%s: got %v, want a list", at, got)
		}
		if n := len(s); n > 0 && s[n-1] == "…" {
			s = s[:n-1]
			g = g[:min(len(g), len(s))]
		}
		if len(s) != len(g) {
			return fmt.Errorf("%s: got %d elements, want %d", at, len(g), len(s))
		}
		for i := range s {
			if err := like(s[i], g[i], fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
		return nil
	}
	if shown != got {
		return fmt.Errorf("%s: got %v, want %v", at, got, shown)
	}
	return nil
}

// check compares the answer with what the page shows and keeps what later
// commands refer to.
func (e *example) check(status string, body []byte, vars map[string]string) error {
	if status != e.status {
		return fmt.Errorf("got %s, want %s: %s", status, e.status, body)
	}
	dec := json.NewDecoder(strings.NewReader(string(body)))
	for i, text := range e.answer {
		var shown, got any
		if err := json.Unmarshal([]byte(text), &shown); err != nil {
			return fmt.Errorf("the answer shown is no JSON: %w", err)
		}
		if err := dec.Decode(&got); err != nil {
			return fmt.Errorf("answer %d: %w in %s", i, err, body)
		}
		if err := like(shown, got, "$"); err != nil {
			return fmt.Errorf("%w\n%s", err, body)
		}
		if o, ok := got.(map[string]any); ok {
			for field, name := range map[string]string{"id": "ID", "key": "TRADEWIND_KEY", "next": "NEXT"} {
				if v, ok := o[field].(string); ok {
					vars[name] = v
				}
			}
		}
	}
	if dec.More() {
		return fmt.Errorf("the answer goes on: %s", body)
	}
	return nil
}

func TestExamplesOfTheHTTPPageWorkAsShown(t *testing.T) {
	t.Parallel()
	sink, err := loadgen.New(loadgen.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	later, err := loadgen.New(loadgen.SinkConfig{DeferPercent: 100})
	if err != nil {
		t.Fatal(err)
	}
	a := engine(t, fmt.Sprintf(`
hostname = "mta.example"
[http]
api = "127.0.0.1:0"
admin = "127.0.0.1:0"
trust_loopback = true
[[route]]
domains = ["later.example"]
next_hops = [%q]
tls = "off"
[[route]]
domains = ["*"]
next_hops = [%q]
tls = "off"
`, serve(t, later), serve(t, sink)))
	hosts := map[string]string{"127.0.0.1:8025": a.HTTPAddr("api").String(), "127.0.0.1:9025": a.HTTPAddr("admin").String()}
	vars := map[string]string{}
	list := examples(t, "docs/HTTP.md")
	if len(list) < 10 {
		t.Fatalf("only %d examples found", len(list))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, e := range list {
		args := words(e.command, vars)
		var err error
		// What an event tells happens a moment after the request that caused
		// it, so that reading may take a second look.
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			var status string
			var body []byte
			status, body, err = curl(ctx, args, hosts)
			if err == nil {
				err = e.check(status, body, vars)
			}
			if err == nil || slices.ContainsFunc(args, func(a string) bool { return a == "-d" || a == "-X" || a == "--data-binary" }) {
				tick.Stop()
				break
			}
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
			}
			tick.Stop()
			break
		}
		if err != nil {
			t.Fatalf("docs/HTTP.md:%d: %v\n%s", e.line, err, e.command)
		}
	}
	if d := sink.Counts().Messages; d == 0 {
		t.Error("nothing was delivered")
	}
}

// serve gives a sink a listener on loopback for one test.
func serve(t *testing.T, s *loadgen.Sink) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l) // ends with the listener
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
		<-done
	})
	return l.Addr().String()
}

// Every call there is has its heading in the page.
func TestHTTPPageKnowsEveryCall(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("api/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	text := pages(t)["docs/HTTP.md"]
	for path, methods := range doc.Paths {
		for m := range methods {
			if call := strings.ToUpper(m) + " " + path; !strings.Contains(text, "`"+call+"`") {
				t.Errorf("docs/HTTP.md says nothing of %s", call)
			}
		}
	}
	admin, err := os.ReadFile("app/admin.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`Pattern: "([A-Z]+ [^"]+)"`).FindAllStringSubmatch(string(admin), -1) {
		if !strings.Contains(text, "`"+m[1]+"`") {
			t.Errorf("docs/HTTP.md says nothing of %s", m[1])
		}
	}
}
