package api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"mime"
	"slices"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

// Bounds on a structured message; the size of the mail itself is the door's.
const (
	maxSubstitutions = 500
	maxCustomHeaders = 100
	maxAttachments   = 100
	maxPersonName    = 256 // octets
	maxFileName      = 255 // octets
)

// messageRequest is the body of POST /v1/messages, and one line of a stream.
type messageRequest struct {
	From       *person `json:"from"`
	ReturnPath string  `json:"return_path"`
	ReplyTo    persons `json:"reply_to"`
	// To, Cc and Bcc share one message and see To and Cc; Recipients each get
	// their own and see nobody else.
	To         persons           `json:"to"`
	Cc         persons           `json:"cc"`
	Bcc        persons           `json:"bcc"`
	Recipients []recipient       `json:"recipients"`
	Subject    string            `json:"subject"`
	Text       string            `json:"text"`
	HTML       string            `json:"html"`
	AMP        string            `json:"amp"`
	Attach     []attachment      `json:"attachments"`
	Headers    map[string]string `json:"headers"`
	Values     map[string]scalar `json:"substitutions"`
	// Raw is a whole message instead of the fields above, as text in CRLF
	// lines or in base64.
	Raw string `json:"raw"`

	Tags     []string        `json:"tags"`
	Metadata json.RawMessage `json:"metadata"`
	Campaign string          `json:"campaign"`
	Pool     string          `json:"pool"`
	Class    string          `json:"class"`
	SendAt   string          `json:"send_at"`
	Expires  string          `json:"expires_at"`
	Sandbox  bool            `json:"sandbox"`
	Track    *struct {
		Opens  *bool `json:"opens"`
		Clicks *bool `json:"clicks"`
	} `json:"track"`
	// IdempotencyKey is for lines of a stream; a single request uses the
	// header.
	IdempotencyKey string `json:"idempotency_key"`
}

type recipient struct {
	Email    string            `json:"email"`
	Name     string            `json:"name"`
	Values   map[string]scalar `json:"substitutions"`
	Metadata json.RawMessage   `json:"metadata"`
	Headers  map[string]string `json:"headers"`
}

type attachment struct {
	Filename    string `json:"filename"`
	ContentType string `json:"content_type"`
	Content     string `json:"content"` // base64
	ContentID   string `json:"content_id"`
	Disposition string `json:"disposition"` // attachment (default) or inline
}

func (q *messageRequest) recipients() int {
	return len(q.To) + len(q.Cc) + len(q.Bcc) + len(q.Recipients)
}

// envelope turns the parts that raw and structured mail share into an
// envelope without recipients.
func (q *messageRequest) envelope(p *Principal, f *faults) inject.Envelope {
	env := inject.Envelope{
		Tenant: p.Tenant, AnyTenant: p.AnyTenant,
		Campaign: q.Campaign, Pool: q.Pool, Tags: q.Tags,
		Sandbox: q.Sandbox || p.Test, Durability: p.Durability,
		Door: inject.DoorHTTP, Origin: "http:" + p.Name, Protocol: "HTTP",
	}
	if q.Class != "" {
		c, err := message.ParseClass(q.Class)
		if err != nil {
			f.add("class", "invalid", "not one of bulk, transactional, security")
		}
		env.Class = c
	}
	env.SendAt = parseTime("send_at", q.SendAt, f)
	env.Expires = parseTime("expires_at", q.Expires, f)
	m, err := inject.Metadata(q.Metadata)
	if err != nil {
		f.add("metadata", "invalid", "%v", err)
	}
	env.Metadata = m
	if q.Track != nil {
		env.Track = inject.Track{Opens: position(q.Track.Opens), Clicks: position(q.Track.Clicks)}
	}
	if q.ReturnPath != "" {
		a, err := message.ParseAddress(q.ReturnPath)
		if err != nil {
			f.add("return_path", "address", "%v", err)
		}
		env.From = a
	}
	return env
}

func position(b *bool) inject.Switch {
	switch {
	case b == nil:
		return inject.Unset
	case *b:
		return inject.On
	}
	return inject.Off
}

func parseTime(field, s string, f *faults) time.Time {
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		f.add(field, "invalid", "not a time of RFC 3339, such as 2026-01-02T15:04:05Z")
	}
	return t
}

// addresses parses ps and checks their names.
func addresses(field string, ps persons, f *faults) []message.Address {
	out := make([]message.Address, len(ps))
	for i, p := range ps {
		name := field
		if len(ps) > 1 {
			name = fmt.Sprintf("%s[%d]", field, i)
		}
		a, err := message.ParseAddress(p.Email)
		if err != nil {
			f.add(name+".email", "address", "%v", err)
		}
		if why := badName(p.Name); why != "" {
			f.add(name+".name", "invalid", "%s", why)
		}
		out[i] = a
	}
	return out
}

func badName(s string) string {
	if len(s) > maxPersonName {
		return fmt.Sprintf("is longer than %d octets", maxPersonName)
	}
	return badText(s)
}

// checkHeaders checks the names of custom headers, and returns them sorted so
// that the same request gives the same mail.
func checkHeaders(field string, h map[string]string, f *faults) []string {
	if len(h) > maxCustomHeaders {
		f.add(field, "limit", "more than %d headers", maxCustomHeaders)
		return nil
	}
	names := make([]string, 0, len(h))
	seen := make(map[string]bool, len(h))
	for name, value := range h {
		at := field + "." + name
		switch lower := strings.ToLower(name); {
		case !isFieldName(name):
			f.add(field, "header_name", "%.40q is not the name of a header field", name)
			continue
		case reserved(name):
			f.add(at, "reserved", "the field cannot be set here")
			continue
		case seen[lower]:
			f.add(at, "duplicate", "the field stands twice")
			continue
		case structured(name) && !isASCII(value):
			f.add(at, "invalid", "must be ASCII")
			continue
		case lower == "message-id" && !isMessageID(value):
			f.add(at, "invalid", "must be <left@right>")
			continue
		default:
			seen[lower] = true
		}
		if why := badText(value); why != "" {
			f.add(at, "invalid", "%s", why)
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// isMessageID accepts the msg-id of RFC 5322, 3.6.4, less quoting.
func isMessageID(s string) bool {
	in, ok := strings.CutPrefix(s, "<")
	if !ok {
		return false
	}
	in, ok = strings.CutSuffix(in, ">")
	left, right, at := strings.Cut(in, "@")
	return ok && at && left != "" && right != "" && len(s) <= 250 && !strings.ContainsAny(in, "<> \t\"(),;\\") && !strings.Contains(right, "@")
}

// file is a checked attachment.
type file struct {
	header []byte // Content-Type, -Disposition, -ID
	data   []byte // decoded
	inline bool
}

func checkAttachments(in []attachment, f *faults) []file {
	if len(in) > maxAttachments {
		f.add("attachments", "limit", "more than %d attachments", maxAttachments)
		return nil
	}
	var out []file
	for i, a := range in {
		at := fmt.Sprintf("attachments[%d]", i)
		data, err := base64.StdEncoding.DecodeString(a.Content)
		if err != nil {
			f.add(at+".content", "base64", "is not base64")
		}
		if a.Content == "" {
			f.add(at+".content", "missing", "is empty")
		}
		if why := badName(a.Filename); why != "" || strings.ContainsAny(a.Filename, "/\\") || len(a.Filename) > maxFileName {
			f.add(at+".filename", "invalid", "must be a plain file name of at most %d octets", maxFileName)
			continue
		}
		if a.ContentType == "" {
			a.ContentType = "application/octet-stream"
		}
		kind, params, err := mime.ParseMediaType(a.ContentType)
		major, _, _ := strings.Cut(kind, "/")
		if err != nil || badText(a.ContentType) != "" || len(a.ContentType) > 200 || !strings.Contains(kind, "/") || major == "multipart" || major == "message" {
			// RFC 2046, 5: composite types may not be in base64.
			f.add(at+".content_type", "invalid", "must be a media type, and neither multipart nor message")
			continue
		}
		typ := mime.FormatMediaType(kind, params)
		disposition := a.Disposition
		switch disposition {
		case "":
			disposition = "attachment"
			if a.ContentID != "" {
				disposition = "inline"
			}
		case "attachment", "inline":
		default:
			f.add(at+".disposition", "invalid", "not one of attachment, inline")
			continue
		}
		dparams := map[string]string{}
		if a.Filename != "" {
			dparams["filename"] = a.Filename
		}
		disp := mime.FormatMediaType(disposition, dparams)
		if typ == "" || disp == "" {
			f.add(at, "invalid", "the type or file name cannot be written")
			continue
		}
		h := fold(nil, "Content-Type", typ)
		h = fold(h, "Content-Disposition", disp)
		if a.ContentID != "" {
			id := strings.TrimSuffix(strings.TrimPrefix(a.ContentID, "<"), ">")
			if len(id) > 200 || !isASCII(id) || badText(id) != "" || strings.ContainsAny(id, "<> \t\"(),;\\") {
				f.add(at+".content_id", "invalid", "must be an identifier without spaces or brackets")
				continue
			}
			h = append(append(append(h, "Content-ID: <"...), id...), ">\r\n"...)
		}
		out = append(out, file{header: h, data: data, inline: disposition == "inline" && a.ContentID != ""})
	}
	return out
}

// fold writes a MIME field; it is short by the checks above.
func fold(dst []byte, name, value string) []byte {
	out, _ := appendFolded(dst, name, value)
	return out
}
