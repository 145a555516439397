package loadgen

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// profile is how one provider behaves: its limits, and its words for saying
// no. Connection, message and recipient limits follow what the providers
// publish or are known for; messages a minute are our invention, chosen so that
// a careless sender meets them.
type profile struct {
	name    string
	limits  Limits
	latency time.Duration
	// greylist defers every pair for so long.
	greylist time.Duration
	// oneDomain refuses a second recipient domain in a transaction.
	oneDomain bool
	// mixed plays something of everything, by recipient.
	mixed bool

	connections string // at the greeting, then closed
	messages    string // MAIL beyond the limit per connection, then closed
	rate        string // MAIL beyond the limit per minute
	recipients  string // RCPT beyond the limit
	deferred    string // RCPT chosen by DeferPercent, defer+ or greylisting
	rejected    string // RCPT chosen by RejectPercent or reject+
	content     string // the dot, for data-reject+
	later       string // the dot, for data-defer+
}

// plain is the wording of the profiles that play nobody in particular.
var plain = profile{
	connections: "421 4.7.0 too many connections",
	messages:    "421 4.7.0 too many messages on this connection",
	rate:        "451 4.7.1 too many messages, slow down",
	recipients:  "452 4.5.3 too many recipients",
	deferred:    "451 4.7.1 greylisted, try again later",
	rejected:    "550 5.1.1 no such user here",
	content:     "550 5.7.1 message refused for its content",
	later:       "451 4.3.0 try again later",
}

func (p profile) named(name string) profile {
	p.name = name
	return p
}

// profiles is the closed set.
func profiles() []profile {
	greylist, tarpit, mixed := plain.named("greylist"), plain.named("tarpit"), plain.named("mixed")
	greylist.greylist = time.Minute
	tarpit.latency = 2 * time.Second
	tarpit.limits = Limits{Connections: 2}
	mixed.mixed = true
	return []profile{
		plain.named("accept"), greylist, tarpit,
		{
			name:        "gmail",
			limits:      Limits{Connections: 5, MessagesPerConnection: 50, RecipientsPerMessage: 100, MessagesPerMinute: 6000},
			oneDomain:   true,
			connections: "421 4.7.28 Gmail has detected an unusual rate of mail originating from your IP address. To protect our users, mail has been temporarily rate limited",
			messages:    "421 4.7.0 Try again later, closing connection.",
			rate:        "421 4.7.28 Gmail has detected an unusual rate of mail originating from your IP address. To protect our users, mail has been temporarily rate limited",
			recipients:  "452 4.5.3 Your message has too many recipients",
			deferred:    "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered",
			rejected:    "550 5.1.1 The email account that you tried to reach does not exist",
			content:     "550 5.7.1 Our system has detected that this message is likely unsolicited mail",
			later:       "421 4.3.0 Temporary System Problem. Try again later",
		},
		{
			name:        "yahoo",
			limits:      Limits{Connections: 10, MessagesPerConnection: 20, RecipientsPerMessage: 30, MessagesPerMinute: 3000},
			connections: "421 4.7.0 [TSS04] Messages from your IP temporarily deferred due to unexpected volume or user complaints - 4.16.55.1",
			messages:    "421 Max message per connection reached, closing transmission channel",
			rate:        "421 4.7.0 [TSS04] Messages from your IP temporarily deferred due to unexpected volume or user complaints - 4.16.55.1",
			recipients:  "452 4.5.3 Too many recipients",
			deferred:    "450 User is receiving mail too quickly",
			rejected:    "554 delivery error: dd This user doesn't have a yahoo.com account [-5]",
			content:     "554 5.7.9 Message not accepted for policy reasons",
			later:       "451 Resources temporarily unavailable. Please try again later [#4.16.1]",
		},
		{
			name:        "outlook",
			limits:      Limits{Connections: 5, MessagesPerConnection: 50, RecipientsPerMessage: 100, MessagesPerMinute: 3000},
			connections: "421 RP-003 The mail server IP connecting to Outlook.com has exceeded the connection limit allowed",
			messages:    "421 RP-002 The mail server has exceeded maximum number of messages per connection",
			rate:        "451 4.7.650 The mail server has been temporarily rate limited due to IP reputation (S775)",
			recipients:  "452 4.5.3 Too many recipients",
			deferred:    "451 4.7.500 Server busy. Please try again later (S77719)",
			rejected:    "550 5.5.0 Requested action not taken: mailbox unavailable",
			content:     "550 SC-001 Mail rejected for policy reasons",
			later:       "451 4.3.2 Temporary server error. Please try again later ATTR17",
		},
		{
			name:        "orange",
			limits:      Limits{Connections: 2, MessagesPerConnection: 100, RecipientsPerMessage: 100, MessagesPerMinute: 600},
			connections: "421 mwinf5c04 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR004_104 [104]",
			messages:    "421 mwinf5c04 ME Trop de messages dans la session. Too many messages, slow down. OFR004_104 [104]",
			rate:        "421 mwinf5c04 ME Service refuse. Veuillez essayer plus tard. Service refused, please try later. OFR004_103 [103]",
			recipients:  "452 4.5.3 Trop de destinataires. Too many recipients",
			deferred:    "452 4.2.2 Boite du destinataire pleine. Recipient overquota. OFR_417 [417]",
			rejected:    "550 5.1.1 Adresse d au moins un destinataire invalide. Invalid recipient. OFR_416 [416]",
			content:     "550 5.7.1 Mail rejete. Mail rejected. OFR_506 [506]",
			later:       "451 4.3.0 Service indisponible. Veuillez essayer plus tard. OFR_999 [999]",
		},
		mixed,
	}
}

// Profiles returns the names a SinkConfig may give.
func Profiles() []string {
	var names []string
	for _, p := range profiles() {
		names = append(names, p.name)
	}
	return names
}

func findProfile(name string) (*profile, error) {
	if name == "" {
		name = "accept"
	}
	all := profiles()
	i := slices.IndexFunc(all, func(p profile) bool { return p.name == name })
	if i < 0 {
		return nil, fmt.Errorf("loadgen: profile %q is not one of %s", name, strings.Join(Profiles(), ", "))
	}
	return &all[i], nil
}

// apply fills what cfg leaves open.
func (p *profile) apply(cfg *SinkConfig) {
	fill := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	fill(&cfg.Limits.Connections, p.limits.Connections)
	fill(&cfg.Limits.MessagesPerConnection, p.limits.MessagesPerConnection)
	fill(&cfg.Limits.RecipientsPerMessage, p.limits.RecipientsPerMessage)
	fill(&cfg.Limits.MessagesPerMinute, p.limits.MessagesPerMinute)
	if cfg.Latency == 0 {
		cfg.Latency = p.latency
	}
	if p.greylist > 0 {
		fill(&cfg.DeferPercent, 100)
		if cfg.GreylistDelay == 0 {
			cfg.GreylistDelay = p.greylist
		}
	}
}
