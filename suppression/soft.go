package suppression

import (
	"context"
	"encoding/binary"
	"slices"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// Soft bounces are counted in rows of their own, one for a tenant's address:
// version, masked place in the filter, and the times in seconds, oldest first. They
// are committed lazily: a crash may forget one, which delays a suppression by
// one bounce and breaks no promise. Of two versions of the row the second says
// that the last bounce came after the server had taken the message.
const (
	softVersion     = 1
	softLateVersion = 2
)

func softPlace(v []byte) (uint64, error) {
	if len(v) < 9 || v[0] != softVersion && v[0] != softLateVersion || (len(v)-9)%4 != 0 {
		return 0, errRow
	}
	return binary.BigEndian.Uint64(v[1:]), nil
}

func softTimes(v []byte) (times []time.Time, err error) {
	if _, err := softPlace(v); err != nil {
		return nil, err
	}
	for v = v[9:]; len(v) > 0; v = v[4:] {
		times = append(times, time.Unix(int64(binary.BigEndian.Uint32(v)), 0))
	}
	return times, nil
}

func encodeSoft(masked uint64, times []time.Time, late bool) []byte {
	version := byte(softVersion)
	if late {
		version = softLateVersion
	}
	v := binary.BigEndian.AppendUint64([]byte{version}, masked)
	for _, t := range times {
		v = binary.BigEndian.AppendUint32(v, uint32(t.Unix()))
	}
	return v
}

// SoftBounce counts a temporary failure that the caller holds against the
// mailbox (one per message that was given up, not one per attempt), and
// suppresses the address for the tenant when the policy's number is reached;
// it reports whether it did. Counting one again is harmless when at is the
// same second. late says that the server had taken the message before: from
// such a server a delivery proves nothing, and does not end the row.
func (l *List) SoftBounce(tenant string, a message.Address, at time.Time, late bool, evidence message.ID) (suppressed bool, err error) {
	if l.c.Policy.SoftCount < 0 {
		return false, nil
	}
	if err := checkScope(tenant, ""); err != nil {
		return false, err
	}
	enough, err := l.countSoft(tenant, a, at, late)
	if err != nil || !enough {
		return false, err
	}
	return true, l.Add(Addition{Tenant: tenant, Address: a, Reason: SoftBounce, At: at, Evidence: evidence, Source: "soft-bounce"})
}

func (l *List) countSoft(tenant string, a message.Address, at time.Time, late bool) (enough bool, err error) {
	sid := l.secrets.sid(appendSubject(nil, tenant, a))
	who := l.secrets.subject(tenant, a)
	key := store.SoftBounceKey(nil, tenant, sid)
	// Held while the store is read and written, which in memory-backed Pebble
	// is microseconds: nobody but the same mailbox's next bounce waits here.
	mu := &l.softMu[sid[0]%64]
	mu.Lock()
	defer mu.Unlock()
	v, err := l.db.Get(key)
	if err != nil {
		return false, err
	}
	var times []time.Time
	if v != nil {
		if times, err = softTimes(v); err != nil {
			return false, err
		}
	}
	at = at.Truncate(time.Second)
	if !slices.ContainsFunc(times, at.Equal) {
		times = append(times, at)
	}
	slices.SortFunc(times, time.Time.Compare)
	since := times[len(times)-1].Add(-l.c.Policy.SoftWindow)
	times = slices.DeleteFunc(times, func(t time.Time) bool { return t.Before(since) })
	b := l.db.NewBatch(0)
	defer b.Close()
	enough = len(times) >= l.c.Policy.SoftCount
	if enough {
		b.Delete(key) // when the suppression has expired, counting begins anew
	} else {
		b.Set(key, encodeSoft(who.place^l.secrets.mask(sid[:]), times, late))
	}
	if err := b.CommitLazy(); err != nil {
		return false, err
	}
	next := l.softNext.Load() // before soft, as in noteAdded
	if f := l.soft.Load(); f != nil {
		f.add(who)
	}
	if next != nil {
		next.add(who)
	}
	return enough, nil
}

// CountsSoft reports whether any mailbox may have soft bounces counted: if not,
// nobody needs to tell of deliveries.
func (l *List) CountsSoft() bool {
	f := l.soft.Load()
	return l.c.Policy.SoftCount >= 0 && (f == nil || f.count.Load() > 0)
}

// Delivered tells that a mailbox took a message, which ends its row of soft
// bounces, unless the last of them came after such a delivery. It costs next to nothing for an address that has none.
func (l *List) Delivered(tenant string, a message.Address) error {
	f := l.soft.Load()
	if f != nil && !f.has(l.secrets.subject(tenant, a)) {
		return nil
	}
	sid := l.secrets.sid(appendSubject(nil, tenant, a))
	key := store.SoftBounceKey(nil, tenant, sid)
	mu := &l.softMu[sid[0]%64]
	mu.Lock()
	defer mu.Unlock()
	v, err := l.db.Get(key)
	if err != nil || len(v) == 0 || v[0] == softLateVersion {
		return err
	}
	b := l.db.NewBatch(0)
	defer b.Close()
	b.Delete(key)
	return b.CommitLazy()
}

// purgeSoft removes the rows whose last bounce no longer counts.
func (l *List) purgeSoft(ctx context.Context) error {
	since := l.c.Now().Add(-l.c.Policy.SoftWindow)
	b := l.db.NewBatch(0)
	defer b.Close()
	n := 0
	err := l.db.Each(store.SoftBouncesSpan(), func(key, v []byte) (bool, error) {
		times, err := softTimes(v)
		if err != nil {
			return false, err
		}
		if len(times) == 0 || times[len(times)-1].Before(since) {
			b.Delete(key)
		}
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		return b.Len() < 8<<20, nil // the rest has time until tomorrow
	})
	if err != nil {
		return err
	}
	return b.CommitLazy()
}
