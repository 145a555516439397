//go:build openssl && cgo && linux

package dkim

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

func TestLibcryptoSignsTheSameBytesAsGo(t *testing.T) {
	t.Parallel()
	if !strings.HasPrefix(Backend(), "OpenSSL 3") {
		t.Fatalf("backend is %q: no libcrypto on this machine?", Backend())
	}
	make := accelerator()
	for _, bits := range []int{1024, 2048, 3072, 4096} {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		fast, ok := make(k).(*libcryptoSigner)
		if !ok {
			t.Fatalf("%d bits: libcrypto does not take the key", bits)
		}
		if !k.PublicKey.Equal(fast.Public()) {
			t.Errorf("%d bits: another public key", bits)
		}
		// Many threads with one key, while others come and go.
		var g errgroup.Group
		for n := range 8 {
			g.Go(func() error {
				for i := range 5 {
					digest := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n*1000+i)))
					want, err := rsa.SignPKCS1v15(nil, k, crypto.SHA256, digest[:])
					if err != nil {
						return err
					}
					if got, err := fast.Sign(nil, digest[:], crypto.SHA256); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bits: got %x, %v, want %x", bits, got, err, want)
					}
					make(k)
					runtime.GC()
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestLibcryptoRefusesWhatItCannotSign(t *testing.T) {
	t.Parallel()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	fast := accelerator()(k)
	digest := sha256.Sum256(nil)
	if _, err := fast.Sign(nil, digest[:31], crypto.SHA256); err == nil {
		t.Error("a short digest was signed")
	}
	if _, err := fast.Sign(nil, digest[:], crypto.SHA512); err == nil {
		t.Error("a digest was signed as SHA-512")
	}
	if s := newLibcryptoSigner(loadLibcrypto(), k); s == nil {
		t.Error("a good key is refused")
	}
}
