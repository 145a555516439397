package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
)

// GenerateKey makes a private key, "rsa2048", "rsa3072" or "ed25519", in
// PKCS #8 PEM, and the TXT record for its public half, cut into strings of at
// most 255 octets as DNS wants them.
func GenerateKey(kind string) (private Secret, txt []string, err error) {
	var k crypto.Signer
	switch kind {
	case "rsa2048":
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa3072":
		k, err = rsa.GenerateKey(rand.Reader, 3072)
	case "ed25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, nil, fmt.Errorf("dkim: %q is not one of rsa2048, rsa3072, ed25519", kind)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("dkim: generate key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, fmt.Errorf("dkim: generate key: %w", err)
	}
	defer clear(der)
	record, err := Record(k.Public())
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), SplitTXT(record), nil
}

// Record is the TXT record that publishes an RSA or Ed25519 public key (RFC
// 6376, 3.6.1; RFC 8463, 4.2).
func Record(public crypto.PublicKey) (string, error) {
	switch p := public.(type) {
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(p)
		if err != nil {
			return "", fmt.Errorf("dkim: record: %w", err)
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der), nil
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(p), nil
	}
	return "", fmt.Errorf("dkim: record: a key of type %T: DKIM knows RSA and Ed25519", public)
}

// SplitTXT cuts a record into character-strings of at most 255 octets (RFC
// 1035, 3.3.14). Receivers join them with nothing between.
func SplitTXT(record string) []string {
	var parts []string
	for len(record) > 255 {
		parts = append(parts, record[:255])
		record = record[255:]
	}
	return append(parts, record)
}

// ZoneLines is the record as a zone file wants it, one string to a line.
func ZoneLines(name, record string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. IN TXT (", name)
	for _, part := range SplitTXT(record) {
		// Records of ours hold neither quotes nor backslashes.
		fmt.Fprintf(&b, "\n\t\"%s\"", part)
	}
	b.WriteString(" )\n")
	return b.String()
}
