package loadgen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// HTTPSource makes injection load over HTTP. It knows nothing of the API: the
// caller builds each request's body.
type HTTPSource struct {
	// URL takes the POST requests.
	URL string
	// Client sends them. Default: one that keeps Connections open.
	Client *http.Client
	// Header goes with every request.
	Header http.Header
	// Connections is how many requests are under way at a time. Default: 1.
	Connections int
	// Messages is how many requests to make. Default: 1.
	Messages int
	// Rate limits requests a second; 0 means as fast as they are answered.
	Rate float64
	// Timeout is the longest wait for an answer. Default: 60 s.
	Timeout time.Duration
	// Body returns the body of request n, from 0. It is called from several
	// goroutines.
	Body func(n int) []byte
	// OnAck is called once for every request, from several goroutines, with
	// the status or 0 when none came, and up to 4 KiB of the answer.
	OnAck func(n int, status int, answer []byte, at time.Time)
}

// maxAnswer is how much of an answer is kept; of the rest as much is read as
// keeps the connection usable at little cost.
const maxAnswer = 4 << 10

// Run sends and reports: 2xx counts as accepted, 429 and 5xx as deferred, other
// codes as rejected. The error is ctx's, or says that the target could not be
// reached at all.
func (s HTTPSource) Run(ctx context.Context) (Report, error) {
	if s.Body == nil {
		return Report{}, errors.New("loadgen: no body to send")
	}
	s.Connections, s.Messages = max(s.Connections, 1), max(s.Messages, 1)
	if s.Timeout <= 0 {
		s.Timeout = time.Minute
	}
	if s.Client == nil {
		tr := &http.Transport{MaxIdleConnsPerHost: s.Connections, MaxConnsPerHost: s.Connections, DisableCompression: true}
		defer tr.CloseIdleConnections()
		s.Client = &http.Client{Transport: tr}
	}
	r := &run{Source: Source{Messages: s.Messages, Rate: s.Rate}, start: time.Now()}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // protects total and octets
	var total worker
	var octets int64
	var wg sync.WaitGroup
	for range s.Connections {
		wg.Go(func() {
			broken := 0
			for {
				n, ok := r.take(ctx)
				if !ok {
					return
				}
				body := s.Body(n)
				begin := time.Now()
				status, answer, err := s.post(ctx, body)
				at := time.Now()
				mu.Lock()
				total.count(smtpClass(status), at.Sub(begin))
				if status/100 == 2 {
					octets += int64(len(body))
				}
				mu.Unlock()
				if s.OnAck != nil {
					s.OnAck(n, status, answer, at)
				}
				if err == nil {
					broken = 0
					continue
				}
				if broken++; broken >= maxBroken {
					cancel(fmt.Errorf("loadgen: %s: %w", s.URL, err))
					return
				}
			}
		})
	}
	wg.Wait()
	rep := total.rep
	rep.Octets = octets
	rep.Elapsed = time.Since(r.start)
	rep.P50, rep.P99, rep.P999 = total.lat.quantile(0.5), total.lat.quantile(0.99), total.lat.quantile(0.999)
	return rep, context.Cause(ctx)
}

func (s *HTTPSource) post(ctx context.Context, body []byte) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if s.Header != nil {
		req.Header = s.Header.Clone()
	}
	if req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.Client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		// The status came: that much is acknowledged.
		return resp.StatusCode, answer, nil
	}
	io.CopyN(io.Discard, resp.Body, 64<<10) // an end is no error here
	return resp.StatusCode, answer, nil
}

// smtpClass maps a status to the reply class that Report counts.
func smtpClass(status int) int {
	switch {
	case status == 0:
		return 0
	case status/100 == 2:
		return 250
	case status == http.StatusTooManyRequests, status >= 500:
		return 451
	}
	return 550
}
