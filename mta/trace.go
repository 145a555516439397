package mta

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/mta/outbound"
)

// Bounds of watching dialogues.
const (
	maxWatchers  = 8
	watchBacklog = 4096 // lines that wait for one watcher
	maxTraceLine = 512  // octets shown of one line
)

// TraceLine is one line of an SMTP dialogue.
type TraceLine struct {
	Time time.Time `json:"time"`
	// Conn tells the connections of one run of the engine apart.
	Conn   uint64 `json:"conn"`
	Source string `json:"source"`
	Site   string `json:"site"`
	Host   string `json:"host"`
	Addr   string `json:"addr"`
	// Direction is ">" for what we say and "<" for what the server says.
	Direction string `json:"direction"`
	Text      string `json:"text"`
	// Missed counts the lines before this one that the watcher was too slow for.
	Missed uint64 `json:"missed,omitempty"`
}

// TraceFilter says which dialogues somebody wants to see. Empty fields match all.
type TraceFilter struct {
	Source string
	// Host is the name of a mail exchanger or the end of one, after a dot.
	Host string
}

func (f *TraceFilter) matches(source, host string) bool {
	if f.Source != "" && f.Source != source {
		return false
	}
	want := strings.ToLower(strings.TrimPrefix(f.Host, "."))
	host = strings.ToLower(host)
	return want == "" || host == want || strings.HasSuffix(host, "."+want)
}

// tracer shows dialogues to whoever watches, and costs one load for each flush
// and line while nobody does.
type tracer struct {
	on    atomic.Bool // somebody watches
	conns atomic.Uint64
	now   func() time.Time

	mu       sync.Mutex // protects everything below
	watchers map[*watcher]struct{}
}

type watcher struct {
	filter TraceFilter
	lines  chan TraceLine
	missed uint64
}

// Watch returns a channel with the lines of all dialogues that the filter
// matches, from now on, also those of connections that are open already. stop
// ends it and closes the channel. It returns nil when too many watch already.
// A watcher that does not keep up loses lines; it does not hold up delivery.
func (m *MTA) Watch(f TraceFilter) (lines <-chan TraceLine, stop func()) {
	t := &m.tracer
	w := &watcher{filter: f, lines: make(chan TraceLine, watchBacklog)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.watchers) == maxWatchers {
		return nil, nil
	}
	if t.watchers == nil {
		t.watchers = make(map[*watcher]struct{})
	}
	t.watchers[w] = struct{}{}
	t.on.Store(true)
	return w.lines, sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.watchers, w)
		t.on.Store(len(t.watchers) > 0)
		close(w.lines)
	})
}

// conn fills in what a new connection needs for being watched.
func (t *tracer) conn(opt *outbound.Options, site string) {
	line := TraceLine{Conn: t.conns.Add(1), Source: opt.Source, Site: site, Host: opt.Host, Addr: opt.Addr.String()}
	opt.Traced = &t.on
	opt.Trace = func(direction byte, text []byte) {
		l := line
		l.Time, l.Direction, l.Text = t.now(), string(direction), string(text[:min(len(text), maxTraceLine)])
		t.show(l)
	}
}

func (t *tracer) show(l TraceLine) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for w := range t.watchers {
		if !w.filter.matches(l.Source, l.Host) {
			continue
		}
		l.Missed = w.missed
		select {
		case w.lines <- l:
			w.missed = 0
		default:
			w.missed++
		}
	}
}
