package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Every key of every store begins with one of these bytes. Values begin with a
// version byte of their owner's. Numbers in keys are big endian, so that keys
// sort as the numbers do; strings in keys end in a NUL, which no string of ours
// may contain.
//
// Adding a key space: name it here, give it functions below, bump Format when
// an older release could not live with it.
const (
	// Format is the version of the whole layout, stored under keyFormat.
	Format = 2

	keyFormat   = 0x01
	keySequence = 0x02
	keyMarked   = 0x03 // how far the store has come; see Mark
	keyCopies   = 0xfe // one of the above -> the same once more; see vital

	// spool: what waits, and what happened.
	keyMessage     = 'm' // id -> envelope and metadata of a message
	keyBody        = 'b' // id chunk -> bytes of the body
	keyPending     = 'p' // id -> body chunks were written ahead of their message
	keyLocator     = 'a' // id n -> where the item lies: its due or ready key
	keyDue         = 'd' // time id n -> item that waits for its time
	keyReady       = 'r' // queue seq -> item that may be sent
	keyExpiry      = 'x' // time id -> message that expires then
	keyJournal     = 'j' // seq -> event
	keyHistory     = 'h' // id n seq -> nothing; finds the events of a recipient
	keyCursor      = 'c' // name -> how far a sink has read the journal
	keyMark        = 'J' // seq -> when the journal got there, and its size by then
	keyIdempotency = 'i' // hash -> the answer given before
	keyIdemExpiry  = 'I' // time hash -> idempotency record to drop
	keyQuarantine  = 'z' // seq -> record that could not be read
	keyReport      = 'R' // lane time seq size -> mail that came back, not processed yet
	keyHeld        = 'Q' // time seq size -> mail that came back and could not be believed
	keyWaiting     = 'n' // nothing -> how many items of each tenant wait; only in a store at rest

	// ledger: small, kept.
	keySuppression = 'S' // tenant stream sid -> reason, evidence
	keySoftBounce  = 'B' // tenant sid -> recent soft bounces
	keyOutbox      = 'O' // seq -> suppression event not yet known to be journalled
	keyState       = 'T' // name -> throttle, warm-up and other saved state
	keyAPIKey      = 'K' // hash -> API key record
	keySuspension  = 'U' // id -> operator's suspension
	keyWebhook     = 'W' // id -> webhook endpoint
)

// ErrBadKey reports a key that does not have the shape of its key space.
var ErrBadKey = errors.New("store: malformed key")

// QueueKey names a queue: mail of one tenant's campaign and class for one
// domain, out of one pool. Queues that differ in pool and domain only make up
// a stream.
type QueueKey struct {
	Pool     string
	Domain   string
	Tenant   string
	Campaign string
	Class    message.Class
}

// Append appends the encoding that ready keys hold. The queues of a stream lie
// together, and so do the streams of a tenant and class: whoever shares memory
// out between them seeks from one to the next.
func (q *QueueKey) Append(b []byte) []byte {
	b = q.appendStream(b)
	b = append(append(b, q.Pool...), 0)
	return append(append(b, q.Domain...), 0)
}

func (q *QueueKey) appendStream(b []byte) []byte {
	b = append(append(b, q.Tenant...), 0, byte(q.Class))
	return append(append(b, q.Campaign...), 0)
}

// Stream is the key without pool and domain.
func (q QueueKey) Stream() QueueKey {
	return QueueKey{Tenant: q.Tenant, Campaign: q.Campaign, Class: q.Class}
}

// String is pool/domain/tenant/campaign/class, for people.
func (q QueueKey) String() string {
	return strings.Join([]string{q.Pool, q.Domain, q.Tenant, q.Campaign, q.Class.String()}, "/")
}

// ParseQueueKey reads the encoding of QueueKey.Append off the front of b and
// returns the rest.
func ParseQueueKey(b []byte) (q QueueKey, rest []byte, err error) {
	for i, field := range [...]*string{&q.Tenant, &q.Campaign, &q.Pool, &q.Domain} {
		end := bytes.IndexByte(b, 0)
		if end < 0 {
			return QueueKey{}, nil, ErrBadKey
		}
		*field = string(b[:end])
		b = b[end+1:]
		if i > 0 {
			continue
		}
		if len(b) < 1 {
			return QueueKey{}, nil, ErrBadKey
		}
		q.Class = message.Class(b[0])
		b = b[1:]
	}
	return q, b, nil
}

// TenantOf returns the tenant in the encoding of QueueKey.Append, as part of b.
func TenantOf(b []byte) ([]byte, error) {
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return nil, ErrBadKey
	}
	return b[:end], nil
}

func appendTime(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(t.UnixNano()))
}

func readTime(b []byte) time.Time {
	return time.Unix(0, int64(binary.BigEndian.Uint64(b)))
}

// Span is a half-open range of keys.
type Span struct{ Start, End []byte }

func prefixSpan(prefix ...byte) Span {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		end[i]++
		if end[i] != 0 {
			return Span{Start: prefix, End: end[:i+1]}
		}
	}
	return Span{Start: prefix}
}

// MessageKey is where the envelope of message id lies.
func MessageKey(b []byte, id message.ID) []byte { return append(append(b, keyMessage), id[:]...) }

// MessageSpan holds every message.
func MessageSpan() Span { return prefixSpan(keyMessage) }

// ParseMessageKey is the reverse of MessageKey.
func ParseMessageKey(k []byte) (id message.ID, err error) {
	if len(k) != 17 || k[0] != keyMessage {
		return id, ErrBadKey
	}
	return message.ID(k[1:]), nil
}

// BodyKey is where chunk n of the body of message id lies.
func BodyKey(b []byte, id message.ID, n uint32) []byte {
	b = append(append(b, keyBody), id[:]...)
	return binary.BigEndian.AppendUint32(b, n)
}

// BodySpan holds every body chunk of message id.
func BodySpan(id message.ID) Span { return prefixSpan(append([]byte{keyBody}, id[:]...)...) }

// BodiesSpan holds the bodies of all messages.
func BodiesSpan() Span { return prefixSpan(keyBody) }

// ParseBodyKey returns the message a body key belongs to.
func ParseBodyKey(k []byte) (id message.ID, err error) {
	if len(k) != 21 || k[0] != keyBody {
		return id, ErrBadKey
	}
	return message.ID(k[1:17]), nil
}

// PendingKey marks a message whose body chunks were committed ahead of it.
func PendingKey(b []byte, id message.ID) []byte { return append(append(b, keyPending), id[:]...) }

// PendingSpan holds the marks of PendingKey.
func PendingSpan() Span { return prefixSpan(keyPending) }

// ParsePendingKey is the reverse of PendingKey.
func ParsePendingKey(k []byte) (id message.ID, err error) {
	if len(k) != 17 || k[0] != keyPending {
		return id, ErrBadKey
	}
	return message.ID(k[1:]), nil
}

// LocatorKey is where the place of recipient n of message id is kept.
func LocatorKey(b []byte, id message.ID, n uint32) []byte {
	b = append(append(b, keyLocator), id[:]...)
	return binary.BigEndian.AppendUint32(b, n)
}

// LocatorSpan holds the locators of message id; while it is not empty the
// message has recipients that wait.
func LocatorSpan(id message.ID) Span { return prefixSpan(append([]byte{keyLocator}, id[:]...)...) }

// LocatorsSpan holds the locators of all messages.
func LocatorsSpan() Span { return prefixSpan(keyLocator) }

// ParseLocatorKey is the reverse of LocatorKey.
func ParseLocatorKey(k []byte) (id message.ID, n uint32, err error) {
	if len(k) != 21 || k[0] != keyLocator {
		return id, 0, ErrBadKey
	}
	return message.ID(k[1:17]), binary.BigEndian.Uint32(k[17:]), nil
}

// DueKey is where recipient n of message id waits for time t.
func DueKey(b []byte, t time.Time, id message.ID, n uint32) []byte {
	b = appendTime(append(b, keyDue), t)
	b = append(b, id[:]...)
	return binary.BigEndian.AppendUint32(b, n)
}

// DueSpan holds everything due before t; the zero t means everything.
func DueSpan(t time.Time) Span {
	s := prefixSpan(keyDue)
	if !t.IsZero() {
		s.End = appendTime([]byte{keyDue}, t)
	}
	return s
}

// DueFrom holds everything due at t or later; the zero t means everything.
func DueFrom(t time.Time) Span {
	s := prefixSpan(keyDue)
	if !t.IsZero() {
		s.Start = appendTime(s.Start, t)
	}
	return s
}

// ParseDueKey is the reverse of DueKey.
func ParseDueKey(k []byte) (t time.Time, id message.ID, n uint32, err error) {
	if len(k) != 29 || k[0] != keyDue {
		return t, id, 0, ErrBadKey
	}
	return readTime(k[1:]), message.ID(k[9:25]), binary.BigEndian.Uint32(k[25:]), nil
}

// ReadyKey is where the item with place seq in queue q lies.
func ReadyKey(b []byte, q *QueueKey, seq uint64) []byte {
	b = q.Append(append(b, keyReady))
	return binary.BigEndian.AppendUint64(b, seq)
}

// ReadySpan holds the items of q behind place after, up to and with place upto.
func ReadySpan(q *QueueKey, after, upto uint64) Span {
	s := Span{Start: ReadyKey(nil, q, after+1)}
	if upto == ^uint64(0) {
		s.End = prefixSpan(q.Append([]byte{keyReady})...).End
	} else {
		s.End = ReadyKey(nil, q, upto+1)
	}
	return s
}

// ReadyQueuesSpan holds every ready item of the queues behind q; nil means of
// all queues.
func ReadyQueuesSpan(after *QueueKey) Span {
	s := prefixSpan(keyReady)
	if after != nil {
		s.Start = prefixSpan(after.Append([]byte{keyReady})...).End
	}
	return s
}

// ReadyStreamSpan holds every ready item of the stream of q.
func ReadyStreamSpan(q *QueueKey) Span { return prefixSpan(q.appendStream([]byte{keyReady})...) }

// ReadyStreamsSpan holds every ready item of the streams behind that of q.
func ReadyStreamsSpan(q *QueueKey) Span {
	s := prefixSpan(keyReady)
	s.Start = ReadyStreamSpan(q).End
	return s
}

// ParseReadyKey is the reverse of ReadyKey.
func ParseReadyKey(k []byte) (q QueueKey, seq uint64, err error) {
	if len(k) < 1 || k[0] != keyReady {
		return q, 0, ErrBadKey
	}
	q, rest, err := ParseQueueKey(k[1:])
	if err != nil || len(rest) != 8 {
		return q, 0, ErrBadKey
	}
	return q, binary.BigEndian.Uint64(rest), nil
}

// IsDue reports whether k is a due key.
func IsDue(k []byte) bool { return len(k) > 0 && k[0] == keyDue }

// IsReady reports whether k is a ready key.
func IsReady(k []byte) bool { return len(k) > 0 && k[0] == keyReady }

// ExpiryKey says that message id expires at t.
func ExpiryKey(b []byte, t time.Time, id message.ID) []byte {
	return append(appendTime(append(b, keyExpiry), t), id[:]...)
}

// ExpirySpan holds the messages that expire before t; the zero t means all.
func ExpirySpan(t time.Time) Span {
	s := prefixSpan(keyExpiry)
	if !t.IsZero() {
		s.End = appendTime([]byte{keyExpiry}, t)
	}
	return s
}

// ParseExpiryKey is the reverse of ExpiryKey.
func ParseExpiryKey(k []byte) (t time.Time, id message.ID, err error) {
	if len(k) != 25 || k[0] != keyExpiry {
		return t, id, ErrBadKey
	}
	return readTime(k[1:]), message.ID(k[9:]), nil
}

// JournalKey is where the event at place seq lies.
func JournalKey(b []byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, keyJournal), seq)
}

// JournalSpan holds the events behind place after, up to and with place upto.
func JournalSpan(after, upto uint64) Span {
	s := Span{Start: JournalKey(nil, after+1)}
	if upto == ^uint64(0) {
		s.End = prefixSpan(keyJournal).End
	} else {
		s.End = JournalKey(nil, upto+1)
	}
	return s
}

// ParseJournalKey is the reverse of JournalKey.
func ParseJournalKey(k []byte) (seq uint64, err error) {
	if len(k) != 9 || k[0] != keyJournal {
		return 0, ErrBadKey
	}
	return binary.BigEndian.Uint64(k[1:]), nil
}

// HistoryKey says that the event at place seq is about recipient n of id.
func HistoryKey(b []byte, id message.ID, n uint32, seq uint64) []byte {
	b = append(append(b, keyHistory), id[:]...)
	b = binary.BigEndian.AppendUint32(b, n)
	return binary.BigEndian.AppendUint64(b, seq)
}

// HistorySpan holds the history of message id.
func HistorySpan(id message.ID) Span { return prefixSpan(append([]byte{keyHistory}, id[:]...)...) }

// HistoryBefore holds the history of the messages accepted before t.
func HistoryBefore(t time.Time) Span {
	s := prefixSpan(keyHistory)
	s.End = binary.BigEndian.AppendUint64([]byte{keyHistory}, uint64(t.UnixMilli())<<16)
	return s
}

// ParseHistoryKey is the reverse of HistoryKey.
func ParseHistoryKey(k []byte) (id message.ID, n uint32, seq uint64, err error) {
	if len(k) != 29 || k[0] != keyHistory {
		return id, 0, 0, ErrBadKey
	}
	return message.ID(k[1:17]), binary.BigEndian.Uint32(k[17:]), binary.BigEndian.Uint64(k[21:]), nil
}

// CursorKey is where the sink called name keeps its place in the journal.
func CursorKey(b []byte, name string) []byte { return append(append(b, keyCursor), name...) }

// CursorSpan holds every sink's place.
func CursorSpan() Span { return prefixSpan(keyCursor) }

// MarkKey is where the mark of retention at place seq of the journal lies.
func MarkKey(b []byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, keyMark), seq)
}

// MarksBefore holds the marks at places before seq.
func MarksBefore(seq uint64) Span {
	return Span{Start: []byte{keyMark}, End: MarkKey(nil, seq)}
}

// MarkSpan holds every mark.
func MarkSpan() Span { return prefixSpan(keyMark) }

// ParseMarkKey is the reverse of MarkKey.
func ParseMarkKey(k []byte) (seq uint64, err error) {
	if len(k) != 9 || k[0] != keyMark {
		return 0, ErrBadKey
	}
	return binary.BigEndian.Uint64(k[1:]), nil
}

// IdempotencyKey is where the answer to the request with this hash lies.
func IdempotencyKey(b []byte, hash [32]byte) []byte {
	return append(append(b, keyIdempotency), hash[:]...)
}

// IdempotencyExpiryKey says when the record of IdempotencyKey may go.
func IdempotencyExpiryKey(b []byte, t time.Time, hash [32]byte) []byte {
	return append(appendTime(append(b, keyIdemExpiry), t), hash[:]...)
}

// IdempotencyExpirySpan holds the records that may go at t.
func IdempotencyExpirySpan(t time.Time) Span {
	return Span{Start: []byte{keyIdemExpiry}, End: appendTime([]byte{keyIdemExpiry}, t)}
}

// ParseIdempotencyExpiryKey returns the IdempotencyKey that k speaks of.
func ParseIdempotencyExpiryKey(k []byte) (record []byte, err error) {
	if len(k) != 9+32 || k[0] != keyIdemExpiry {
		return nil, ErrBadKey
	}
	return append([]byte{keyIdempotency}, k[9:]...), nil
}

// QuarantineKey is where the record that could not be read, number seq, is
// kept.
func QuarantineKey(b []byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, keyQuarantine), seq)
}

// QuarantineSpan holds every record that could not be read.
func QuarantineSpan() Span { return prefixSpan(keyQuarantine) }

// WaitingKey is where the counts of waiting items lie while the store is at rest.
func WaitingKey() []byte { return []byte{keyWaiting} }

// SuppressionKey is where the suppression of sid for tenant and stream lies;
// empty strings mean every tenant and every stream.
func SuppressionKey(b []byte, tenant, stream string, sid [16]byte) []byte {
	b = append(append(append(b, keySuppression), tenant...), 0)
	b = append(append(b, stream...), 0)
	return append(b, sid[:]...)
}

// SuppressionSpan holds the suppressions of one tenant.
func SuppressionSpan(tenant string) Span {
	return prefixSpan(append(append([]byte{keySuppression}, tenant...), 0)...)
}

// SuppressionsSpan holds every suppression.
func SuppressionsSpan() Span { return prefixSpan(keySuppression) }

// ParseSuppressionKey is the reverse of SuppressionKey.
func ParseSuppressionKey(k []byte) (tenant, stream string, sid [16]byte, err error) {
	if len(k) < 1+2+16 || k[0] != keySuppression {
		return "", "", sid, ErrBadKey
	}
	parts := strings.SplitN(string(k[1:len(k)-16]), "\x00", 3)
	if len(parts) != 3 || parts[2] != "" {
		return "", "", sid, ErrBadKey
	}
	copy(sid[:], k[len(k)-16:])
	return parts[0], parts[1], sid, nil
}

// SoftBounceKey is where the recent soft bounces of sid for tenant are counted.
func SoftBounceKey(b []byte, tenant string, sid [16]byte) []byte {
	b = append(append(append(b, keySoftBounce), tenant...), 0)
	return append(b, sid[:]...)
}

// Subject returns the tenant and the sid that a suppression key or a soft
// bounce key speaks of, as parts of k.
func Subject(k []byte) (tenant, sid []byte, err error) {
	i := bytes.IndexByte(k, 0)
	if i < 1 || len(k) < i+1+16 || k[0] != keySuppression && k[0] != keySoftBounce {
		return nil, nil, ErrBadKey
	}
	return k[1:i], k[len(k)-16:], nil
}

// SoftBounceSpan holds the soft bounces counted for one tenant.
func SoftBounceSpan(tenant string) Span {
	return prefixSpan(append(append([]byte{keySoftBounce}, tenant...), 0)...)
}

// SoftBouncesSpan holds every soft bounce counted.
func SoftBouncesSpan() Span { return prefixSpan(keySoftBounce) }

// OutboxKey is where the event of a change to the ledger waits under number
// seq until the journal, in the other store, is known to hold it.
func OutboxKey(b []byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, keyOutbox), seq)
}

// OutboxSpan holds every event that waits for the journal.
func OutboxSpan() Span { return prefixSpan(keyOutbox) }

// StateKey is where saved state called name lies.
func StateKey(b []byte, name string) []byte { return append(append(b, keyState), name...) }

// APIKeyKey is where the API key with this hash lies.
func APIKeyKey(b []byte, hash [32]byte) []byte { return append(append(b, keyAPIKey), hash[:]...) }

// APIKeySpan holds every API key.
func APIKeySpan() Span { return prefixSpan(keyAPIKey) }

// SuspensionKey is where the operator's suspension id lies.
func SuspensionKey(b []byte, id message.ID) []byte { return append(append(b, keySuspension), id[:]...) }

// SuspensionSpan holds every suspension.
func SuspensionSpan() Span { return prefixSpan(keySuspension) }

// WebhookKey is where the webhook endpoint id lies.
func WebhookKey(b []byte, id message.ID) []byte { return append(append(b, keyWebhook), id[:]...) }

// ParseWebhookKey takes a key of WebhookKey apart.
func ParseWebhookKey(k []byte) (id message.ID, err error) {
	if len(k) != 1+len(id) || k[0] != keyWebhook {
		return id, ErrBadKey
	}
	return message.ID(k[1:]), nil
}

// WebhookSpan holds every webhook endpoint.
func WebhookSpan() Span { return prefixSpan(keyWebhook) }
