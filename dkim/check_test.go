package dkim

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

func TestCheckComparesKeyAndDNS(t *testing.T) {
	t.Parallel()
	c := dualConfig()
	c.Keys[0].Identity = "@news.example.com"
	keys := mustNew(t, c).Keys()
	rsaKey, edKey := keys[0], keys[1]
	_, p, _ := strings.Cut(rsaKey.Record, "p=")
	broken := errors.New("i/o timeout")
	notFound := &net.DNSError{Err: "no such host", IsNotFound: true}
	private, err := parsePrivate([]byte(rfcRSA))
	if err != nil {
		t.Fatal(err)
	}
	other, err := Record(private.Public())
	if err != nil {
		t.Fatal(err)
	}

	for name, c := range map[string]struct {
		key     KeyInfo
		txt     []string
		dns     error
		want    error
		warning string
	}{
		"RSA as generated":         {key: rsaKey, txt: []string{rsaKey.Record}},
		"Ed25519 as generated":     {key: edKey, txt: []string{edKey.Record}},
		"the least that works":     {key: rsaKey, txt: []string{"v=DKIM1;p=" + p}},
		"folded and annotated":     {key: rsaKey, txt: []string{"v=DKIM1; n=note; h=sha1 : sha256; s=email; k=rsa; p=" + p[:40] + "\r\n\t " + p[40:] + " ; "}},
		"without version":          {key: rsaKey, txt: []string{"p=" + p}, warning: "v=DKIM1"},
		"testing":                  {key: rsaKey, txt: []string{rsaKey.Record + "; t=y"}, warning: "t=y"},
		"no such name":             {key: rsaKey, dns: notFound, want: ErrNoRecord},
		"no TXT":                   {key: rsaKey, want: ErrNoRecord},
		"DNS is down":              {key: rsaKey, dns: broken, want: broken},
		"two records":              {key: rsaKey, txt: []string{rsaKey.Record, rsaKey.Record}, want: ErrMismatch},
		"revoked":                  {key: rsaKey, txt: []string{"v=DKIM1; p="}, want: ErrRevoked},
		"another key":              {key: rsaKey, txt: []string{other}, want: ErrMismatch},
		"another kind":             {key: rsaKey, txt: []string{edKey.Record}, want: ErrMismatch},
		"kind mislabelled":         {key: edKey, txt: []string{strings.Replace(edKey.Record, "ed25519", "rsa", 1)}, want: ErrMismatch},
		"unknown kind":             {key: rsaKey, txt: []string{"v=DKIM1; k=dsa; p=" + p}, want: ErrMismatch},
		"cut off":                  {key: rsaKey, txt: []string{rsaKey.Record[:200]}, want: ErrMismatch},
		"sha1 only":                {key: rsaKey, txt: []string{rsaKey.Record + "; h=sha1"}, want: ErrMismatch},
		"not for mail":             {key: rsaKey, txt: []string{rsaKey.Record + "; s=tlsrpt"}, want: ErrMismatch},
		"identity not allowed":     {key: rsaKey, txt: []string{rsaKey.Record + "; t=s"}, want: ErrMismatch},
		"strict and no identity":   {key: edKey, txt: []string{edKey.Record + "; t=s"}},
		"version not first":        {key: rsaKey, txt: []string{"k=rsa; v=DKIM1; p=" + p}, want: ErrMismatch},
		"some other TXT":           {key: rsaKey, txt: []string{"v=spf1 -all"}, want: ErrMismatch},
		"text":                     {key: rsaKey, txt: []string{"hello"}, want: ErrMismatch},
		"tag twice":                {key: rsaKey, txt: []string{rsaKey.Record + "; k=rsa"}, want: ErrMismatch},
		"no p":                     {key: rsaKey, txt: []string{"v=DKIM1; k=rsa"}, want: ErrMismatch},
		"backslashes of the zone":  {key: rsaKey, txt: []string{strings.ReplaceAll(rsaKey.Record, ";", `\;`)}, want: ErrMismatch},
		"longer than we will read": {key: rsaKey, txt: []string{rsaKey.Record + ";n=" + strings.Repeat("x", maxRecord)}, want: ErrMismatch},
	} {
		var asked string
		res, err := Check(t.Context(), func(_ context.Context, name string) ([]string, error) {
			asked = name
			return c.txt, c.dns
		}, c.key)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if want := c.key.Selector + "._domainkey.example.com"; asked != want || res.Name != want {
			t.Errorf("%s: asked for %s, told of %s, want %s", name, asked, res.Name, want)
		}
		if got := strings.Join(res.Warnings, ";"); (c.warning == "") != (got == "") || !strings.Contains(got, c.warning) {
			t.Errorf("%s: got warnings %q, want %q", name, got, c.warning)
		}
	}
}

func TestCheckOfAKeyForEverybodyNeedsADomain(t *testing.T) {
	t.Parallel()
	r := mustNew(t, Config{Keys: []KeyConfig{edKey("*", "any", "")}})
	asked := ""
	lookup := func(_ context.Context, name string) ([]string, error) {
		asked = name
		return []string{r.Keys()[0].Record}, nil
	}
	if _, err := Check(t.Context(), lookup, r.Keys()[0]); err == nil || asked != "" {
		t.Errorf("got %v after asking for %q, want an error", err, asked)
	}
	if _, err := Check(t.Context(), lookup, r.Find("customer.example", "")[0]); err != nil || asked != "any._domainkey.customer.example" {
		t.Errorf("got %v after asking for %q", err, asked)
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, k := range testKeys() {
		f.Add(k.Record)
	}
	f.Add("v=DKIM1; p=")
	f.Add("v=DKIM1; h=sha1:sha256; s=*; t=y:s; n=a=b; p=AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		rec, err := parseRecord(text)
		if err != nil || rec.public == nil {
			return
		}
		// What we would publish for the key reads as the same key.
		again, err := Record(rec.public)
		if err != nil {
			t.Fatal(err)
		}
		rec2, err := parseRecord(again)
		if err != nil {
			t.Fatalf("%q became %q: %v", text, again, err)
		}
		if !rec2.versioned || rec2.public == nil {
			t.Errorf("%q became %q", text, again)
		}
	})
}
