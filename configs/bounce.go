package configs

import (
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
)

// Bounce is the [bounce] table.
type Bounce struct {
	// Domain is where reports come back to; "" leaves envelope senders and
	// headers alone.
	Domain string `toml:"domain"`
	// Rules are the classification rules; "" means those shipped.
	Rules string `toml:"rules"`
	// Verp says whom a return path names: recipient, message or off.
	Verp string `toml:"verp"`
	// FeedbackID is the sender's name in Feedback-ID; "" adds no such field.
	FeedbackID string `toml:"feedback_id"`
	// CFBL adds CFBL-Address and CFBL-Feedback-ID.
	CFBL bool `toml:"cfbl"`
	// ListUnsubscribe adds List-Unsubscribe to bulk mail that has none.
	ListUnsubscribe bool `toml:"list_unsubscribe"`
	// Feedback are the local parts at Domain that complaints come to.
	Feedback []string `toml:"feedback"`
}

// Token is the [token] table.
type Token struct {
	// KeyFile holds the keys; "" means data_dir/token.keys, made at the first
	// start.
	KeyFile string `toml:"key_file"`
	// Life is how long after it was due mail may be bounced or complained
	// about; 0 means queue.max_age and 14 days.
	Life time.Duration `toml:"life"`
}

func defaultBounce() Bounce {
	return Bounce{Verp: "recipient", Feedback: []string{"fbl"}}
}

// validateBounce checks [bounce] and [token].
func (c *Config) validateBounce(bad func(key, format string, args ...any)) {
	b := &c.Bounce
	if b.Domain != "" {
		if _, err := message.ParseDomain(b.Domain); err != nil {
			bad("bounce.domain", "%v", err)
		}
	}
	if v, err := inject.ParseVerp(b.Verp); err != nil || v == inject.VerpUnset {
		bad("bounce.verp", "%q is not recipient, message or off", b.Verp)
	}
	if s := b.FeedbackID; s != "" && (len(s) < 5 || len(s) > 15 || strings.Trim(s, nameChars) != "") {
		bad("bounce.feedback_id", "%q is not 5 to 15 letters, digits, dots, hyphens or underscores", s)
	}
	if b.CFBL && len(b.Feedback) == 0 {
		bad("bounce.cfbl", "needs an address in bounce.feedback")
	}
	for i, f := range b.Feedback {
		if f == "" || len(f) > 30 || strings.Trim(f, nameChars) != "" {
			// Short, so that none can be the shape of a token.
			bad("bounce.feedback", "entry %d: %q is not 1 to 30 letters, digits, dots, hyphens or underscores", i, f)
		} else if _, err := message.ParseAddress(f + "@example.com"); err != nil {
			bad("bounce.feedback", "entry %d: %v", i, err)
		}
	}
	if b.Domain == "" && (b.FeedbackID != "" || b.CFBL || b.ListUnsubscribe) {
		bad("bounce.domain", "required by feedback_id, cfbl and list_unsubscribe")
	}
	if c.Token.Life < 0 {
		bad("token.life", "%v is negative", c.Token.Life)
	}
}

const nameChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"

// TokenLife is how long after it was due mail may be bounced or complained
// about: the time it may lie in our queue, and then two weeks in others'.
func (c *Config) TokenLife() time.Duration {
	if c.Token.Life > 0 {
		return c.Token.Life
	}
	longest := c.Queue.MaxAge
	for i := range c.Tenant {
		longest = max(longest, c.Tenant[i].MaxAge)
	}
	return longest + 14*24*time.Hour
}
