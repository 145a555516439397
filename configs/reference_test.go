package configs

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tradewind-mta/tradewind/mta"
)

// write makes TestConfigurationPageAgreesWithTheReferenceFile write the page
// instead of reading it: go test ./configs -run Page -write.
var write = flag.Bool("write", false, "write docs/CONFIG.md")

// setting is one key of the reference file with the words above it.
type setting struct {
	table string // "smtp", "delivery.timeouts"; "" for the top
	key   string
	value string
	words string
}

func (s setting) path() string { return strings.TrimPrefix(s.table+"."+s.key, ".") }

// reference is the reference file taken apart.
type reference struct {
	settings []setting
	tables   []string // in order, "" first
	words    map[string]string
	// toml is the file with every setting uncommented.
	toml []byte
}

var (
	settingLine = regexp.MustCompile(`^#([a-z_0-9]+) = (.+)$`)
	tableLine   = regexp.MustCompile(`^#?\[+([a-z_.]+)\]+$`)
)

func readReference(t *testing.T) *reference {
	t.Helper()
	data, err := Shipped("tradewind.toml")
	if err != nil {
		t.Fatal(err)
	}
	r := &reference{tables: []string{""}, words: map[string]string{}}
	table := ""
	var words []string
	for i, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		out := line
		switch {
		case line == "":
			if len(words) > 0 && table == "" && len(r.settings) == 0 && r.words[""] == "" {
				r.words[""] = strings.Join(words, " ") // what the file begins with
			}
			words = nil
		case tableLine.MatchString(line):
			table = tableLine.FindStringSubmatch(line)[1]
			r.tables = append(r.tables, table)
			r.words[table] = strings.Join(words, " ")
			words, out = nil, strings.TrimPrefix(line, "#")
		case settingLine.MatchString(line):
			m := settingLine.FindStringSubmatch(line)
			r.settings = append(r.settings, setting{table, m[1], m[2], strings.Join(words, " ")})
			words, out = nil, line[1:]
		case line == "#", strings.HasPrefix(line, "# "):
			words = append(words, strings.TrimPrefix(strings.TrimPrefix(line, "#"), " "))
		default:
			t.Fatalf("tradewind.toml:%d: %q is neither a setting, a table nor words", i+1, line)
		}
		r.toml = append(append(r.toml, out...), '\n')
	}
	return r
}

func TestReferenceFileShowsEveryKeyAtItsDefault(t *testing.T) {
	t.Parallel()
	r := readReference(t)
	got, problems := decode("tradewind.toml", r.toml)
	for _, p := range problems {
		t.Error(p)
	}
	if got == nil {
		t.FailNow()
	}
	want := Default()
	// What has no default, because only the operator can know it.
	want.Hostname = "mta1.example.com"
	listener := DefaultSMTP()
	listener.Listen, listener.RelayFrom = "127.0.0.1:2525", []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	want.SMTP = []SMTP{listener}
	want.Route = []mta.Route{{Domains: []string{"internal.example.com"}, NextHops: []string{"relay.example.com:25"}}}
	want.Source = []mta.Source{{Name: "ip1", Address: "192.0.2.10", EHLO: "mta1.example.com"}}
	want.Pool = []mta.Pool{{Name: "bulk", Sources: []mta.PoolMember{{Source: "ip1", Weight: 1}}}}
	want.DKIM = []DKIM{{Domain: "example.com", Selector: "s1", KeyFile: "/etc/tradewind/keys/example.com.s1.pem"}}
	want.Tenant = []Tenant{{Name: "acme", Weight: 1}}
	if d := cmp.Diff(&want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("reference file and defaults differ (-default +file):\n%s", d)
	}

	shown := map[string]int{}
	for _, s := range r.settings {
		shown[s.path()]++
		if s.words == "" {
			t.Errorf("%s: stands there without a word", s.path())
		}
	}
	tables := map[string]bool{}
	for _, k := range leaves(reflect.TypeFor[Config](), "") {
		tables[k.table] = true
		if n := shown[k.path()]; n != 1 {
			t.Errorf("%s: stands in the reference file %d times, want once", k.path(), n)
		}
		delete(shown, k.path())
	}
	for path := range shown {
		t.Errorf("%s: no such key", path)
	}
	for _, table := range r.tables {
		if !tables[table] {
			t.Errorf("[%s]: no such table", table)
		}
		if r.words[table] == "" {
			t.Errorf("[%s]: stands there without a word", table)
		}
	}
}

func TestReferenceFileUncommentedNeedsOnlyItsKeyFile(t *testing.T) {
	t.Parallel()
	_, err := Parse("tradewind.toml", readReference(t).toml)
	want := "tradewind.toml: dkim[0].key_file: open /etc/tradewind/keys/example.com.s1.pem: no such file or directory"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestReferenceFileAsShippedNeedsOnlyAHostname(t *testing.T) {
	t.Parallel()
	data, err := Shipped("tradewind.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse("tradewind.toml", data)
	want := "tradewind.toml: hostname: required: the name this host greets with, such as mta1.example.com"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	cfg, err := Parse("tradewind.toml", append([]byte("hostname = \"mta1.example.com\"\n"), data...))
	if err != nil {
		t.Fatal(err)
	}
	def := Default()
	def.Hostname = "mta1.example.com"
	if d := cmp.Diff(&def, cfg, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("-default +shipped:\n%s", d)
	}
}

func TestQuickstartFileLoads(t *testing.T) {
	t.Parallel()
	cfg, err := Load("quickstart.toml")
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.SMTP) != 1 || cfg.HTTP.API == "" || cfg.HTTP.Admin == "" || len(cfg.Route) != 1 {
		t.Errorf("the quickstart serves SMTP %v, API %q, admin %q and routes %v; it should have one of each",
			cfg.SMTP, cfg.HTTP.API, cfg.HTTP.Admin, cfg.Route)
	}
}

// leaf is a key of the configuration tree.
type leaf struct {
	setting
	typ reflect.Type
}

// leaves lists the keys below t that hold a value.
func leaves(t reflect.Type, table string) (list []leaf) {
	for f := range t.Fields() {
		name := f.Tag.Get("toml")
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		// The members of a pool and the campaigns of a tenant are written inline.
		if inner.Kind() == reflect.Struct && inner.PkgPath() != "net/netip" && inner != reflect.TypeFor[mta.PoolMember]() && inner != reflect.TypeFor[mta.Campaign]() {
			list = append(list, leaves(inner, strings.TrimPrefix(table+"."+name, "."))...)
			continue
		}
		list = append(list, leaf{setting{table: table, key: name}, f.Type})
	}
	return list
}

// typeName says what may stand behind a key.
func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration"
	case reflect.TypeFor[ByteSize]():
		return "size"
	case reflect.TypeFor[netip.Prefix]():
		return "network"
	case reflect.TypeFor[mta.PoolMember]():
		return "{ source, weight }"
	case reflect.TypeFor[mta.Campaign]():
		return "{ name, weight }"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "string"
	case reflect.Float64:
		return "number"
	}
	return "integer"
}

// without are the keys of which the reference file shows an example instead of
// a default.
func without(path string) bool {
	return slices.Contains([]string{
		"hostname", "smtp.listen", "smtp.relay_from", "route.domains", "route.next_hops", "source.name",
		"source.address", "source.ehlo", "pool.name", "pool.sources", "dkim.domain", "dkim.selector",
		"dkim.key_file", "tenant.name",
	}, path)
}

const (
	pageBegins = "<!-- keys: written by go test ./configs -run Page -write -->\n"
	pageEnds   = "<!-- end of keys -->\n"
)

// page renders the tables of docs/CONFIG.md.
func page(r *reference) []byte {
	types := map[string]string{}
	for _, k := range leaves(reflect.TypeFor[Config](), "") {
		types[k.path()] = typeName(k.typ)
	}
	var b bytes.Buffer
	for _, table := range r.tables {
		switch {
		case table == "":
			fmt.Fprintf(&b, "\n## Top level\n")
		case bytes.Contains(r.toml, []byte("\n[["+table+"]]\n")):
			fmt.Fprintf(&b, "\n## [[%s]]\n\n%s\n", table, r.words[table])
		default:
			fmt.Fprintf(&b, "\n## [%s]\n\n%s\n", table, r.words[table])
		}
		fmt.Fprintf(&b, "\n| key | type | default | meaning |\n|---|---|---|---|\n")
		for _, s := range r.settings {
			if s.table != table {
				continue
			}
			def := "`" + s.value + "`"
			if without(s.path()) {
				def = "none; for example `" + s.value + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.key, types[s.path()], def, s.words)
		}
	}
	return append(b.Bytes(), '\n')
}

func TestConfigurationPageAgreesWithTheReferenceFile(t *testing.T) {
	t.Parallel()
	const file = "../docs/CONFIG.md"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, begins := strings.Cut(string(data), pageBegins)
	got, tail, ends := strings.Cut(rest, pageEnds)
	if !begins || !ends {
		t.Fatalf("%s: the comments around the keys are gone", file)
	}
	want := string(page(readReference(t)))
	if *write {
		if err := os.WriteFile(file, []byte(head+pageBegins+want+pageEnds+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s is not what the reference file says; run go test ./configs -run Page -write (-file +page):\n%s", file, d)
	}
}
