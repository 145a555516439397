package inbound

import (
	"errors"
	"strconv"

	"github.com/emersion/go-smtp"
)

// Every reply is one of these constants, or made from a backend's SMTPError,
// cleaned and cut. Nothing a client sent is ever echoed.
const (
	replyReset    = "250 2.0.0 Ok\r\n"
	replyNoop     = "250 2.0.0 Ok\r\n"
	replyMail     = "250 2.1.0 Sender ok\r\n"
	replyRcpt     = "250 2.1.5 Recipient ok\r\n"
	replyChunk    = "250 2.0.0 Chunk ok\r\n"
	replyData     = "354 End with <CR><LF>.<CR><LF>\r\n"
	replyStartTLS = "220 2.0.0 Ready to start TLS\r\n"
	replyAuthOK   = "235 2.7.0 Authenticated\r\n"
	replyQuit     = "221 2.0.0 Bye\r\n"
	replyVrfy     = "252 2.5.0 Will not verify, but will try to deliver\r\n"
	replyHelp     = "214 2.0.0 RFC 5321\r\n"

	replyTooManyConns  = "421 4.7.0 Too many connections, try again later\r\n"
	replyShutdown      = "421 4.3.2 Service shutting down\r\n"
	replyIdle          = "421 4.4.2 Timeout\r\n"
	replyTotal         = "421 4.4.2 Connection open too long\r\n"
	replyDataLost      = "421 4.4.2 Message not completed\r\n"
	replyBroken        = "421 4.3.0 Internal error\r\n"
	replyTooManyErrors = "421 4.7.0 Too many errors\r\n"
	replyTooManyAuth   = "421 4.7.0 Too many failed authentications\r\n"
	replyTooManyMsgs   = "421 4.7.0 Too many messages on this connection\r\n"
	replyEarly         = "554 5.5.0 Wait for the reply before sending more\r\n"
	replyNotSMTP       = "554 5.5.1 This is an SMTP server\r\n"
	replyLineEnd       = "500 5.5.2 Lines must end with CRLF\r\n"
	replyLineLong      = "500 5.5.2 Line too long\r\n"
	replyChunkSize     = "501 5.5.4 Bad chunk size\r\n"
	replyTooBigClose   = "552 5.3.4 Message too large\r\n"
)

func smtpError(code int, enhanced smtp.EnhancedCode, text string) *smtp.SMTPError {
	return &smtp.SMTPError{Code: code, EnhancedCode: enhanced, Message: text}
}

// Refusals that leave the connection open. Treat as constants.
var (
	errUnknownVerb  = smtpError(500, smtp.EnhancedCode{5, 5, 2}, "Command not recognized")
	errBadSyntax    = smtpError(501, smtp.EnhancedCode{5, 5, 4}, "Syntax error in arguments")
	errBadParam     = smtpError(501, smtp.EnhancedCode{5, 5, 4}, "Bad parameter")
	errUnknownParam = smtpError(555, smtp.EnhancedCode{5, 5, 4}, "Parameter not recognized")
	errBadHello     = smtpError(501, smtp.EnhancedCode{5, 5, 4}, "Domain or address literal required")
	errBadSender    = smtpError(501, smtp.EnhancedCode{5, 1, 7}, "Bad sender address")
	errBadAddress   = smtpError(501, smtp.EnhancedCode{5, 1, 3}, "Bad address")
	errNeedsUTF8    = smtpError(553, smtp.EnhancedCode{5, 6, 7}, "Address needs SMTPUTF8")
	errNotNow       = smtpError(503, smtp.EnhancedCode{5, 5, 1}, "Bad sequence of commands")
	errNotHere      = smtpError(502, smtp.EnhancedCode{5, 5, 1}, "Command not implemented")
	errTooBig       = smtpError(552, smtp.EnhancedCode{5, 3, 4}, "Message too large")
	errRecipients   = smtpError(452, smtp.EnhancedCode{4, 5, 3}, "Too many recipients")
	errChunks       = smtpError(554, smtp.EnhancedCode{5, 5, 0}, "Too many chunks")
	errNoMemory     = smtpError(452, smtp.EnhancedCode{4, 3, 1}, "Out of buffer space, try again later")
	errBareLine     = smtpError(550, smtp.EnhancedCode{5, 6, 0}, "Message contains a bare CR, bare LF or NUL")
	errLongLine     = smtpError(554, smtp.EnhancedCode{5, 6, 0}, "Message contains a line that is too long")
	errInternal     = smtpError(451, smtp.EnhancedCode{4, 3, 0}, "Temporary failure, try again later")

	errAuthNeedsTLS  = smtpError(538, smtp.EnhancedCode{5, 7, 11}, "Encryption required for authentication")
	errAuthMechanism = smtpError(504, smtp.EnhancedCode{5, 5, 4}, "Authentication mechanism not supported")
	errAuthFailed    = smtpError(535, smtp.EnhancedCode{5, 7, 8}, "Authentication failed")
	errAuthTemporary = smtpError(454, smtp.EnhancedCode{4, 7, 0}, "Temporary authentication failure")
	errAuthCanceled  = smtpError(501, smtp.EnhancedCode{5, 7, 0}, "Authentication canceled")
	errAuthSyntax    = smtpError(501, smtp.EnhancedCode{5, 5, 2}, "Bad base64")
)

const (
	maxReplyText  = 400 // octets a line, well below the 512 of RFC 5321, 4.5.3.1.5
	maxReplyLines = 8
)

// asSMTPError is what a client may see of err: an SMTPError as it is, when its
// code says refusal, and otherwise a constant that reveals nothing.
func asSMTPError(err error, other *smtp.SMTPError) *smtp.SMTPError {
	if e, ok := errors.AsType[*smtp.SMTPError](err); ok && e != nil && e.Code >= 400 && e.Code <= 599 {
		return e
	}
	return other
}

// appendError appends e as a reply of one or more lines.
func appendError(dst []byte, e *smtp.SMTPError) []byte {
	text := e.Message
	for line := 0; ; line++ {
		end := len(text)
		for i := range len(text) {
			if text[i] == '\n' {
				end = i
				break
			}
		}
		last := end == len(text) || line == maxReplyLines-1
		dst = strconv.AppendInt(dst, int64(e.Code), 10)
		if last {
			dst = append(dst, ' ')
		} else {
			dst = append(dst, '-')
		}
		dst = appendEnhanced(dst, e)
		dst = appendClean(dst, text[:end])
		dst = append(dst, '\r', '\n')
		if last {
			return dst
		}
		text = text[end+1:]
	}
}

// appendEnhanced appends the status code of e: the one it has, if its class
// agrees with the reply code (RFC 2034, 4), and otherwise X.0.0.
func appendEnhanced(dst []byte, e *smtp.SMTPError) []byte {
	class := e.Code / 100
	ec := e.EnhancedCode
	if ec[0] != class || ec[1] < 0 || ec[1] > 999 || ec[2] < 0 || ec[2] > 999 {
		ec = smtp.EnhancedCode{class, 0, 0}
	}
	dst = strconv.AppendInt(dst, int64(ec[0]), 10)
	dst = append(dst, '.')
	dst = strconv.AppendInt(dst, int64(ec[1]), 10)
	dst = append(dst, '.')
	dst = strconv.AppendInt(dst, int64(ec[2]), 10)
	return append(dst, ' ')
}

// appendClean appends text cut to maxReplyText, with everything but printable
// ASCII replaced.
func appendClean(dst []byte, text string) []byte {
	for i := range min(len(text), maxReplyText) {
		c := text[i]
		switch {
		case c == '\r' || c == '\n' || c == '\t':
			c = ' '
		case c < ' ' || c > '~':
			c = '?'
		}
		dst = append(dst, c)
	}
	return dst
}
