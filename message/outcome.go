package message

import (
	"fmt"
	"time"
)

// Category says what a failure was about. The first seventeen are PowerMTA's
// bounceCat names, which operators already know; the rest are ours.
type Category uint8

// Categories.
const (
	NoCategory Category = iota
	BadConfiguration
	BadConnection
	BadDomain
	BadMailbox
	ContentRelated
	InactiveMailbox
	InvalidSender
	MessageExpired
	NoAnswerFromHost
	Other
	PolicyRelated
	ProtocolErrors
	QuotaIssues
	RelayingIssues
	RoutingErrors
	SpamRelated
	VirusRelated

	Rate      // too fast, too many connections, greylisted: slow down
	Complaint // a feedback report
	AutoReply // out of office and the like; never a failure
	Suppressed
	Canceled
)

var categoryNames = [...]string{
	"", "bad-configuration", "bad-connection", "bad-domain", "bad-mailbox",
	"content-related", "inactive-mailbox", "invalid-sender", "message-expired",
	"no-answer-from-host", "other", "policy-related", "protocol-errors",
	"quota-issues", "relaying-issues", "routing-errors", "spam-related",
	"virus-related", "rate", "complaint", "autoreply", "suppressed", "canceled",
}

func (c Category) String() string {
	if int(c) < len(categoryNames) {
		return categoryNames[c]
	}
	return fmt.Sprintf("category(%d)", uint8(c))
}

// PMTA is the nearest of PowerMTA's seventeen bounceCat names.
func (c Category) PMTA() string {
	switch {
	case c <= VirusRelated:
		return c.String()
	case c == Rate:
		return PolicyRelated.String()
	}
	return Other.String()
}

// ParseCategory reads a category name.
func ParseCategory(s string) (Category, error) {
	for i, n := range categoryNames {
		if n == s && i > 0 {
			return Category(i), nil
		}
	}
	return NoCategory, fmt.Errorf("message: %q is not a category", s)
}

// Result is what an attempt came to for one recipient.
type Result uint8

// Results.
const (
	Deferred  Result = iota // try again; the zero value, because late is better than lost
	Delivered               // the server took responsibility
	Failed                  // permanent
	// Unknown means the connection died after the final dot and before the
	// reply. The message may have been delivered; it is tried again.
	Unknown
)

func (r Result) String() string {
	return [...]string{"deferred", "delivered", "failed", "unknown"}[r&3]
}

// Outcome is the result of one attempt for one recipient, in the server's own
// words.
type Outcome struct {
	Result Result
	Reply  *Reply
	// Attempted is false when the recipient was not reached: an earlier step
	// failed for all, or the connection was not ours to use.
	Attempted bool
	Started   time.Time
	Finished  time.Time
}
