package event

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tradewind-mta/tradewind/message"
)

var sameEvent = cmp.Options{cmpopts.EquateComparable(message.Reply{}.RemoteIP)}

func TestEventReadsBackAsItWasWritten(t *testing.T) {
	t.Parallel()
	for name, e := range map[string]*message.Event{
		"every field": full(),
		"few fields":  {Seq: 1, Type: message.EventEgressThrottled, Time: epoch, Detail: "rate"},
		"bulk":        {Seq: 1 << 40, Type: message.EventAccepted, Time: epoch, MessageID: messageID(1)},
	} {
		got, err := Parse(e.AppendJSON(nil))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(e, got, sameEvent); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestWhatIsNotAnEventIsRefused(t *testing.T) {
	t.Parallel()
	good := string(full().AppendJSON(nil))
	for name, in := range map[string]string{
		"empty":            "",
		"not JSON":         "hello",
		"another schema":   strings.Replace(good, `"schema_version":1`, `"schema_version":2`, 1),
		"no schema":        strings.Replace(good, `,"schema_version":1`, ``, 1),
		"no type":          `{"schema_version":1}`,
		"unknown type":     strings.Replace(good, "message.bounced", "message.lost", 1),
		"unknown category": strings.Replace(good, `"category":"bad-mailbox"`, `"category":"bad"`, 1),
		"unknown class":    strings.Replace(good, `"class":"transactional"`, `"class":"first"`, 1),
		"foreign recipient": strings.Replace(good, `"recipient_id":"`+messageID(7).String(),
			`"recipient_id":"`+messageID(8).String(), 1),
		"bad enhanced code": strings.Replace(good, "5.1.1", "5.1", 1),
		"too long":          `{"x":"` + strings.Repeat("x", MaxSize) + `"}`,
	} {
		if e, err := Parse([]byte(in)); !errors.Is(err, ErrBadEvent) {
			t.Errorf("%s: got %v, %v, want ErrBadEvent", name, e, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(full().AppendJSON(nil))
	f.Add([]byte(`{"id":"00VHNCZB00000000000000001A","type":"message.opened","time":"2000-01-01T00:00:00Z","schema_version":1,"duration_seconds":1e300}`))
	f.Add([]byte(`{"type":"suppression.added","schema_version":1,"metadata":null,"reply":{"enhanced":"5.70000.1"}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := Parse(in)
		if err != nil {
			return
		}
		if y := e.Time.Year(); y < 1970 || y > 9999 {
			return // an id holds 48 bits of milliseconds
		}
		// Whatever was read must survive being written and read again.
		out := e.AppendJSON(nil)
		again, err := Parse(out)
		if err != nil {
			t.Fatalf("wrote %s, cannot read it: %v", out, err)
		}
		if twice := again.AppendJSON(nil); string(twice) != string(out) {
			t.Fatalf("wrote %s\nthen  %s", out, twice)
		}
	})
}
