package throttle

// Lanes that share a rate all learn the same time when it refuses them, wake at
// that time together, and the first to ask would get the permit: with two lanes
// that keep step, always the same one. So they stand in line for it.

// line is the lanes that wait for a permit of one rate, in the order in which
// they were refused. The mutex of their group guards it.
type line struct{ first, last *turn }

// turn is the place of a lane in a line. A lane has one for transactions and one
// for connections, and each is in at most one line.
type turn struct {
	in         *line
	prev, next *turn
	at         int64 // when the lane was told to ask again
}

// free returns when t may have the permit that the rate has left: 0 for at once,
// otherwise when the first in line will have lost its turn, because it did not
// come within the grace: it may not want the permit any longer.
func (l *line) free(t *turn, now, grace int64, dry bool) int64 {
	for first := l.first; first != nil && first != t; first = first.next {
		if first.at+grace >= now {
			return first.at + grace + 1
		}
		if !dry {
			l.first.leave()
		}
	}
	return 0
}

// wait puts t into l, at the end unless it is in it already.
func (t *turn) wait(l *line, at int64) {
	t.at = at
	if t.in == l {
		return
	}
	t.leave()
	t.in, t.prev = l, l.last
	if l.last == nil {
		l.first = t
	} else {
		l.last.next = t
	}
	l.last = t
}

// leave takes t out of its line, if it is in one.
func (t *turn) leave() {
	l := t.in
	if l == nil {
		return
	}
	if t.prev == nil {
		l.first = t.next
	} else {
		t.prev.next = t.next
	}
	if t.next == nil {
		l.last = t.prev
	} else {
		t.next.prev = t.prev
	}
	t.in, t.prev, t.next = nil, nil, nil
}
