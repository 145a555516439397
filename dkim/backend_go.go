//go:build !(openssl && cgo && linux)

package dkim

import (
	"crypto"
	"crypto/rsa"
)

// Backend names the implementation that makes RSA signatures: "go" in a
// program built without the tag openssl.
func Backend() string { return "go" }

// accelerator returns the maker of the fastest RSA signers there are.
func accelerator() func(*rsa.PrivateKey) crypto.Signer {
	return func(k *rsa.PrivateKey) crypto.Signer { return k }
}
