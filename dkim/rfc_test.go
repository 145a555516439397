package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"regexp"
	"strings"
	"testing"
)

// The keys and signatures of RFC 8463, appendix A. Both algorithms are
// deterministic, so the same canonical bytes must give the same signatures.
const (
	rfcSeed = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
	rfcRSA  = `-----BEGIN RSA PRIVATE KEY-----
MIICXQIBAAKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQi
Y/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqM
KrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB
AoGAH0cxOhFZDgzXWhDhnAJDw5s4roOXN4OhjiXa8W7Y3rhX3FJqmJSPuC8N9vQm
6SVbaLAE4SG5mLMueHlh4KXffEpuLEiNp9Ss3O4YfLiQpbRqE7Tm5SxKjvvQoZZe
zHorimOaChRL2it47iuWxzxSiRMv4c+j70GiWdxXnxe4UoECQQDzJB/0U58W7RZy
6enGVj2kWF732CoWFZWzi1FicudrBFoy63QwcowpoCazKtvZGMNlPWnC7x/6o8Gc
uSe0ga2xAkEA8C7PipPm1/1fTRQvj1o/dDmZp243044ZNyxjg+/OPN0oWCbXIGxy
WvmZbXriOWoSALJTjExEgraHEgnXssuk7QJBALl5ICsYMu6hMxO73gnfNayNgPxd
WFV6Z7ULnKyV7HSVYF0hgYOHjeYe9gaMtiJYoo0zGN+L3AAtNP9huqkWlzECQE1a
licIeVlo1e+qJ6Mgqr0Q7Aa7falZ448ccbSFYEPD6oFxiOl9Y9se9iYHZKKfIcst
o7DUw1/hz2Ck4N5JrgUCQQCyKveNvjzkkd8HjYs0SwM0fPjK16//5qDZ2UiDGnOe
uEzxBDAr518Z8VFbR41in3W4Y3yCDgQlLlcETrS+zYcL
-----END RSA PRIVATE KEY-----
`
	rfcMessage = "From: Joe SixPack <joe@football.example.com>\r\n" +
		"To: Suzie Q <suzie@shopping.example.net>\r\n" +
		"Subject: Is dinner ready?\r\n" +
		"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n" +
		"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n" +
		"\r\n" +
		"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
	rfcEd25519Field = `DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
`
	rfcRSAField = `DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
`
)

func rfcEd25519Key(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	seed, err := base64.StdEncoding.DecodeString(rfcSeed)
	if err != nil {
		t.Fatal(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}

func TestSignaturesOfRFC8463ComeOutTheSame(t *testing.T) {
	t.Parallel()
	private, err := parsePrivate([]byte(rfcRSA))
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := private.(*rsa.PrivateKey)
	edKey := rfcEd25519Key(t)
	names, err := newFieldNames([]string{"From", "To", "Subject", "Date", "Message-ID"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		field string
		sign  func(digest []byte) ([]byte, error)
	}{
		{rfcEd25519Field, func(d []byte) ([]byte, error) { return ed25519.Sign(edKey, d), nil }},
		{rfcRSAField, func(d []byte) ([]byte, error) { return rsaKey.Sign(nil, d, crypto.SHA256) }},
	} {
		field := strings.ReplaceAll(strings.TrimSuffix(c.field, "\n"), "\n", "\r\n")
		unsigned, b, _ := strings.Cut(field, " b=")
		unsigned += " b="
		var hd header
		if _, err := hd.split([]byte(rfcMessage), names); err != nil {
			t.Fatal(err)
		}
		hd.canonicalize(names)
		canon := append(hd.canon, "dkim-signature:"...)
		canon = appendRelaxedValue(canon, []byte(strings.TrimPrefix(unsigned, "DKIM-Signature:")))
		digest := crypto.SHA256.New()
		digest.Write(canon)
		sig, err := c.sign(digest.Sum(nil))
		if err != nil {
			t.Fatal(err)
		}
		want := regexp.MustCompile(`\s`).ReplaceAllString(b, "")
		if got := base64.StdEncoding.EncodeToString(sig); got != want {
			t.Errorf("got b=%s, want b=%s", got, want)
		}
	}
}

func TestRecordsOfRFC8463AreThoseOfItsKeys(t *testing.T) {
	t.Parallel()
	ed, err := Record(rfcEd25519Key(t).Public())
	if want := "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="; ed != want || err != nil {
		t.Errorf("got %s, %v, want %s", ed, err, want)
	}
	private, err := parsePrivate([]byte(rfcRSA))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Record(private.Public())
	want := "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6" +
		"Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/" +
		"e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G" +
		"+2kryOTIKT+l/K4w3QIDAQAB"
	if got != want || err != nil {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}
