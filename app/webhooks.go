package app

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// webhooks keeps the endpoints that tenants have events posted to: in the
// ledger, and each as a sink of the journal.
type webhooks struct {
	a    *App
	ids  message.IDSource
	seal cipher.AEAD // of secrets in the ledger; makes its own nonces

	mu   sync.Mutex // protects everything below; held over commits, which are rare here
	list map[message.ID]*webhook
}

type webhook struct {
	record webhookRecord
	sink   *event.Webhook
}

// webhookVersion is the first byte of a stored endpoint; JSON follows.
const webhookVersion = 1

// webhookRecord is an endpoint as the ledger keeps it.
type webhookRecord struct {
	Tenant  string              `json:"tenant,omitempty"`
	URL     string              `json:"url"`
	Types   []message.EventType `json:"types,omitempty"`
	Created time.Time           `json:"created_at"`
	// Sealed is the secret, encrypted for this endpoint.
	Sealed []byte `json:"sealed"`
}

// maxWebhooks bounds the endpoints of all tenants.
const maxWebhooks = 1000

// webhookDialTimeout bounds one attempt to connect.
const webhookDialTimeout = 10 * time.Second

// openWebhooks brings the stored endpoints back. key is a secret of this
// instance that is not kept in the ledger.
func (a *App) openWebhooks(key []byte) error {
	sealing, err := hkdf.Key(sha256.New, key, nil, "tradewind webhook secrets", 32)
	if err != nil {
		return fmt.Errorf("app: webhooks: %w", err)
	}
	block, err := aes.NewCipher(sealing)
	if err != nil {
		return fmt.Errorf("app: webhooks: %w", err)
	}
	w := &webhooks{a: a, list: make(map[message.ID]*webhook)}
	if w.seal, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		return fmt.Errorf("app: webhooks: %w", err)
	}
	a.hooks = w
	return a.ledger.Each(store.WebhookSpan(), func(k, v []byte) (bool, error) {
		id, err := store.ParseWebhookKey(k)
		if err != nil {
			return false, err
		}
		if err := w.load(id, v); err != nil {
			// The others go on, and so does mail.
			a.log.Error("a webhook cannot be used; remove it and make it again", "id", id, "err", err)
		}
		return true, nil
	})
}

func (w *webhooks) load(id message.ID, v []byte) error {
	if len(v) == 0 || v[0] != webhookVersion {
		return errors.New("app: webhook record of an unknown version")
	}
	h := &webhook{}
	if err := json.Unmarshal(v[1:], &h.record); err != nil {
		return fmt.Errorf("app: webhook record: %w", err)
	}
	w.list[id] = h // also one that does not run, so that it can be removed
	secret, err := w.seal.Open(nil, nil, h.record.Sealed, id[:])
	if err != nil {
		return errors.New("app: webhook secret was sealed with another key")
	}
	return w.start(id, h, string(secret))
}

// start feeds the endpoint from where it stopped, or from now on.
func (w *webhooks) start(id message.ID, h *webhook, secret string) (err error) {
	h.sink, err = event.NewWebhook(event.WebhookConfig{
		Name: hookName(id), URL: h.record.URL, AllowPlain: w.a.cfg.Events.WebhookHTTP,
		Secrets: []string{secret}, Tenant: h.record.Tenant, Types: h.record.Types, Now: w.a.opt.Now,
		Dial: w.dial,
	})
	if err != nil {
		return err
	}
	return w.a.sinks.Add(h.sink, h.sink.Options())
}

func hookName(id message.ID) string { return "webhook:" + id.String() }

// dial connects to public addresses and those the operator allows.
func (w *webhooks) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: webhookDialTimeout, Control: event.PublicOnly(w.a.cfg.Events.WebhookNetworks...)}
	return d.DialContext(ctx, network, addr)
}

// List returns a tenant's endpoints, oldest first; the operator's tenant "" has
// them all.
func (w *webhooks) List(_ context.Context, tenant string) ([]api.Webhook, error) {
	state := map[string]event.Status{}
	for _, s := range w.a.sinks.Status() {
		state[s.Name] = s
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []api.Webhook
	for id, h := range w.list {
		if tenant != "" && h.record.Tenant != tenant {
			continue
		}
		out := h.describe(id)
		if s, ok := state[hookName(id)]; ok {
			out.State, out.LagSeconds = s.State.String(), s.Lag.Seconds()
			if s.Err != nil {
				out.Error = s.Err.Error()
			}
		} else {
			out.State, out.Error = "broken", "its record cannot be used; remove it and make it again"
		}
		list = append(list, out)
	}
	slices.SortFunc(list, func(a, b api.Webhook) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

func (h *webhook) describe(id message.ID) api.Webhook {
	return api.Webhook{ID: id.String(), URL: h.record.URL, Types: h.record.Types, Created: h.record.Created}
}

// Add makes an endpoint, durably, with a secret of its own. It gets the events
// that happen from now on.
func (w *webhooks) Add(_ context.Context, tenant string, in api.Webhook) (api.Webhook, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	mine := 0
	for _, h := range w.list {
		if h.record.Tenant == tenant {
			mine++
		}
	}
	if limit := w.a.cfg.Events.WebhooksPerTenant; mine >= limit || len(w.list) >= maxWebhooks {
		return in, &api.Problem{Status: http.StatusConflict, Code: "too_many_webhooks", Detail: fmt.Sprintf("there may be %d webhooks; remove one first", limit)}
	}
	var raw [32]byte
	rand.Read(raw[:])
	secret := "whsec_" + base64.StdEncoding.EncodeToString(raw[:])
	id := w.ids.New(w.a.opt.Now())
	h := &webhook{record: webhookRecord{
		Tenant: tenant, URL: in.URL, Types: in.Types, Created: in.Created, Sealed: w.seal.Seal(nil, nil, []byte(secret), id[:]),
	}}
	if err := w.start(id, h, secret); err != nil {
		if errors.Is(err, event.ErrWebhook) {
			return in, &api.Problem{Status: http.StatusUnprocessableEntity, Code: "invalid_request", Detail: "the webhook cannot be used",
				Errors: []api.FieldError{{Field: "url", Code: "invalid", Message: err.Error()}}}
		}
		return in, err
	}
	text, err := json.Marshal(&h.record)
	if err == nil {
		err = w.put(store.WebhookKey(nil, id), append([]byte{webhookVersion}, text...))
	}
	if err != nil {
		return in, errors.Join(err, w.a.sinks.Remove(hookName(id)))
	}
	w.list[id] = h
	out := h.describe(id)
	out.Secret, out.State = secret, event.Running.String()
	return out, nil
}

// put stores a record, or removes it when value is nil, durably.
func (w *webhooks) put(key, value []byte) error {
	b := w.a.ledger.NewBatch(0)
	defer b.Close()
	if value == nil {
		b.Delete(key)
	} else {
		b.Set(key, value)
	}
	return b.Commit()
}

// find returns a tenant's endpoint. REQUIRES: w.mu.
func (w *webhooks) find(tenant, name string) (message.ID, *webhook, error) {
	id, err := message.ParseID(name)
	if err != nil {
		return id, nil, api.ErrNotFound
	}
	h := w.list[id]
	if h == nil || tenant != "" && h.record.Tenant != tenant {
		return id, nil, api.ErrNotFound
	}
	return id, h, nil
}

// Remove forgets an endpoint.
func (w *webhooks) Remove(_ context.Context, tenant, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	id, h, err := w.find(tenant, name)
	if err != nil {
		return err
	}
	if err := w.put(store.WebhookKey(nil, id), nil); err != nil {
		return err
	}
	delete(w.list, id)
	if h.sink == nil {
		return nil
	}
	defer h.sink.Close()
	if err := w.a.sinks.Remove(hookName(id)); !errors.Is(err, event.ErrNoSink) {
		return err
	}
	return nil
}

// Replay has an endpoint that stopped try again at once; with a cursor it gets
// everything behind that (again).
func (w *webhooks) Replay(_ context.Context, tenant, name string, after *uint64) error {
	w.mu.Lock()
	id, _, err := w.find(tenant, name)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if after != nil {
		err = w.a.sinks.Rewind(hookName(id), *after)
	} else {
		err = w.a.sinks.Resume(hookName(id))
	}
	if errors.Is(err, event.ErrNoSink) {
		return api.ErrConflict
	}
	return err
}
