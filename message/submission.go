package message

import (
	"errors"
	"time"
)

// ErrBusy and ErrFull are wrapped by whoever cannot take a submission now:
// ErrBusy when memory or the commit queue is short, ErrFull when the disk is.
// Both are temporary; the client hears 451 or 503.
var (
	ErrBusy = errors.New("too busy to accept mail")
	ErrFull = errors.New("too little space to accept mail")
)

// Submission is one message on its way from a door into the store: checked,
// normalised, final. It stands here because the door and the queue both speak
// it and neither may import the other.
type Submission struct {
	Message    *Message
	Recipients []Recipient
	// Suppressed is nil, or as long as Recipients: the reason why that
	// recipient must not be mailed, "" for those who may. Suppressed
	// recipients are accepted and settled as message.suppressed in the batch
	// that accepts the message, so that the sender sees a result for each.
	Suppressed []string
	// Body is header and body in CRLF lines of at most 998 octets, without dot
	// stuffing. Nobody writes to it any more.
	Body []byte
	// Idempotency, when not nil, is stored in the same batch as the message.
	Idempotency *Idempotency
}

// Idempotency is the memory of one answered request: whoever sends the same
// request again is given the same answer, and nothing is sent twice.
type Idempotency struct {
	Key      [32]byte // hash of the credential and the client's key
	Request  [32]byte // hash of the request
	Response []byte   // what was answered
	Expires  time.Time
}
