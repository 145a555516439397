package inject

import (
	"errors"
	"fmt"

	"github.com/tradewind-mta/tradewind/message"
)

// Codes of Error, a closed set that clients may match.
const (
	CodeBareNewline   = "bare_newline"   // CR or LF alone
	CodeNUL           = "nul"            // a NUL octet
	CodeControl       = "control_char"   // a control octet in the header
	CodeHeader        = "bad_header"     // the header breaks RFC 5322
	CodeHeaderLimit   = "header_limit"   // too many fields or octets
	CodeLineLength    = "line_length"    // a line that cannot be brought to 998 octets
	CodeDuplicate     = "duplicate"      // a field that may stand once stands twice
	CodeMissing       = "missing"        // a field that must be there
	CodeInvalid       = "invalid"        // a value that means nothing
	CodeLimit         = "limit"          // a value beyond a bound
	CodeTooLarge      = "too_large"      // the message is too large
	CodeLoop          = "mail_loop"      // too many Received fields
	CodeForbidden     = "forbidden"      // the tenant may not do that
	CodeUnknownTenant = "unknown_tenant" //
	CodeSuppressed    = "suppressed"     // the recipient must not be mailed
	CodeNoRecipients  = "no_recipients"  //
	CodeUnavailable   = "unavailable"    // try again later
	CodeFull          = "full"           // try again later: the disk is full
)

// Error is why a message or a recipient was not accepted, in the words of both
// doors.
type Error struct {
	// Field is the header field, control header or envelope part at fault:
	// "From", "X-Tradewind-Send-At", "recipients", "body".
	Field string
	Code  string // one of the Code constants
	// SMTP and Enhanced are the reply; a 4xx means that trying later may help.
	SMTP     int
	Enhanced message.Enhanced
	// Message says what to do about it, for the client.
	Message string
	cause   error
}

// Error formats the reply, then the cause for our own log.
func (e *Error) Error() string {
	s := fmt.Sprintf("%d %s %s: %s", e.SMTP, e.Enhanced, e.Field, e.Message)
	if e.cause != nil {
		s += ": " + e.cause.Error()
	}
	return s
}

// Unwrap is the cause, which clients are not told.
func (e *Error) Unwrap() error { return e.cause }

// Temporary reports whether trying again may help.
func (e *Error) Temporary() bool { return e.SMTP < 500 }

var (
	badContent  = message.Enhanced{5, 6, 0} // RFC 3463, 3.7: other media error
	badPolicy   = message.Enhanced{5, 7, 1} // delivery not authorized
	badSyntax   = message.Enhanced{5, 5, 4} // invalid command arguments
	tooLarge    = message.Enhanced{5, 3, 4} // message too big for system
	loops       = message.Enhanced{5, 4, 6} // routing loop detected
	noStorage   = message.Enhanced{4, 3, 1} // mail system full
	tempFailure = message.Enhanced{4, 3, 0} // other mail system status
)

func refuse(field, code, format string, args ...any) *Error {
	return &Error{Field: field, Code: code, SMTP: 554, Enhanced: badContent, Message: fmt.Sprintf(format, args...)}
}

func forbid(field, format string, args ...any) *Error {
	return &Error{Field: field, Code: CodeForbidden, SMTP: 550, Enhanced: badPolicy, Message: fmt.Sprintf(format, args...)}
}

// later is the answer to a failure of our own. Unknown failures are temporary,
// because mail lost is worse than mail late.
func later(field string, cause error) *Error {
	e := &Error{Field: field, Code: CodeUnavailable, SMTP: 451, Enhanced: tempFailure,
		Message: "cannot take the message now, try again later", cause: cause}
	if errors.Is(cause, ErrFull) {
		e.Code, e.SMTP, e.Enhanced = CodeFull, 452, noStorage
	}
	return e
}
