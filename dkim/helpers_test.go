package dkim

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"
)

// The moment all test signatures are made, to the second: go-msgauth looks at
// x= with the real clock, so it lies ahead.
var signedAt = time.Date(2099, 3, 1, 12, 0, 0, 0, time.UTC)

var testKeys = sync.OnceValue(func() map[string]*testKey {
	keys := make(map[string]*testKey)
	for _, kind := range []string{"rsa2048", "ed25519"} {
		private, txt, err := GenerateKey(kind)
		if err != nil {
			panic(err)
		}
		keys[kind] = &testKey{PEM: private, Record: strings.Join(txt, "")}
	}
	return keys
})

// testKey is a key and its record.
type testKey struct {
	PEM    Secret
	Record string
}

func pemRSA(k *rsa.PrivateKey) Secret {
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})
}

// dualConfig signs for example.com with both kinds of key.
func dualConfig() Config {
	return Config{
		Keys: []KeyConfig{
			{Domain: "example.com", Selector: "rsa", PEM: testKeys()["rsa2048"].PEM},
			{Domain: "example.com", Selector: "ed", PEM: testKeys()["ed25519"].PEM},
		},
		Expiry: DefaultExpiry,
	}
}

// edConfig is dualConfig without the slow key.
func edConfig() Config {
	c := dualConfig()
	c.Keys = c.Keys[1:]
	return c
}

func mustNew(t testing.TB, c Config) *Ring {
	t.Helper()
	r, err := New(c, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustSign(t testing.TB, r *Ring, msg []byte) []byte {
	t.Helper()
	fields, err := r.Sign(t.Context(), Request{Message: msg, From: "example.com", Now: signedAt})
	if err != nil {
		t.Fatal(err)
	}
	return fields
}

// zone answers for all keys of r, whatever domain they sign for.
func zone(r *Ring) func(name string) ([]string, error) {
	return func(name string) ([]string, error) {
		for _, k := range r.Keys() {
			if strings.HasPrefix(name, k.Selector+"._domainkey.") {
				return []string{k.Record}, nil
			}
		}
		return nil, fmt.Errorf("nobody expected a question for %s", name)
	}
}

// verify has go-msgauth verify a signed message and returns the error of each
// signature.
func verify(t testing.TB, r *Ring, signed []byte) []error {
	t.Helper()
	all, err := msgauth.VerifyWithOptions(bytes.NewReader(signed), &msgauth.VerifyOptions{LookupTXT: zone(r)})
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	var errs []error
	for _, v := range all {
		errs = append(errs, v.Err)
	}
	return errs
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// crlfs turns a text of LF lines into one of CRLF lines.
func crlfs(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }

const dateHeader = "Date: Sun, 1 Mar 2099 12:00:00 +0000\n"

const plainHeader = "From: Alice <alice@example.com>\nTo: bob@example.net\nSubject: hello\n" +
	dateHeader + "Message-ID: <1@example.com>\n"

// corpus are messages that signers have been known to trip over.
func corpus() map[string][]byte {
	megabyte := strings.Repeat(strings.Repeat("The quick brown fox jumps. ", 3)[:76]+"\n", 1<<20/77)
	return map[string][]byte{
		"plain":                   crlfs(plainHeader + "\nHi.\n"),
		"folded header":           crlfs(dateHeader + "From: Alice\n <alice@example.com>\nSubject: a\n\t folded \n  subject\t\nTo:\n bob@example.net\n\nHi.\n"),
		"spaces around the colon": crlfs(dateHeader + "From \t:\talice@example.com  \nSubject:\n\nHi.\n"),
		"eight bit":               crlfs(plainHeader + "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nGrüße, \xff\xfe ¡olé!\n"),
		"eight bit header":        crlfs(dateHeader + "From: Zoë <zoe@example.com>\nSubject: naïve – test\n\nHi.\n"),
		"empty body":              crlfs(plainHeader + "\n"),
		"body of blank lines":     crlfs(plainHeader + "\n\n\n\n\n"),
		"body of spaces":          crlfs(plainHeader + "\n  \n\t\n \t \n"),
		"trailing white space":    crlfs(plainHeader + "\na  \nb\t\n  c \t d  \n\n \n"),
		"blank lines inside":      crlfs(plainHeader + "\n\n\na\n\n\n\nb\n\n\n"),
		"no final line end":       append(crlfs(plainHeader), "\r\nHi there "...),
		"dots":                    crlfs(plainHeader + "\n.\n..\n.a\n"),
		"one megabyte":            crlfs(plainHeader + "\n" + megabyte),
		"duplicate fields":        crlfs("Subject: one\nFrom: a@example.com\nTo: b@example.net\nSubject: two\nTo: c@example.net\nFROM: d@example.com\nsubject: three\n\nHi.\n"),
		"From only":               crlfs("From: a@example.com\n\nHi.\n"),
		"unknown fields":          crlfs(dateHeader + "X-One: 1\nFrom: a@example.com\nX-Two: 2\nReceived: from x\n by y\n\nHi.\n"),
		"bulk mail": crlfs(plainHeader + "Reply-To: r@example.com\nMIME-Version: 1.0\nContent-Type: text/html\n" +
			"List-Id: <news.example.com>\nList-Unsubscribe: <https://example.com/u/1>\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\n" +
			"Feedback-ID: a:b:c:sender\nCFBL-Address: fbl@example.com; report=arf\nCFBL-Feedback-ID: 1\n\n<p>Hi.</p>\n"),
	}
}
