package configs

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/report"
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
	// Reporters are networks and domains that may complain without the
	// signature of their own From domain.
	Reporters []string `toml:"reporters"`
	// UnsubscribeScope is what a request by mail ends: tenant or campaign.
	UnsubscribeScope string `toml:"unsubscribe_scope"`
	// MaxWaiting bounds the reports that wait to be read.
	MaxWaiting ByteSize `toml:"max_waiting"`
	// QuarantineMax, QuarantineSize and QuarantineAge bound what is kept of
	// reports that were not believed.
	QuarantineMax  int           `toml:"quarantine_max"`
	QuarantineSize ByteSize      `toml:"quarantine_size"`
	QuarantineAge  time.Duration `toml:"quarantine_age"`
}

// ParseReporters sorts Reporters into networks and domains.
func (b *Bounce) ParseReporters() (r report.Reporters, err error) {
	for _, s := range b.Reporters {
		if p, err := netip.ParsePrefix(s); err == nil {
			r.Networks = append(r.Networks, p.Masked())
		} else if ip, err := netip.ParseAddr(s); err == nil {
			r.Networks = append(r.Networks, netip.PrefixFrom(ip, ip.BitLen()))
		} else if d, err := message.ParseDomain(s); err == nil {
			r.Domains = append(r.Domains, d)
		} else {
			return r, fmt.Errorf("%q is neither a network nor a domain", s)
		}
	}
	return r, nil
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
	return Bounce{
		Verp: "recipient", Feedback: []string{"fbl"}, UnsubscribeScope: "tenant", MaxWaiting: 1 << 30,
		QuarantineMax: 1000, QuarantineSize: 64 << 20, QuarantineAge: 28 * 24 * time.Hour,
	}
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
	r, err := b.ParseReporters()
	if err != nil {
		bad("bounce.reporters", "%v", err)
	}
	for _, p := range r.Networks {
		if p.Bits() == 0 {
			bad("bounce.reporters", "%s would believe everybody", p)
		}
	}
	if b.UnsubscribeScope != "tenant" && b.UnsubscribeScope != "campaign" {
		bad("bounce.unsubscribe_scope", "%q is not tenant or campaign", b.UnsubscribeScope)
	}
	if b.MaxWaiting < 64<<20 {
		bad("bounce.max_waiting", "%s is less than 64MiB", b.MaxWaiting)
	}
	if b.QuarantineMax < 1 {
		bad("bounce.quarantine_max", "%d is less than 1", b.QuarantineMax)
	}
	if b.QuarantineSize < 8<<20 {
		bad("bounce.quarantine_size", "%s is less than 8MiB", b.QuarantineSize)
	}
	if b.QuarantineAge < time.Hour || b.QuarantineAge > 28*24*time.Hour {
		// What cannot be erased person by person must be gone in thirty days.
		bad("bounce.quarantine_age", "%v is not between 1h and 672h", b.QuarantineAge)
	}
	if c.Token.Life < 0 {
		bad("token.life", "%v is negative", c.Token.Life)
	}
}

// validateBounceListener checks what is different with role bounce.
func (c *Config) validateBounceListener(key string, s *SMTP, bad func(key, format string, args ...any)) {
	if c.Bounce.Domain == "" {
		bad(key+"role", "bounce needs bounce.domain: nothing could be told from a forgery")
	}
	if len(s.RelayFrom) > 0 {
		bad(key+"relay_from", "has no meaning for role bounce")
	}
	if s.MaxMessageSize > 16<<20 {
		bad(key+"max_message_size", "%s is more than 16MiB", s.MaxMessageSize)
	}
	if s.MaxRecipients > 10 {
		bad(key+"max_recipients", "%d is more than 10; a report has one", s.MaxRecipients)
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
