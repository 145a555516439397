package event

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/tradewind-mta/tradewind/store"
)

const cursorVersion = 1

var errCursor = errors.New("malformed cursor")

func parseCursor(v []byte) (uint64, error) {
	if len(v) != 9 || v[0] != cursorVersion {
		return 0, errCursor
	}
	return binary.BigEndian.Uint64(v[1:]), nil
}

// setCursor records that the sink called name has everything up to place
// after. It needs no sync: a cursor that a crash puts back means duplicates,
// and it can never come back ahead of the events it stands for, which lie
// before it in the log. The first one of a sink is synced, or else a crash
// could make the sink start over at a later "now".
func (j *Journal) setCursor(name string, after uint64, sync bool) error {
	b := j.db.NewBatch(64)
	defer b.Close()
	b.Set(store.CursorKey(nil, name), binary.BigEndian.AppendUint64([]byte{cursorVersion}, after))
	if sync {
		return b.Commit()
	}
	return b.CommitLazy()
}

func (j *Journal) deleteCursor(name string) error {
	b := j.db.NewBatch(64)
	defer b.Close()
	b.Delete(store.CursorKey(nil, name))
	return b.Commit()
}

func sortSeqs(s []uint64) { slices.Sort(s) }
