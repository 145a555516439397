package inbound

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	// minClass is the buffer of a connection that only exchanges commands.
	minClass = 12 // 4 KiB
	// pooledClass is the largest buffer worth keeping between messages; larger
	// ones go back to the garbage collector.
	pooledClass = 20 // 1 MiB
	// freeBytes is what every connection may hold without asking the budget:
	// MaxConns bounds their sum.
	freeBytes = 64 << 10
	// bodyHint is the first buffer of a message whose size is not known, and
	// maxHint the largest we take on the client's word alone.
	bodyHint = 16 << 10
	maxHint  = 128 << 10
)

// buffers hands out byte slices whose capacities are powers of two and counts
// the large ones against a budget shared by all connections.
type buffers struct {
	budget int64
	used   atomic.Int64
	total  *atomic.Int64                         // the sum over all servers, for the metric
	pools  [pooledClass - minClass + 1]sync.Pool // of *[]byte
	heads  sync.Pool                             // of *[]byte, emptied: spare slice headers
}

// get returns a slice of length and capacity of at least n octets, or nil when
// the budget is spent.
func (b *buffers) get(n int) []byte {
	class := max(bits.Len(uint(n-1)), minClass)
	if size := int64(1) << class; size > freeBytes {
		if b.used.Add(size) > b.budget {
			b.used.Add(-size)
			return nil
		}
		b.total.Add(size)
	}
	if class <= pooledClass {
		if p, ok := b.pools[class-minClass].Get().(*[]byte); ok {
			buf := *p
			*p = nil
			b.heads.Put(p)
			return buf
		}
	}
	return make([]byte, 1<<class)
}

// put takes back what get returned. The caller must not touch it again.
func (b *buffers) put(buf []byte) {
	if buf == nil {
		return
	}
	buf = buf[:cap(buf)]
	if len(buf) > freeBytes {
		b.used.Add(-int64(len(buf)))
		b.total.Add(-int64(len(buf)))
	}
	class := bits.Len(uint(len(buf) - 1))
	if class > pooledClass {
		return
	}
	p, ok := b.heads.Get().(*[]byte)
	if !ok {
		p = new([]byte)
	}
	*p = buf
	b.pools[class-minClass].Put(p)
}
