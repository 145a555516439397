package queue

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Waiting mail moves between nodes as a stream of JSON lines: a head, a line for
// each message with all that the spool knows of its waiting recipients, and a
// last line that tells a whole stream from one that was cut short. Records are
// the spool's own, in base64, so that nothing is lost on the way.

const (
	transferFormat  = "tradewind-queue"
	transferVersion = 1
	// maxTransferLine bounds one message with its history.
	maxTransferLine = 512 << 20
	// transferBatch is about how many octets one commit of an import holds.
	transferBatch = 4 << 20
)

type transferHead struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Created time.Time `json:"created"`
}

type transferMessage struct {
	ID         message.ID          `json:"id"`
	Record     []byte              `json:"record"`
	Body       []byte              `json:"body"`
	Recipients []transferRecipient `json:"recipients"`
	History    []transferEvent     `json:"history,omitempty"`
	// Sum is the SHA-256 of the line with an empty Sum, in hex.
	Sum string `json:"sum"`
}

type transferRecipient struct {
	N uint32 `json:"n"`
	// Due is when the recipient is tried next; zero means now.
	Due  time.Time `json:"due,omitzero"`
	Item []byte    `json:"item"`
}

// transferEvent is a record of the journal, as it stands there.
type transferEvent struct {
	N      uint32 `json:"n"`
	Record []byte `json:"record"`
}

type transferTail struct {
	End bool `json:"end"`
	TransferReport
	// Sum is the SHA-256 of everything before this line, in hex.
	Sum string `json:"sum"`
}

// TransferReport says what an export or import came to.
type TransferReport struct {
	Messages   int `json:"messages"`
	Recipients int `json:"recipients"`
	// Skipped are messages that an import found here already, waiting or in the
	// history, and damaged ones that an export left alone.
	Skipped int `json:"skipped"`
	// Incomplete reports that an export has met damage where the keys of messages
	// lie, so that nobody knows which ones it left out.
	Incomplete bool `json:"incomplete,omitempty"`
}

// TransferOptions choose what moves.
type TransferOptions struct {
	// Tenant and Domain restrict an export; empty means all.
	Tenant, Domain string
	// DryRun counts and changes nothing.
	DryRun bool
	// Progress is called now and then; it may be nil.
	Progress func(TransferReport)
	Now      func() time.Time
}

// ErrTransfer reports a stream that is not what an export writes, or not all of it.
var ErrTransfer = errors.New("queue: unusable export")

// sum returns the checksum of m's line.
func (m transferMessage) sum() (string, error) {
	m.Sum = ""
	b, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:]), nil
}

// Export writes what waits in a spool that nobody is using to w, oldest message
// first, and changes nothing. A message that cannot be read is left out and
// counted.
func Export(ctx context.Context, db *store.DB, w io.Writer, opt TransferOptions) (r TransferReport, err error) {
	out := bufio.NewWriterSize(w, 1<<20)
	all := sha256.New()
	enc := json.NewEncoder(io.MultiWriter(out, all))
	if err := enc.Encode(transferHead{transferFormat, transferVersion, opt.Now().UTC()}); err != nil {
		return r, err
	}
	whole, err := db.EachReadable(store.MessageSpan(), func(k, v []byte) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		m, err := exported(db, k, v, &opt)
		if errors.Is(err, errRecord) || errors.Is(err, ErrDamaged) || store.IsDamage(err) {
			r.Skipped++
			return true, nil
		}
		if err != nil || m == nil {
			return err == nil, err
		}
		if m.Sum, err = m.sum(); err != nil {
			return false, err
		}
		r.Messages++
		r.Recipients += len(m.Recipients)
		if opt.Progress != nil && r.Messages%1000 == 0 {
			opt.Progress(r)
		}
		return true, enc.Encode(m)
	})
	if err != nil {
		return r, fmt.Errorf("queue: export: %w", err)
	}
	r.Incomplete = !whole
	tail := transferTail{End: true, TransferReport: r, Sum: hex.EncodeToString(all.Sum(nil))}
	if err := json.NewEncoder(out).Encode(tail); err != nil {
		return r, fmt.Errorf("queue: export: %w", err)
	}
	if err := out.Flush(); err != nil {
		return r, fmt.Errorf("queue: export: %w", err)
	}
	return r, nil
}

// exported makes the line of one message, or nil when none of its recipients is
// asked for.
func exported(db *store.DB, k, v []byte, opt *TransferOptions) (*transferMessage, error) {
	id, err := store.ParseMessageKey(k)
	if err != nil {
		return nil, errRecord
	}
	msg, err := decodeMessage(id, v)
	if err != nil {
		return nil, err
	}
	if opt.Tenant != "" && msg.Tenant != opt.Tenant {
		return nil, nil
	}
	m := &transferMessage{ID: id, Record: bytes.Clone(v)}
	taken := map[uint32]bool{}
	err = db.Each(store.LocatorSpan(id), func(k, at []byte) (bool, error) {
		_, n, err := store.ParseLocatorKey(k)
		if err != nil {
			return false, errRecord
		}
		record, err := db.Get(at)
		if err != nil {
			return false, err
		}
		r := transferRecipient{N: n, Item: record}
		if store.IsDue(at) {
			if r.Due, _, _, err = store.ParseDueKey(at); err != nil {
				return false, errRecord
			}
			if _, r.Item, err = splitDue(record); err != nil {
				return false, err
			}
		}
		it, err := decodeItem(r.Item)
		if err != nil {
			return false, err
		}
		if opt.Domain == "" || it.Recipient.Address.Domain() == opt.Domain {
			taken[n] = true
			m.Recipients = append(m.Recipients, r)
		}
		return true, nil
	})
	if err != nil || len(m.Recipients) == 0 {
		return nil, err
	}
	if m.Body, err = bodyOf(db, id, msg.Size); err != nil {
		return nil, err
	}
	return m, db.Each(store.HistorySpan(id), func(k, _ []byte) (bool, error) {
		_, n, seq, err := store.ParseHistoryKey(k)
		if err != nil || !taken[n] {
			return true, nil
		}
		record, err := db.Get(store.JournalKey(nil, seq))
		if store.IsDamage(err) {
			return true, nil // the mail matters more than what was said of it
		}
		if record != nil {
			m.History = append(m.History, transferEvent{n, record})
		}
		return true, err
	})
}

// Import takes over what an export wrote, into a spool that nobody is using. A
// message that is here already, waiting or in the history, is skipped, so that
// an import that broke off can be run again. Events come along as they are, with
// their ids. DryRun checks the whole stream and writes nothing.
func Import(ctx context.Context, db *store.DB, in io.Reader, opt TransferOptions) (r TransferReport, err error) {
	i := &importer{db: db, opt: &opt, all: sha256.New(), batch: db.NewBatch(0), ids: make(map[message.ID]bool)}
	defer func() { i.batch.Close() }()
	err = i.run(ctx, in)
	// What is whole stays, also when the stream breaks off behind it.
	if err = errors.Join(err, i.commit()); err != nil {
		return i.done, fmt.Errorf("queue: import: %w", err)
	}
	return i.done, nil
}

type importer struct {
	db    *store.DB
	opt   *TransferOptions
	all   hash.Hash
	batch *store.Batch
	done  TransferReport      // committed
	next  TransferReport      // with what is in batch
	ids   map[message.ID]bool // in batch
}

func (i *importer) run(ctx context.Context, in io.Reader) error {
	return readTransfer(ctx, in, i.all, func(line []byte) error {
		if err := i.add(line); err != nil {
			return err
		}
		if i.batch.Len() >= transferBatch {
			return i.commit()
		}
		return nil
	})
}

// readTransfer hands every message of a stream to fn and checks the rest.
func readTransfer(ctx context.Context, in io.Reader, all hash.Hash, fn func(line []byte) error) error {
	lines := bufio.NewReaderSize(in, 1<<20)
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		line, err := transferLine(lines)
		if err != nil {
			return fmt.Errorf("%w: line %d: %w", ErrTransfer, n, err)
		}
		if n == 1 {
			var head transferHead
			if json.Unmarshal(line, &head) != nil || head.Format != transferFormat {
				return fmt.Errorf("%w: it does not begin as one", ErrTransfer)
			}
			if head.Version != transferVersion {
				return fmt.Errorf("%w: version %d, this release reads %d", ErrTransfer, head.Version, transferVersion)
			}
			all.Write(line)
			continue
		}
		var tail transferTail
		if json.Unmarshal(line, &tail) == nil && tail.End {
			if tail.Sum != hex.EncodeToString(all.Sum(nil)) {
				return fmt.Errorf("%w: the checksum of the whole does not match", ErrTransfer)
			}
			return nil
		}
		all.Write(line)
		if err := fn(line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
}

// transferLine reads one line with its end.
func transferLine(r *bufio.Reader) (line []byte, err error) {
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxTransferLine:
			return nil, errors.New("it is too long")
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// add puts one message into the batch.
func (i *importer) add(line []byte) error {
	var m transferMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("%w: %w", ErrTransfer, err)
	}
	if sum, err := m.sum(); err != nil || sum != m.Sum {
		return fmt.Errorf("%w: message %s: its checksum does not match", ErrTransfer, m.ID)
	}
	msg, err := decodeMessage(m.ID, m.Record)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTransfer, err)
	}
	if len(m.Body) != msg.Size || len(m.Recipients) == 0 {
		return fmt.Errorf("%w: message %s has %d octets and %d recipients", ErrTransfer, m.ID, len(m.Body), len(m.Recipients))
	}
	known, err := i.known(m.ID)
	if err != nil {
		return err
	}
	if known {
		i.next.Skipped++
		return nil
	}
	i.next.Messages++
	i.next.Recipients += len(m.Recipients)
	b := i.batch
	b.Set(store.MessageKey(nil, m.ID), m.Record)
	b.Set(store.ExpiryKey(nil, msg.Expires, m.ID), nil)
	for n := 0; n*bodyChunk < len(m.Body); n++ {
		b.Set(store.BodyKey(nil, m.ID, uint32(n)), m.Body[n*bodyChunk:min(len(m.Body), (n+1)*bodyChunk)])
	}
	for _, r := range m.Recipients {
		it, err := decodeItem(r.Item)
		if err != nil || it.ID != m.ID || it.Recipient.N != r.N {
			return fmt.Errorf("%w: message %s: recipient %d is not readable", ErrTransfer, m.ID, r.N)
		}
		key := store.QueueKey{Pool: msg.Pool, Domain: it.Recipient.Address.Domain(), Tenant: msg.Tenant, Campaign: msg.Campaign, Class: msg.Class}
		place := store.DueKey(nil, r.Due, m.ID, r.N)
		if r.Due.IsZero() {
			place = store.ReadyKey(nil, &key, b.Reserve(1))
			b.Set(place, r.Item)
		} else {
			b.Set(place, appendDue(nil, &key, it))
		}
		b.Set(store.LocatorKey(nil, m.ID, r.N), place)
	}
	for _, e := range m.History {
		seq := b.Reserve(1)
		b.Set(store.JournalKey(nil, seq), e.Record)
		b.Set(store.HistoryKey(nil, m.ID, e.N, seq), nil)
	}
	return nil
}

// known reports whether this node has or had the message.
func (i *importer) known(id message.ID) (bool, error) {
	if i.ids[id] {
		return true, nil
	}
	i.ids[id] = true
	v, err := i.db.Get(store.MessageKey(nil, id))
	if err != nil || v != nil {
		return v != nil, err
	}
	found := false
	err = i.db.Each(store.HistorySpan(id), func(_, _ []byte) (bool, error) {
		found = true
		return false, nil
	})
	return found, err
}

// commit makes what has gathered durable.
func (i *importer) commit() error {
	defer func() {
		i.batch.Close()
		i.batch = i.db.NewBatch(0)
		clear(i.ids)
	}()
	if i.next.Messages > i.done.Messages && !i.opt.DryRun {
		i.batch.Delete(store.WaitingKey())
		if err := i.batch.Commit(); err != nil {
			return err
		}
	}
	i.done = i.next
	if i.opt.Progress != nil {
		i.opt.Progress(i.done)
	}
	return nil
}

// Leave takes out of a spool that nobody is using what an export of it holds: each
// recipient leaves with a final message.canceled whose detail says so. The
// export must be whole and durable by then.
func (m *Manager) Leave(ctx context.Context, export io.Reader, detail string) (r TransferReport, err error) {
	err = readTransfer(ctx, export, sha256.New(), func(line []byte) error {
		var t transferMessage
		if err := json.Unmarshal(line, &t); err != nil {
			return fmt.Errorf("%w: %w", ErrTransfer, err)
		}
		n, err := m.leave(&t, detail)
		if n > 0 {
			r.Messages++
		}
		r.Recipients += n
		return err
	})
	if err != nil {
		return r, fmt.Errorf("queue: leave: %w", err)
	}
	return r, m.saveCounts()
}

// leave settles the recipients of one line.
func (m *Manager) leave(t *transferMessage, detail string) (int, error) {
	msg, err := m.lookup(t.ID)
	if err != nil || msg == nil {
		return 0, err
	}
	var list []Settlement
	for i := range t.Recipients {
		at, err := m.db.Get(store.LocatorKey(nil, t.ID, t.Recipients[i].N))
		if err != nil || at == nil {
			return 0, err // it has left before
		}
		it, err := m.at(at)
		if err != nil {
			return 0, err
		}
		it.msg = msg
		e := m.Event(it, message.EventCanceled, m.deps.Now())
		e.Category, e.Detail = message.Canceled, detail
		list = append(list, Settlement{Item: it, Event: e})
	}
	return len(list), m.Settle(list)
}

// at reads the item under a due or ready key.
func (m *Manager) at(place []byte) (*Item, error) {
	v, err := m.db.Get(place)
	if err != nil {
		return nil, err
	}
	var key store.QueueKey
	var seq uint64
	var due time.Time
	if store.IsDue(place) {
		if due, _, _, err = store.ParseDueKey(place); err == nil {
			key, v, err = splitDue(v)
		}
	} else {
		key, seq, err = store.ParseReadyKey(place)
	}
	if err != nil {
		return nil, err
	}
	it, err := decodeItem(v)
	if err != nil {
		return nil, err
	}
	it.key, it.seq, it.due = &key, seq, due
	return it, nil
}
