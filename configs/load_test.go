package configs

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// host is what every configuration needs.
const host = "hostname = \"mta1.example.com\"\n"

func TestEachMistakeIsNamedWithItsKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pem := filepath.Join(dir, "cert.pem")
	if err := os.WriteFile(pem, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "nothing.pem")
	smtp := host + "[[smtp]]\nlisten = \"127.0.0.1:2525\"\n"
	relay := smtp + "relay_from = [\"127.0.0.0/8\"]\n"
	source := host + "[[source]]\nname = \"ip1\"\n"
	tenant := host + "[[tenant]]\nname = \"acme\"\n"
	for name, tt := range map[string]struct{ text, want string }{
		"empty file":       {"", `c.toml: hostname: required: the name this host greets with, such as mta1.example.com`},
		"hostname":         {"hostname = \"mta 1\"\n", `c.toml: hostname: `},
		"data_dir emptied": {host + "data_dir = \"\"\n", `c.toml: data_dir: required`},

		"misspelt key":            {host + "[queue]\nmax_agee = \"1h\"\n", `c.toml: queue.max_agee: unknown key; did you mean queue.max_age?`},
		"misspelt table":          {host + "[quue]\nmax_age = \"1h\"\n", `c.toml: quue: unknown key; did you mean queue?`},
		"key in the wrong table":  {host + "[log]\nmax_age = \"1h\"\n", `c.toml: log.max_age: unknown key; did you mean `},
		"key of a list of tables": {relay + "relay_form = []\n", `c.toml: smtp.relay_form: unknown key; did you mean smtp.relay_from?`},
		"key of an inline table":  {source + "[[pool]]\nname = \"a\"\nsources = [{ source = \"ip1\", wieght = 2 }]\n", `c.toml: pool.sources.wieght: unknown key; did you mean pool.sources.weight?`},
		"key like no other":       {host + "zzzzzzzzzzzz = 1\n", `c.toml: zzzzzzzzzzzz: unknown key`},

		"not TOML":              {host + "[queue\n", `c.toml:3: expected '.' or ']' to end table name, but got '\n' instead`},
		"key twice":             {host + host, `c.toml:2: hostname: Key 'hostname' has already been defined.`},
		"wrong type":            {host + "[queue]\nwindow = \"many\"\n", `c.toml:3: queue.window: `},
		"table for a value":     {host + "[hostname]\n", `c.toml:2: Key 'hostname' has already been defined.`},
		"value for a table":     {host + "queue = 3\n", `c.toml:2: queue: `},
		"bad duration":          {host + "[queue]\nmax_age = \"3 days\"\n", `c.toml:3: queue.max_age: `},
		"duration without unit": {host + "[queue]\nmax_age = \"72\"\n", `c.toml:3: queue.max_age: `},
		"bad size":              {host + "[http]\nmax_body = \"64 megs\"\n", `"64 megs" is not a size such as 64MiB or 10kB`},
		"negative size":         {host + "[http]\nmax_body = -1\n", `"-1" is not a size such as 64MiB or 10kB`},
		"size too large":        {host + "[http]\nmax_body = \"9999999999TiB\"\n", `"9999999999TiB" is not a size such as 64MiB or 10kB`},
		"bad network":           {smtp + "relay_from = [\"10.0.0.0\"]\n", `c.toml:4: smtp.relay_from: `},

		"listen without port":         {host + "[[smtp]]\nlisten = \"localhost\"\nrelay_from = [\"127.0.0.0/8\"]\n", `c.toml: smtp[0].listen: "localhost" is not address:port`},
		"unknown role":                {relay + "role = \"relay\"\n", `c.toml: smtp[0].role: "relay" is not submission or bounce`},
		"open relay":                  {smtp + "relay_from = [\"0.0.0.0/0\"]\n", `c.toml: smtp[0].relay_from[0]: 0.0.0.0/0 would make an open relay`},
		"open relay, IPv6":            {smtp + "relay_from = [\"127.0.0.0/8\", \"::/0\"]\n", `c.toml: smtp[0].relay_from[1]: ::/0 would make an open relay`},
		"nobody may submit":           {smtp, `c.toml: smtp[0].relay_from: nobody could submit here: AUTH needs tls_cert and tls_key, and relay_from names no network`},
		"certificate without key":     {relay + "tls_cert = '" + pem + "'\n", `c.toml: smtp[0].tls_cert: tls_cert and tls_key go together`},
		"missing certificate":         {relay + "tls_cert = '" + missing + "'\ntls_key = '" + pem + "'\n", `c.toml: smtp[0].tls_cert: open ` + missing + `: no such file or directory`},
		"implicit TLS without one":    {relay + "implicit_tls = true\n", `c.toml: smtp[0].implicit_tls: needs tls_cert and tls_key`},
		"bad tenant of a listener":    {relay + "tenant = \"a b\"\n", `c.toml: smtp[0].tenant: "a b" holds ' '; letters, digits, dot, hyphen and underscore are allowed`},
		"negative recipients":         {relay + "max_recipients = -1\n", `c.toml: smtp[0].max_recipients: -1 is less than 1`},
		"larger than the door allows": {relay + "max_message_size = \"60MiB\"\n", `c.toml: smtp[0].max_message_size: 60MiB is more than inject.max_message_size`},

		"API address":                   {host + "[http]\napi = \"8025\"\n", `c.toml: http.api: "8025" is not address:port`},
		"trusted loopback off loopback": {host + "[http]\napi = \"0.0.0.0:8025\"\ntrust_loopback = true\n", `c.toml: http.trust_loopback: http.api listens on 0.0.0.0:8025, which is not loopback`},
		"trusted loopback, all":         {host + "[http]\nadmin = \":9025\"\ntrust_loopback = true\n", `c.toml: http.trust_loopback: http.admin listens on :9025, which is not loopback`},

		"no retry":          {host + "[queue]\nretry = []\n", `c.toml: queue.retry: needs at least one interval`},
		"retry at once":     {host + "[queue]\nretry = [\"5m\", \"10ms\"]\n", `c.toml: queue.retry[1]: 10ms is shorter than 1s`},
		"too much jitter":   {host + "[queue]\njitter = 0.9\n", `c.toml: queue.jitter: 0.9 is not between 0 and 0.5`},
		"TLS policy":        {host + "[delivery]\ntls = \"always\"\n", `c.toml: delivery.tls: `},
		"no connections":    {host + "[delivery]\nmax_connections = 0\n", `c.toml: delivery.max_connections: 0 is less than 1`},
		"port too large":    {host + "[delivery]\nport = 70000\n", `c.toml:3: delivery.port: `},
		"address family":    {host + "[dns]\nfamily = \"ipv4\"\n", `c.toml: dns.family: "ipv4" is not prefer4, prefer6, only4 or only6`},
		"route to nowhere":  {host + "[[route]]\ndomains = [\"*\"]\n", `c.toml: route[0].next_hops: required`},
		"route for nothing": {host + "[[route]]\nnext_hops = [\"127.0.0.1:25\"]\n", `c.toml: route[0].domains: required`},
		"next hop":          {host + "[[route]]\ndomains = [\"*\"]\nnext_hops = [\"::1:25:x\"]\n", `c.toml: route[0].next_hops[0]: `},

		"source address":        {source + "address = \"192.0.2\"\n", `c.toml: source[0].address: "192.0.2" is not an IP address`},
		"source without name":   {host + "[[source]]\n", `c.toml: source[0].name: required`},
		"same source twice":     {source + "[[source]]\nname = \"ip1\"\n", `c.toml: source[1].name: "ip1" is there twice`},
		"pool of nothing":       {host + "[[pool]]\nname = \"bulk\"\n", `c.toml: pool[0].sources: required`},
		"pool of a stranger":    {source + "[[pool]]\nname = \"bulk\"\nsources = [{ source = \"ip2\" }]\n", `c.toml: pool[0].sources[0].source: no [[source]] is named "ip2"`},
		"weight below nothing":  {source + "[[pool]]\nname = \"bulk\"\nsources = [{ source = \"ip1\", weight = -1 }]\n", `c.toml: pool[0].sources[0].weight: -1 is less than 1`},
		"same pool twice":       {source + strings.Repeat("[[pool]]\nname = \"b\"\nsources = [{ source = \"ip1\" }]\n", 2), `c.toml: pool[1].name: "b" is there twice`},
		"same tenant twice":     {tenant + "[[tenant]]\nname = \"acme\"\n", `c.toml: tenant[1].name: "acme" is there twice`},
		"tenant without name":   {host + "[[tenant]]\n", `c.toml: tenant[0].name: "" is not 1 to 64 characters long`},
		"tenant's max_queued":   {tenant + "max_queued = -1\n", `c.toml: tenant[0].max_queued: -1 is negative`},
		"tenant's weight":       {tenant + "weight = -1\n", `c.toml: tenant[0].weight: -1 is not between 1 and 100000`},
		"campaign's weight":     {tenant + "campaigns = [{ name = \"a\" }, { name = \"b\", weight = 100001 }]\n", `c.toml: tenant[0].campaigns[1].weight: 100001 is not between 1 and 100000`},
		"campaign without name": {tenant + "campaigns = [{ weight = 2 }]\n", `c.toml: tenant[0].campaigns[0].name: required`},
		"same campaign twice":   {tenant + "campaigns = [{ name = \"a\" }, { name = \"a\" }]\n", `c.toml: tenant[0].campaigns[1].name: "a" is there twice`},
		"tenant's pool":         {tenant + "pool = \"bulk\"\n", `c.toml: tenant[0].pool: no [[pool]] or [[source]] is named "bulk"`},
		"tenant's domain":       {tenant + "sender_domains = [\"a@example.com\"]\n", `c.toml: tenant[0].sender_domains[0]: `},
		"key without a file":    {host + "[[dkim]]\ndomain = \"example.com\"\nselector = \"s1\"\n", `c.toml: dkim[0].key_file: required`},
		"missing key file":      {host + "[[dkim]]\ndomain = \"example.com\"\nselector = \"s1\"\nkey_file = '" + missing + "'\n", `c.toml: dkim[0].key_file: open ` + missing + `: no such file or directory`},
		"unsigned":              {host + "[signing]\nunsigned = \"no\"\n", `c.toml: signing.unsigned: "no" is not defer or send`},
		"compression":           {host + "[events]\nfile_compress = \"bzip2\"\n", `c.toml: events.file_compress: "bzip2" is not none, gzip or zstd`},
		"no retention":          {host + "[events]\nretention = \"0s\"\n", `c.toml: events.retention: 0s is not positive`},
		"bounce domain":         {host + "[bounce]\ndomain = \"b@example.com\"\n", `c.toml: bounce.domain: `},
		"missing shaping file":  {host + "[shaping]\nfiles = ['" + missing + "']\n", `c.toml: shaping.files: open ` + missing + `: no such file or directory`},
		"shaping file misspelt": {host + "[shaping]\nfiles = ['" + misspelt(t, dir) + "']\n", `conections: unknown key; did you mean "connections"?`},
		"log level":             {host + "[log]\nlevel = \"verbose\"\n", `c.toml: log.level: "verbose" is not debug, info, warn or error`},
		"log format":            {host + "[log]\nformat = \"xml\"\n", `c.toml: log.format: "xml" is not text or json`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, err := Parse("c.toml", []byte(tt.text))
			var ps Problems
			if !errors.As(err, &ps) || cfg != nil {
				t.Fatalf("got %v and %v, want Problems and no configuration", cfg, err)
			}
			if len(ps) != 1 || !strings.Contains(ps[0].String(), tt.want) {
				t.Errorf("got  %v\nwant %s", ps, tt.want)
			}
		})
	}
}

// misspelt writes a shaping file with a mistake.
func misspelt(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "shaping.toml")
	if err := os.WriteFile(name, []byte("[default]\nconections = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestEveryProblemIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := Parse("c.toml", []byte("hostnam = \"x\"\n[queue]\njitter = 2.0\nretry = []\n[log]\nlevel = \"loud\"\n"))
	var ps Problems
	if !errors.As(err, &ps) {
		t.Fatal(err)
	}
	var keys []string
	for _, p := range ps {
		keys = append(keys, p.Key)
	}
	if d := cmp.Diff([]string{"hostnam", "hostname", "queue.retry", "queue.jitter", "log.level"}, keys); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestFileThatIsNotThereIsNoProblemOfItsContents(t *testing.T) {
	t.Parallel()
	_, err := Load(filepath.Join(t.TempDir(), "none.toml"))
	var ps Problems
	if !errors.Is(err, os.ErrNotExist) || errors.As(err, &ps) {
		t.Errorf("got %v, want an error of reading the file", err)
	}
}

func TestEntriesOfListsHaveDefaults(t *testing.T) {
	t.Parallel()
	cfg, err := Parse("c.toml", []byte(host+`
[inject]
max_message_size = "10MiB"
[[smtp]]
listen = "127.0.0.1:25"
relay_from = ["127.0.0.0/8"]
[[smtp]]
listen = "127.0.0.1:26"
allow_loopback_auth = true
max_message_size = "1MiB"
max_recipients = 5
idle_timeout = "1m"
[[source]]
name = "ip1"
[[pool]]
name = "bulk"
sources = [{ source = "ip1" }]
[[tenant]]
name = "acme"
pool = "ip1"
`))
	if err != nil {
		t.Fatal(err)
	}
	first, second := cfg.SMTP[0], cfg.SMTP[1]
	if first.Role != RoleSubmission || first.Tenant != DefaultTenant || first.MaxRecipients != 1000 || first.MaxMessageSize != 10<<20 {
		t.Errorf("first listener: %+v", first)
	}
	if second.MaxMessageSize != 1<<20 || second.MaxRecipients != 5 || second.IdleTimeout != time.Minute || second.MaxConnections != 2000 {
		t.Errorf("second listener: %+v", second)
	}
	if w := cfg.Pool[0].Sources[0].Weight; w != 1 {
		t.Errorf("weight of a member %d, want 1", w)
	}
	if w := cfg.Tenant[0].Weight; w != 1 {
		t.Errorf("weight of a tenant %d, want 1", w)
	}
}

func TestSizesAreReadAndWrittenInTheirUnits(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]ByteSize{
		"0": 0, "1": 1, "7B": 7, "10kB": 10_000, "10KiB": 10 << 10, "3MB": 3_000_000, "64MiB": 64 << 20, "2GiB": 2 << 30, "1TiB": 1 << 40,
	} {
		var s ByteSize
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: got %d, %v, want %d", text, s, err, want)
		}
		var again ByteSize
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%s: written as %s and read as %d, %v", text, s, again, err)
		}
	}
	for _, text := range []string{"", "B", "MiB", "-1", "+1", "1.5MiB", "1 MiB", "0x10", "1e3", "1mib", "8388608TiB", "99999999999999999999"} {
		var s ByteSize
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken for %d bytes", text, s)
		}
	}
}

func TestNearestKeyIsFoundByItsLetters(t *testing.T) {
	t.Parallel()
	known := knownKeys(reflect.TypeFor[Config](), "")
	for typed, want := range map[string]string{
		"hostnme": "hostname", "quue.retry": "queue.retry", "smtp.relayfrom": "smtp.relay_from", "route.nexthops": "route.next_hops",
		"retention": "events.retention", "dkim.keyfile": "dkim.key_file", "": "", "xxxxxxxxxxxx.yyyyyyyyyyy": "",
	} {
		if got := nearest(typed, known); got != want {
			t.Errorf("%q: got %q, want %q", typed, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"tradewind.toml", "quickstart.toml"} {
		data, err := Shipped(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Add(host + "[[smtp]]\nlisten = \":25\"\nrelay_from = [\"::/0\"]\n[queue]\nretry = [\"1s\"]\n")
	f.Add(host + "[http]\nmax_body = \"1TiB\"\napi = \"[::1]:80\"\ntrust_loopback = true\n")
	f.Add(host + "[[pool]]\nname = \"\\u0000\"\nsources = [{ source = \"x\", weight = -9223372036854775808 }]\n")
	f.Fuzz(func(t *testing.T, text string) {
		// Files that a configuration names are opened; a fuzzer must not
		// choose which.
		if strings.Contains(text, "/") || len(text) > 16<<10 {
			return
		}
		cfg, err := Parse("fuzz.toml", []byte(text))
		if (cfg == nil) == (err == nil) {
			t.Fatalf("got %v and %v; want one of them", cfg, err)
		}
		var ps Problems
		if err != nil && !errors.As(err, &ps) {
			t.Fatalf("%v is not Problems", err)
		}
		if cfg == nil {
			return
		}
		for _, s := range cfg.SMTP {
			for _, p := range s.RelayFrom {
				if p.Bits() == 0 {
					t.Fatalf("an open relay passed: %v", p)
				}
			}
		}
		if _, problems := cfg.ShapingRules(); len(problems) > 0 {
			t.Fatal(problems)
		}
	})
}
