package inject

import (
	"encoding/json"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Bounds on what is echoed with every event. Without them one message could
// write megabytes into the journal.
const (
	maxTags     = 10
	maxName     = 128     // octets of a tag, campaign, pool or tenant name
	maxMetadata = 2 << 10 // octets of a JSON object
	maxEnvID    = 100     // octets, RFC 3461, 4.4
)

// Door says which way a message came in; it labels a metric and the accepted
// event.
type Door string

// The doors.
const (
	DoorSMTP     Door = "smtp"
	DoorHTTP     Door = "http"
	DoorInternal Door = "internal" // mail we made ourselves, such as DSNs
)

// Envelope is all that is known about a message beside its bytes. What it
// leaves empty, control headers in the message may fill; what it sets, they
// cannot change.
type Envelope struct {
	// Tenant is the authenticated tenant. A message whose control header names
	// another one is refused, unless AnyTenant is set, as for a trusted relay.
	Tenant    string
	AnyTenant bool

	From message.Address // the zero Address is the null sender
	// SenderIsAuthor takes the envelope sender from the From field of the
	// message instead.
	SenderIsAuthor bool
	// Recipients in the order the client gave them. N and ReturnPath are set
	// by the door. A repeated address is taken once.
	Recipients []message.Recipient
	EnvID      string // RFC 3461, decoded from xtext
	Ret        string // "", "FULL" or "HDRS"

	Campaign string
	Pool     string
	Class    message.Class // Bulk counts as not set
	Tags     []string
	Metadata json.RawMessage // a JSON object, or empty
	SendAt   time.Time
	Expires  time.Time
	Track    Track
	Verp     Verp
	Sandbox  bool
	Internal bool // see message.Message
	// Durability is what the acknowledgement waits for.
	Durability message.Durability

	Door   Door
	Origin string // the listener or key, for the accepted event; Door if empty
	// Client is the client's address, HELO the name it gave, Protocol the
	// "with" keyword of RFC 3848 ("ESMTPSA"): what Received reports.
	Client   string
	HELO     string
	Protocol string
	// Plain says what message.Message.Plain does of the message as it came, which
	// is then not searched again.
	Plain bool
	// ASCII says that who made the message knows what stands below its header: CRLF
	// lines of at most 998 octets of ASCII without NUL, none of which begins with a
	// dot. It is not searched then.
	ASCII bool
}

// Track is what a message asks of tracking; the zero value leaves it to the
// tenant's settings.
type Track struct {
	Opens, Clicks Switch
}

// Switch is a setting that may be left open.
type Switch uint8

// The positions of a Switch.
const (
	Unset Switch = iota
	On
	Off
)

// Result is what a client is told about an accepted message.
type Result struct {
	// ID names the message, or the first one where each recipient has their own.
	ID message.ID
	// Recipients has one entry for each of the envelope's, in its order.
	Recipients []RecipientResult
}

// RecipientResult is the fate of one recipient at the door.
type RecipientResult struct {
	ID      string // message.RecipientID; "" when refused
	Address message.Address
	// Suppressed is the reason why nothing will be sent, "" otherwise.
	Suppressed string
	// Refused is set when the recipient was not accepted.
	Refused *Error
}
