package crash

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tradewind-mta/tradewind/mta/loadgen"
)

// ledger is what the outside world knows. Acknowledgements and receipts are
// also written to files of their own as they come.
type ledger struct {
	pattern []byte // a message as the source makes it
	id      []byte // the id in it

	mu       sync.Mutex // protects everything below
	acks     map[string]int
	receipts map[string][]receipt
	last     map[string]string // the last message received on each connection
	wrong    []string
	kills    []kill
	ackFile  *bufio.Writer
	rcptFile *bufio.Writer
	ended    map[string][]string // terminal events by id
	accepted map[string]int      // accepted events by id
	numbers  map[string]map[int]int
	phase    map[string]bool // ids counted before; see offer
}

// receipt is one arrival of a message.
type receipt struct {
	at   time.Time
	conn string
}

// kill is one death of the engine, and what was open at that moment.
type kill struct {
	at, restarted time.Time
	open          int
	duplicates    int
}

func newLedger(t *testing.T, source loadgen.Source) *ledger {
	t.Helper()
	l := &ledger{
		acks: map[string]int{}, receipts: map[string][]receipt{}, last: map[string]string{},
		ended: map[string][]string{}, accepted: map[string]int{}, numbers: map[string]map[int]int{},
	}
	l.learn(t, source)
	dir := t.ArtifactDir()
	open := func(name string) *bufio.Writer {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		w := bufio.NewWriter(f)
		t.Cleanup(func() {
			if err := w.Flush(); err != nil {
				t.Error(err)
			}
			f.Close()
		})
		return w
	}
	l.ackFile, l.rcptFile = open("acknowledged.log"), open("received.log")
	return l
}

// learn has the source send one message straight to a sink, to know what its
// messages look like.
func (l *ledger) learn(t *testing.T, source loadgen.Source) {
	t.Helper()
	sink, err := loadgen.New(loadgen.SinkConfig{KeepBody: true, OnMessage: func(r *loadgen.Received) { l.pattern = r.Body }})
	if err != nil {
		t.Fatal(err)
	}
	pipe := loadgen.Listen()
	go sink.Serve(pipe)
	source.Dial, source.Connections, source.Messages = pipe.Dial, 1, 1
	source.OnAck = func(id string, _ int, _ string, _ time.Time) { l.id = []byte(id) }
	if _, err := source.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sink.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(l.pattern, l.id) {
		t.Fatal("the message does not hold its id")
	}
}

// onAck is the source's hook.
func (l *ledger) onAck(id string, code int, reply string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acks[id] = code
	verdict := fmt.Sprint(code)
	if code == 0 {
		verdict = "unknown"
	}
	fmt.Fprintf(l.ackFile, "%s %s %s %s\n", at.Format(time.RFC3339Nano), id, verdict, reply)
}

// onMessage is the sink's hook. Above the message there may only be trace
// fields; from its first field on it must be what the source made.
func (l *ledger) onMessage(r *loadgen.Received) {
	if r.From == "" {
		return // a report
	}
	const first = "X-Load-ID: "
	var id string
	i := bytes.Index(r.Body, []byte(first))
	ok := i >= 0
	if ok {
		line, _, _ := bytes.Cut(r.Body[i+len(first):], []byte("\r\n"))
		id = string(line)
		want := sha256.Sum256(bytes.ReplaceAll(l.pattern, l.id, line))
		ok = sha256.Sum256(r.Body[i:]) == want
		for line := range strings.Lines(string(r.Body[:i])) {
			ok = ok && (strings.HasPrefix(line, "Received: ") || line[0] == ' ' || line[0] == '\t')
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.rcptFile, "%s %s %d %x %v\n", r.Time.Format(time.RFC3339Nano), id, r.Code, r.Sum, ok)
	if !ok {
		l.wrong = append(l.wrong, id)
	}
	l.last[r.Client] = id
	if r.Accepted {
		l.receipts[id] = append(l.receipts[id], receipt{r.Time, r.Client})
	}
}

// event is what the ledger reads of an event.
type event struct {
	Type         string `json:"type"`
	RFCMessageID string `json:"rfc_message_id"`
	Sender       string `json:"sender"`
	Seq          int    `json:"seq"`
	Terminal     bool   `json:"terminal"`
}

func (l *ledger) addEvents(raw []json.RawMessage) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range raw {
		var e event
		if err := json.Unmarshal(b, &e); err != nil {
			return err
		}
		id, _, found := strings.Cut(e.RFCMessageID, "@load.example")
		if !found || !strings.HasPrefix(e.Type, "message.") || e.Sender == "" {
			continue
		}
		if l.numbers[id] == nil {
			l.numbers[id] = map[int]int{}
		}
		l.numbers[id][e.Seq]++
		if e.Type == "message.accepted" {
			l.accepted[id]++
		}
		if e.Terminal {
			l.ended[id] = append(l.ended[id], e.Type)
		}
	}
	return nil
}

// unsettled counts the messages whose end the events do not tell yet.
func (l *ledger) unsettled() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, code := range l.acks {
		if code == 250 && len(l.ended[id]) == 0 {
			n++
		}
	}
	for id := range l.accepted {
		if l.acks[id] != 250 && len(l.ended[id]) == 0 {
			n++
		}
	}
	return n
}

// undelivered counts the messages that were acknowledged and have not arrived.
func (l *ledger) undelivered() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, code := range l.acks {
		if code == 250 && len(l.receipts[id]) == 0 {
			n++
		}
	}
	return n
}

// verdict adds everything up. Each line of problems is a broken promise.
type verdict struct {
	acked, unknown, refused       int
	delivered, failed, receipts   int
	lost, wrong, duplicates       int
	unknownAccepted, worstPerKill int
	problems                      []string
}

func (v verdict) String() string {
	return fmt.Sprintf("%d acknowledged, %d unknown (%d of them accepted), %d refused; %d delivered, %d finally failed; %d received; %d lost, %d altered, %d duplicates (at most %d by one kill)",
		v.acked, v.unknown, v.unknownAccepted, v.refused, v.delivered, v.failed, v.receipts, v.lost, v.wrong, v.duplicates, v.worstPerKill)
}

func (l *ledger) verdict() *verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &verdict{wrong: len(l.wrong)}
	problem := func(format string, args ...any) {
		if len(v.problems) < 50 {
			v.problems = append(v.problems, fmt.Sprintf(format, args...))
		}
	}
	for _, id := range l.wrong {
		problem("%s was received altered", id)
	}
	for id, code := range l.acks {
		switch {
		case code == 250:
			v.acked++
			if l.accepted[id] == 0 {
				problem("%s was acknowledged and no event tells of it", id)
			}
			if len(l.receipts[id]) == 0 && !slices.ContainsFunc(l.ended[id], func(s string) bool { return s != "message.delivered" }) {
				v.lost++
				problem("%s was acknowledged and is lost", id)
			}
		case code == 0:
			v.unknown++
			v.unknownAccepted += l.accepted[id]
		default:
			v.refused++
		}
	}
	for id, n := range l.accepted {
		if _, known := l.acks[id]; !known || n != 1 {
			problem("%s was accepted %d times according to the events, known: %v", id, n, known)
		}
		end := l.ended[id]
		if len(end) != 1 {
			problem("%s has the final events %v", id, end)
			continue
		}
		received := len(l.receipts[id]) > 0
		if end[0] == "message.delivered" {
			v.delivered++
			if !received {
				problem("%s is delivered according to the events and never arrived", id)
			}
		} else {
			v.failed++
		}
		for seq := 1; seq <= len(l.numbers[id]); seq++ {
			if l.numbers[id][seq] != 1 {
				problem("%s has %d events with number %d of %d", id, l.numbers[id][seq], seq, len(l.numbers[id]))
			}
		}
	}
	for id, times := range l.receipts {
		v.receipts += len(times)
		if l.accepted[id] == 0 {
			problem("%s was received and no event tells of it", id)
		}
		slices.SortFunc(times, func(a, b receipt) int { return a.at.Compare(b.at) })
		for i := 1; i < len(times); i++ {
			v.duplicates++
			before, after := times[i-1], times[i]
			k := slices.IndexFunc(l.kills, func(k kill) bool { return k.restarted.After(before.at) })
			if k < 0 || after.at.Before(l.kills[k].at) {
				problem("%s was received twice and no kill explains it: %v and %v", id, before.at, after.at)
				continue
			}
			// A transaction in flight is the last one of its connection.
			if l.last[before.conn] != id {
				problem("%s was received twice, though another message followed it on its connection", id)
			}
			l.kills[k].duplicates++
			v.worstPerKill = max(v.worstPerKill, l.kills[k].duplicates)
		}
	}
	for i, k := range l.kills {
		if k.duplicates > k.open {
			problem("kill %d made %d duplicates with %d transactions in flight", i, k.duplicates, k.open)
		}
	}
	return v
}
