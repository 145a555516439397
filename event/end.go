package event

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tradewind-mta/tradewind/store"
)

// AtEnd returns the keys of the sinks that have read all of a journal that nobody
// is using: whoever adds events that are no news moves them on with MoveToEnd.
func AtEnd(db *store.DB) (cursors [][]byte, err error) {
	last := uint64(0)
	it, err := db.NewIter(store.JournalSpan(0, ^uint64(0)))
	if err != nil {
		return nil, err
	}
	if it.Last() {
		last, err = store.ParseJournalKey(it.Key())
	}
	if err = errors.Join(err, it.Error(), it.Close()); err != nil {
		return nil, fmt.Errorf("event: end of the journal: %w", err)
	}
	err = db.Each(store.CursorSpan(), func(k, v []byte) (bool, error) {
		if at, err := parseCursor(v); err == nil && at >= last {
			cursors = append(cursors, bytes.Clone(k))
		}
		return true, nil
	})
	return cursors, err
}

// MoveToEnd moves sinks behind everything the journal holds.
func MoveToEnd(db *store.DB, cursors [][]byte) error {
	b := db.NewBatch(0)
	defer b.Close()
	for _, k := range cursors {
		b.Set(k, binary.BigEndian.AppendUint64([]byte{cursorVersion}, db.Sequence().Last()))
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("event: move sinks on: %w", err)
	}
	return nil
}
