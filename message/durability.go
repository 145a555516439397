package message

import "fmt"

// Durability says what the acknowledgement of a message has waited for.
type Durability uint8

// The kinds of durability. The zero value is the strong one, because forgetting
// to ask must never weaken a promise.
const (
	// Synced means that the message is on stable storage: it survives a power
	// cut.
	Synced Durability = iota
	// Written means that the operating system has it: it survives the death of
	// this process, and not that of the machine.
	Written
)

var durabilityNames = [...]string{"fsync", "os"}

func (d Durability) String() string {
	if int(d) < len(durabilityNames) {
		return durabilityNames[d]
	}
	return fmt.Sprintf("durability(%d)", uint8(d))
}

// MarshalText returns the name.
func (d Durability) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a name; an empty one means Synced.
func (d *Durability) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = Synced
		return nil
	}
	for i, n := range durabilityNames {
		if string(b) == n {
			*d = Durability(i)
			return nil
		}
	}
	return fmt.Errorf("durability %q is not fsync or os", b)
}
