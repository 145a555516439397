package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	netmail "net/mail"
	"net/url"
	"strings"
	"testing/synctest"
	"time"

	"github.com/tradewind-mta/tradewind/dkim"
)

// bounceAddr is where stories have their listener for reports.
const bounceAddr = "127.0.0.1:2526"

// remember takes from a message that a sink got what a report would carry back,
// under names that begin with as: AS.path, AS.msgid, AS.ref, AS.fid, and of
// List-Unsubscribe AS.unsub and AS.subject.
func (s *story) remember(c *command) error {
	r, n, as := s.sinks[c.word(1)], c.number("mail", 1), c.arg("as", "")
	if r == nil || len(r.received()) < n {
		return fmt.Errorf("no such mail")
	}
	m := r.received()[n-1]
	parsed, err := netmail.ReadMessage(bytes.NewReader(m.body))
	if err != nil {
		return err
	}
	h := parsed.Header
	s.ids[as+".path"] = m.from
	s.ids[as+".msgid"] = h.Get("Message-ID")
	s.ids[as+".ref"] = h.Get("X-Report-Ref")
	s.ids[as+".fid"] = h.Get("Feedback-ID")
	address, subject, _ := strings.Cut(strings.Trim(h.Get("List-Unsubscribe"), "<>"), "?subject=")
	s.ids[as+".unsub"], s.ids[as+".subject"] = strings.TrimPrefix(address, "mailto:"), subject
	return nil
}

// bring sends a report to the bounce listener.
func (s *story) bring(c *command) error {
	text, ok := s.files[c.arg("file", "")]
	if !ok {
		return fmt.Errorf("no file %q", c.arg("file", ""))
	}
	text = strings.ReplaceAll(s.expand(text), "\n", "\r\n")
	if d := c.arg("sign", ""); d != "" {
		ring, err := dkim.New(dkim.Config{Keys: []dkim.KeyConfig{{Domain: "*", SigningDomain: d, Selector: "s1", KeyFile: s.keyFile}}}, dkim.Deps{})
		if err != nil {
			return err
		}
		fields, err := ring.Sign(context.Background(), dkim.Request{Message: []byte(text), From: d, Now: time.Now()})
		if err != nil {
			return err
		}
		text = string(fields) + text
	}
	to := c.arg("to", "")
	if i := c.number("flip", 0); i > 0 { // one bit of one octet of the local part
		to = to[:i] + string(to[i]^1) + to[i+1:]
	}
	conn, err := s.machine.client(context.Background(), bounceAddr)
	if err != nil {
		return err
	}
	defer conn.Close()
	cl := &client{rw: bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))}
	if !cl.say("", 220) || !cl.say("EHLO provider.example", 250) {
		return fmt.Errorf("greeted with %q", cl.last)
	}
	reply := cl.send(c.arg("from", ""), []string{to}, "", "", strings.ReplaceAll(text, "\r\n.", "\r\n.."))
	if want := c.arg("code", "250"); !strings.HasPrefix(reply, want) {
		return fmt.Errorf("got reply %q, want %s", reply, want)
	}
	synctest.Wait()
	return nil
}

// expectSuppressed checks whether and why a tenant may not mail an address.
func (s *story) expectSuppressed(c *command) error {
	tenant := c.arg("tenant", "default")
	code, _, body := s.request(tenant, apiAddr, "GET", "/v1/suppressions?email="+url.QueryEscape(c.word(2)), nil, nil)
	var page struct {
		Suppressions []struct{ Reason, Source, Evidence string }
	}
	if err := json.Unmarshal(body, &page); err != nil || code != http.StatusOK {
		return fmt.Errorf("status %d: %w: %s", code, err, body)
	}
	got := "none"
	if len(page.Suppressions) > 0 {
		x := page.Suppressions[0]
		got = x.Reason + " by " + x.Source
		if x.Evidence != "" {
			got += " with evidence"
		}
	}
	if want := c.arg("for", "none"); got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// expectHeld checks why reports lie in quarantine, in order.
func (s *story) expectHeld(c *command) error {
	code, _, body := s.request("default", adminAddr, "GET", "/v1/quarantine", nil, nil)
	var page struct {
		Reports []struct {
			ID           uint64
			Kind, Reason string
		}
	}
	if err := json.Unmarshal(body, &page); err != nil || code != http.StatusOK {
		return fmt.Errorf("status %d: %w: %s", code, err, body)
	}
	var got []string
	for _, r := range page.Reports {
		got = append(got, r.Kind+":"+r.Reason)
		code, _, text := s.request("default", adminAddr, "GET", fmt.Sprintf("/v1/quarantine/%d", r.ID), nil, nil)
		if code != http.StatusOK || len(text) == 0 {
			return fmt.Errorf("report %d cannot be shown: status %d", r.ID, code)
		}
	}
	if got, want := strings.Join(got, " "), strings.Join(c.words[2:], " "); got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// isLate reports whether e may follow a final event.
func (e *happened) isLate() bool {
	switch e.Type {
	case "message.bounced":
		return e.Origin == "dsn"
	case "message.complained", "message.unsubscribed", "message.opened", "message.clicked":
		return true
	}
	return false
}
