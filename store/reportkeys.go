package store

import (
	"encoding/binary"
	"time"
)

// Lanes of reports: those of the second may wait for others' name servers.
const (
	LaneFast byte = iota
	LaneSlow
)

// ReportKey is where mail of size bytes that came back as number seq waits
// until at; the zero time means at once. The size in the key lets a start count
// what waits without reading it.
func ReportKey(b []byte, lane byte, at time.Time, seq uint64, size uint32) []byte {
	b = append(b, keyReport, lane)
	if at.IsZero() {
		b = binary.BigEndian.AppendUint64(b, 0)
	} else {
		b = appendTime(b, at)
	}
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, seq), size)
}

// ReportSpan holds what waits in a lane.
func ReportSpan(lane byte) Span { return prefixSpan(keyReport, lane) }

// ParseReportKey is the reverse of ReportKey; at is the zero time or later.
func ParseReportKey(k []byte) (at time.Time, seq uint64, size uint32, err error) {
	if len(k) != 22 || k[0] != keyReport {
		return at, 0, 0, ErrBadKey
	}
	if binary.BigEndian.Uint64(k[2:]) > 0 {
		at = readTime(k[2:])
	}
	return at, binary.BigEndian.Uint64(k[10:]), binary.BigEndian.Uint32(k[18:]), nil
}

// HeldKey is where mail that came back and was not believed is kept, in the
// order it was put there.
func HeldKey(b []byte, at time.Time, seq uint64, size uint32) []byte {
	b = appendTime(append(b, keyHeld), at)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, seq), size)
}

// HeldSpan holds all of it.
func HeldSpan() Span { return prefixSpan(keyHeld) }

// ParseHeldKey is the reverse of HeldKey.
func ParseHeldKey(k []byte) (at time.Time, seq uint64, size uint32, err error) {
	if len(k) != 21 || k[0] != keyHeld {
		return at, 0, 0, ErrBadKey
	}
	return readTime(k[1:]), binary.BigEndian.Uint64(k[9:]), binary.BigEndian.Uint32(k[17:]), nil
}
