package report

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Envelope is what is known of a piece of mail beside its bytes.
type Envelope struct {
	From   message.Address // zero for the null sender
	To     []message.Address
	Client netip.Addr
}

// record is one report that waits: mail to one address of ours.
type record struct {
	received time.Time
	from     string // "" is the null sender
	to       message.Address
	client   netip.Addr
	tries    int
	raw      []byte

	// Its key. The zero time means that it waits for nothing; what moves to the
	// slow lane or is tried again has the time of that.
	at   time.Time
	seq  uint64
	size uint32 // of the mail: what it counts for
}

const recordVersion = 1

var errRecord = errors.New("report: unreadable record")

// appendHead encodes everything but the mail, which follows it.
func (r *record) appendHead(b []byte) []byte {
	b = append(b, recordVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(r.received.UnixNano()))
	b = append(b, byte(min(r.tries, math.MaxUint8)))
	client := ""
	if r.client.IsValid() {
		client = r.client.String()
	}
	for _, s := range [...]string{r.from, r.to.String(), client} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

func (r *record) decode(v []byte) error {
	if len(v) < 10 || v[0] != recordVersion {
		return errRecord
	}
	r.received = time.Unix(0, int64(binary.BigEndian.Uint64(v[1:])))
	r.tries = int(v[9])
	v = v[10:]
	var to, client string
	for _, s := range [...]*string{&r.from, &to, &client} {
		n, w := binary.Uvarint(v)
		if w <= 0 || n > uint64(len(v)-w) {
			return errRecord
		}
		*s, v = string(v[w:w+int(n)]), v[w+int(n):]
	}
	var err error
	if r.to, err = message.ParseAddress(to); err != nil {
		return fmt.Errorf("%w: %w", errRecord, err)
	}
	if client != "" {
		if r.client, err = netip.ParseAddr(client); err != nil {
			return fmt.Errorf("%w: %w", errRecord, err)
		}
	}
	r.raw = append([]byte(nil), v...)
	return nil
}

func (r *record) key(lane byte) []byte {
	return store.ReportKey(nil, lane, r.at, r.seq, r.size)
}

// put writes r into a lane, to be read at r.at.
func (r *record) put(b *store.Batch, lane byte) {
	b.SetParts(r.key(lane), r.appendHead(nil), r.raw)
}

// Take makes mail durable and returns after the commit. Every address has been
// admitted. It keeps nothing of raw. It returns ErrFull when too much waits.
func (m *Mailbox) Take(env Envelope, raw []byte) error {
	size := int64(len(raw) * len(env.To))
	// A little too much may get in when many come at once, by what their
	// listener lets them buffer.
	if m.bytes.Load()+size > m.c.MaxWaiting {
		m.m.refused[refusedFull].Inc()
		return ErrFull
	}
	b := m.d.DB.NewBatch(len(raw) + 512)
	defer b.Close()
	first := b.Reserve(len(env.To))
	from := ""
	if !env.From.IsZero() {
		from = env.From.String()
	}
	for i, to := range env.To {
		r := record{received: m.d.Now(), from: from, to: to, client: env.Client, raw: raw, seq: first + uint64(i), size: uint32(len(raw))}
		r.put(b, store.LaneFast)
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("report: take: %w", err)
	}
	m.count.Add(int64(len(env.To)))
	m.bytes.Add(size)
	m.m.received.Add(float64(len(env.To)))
	m.poke(store.LaneFast)
	return nil
}

// poke wakes whoever works on a lane.
func (m *Mailbox) poke(lane byte) {
	select {
	case m.wake[lane] <- struct{}{}:
	default:
	}
}

// Bounds on one batch of work.
const (
	maxBatch      = 64
	maxBatchBytes = 16 << 20
)

// laneState is how far one lane has been worked off.
type laneState struct {
	number byte
	// done is the place up to which nothing that waits for nothing is left.
	// Beginning there spares the reader what was deleted before it, which a
	// store keeps for a while: thousands a second in a storm.
	done uint64
	// upto is what done becomes when the batch in hand has been committed.
	upto uint64
}

// next reads what is due of a lane, up to one batch, and when the one behind
// it is due; the zero time means nothing is.
func (m *Mailbox) next(lane *laneState) (list []*record, then time.Time, err error) {
	now := m.d.Now()
	size := 0
	// Batches become visible in another order than they were numbered in: only
	// up to the horizon is everything there that ever will be.
	lane.upto = max(lane.done, m.d.DB.Sequence().Horizon())
	span := store.ReportSpan(lane.number)
	span.Start = store.ReportKey(nil, lane.number, time.Time{}, lane.done+1, 0)
	err = m.d.DB.Each(span, func(k, v []byte) (bool, error) {
		r := &record{}
		var err error
		if r.at, r.seq, r.size, err = store.ParseReportKey(k); err != nil {
			return false, err
		}
		if r.at.After(now) {
			then = r.at
			return false, nil
		}
		if len(list) == maxBatch || size > maxBatchBytes {
			if r.at.IsZero() {
				lane.upto = min(lane.upto, r.seq-1)
			}
			return false, nil
		}
		if err := r.decode(v); err != nil {
			// Kept for somebody to look at, not to stand in the way for ever.
			m.d.Logger.Error("a report on disk cannot be read", "err", err)
			r.raw, r.to = append([]byte(nil), v...), message.Address{}
		}
		size += len(r.raw)
		list = append(list, r)
		return true, nil
	})
	return list, then, err
}
