package inject

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/message"
)

// minting are deps that write down whom they were asked about.
func minting() Deps {
	whom := func(m *message.Message, r *message.Recipient) string {
		if r == nil {
			return "all"
		}
		return fmt.Sprintf("%s-%d", r.Address.Local(), r.N)
	}
	return Deps{
		ReturnPath: func(m *message.Message, r *message.Recipient) message.Address {
			return message.MustAddress("b-" + whom(m, r) + "@bounces.example.com")
		},
		MessageID: whom,
		Fields: func(m *message.Message, r *message.Recipient, has Present) []byte {
			b := []byte("X-Report-Ref: " + whom(m, r) + "\r\n")
			if !has.FeedbackID {
				b = append(b, "Feedback-ID: ours\r\n"...)
			}
			if !has.ListUnsubscribe && r != nil {
				b = append(b, "List-Unsubscribe: <mailto:"+whom(m, r)+">\r\n"...)
			}
			return b
		},
	}
}

func TestReturnPathNamesWhomMessageTenantAndDoorAsk(t *testing.T) {
	t.Parallel()
	each, shared, own := []string{"b-ann-0", "b-bob-1"}, []string{"b-all", "b-all"}, []string{"", ""}
	for name, c := range map[string]struct {
		door, tenant Verp
		header       string
		null         bool
		want         []string
	}{
		"default":          {want: each},
		"door":             {door: VerpMessage, want: shared},
		"tenant":           {door: VerpMessage, tenant: VerpRecipient, want: each},
		"tenant opts out":  {tenant: VerpOff, want: own},
		"message":          {tenant: VerpRecipient, header: "message", want: shared},
		"message opts out": {door: VerpMessage, header: "OFF", want: own},
		"null sender":      {null: true, want: own},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			deps := minting()
			deps.Tenant = func(string) (Tenant, bool, error) { return Tenant{Verp: c.tenant}, true, nil }
			i, q := newDoor(t, Config{Verp: c.door}, deps)
			text := plain
			if c.header != "" {
				text = "X-Tradewind-Verp: " + c.header + "\n" + text
			}
			env := envelope("ann@example.net", "bob@example.net")
			if c.null {
				env.From = message.Address{}
			}
			if _, err := i.Raw(t.Context(), env, crlf(text)); err != nil {
				t.Fatal(err)
			}
			for k, r := range q.subs[0].Recipients {
				if got := r.ReturnPath.Local(); got != c.want[k] {
					t.Errorf("recipient %d: return path %q, want %q", k, got, c.want[k])
				}
			}
			if bytes.Contains(q.subs[0].Body, []byte("Verp")) {
				t.Error("the control header is sent")
			}
		})
	}
	i, _ := newDoor(t, Config{}, minting())
	if _, err := i.Raw(t.Context(), envelope("ann@example.net"), crlf("X-Tradewind-Verp: perhaps\n"+plain)); err == nil {
		t.Error("a wrong value is taken")
	}
}

func TestAddedFieldsNameARecipientOnlyInMailOfTheirOwn(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{}, minting())
	if _, err := i.Raw(t.Context(), envelope("ann@example.net", "bob@example.net"), crlf(plain)); err != nil {
		t.Fatal(err)
	}
	if got := string(q.subs[0].Body); len(q.subs) != 1 || !strings.Contains(got, "\r\nX-Report-Ref: all\r\n") || strings.Contains(got, "List-Unsubscribe") {
		t.Errorf("shared message: %d submissions, %q", len(q.subs), got)
	}

	i, q = newDoor(t, Config{Unsubscribe: true}, minting())
	text := strings.Replace(plain, "Message-ID: <1@example.com>\n", "Feedback-ID: theirs\n", 1)
	if _, err := i.Raw(t.Context(), envelope("ann@example.net", "bob@example.net"), crlf(text)); err != nil {
		t.Fatal(err)
	}
	if len(q.subs) != 2 {
		t.Fatalf("%d messages, want one for each recipient", len(q.subs))
	}
	for k, who := range []string{"ann-0", "bob-0"} {
		s := q.subs[k]
		got := string(s.Body)
		for _, want := range []string{"\r\nX-Report-Ref: " + who + "\r\n", "\r\nList-Unsubscribe: <mailto:" + who + ">\r\n", "\r\nMessage-ID: <" + who + "@example.com>\r\n", "\r\nFeedback-ID: theirs\r\n"} {
			if strings.Count(got, want) != 1 {
				t.Errorf("message %d lacks %q:\n%s", k, want, got)
			}
		}
		if s.Message.RFCMessageID != who+"@example.com" {
			t.Errorf("message %d: events would call it %q", k, s.Message.RFCMessageID)
		}
		if strings.Contains(got, "ours") {
			t.Errorf("message %d has two Feedback-IDs:\n%s", k, got)
		}
	}

	// Who brings a List-Unsubscribe of their own, or writes to one person at a
	// time anyway, is not split; and nobody is for a fortune in memory.
	for name, c := range map[string]struct {
		text  string
		class message.Class
	}{
		"own field":     {text: "List-Unsubscribe: <https://example.com/u>\n" + plain},
		"transactional": {text: plain, class: message.Transactional},
		"huge":          {text: plain + strings.Repeat(strings.Repeat("x", 77)+"\n", 500_000)},
	} {
		i, q := newDoor(t, Config{Unsubscribe: true}, minting())
		env := envelope("ann@example.net", "bob@example.net")
		env.Class = c.class
		if _, err := i.Raw(t.Context(), env, crlf(c.text)); err != nil {
			t.Fatal(err)
		}
		if len(q.subs) != 1 {
			t.Errorf("%s: %d messages, want 1", name, len(q.subs))
		}
	}
}

func TestOurOwnNoticesCarryNoTokens(t *testing.T) {
	t.Parallel()
	i, q := newDoor(t, Config{Unsubscribe: true}, minting())
	env := envelope("ann@example.net")
	env.Internal = true
	if _, err := i.Raw(t.Context(), env, crlf(plain)); err != nil {
		t.Fatal(err)
	}
	if s := q.subs[0]; !s.Recipients[0].ReturnPath.IsZero() || bytes.Contains(s.Body, []byte("X-Report-Ref")) {
		t.Errorf("return path %v, body %q", s.Recipients[0].ReturnPath, s.Body)
	}
}
