package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

// Versions of the records this package writes. A reader refuses a version it
// does not know; see store/keys.go for the keys.
const (
	messageVersion = 1
	itemVersion    = 1
)

// errRecord reports a record that does not decode. The record is kept in
// quarantine and counted.
var errRecord = errors.New("queue: unreadable record")

// Fields are appended in a fixed order: numbers as varints, strings with their
// length in front, times as varint Unix nanoseconds with 0 for none.

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendBytes(b, s []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	return binary.AppendUvarint(b, uint64(t.UnixNano()))
}

func appendAddress(b []byte, a message.Address) []byte {
	b = binary.AppendUvarint(b, uint64(len(a.Local())))
	b = append(b, a.Local()...)
	return appendString(b, a.Domain())
}

// reader takes fields off a record; after the first failure everything reads
// as zero and err is set.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail() { r.err, r.b = errRecord, nil }

func (r *reader) byte() byte {
	if len(r.b) < 1 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	s := r.b[:n]
	r.b = r.b[n:]
	return s
}

func (r *reader) string() string { return string(r.bytes()) }

func (r *reader) time() time.Time {
	v := r.uvarint()
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(v))
}

func (r *reader) address() message.Address {
	local, domain := r.string(), r.string()
	if r.err != nil || domain == "" {
		return message.Address{}
	}
	a, err := message.ParseAddress(local + "@" + domain)
	if err != nil {
		r.fail()
	}
	return a
}

func (r *reader) id() message.ID {
	if len(r.b) < 16 {
		r.fail()
		return message.ID{}
	}
	id := message.ID(r.b[:16])
	r.b = r.b[16:]
	return id
}

// Flags of a message record.
const (
	flagEightBit = 1 << iota
	flagUTF8
	flagInternal
	flagSandbox
	flagWritten // acknowledged before a sync
)

func appendMessage(b []byte, m *message.Message) []byte {
	var flags byte
	for i, set := range [...]bool{m.EightBit, m.UTF8, m.Internal, m.Sandbox, m.Durability == message.Written} {
		if set {
			flags |= 1 << i
		}
	}
	b = append(b, messageVersion, flags, byte(m.Class))
	b = appendString(b, m.Tenant)
	b = appendString(b, m.Campaign)
	b = appendString(b, m.Pool)
	b = binary.AppendUvarint(b, uint64(len(m.Tags)))
	for _, t := range m.Tags {
		b = appendString(b, t)
	}
	b = appendBytes(b, m.Metadata)
	b = appendAddress(b, m.From)
	b = appendString(b, m.EnvID)
	b = appendString(b, m.Ret)
	b = appendString(b, m.RFCMessageID)
	b = appendString(b, m.HeaderFrom)
	b = appendTime(b, m.Accepted)
	b = appendTime(b, m.NotBefore)
	b = appendTime(b, m.Expires)
	b = binary.AppendUvarint(b, uint64(m.Size))
	b = appendString(b, m.Origin)
	b = appendString(b, m.Client)
	return binary.AppendUvarint(b, uint64(m.RecipientCount))
}

func decodeMessage(id message.ID, b []byte) (*message.Message, error) {
	r := &reader{b: b}
	if v := r.byte(); v != messageVersion {
		return nil, fmt.Errorf("%w: message %s has version %d", errRecord, id, v)
	}
	m := &message.Message{ID: id}
	flags := r.byte()
	m.EightBit = flags&flagEightBit != 0
	m.UTF8 = flags&flagUTF8 != 0
	m.Internal = flags&flagInternal != 0
	m.Sandbox = flags&flagSandbox != 0
	if flags&flagWritten != 0 {
		m.Durability = message.Written
	}
	m.Class = message.Class(r.byte())
	m.Tenant = r.string()
	m.Campaign = r.string()
	m.Pool = r.string()
	if n := r.uvarint(); n > 0 && n <= uint64(len(r.b)) {
		m.Tags = make([]string, n)
		for i := range m.Tags {
			m.Tags[i] = r.string()
		}
	}
	if md := r.bytes(); len(md) > 0 {
		m.Metadata = append([]byte(nil), md...)
	}
	m.From = r.address()
	m.EnvID = r.string()
	m.Ret = r.string()
	m.RFCMessageID = r.string()
	m.HeaderFrom = r.string()
	m.Accepted = r.time()
	m.NotBefore = r.time()
	m.Expires = r.time()
	m.Size = int(r.uvarint())
	m.Origin = r.string()
	m.Client = r.string()
	m.RecipientCount = int(r.uvarint())
	if r.err != nil || len(r.b) > 0 {
		return nil, fmt.Errorf("%w: message %s", errRecord, id)
	}
	return m, nil
}

// maxKeptReply bounds the last reply that an item carries along.
const maxKeptReply = 512

func appendItem(b []byte, it *Item) []byte {
	b = append(b, itemVersion)
	b = append(b, it.ID[:]...)
	b = binary.AppendUvarint(b, uint64(it.Recipient.N))
	b = binary.AppendUvarint(b, uint64(it.Attempt))
	b = binary.AppendUvarint(b, uint64(it.EventSeq))
	b = appendTime(b, it.Accepted)
	b = appendTime(b, it.Expires)
	b = appendTime(b, it.FirstAttempt)
	b = appendTime(b, it.DelayNotified)
	b = appendAddress(b, it.Recipient.Address)
	b = appendAddress(b, it.Recipient.ReturnPath)
	b = append(b, byte(it.Recipient.Notify))
	b = appendString(b, it.Recipient.ORcpt)
	b = appendBytes(b, it.Recipient.Metadata)
	if it.LastReply == nil {
		return append(b, 0)
	}
	r := it.LastReply
	b = append(b, 1)
	b = binary.AppendUvarint(b, uint64(r.Code))
	for _, v := range r.Enhanced {
		b = binary.AppendUvarint(b, uint64(v))
	}
	b = append(b, byte(r.Stage), boolByte(r.Local))
	b = appendString(b, r.Text[:min(len(r.Text), maxKeptReply)])
	b = appendString(b, r.RemoteHost)
	ip, _ := r.RemoteIP.MarshalBinary() // never fails
	return appendBytes(b, ip)
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func decodeItem(b []byte) (*Item, error) {
	r := &reader{b: b}
	if v := r.byte(); v != itemVersion {
		return nil, fmt.Errorf("%w: item has version %d", errRecord, v)
	}
	it := &Item{ID: r.id()}
	it.Recipient.N = uint32(r.uvarint())
	it.Attempt = int(r.uvarint())
	it.EventSeq = uint32(r.uvarint())
	it.Accepted = r.time()
	it.Expires = r.time()
	it.FirstAttempt = r.time()
	it.DelayNotified = r.time()
	it.Recipient.Address = r.address()
	it.Recipient.ReturnPath = r.address()
	it.Recipient.Notify = message.Notify(r.byte())
	it.Recipient.ORcpt = r.string()
	if md := r.bytes(); len(md) > 0 {
		it.Recipient.Metadata = append([]byte(nil), md...)
	}
	if r.byte() == 1 {
		reply := &message.Reply{Code: int(r.uvarint())}
		for i := range reply.Enhanced {
			reply.Enhanced[i] = uint16(r.uvarint())
		}
		reply.Stage = message.Stage(r.byte())
		reply.Local = r.byte() == 1
		reply.Text = r.string()
		reply.RemoteHost = r.string()
		var ip netip.Addr
		if ip.UnmarshalBinary(r.bytes()) == nil {
			reply.RemoteIP = ip
		}
		it.LastReply = reply
	}
	if r.err != nil || len(r.b) > 0 || it.Recipient.Address.IsZero() {
		return nil, fmt.Errorf("%w: item", errRecord)
	}
	return it, nil
}
