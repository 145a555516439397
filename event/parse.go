package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// MaxSize is the most bytes of JSON one event may have for Parse to read it.
// What the journal writes stays far below: replies, tags and metadata are
// capped where they come in.
const MaxSize = 1 << 20

// ErrBadEvent is wrapped by every error of Parse.
var ErrBadEvent = errors.New("event: not an event")

// wire is the JSON form that message.Event.AppendJSON writes.
type wire struct {
	ID           message.ID        `json:"id"`
	Type         message.EventType `json:"type"`
	Time         time.Time         `json:"time"`
	MessageID    message.ID        `json:"message_id"`
	RecipientID  string            `json:"recipient_id"`
	RFCMessageID string            `json:"rfc_message_id"`
	Sender       string            `json:"sender"`
	Recipient    string            `json:"recipient"`
	Seq          uint32            `json:"seq"`
	Terminal     bool              `json:"terminal"`
	Attempt      int               `json:"attempt"`
	NextAttempt  time.Time         `json:"next_attempt"`
	Tenant       string            `json:"tenant"`
	Campaign     string            `json:"campaign"`
	Class        string            `json:"class"`
	Tags         []string          `json:"tags"`
	Metadata     json.RawMessage   `json:"metadata"`
	Size         int               `json:"size"`
	Reply        *wireReply        `json:"reply"`
	Category     string            `json:"category"`
	Suppressing  bool              `json:"suppressing"`
	Machine      *message.Machine  `json:"machine"`
	Egress       message.Egress    `json:"egress"`
	Origin       string            `json:"origin"`
	Detail       string            `json:"detail"`
	Duration     float64           `json:"duration_seconds"`
	Schema       int               `json:"schema_version"`
}

type wireReply struct {
	Code       int        `json:"code"`
	Enhanced   string     `json:"enhanced"`
	Text       string     `json:"text"`
	Stage      string     `json:"stage"`
	RemoteHost string     `json:"remote_host"`
	RemoteIP   netip.Addr `json:"remote_ip"`
	TLS        string     `json:"tls"`
	Local      bool       `json:"local"`
}

// Parse reads one event as message.Event.AppendJSON wrote it. The event keeps
// nothing of b. Times come back in UTC, to the precision of the text:
// microseconds for Time, seconds for NextAttempt, milliseconds for Duration.
// Members of a later minor format are ignored, another schema_version is
// refused. Errors wrap ErrBadEvent.
func Parse(b []byte) (*message.Event, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrBadEvent, MaxSize)
	}
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadEvent, err)
	}
	if w.Schema != message.SchemaVersion {
		return nil, fmt.Errorf("%w: schema_version is %d, want %d", ErrBadEvent, w.Schema, message.SchemaVersion)
	}
	if w.Type == message.NoEvent {
		return nil, fmt.Errorf("%w: no type", ErrBadEvent)
	}
	e := &message.Event{
		Seq: seqOf(w.ID), Type: w.Type, Time: w.Time.UTC(),
		MessageID: w.MessageID, RFCMessageID: w.RFCMessageID,
		Sender: w.Sender, Recipient: w.Recipient, RecipientSeq: w.Seq,
		Terminal: w.Terminal, Attempt: w.Attempt,
		Tenant: w.Tenant, Campaign: w.Campaign, Tags: w.Tags,
		Size: w.Size, Suppressing: w.Suppressing, Machine: w.Machine,
		Egress: w.Egress, Origin: w.Origin, Detail: w.Detail,
	}
	if len(w.Metadata) > 0 && w.Metadata[0] == '{' {
		e.Metadata = w.Metadata
	}
	if !w.NextAttempt.IsZero() {
		e.NextAttempt = w.NextAttempt.UTC()
	}
	if d := math.Round(w.Duration * 1e3); math.Abs(d) < math.MaxInt64/1e6 {
		e.Duration = time.Duration(d) * time.Millisecond
	}
	var err error
	if w.RecipientID != "" {
		id, n, all, err := message.ParseRecipientID(w.RecipientID)
		if err != nil || all || id != w.MessageID {
			return nil, fmt.Errorf("%w: recipient_id %q", ErrBadEvent, w.RecipientID)
		}
		e.N = n
	}
	if w.Class != "" {
		if e.Class, err = message.ParseClass(w.Class); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadEvent, err)
		}
	}
	if w.Category != "" {
		if e.Category, err = message.ParseCategory(w.Category); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadEvent, err)
		}
	}
	if w.Reply != nil {
		if e.Reply, err = w.Reply.reply(); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (w *wireReply) reply() (*message.Reply, error) {
	r := &message.Reply{
		Code: w.Code, Text: w.Text, Stage: message.ParseStage(w.Stage),
		RemoteHost: w.RemoteHost, RemoteIP: w.RemoteIP, TLS: w.TLS, Local: w.Local,
	}
	if w.Enhanced == "" {
		return r, nil
	}
	// Not message.ParseEnhanced: that one refuses what a server may not say,
	// while this must read back whatever an event holds.
	parts := strings.Split(w.Enhanced, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%w: enhanced code %q", ErrBadEvent, w.Enhanced)
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%w: enhanced code %q", ErrBadEvent, w.Enhanced)
		}
		r.Enhanced[i] = uint16(n)
	}
	return r, nil
}

// seqOf is the place in the journal that message.EventID put into id.
func seqOf(id message.ID) uint64 {
	var n uint64
	for _, c := range id[8:] {
		n = n<<8 | uint64(c)
	}
	return n
}
