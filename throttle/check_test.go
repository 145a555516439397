package throttle

import (
	"os"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// TestCheckCatchesABrokenRuleOfEachKind breaks one thing at a time.
func TestCheckCatchesABrokenRuleOfEachKind(t *testing.T) {
	t.Parallel()
	rule := func(name, more string) string {
		return "[[provider.p.rule]]\nname = \"" + name + "\"\nscope = \"source\"\naction = \"backoff\"\n" + more + "\n"
	}
	const p = "[provider.p]\nmx_suffix = [\".p.example\"]\n"
	for name, c := range map[string]struct{ doc, want string }{
		"suffix ends in a dot":      {"[provider.p]\nmx_suffix = [\".p.example.\"]\n", "test.toml:1 provider.p.p: mx_suffix \".p.example.\" never matches: it ends in a dot"},
		"suffix without a dot":      {"[provider.p]\nmx_suffix = [\"p.example\"]\n", "a suffix begins with a dot"},
		"provider nothing leads to": {"[provider.p]\nconnections = 2\n", "test.toml:1 provider.p.p: unreachable"},
		"suffix claimed twice":      {p + "[provider.q]\nmx_suffix = [\".p.example\"]\n", "test.toml:3 provider.q.q: mx_suffix \".p.example\" already belongs to provider p (test.toml:1)"},
		"domain claimed twice":      {"[provider.p]\ndomain = [\"d.example\"]\n[provider.q]\ndomain = [\"d.example\"]\n", "already belongs to provider p"},
		"range claimed twice":       {"[provider.p]\naddress = [\"192.0.2.0/24\"]\n[provider.q]\naddress = [\"192.0.2.0/24\"]\n", "already belongs to provider p"},
		"no example":                {p + rule("r", `text = "x"`), "test.toml:3 provider.p.r: has no example reply"},
		"example that is no reply":  {p + rule("r", "text = \"x\"\nmatch = [\"hello\"]"), "does not begin with a reply code"},
		"pattern escaped too often": {p + rule("r", `pattern = '\\[HCM1\\]'`+"\nmatch = [\"421 [HCM1] later\"]"), "test.toml:3 provider.p.r: does not match its example"},
		"never matches":             {p + rule("r", "text = \"our system has detected\"\nmatch = [\"421 4.7.28 Gmail has detected\"]"), "can never match"},
		"matches what it must not":  {p + rule("r", "text = \"rate\"\nmatch = [\"421 rate\"]\nnot = [\"550 separate\"]"), "matches \"550 separate\", which it must not"},
		"shadowed by an earlier":    {p + rule("wide", "code = 4\nmatch = [\"421 x\"]") + rule("narrow", "code = 421\ntext = \"slow\"\nmatch = [\"421 slow\"]"), "test.toml:9 provider.p.narrow: shadowed: every example is taken by an earlier rule, such as test.toml:3 provider.p.wide"},
		"unknown warm-up":           {"[source.ip1]\nwarmup = \"fast\"\n", "test.toml:2 source.ip1.warmup: there is no [warmup.fast]"},
		"unknown reference":         {"[default]\nconnections = { value = 3, basis = \"published Z9 2026-01-01\" }\n", "Z9 is not in [reference]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all []string
			for _, p := range mustLoad(t, c.doc).Check() {
				all = append(all, p.String())
			}
			if got := strings.Join(all, "\n"); !strings.Contains(got, c.want) {
				t.Errorf("Check says:\n%s\nwant something with:\n%s", got, c.want)
			}
		})
	}
}

// TestLoadNamesFileLineKeyAndTheNearestKnownOne makes one mistake at a time.
func TestLoadNamesFileLineKeyAndTheNearestKnownOne(t *testing.T) {
	t.Parallel()
	rule := "[[default.rule]]\nname = \"r\"\ntext = \"x\"\nscope = \"source\"\naction = \"backoff\"\n"
	for name, c := range map[string]struct{ doc, want string }{
		"misspelt table":       {"[defaults]\n", `f.toml:1 defaults: unknown key; did you mean "default"?`},
		"misspelt key":         {"\n[provider.p]\nconections = 3\n", `f.toml:3 provider.p.conections: unknown key; did you mean "connections"?`},
		"misspelt rule key":    {rule + "patern = 'x'\n", `f.toml:6 default.rule[0].patern: unknown key; did you mean "pattern"?`},
		"unknown key":          {"[default]\nxyzzy = 1\n", "f.toml:2 default.xyzzy: unknown key"},
		"syntax":               {"[default]\nconnections = \n", "f.toml:2"},
		"wrong type":           {"[default]\nconnections = \"3\"\n", "f.toml:2 default.connections: must be a whole number"},
		"zero":                 {"[default]\nconnections = 0\n", "must be a whole number"},
		"bad rate":             {"[default]\nrate = \"100 a second\"\n", "f.toml:2 default.rate: \"100 a second\" is not a rate"},
		"too many rates":       {"[default]\nrate = [\"1/s\",\"2/s\",\"3/s\",\"4/s\",\"5/s\"]\n", "list of up to 4"},
		"bad tls":              {"[default]\ntls = \"maybe\"\n", "must be one of off, opportunistic, required, verify"},
		"hold too short":       {"[default]\nrecovery_hold = \"1m\"\n", "must be at least 10m0s"},
		"shared key of domain": {"[domain.\"d.example\"]\nprovider_rate = \"1/s\"\n", `f.toml:2 domain."d.example".provider_rate: may not be set for a domain`},
		"shared key of source": {"[source.ip1]\nprovider_connections = 1\n", "may not be set for a source"},
		"warm-up elsewhere":    {"[default]\nwarmup = \"x\"\n", "a warm-up belongs to a source"},
		"rule of a source":     {"[[source.ip1.rule]]\nname = \"r\"\n", "reply rules belong to"},
		"bad pattern":          {rule + "pattern = '('\n", "default.rule[0].pattern: error parsing regexp"},
		"bad scope":            {"[[default.rule]]\nname=\"r\"\ntext=\"x\"\nscope=\"ip\"\naction=\"none\"\n", "scope: must be one of"},
		"bad scope and action": {"[[default.rule]]\nname=\"r\"\ntext=\"x\"\nscope=\"ip\"\naction=\"explode\"\n", "action: must be one of"},
		"useless scope":        {"[[default.rule]]\nname=\"r\"\ntext=\"x\"\nscope=\"message\"\naction=\"backoff\"\n", "backoff cannot apply to a single message"},
		"bad trigger":          {rule + "trigger = \"often\"\n", `"3/1h"`},
		"recover too short":    {"[[default.rule]]\nname=\"r\"\ntext=\"x\"\nscope=\"source\"\naction=\"recover\"\nfor=\"1m\"\n", "at least 10m0s"},
		"same name twice":      {rule + rule, `f.toml:6 default.rule[1]: a rule named "r" stands above`},
		"drop what is not":     {"[[default.rule]]\nname=\"zz\"\ndrop=true\n", "there is no rule \"zz\" to drop"},
		"bad basis":            {"[default]\nconnections = {value = 1, basis = \"somebody\"}\n", `must begin with "published"`},
		"no value":             {"[default]\nconnections = {basis = \"guess\"}\n", "has no value"},
		"bad range":            {"[provider.p]\naddress = [\"192.0.2.1\"]\n", "is not an address range"},
		"reserved provider":    {"[provider.default]\n", "reserved"},
		"bad volumes":          {"[warmup.w]\nvolumes = [1, 0]\n", "0 is not a daily volume"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all []string
			_, problems := Load(File{Name: "f.toml", Data: []byte(c.doc)})
			for _, p := range problems {
				all = append(all, p.String())
			}
			if got := strings.Join(all, "\n"); !strings.Contains(got, c.want) {
				t.Errorf("Load says:\n%s\nwant something with:\n%s", got, c.want)
			}
		})
	}
}

func TestOperatorsFileIsLaidOverTheShippedOne(t *testing.T) {
	t.Parallel()
	one := `[provider.p]
mx_suffix = [".p.example"]
connections = 5
rate = "10/s"
[[provider.p.rule]]
name = "a"
text = "aaa"
scope = "source"
action = "backoff"
[[provider.p.rule]]
name = "b"
text = "bbb"
scope = "source"
action = "backoff"
`
	two := `[provider.p]
connections = 9
[[provider.p.rule]]
name = "own"
text = "a"
scope = "message"
action = "alert"
[[provider.p.rule]]
name = "b"
drop = true
`
	r, problems := Load(File{"one.toml", []byte(one)}, File{"two.toml", []byte(two)})
	for _, p := range problems {
		t.Error(p)
	}
	p := r.byName["p"]
	eff := r.effective(p, "", "")
	if v := eff.Value(KeyConnections); v.N != 9 || v.Origin.File != "two.toml" || v.Origin.Line != 2 {
		t.Errorf("connections = %v from %v", v, v.Origin)
	}
	if v := eff.Value(KeyRate); v.String() != "10/s" || v.Origin.File != "one.toml" {
		t.Errorf("rate = %v from %v", v, v.Origin)
	}
	var names []string
	for _, rule := range p.rules {
		names = append(names, rule.Name)
	}
	if got := strings.Join(names, " "); got != "own a" {
		t.Errorf("rules %q, want the operator's first and b gone", got)
	}
	r, _ = Load(File{"one.toml", []byte(one)}, File{"two.toml", []byte("[provider.p]\nreplace = true\ndomain = [\"d.example\"]\n")})
	if p := r.byName["p"]; len(p.rules) != 0 || len(p.MXSuffix) != 0 || r.effective(p, "", "").Value(KeyConnections) != nil {
		t.Error("replace = true left something of the earlier file")
	}
}

func FuzzLoad(f *testing.F) {
	data, err := os.ReadFile("../configs/shaping.toml")
	if err != nil {
		f.Fatal(err)
	}
	// Single tables of the shipped file make good seeds; the file as a whole
	// is too slow to mutate.
	for i, part := range strings.Split(string(data), "\n\n") {
		if i%10 == 0 {
			f.Add(part)
		}
	}
	f.Add("[default]\nrate = [\"1/s burst 1\", \"10/h\"]\n[provider.\"a b\"]\nmx_suffix='.x.y'\naddress=[\"::/0\"]\n")
	f.Add("[a.b]\nc.d = \"\"\"x\n\"\"\"\n[[e.f]]\n[[e.f]]\n'g' = [1,\n2] # x\n")
	f.Add("[brake.b]\nscope = \"tenant\"\nbounces = 0.1\nsample = 10\naction = \"pause\"\nfor = \"1h\"\n")
	f.Fuzz(func(t *testing.T, doc string) {
		r, problems := Load(File{Name: "f", Data: []byte(doc)})
		if len(problems) > maxProblems {
			t.Errorf("%d problems, want at most %d", len(problems), maxProblems)
		}
		_ = r.Check()
		// Whatever loads must also run.
		eng := New(r, Options{})
		l := eng.Lane(Target{Source: "ip1", Site: "s", Hosts: []string{"mx.x.y"}, Domain: "d.example"})
		g := l.Connect(epoch, mxAddr)
		s := l.Send(epoch, Mail{Domain: "d.example", Tenant: "t"})
		s.Release()
		g.Release()
		// Every key that the decoder saw in a table must have a line.
		var keys map[string]any
		if _, err := toml.Decode(doc, &keys); err != nil || len(doc) > maxFile {
			return
		}
		lines := positions(doc)
		for k := range keys {
			if !hasLine(lines, k) {
				t.Errorf("key %q has no line", k)
			}
		}
	})
}

// hasLine reports whether the key or anything below it was found.
func hasLine(lines map[string]int, key string) bool {
	for path := range lines {
		if path == key || strings.HasPrefix(path, key+"\x00") || strings.HasPrefix(path, key+"#") {
			return true
		}
	}
	return false
}
