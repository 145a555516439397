package inject

import (
	"fmt"
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// Verp says what becomes of the envelope sender on the way out (variable
// envelope return paths): who is named by the address that bounces come back
// to.
type Verp uint8

// The ways. The zero value leaves it to the tenant, and in the end to Config.
const (
	VerpUnset Verp = iota
	// VerpRecipient mints one for each recipient. A bounce is then known to be
	// theirs whatever it says, and each has a transaction of their own.
	VerpRecipient
	// VerpMessage mints one for the whole message, so that recipients of one
	// destination share a transaction. Bounces of a message with several
	// recipients then tell nobody's fate.
	VerpMessage
	// VerpOff leaves the envelope sender alone.
	VerpOff
)

var verpNames = [...]string{"", "recipient", "message", "off"}

func (v Verp) String() string { return verpNames[v&3] }

// ParseVerp reads a name; "" is VerpUnset.
func ParseVerp(s string) (Verp, error) {
	for i, n := range verpNames {
		if s == n {
			return Verp(i), nil
		}
	}
	return VerpUnset, fmt.Errorf("%q is not recipient, message or off", s)
}

func (v *Verp) fill(s string) *Error {
	if s == "" || *v != VerpUnset {
		return nil
	}
	w, err := ParseVerp(strings.ToLower(s))
	if err != nil {
		return refuse("X-Tradewind-Verp", CodeInvalid, "not one of recipient, message, off")
	}
	*v = w
	return nil
}

// Present says which of the fields we might add the sender has set already:
// theirs stay, alone.
type Present struct {
	FeedbackID, CFBLAddress, ListUnsubscribe bool
}

// maxCopies bounds the octets that one submission may grow to when each of its
// recipients gets bytes of their own.
const maxCopies = 64 << 20

// apart reports whether each recipient must have a message of their own
// because a field in it will name them.
func (i *Injector) apart(d *draft, rcpts int) bool {
	return i.deps.Fields != nil && i.cfg.Unsubscribe && d.env.Class == message.Bulk && !d.env.Internal &&
		!d.head.present.ListUnsubscribe && rcpts*len(d.body) <= maxCopies
}

// fields are the lines we add to m for its only recipient r, or for all of them
// when r is nil.
func (i *Injector) fields(d *draft, m *message.Message, r *message.Recipient) []byte {
	if i.deps.Fields == nil || m.Internal {
		return nil
	}
	return i.deps.Fields(m, r, d.head.present)
}

// newMessageID is the Message-ID, without brackets, of a message that came
// without.
func (i *Injector) newMessageID(m *message.Message, r *message.Recipient) string {
	left := ""
	if i.deps.MessageID != nil && !m.Internal {
		left = i.deps.MessageID(m, r)
	}
	if left == "" {
		left = m.ID.String()
	}
	// The author's domain, not our host name: it aligns with the rest of the
	// mail and does not say where it was made.
	return left + "@" + strings.Trim(m.HeaderFrom, "[]")
}

// returnPaths mints the envelope senders of m.
func (i *Injector) returnPaths(d *draft, m *message.Message, rcpts []message.Recipient) {
	if i.deps.ReturnPath == nil || m.From.IsZero() || m.Internal {
		return
	}
	mode := i.cfg.Verp
	if d.tenant.Verp != VerpUnset {
		mode = d.tenant.Verp
	}
	if d.env.Verp != VerpUnset {
		mode = d.env.Verp
	}
	switch {
	case mode == VerpOff:
	case mode == VerpMessage && len(rcpts) > 1:
		path := i.deps.ReturnPath(m, nil)
		for k := range rcpts {
			rcpts[k].ReturnPath = path
		}
	default:
		for k := range rcpts {
			rcpts[k].ReturnPath = i.deps.ReturnPath(m, &rcpts[k])
		}
	}
}
