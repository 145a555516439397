package message

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// SchemaVersion is the version of the event format, sent as schema_version.
const SchemaVersion = 1

// EventType names what happened.
type EventType uint8

// Event types. The numbers are stored; append, never reorder.
const (
	NoEvent EventType = iota
	EventAccepted
	EventDeferred
	EventDelivered
	EventBounced
	EventExpired
	EventSuppressed
	EventRejected
	EventCanceled
	EventComplained
	EventOpened
	EventClicked
	EventUnsubscribed
	EventSuppressionAdded
	EventSuppressionRemoved
	EventEgressThrottled
	EventEgressSuspended
	EventEgressResumed
)

var eventNames = [...]string{
	"", "message.accepted", "message.deferred", "message.delivered",
	"message.bounced", "message.expired", "message.suppressed",
	"message.rejected", "message.canceled", "message.complained",
	"message.opened", "message.clicked", "message.unsubscribed",
	"suppression.added", "suppression.removed", "egress.throttled",
	"egress.suspended", "egress.resumed",
}

func (t EventType) String() string {
	if int(t) < len(eventNames) {
		return eventNames[t]
	}
	return fmt.Sprintf("event(%d)", uint8(t))
}

// ParseEventType reads an event name.
func ParseEventType(s string) (EventType, error) {
	for i, n := range eventNames {
		if n == s && i > 0 {
			return EventType(i), nil
		}
	}
	return NoEvent, fmt.Errorf("message: %q is not an event type", s)
}

// MarshalText writes the event name.
func (t EventType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads an event name.
func (t *EventType) UnmarshalText(b []byte) error {
	v, err := ParseEventType(string(b))
	*t = v
	return err
}

// Event is one fact, as the journal keeps it and every sink tells it.
type Event struct {
	// Seq is the place in the journal; it orders all events of one node. Zero
	// until the journal has taken the event.
	Seq  uint64
	Type EventType
	Time time.Time

	MessageID    ID
	RFCMessageID string
	Sender       string
	Recipient    string
	// N is the recipient's number in the message; meaningful with MessageID.
	N uint32
	// RecipientSeq counts the events of one recipient from 1.
	RecipientSeq uint32
	Terminal     bool
	Attempt      int
	// NextAttempt is when a deferred recipient is due again.
	NextAttempt time.Time

	Tenant   string
	Campaign string
	Class    Class
	Tags     []string
	Metadata json.RawMessage // a JSON object, or empty
	Size     int

	Reply       *Reply
	Category    Category
	Suppressing bool
	Machine     *Machine
	Egress      Egress
	// Origin says where a late fact came from ("dsn", "arf", "one-click"), or
	// for accepted events by which door the message came in.
	Origin string
	// Detail carries what has no field of its own: the URL of a click, the
	// reason of a suppression, the rule behind a throttle.
	Detail string
	// Duration is the time from acceptance to a final event.
	Duration time.Duration
}

// Machine marks opens and clicks made by machines.
type Machine struct {
	IsBot  bool   `json:"is_bot"`
	Reason string `json:"reason,omitempty"`
}

// Egress says which way a message went out.
type Egress struct {
	Source   string `json:"source,omitempty"`
	Pool     string `json:"pool,omitempty"`
	Provider string `json:"provider,omitempty"`
	Site     string `json:"site,omitempty"`
}

// EventID is the stable identifier of the event at place seq made at t: a ULID
// whose random half is the place itself, so that ids sort as the journal does.
func EventID(t time.Time, seq uint64) ID {
	var id ID
	binary.BigEndian.PutUint64(id[:8], uint64(t.UnixMilli())<<16)
	binary.BigEndian.PutUint64(id[8:], seq)
	return id
}

// EventSeq is the place of the event with this id.
func EventSeq(id ID) uint64 { return binary.BigEndian.Uint64(id[8:]) }

// AppendJSON appends the event as one JSON object without a line break. The
// output is valid UTF-8 whatever a remote server said.
func (e *Event) AppendJSON(b []byte) []byte {
	b = append(b, `{"id":"`...)
	b = EventID(e.Time, e.Seq).Append(b)
	b = append(b, `","type":"`...)
	b = append(b, e.Type.String()...)
	b = append(b, `","time":"`...)
	b = e.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	b = append(b, '"')
	if !e.MessageID.IsZero() {
		b = append(b, `,"message_id":"`...)
		b = e.MessageID.Append(b)
		b = append(b, `","recipient_id":"`...)
		b = e.MessageID.Append(b)
		b = append(b, '.')
		b = strconv.AppendUint(b, uint64(e.N), 10)
		b = append(b, '"')
	}
	b = appendField(b, "rfc_message_id", e.RFCMessageID)
	b = appendField(b, "sender", e.Sender)
	b = appendField(b, "recipient", e.Recipient)
	b = appendInt(b, "seq", int64(e.RecipientSeq))
	if e.Terminal {
		b = append(b, `,"terminal":true`...)
	} else {
		b = append(b, `,"terminal":false`...)
	}
	b = appendInt(b, "attempt", int64(e.Attempt))
	if !e.NextAttempt.IsZero() {
		b = append(b, `,"next_attempt":"`...)
		b = e.NextAttempt.UTC().AppendFormat(b, time.RFC3339)
		b = append(b, '"')
	}
	b = appendField(b, "tenant", e.Tenant)
	b = appendField(b, "campaign", e.Campaign)
	if !e.MessageID.IsZero() {
		b = appendField(b, "class", e.Class.String())
	}
	if len(e.Tags) > 0 {
		b = append(b, `,"tags":[`...)
		for i, t := range e.Tags {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, t)
		}
		b = append(b, ']')
	}
	if len(e.Metadata) > 0 {
		b = append(b, `,"metadata":`...)
		b = append(b, e.Metadata...)
	}
	b = appendInt(b, "size", int64(e.Size))
	if e.Reply != nil {
		b = append(b, `,"reply":`...)
		b = e.Reply.appendJSON(b)
	}
	if e.Category != NoCategory {
		b = appendField(b, "category", e.Category.String())
		b = appendField(b, "pmta_category", e.Category.PMTA())
	}
	if e.Suppressing {
		b = append(b, `,"suppressing":true`...)
	}
	if e.Machine != nil {
		b = append(b, `,"machine":{"is_bot":`...)
		b = strconv.AppendBool(b, e.Machine.IsBot)
		b = appendField(b, "reason", e.Machine.Reason)
		b = append(b, '}')
	}
	if e.Egress != (Egress{}) {
		b = append(b, `,"egress":{`...)
		n := len(b)
		b = appendField(b, "source", e.Egress.Source)
		b = appendField(b, "pool", e.Egress.Pool)
		b = appendField(b, "provider", e.Egress.Provider)
		b = appendField(b, "site", e.Egress.Site)
		b = append(b[:n], b[n+1:]...) // the first comma
		b = append(b, '}')
	}
	b = appendField(b, "origin", e.Origin)
	b = appendField(b, "detail", e.Detail)
	if e.Duration != 0 {
		b = append(b, `,"duration_seconds":`...)
		b = strconv.AppendFloat(b, e.Duration.Seconds(), 'f', 3, 64)
	}
	b = append(b, `,"schema_version":`...)
	b = strconv.AppendInt(b, SchemaVersion, 10)
	return append(b, '}')
}

// appendJSON appends the reply as the JSON object that events carry.
func (r *Reply) appendJSON(b []byte) []byte {
	b = append(b, `{"code":`...)
	b = strconv.AppendInt(b, int64(r.Code), 10)
	b = appendField(b, "enhanced", r.Enhanced.String())
	b = appendField(b, "text", r.Text)
	b = appendField(b, "stage", r.Stage.String())
	b = appendField(b, "remote_host", r.RemoteHost)
	if r.RemoteIP.IsValid() {
		b = append(b, `,"remote_ip":"`...)
		b = r.RemoteIP.AppendTo(b)
		b = append(b, '"')
	}
	b = appendField(b, "tls", r.TLS)
	if r.Local {
		b = append(b, `,"local":true`...)
	}
	return append(b, '}')
}

// appendField appends ,"name":"value" unless value is empty.
func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return appendString(b, value)
}

// appendInt appends ,"name":value unless value is zero.
func appendInt(b []byte, name string, value int64) []byte {
	if value == 0 {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, value, 10)
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Control bytes, DEL, C1 controls
// and the HTML specials are escaped, so that a hostile reply can harm neither
// a terminal nor a page; bytes that are not UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' && c != 0x7F {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, s[start:i]...)
			b = append(b, "\\ufffd"...)
			start = i + size
		case r < 0xA0 || r == 0x2028 || r == 0x2029:
			b = append(b, s[start:i]...)
			b = append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
			start = i + size
		}
		i += size
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
