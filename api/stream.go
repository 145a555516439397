package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/inject"
)

// A chunk of a stream is committed when the client pauses or one of these is
// reached.
const (
	maxChunkMessages = 500
	maxChunkOctets   = 8 << 20
)

// lineTimeout is how long a stream may take for one line, either way.
const lineTimeout = 2 * time.Minute

// line is one line of a stream on its way through.
type line struct {
	n    int
	text []byte
	err  error // the stream ends here
	loan *loan
}

// lineReply is one line of the answer, in the order of the request's.
type lineReply struct {
	Line     int             `json:"line"`
	Status   int             `json:"status"`
	Replayed bool            `json:"replayed,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Problem  *Problem        `json:"problem,omitempty"`
}

// chunk is what the next commit will hold.
type chunk struct {
	ps      []*inject.Prepared
	replies []lineReply
	open    []*once
	loans   []*loan
	octets  int
}

func (c *chunk) full() bool { return len(c.ps) >= maxChunkMessages || c.octets >= maxChunkOctets }

// streamMessages takes one JSON message a line and answers a line for each,
// after the commit it is in. While the client keeps sending, lines gather into
// one commit; when it pauses, it gets its answers. A line that cannot be used
// does not end the stream.
func (a *api) streamMessages(w http.ResponseWriter, r *http.Request, p *Principal) error {
	key := r.Header.Get("Idempotency-Key")
	if key != "" && badKey(key) != "" {
		return fieldProblem("Idempotency-Key", "invalid", "%s", badKey(key))
	}
	rc := http.NewResponseController(w)
	// Without full duplex (HTTP/1.1 only) the first answer would end the
	// request; a recorder in a test knows nothing of either.
	if err := rc.EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("api: stream: %w", err)
	}
	extend := func(set func(time.Time) error) {
		set(time.Now().Add(lineTimeout)) // real time: it is the kernel's clock
	}
	extend(rc.SetReadDeadline)
	in, err := bodyReader(r)
	if err != nil {
		return err
	}
	// In full duplex net/http leaves the rest of a broken body on the wire and
	// would read it as the next request.
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")

	lines, stop := make(chan line, 64), make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		a.readLines(in, lines, stop, func() { extend(rc.SetReadDeadline) })
	})
	defer func() {
		close(stop)
		rc.SetReadDeadline(time.Unix(1, 0)) // wakes a reader that waits for the client
		reader.Wait()
		for l := range lines {
			l.loan.giveBack()
		}
	}()

	for more := true; more; {
		c := &chunk{}
		var l line
		l, more = <-lines
		for more {
			a.streamLine(r, p, key, &l, c)
			if c.full() {
				break
			}
			select {
			case l, more = <-lines:
				continue
			default:
			}
			break
		}
		a.commit(r, c)
		extend(rc.SetWriteDeadline)
		if err := c.answer(w); err != nil {
			return nil // the client is gone; what is committed is committed
		}
		rc.Flush()
	}
	return nil
}

// readLines sends the lines of in until it ends, breaks or stop is closed.
func (a *api) readLines(in io.Reader, lines chan<- line, stop <-chan struct{}, alive func()) {
	defer close(lines)
	b := bufio.NewReaderSize(in, 64<<10)
	for n := 1; ; n++ {
		alive()
		l := line{n: n, loan: &loan{from: &a.memory}}
		l.text, l.err = readLine(b, a.cfg.MaxBody, l.loan)
		if l.err == io.EOF && len(l.text) == 0 {
			l.loan.giveBack()
			return
		}
		last := l.err != nil
		if l.err == io.EOF {
			l.err = nil // the last line need not have its line feed
		}
		select {
		case lines <- l:
		case <-stop:
			l.loan.giveBack()
			return
		}
		if last {
			return
		}
	}
}

// readLine reads up to a line feed, which it leaves out.
func readLine(b *bufio.Reader, max int, l *loan) ([]byte, error) {
	var out []byte
	for {
		part, err := b.ReadSlice('\n')
		if len(out)+len(part) > max {
			return nil, problem(http.StatusRequestEntityTooLarge, "too_large", "the line is longer than %d octets", max)
		}
		if err := l.take(len(part)); err != nil {
			return nil, err
		}
		out = append(out, part...)
		if err == bufio.ErrBufferFull {
			continue
		}
		return bytes.TrimRight(out, "\r\n"), err
	}
}

// streamLine prepares one line and adds it to c.
func (a *api) streamLine(r *http.Request, p *Principal, key string, l *line, c *chunk) {
	c.loans = append(c.loans, l.loan)
	if len(bytes.TrimSpace(l.text)) == 0 && l.err == nil {
		return // an empty line asks for nothing
	}
	out, err := a.lineMessage(r, p, key, l, c)
	if err != nil {
		pr := *asProblem(err)
		pr.Type, pr.Title = "about:blank", http.StatusText(pr.Status)
		out = lineReply{Status: pr.Status, Problem: &pr}
	}
	out.Line = l.n
	c.replies = append(c.replies, out)
}

func (a *api) lineMessage(r *http.Request, p *Principal, key string, l *line, c *chunk) (lineReply, error) {
	if l.err != nil {
		return lineReply{}, badBody(l.err)
	}
	q := &messageRequest{}
	if err := decodeJSON(l.text, q, l.loan); err != nil {
		return lineReply{}, err
	}
	own := q.IdempotencyKey
	if own == "" && key != "" {
		// A stream sent again line for line is taken up where it broke off.
		own = key + "#" + strconv.Itoa(l.n)
		if len(own) > 256 {
			return lineReply{}, fieldProblem("Idempotency-Key", "invalid", "too long for a stream")
		}
	}
	o, err := a.begin(r.Context(), p, own, "line", "", l.text)
	if err != nil {
		return lineReply{}, err
	}
	if o.replay != nil {
		o.end()
		return lineReply{Status: http.StatusAccepted, Replayed: true, Result: o.replay}, nil
	}
	answer, ps, err := a.prepare(r, q, p, l.loan)
	if err == nil {
		err = a.allow(p, answer.Accepted)
	}
	if err != nil {
		o.end()
		return lineReply{}, err
	}
	b, err := json.Marshal(answer)
	if err != nil {
		o.end()
		return lineReply{}, fmt.Errorf("api: answer: %w", err)
	}
	o.remember(ps, b)
	c.open = append(c.open, o)
	c.ps = append(c.ps, ps...)
	for _, p := range ps {
		for _, s := range p.Submissions {
			c.octets += len(s.Body)
		}
	}
	return lineReply{Status: http.StatusAccepted, Result: b}, nil
}

// commit stores the chunk. If that fails, none of its lines was accepted.
func (a *api) commit(r *http.Request, c *chunk) {
	err := a.deps.Inject.Accept(r.Context(), c.ps)
	for _, o := range c.open {
		o.end()
	}
	for _, l := range c.loans {
		l.giveBack()
	}
	if err == nil {
		return
	}
	pr := *asProblem(err)
	pr.Type, pr.Title = "about:blank", http.StatusText(pr.Status)
	for i := range c.replies {
		if rep := &c.replies[i]; rep.Status == http.StatusAccepted && !rep.Replayed {
			*rep = lineReply{Line: rep.Line, Status: pr.Status, Problem: &pr}
		}
	}
}

// answer writes the replies of a chunk.
func (c *chunk) answer(w io.Writer) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for i := range c.replies {
		if err := enc.Encode(&c.replies[i]); err != nil {
			return err
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
