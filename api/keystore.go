package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// KeyRecord is what the ledger keeps of an API key: everything but the secret,
// of which only the SHA-256 is stored. Secrets are 32 random bytes, so a fast
// hash is as good as a slow one and costs every request a microsecond.
type KeyRecord struct {
	Name      string  `json:"name"`
	Tenant    string  `json:"tenant,omitempty"`
	Scopes    []Scope `json:"scopes"`
	Test      bool    `json:"test,omitempty"`
	AnyTenant bool    `json:"any_tenant,omitempty"`
	// Durability is what the answer to mail handed over with this key waits for.
	Durability message.Durability `json:"durability,omitzero"`
	Created    time.Time          `json:"created_at"`
	Revoked    time.Time          `json:"revoked_at,omitzero"`
	// Prefix is the beginning of the secret, to tell keys apart.
	Prefix string `json:"prefix"`
}

// keyPrefix begins every secret, so that scanners for leaked secrets find them.
const keyPrefix = "twk_"

// KeyStore keeps API keys in the ledger. It is safe for concurrent use.
type KeyStore struct {
	db  *store.DB
	now func() time.Time

	mu    sync.RWMutex // protects everything below
	cache map[[32]byte]*KeyRecord
}

// maxCachedKeys bounds the cache.
const maxCachedKeys = 10_000

// NewKeyStore returns the keys in db, which must be the ledger.
func NewKeyStore(db *store.DB, now func() time.Time) *KeyStore {
	return &KeyStore{db: db, now: now, cache: make(map[[32]byte]*KeyRecord)}
}

// ErrBadKey reports a key that cannot be made as asked.
var ErrBadKey = errors.New("api: bad key")

// Create makes a key and returns its secret, which is not stored and cannot be
// shown again. The error wraps ErrBadKey when rec is not usable.
func (k *KeyStore) Create(rec KeyRecord) (secret string, err error) {
	if rec.Name == "" || len(rec.Name) > 100 {
		return "", fmt.Errorf("%w: name must have 1 to 100 characters", ErrBadKey)
	}
	if len(rec.Scopes) == 0 {
		return "", fmt.Errorf("%w: no scope", ErrBadKey)
	}
	for _, s := range rec.Scopes {
		switch s {
		case ScopeInject, ScopeEvents, ScopeSuppression, ScopeAdmin:
		default:
			return "", fmt.Errorf("%w: %q is not inject, events, suppression or admin", ErrBadKey, s)
		}
	}
	if rec.Tenant == "" && !(&Principal{Scopes: rec.Scopes}).Has(ScopeAdmin) {
		return "", fmt.Errorf("%w: a key without tenant needs the admin scope", ErrBadKey)
	}
	var raw [32]byte
	rand.Read(raw[:])
	secret = keyPrefix + base64.RawURLEncoding.EncodeToString(raw[:])
	rec.Created, rec.Prefix = k.now().UTC(), secret[:len(keyPrefix)+6]
	return secret, k.put(sha256.Sum256([]byte(secret)), &rec)
}

func (k *KeyStore) put(hash [32]byte, rec *KeyRecord) error {
	v, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("api: key: %w", err)
	}
	b := k.db.NewBatch(0)
	defer b.Close()
	b.Set(store.APIKeyKey(nil, hash), v)
	if err := b.Commit(); err != nil {
		return fmt.Errorf("api: key: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.cache, hash)
	return nil
}

// List returns every key, revoked ones included.
func (k *KeyStore) List() (list []KeyRecord, err error) {
	err = k.db.Each(store.APIKeySpan(), func(_, v []byte) (bool, error) {
		var rec KeyRecord
		if err := json.Unmarshal(v, &rec); err != nil {
			return false, fmt.Errorf("api: key record: %w", err)
		}
		list = append(list, rec)
		return true, nil
	})
	return list, err
}

// Revoke ends every key of this name, or whose secret begins with it. It returns
// how many there were; the change holds from the next request on.
func (k *KeyStore) Revoke(name string) (n int, err error) {
	revoked := map[[32]byte]*KeyRecord{}
	err = k.db.Each(store.APIKeySpan(), func(key, v []byte) (bool, error) {
		var rec KeyRecord
		if err := json.Unmarshal(v, &rec); err != nil {
			return false, fmt.Errorf("api: key record: %w", err)
		}
		if rec.Revoked.IsZero() && (rec.Name == name || rec.Prefix == name) {
			rec.Revoked = k.now().UTC()
			revoked[[32]byte(key[1:])] = &rec
		}
		return true, nil
	})
	if err != nil {
		return 0, err
	}
	for hash, rec := range revoked {
		if err := k.put(hash, rec); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Lookup returns whose key secret is.
func (k *KeyStore) Lookup(_ context.Context, secret string) (*Principal, error) {
	if !strings.HasPrefix(secret, keyPrefix) {
		return nil, ErrUnknownKey
	}
	rec, err := k.find(sha256.Sum256([]byte(secret)))
	if err != nil {
		return nil, err
	}
	if rec == nil || !rec.Revoked.IsZero() {
		return nil, ErrUnknownKey
	}
	return &Principal{Name: rec.Name, Tenant: rec.Tenant, Scopes: rec.Scopes, Test: rec.Test, AnyTenant: rec.AnyTenant, Durability: rec.Durability}, nil
}

func (k *KeyStore) find(hash [32]byte) (*KeyRecord, error) {
	k.mu.RLock()
	rec, ok := k.cache[hash]
	k.mu.RUnlock()
	if ok {
		return rec, nil
	}
	v, err := k.db.Get(store.APIKeyKey(nil, hash))
	if err != nil || v == nil {
		return nil, err
	}
	rec = &KeyRecord{}
	if err := json.Unmarshal(v, rec); err != nil {
		return nil, fmt.Errorf("api: key record: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.cache) >= maxCachedKeys {
		clear(k.cache)
	}
	k.cache[hash] = rec
	return rec, nil
}

// Login checks a key used as an SMTP password: any key with the inject scope of
// the tenant that the user name names.
func (k *KeyStore) Login(ctx context.Context, user, password string) (tenant string, ok bool) {
	p, err := k.Lookup(ctx, password)
	if err != nil || !p.Has(ScopeInject) || p.Tenant == "" || p.Test {
		return "", false
	}
	return p.Tenant, subtle.ConstantTimeCompare([]byte(user), []byte(p.Tenant)) == 1
}
