package token

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Keyring is the content of a key file: one key a line, its number, 32 octets
// in base64 and the day it was made; the first one seals. Empty lines and lines
// that begin with # are passed over.
type Keyring []FileKey

// FileKey is a line of the file.
type FileKey struct {
	Key
	Made time.Time
}

// ErrKeyFile reports a key file that cannot be read whole. A ring that has lost
// a key silently would take mail of ours for forgeries.
var ErrKeyFile = errors.New("token: bad key file")

const maxKeyFile = 64 << 10

// ParseKeyring reads a key file.
func ParseKeyring(text []byte) (Keyring, error) {
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrKeyFile, maxKeyFile)
	}
	var list Keyring
	line := 0
	for raw := range bytes.Lines(text) {
		line++
		s := strings.TrimSpace(string(raw))
		if s == "" || s[0] == '#' {
			continue
		}
		fields := strings.Fields(s)
		if len(fields) != 3 {
			return nil, fmt.Errorf("%w: line %d: not a number, a key and a day", ErrKeyFile, line)
		}
		id, err := strconv.ParseUint(fields[0], 10, 8)
		if err != nil || id >= MaxKeys {
			return nil, fmt.Errorf("%w: line %d: %.20q is not a number below %d", ErrKeyFile, line, fields[0], MaxKeys)
		}
		secret, err := base64.StdEncoding.DecodeString(fields[1])
		if err != nil || len(secret) != SecretLen {
			return nil, fmt.Errorf("%w: line %d: the key is not %d bytes in base64", ErrKeyFile, line, SecretLen)
		}
		made, err := time.Parse(time.DateOnly, fields[2])
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %.20q is not a day such as 2026-11-26", ErrKeyFile, line, fields[2])
		}
		list = append(list, FileKey{Key{uint8(id), [SecretLen]byte(secret)}, made})
	}
	if _, err := list.Ring(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	return list, nil
}

// Append appends the text of the file.
func (l Keyring) Append(b []byte) []byte {
	b = append(b, "# Keys of tokens: number, key, day made. The first one seals, all of them open.\n"+
		"# Whoever has them can forge bounces and unsubscribe requests.\n"...)
	for i := range l {
		b = fmt.Appendf(b, "%d %s %s\n", l[i].ID, base64.StdEncoding.EncodeToString(l[i].Secret[:]), l[i].Made.Format(time.DateOnly))
	}
	return b
}

// Ring is the ring of the file's keys.
func (l Keyring) Ring() (*Ring, error) {
	keys := make([]Key, len(l))
	for i := range l {
		keys[i] = l[i].Key
	}
	return NewRing(keys...)
}

// Rotate puts a new random key in front, made at now, and drops those that
// sealed their last token before the cut: a key is in use until the one in
// front of it was made.
func (l Keyring) Rotate(now, cut time.Time) (Keyring, error) {
	now = now.UTC().Truncate(24 * time.Hour)
	used := [MaxKeys]bool{}
	out := Keyring{{Made: now}}
	rand.Read(out[0].Secret[:]) // never fails
	for i, k := range l {
		until := now
		if i > 0 {
			until = l[i-1].Made
		}
		if until.Before(cut) {
			continue
		}
		out = append(out, k)
		used[k.ID] = true
	}
	// The number after the newest, so that numbers come round as late as can be.
	next := 0
	if len(l) > 0 {
		next = int(l[0].ID) + 1
	}
	for range MaxKeys {
		if next %= MaxKeys; !used[next] {
			out[0].ID = uint8(next)
			return out, nil
		}
		next++
	}
	return nil, fmt.Errorf("token: the ring holds %d keys already; remove the oldest by hand", MaxKeys)
}
