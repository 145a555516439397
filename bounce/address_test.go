package bounce

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAddressesAreFoundInText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][]string{
		"<alice@example.org>: no":                {"alice@example.org"},
		"to alice@example.org, bob@example.net.": {"alice@example.org", "bob@example.net"},
		`"a b"@example.org`:                      {`"a b"@example.org`},
		"neko....nyaan....@example.org":          {"neko....nyaan....@example.org"},
		"'alice@example.org'":                    {"alice@example.org"},
		"mailto:alice@example.org?subject=x":     {"alice@example.org"},
		"o'brien@example.org":                    {"o'brien@example.org"},
		"=?utf-8?b?8J+QiPCfkIg=?=@example.org":   {"=?utf-8?b?8J+QiPCfkIg=?=@example.org"},
		"收件人：alice@example.org。":                 {"alice@example.org"},
		"宛先alice@example.orgへ":                   {"alice@example.org"},
		"дмитрий@пример.рф не найден":            {"дмитрий@пример.рф"},
		"user@[192.0.2.1]":                       {"user@[192.0.2.1]"},
		"/home/mail/alice@example.org":           {"alice@example.org"},
		"/G=alice/S=liddell/@example.org":        {"G=alice/S=liddell/@example.org"},
		"@ @@ a@ @b <@>":                         nil,
		"id=abc@host":                            {"id=abc@host"},
		"user@example.org-":                      {"user@example.org"},
		"x@y":                                    nil,
	} {
		var got []string
		for _, a := range findAddresses(in) {
			got = append(got, a.text)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", in, diff)
		}
	}
}

func TestRecipientFieldsAreRead(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"rfc822; alice@example.org":                "alice@example.org",
		"RFC822;<alice@example.org>":               "alice@example.org",
		"<alice@example.org>":                      "alice@example.org",
		"utf-8; дмитрий@example.org":               "дмитрий@example.org",
		"rfc822;@relay.example:alice@example.org":  "alice@example.org",
		"unknown; alice@example.org (bad address)": "alice@example.org",
		"LOCAL; alice":                             "",
		"rfc822; a\x00b@example.org":               "b@example.org",
		"":                                         "",
	} {
		if got := addressIn(in); got != want {
			t.Errorf("addressIn(%q) = %q, want %q", in, got, want)
		}
	}
}
