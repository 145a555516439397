package queue

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

const idempotencyVersion = 1

// addIdempotency records an answer in the commit that makes it true.
func (m *Manager) addIdempotency(b *store.Batch, r *message.Idempotency) {
	expires := r.Expires
	if expires.IsZero() {
		expires = m.deps.Now().Add(m.Config().IdempotencyTTL)
	}
	v := make([]byte, 0, 1+8+32+len(r.Response))
	v = append(v, idempotencyVersion)
	v = binary.BigEndian.AppendUint64(v, uint64(expires.UnixNano()))
	v = append(v, r.Request[:]...)
	v = append(v, r.Response...)
	b.Set(store.IdempotencyKey(nil, r.Key), v)
	b.Set(store.IdempotencyExpiryKey(nil, expires, r.Key), nil)
}

// Idempotent returns the record of an earlier request, or nil.
func (m *Manager) Idempotent(key [32]byte) (*message.Idempotency, error) {
	v, err := m.db.Get(store.IdempotencyKey(nil, key))
	if err != nil || v == nil {
		return nil, err
	}
	if len(v) < 1+8+32 || v[0] != idempotencyVersion {
		return nil, fmt.Errorf("%w: idempotency record %x", errRecord, key)
	}
	expires := time.Unix(0, int64(binary.BigEndian.Uint64(v[1:])))
	if !expires.After(m.deps.Now()) {
		return nil, nil
	}
	return &message.Idempotency{Key: key, Request: [32]byte(v[9:41]), Response: v[41:], Expires: expires}, nil
}

// expireIdempotency drops the records whose time is over. A record that was
// written again meanwhile keeps its later time.
func (m *Manager) expireIdempotency(now time.Time) error {
	b := m.db.NewBatch(0)
	defer b.Close()
	n := 0
	_, err := m.db.EachReadable(store.IdempotencyExpirySpan(now), func(k, _ []byte) (bool, error) {
		record, err := store.ParseIdempotencyExpiryKey(k)
		if err != nil {
			return false, err
		}
		v, err := m.db.Get(record)
		if err != nil && !store.IsDamage(err) {
			return false, err
		}
		if err != nil {
			b.Delete(record)
		}
		if len(v) >= 9 && int64(binary.BigEndian.Uint64(v[1:])) <= now.UnixNano() {
			b.Delete(record)
		}
		b.Delete(k)
		n++
		return n < 10_000, nil
	})
	if err != nil {
		return fmt.Errorf("queue: expire idempotency keys: %w", err)
	}
	return b.CommitLazy()
}
