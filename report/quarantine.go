package report

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/tradewind-mta/tradewind/store"
)

// maxHeldRaw is how much of a report is kept in quarantine.
const maxHeldRaw = 64 << 10

// heldReport is one on its way there.
type heldReport struct {
	*record
	kind   kind
	reason reason
}

// Held is a report in quarantine.
type Held struct {
	ID       uint64    `json:"id"`
	Time     time.Time `json:"time"` // when it came
	Reason   string    `json:"reason"`
	Kind     string    `json:"kind"`
	From     string    `json:"from"` // "" is the null sender
	To       string    `json:"to"`
	Client   string    `json:"client,omitempty"`
	Size     int       `json:"size"` // of the mail; at most 64 KiB of it are kept
	Contents []byte    `json:"-"`
}

// A value is version, kind, reason, size and the record.
const heldVersion = 1

func (h *heldReport) append(b []byte) []byte {
	b = append(b, heldVersion, byte(h.kind), byte(h.reason))
	b = binary.BigEndian.AppendUint32(b, h.size)
	b = h.appendHead(b)
	return append(b, h.raw[:min(len(h.raw), maxHeldRaw)]...)
}

func decodeHeld(k, v []byte) (*Held, error) {
	_, seq, _, err := store.ParseHeldKey(k)
	if err != nil {
		return nil, err
	}
	h := &Held{ID: seq, Reason: reasonNames[heldUnreadable], Kind: kindNames[kindUnreadable]}
	if len(v) < 7 || v[0] != heldVersion || int(v[1]) >= len(kindNames) || int(v[2]) >= len(reasonNames) {
		h.Contents, h.Size = append([]byte(nil), v...), len(v)
		return h, nil
	}
	h.Kind, h.Reason, h.Size = kindNames[v[1]], reasonNames[v[2]], int(binary.BigEndian.Uint32(v[3:]))
	var r record
	if err := r.decode(v[7:]); err != nil {
		h.Contents = append([]byte(nil), v[7:]...)
		return h, nil
	}
	h.Time, h.From, h.To, h.Contents = r.received.UTC(), r.from, r.to.String(), r.raw
	if r.client.IsValid() {
		h.Client = r.client.String()
	}
	return h, nil
}

// hold puts the batch's reports into quarantine and makes room for them: the
// oldest go.
func (s *settling) hold() error {
	if len(s.held) == 0 {
		return nil
	}
	m := s.m
	m.held.Lock()
	s.b.OnVisible(m.held.Unlock)
	seq := s.b.Reserve(len(s.held))
	for i := range s.held {
		h := &s.held[i]
		v := h.append(nil)
		s.b.Set(store.HeldKey(nil, s.now, seq+uint64(i), uint32(len(v))), v)
		m.heldCount++
		m.heldBytes += int64(len(v))
	}
	return m.trim(s.b, time.Time{})
}

// trim deletes the oldest of the quarantine until its bounds hold, and all that
// is older than cut. REQUIRES: m.held is held until b is visible.
func (m *Mailbox) trim(b *store.Batch, cut time.Time) error {
	it, err := m.d.DB.NewIter(store.HeldSpan())
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		at, _, size, err := store.ParseHeldKey(it.Key())
		if err != nil {
			return err
		}
		if m.heldCount <= m.c.MaxHeld && m.heldBytes <= m.c.MaxHeldBytes && !at.Before(cut) {
			return nil
		}
		b.Delete(it.Key())
		m.heldCount--
		m.heldBytes -= int64(size)
	}
	return it.Error()
}

// clean removes what is too old to keep, once an hour: nothing that cannot be
// erased person by person may lie for thirty days.
func (m *Mailbox) clean(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if err := m.expire(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (m *Mailbox) expire() error {
	b := m.d.DB.NewBatch(0)
	defer b.Close()
	m.held.Lock()
	b.OnVisible(m.held.Unlock)
	if err := m.trim(b, m.d.Now().Add(-m.c.MaxHeldAge)); err != nil {
		return err
	}
	return b.CommitLazy()
}

// ErrNotHeld reports an id that is not in quarantine (any more).
var ErrNotHeld = errors.New("report: not in quarantine")

// Held lists up to limit reports in quarantine behind after, oldest first,
// without their contents. Numbers rise with time.
func (m *Mailbox) Held(after uint64, limit int) (list []*Held, err error) {
	err = m.d.DB.Each(store.HeldSpan(), func(k, v []byte) (bool, error) {
		if len(list) >= limit {
			return false, nil
		}
		h, err := decodeHeld(k, v)
		if err != nil {
			return false, err
		}
		if h.ID > after {
			h.Contents = nil
			list = append(list, h)
		}
		return true, nil
	})
	return list, err
}

// Show returns one report in quarantine with what is kept of its contents.
func (m *Mailbox) Show(id uint64) (found *Held, err error) {
	err = m.d.DB.Each(store.HeldSpan(), func(k, v []byte) (bool, error) {
		_, seq, _, err := store.ParseHeldKey(k)
		if err == nil && seq == id {
			found, err = decodeHeld(k, v)
		}
		return found == nil, err
	})
	if err == nil && found == nil {
		err = ErrNotHeld
	}
	return found, err
}
