package app

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/report"
	"github.com/tradewind-mta/tradewind/token"
)

// minter makes what outgoing mail is recognised by when something comes back.
type minter struct {
	ring   atomic.Pointer[token.Ring] // replaced by a reload
	domain string                     // of bounces, as a lower-case A-label
	cfg    configs.Bounce
}

// openTokens reads the keys of tokens, and makes one at the first start.
func (a *App) openTokens() error {
	ring, err := a.tokenRing(a.cfg)
	if err != nil {
		return err
	}
	a.mint = &minter{cfg: a.cfg.Bounce}
	a.mint.ring.Store(ring)
	if a.cfg.Bounce.Domain == "" {
		return nil
	}
	a.mint.domain, err = message.ParseDomain(a.cfg.Bounce.Domain)
	return err
}

// TokenKeyFile is where the keys of tokens lie.
func TokenKeyFile(cfg *configs.Config) string {
	if cfg.Token.KeyFile != "" {
		return cfg.Token.KeyFile
	}
	return filepath.Join(cfg.DataDir, "token.keys")
}

func (a *App) tokenRing(cfg *configs.Config) (*token.Ring, error) {
	if a.opt.Memory {
		return token.NewRing(token.Key{Secret: [token.SecretLen]byte{1}})
	}
	path := TokenKeyFile(cfg)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && cfg.Token.KeyFile == "" {
		list, err := RotateTokenKeys(cfg, a.opt.Now())
		if err != nil {
			return nil, err
		}
		return list.Ring()
	}
	if err != nil {
		return nil, fmt.Errorf("app: token keys: %w", err)
	}
	list, err := token.ParseKeyring(text)
	if err != nil {
		return nil, fmt.Errorf("app: %s: %w", path, err)
	}
	return list.Ring()
}

// keepKeys is how long a key opens after it sealed its last token: people
// unsubscribe from mail they find years later.
const keepKeys = 2 * 365 * 24 * time.Hour

// RotateTokenKeys puts a new key in front of the file's, makes the file if
// there is none, and drops the keys whose last token is too old to matter. It
// returns when that is on stable storage. An engine that runs begins to use
// the key when it reloads.
func RotateTokenKeys(cfg *configs.Config, now time.Time) (token.Keyring, error) {
	path := TokenKeyFile(cfg)
	text, err := os.ReadFile(path)
	var list token.Keyring
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("app: token keys: %w", err)
	default:
		if list, err = token.ParseKeyring(text); err != nil {
			return nil, fmt.Errorf("app: %s: %w", path, err)
		}
	}
	if list, err = list.Rotate(now, now.Add(-keepKeys)); err != nil {
		return nil, err
	}
	if err := writeDurably(path, list.Append(nil)); err != nil {
		return nil, fmt.Errorf("app: token keys: %w", err)
	}
	return list, nil
}

// claims are what tokens of m for r say; r is nil for all recipients.
func claims(m *message.Message, r *message.Recipient) *token.Claims {
	c := &token.Claims{Message: m.ID, Tenant: m.Tenant, Campaign: m.Campaign, Sent: m.Accepted, All: r == nil}
	if m.NotBefore.After(c.Sent) {
		c.Sent = m.NotBefore
	}
	if r != nil {
		c.N, c.Address = r.N, r.Address
	}
	return c
}

// seal makes one token. What cannot be sealed goes without: mail is worth more
// than its bounce, and the journal says who it was for.
func (t *minter) seal(kind token.Kind, host string, c *token.Claims) string {
	s, err := t.ring.Load().Seal(kind, host, c)
	if err != nil {
		return ""
	}
	return s
}

// returnPath is the envelope sender for r, or for all recipients of m.
func (t *minter) returnPath(m *message.Message, r *message.Recipient) message.Address {
	s := t.seal(token.ReturnPath, t.domain, claims(m, r))
	if s == "" {
		return message.Address{}
	}
	a, err := message.ParseAddress(report.BouncePrefix + s + "@" + t.domain)
	if err != nil {
		return message.Address{} // a domain of 255 octets leaves no room
	}
	return a
}

// messageID is the left side of a Message-ID of ours. Its token opens at the
// bounce domain too, whatever stands behind the @.
func (t *minter) messageID(m *message.Message, r *message.Recipient) string {
	return t.seal(token.MessageID, t.domain, claims(m, r))
}

// fields are the header fields that complaints and requests are known by.
func (t *minter) fields(m *message.Message, r *message.Recipient, has inject.Present) []byte {
	c := claims(m, r)
	var b []byte
	if s := t.seal(token.ReportRef, t.domain, c); s != "" {
		b = append(append(append(b, "X-Report-Ref: "...), s...), "\r\n"...)
	}
	addsID := t.cfg.FeedbackID != "" && !has.FeedbackID
	addsCFBL := t.cfg.CFBL && !has.CFBLAddress
	if id := ""; addsID || addsCFBL {
		id = t.seal(token.FeedbackID, t.domain, c)
		if addsID {
			b = fmt.Appendf(b, "Feedback-ID: %s:%s:%s:%s\r\n", feedbackName(m.Campaign), feedbackName(m.Tenant), id, t.cfg.FeedbackID)
		}
		if addsCFBL {
			b = fmt.Appendf(b, "CFBL-Address: %s@%s; report=arf\r\nCFBL-Feedback-ID: %s\r\n", t.cfg.Feedback[0], t.domain, id)
		}
	}
	if t.cfg.ListUnsubscribe && r != nil && m.Class == message.Bulk && !has.ListUnsubscribe {
		// The address alone does while the journal remembers the message; the
		// subject does for ever.
		address, subject := t.seal(token.UnsubscribeAddress, t.domain, c), t.seal(token.Unsubscribe, t.domain, c)
		if address != "" && subject != "" {
			b = fmt.Appendf(b, "List-Unsubscribe: <mailto:%s%s@%s?subject=%s>\r\n", report.UnsubscribePrefix, address, t.domain, subject)
		}
	}
	return b
}

// feedbackName is a field of Feedback-ID: what Gmail counts by, without the
// colon that separates fields.
func feedbackName(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '-', r == '_':
			return r
		}
		return '-'
	}, s[:min(len(s), 40)])
}

// fill gives the door what it mints with, where there is a bounce domain.
func (t *minter) fill(cfg *inject.Config, deps *inject.Deps) error {
	if t.domain == "" {
		return nil
	}
	v, err := inject.ParseVerp(t.cfg.Verp)
	if err != nil {
		return err
	}
	cfg.Verp, cfg.Unsubscribe = v, t.cfg.ListUnsubscribe
	deps.ReturnPath, deps.MessageID, deps.Fields = t.returnPath, t.messageID, t.fields
	return nil
}
