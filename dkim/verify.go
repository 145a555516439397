package dkim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/emersion/go-msgauth/dkim"
)

// Bounds on a message whose signatures are verified. It comes from strangers,
// and the cost of verifying grows with each of these.
const (
	maxVerifyHeader   = 64 << 10
	maxVerifyFields   = 300
	maxVerifyFolds    = 600 // continuation lines
	maxVerifyBody     = 16 << 20
	maxVerifyBlank    = 1000 // blank lines at the end of the body
	maxVerifications  = 5
	maxDomainVerified = 253
)

// ErrTooCostly reports a message beyond the bounds of Verify.
var ErrTooCostly = errors.New("dkim: too much to verify")

// ErrKeyUnavailable reports that the DNS did not say whether there is a key:
// the same message may verify later.
var ErrKeyUnavailable = errors.New("dkim: a key could not be looked up")

// unavailable makes a failed lookup count as temporary.
type unavailable struct{ error }

var _ net.Error = unavailable{}

func (unavailable) Timeout() bool   { return true }
func (unavailable) Temporary() bool { return true }

// Verify returns the domains whose signatures of msg, in CRLF lines, verify, in
// lower case and each once. It looks at the first five signatures of messages
// within bounds, and asks lookup for keys: no records and no error means that
// there is none. When no signature verifies and a lookup failed, the error
// wraps ErrKeyUnavailable.
func Verify(ctx context.Context, msg []byte, lookup func(ctx context.Context, name string) ([]string, error)) ([]string, error) {
	if err := affordable(msg); err != nil {
		return nil, err
	}
	list, err := dkim.VerifyWithOptions(bytes.NewReader(msg), &dkim.VerifyOptions{
		MaxVerifications: maxVerifications,
		LookupTXT: func(name string) ([]string, error) {
			txt, err := lookup(ctx, name)
			if err != nil {
				return nil, unavailable{err}
			}
			return txt, nil
		},
	})
	if err != nil && !errors.Is(err, dkim.ErrTooManySignatures) {
		return nil, fmt.Errorf("dkim: verify: %w", err)
	}
	var domains []string
	var failed error
	for _, v := range list {
		switch {
		case v.Err != nil:
			if dkim.IsTempFail(v.Err) {
				failed = v.Err
			}
		case len(v.Domain) <= maxDomainVerified:
			domains = append(domains, strings.ToLower(v.Domain))
		}
	}
	if len(domains) == 0 && failed != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyUnavailable, failed)
	}
	return domains, nil
}

// affordable holds a message to the bounds.
func affordable(msg []byte) error {
	end := bytes.Index(msg, []byte("\r\n\r\n"))
	if end < 0 {
		return fmt.Errorf("%w: no end of the header", ErrTooCostly)
	}
	header, body := msg[:end+2], msg[end+4:]
	fields, folds := 0, 0
	for line := range bytes.Lines(header) {
		if line[0] == ' ' || line[0] == '\t' {
			folds++
		} else {
			fields++
		}
	}
	blank := len(body) - len(bytes.TrimRight(body, " \t\r\n"))
	switch {
	case len(header) > maxVerifyHeader, fields > maxVerifyFields, folds > maxVerifyFolds:
		return fmt.Errorf("%w: header of %d octets, %d fields", ErrTooCostly, len(header), fields)
	case len(body) > maxVerifyBody, blank > 2*maxVerifyBlank:
		return fmt.Errorf("%w: body of %d octets, %d of them blank at its end", ErrTooCostly, len(body), blank)
	}
	return nil
}
