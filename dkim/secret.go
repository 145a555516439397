package dkim

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is a private key in PEM. However it is printed, logged or marshalled,
// all that shows is "[redacted]"; only a conversion to []byte or string gives
// the text away.
type Secret []byte

// String returns "[redacted]".
func (Secret) String() string { return redacted }

// Format writes "[redacted]" for every verb.
func (Secret) Format(f fmt.State, _ rune) { f.Write([]byte(redacted)) }

// LogValue is "[redacted]".
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText writes "[redacted]"; what was marshalled cannot be read back.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText takes PEM text as it is.
func (s *Secret) UnmarshalText(b []byte) error {
	*s = append(Secret(nil), b...)
	return nil
}
