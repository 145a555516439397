package inject

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// dropEmpty forgets fields that must be there and say nothing, so that render
// replaces them.
func (h *header) dropEmpty(msg []byte) {
	for _, f := range [...]struct {
		kind kind
		name string
	}{{date, "date"}, {messageID, "message-id"}} {
		v := h.value[f.kind]
		if !h.has(f.kind) || len(bytes.TrimSpace(msg[v.start:v.end])) > 0 {
			continue
		}
		h.value[f.kind] = span{}
		cut := span{v.start - len(f.name) - 1, v.end}
		k := 0
		for k < len(h.cuts) && h.cuts[k].start < cut.start {
			k++
		}
		h.cuts = append(h.cuts[:k], append([]span{cut}, h.cuts[k:]...)...)
	}
}

// render writes the final bytes of m, for all its recipients or for r alone: our
// fields, then the message as it came less what was cut out, in one buffer.
func (i *Injector) render(d *draft, m *message.Message, r *message.Recipient) []byte {
	h := &d.head
	added := i.fields(d, m, r)
	front := i.fronts.Get().(*[]byte)
	defer i.fronts.Put(front)
	b := (*front)[:0]
	var buf [26]byte
	id := m.ID.Append(buf[:0])
	if !i.cfg.NoReceived {
		b = i.received(b, &d.env, id, d.now)
	}
	if !h.has(date) {
		b = append(b, "Date: "...)
		b = append(i.dates.append(b, d.now), "\r\n"...)
	}
	if h.has(messageID) {
		m.RFCMessageID = strings.Trim(text(d.body, h.value[messageID]), "<>")
	} else {
		m.RFCMessageID = i.newMessageID(m, r)
		b = append(b, "Message-ID: <"...)
		b = append(b, m.RFCMessageID...)
		b = append(b, ">\r\n"...)
	}
	b = append(b, added...)
	if d.env.Plain {
		s, bad := measure(b)
		m.Plain = bad == nil && !s.long
	}
	*front = b
	if len(h.cuts) == 0 && h.end < len(d.body) && bytes.HasSuffix(d.body, []byte("\r\n")) {
		// To append where nothing fits gives memory of its own, and is the one way
		// to memory that is not cleared first: a pass over octets that are not in
		// the cache.
		return append(b[:len(b):len(b)], d.body...)
	}
	b = append(make([]byte, 0, len(b)+len(d.body)+4), b...)
	pos := 0
	for _, c := range h.cuts {
		b = append(b, d.body[pos:c.start]...)
		pos = c.end
	}
	b = append(b, d.body[pos:]...)
	if !bytes.HasSuffix(b, []byte("\r\n")) {
		b = append(b, "\r\n"...)
	}
	if h.end == len(d.body) {
		b = append(b, "\r\n"...) // the empty line that ends the header
	}
	return b
}

// rewrite lets tracking make r's own bytes, and brings those back to what the
// wire allows: a longer link may push a line past the limit.
func (i *Injector) rewrite(d *draft, m *message.Message, r *message.Recipient, body []byte) ([]byte, error) {
	b, err := i.deps.Rewrite(m, r, d.env.Track, body)
	if err != nil {
		return nil, fmt.Errorf("inject: rewrite %s: %w", m.ID, err)
	}
	m.Plain = false
	end := headerEnd(b)
	s, bad := measure(b[end:])
	if bad == nil && s.long {
		if b, err = Reencode(b); err != nil {
			return nil, fmt.Errorf("inject: rewrite %s: %w", m.ID, err)
		}
		s, bad = measure(b[headerEnd(b):])
	}
	if bad == nil {
		// Fields were added; a fault there must stop here and not at the far
		// end, where it would look like the sender's.
		var h header
		if bad = h.scan(b); bad == nil && !h.has(from) {
			bad = refuse("From", CodeMissing, "lost in rewriting")
		}
		m.UTF8 = h.utf8
	}
	if bad != nil {
		return nil, fmt.Errorf("inject: rewrite %s: %w", m.ID, bad)
	}
	m.EightBit = s.eightBit
	return b, nil
}
