package suppression

import (
	"math/bits"
	"sync/atomic"
)

// subject is what a filter knows an address of a tenant by. The place comes
// from the address alone, so that asking for one tenant and for all costs one
// cache line between them; the pattern has the tenant in it as well.
type subject struct{ place, pattern uint64 }

// filter is a blocked Bloom filter: each subject sets seven bits in one block of
// 64 bytes, so a look costs one cache line. It has false positives, about one in
// 600 at 16 bits a key and one in 150 at 12, and never a false negative.
// Adding and asking need no lock.
type filter struct {
	blocks   [][8]uint64
	capacity uint64
	count    atomic.Uint64 // subjects added, repeats included
}

const (
	bitsPerKey   = 12 // when as many keys are in it as it was made for
	minCapacity  = 4096
	bitsPerProbe = 9 // 512 bits a block
	probes       = 7 // 63 bits of hash, beside those that choose the block
)

func newFilter(capacity uint64) *filter {
	capacity = max(capacity, minCapacity)
	return &filter{blocks: make([][8]uint64, (capacity*bitsPerKey+511)/512), capacity: capacity}
}

func (f *filter) block(place uint64) *[8]uint64 {
	n, _ := bits.Mul64(place, uint64(len(f.blocks))) // scaled to the number of blocks
	return &f.blocks[n]
}

func (f *filter) add(s subject) {
	b, p := f.block(s.place), s.pattern
	for range probes {
		atomic.OrUint64(&b[p>>6&7], 1<<(p&63))
		p >>= bitsPerProbe
	}
	f.count.Add(1)
}

// has reports whether s may have been added.
func (f *filter) has(s subject) bool {
	b, p := f.block(s.place), s.pattern
	for range probes {
		if atomic.LoadUint64(&b[p>>6&7])&(1<<(p&63)) == 0 {
			return false
		}
		p >>= bitsPerProbe
	}
	return true
}

// crowded reports whether the filter holds more than it was made for.
func (f *filter) crowded() bool { return f.count.Load() > f.capacity }

// mix scrambles h, so that the pattern within a block does not follow from the
// choice of the block. The constants are those of SplitMix64.
func mix(h uint64) uint64 {
	h += 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
