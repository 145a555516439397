package throttle

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// stateVersion is the first byte of every saved part.
const stateVersion = 1

// Parts is a snapshot taken apart for storage: parts that did not change since
// the last save need not be written again.
type Parts map[string][]byte

// partNames is the closed set of names.
var partNames = [...]string{"holds", "suspensions", "warmups", "picks", "brakes", "rates"}

// PartNames returns the names that Parts may have.
func PartNames() []string { return append([]string(nil), partNames[:]...) }

// part is the piece of a snapshot called name.
func (s *Snapshot) part(name string) any {
	switch name {
	case "holds":
		return &s.Holds
	case "suspensions":
		return &s.Suspensions
	case "warmups":
		return &s.Warmups
	case "picks":
		return &s.Picks
	case "brakes":
		return &s.Brakes
	}
	return &s.Rates
}

// Parts encodes a snapshot.
func (s *Snapshot) Parts() (Parts, error) {
	p := Parts{}
	for _, name := range partNames {
		b, err := json.Marshal(s.part(name))
		if err != nil {
			return nil, fmt.Errorf("throttle: encode %s: %w", name, err)
		}
		p[name] = append([]byte{stateVersion}, b...)
	}
	return p, nil
}

// Changed returns those of p that differ from before.
func (p Parts) Changed(before Parts) Parts {
	out := Parts{}
	for name, b := range p {
		if !bytes.Equal(b, before[name]) {
			out[name] = b
		}
	}
	return out
}

// Snapshot decodes parts. One of another version, or that cannot be read, is an
// error that wraps ErrSnapshot; the others are decoded all the same.
func (p Parts) Snapshot() (*Snapshot, error) {
	s := &Snapshot{Version: snapshotVersion}
	var failed error
	for _, name := range partNames {
		b := p[name]
		switch {
		case len(b) == 0:
		case b[0] != stateVersion:
			failed = fmt.Errorf("throttle: %w: %s have version %d, want %d", ErrSnapshot, name, b[0], stateVersion)
		default:
			whole := *s // half a part is worse than none
			if err := json.Unmarshal(b[1:], s.part(name)); err != nil {
				*s = whole
				failed = fmt.Errorf("throttle: %w: %s: %w", ErrSnapshot, name, err)
			}
		}
	}
	return s, failed
}
