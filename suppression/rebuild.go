package suppression

import (
	"context"
	"encoding/binary"

	"github.com/tradewind-mta/tradewind/store"
)

// checkEvery is how many rows a scan reads between looks at its context.
const checkEvery = 8192

// Rebuild builds the filter from the store while checks go on, on the old
// filter or, at the start, on the store. It reads the keys twice: once to know
// how large the filter has to be, once to fill it. Run calls it.
func (l *List) Rebuild(ctx context.Context) error {
	l.rebuild.Lock()
	defer l.rebuild.Unlock()
	rows, err := l.count(ctx, store.SuppressionsSpan())
	if err != nil {
		return err
	}
	soft, err := l.count(ctx, store.SoftBouncesSpan())
	if err != nil {
		return err
	}
	// A third more than there is, so that growth does not begin by crowding.
	list, counts := newFilter(rows+rows/3), newFilter(soft+soft/3)
	// From here on whoever commits a row adds it to these filters too; the
	// snapshot of the scan below has everything committed before.
	l.building.Store(list)
	l.softNext.Store(counts)
	err = l.fill(ctx, list, store.SuppressionsSpan(), rowPlace)
	if err == nil {
		err = l.fill(ctx, counts, store.SoftBouncesSpan(), softPlace)
	}
	if err == nil {
		l.filter.Store(list)
		l.soft.Store(counts)
		l.metrics.rows.Set(float64(rows))
		l.metrics.bytes.Set(float64(64 * (len(list.blocks) + len(counts.blocks))))
	}
	// After the filters are in use, not before: see noteAdded.
	l.building.Store(nil)
	l.softNext.Store(nil)
	return err
}

func (l *List) count(ctx context.Context, span store.Span) (n uint64, err error) {
	it, err := l.db.NewIter(span)
	if err != nil {
		return 0, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	return n, it.Error()
}

func (l *List) fill(ctx context.Context, f *filter, span store.Span, placeOf func(value []byte) (uint64, error)) error {
	n := 0
	return l.db.Each(span, func(key, value []byte) (bool, error) {
		masked, err := placeOf(value)
		if err != nil {
			return false, err
		}
		tenant, sid, err := store.Subject(key)
		if err != nil {
			return false, err
		}
		f.add(makeSubject(masked^l.secrets.mask(sid), l.secrets.sip.sum(tenant)))
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		return true, nil
	})
}

// rowPlace reads the masked place out of a row's value.
func rowPlace(v []byte) (uint64, error) {
	if len(v) < 11 || v[0] != rowVersion {
		return 0, errRow
	}
	return binary.BigEndian.Uint64(v[3:]), nil
}

// purgeRound bounds the rows removed in one commit.
const purgeRound = 1000

// Purge removes what has expired, with a suppression.removed event for each
// suppression, and the soft bounces that no longer count. Run calls it daily.
func (l *List) Purge(ctx context.Context) error {
	now := l.c.Now()
	span := store.SuppressionsSpan()
	for span.Start != nil {
		c := &change{}
		n, from := 0, span.Start
		span.Start = nil
		err := l.each(store.Span{Start: from, End: span.End}, func(key []byte, r *row) (bool, error) {
			if n++; n%checkEvery == 0 && ctx.Err() != nil {
				return false, ctx.Err()
			}
			if !r.expired(now) {
				return true, nil
			}
			if len(c.ops) == purgeRound {
				span.Start = append([]byte(nil), key...)
				return false, nil
			}
			if err := l.secrets.open(r); err != nil {
				return false, err
			}
			r.Source = "expiry"
			c.ops = append(c.ops, op{
				key: makeSubject(r.masked^l.secrets.mask(r.SID[:]), l.secrets.tenant(r.Tenant)),
				row: *r, remove: true, actor: byExpiry,
			})
			return true, nil
		})
		if err != nil {
			return err
		}
		if len(c.ops) == 0 {
			break
		}
		if err := l.write.do(c); err != nil {
			return err
		}
		for i := range c.ops {
			if c.ops[i].err == nil {
				l.metrics.removed.Inc()
			}
		}
	}
	return l.purgeSoft(ctx)
}
