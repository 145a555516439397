package dkim

import "fmt"

// Algorithm is a signature algorithm.
type Algorithm uint8

// Algorithms. The zero value means whatever the key is for.
const (
	Auto          Algorithm = iota
	RSASHA256               // rsa-sha256, RFC 6376, 3.3.1: what every receiver verifies
	Ed25519SHA256           // ed25519-sha256, RFC 8463: only beside an RSA key
)

var algorithmNames = [...]string{"auto", "rsa-sha256", "ed25519-sha256"}

// String returns the name used in a=, or "auto".
func (a Algorithm) String() string {
	if int(a) < len(algorithmNames) {
		return algorithmNames[a]
	}
	return fmt.Sprintf("algorithm(%d)", uint8(a))
}

// MarshalText writes the name.
func (a Algorithm) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads a name; empty text is Auto.
func (a *Algorithm) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*a = Auto
		return nil
	}
	for i, n := range algorithmNames {
		if n == string(b) {
			*a = Algorithm(i)
			return nil
		}
	}
	return fmt.Errorf("dkim: algorithm %q is not one of auto, rsa-sha256, ed25519-sha256", b)
}
