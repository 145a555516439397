package event

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/message"
)

const (
	webhookTimeout  = 15 * time.Second
	maxWebhookReply = 64 << 10 // bytes of an answer we read, and of its header
	secretPrefix    = "whsec_"
	minSecret       = 24
	maxSecret       = 64
	maxSecrets      = 8
)

// webhookRetry holds the waits between tries: ten tries over a little more
// than 75 hours, as the Standard Webhooks specification suggests.
var webhookRetry = [...]time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

// WebhookConfig describes an endpoint.
type WebhookConfig struct {
	// Name of the sink and its cursor.
	Name string
	// URL to post to. It must be https unless AllowPlain is set, and hold
	// neither a user nor a fragment.
	URL        string
	AllowPlain bool
	// Secrets sign every request, each of them, so that a receiver can change
	// from one to the next: "whsec_" and 24 to 64 bytes in base64. One to eight.
	Secrets []string
	// Tenant limits the endpoint to one tenant's events; empty means all
	// events, those of no tenant included.
	Tenant string
	// Types limits it to some types; none means all.
	Types []message.EventType

	// Dial connects; nil means a dialer guarded by PublicOnly.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	TLS  *tls.Config      // nil means Go's defaults
	Now  func() time.Time // nil means time.Now
}

// Webhook is a sink that posts batches of events to an HTTP endpoint, signed
// after Standard Webhooks 1.0: the body is a JSON array of events; webhook-id
// names the batch by its first and last event and so is the same at every try
// of it; webhook-timestamp is the time of the try; webhook-signature holds one
// "v1," signature for each secret.
//
// Only a 2xx answer is success. 410 disables the endpoint for good. 429, 502,
// 503 and 504 may ask for time with Retry-After. Redirects are failures: the
// operator agreed to this address and no other. Receivers tell duplicates by
// the id of each event, not by webhook-id, since a restart may cut batches
// differently.
type Webhook struct {
	c       WebhookConfig
	secrets [][]byte
	wants   func(message.EventType) bool
	client  *http.Client
	body    []byte
}

// ErrWebhook is wrapped by every error of NewWebhook.
var ErrWebhook = errors.New("event: bad webhook")

// NewWebhook checks the configuration; it connects to nothing.
func NewWebhook(c WebhookConfig) (*Webhook, error) {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: URL does not parse", ErrWebhook)
	case u.Scheme != "https" && !(c.AllowPlain && u.Scheme == "http"):
		return nil, fmt.Errorf("%w: URL must begin with https://", ErrWebhook)
	case u.Hostname() == "" || u.User != nil || u.Fragment != "":
		return nil, fmt.Errorf("%w: URL must have a host, and no user or fragment", ErrWebhook)
	case len(c.Secrets) == 0 || len(c.Secrets) > maxSecrets:
		return nil, fmt.Errorf("%w: %d secrets, want 1 to %d", ErrWebhook, len(c.Secrets), maxSecrets)
	}
	w := &Webhook{c: c, wants: wantTypes(c.Types)}
	for i, s := range c.Secrets {
		key, err := parseSecret(s)
		if err != nil {
			return nil, fmt.Errorf("%w: secret %d: %w", ErrWebhook, i+1, err)
		}
		w.secrets = append(w.secrets, key)
	}
	if w.c.Now == nil {
		w.c.Now = time.Now
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: webhookTimeout, Control: PublicOnly()}).DialContext
	}
	w.client = &http.Client{
		Transport: &http.Transport{
			DialContext:            c.Dial,
			TLSClientConfig:        c.TLS,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // a small answer must stay small
			MaxResponseHeaderBytes: maxWebhookReply,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        90 * time.Second,
			TLSHandshakeTimeout:    webhookTimeout,
			// No Proxy: it would connect for us, past the guard.
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return w, nil
}

func parseSecret(s string) ([]byte, error) {
	enc, ok := strings.CutPrefix(s, secretPrefix)
	if !ok {
		return nil, errors.New("does not begin with " + secretPrefix)
	}
	key, err := base64.StdEncoding.DecodeString(enc)
	if err != nil {
		return nil, errors.New("is not base64")
	}
	if len(key) < minSecret || len(key) > maxSecret {
		return nil, fmt.Errorf("has %d bytes, want %d to %d", len(key), minSecret, maxSecret)
	}
	return key, nil
}

// Name is the name of the sink's cursor.
func (w *Webhook) Name() string { return w.c.Name }

// Options are how a Runner is to feed the webhook.
func (w *Webhook) Options() Options {
	return Options{Kind: KindWebhook, Wants: w.Wants, Retry: append([]time.Duration(nil), webhookRetry[:]...)}
}

// Wants reports whether the endpoint may and wants to see the event.
func (w *Webhook) Wants(r Record) bool {
	if !w.wants(r.Type) {
		return false
	}
	return w.c.Tenant == "" || tenantOf(r.JSON) == w.c.Tenant
}

// Close gives up the idle connection.
func (w *Webhook) Close() { w.client.CloseIdleConnections() }

// Deliver posts the batch.
func (w *Webhook) Deliver(ctx context.Context, batch []Record) error {
	if len(batch) == 0 {
		return nil
	}
	w.body = append(w.body[:0], '[')
	for i := range batch {
		if i > 0 {
			w.body = append(w.body, ',')
		}
		w.body = append(w.body, batch[i].JSON...)
	}
	w.body = append(w.body, ']')
	ctx, cancel := context.WithTimeout(ctx, webhookTimeout)
	defer cancel()
	// The transport may still read the body after Do has returned; the copy in
	// the string is its own.
	body := string(w.body)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.c.URL, strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("event: webhook %s: %w", w.c.Name, err)
	}
	id, stamp := batchID(batch), strconv.FormatInt(w.c.Now().Unix(), 10)
	req.Header = http.Header{
		"Content-Type":      {"application/json"},
		"User-Agent":        {"tradewind-webhook/1"},
		"Webhook-Id":        {id},
		"Webhook-Timestamp": {stamp},
		"Webhook-Signature": {w.sign(id, stamp, body)},
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("event: webhook %s: %w", w.c.Name, err)
	}
	defer resp.Body.Close()
	// Read a little, so that the connection can be used again; the answer
	// itself means nothing. An endpoint that trickles is cut off by ctx.
	io.CopyN(io.Discard, resp.Body, maxWebhookReply)
	return w.judge(resp)
}

// judge turns an answer into nil or an error.
func (w *Webhook) judge(resp *http.Response) error {
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return nil
	}
	err := fmt.Errorf("event: webhook %s: endpoint answered %d", w.c.Name, resp.StatusCode)
	switch resp.StatusCode {
	case http.StatusGone:
		return &Refusal{Err: err, Disable: true}
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &Refusal{Err: err, After: retryAfter(resp.Header.Get("Retry-After"), w.c.Now())}
	}
	return err
}

// retryAfter reads a Retry-After (RFC 9110, 10.2.3): seconds or a date. What
// cannot be read, or lies in the past, is 0.
func retryAfter(v string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// sign returns the value of webhook-signature: for each secret "v1," and the
// HMAC-SHA256 of id, timestamp and body, joined by dots, in base64.
func (w *Webhook) sign(id, stamp, body string) string {
	var out []byte
	for i, key := range w.secrets {
		m := hmac.New(sha256.New, key)
		io.WriteString(m, id+"."+stamp+".")
		io.WriteString(m, body)
		if i > 0 {
			out = append(out, ' ')
		}
		out = append(out, "v1,"...)
		out = base64.StdEncoding.AppendEncode(out, m.Sum(nil))
	}
	return string(out)
}

// batchID names a batch by its first and last event.
func batchID(batch []Record) string {
	name := func(r Record) string {
		if id, ok := recordID(r.JSON); ok {
			return id.String()
		}
		return strconv.FormatUint(r.Seq, 10)
	}
	return "evb_" + name(batch[0]) + "_" + name(batch[len(batch)-1])
}
