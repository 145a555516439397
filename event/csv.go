package event

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// CSVConfig describes an accounting file as PowerMTA's users know it.
type CSVConfig struct {
	File FileConfig
	// Records are the record types wanted; empty means d and b.
	Records []string
	// Fields are the columns after type, in order; empty means DefaultFields.
	Fields []string
	// Times is "" for 2006-01-02 15:04:05-0700, "iso" for
	// 2006-01-02T15:04:05-0700, or "unix" for seconds. Times are in UTC.
	Times string
	// GuardFormulas puts an apostrophe before cells that a spreadsheet would
	// take for a formula. Programs that read the file will see it.
	GuardFormulas bool
	// Logger is told of events that could not be read; nil discards.
	Logger *slog.Logger
}

// DefaultFields returns the columns a CSV sink has unless it is told others.
func DefaultFields() []string {
	return strings.Fields(`timeLogged timeQueued timeFirstAttempt totalSecondsQueued orig rcpt dsnAction dsnStatus dsnDiag
		dsnMta bounceCat srcType dlvType dlvDestinationIp dlvSize vmta vmtaPool jobId envId queue
		dlvTlsProtocol dlvTlsCipher format feedbackType messageId recipientId eventId`)
}

// CSV is a sink that appends events to a file in the form of PowerMTA's
// accounting files: RFC 4180 quoting, lines ended by a line feed, a header
// line, the record type in the first column. All records of a file have the
// same columns, empty where they have nothing to say.
//
// Record types, by event:
//
//	r   accepted
//	d   delivered
//	b   bounced in the SMTP dialogue, expired, suppressed, canceled
//	rb  bounced by a later report (origin "dsn")
//	t   deferred
//	tq  egress throttled or suspended
//	f   complained
//
// The others (rejected, opened, clicked, unsubscribed, suppression changes,
// egress resumed) have no record.
//
// Fields, by what they hold:
//
//	timeLogged, timeQueued   the event; the acceptance (from the message id)
//	timeFirstAttempt         the event, where it is of the first attempt
//	totalSecondsQueued       from acceptance to the event
//	orig, rcpt               envelope sender and recipient
//	dsnAction                relayed (d), failed (b, rb), delayed (t, tq)
//	dsnStatus                enhanced code, or N.0.0 from the reply code
//	dsnDiag                  smtp;550 5.1.1 text, control characters as spaces;
//	                         x-tradewind; before our own words
//	dsnMta                   host (ip)
//	bounceCat                one of PowerMTA's seventeen categories
//	srcType                  origin of an accepted message
//	dlvType                  smtp where a server was asked
//	dlvDestinationIp, dlvTlsProtocol, dlvTlsCipher  of the server
//	dlvSize                  message size in bytes
//	vmta, vmtaPool           source, pool
//	jobId                    campaign
//	envId                    the metadata's "envid", as meta_envid
//	queue                    recipient domain/source; site/source for tq
//	format, feedbackType     of a report: its origin; its detail
//	header_Message-Id        the header field without brackets
//	messageId, recipientId, eventId, tenant, attempt, class, tags, category,
//	detail, site, provider   as in our own events
//	meta_NAME                member NAME of the metadata
//
// What PowerMTA has and our events do not (orcpt, srcMta, dlvSourceIp,
// dlvEsmtpAvailable, userString, rcvSourceIp, other header_ fields, arf_ fields)
// may be asked for and is empty.
type CSV struct {
	name    string
	r       *rotating
	records [256]string // record type by event type; "" means none
	remote  bool        // rb is wanted
	inline  bool        // b is wanted
	fields  []field
	times   string
	guard   bool
	log     *slog.Logger
	buf     []byte
}

// field renders one column of an event.
type field func(c *CSV, rec string, e *message.Event) string

// ErrCSV is wrapped by every error about the configuration of a CSV sink.
var ErrCSV = errors.New("event: bad CSV sink")

// recordTypes returns which events make which record; bounced may become rb.
func recordTypes() map[string][]message.EventType {
	return map[string][]message.EventType{
		"r":  {message.EventAccepted},
		"d":  {message.EventDelivered},
		"b":  {message.EventBounced, message.EventExpired, message.EventSuppressed, message.EventCanceled},
		"rb": {message.EventBounced},
		"t":  {message.EventDeferred},
		"tq": {message.EventEgressThrottled, message.EventEgressSuspended},
		"f":  {message.EventComplained},
	}
}

// NewCSV checks the configuration and opens the file. A file that exists with
// other columns is rotated away first.
func NewCSV(name string, c CSVConfig) (*CSV, error) {
	s := &CSV{name: name, guard: c.GuardFormulas, log: c.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if len(c.Records) == 0 {
		c.Records = []string{"d", "b"}
	}
	types := recordTypes()
	for _, rec := range c.Records {
		evs, ok := types[rec]
		if !ok {
			return nil, fmt.Errorf("%w: record type %q is not one of r, d, b, rb, t, tq, f", ErrCSV, rec)
		}
		s.remote = s.remote || rec == "rb"
		s.inline = s.inline || rec == "b"
		for _, t := range evs {
			s.records[t] = rec
		}
	}
	switch c.Times {
	case "":
		s.times = "2006-01-02 15:04:05-0700"
	case "iso":
		s.times = "2006-01-02T15:04:05-0700"
	case "unix":
	default:
		return nil, fmt.Errorf("%w: times %q is not one of \"\", iso, unix", ErrCSV, c.Times)
	}
	if len(c.Fields) == 0 {
		c.Fields = DefaultFields()
	}
	known := csvFields()
	header := []byte("type")
	for _, f := range c.Fields {
		render := known[f]
		switch {
		case render != nil:
		case strings.HasPrefix(f, "meta_") && len(f) > len("meta_"):
			render = metaField(strings.TrimPrefix(f, "meta_"))
		case strings.HasPrefix(f, "header_"), strings.HasPrefix(f, "arf_"):
			render = func(*CSV, string, *message.Event) string { return "" }
		default:
			return nil, fmt.Errorf("%w: unknown field %q", ErrCSV, f)
		}
		s.fields = append(s.fields, render)
		header = s.appendCell(append(header, ','), f)
	}
	var err error
	s.r, err = newRotating(c.File, append(header, '\n'))
	return s, err
}

// Name is the name of the sink's cursor.
func (s *CSV) Name() string { return s.name }

// Wants reports whether the event makes a record.
func (s *CSV) Wants(r Record) bool { return s.records[r.Type] != "" }

// Deliver appends the batch.
func (s *CSV) Deliver(_ context.Context, batch []Record) error {
	s.buf = s.buf[:0]
	for _, r := range batch {
		if !s.Wants(r) {
			continue
		}
		e, err := Parse(r.JSON)
		if err != nil {
			// It would be no better the next time; one event must not hold up
			// all that follow.
			s.log.Error("event left out of the accounting file", "sink", s.name, "seq", r.Seq, "err", err)
			continue
		}
		s.buf = s.appendRecord(s.buf, e)
	}
	if len(s.buf) == 0 {
		return nil
	}
	return s.r.append(s.buf)
}

func (s *CSV) appendRecord(b []byte, e *message.Event) []byte {
	rec := s.records[e.Type]
	if e.Type == message.EventBounced {
		switch late := e.Origin == "dsn"; {
		case late && s.remote:
			rec = "rb"
		case !late && s.inline:
			rec = "b"
		default:
			return b
		}
	}
	b = append(b, rec...)
	for _, f := range s.fields {
		b = s.appendCell(append(b, ','), f(s, rec, e))
	}
	return append(b, '\n')
}

// appendCell quotes where RFC 4180 asks for it. Control characters become
// spaces: a record is one line, so that a file can be repaired and read line by
// line.
func (s *CSV) appendCell(b []byte, v string) []byte {
	quote := strings.ContainsAny(v, ",\"") || v != "" && (v[0] == ' ' || v[len(v)-1] == ' ')
	if quote {
		b = append(b, '"')
	}
	if s.guard && v != "" && strings.IndexByte("=+-@\t\r", v[0]) >= 0 {
		b = append(b, '\'')
	}
	for i := range len(v) {
		switch c := v[i]; {
		case c < ' ' || c == 0x7F:
			b = append(b, ' ')
		case c == '"':
			b = append(b, '"', '"')
		default:
			b = append(b, c)
		}
	}
	if quote {
		b = append(b, '"')
	}
	return b
}

// Reopen makes the next delivery open the file anew; call it on SIGHUP.
func (s *CSV) Reopen() { s.r.reopen() }

// Close waits until no rotated file is being compressed and closes the file.
// REQUIRES: no Deliver is running or follows.
func (s *CSV) Close() error { return s.r.close() }

func (s *CSV) time(t time.Time) string {
	switch {
	case t.IsZero():
		return ""
	case s.times == "":
		return strconv.FormatInt(t.Unix(), 10)
	}
	return t.UTC().Format(s.times)
}

func metaField(name string) field {
	return func(_ *CSV, _ string, e *message.Event) string {
		var m map[string]json.RawMessage
		if len(e.Metadata) == 0 || json.Unmarshal(e.Metadata, &m) != nil {
			return ""
		}
		var text string
		if json.Unmarshal(m[name], &text) == nil {
			return text
		}
		return string(m[name])
	}
}

// emptyFields names the fields that PowerMTA has and our events do not.
func emptyFields() []string {
	return strings.Fields(`orcpt srcMta dlvSourceIp dlvEsmtpAvailable userString rcvSourceIp rcvDestinationIp
		dsnReportingMta repSourceIp userAgent reportingMTA reportedDomain`)
}
