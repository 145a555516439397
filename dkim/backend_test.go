package dkim

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"io"
	"testing"
)

// countingSigner stands for a hardware token or any other replacement.
type countingSigner struct {
	*rsa.PrivateKey
	calls *int
}

func (s countingSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	*s.calls++
	return s.PrivateKey.Sign(r, digest, opts)
}

func TestAnyCryptoSignerGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	calls := 0
	r, err := New(dualConfig(), Deps{RSA: func(k *rsa.PrivateKey) crypto.Signer { return countingSigner{k, &calls} }})
	if err != nil {
		t.Fatal(err)
	}
	fastest := mustNew(t, dualConfig())
	for name, msg := range corpus() {
		if got, want := mustSign(t, fastest, msg), mustSign(t, r, msg); !bytes.Equal(got, want) {
			t.Errorf("%s: %s makes\n%snot\n%s", name, Backend(), got, want)
		}
	}
	if calls != len(corpus()) {
		t.Errorf("the given signer was called %d times for %d messages", calls, len(corpus()))
	}
}
