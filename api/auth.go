package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// Scope is a right of a key.
type Scope string

// Scopes. Admin includes the others.
const (
	ScopeInject      Scope = "inject"
	ScopeEvents      Scope = "events"
	ScopeSuppression Scope = "suppression"
	ScopeAdmin       Scope = "admin"
)

// Principal is who is calling.
type Principal struct {
	// Name names the key, never the secret; it stands in accepted events and
	// separates the idempotency keys of two credentials.
	Name string
	// Tenant is whose mail the key may send and see. Empty, together with the
	// admin scope, sees every tenant but sends for none.
	Tenant string
	Scopes []Scope
	// Test keys only ever send in sandbox mode.
	Test bool
	// AnyTenant lets raw mail name its tenant in X-Tradewind-Tenant.
	AnyTenant bool
	// Durability is what the answer to mail handed over with this key waits for.
	Durability message.Durability
}

// Has reports whether p holds scope s.
func (p *Principal) Has(s Scope) bool {
	return slices.Contains(p.Scopes, s) || slices.Contains(p.Scopes, ScopeAdmin)
}

// ErrUnknownKey is what Keys wraps for a secret it does not know.
var ErrUnknownKey = errors.New("unknown key")

// Keys knows the API keys.
type Keys interface {
	// Lookup returns whose key secret is. It compares in constant time and
	// wraps ErrUnknownKey; any other error is temporary.
	Lookup(ctx context.Context, secret string) (*Principal, error)
}

const maxSecret = 512 // octets

// authenticate finds out who is calling.
func (a *api) authenticate(r *http.Request) (*Principal, error) {
	secret, given := credentials(r)
	if !given && a.trusted(r) {
		return &Principal{
			Name: "loopback", Tenant: a.cfg.LoopbackTenant, AnyTenant: true,
			Scopes: []Scope{ScopeInject, ScopeEvents, ScopeSuppression, ScopeAdmin},
		}, nil
	}
	if secret == "" || len(secret) > maxSecret || a.deps.Keys == nil {
		return nil, problem(http.StatusUnauthorized, "unauthorized", "send an API key as Authorization: Bearer KEY")
	}
	p, err := a.deps.Keys.Lookup(r.Context(), secret)
	switch {
	case errors.Is(err, ErrUnknownKey):
		return nil, problem(http.StatusUnauthorized, "unauthorized", "the API key is not known")
	case err != nil:
		return nil, unavailable("unavailable", err)
	}
	return p, nil
}

// credentials returns the key of a request: the bearer token, or the password
// of basic authentication, for clients that know nothing else.
func credentials(r *http.Request) (secret string, given bool) {
	h := r.Header.Get("Authorization")
	if h == "" {
		return "", false
	}
	if _, password, ok := r.BasicAuth(); ok {
		return password, true
	}
	scheme, token, _ := strings.Cut(h, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", true
	}
	return strings.TrimSpace(token), true
}

// trusted reports whether the request needs no key. A reverse proxy on this
// machine makes the whole world look like loopback, and so does a browser
// whose DNS was rebound; both give themselves away.
func (a *api) trusted(r *http.Request) bool {
	if !a.cfg.TrustLoopback || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "" || r.Header.Get("Via") != "" {
		return false
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback() && a.knownHost(r.Host)
}

// knownHost reports whether host, with or without a port, is loopback or one
// of the configured names.
func (a *api) knownHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() {
		return true
	}
	return host == "localhost" || slices.Contains(a.cfg.Hosts, host)
}
