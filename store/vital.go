package store

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Without a few records a store does not open. Each is kept twice, in two key
// spaces and so in two tables: one damaged block must not lock all the mail in.

// setVital puts value under key, and its copy.
func setVital(b *pebble.Batch, key byte, value []byte) error {
	if err := b.Set([]byte{key}, value, nil); err != nil {
		return err
	}
	return b.Set([]byte{keyCopies, key}, value, nil)
}

// vital returns what setVital wrote, nil when nothing was, from the copy when the
// record itself is damaged. It writes that anew then.
func (db *DB) vital(key byte) ([]byte, error) {
	v, damage := db.Get([]byte{key})
	if !IsDamage(damage) {
		return v, damage
	}
	v, err := db.Get([]byte{keyCopies, key})
	if err != nil || v == nil {
		return nil, damage // a store from before there were copies
	}
	b := db.NewBatch(0)
	defer b.Close()
	b.note(setVital(b.b, key, v))
	if err := b.Commit(); err != nil {
		return nil, fmt.Errorf("store: repair %s: %w", db.kind, err)
	}
	db.log.Warn("a record that the store does not open without was damaged, and has been restored from its copy", "record", key)
	return v, nil
}
