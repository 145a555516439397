// Package configs is the shipped configuration and the loader: one typed tree,
// strict. Structs live with the code that obeys them; Config is the table of
// contents. An unknown key is an error that names the file, the key and the
// nearest key there is; Load reports every problem at once.
package configs

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/mta"
	"github.com/tradewind-mta/tradewind/queue"
)

// Config is the whole configuration file.
type Config struct {
	// Hostname is the name we greet with and sign our own notices by.
	Hostname string `toml:"hostname"`
	// DataDir holds the stores.
	DataDir string `toml:"data_dir"`

	SMTP        []SMTP       `toml:"smtp"`
	HTTP        HTTP         `toml:"http"`
	Inject      Inject       `toml:"inject"`
	Queue       queue.Config `toml:"queue"`
	Store       Store        `toml:"store"`
	Delivery    mta.Config   `toml:"delivery"`
	DNS         DNS          `toml:"dns"`
	Route       []mta.Route  `toml:"route"`
	Source      []mta.Source `toml:"source"`
	Pool        []mta.Pool   `toml:"pool"`
	DKIM        []DKIM       `toml:"dkim"`
	Signing     Signing      `toml:"signing"`
	Tenant      []Tenant     `toml:"tenant"`
	Events      Events       `toml:"events"`
	Suppression Suppression  `toml:"suppression"`
	Bounce      Bounce       `toml:"bounce"`
	Token       Token        `toml:"token"`
	Tracking    Tracking     `toml:"tracking"`
	Shaping     Shaping      `toml:"shaping"`
	Log         Log          `toml:"log"`
}

// SMTP is a [[smtp]] listener.
type SMTP struct {
	// Listen is the address and port.
	Listen string `toml:"listen"`
	// Role is "submission" for mail to be sent, "bounce" for reports that come
	// back.
	Role string `toml:"role"`
	// RelayFrom are the networks whose clients may submit without AUTH.
	RelayFrom []netip.Prefix `toml:"relay_from"`
	// Tenant is whose mail clients in RelayFrom submit, unless the message
	// names another in X-Tradewind-Tenant.
	Tenant string `toml:"tenant"`
	// TLSCert and TLSKey are PEM files; STARTTLS and AUTH are offered when they
	// are set.
	TLSCert string `toml:"tls_cert"`
	TLSKey  string `toml:"tls_key"`
	// ImplicitTLS starts TLS at once (port 465).
	ImplicitTLS bool `toml:"implicit_tls"`
	// AllowLoopbackAuth offers AUTH without TLS to clients on loopback.
	AllowLoopbackAuth bool `toml:"allow_loopback_auth"`
	// MaxMessageSize is the largest message.
	MaxMessageSize ByteSize `toml:"max_message_size"`
	// MaxRecipients is the most recipients of one transaction.
	MaxRecipients int `toml:"max_recipients"`
	// MaxConnections bounds connections, in all and per client address.
	MaxConnections        int `toml:"max_connections"`
	MaxConnectionsPerAddr int `toml:"max_connections_per_address"`
	// IdleTimeout is how long a client may wait with its next command.
	IdleTimeout time.Duration `toml:"idle_timeout"`
	// Durability is what the reply to a message waits for: fsync, or os for the
	// operating system having it, which a power cut may undo.
	Durability string `toml:"durability"`
}

// Roles of a listener.
const (
	RoleSubmission = "submission"
	RoleBounce     = "bounce"
)

// HTTP is the [http] table: three listeners, each off when empty.
type HTTP struct {
	API      string `toml:"api"`
	Tracking string `toml:"tracking"`
	Admin    string `toml:"admin"`
	// TrustLoopback answers loopback clients without an API key. It is refused
	// unless api and admin listen on loopback.
	TrustLoopback bool `toml:"trust_loopback"`
	// Hosts are further names by which clients may address the admin listener.
	Hosts []string `toml:"hosts"`
	// MaxBody is the largest request body, after decompression.
	MaxBody ByteSize `toml:"max_body"`
	// MaxRecipients is the most recipients of one request.
	MaxRecipients int `toml:"max_recipients"`
	// MaxMemory bounds the requests being worked on.
	MaxMemory ByteSize `toml:"max_memory"`
}

// Inject is the [inject] table.
type Inject struct {
	// Received adds our Received field to accepted mail.
	Received bool `toml:"received"`
	// HideClient leaves the client's address out of it.
	HideClient bool `toml:"hide_client"`
	// RefuseSuppressed refuses suppressed recipients instead of accepting and
	// settling them as message.suppressed.
	RefuseSuppressed bool `toml:"refuse_suppressed"`
	// MaxMessageSize is the largest message through any door.
	MaxMessageSize ByteSize `toml:"max_message_size"`
	// MaxReceived is the number of Received fields that means a loop.
	MaxReceived int `toml:"max_received"`
}

// Store is the [store] table.
type Store struct {
	// Cache bounds the block cache of the spool.
	Cache ByteSize `toml:"cache"`
	// MemTable is the size of one memtable of the spool.
	MemTable ByteSize `toml:"memtable"`
	// MaxOpenFiles bounds the files the stores keep open.
	MaxOpenFiles int `toml:"max_open_files"`
	// LowSpace is the free space below which no mail is accepted.
	LowSpace ByteSize `toml:"low_space"`
	// Ballast is room kept for opening the stores on a full disk.
	Ballast ByteSize `toml:"ballast"`
	// Stall is for how long no commit may end, while some wait, before mail is
	// refused.
	Stall time.Duration `toml:"stall"`
	// CommitMemory bounds the mail that waits for its commit.
	CommitMemory ByteSize `toml:"commit_memory"`
}

func (s *Store) validate(bad func(key, format string, args ...any)) {
	for field, v := range map[string]ByteSize{"low_space": s.LowSpace, "ballast": s.Ballast} {
		if v < 0 {
			bad("store."+field, "%d is negative", v)
		}
	}
	if s.Stall < 0 || s.Stall > 0 && s.Stall < time.Second {
		bad("store.stall", "%v is shorter than 1s (0 never refuses)", s.Stall)
	}
	if s.CommitMemory < 1<<20 {
		bad("store.commit_memory", "%s is less than 1MiB", s.CommitMemory)
	}
}

// DNS is the [dns] table.
type DNS struct {
	// Servers are recursive resolvers, "address" or "address:port"; empty means
	// the system's.
	Servers []string `toml:"servers"`
	// Timeout is for one try at one server.
	Timeout time.Duration `toml:"timeout"`
	// Family is prefer4, prefer6, only4 or only6.
	Family string `toml:"family"`
	// AllowNetworks may be mailed to although they are private or special.
	AllowNetworks []netip.Prefix `toml:"allow_networks"`
	// CacheEntries bounds the cache.
	CacheEntries int `toml:"cache_entries"`
}

// DKIM is a [[dkim]] key.
type DKIM struct {
	// Domain is the From domain, "*.example.com" for everything below one, or
	// "*".
	Domain   string `toml:"domain"`
	Selector string `toml:"selector"`
	// KeyFile holds the private key in PEM, readable by its owner only.
	KeyFile string `toml:"key_file"`
	// SigningDomain is d= when it is not the domain.
	SigningDomain string `toml:"signing_domain"`
	// Tenant keeps other tenants from signing with it.
	Tenant string `toml:"tenant"`
	// Additional keys sign beside the one that fits best.
	Additional bool `toml:"additional"`
}

// Signing is the [signing] table.
type Signing struct {
	// Unsigned says what happens to mail no key fits: "defer" keeps it and
	// raises an alert, "send" sends it. Without any [[dkim]] entry nothing is
	// signed.
	Unsigned string `toml:"unsigned"`
	// Expiry is how long a signature is valid (x=); 0 means for ever.
	Expiry time.Duration `toml:"expiry"`
	// Concurrency bounds signatures made at one time; 0 means one per CPU.
	Concurrency int `toml:"concurrency"`
	// AllowReadableKeys takes key files that others may read.
	AllowReadableKeys bool `toml:"allow_readable_keys"`
}

// Tenant is a [[tenant]].
type Tenant struct {
	Name string `toml:"name"`
	// Weight is the share of a contended destination.
	Weight int `toml:"weight"`
	// Campaigns are weights of campaigns among the tenant's mail.
	Campaigns []mta.Campaign `toml:"campaigns"`
	// Pool takes mail that asks for none; Pools are what may be asked for,
	// empty for all.
	Pool  string   `toml:"pool"`
	Pools []string `toml:"pools"`
	// SenderDomains are the domains, with everything below them, that may stand
	// in From; empty allows all.
	SenderDomains []string `toml:"sender_domains"`
	// DSN notifies senders of failures and delays without being asked.
	DSN bool `toml:"dsn"`
	// MaxAge replaces queue.max_age; 0 keeps it.
	MaxAge time.Duration `toml:"max_age"`
	// Verp replaces bounce.verp; "" keeps it.
	Verp string `toml:"verp"`
	// Suspended tenants may not submit.
	Suspended bool `toml:"suspended"`
	// MaxQueued is how many recipients of the tenant may wait; more mail is
	// refused for the time being. 0 means no limit.
	MaxQueued int `toml:"max_queued"`
}

// Events is the [events] table.
type Events struct {
	// File gets every event as a line of JSON; "" means data_dir/events.jsonl,
	// "-" none.
	File string `toml:"file"`
	// FileMaxSize and FileEvery rotate the file, FileKeep is how many rotated
	// ones stay, FileCompress is none, gzip or zstd.
	FileMaxSize  ByteSize      `toml:"file_max_size"`
	FileEvery    time.Duration `toml:"file_every"`
	FileKeep     int           `toml:"file_keep"`
	FileCompress string        `toml:"file_compress"`
	// Retention is how long the journal keeps events for the pull API and for
	// sinks that lag.
	Retention time.Duration `toml:"retention"`
	// CSVFile gets accounting records as PowerMTA writes them; "" none. It is
	// rotated as File is.
	CSVFile string `toml:"csv_file"`
	// CSVRecords are the record types in it, and CSVFields the columns behind
	// the type; none means the usual ones.
	CSVRecords []string `toml:"csv_records"`
	CSVFields  []string `toml:"csv_fields"`
	// WebhookHTTP allows webhooks without TLS.
	WebhookHTTP bool `toml:"webhook_http"`
	// WebhookNetworks may be posted to although they are not public.
	WebhookNetworks []netip.Prefix `toml:"webhook_networks"`
	// WebhooksPerTenant bounds the webhooks of one tenant.
	WebhooksPerTenant int `toml:"webhooks_per_tenant"`
}

// Suppression is the [suppression] table.
type Suppression struct {
	// KeyFile holds the secret that addresses are hashed with; "" means
	// data_dir/suppression.key, made at the first start.
	KeyFile string `toml:"key_file"`
	// KeepAddresses stores addresses sealed beside their hash, so that lists
	// can be shown and exported.
	KeepAddresses bool `toml:"keep_addresses"`
	// SoftBounces within SoftWindow, with no delivery in between, suppress an
	// address; 0 never does.
	SoftBounces int           `toml:"soft_bounces"`
	SoftWindow  time.Duration `toml:"soft_window"`
	// How long each reason that may expire lasts; 0 means for ever.
	ExpireHardBounce time.Duration `toml:"expire_hard_bounce"`
	ExpireSoftBounce time.Duration `toml:"expire_soft_bounce"`
	ExpireManual     time.Duration `toml:"expire_manual"`
	ExpireImport     time.Duration `toml:"expire_import"`
}

// Tracking is the [tracking] table.
type Tracking struct {
	// BaseURL is what rewritten links begin with.
	BaseURL string `toml:"base_url"`
}

// Shaping is the [shaping] table.
type Shaping struct {
	// Files are laid over the shipped shaping rules, in order.
	Files []string `toml:"files"`
}

// Log is the [log] table.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `toml:"level"`
	// Format is text or json.
	Format string `toml:"format"`
}

// Default is the single source of defaults.
func Default() Config {
	return Config{
		DataDir: "/var/lib/tradewind",
		HTTP: HTTP{
			MaxBody: 64 << 20, MaxRecipients: 10_000, MaxMemory: 512 << 20,
		},
		Inject:      Inject{Received: true, MaxMessageSize: 50 << 20, MaxReceived: 50},
		Queue:       queue.DefaultConfig(),
		Store:       Store{Cache: 64 << 20, MemTable: 64 << 20, MaxOpenFiles: 512, LowSpace: 256 << 20, Ballast: 64 << 20, Stall: 5 * time.Second, CommitMemory: 256 << 20},
		Delivery:    mta.DefaultConfig(),
		DNS:         DNS{Timeout: 5 * time.Second, Family: "prefer4", CacheEntries: 50_000},
		Signing:     Signing{Unsigned: "defer", Expiry: 7 * 24 * time.Hour},
		Events:      Events{FileMaxSize: 256 << 20, FileEvery: 24 * time.Hour, FileKeep: 14, FileCompress: "gzip", Retention: 7 * 24 * time.Hour, WebhooksPerTenant: 10},
		Suppression: Suppression{KeepAddresses: true, SoftBounces: 5, SoftWindow: 14 * 24 * time.Hour, ExpireSoftBounce: 30 * 24 * time.Hour},
		Bounce:      defaultBounce(),
		Log:         Log{Level: "info", Format: "text"},
	}
}

// DefaultSMTP is a [[smtp]] entry before its keys are read.
func DefaultSMTP() SMTP {
	return SMTP{
		Role: RoleSubmission, Tenant: DefaultTenant, MaxMessageSize: 50 << 20, MaxRecipients: 1000,
		MaxConnections: 2000, MaxConnectionsPerAddr: 100, IdleTimeout: 5 * time.Minute, Durability: message.Synced.String(),
	}
}

// defaultBounceSMTP is DefaultSMTP for role bounce: reports are small, and each
// is about one recipient.
func defaultBounceSMTP() SMTP {
	s := DefaultSMTP()
	s.MaxMessageSize, s.MaxRecipients = 10<<20, 1
	return s
}

// DefaultTenant is the tenant of clients that name none. It exists without a
// [[tenant]] entry.
const DefaultTenant = "default"

// ByteSize is a number of bytes, written "64MiB", "10kB" or as a plain number.
type ByteSize int64

var units = []struct {
	suffix string
	factor int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// UnmarshalText reads a size.
func (s *ByteSize) UnmarshalText(b []byte) error {
	text := string(b)
	factor := int64(1)
	for _, u := range units {
		if n := len(text) - len(u.suffix); n > 0 && text[n:] == u.suffix {
			text, factor = text[:n], u.factor
			break
		}
	}
	v, err := strconv.ParseUint(text, 10, 62)
	if err != nil || v > uint64((1<<62)/factor) {
		return fmt.Errorf("%q is not a size such as 64MiB or 10kB", b)
	}
	*s = ByteSize(int64(v) * factor)
	return nil
}

// MarshalText writes the size in the largest unit that keeps it whole.
func (s ByteSize) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s ByteSize) String() string {
	best, unit := int64(s), "B"
	for _, u := range units[:4] {
		if s != 0 && int64(s)%u.factor == 0 {
			best, unit = int64(s)/u.factor, u.suffix
		}
	}
	return fmt.Sprintf("%d%s", best, unit)
}
