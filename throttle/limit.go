package throttle

import "fmt"

// Key names one setting of the shaping file. Every key may stand in [default],
// in a provider, a domain or a source section unless its comment says less.
type Key uint8

// The keys, as they read in the file.
const (
	KeyConnections            Key = iota // connections: open at once per source and site
	KeySourceConnections                 // source_connections: per source over all sites of the provider
	KeyProviderConnections               // provider_connections: over all sources; not per domain or source
	KeyMXConnections                     // mx_connections: per address of a receiving host, over all sources; not per domain
	KeyConnectionRate                    // connection_rate: new connections per source and site
	KeySourceConnectionRate              // source_connection_rate: per source over the provider
	KeyProviderConnectionRate            // provider_connection_rate: over all sources; not per domain or source
	KeyMessagesPerConnection             // messages_per_connection
	KeyRate                              // rate: messages per source and site
	KeySourceRate                        // source_rate: messages per source over the provider
	KeyProviderRate                      // provider_rate: over all sources; not per domain or source
	KeyRecipientRate                     // recipient_rate: recipients per source and site
	KeyTenantRate                        // tenant_rate: messages of one tenant at the provider
	KeyCampaignRate                      // campaign_rate: messages of one campaign of a tenant at the provider
	KeySenderDomainRate                  // sender_domain_rate: messages of one MAIL FROM domain at the provider
	KeyTenantConcurrency                 // tenant_concurrency: transactions of one tenant under way at the provider
	KeyCampaignConcurrency               // campaign_concurrency: transactions of one campaign of a tenant under way at the provider
	KeyRecipients                        // recipients: per transaction
	KeyOneDomain                         // one_domain: one recipient domain per transaction
	KeySilentClose                       // silent_close: the server may close between messages without a word
	KeyPipelineMessages                  // pipeline_messages: a message may be begun behind the one before
	KeyIPv6                              // ipv6: false where the provider takes no mail over it
	KeyTLS                               // tls: off, opportunistic, required or verify
	KeyRecoveryHold                      // recovery_hold: first pause of the recovery procedure, at least 10m
	KeyRecoveryMax                       // recovery_max: longest pause when probes fail again and again
	KeyRecoveryStep                      // recovery_step: how long each number of connections must work
	KeyWarmup                            // warmup: name of a [warmup.NAME] schedule; source sections only
	numKeys
)

// kind is the type of a key's value.
type kind uint8

const (
	kindCount kind = iota
	kindRate
	kindBool
	kindTLS
	kindDuration
	kindName
)

// keyInfo describes a key to the loader.
type keyInfo struct {
	name string
	kind kind
	// shared keys count over all sources or domains, so a section for one of
	// them cannot set them: two values for one counter would mean neither.
	noDomain, noSource bool
}

// keyTable is indexed by Key and never changes.
var keyTable = [numKeys]keyInfo{
	KeyConnections:            {name: "connections", kind: kindCount},
	KeySourceConnections:      {name: "source_connections", kind: kindCount, noDomain: true},
	KeyProviderConnections:    {name: "provider_connections", kind: kindCount, noDomain: true, noSource: true},
	KeyMXConnections:          {name: "mx_connections", kind: kindCount, noDomain: true},
	KeyConnectionRate:         {name: "connection_rate", kind: kindRate, noDomain: true},
	KeySourceConnectionRate:   {name: "source_connection_rate", kind: kindRate, noDomain: true},
	KeyProviderConnectionRate: {name: "provider_connection_rate", kind: kindRate, noDomain: true, noSource: true},
	KeyMessagesPerConnection:  {name: "messages_per_connection", kind: kindCount},
	KeyRate:                   {name: "rate", kind: kindRate},
	KeySourceRate:             {name: "source_rate", kind: kindRate, noDomain: true},
	KeyProviderRate:           {name: "provider_rate", kind: kindRate, noDomain: true, noSource: true},
	KeyRecipientRate:          {name: "recipient_rate", kind: kindRate, noDomain: true},
	KeyTenantRate:             {name: "tenant_rate", kind: kindRate, noDomain: true, noSource: true},
	KeyCampaignRate:           {name: "campaign_rate", kind: kindRate, noDomain: true, noSource: true},
	KeySenderDomainRate:       {name: "sender_domain_rate", kind: kindRate, noDomain: true, noSource: true},
	KeyTenantConcurrency:      {name: "tenant_concurrency", kind: kindCount, noDomain: true, noSource: true},
	KeyCampaignConcurrency:    {name: "campaign_concurrency", kind: kindCount, noDomain: true, noSource: true},
	KeyRecipients:             {name: "recipients", kind: kindCount},
	KeyOneDomain:              {name: "one_domain", kind: kindBool},
	KeySilentClose:            {name: "silent_close", kind: kindBool},
	KeyPipelineMessages:       {name: "pipeline_messages", kind: kindBool},
	KeyIPv6:                   {name: "ipv6", kind: kindBool},
	KeyTLS:                    {name: "tls", kind: kindTLS},
	KeyRecoveryHold:           {name: "recovery_hold", kind: kindDuration, noDomain: true},
	KeyRecoveryMax:            {name: "recovery_max", kind: kindDuration, noDomain: true},
	KeyRecoveryStep:           {name: "recovery_step", kind: kindDuration, noDomain: true},
	KeyWarmup:                 {name: "warmup", kind: kindName, noDomain: true},
}

// String is the key as written in the file.
func (k Key) String() string {
	if k < numKeys {
		return keyTable[k].name
	}
	return fmt.Sprintf("key(%d)", uint8(k))
}

func parseKey(s string) (Key, bool) {
	for k := range numKeys {
		if keyTable[k].name == s {
			return k, true
		}
	}
	return 0, false
}

// Limit says which kind of limit refused a permit. It is the closed label set
// of the metrics.
type Limit uint8

// Limits.
const (
	LimitNone                  Limit = iota
	LimitConnections                 // connections of this source to this site
	LimitSourceConnections           // of this source at the provider
	LimitProviderConnections         // of all sources at the provider
	LimitMXConnections               // at this address of the receiving host
	LimitConnectionRate              // new connections, at any level
	LimitMessagesPerConnection       // the connection is used up: open another
	LimitRate                        // messages, at lane or source level
	LimitProviderRate                // messages of all sources at the provider
	LimitRecipientRate               // recipients
	LimitRecipients                  // too many recipients for one transaction: split
	LimitDomain                      // the section of one recipient domain
	LimitTenant                      // tenant_rate or tenant_concurrency
	LimitCampaign                    // campaign_rate or campaign_concurrency
	LimitSenderDomain                // sender_domain_rate
	LimitBackoff                     // a server asked us to wait, or we probe
	LimitSuspended                   // an operator, a rule or a brake stopped it
	LimitWarmup                      // today's warm-up volume is sent
	numLimits
)

var limitNames = [numLimits]string{
	"", "connections", "source-connections", "provider-connections",
	"mx-connections", "connection-rate", "messages-per-connection", "rate",
	"provider-rate", "recipient-rate", "recipients", "domain", "tenant",
	"campaign", "sender-domain", "backoff", "suspended", "warmup",
}

func (l Limit) String() string {
	if l < numLimits {
		return limitNames[l]
	}
	return fmt.Sprintf("limit(%d)", uint8(l))
}

// MarshalText writes the name.
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// TLS is what a rule asks of the connection.
type TLS uint8

// TLS requirements, weakest first. What MTA-STS or DANE ask for comes on top
// of it; the zero value asks for nothing.
const (
	TLSUnset         TLS = iota
	TLSOff               // never STARTTLS
	TLSOpportunistic     // when offered
	TLSRequired          // any certificate
	TLSVerify            // a certificate valid for the host
)

var tlsNames = [...]string{"", "off", "opportunistic", "required", "verify"}

func (t TLS) String() string {
	if int(t) < len(tlsNames) {
		return tlsNames[t]
	}
	return fmt.Sprintf("tls(%d)", uint8(t))
}
