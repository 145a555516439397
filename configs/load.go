package configs

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"sort"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/tradewind-mta/tradewind/inject"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/throttle"
)

//go:embed *.toml
var shipped embed.FS

// Shipped returns a shipped file: "tradewind.toml", "quickstart.toml",
// "shaping.toml" or "bounce.toml".
func Shipped(name string) ([]byte, error) { return fs.ReadFile(shipped, name) }

// Problem is one thing wrong with a configuration.
type Problem struct {
	File string
	Key  string // path, such as queue.retry or smtp[1].listen; "" for the file
	Text string
}

func (p Problem) String() string {
	if p.Key == "" {
		return p.File + ": " + p.Text
	}
	return p.File + ": " + p.Key + ": " + p.Text
}

// Problems is every problem of a configuration; it is an error.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Load reads and checks a configuration file. The error is Problems, or that of
// reading the file.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configs: %w", err)
	}
	return Parse(path, data)
}

// Parse reads and checks configuration text; name stands in its problems.
func Parse(name string, data []byte) (*Config, error) {
	cfg, problems := decode(name, data)
	if cfg != nil {
		for _, err := range cfg.validate() {
			problems = append(problems, asProblem(name, err))
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return cfg, nil
}

func decode(name string, data []byte) (*Config, Problems) {
	cfg := Default()
	md, err := toml.Decode(string(data), &cfg)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return nil, Problems{{File: fmt.Sprintf("%s:%d", name, pe.Position.Line), Key: pe.LastKey, Text: pe.Message + pe.Usage}}
		}
		return nil, Problems{mistyped(name, err)}
	}
	var problems Problems
	known := knownKeys(reflect.TypeFor[Config](), "")
	unknown := ""
	for _, key := range md.Undecoded() {
		k := key.String()
		if unknown != "" && strings.HasPrefix(k, unknown) {
			continue // what an unknown table holds is unknown as well
		}
		unknown = k + "."
		text := "unknown key"
		if near := nearest(k, known); near != "" {
			text += "; did you mean " + near + "?"
		}
		problems = append(problems, Problem{File: name, Key: k, Text: text})
	}
	for i := range cfg.SMTP {
		def := DefaultSMTP()
		if cfg.SMTP[i].Role == RoleBounce {
			def = defaultBounceSMTP()
		}
		def.MaxMessageSize = min(def.MaxMessageSize, cfg.Inject.MaxMessageSize)
		fill(&cfg.SMTP[i], def)
	}
	for i := range cfg.Pool {
		for j := range cfg.Pool[i].Sources {
			if cfg.Pool[i].Sources[j].Weight == 0 {
				cfg.Pool[i].Sources[j].Weight = 1
			}
		}
	}
	for i := range cfg.Tenant {
		if cfg.Tenant[i].Weight == 0 {
			cfg.Tenant[i].Weight = 1
		}
		for j := range cfg.Tenant[i].Campaigns {
			if cfg.Tenant[i].Campaigns[j].Weight == 0 {
				cfg.Tenant[i].Campaigns[j].Weight = 1
			}
		}
	}
	return &cfg, problems
}

// typeError is how the TOML package words a value of the wrong type.
var typeError = regexp.MustCompile(`^toml: (?:line ([0-9]+) )?\(last key "([^"]*)"\): (.*)$`)

// mistyped is the problem of a value that has the wrong type; the TOML package
// stops at the first of them.
func mistyped(file string, err error) Problem {
	m := typeError.FindStringSubmatch(err.Error())
	if m == nil {
		return Problem{File: file, Text: err.Error()}
	}
	if m[1] != "" {
		file += ":" + m[1]
	}
	return Problem{File: file, Key: m[2], Text: m[3]}
}

// fill sets the zero fields of an array entry to their defaults: TOML gives
// array entries no way to inherit.
func fill[T any](v *T, defaults T) {
	to, from := reflect.ValueOf(v).Elem(), reflect.ValueOf(defaults)
	for i := range to.NumField() {
		if to.Field(i).IsZero() {
			to.Field(i).Set(from.Field(i))
		}
	}
}

// keyed is an error about one key.
type keyed struct {
	key string
	err error
}

func (k keyed) Error() string { return k.key + ": " + k.err.Error() }

func asProblem(file string, err error) Problem {
	var k keyed
	if errors.As(err, &k) {
		return Problem{File: file, Key: k.key, Text: k.err.Error()}
	}
	key, text, found := strings.Cut(err.Error(), ": ")
	if !found {
		return Problem{File: file, Text: err.Error()}
	}
	return Problem{File: file, Key: key, Text: text}
}

// validate returns every problem with the values.
func (c *Config) validate() (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, keyed{key, fmt.Errorf(format, args...)})
	}
	under := func(prefix string, list []error) {
		for _, err := range list {
			key, text, _ := strings.Cut(err.Error(), ": ")
			bad(prefix+key, "%s", text)
		}
	}
	if c.Hostname == "" {
		bad("hostname", "required: the name this host greets with, such as mta1.example.com")
	} else if _, err := message.ParseDomain(c.Hostname); err != nil {
		bad("hostname", "%v", err)
	}
	if c.DataDir == "" {
		bad("data_dir", "required")
	}
	for i := range c.SMTP {
		c.validateSMTP(i, bad)
	}
	c.validateHTTP(bad)
	c.Store.validate(bad)
	errs = append(errs, c.Queue.Validate()...)
	errs = append(errs, c.Delivery.Validate()...)
	for i := range c.Route {
		under(fmt.Sprintf("route[%d].", i), c.Route[i].Validate())
	}
	c.validateSources(bad, under)
	for i, k := range c.DKIM {
		key := fmt.Sprintf("dkim[%d]", i)
		for field, v := range map[string]string{"domain": k.Domain, "selector": k.Selector, "key_file": k.KeyFile} {
			if v == "" {
				bad(key+"."+field, "required")
			}
		}
		if k.KeyFile != "" {
			if f, err := os.Open(k.KeyFile); err != nil {
				bad(key+".key_file", "%v", err)
			} else {
				f.Close()
			}
		}
	}
	if c.Signing.Unsigned != "defer" && c.Signing.Unsigned != "send" {
		bad("signing.unsigned", "%q is not defer or send", c.Signing.Unsigned)
	}
	if c.Signing.Expiry < 0 {
		bad("signing.expiry", "%v is negative", c.Signing.Expiry)
	}
	names := map[string]bool{}
	for i, t := range c.Tenant {
		key := fmt.Sprintf("tenant[%d]", i)
		if err := CheckTenant(t.Name); err != nil {
			bad(key+".name", "%v", err)
		} else if names[t.Name] {
			bad(key+".name", "%q is there twice", t.Name)
		}
		names[t.Name] = true
		if !weighs(t.Weight) {
			bad(key+".weight", "%d is not between 1 and %d", t.Weight, maxWeight)
		}
		campaigns := map[string]bool{}
		for j, cw := range t.Campaigns {
			ckey := fmt.Sprintf("%s.campaigns[%d]", key, j)
			if cw.Name == "" {
				bad(ckey+".name", "required")
			} else if campaigns[cw.Name] {
				bad(ckey+".name", "%q is there twice", cw.Name)
			}
			campaigns[cw.Name] = true
			if !weighs(cw.Weight) {
				bad(ckey+".weight", "%d is not between 1 and %d", cw.Weight, maxWeight)
			}
		}
		if t.Pool != "" && !c.hasPool(t.Pool) {
			bad(key+".pool", "no [[pool]] or [[source]] is named %q", t.Pool)
		}
		if _, err := inject.ParseVerp(t.Verp); err != nil {
			bad(key+".verp", "%v", err)
		}
		if t.MaxQueued < 0 {
			bad(key+".max_queued", "%d is negative", t.MaxQueued)
		}
		for j, d := range t.SenderDomains {
			if _, err := message.ParseDomain(d); err != nil {
				bad(fmt.Sprintf("%s.sender_domains[%d]", key, j), "%v", err)
			}
		}
	}
	switch c.Events.FileCompress {
	case "none", "gzip", "zstd":
	default:
		bad("events.file_compress", "%q is not none, gzip or zstd", c.Events.FileCompress)
	}
	if c.Events.Retention <= 0 {
		bad("events.retention", "%v is not positive", c.Events.Retention)
	}
	if c.Events.CSVFile == "" && len(c.Events.CSVRecords)+len(c.Events.CSVFields) > 0 {
		bad("events.csv_file", "is missing, but csv_records or csv_fields are set")
	}
	if c.Events.WebhooksPerTenant < 0 {
		bad("events.webhooks_per_tenant", "%d is negative", c.Events.WebhooksPerTenant)
	}
	switch c.DNS.Family {
	case "prefer4", "prefer6", "only4", "only6":
	default:
		bad("dns.family", "%q is not prefer4, prefer6, only4 or only6", c.DNS.Family)
	}
	c.validateBounce(bad)
	c.Suppression.validate(bad)
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		bad("log.level", "%q is not debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		bad("log.format", "%q is not text or json", c.Log.Format)
	}
	if _, problems := c.ShapingRules(); len(problems) > 0 {
		for _, p := range problems {
			text := p.String()
			if p.Line == 0 {
				text = p.Message // the file itself
			}
			errs = append(errs, keyed{"shaping.files", errors.New(text)})
		}
	}
	return errs
}

func (c *Config) validateSMTP(i int, bad func(key, format string, args ...any)) {
	s := &c.SMTP[i]
	key := fmt.Sprintf("smtp[%d].", i)
	if _, _, err := net.SplitHostPort(s.Listen); err != nil {
		bad(key+"listen", "%q is not address:port", s.Listen)
	}
	if new(message.Durability).UnmarshalText([]byte(s.Durability)) != nil {
		bad(key+"durability", "%q is not fsync or os", s.Durability)
	}
	if s.Role != RoleSubmission && s.Role != RoleBounce {
		bad(key+"role", "%q is not submission or bounce", s.Role)
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		bad(key+"tls_cert", "tls_cert and tls_key go together")
	}
	if s.ImplicitTLS && s.TLSCert == "" {
		bad(key+"implicit_tls", "needs tls_cert and tls_key")
	}
	for field, file := range map[string]string{"tls_cert": s.TLSCert, "tls_key": s.TLSKey} {
		if file == "" {
			continue
		}
		if f, err := os.Open(file); err != nil {
			bad(key+field, "%v", err)
		} else {
			f.Close()
		}
	}
	if s.Role == RoleSubmission && len(s.RelayFrom) == 0 && s.TLSCert == "" && !s.AllowLoopbackAuth {
		bad(key+"relay_from", "nobody could submit here: AUTH needs tls_cert and tls_key, and relay_from names no network")
	}
	if s.Role == RoleBounce {
		c.validateBounceListener(key, s, bad)
	}
	for j, p := range s.RelayFrom {
		if p.Bits() == 0 {
			bad(fmt.Sprintf("%srelay_from[%d]", key, j), "%s would make an open relay", p)
		}
	}
	if err := CheckTenant(s.Tenant); err != nil {
		bad(key+"tenant", "%v", err)
	}
	if s.MaxRecipients < 1 {
		bad(key+"max_recipients", "%d is less than 1", s.MaxRecipients)
	}
	if s.MaxMessageSize > c.Inject.MaxMessageSize {
		bad(key+"max_message_size", "%s is more than inject.max_message_size", s.MaxMessageSize)
	}
}

func (c *Config) validateHTTP(bad func(key, format string, args ...any)) {
	for field, addr := range map[string]string{"api": c.HTTP.API, "tracking": c.HTTP.Tracking, "admin": c.HTTP.Admin} {
		if addr == "" {
			continue
		}
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			bad("http."+field, "%q is not address:port", addr)
			continue
		}
		if c.HTTP.TrustLoopback && field != "tracking" && !isLoopback(host) {
			bad("http.trust_loopback", "http.%s listens on %s, which is not loopback", field, addr)
		}
	}
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func (c *Config) validateSources(bad func(key, format string, args ...any), under func(string, []error)) {
	sources := map[string]bool{}
	for i := range c.Source {
		s := &c.Source[i]
		key := fmt.Sprintf("source[%d].", i)
		under(key, s.Validate())
		if sources[s.Name] {
			bad(key+"name", "%q is there twice", s.Name)
		}
		sources[s.Name] = true
	}
	pools := map[string]bool{}
	for i, p := range c.Pool {
		key := fmt.Sprintf("pool[%d].", i)
		if p.Name == "" {
			bad(key+"name", "required")
		} else if pools[p.Name] {
			bad(key+"name", "%q is there twice", p.Name)
		}
		pools[p.Name] = true
		if len(p.Sources) == 0 {
			bad(key+"sources", "required")
		}
		for j, m := range p.Sources {
			if !sources[m.Source] {
				bad(fmt.Sprintf("%ssources[%d].source", key, j), "no [[source]] is named %q", m.Source)
			}
			if m.Weight < 1 {
				bad(fmt.Sprintf("%ssources[%d].weight", key, j), "%d is less than 1", m.Weight)
			}
		}
	}
}

func (c *Config) hasPool(name string) bool {
	if name == "default" {
		return true
	}
	for _, p := range c.Pool {
		if p.Name == name {
			return true
		}
	}
	for _, s := range c.Source {
		if s.Name == name {
			return true
		}
	}
	return false
}

// maxWeight is the largest weight of a tenant or campaign: beyond it the one would
// send for hours before another's turn.
const maxWeight = 100_000

func weighs(weight int) bool { return 1 <= weight && weight <= maxWeight }

// CheckTenant says what is wrong with a tenant's name: 1 to 64 letters, digits,
// dots, hyphens or underscores, because it stands in keys, labels and headers.
func CheckTenant(name string) error {
	if name == "" || len(name) > 64 {
		return fmt.Errorf("%q is not 1 to 64 characters long", name)
	}
	for _, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '-', r == '_':
		default:
			return fmt.Errorf("%q holds %q; letters, digits, dot, hyphen and underscore are allowed", name, r)
		}
	}
	return nil
}

// ShapingRules loads the shipped shaping rules and the files laid over them.
func (c *Config) ShapingRules() (*throttle.Rules, []throttle.Problem) {
	base, err := Shipped("shaping.toml")
	if err != nil {
		return nil, []throttle.Problem{{File: "shaping.toml", Message: err.Error()}}
	}
	files := []throttle.File{{Name: "shaping.toml (shipped)", Data: base}}
	for _, name := range c.Shaping.Files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, []throttle.Problem{{File: name, Message: err.Error()}}
		}
		files = append(files, throttle.File{Name: name, Data: data})
	}
	return throttle.Load(files...)
}

// knownKeys lists the paths of every key, for suggestions.
func knownKeys(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("toml")
		if name == "" || name == "-" {
			continue
		}
		path := prefix + name
		keys = append(keys, path)
		ft := f.Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct && ft.PkgPath() != "net/netip" {
			keys = append(keys, knownKeys(ft, path+".")...)
		}
	}
	return keys
}

// nearest is the known key most like k, or "" when none is like it.
func nearest(k string, known []string) string {
	best, bestAt := "", len(k)/2+1
	sort.Strings(known)
	for _, c := range known {
		// At least so many letters differ; a key of a megabyte costs nothing.
		if max(len(k), len(c))-min(len(k), len(c)) >= bestAt {
			continue
		}
		if d := distance(k, c); d < bestAt {
			best, bestAt = c, d
		}
	}
	if best != "" {
		return best
	}
	// The right key in the wrong table.
	last := k[strings.LastIndexByte(k, '.')+1:]
	for _, c := range known {
		if c == last || strings.HasSuffix(c, "."+last) {
			return c
		}
	}
	return ""
}

// distance is the Levenshtein distance of a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost++
			}
			prev = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
