// Package message holds the nouns every other package speaks: Message,
// Recipient, Address, Reply, Outcome and Event. It does no I/O, keeps no state
// and imports nothing of ours.
package message

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Class says how urgent a message is. The transactional class goes ahead of
// bulk within its tenant's share (DESIGN, promise P9).
type Class uint8

// The classes. The zero value is Bulk, because forgetting to mark a message
// must never let it overtake.
const (
	Bulk Class = iota
	Transactional
	// Security marks mail that holds secrets (password resets, confirmations):
	// treated as transactional, and its bytes are never rewritten for tracking.
	Security
)

var classNames = [...]string{"bulk", "transactional", "security"}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// ParseClass reads a class name.
func ParseClass(s string) (Class, error) {
	for i, n := range classNames {
		if s == n {
			return Class(i), nil
		}
	}
	return Bulk, fmt.Errorf("message: class %q is not one of bulk, transactional, security", s)
}

// Message is one accepted body with its envelope, shared by all its
// recipients. It is immutable once accepted.
type Message struct {
	ID       ID
	Tenant   string
	Campaign string
	Pool     string // pool asked for; empty means the tenant's or the default
	Class    Class
	Tags     []string
	// Metadata is a JSON object as injected, echoed on every event.
	Metadata json.RawMessage

	From Address // envelope sender; the zero Address is the null sender <>
	// EnvID and Ret are the DSN parameters of RFC 3461 as the client gave
	// them, decoded from xtext. Ret is "", "FULL" or "HDRS".
	EnvID string
	Ret   string

	// RFCMessageID is the Message-ID header field without angle brackets.
	RFCMessageID string
	// HeaderFrom is the domain of the From field in lower-case A-label form:
	// what DKIM and DMARC align with.
	HeaderFrom string

	Accepted  time.Time
	NotBefore time.Time // scheduled send; zero means at once
	Expires   time.Time // no attempt after this

	// Size is the length of the stored bytes, header and body, CRLF lines.
	Size int
	// EightBit is set when the body holds octets above 0x7F, UTF8 when the
	// header does (RFC 6532), so that the transport must offer SMTPUTF8.
	EightBit bool
	UTF8     bool
	// Plain says that every line of the bytes has been looked at since they came
	// into this process: all are whole, clean and at most 998 octets long, and
	// none begins with a dot. It is not stored; false means nothing is known.
	Plain bool
	// Internal marks mail we made ourselves (DSNs): it is never bounced to.
	Internal bool
	// Sandbox runs everything but the sending.
	Sandbox bool
	// Durability is what the acknowledgement has waited for.
	Durability Durability

	// Listener or key that let the message in, and the client's address; kept
	// for the accepted event only.
	Origin string
	Client string

	// RecipientCount is how many recipients the message was accepted for.
	RecipientCount int
}

// Recipient is one addressee of a message.
type Recipient struct {
	// N is the recipient's number within the message, from 0: together with
	// the message id it names the recipient for ever.
	N       uint32
	Address Address
	// ORcpt is the original recipient of RFC 3461, "type;address", decoded.
	ORcpt string
	// Notify is the NOTIFY parameter; the zero value means not given.
	Notify Notify
	// ReturnPath replaces Message.From for this recipient when VERP is on.
	ReturnPath Address
	// Metadata is merged over the message's on events of this recipient.
	Metadata json.RawMessage
}

// Notify is the set of events the client wants a DSN for (RFC 3461, 4.1).
type Notify uint8

// NOTIFY keywords.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// Sender is the reverse path to use toward r.
func (m *Message) Sender(r *Recipient) Address {
	if !r.ReturnPath.IsZero() {
		return r.ReturnPath
	}
	return m.From
}

// RecipientID is the name of recipient n of message id in the API: the
// message's id, a dot and the number.
func RecipientID(id ID, n uint32) string {
	b := append(id.Append(make([]byte, 0, 32)), '.')
	return string(strconv.AppendUint(b, uint64(n), 10))
}

// ParseRecipientID reads a message id with or without a recipient number.
// Without one, all is true and n means nothing.
func ParseRecipientID(s string) (id ID, n uint32, all bool, err error) {
	msg, num, found := strings.Cut(s, ".")
	if id, err = ParseID(msg); err != nil || !found {
		return id, 0, !found, err
	}
	v, err := strconv.ParseUint(num, 10, 32)
	if err != nil {
		return ID{}, 0, false, ErrBadID
	}
	return id, uint32(v), false, nil
}
