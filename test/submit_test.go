package test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/tradewind-mta/tradewind/mta/mx/zonetest"
)

// inject submits mail over SMTP.
func (s *story) inject(c *command) error {
	from, to := c.arg("from", ""), strings.Split(c.arg("to", ""), ",")
	mailParams, rcptParams := "", ""
	for _, p := range []string{"ret", "envid"} {
		if v := c.arg(p, ""); v != "" {
			mailParams += " " + strings.ToUpper(p) + "=" + v
		}
	}
	if strings.ContainsFunc(from+c.arg("to", "")+c.arg("smtputf8", ""), func(r rune) bool { return r > 0x7E }) {
		mailParams += " SMTPUTF8"
	}
	if v := c.arg("notify", ""); v != "" {
		rcptParams = " NOTIFY=" + v
	}
	text := s.letter(c, from, to)
	count := c.number("count", 1)
	submit := func() (reply string) {
		conn, err := s.machine.client(context.Background(), submissionAddr)
		if err != nil {
			return "000 " + err.Error()
		}
		defer conn.Close()
		cl := &client{rw: bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))}
		if !cl.say("", 220) || !cl.say("EHLO client.example", 250) {
			return cl.last
		}
		for range count {
			reply = cl.send(from, to, mailParams, rcptParams, text)
		}
		return reply
	}
	if c.word(1) == "background" {
		answer := make(chan string, 1)
		go func() { answer <- submit() }()
		s.waiting = append(s.waiting, answer)
		synctest.Wait()
		return nil
	}
	reply := submit()
	if want := c.arg("code", "250"); !strings.HasPrefix(reply, want) {
		return fmt.Errorf("got reply %q, want %s", reply, want)
	}
	if as := c.arg("as", ""); as != "" {
		s.ids[as] = ulid.FindString(reply)
	}
	synctest.Wait()
	return nil
}

var ulid = regexp.MustCompile(`[0-9A-HJKMNP-TV-Z]{26}`)

// letter is the message to inject: a file of the story, or a plain one.
func (s *story) letter(c *command, from string, to []string) string {
	text := s.files[c.arg("file", "")]
	if text == "" {
		if from == "" {
			from = "daemon@sender.example"
		}
		text = "From: " + from + "\nTo: " + to[0] + "\nSubject: A story\n\nOnce upon a time.\n"
	}
	if n := c.number("size", 0); n > 0 {
		text += strings.Repeat(strings.Repeat("x", 71)+"\n", n/72)
	}
	for _, h := range c.args["header"] {
		text = h + "\n" + text
	}
	text = strings.ReplaceAll(s.expand(text), "\n", "\r\n")
	return strings.ReplaceAll(text, "\r\n.", "\r\n..")
}

// client speaks SMTP, one command at a time. After a failure it says nothing
// more.
type client struct {
	rw   *bufio.ReadWriter
	last string
	over bool
}

// say sends a command and returns whether the reply has the code wanted.
func (cl *client) say(command string, want int) bool {
	if cl.over {
		return false
	}
	if command != "" {
		cl.rw.WriteString(command + "\r\n")
		cl.rw.Flush()
	}
	for {
		line, err := cl.rw.ReadString('\n')
		if err != nil {
			cl.last, cl.over = "000 "+err.Error(), true
			return false
		}
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		cl.last = strings.TrimSpace(line)
		return strings.HasPrefix(cl.last, strconv.Itoa(want))
	}
}

// send submits one message and returns the reply that decided about it.
func (cl *client) send(from string, to []string, mailParams, rcptParams, text string) string {
	ok := cl.say("MAIL FROM:<"+from+">"+mailParams, 250)
	for _, r := range to {
		ok = ok && cl.say("RCPT TO:<"+r+">"+rcptParams, 250)
	}
	if ok && cl.say("DATA", 354) {
		cl.say(text+".", 250)
		return cl.last
	}
	reply := cl.last
	cl.say("RSET", 250)
	return reply
}

// post submits mail over HTTP.
func (s *story) post(c *command) error {
	header := http.Header{"Content-Type": {"application/json"}}
	if key := c.arg("key", ""); key != "" {
		header.Set("Idempotency-Key", key)
	}
	code, answer, body := s.request(c.arg("tenant", "default"), apiAddr, "POST", "/v1/messages", []byte(c.arg("json", "")), header)
	if want := c.arg("code", "202"); strconv.Itoa(code) != want {
		return fmt.Errorf("got status %d, want %s: %s", code, want, body)
	}
	if replayed := answer.Get("Idempotent-Replayed") == "true"; replayed != (c.word(1) == "replayed") {
		return fmt.Errorf("got Idempotent-Replayed %v", replayed)
	}
	if code == http.StatusServiceUnavailable && answer.Get("Retry-After") == "" {
		return fmt.Errorf("no Retry-After")
	}
	var accepted struct{ ID string }
	json.Unmarshal(body, &accepted) // a refusal has no id
	as := c.arg("as", "")
	if old := s.ids[as]; old != "" && as != "" && old != accepted.ID {
		return fmt.Errorf("got id %s, want %s again", accepted.ID, old)
	}
	s.ids[as] = accepted.ID
	synctest.Wait()
	return nil
}

func (s *story) cancelMail(c *command) error {
	code, _, body := s.request("default", apiAddr, "DELETE", "/v1/messages/"+s.id(c.word(1)), nil, nil)
	if want := c.arg("code", "200"); strconv.Itoa(code) != want {
		return fmt.Errorf("got status %d, want %s: %s", code, want, body)
	}
	return nil
}

func (s *story) id(name string) string {
	if id, ok := s.ids[name]; ok {
		return id
	}
	s.t.Fatalf("line %d: no message is called %q", s.line, name)
	return ""
}

func (s *story) suppress(c *command) error {
	body := fmt.Sprintf(`{"email":%q,"reason":"manual"}`, c.word(1))
	code, _, answer := s.request("default", apiAddr, "POST", "/v1/suppressions", []byte(body), http.Header{"Content-Type": {"application/json"}})
	if code/100 != 2 {
		return fmt.Errorf("got status %d: %s", code, answer)
	}
	return nil
}

// apiKey is a key of the tenant, or of the operator for "".
func (w *world) apiKey(tenant string) string {
	w.t.Helper()
	if key := w.apiKeys[tenant]; key != "" {
		return key
	}
	scopes := `["inject","events","suppression"]`
	if tenant == "" {
		scopes = `["admin"]`
	}
	body := fmt.Sprintf(`{"name":"story %s","tenant":%q,"scopes":%s}`, tenant, tenant, scopes)
	code, _, answer := w.request("default", adminAddr, "POST", "/v1/keys", []byte(body), http.Header{"Content-Type": {"application/json"}})
	var out struct{ Key string }
	if err := json.Unmarshal(answer, &out); err != nil || code != http.StatusCreated {
		w.t.Fatalf("make an API key: status %d: %s", code, answer)
	}
	w.apiKeys[tenant] = out.Key
	return out.Key
}

// happened is one event as the API tells it.
type happened struct {
	ID          string
	Type        string
	Time        time.Time
	MessageID   string `json:"message_id"`
	RecipientID string `json:"recipient_id"`
	Recipient   string
	Seq         int
	Terminal    bool
	Attempt     int
	Next        time.Time `json:"next_attempt"`
	Tenant      string
	Campaign    string
	Class       string
	Metadata    json.RawMessage
	Category    string
	Suppressing bool
	Origin      string
	Detail      string
	Reply       struct {
		Code     int
		Enhanced string
		Text     string
		Stage    string
		Host     string `json:"remote_host"`
		TLS      string
		Local    bool
	}
	Egress struct{ Source, Pool, Provider, Site string }
}

// events reads the journal, all of it, as the operator.
func (w *world) events(filter url.Values) (list []happened) {
	w.t.Helper()
	if filter == nil {
		filter = url.Values{}
	}
	filter.Set("limit", "1000")
	for {
		code, _, body := w.request("", apiAddr, "GET", "/v1/events?"+filter.Encode(), nil, nil)
		var page struct {
			Events []happened
			Next   string
		}
		if err := json.Unmarshal(body, &page); err != nil || code != http.StatusOK {
			w.t.Fatalf("events: status %d: %v: %s", code, err, body)
		}
		list = append(list, page.Events...)
		if page.Next == filter.Get("after") || len(page.Events) == 0 {
			return list
		}
		filter.Set("after", page.Next)
	}
}

// lookupTXT answers a DKIM verifier from the zone.
func lookupTXT(zone *zonetest.Zone, name string) ([]string, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.TypeTXT)
	answer, err := zone.Exchange(context.Background(), q, "tcp", "story")
	if err != nil {
		return nil, err
	}
	var list []string
	for _, rr := range answer.Answer {
		if txt, ok := rr.(*dns.TXT); ok {
			list = append(list, strings.Join(txt.Txt, ""))
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no TXT record under %s", name)
	}
	return list, nil
}
