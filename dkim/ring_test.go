package dkim

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/tradewind-mta/tradewind/message"
)

// rsaOf makes an RSA key of any size, for New to judge.
func rsaOf(t *testing.T, bits int) Secret {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return pemRSA(k)
}

func edKey(domain, selector, tenant string) KeyConfig {
	return KeyConfig{Domain: domain, Selector: selector, Tenant: tenant, PEM: testKeys()["ed25519"].PEM}
}

func TestNearestKeySignsAndNeverForAnotherTenant(t *testing.T) {
	t.Parallel()
	operator := edKey("*", "operator", "")
	operator.SigningDomain, operator.Additional = "esp.example.net", true
	fallback := edKey("*", "fallback", "fallen")
	fallback.SigningDomain = "fallen.example.net"
	partner := edKey("*.example.com", "partner", "acme")
	partner.SigningDomain, partner.Additional = "partner.example.org", true
	r := mustNew(t, Config{Keys: []KeyConfig{
		edKey("example.com", "shared", ""),
		edKey("*.example.com", "wild", ""),
		edKey("*.deep.example.com", "deep", ""),
		edKey("example.com", "acme1", "acme"),
		edKey("example.com", "acme2", "acme"),
		edKey("secret.example.org", "private", "acme"),
		edKey("*", "acmeany", "acme"),
		fallback, operator, partner,
	}})
	for _, c := range []struct{ domain, tenant, want string }{
		{"example.com", "", "shared@example.com operator@esp.example.net"},
		{"EXAMPLE.com", "other", "shared@example.com operator@esp.example.net"},
		{"example.com", "acme", "acme1@example.com acme2@example.com operator@esp.example.net"},
		{"a.example.com", "", "wild@example.com operator@esp.example.net"},
		{"a.b.example.com", "other", "wild@example.com operator@esp.example.net"},
		{"a.example.com", "acme", "wild@example.com partner@partner.example.org operator@esp.example.net"},
		{"deep.example.com", "", "wild@example.com operator@esp.example.net"},
		{"x.deep.example.com", "", "deep@deep.example.com operator@esp.example.net"},
		{"notexample.com", "", "operator@esp.example.net"},
		{"com", "", "operator@esp.example.net"},
		{"secret.example.org", "acme", "private@secret.example.org operator@esp.example.net"},
		{"secret.example.org", "other", "operator@esp.example.net"},
		{"secret.example.org", "", "operator@esp.example.net"},
		{"anything.example", "acme", "acmeany@anything.example operator@esp.example.net"},
		{"bücher.example", "acme", "acmeany@xn--bcher-kva.example operator@esp.example.net"},
		{"anything.example", "fallen", "fallback@fallen.example.net operator@esp.example.net"},
		{"not a domain", "acme", ""},
	} {
		var got []string
		for _, k := range r.Find(c.domain, c.tenant) {
			got = append(got, k.Selector+"@"+k.SigningDomain)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("mail from %s of tenant %q: got %s, want %s", c.domain, c.tenant, s, c.want)
		}

		_, own := r.pick(nil, strings.ToLower(c.domain), c.tenant)
		fields, err := r.Sign(t.Context(), Request{Message: corpus()["plain"], From: c.domain, Tenant: c.tenant, Now: signedAt})
		switch {
		case c.want == "":
			if !errors.Is(err, message.ErrBadAddress) {
				t.Errorf("mail from %s: got %v, want a bad address", c.domain, err)
			}
		case !own && c.domain != "bücher.example":
			if !errors.Is(err, ErrNoKey) || fields != nil {
				t.Errorf("mail from %s of %q: got %q, %v, want ErrNoKey: an additional signature is not enough", c.domain, c.tenant, fields, err)
			}
		default:
			if n := bytes.Count(fields, []byte("DKIM-Signature:")); n != len(got) || err != nil {
				t.Errorf("mail from %s of %q: got %d signatures, %v, want %d", c.domain, c.tenant, n, err, len(got))
			}
		}
	}
}

func TestUnsignedMailIsAllowedOnlyWhenConfigured(t *testing.T) {
	t.Parallel()
	c := edConfig()
	req := Request{Message: corpus()["plain"], From: "example.org", Now: signedAt}
	if _, err := mustNew(t, c).Sign(t.Context(), req); !errors.Is(err, ErrNoKey) {
		t.Errorf("got %v, want ErrNoKey", err)
	}
	c.AllowUnsigned = true
	if fields, err := mustNew(t, c).Sign(t.Context(), req); fields != nil || err != nil {
		t.Errorf("got %q, %v, want nothing", fields, err)
	}
	operator := edKey("*", "operator", "")
	operator.SigningDomain, operator.Additional = "esp.example.net", true
	c.Keys = append(c.Keys, operator)
	fields, err := mustNew(t, c).Sign(t.Context(), req)
	if n := bytes.Count(fields, []byte("d=esp.example.net;")); n != 1 || err != nil {
		t.Errorf("got %q, %v, want the operator's signature", fields, err)
	}
}

func TestEveryConfigurationMistakeIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	good := testKeys()["ed25519"].PEM
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecDER, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	_, err = New(Config{
		Headers:     []string{"To", "Bad Name", "DKIM-Signature"},
		Oversign:    []string{"Sub:ject"},
		Expiry:      -1,
		Concurrency: -1,
		Keys: []KeyConfig{
			{Domain: "", Selector: "s", PEM: good},
			{Domain: "exa mple.com", Selector: "s", PEM: good},
			{Domain: "[192.0.2.1]", Selector: "s", PEM: good},
			{Domain: "*.*.example.com", Selector: "s", PEM: good},
			{Domain: "a.example.com", Selector: "", PEM: good},
			{Domain: "b.example.com", Selector: "a..b", PEM: good},
			{Domain: "c.example.com", Selector: "a; d=evil.example", PEM: good},
			{Domain: "d.example.com", Selector: strings.Repeat("x", 64), PEM: good},
			{Domain: "e.example.com", Selector: "s"},
			{Domain: "f.example.com", Selector: "s", PEM: good, KeyFile: "both"},
			{Domain: "g.example.com", Selector: "s", KeyFile: "/nonexistent/key.pem"},
			{Domain: "h.example.com", Selector: "s", PEM: Secret("no PEM at all")},
			{Domain: "i.example.com", Selector: "s", PEM: Secret("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")},
			{Domain: "j.example.com", Selector: "s", PEM: Secret("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")},
			{Domain: "k.example.com", Selector: "s", PEM: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: ecDER})},
			{Domain: "l.example.com", Selector: "s", PEM: good, Algorithm: RSASHA256},
			{Domain: "m.example.com", Selector: "s", PEM: good, Identity: "@example.com"},
			{Domain: "n.example.com", Selector: "s", PEM: good, Identity: "a;b@n.example.com"},
			{Domain: "*", Selector: "s", PEM: good, Identity: "@example.com"},
			{Domain: "o.example.com", Selector: "s", PEM: good, SigningDomain: "bad domain"},
			{Domain: "p.example.com", Selector: "s", PEM: good},
			{Domain: "p.example.com", Selector: "s", PEM: good},
			{Domain: "p.example.com", Selector: "s", PEM: testKeys()["rsa2048"].PEM, Tenant: "acme"},
		},
	}, Deps{})
	if err == nil {
		t.Fatal("New takes it all")
	}
	var got []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		got = append(got, line)
	}
	wants := []string{
		"concurrency -1", "expiry -1ns", `"Bad Name"`, "DKIM-Signature", `"Sub:ject"`, "From is not among",
		"key 1 ", "key 2 ", "key 3 ", "key 4 ", "key 5 ", "key 6 ", "key 7 ", "key 8 ", "either a key file", "either a key file",
		"no such file", "no private key", "damaged", "encrypted", "ecdsa", "for ed25519-sha256, not rsa-sha256",
		"identity", "identity", "identity", "signing domain", "configured twice", "can hold only one",
	}
	if len(got) != len(wants) {
		t.Errorf("got %d problems, want %d", len(got), len(wants))
	}
	for i, want := range wants {
		if i < len(got) && !strings.Contains(got[i], want) {
			t.Errorf("problem %d: got %s, want %s", i+1, got[i], want)
		}
	}
}

// Not parallel: the small keys need a process-wide setting to be made.
func TestRSAKeysOutsideTheLimitsAreRefusedAndSmallOnesWarnedOf(t *testing.T) {
	for bits, want := range map[int]string{512: "512 bits", 1023: "1023 bits", 4160: "4160 bits", 1024: "", 2048: ""} {
		private := testKeys()["rsa2048"].PEM
		if bits != 2048 {
			private = rsaOf(t, bits)
		}
		r, err := New(Config{Keys: []KeyConfig{{Domain: "example.com", Selector: "s", PEM: private}}}, Deps{})
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%d bits: got %v, want a refusal", bits, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d bits: %v", bits, err)
			continue
		}
		k := r.Keys()[0]
		if k.Bits != bits || (len(k.Warnings) > 0) != (bits < 2048) {
			t.Errorf("%d bits: got %d bits and warnings %q", bits, k.Bits, k.Warnings)
		}
		msg := corpus()["plain"]
		if errs := verify(t, r, join(mustSign(t, r, msg), msg)); errs[0] != nil {
			t.Errorf("%d bits: %v", bits, errs)
		}
	}
}

func TestKeyFileReadableByOthersIsRefused(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(name, testKeys()["ed25519"].PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	c := Config{Keys: []KeyConfig{{Domain: "example.com", Selector: "s", KeyFile: name}}}
	for mode, refused := range map[fs.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o604: true, 0o602: true, 0o610: true, 0o666: true} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		_, err := New(c, Deps{})
		if (err != nil) != refused || (refused && !strings.Contains(err.Error(), fmt.Sprintf("mode %04o", mode))) {
			t.Errorf("mode %04o: got %v, want refused: %v", mode, err, refused)
		}
		loose := c
		loose.AllowReadableKeys = true
		if _, err := New(loose, Deps{}); err != nil {
			t.Errorf("mode %04o, allowed: %v", mode, err)
		}
	}
}

func TestKeyFilesThatAreNoKeyFiles(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{
		"dir":   {Mode: fs.ModeDir | 0o700},
		"large": {Data: bytes.Repeat([]byte("x"), maxKeyFile+1), Mode: 0o600},
		"chain": {Data: join([]byte("Bag attributes\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), testKeys()["ed25519"].PEM), Mode: 0o600},
	}
	for name, want := range map[string]string{"dir": "not a regular file", "large": "larger than", "chain": ""} {
		_, err := New(Config{Keys: []KeyConfig{{Domain: "example.com", Selector: "s", KeyFile: name}}}, Deps{Open: files.Open})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}

func TestNoPrivateKeyIsEverPrinted(t *testing.T) {
	t.Parallel()
	private, _, err := GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := parsePrivate(private)
	if err != nil {
		t.Fatal(err)
	}
	seed := signer.(ed25519.PrivateKey).Seed()
	c := Config{Keys: []KeyConfig{{Domain: "example.com", Selector: "s", PEM: private}}}
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	r, err := New(c, Deps{Log: logger})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, v := range []any{c, &c, c.Keys[0], private, r, *r.keys[0], r.keys, r.Keys()} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		logger.Info("printed", "v", v)
		slog.New(slog.NewTextHandler(&log, nil)).Info("printed", "v", v)
	}
	out.Write(log.Bytes())
	for _, secret := range []string{
		strings.Split(string(private), "\n")[1],
		fmt.Sprintf("%x", seed), fmt.Sprintf("%X", seed),
		strings.Trim(fmt.Sprint(seed), "[]"),
		strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", seed), "[]byte{"), "}"),
		fmt.Sprintf("%x", []byte(private)[:20]), strings.Trim(fmt.Sprint([]byte(private)[30:40]), "[]"),
	} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%s is printed", secret)
		}
	}
	if n := strings.Count(out.String(), redacted); n < 20 {
		t.Errorf("only %d redactions: were the secrets printed at all?", n)
	}
}

func TestRingThatReplacesAnotherGoesOnCounting(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	msg := corpus()["plain"]
	for range 2 {
		r, err := New(dualConfig(), Deps{Metrics: reg})
		if err != nil {
			t.Fatal(err)
		}
		mustSign(t, r, msg)
		if _, err := r.Sign(t.Context(), Request{Message: msg, From: "example.org"}); !errors.Is(err, ErrNoKey) {
			t.Fatal(err)
		}
	}
	want := `
# HELP tradewind_dkim_no_key_total Times a message was to be signed and no key fitted its From domain and tenant.
# TYPE tradewind_dkim_no_key_total counter
tradewind_dkim_no_key_total 2
# HELP tradewind_dkim_signatures_total DKIM signatures made, by algorithm and result.
# TYPE tradewind_dkim_signatures_total counter
tradewind_dkim_signatures_total{algorithm="ed25519-sha256",result="error"} 0
tradewind_dkim_signatures_total{algorithm="ed25519-sha256",result="ok"} 2
tradewind_dkim_signatures_total{algorithm="rsa-sha256",result="error"} 0
tradewind_dkim_signatures_total{algorithm="rsa-sha256",result="ok"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "tradewind_dkim_no_key_total", "tradewind_dkim_signatures_total"); err != nil {
		t.Error(err)
	}
}

func TestGeneratedKeysSignAndTheirRecordsFitDNS(t *testing.T) {
	t.Parallel()
	for kind, algorithm := range map[string]Algorithm{"rsa2048": RSASHA256, "rsa3072": RSASHA256, "ed25519": Ed25519SHA256} {
		private, txt, err := GenerateKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range txt {
			if len(part) > 255 {
				t.Errorf("%s: a string of %d octets", kind, len(part))
			}
		}
		r := mustNew(t, Config{Keys: []KeyConfig{{Domain: "example.com", Selector: "s", PEM: private, Algorithm: algorithm}}})
		if got, want := r.Keys()[0].Record, strings.Join(txt, ""); got != want {
			t.Errorf("%s: got record %s, want %s", kind, got, want)
		}
		msg := corpus()["plain"]
		if errs := verify(t, r, join(mustSign(t, r, msg), msg)); errs[0] != nil {
			t.Errorf("%s: %v", kind, errs)
		}
	}
	if _, _, err := GenerateKey("rsa512"); err == nil {
		t.Error("a key of 512 bits was made")
	}
}

func TestZoneLinesAreOneStringToALine(t *testing.T) {
	t.Parallel()
	got := ZoneLines("s._domainkey.example.com", strings.Repeat("x", 300))
	want := "s._domainkey.example.com. IN TXT (\n\t\"" + strings.Repeat("x", 255) + "\"\n\t\"" + strings.Repeat("x", 45) + "\" )\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzParsePrivate(f *testing.F) {
	for _, k := range testKeys() {
		f.Add([]byte(k.PEM))
	}
	f.Add([]byte(rfcRSA))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := parsePrivate(bytes.Clone(text))
		if err != nil {
			// An error must not give away what it read.
			for line := range strings.SplitSeq(string(text), "\n") {
				if len(line) > 40 && strings.Contains(err.Error(), line) {
					t.Errorf("error quotes the key: %v", err)
				}
			}
			return
		}
		if _, err := Record(k.Public()); err != nil {
			t.Error(err)
		}
	})
}
