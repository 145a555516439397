package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// RFC 8301, 3.2: signers use at least 1024 bits and should use 2048; verifiers
// need not take more than 4096.
const (
	minRSABits  = 1024
	goodRSABits = 2048
	maxRSABits  = 4096
)

const maxKeyFile = 64 << 10

// KeyConfig names one key and the mail it signs.
type KeyConfig struct {
	// Domain is the From domain the key is for: "example.com", any domain
	// below one ("*.example.com", which leaves out example.com itself), or "*"
	// for every domain that has no better key.
	Domain string
	// Selector is the s= tag; the public key stands in DNS at
	// <selector>._domainkey.<signing domain>.
	Selector string
	// KeyFile holds the private key, in PEM: PKCS #1 or PKCS #8, RSA of 1024
	// to 4096 bits or Ed25519, not encrypted. PEM may hold the key itself
	// instead.
	KeyFile string
	PEM     Secret
	// Algorithm, if not Auto, must be the one the key is for.
	Algorithm Algorithm
	// SigningDomain is the d= tag. Default: Domain, without its "*."; for "*"
	// the From domain itself, whose owner then points a CNAME at our key.
	SigningDomain string
	// Identity is the i= tag, an address or "@domain" at or under
	// SigningDomain. Default: no tag.
	Identity string
	// Tenant, if set, keeps the key from signing for any other tenant.
	Tenant string
	// Additional keys sign besides whichever key fits best, for instance with
	// the operator's own domain, to which a feedback loop is tied. They never
	// count as the message's key: they do not align with its From.
	Additional bool
}

// KeyInfo describes a loaded key. It holds nothing secret.
type KeyInfo struct {
	Domain        string // as configured
	SigningDomain string // d=; empty where it follows the From domain
	Selector      string
	Algorithm     Algorithm
	Bits          int // of an RSA modulus, or 256
	Tenant        string
	Identity      string
	KeyFile       string
	Additional    bool
	Public        crypto.PublicKey
	// Record is the TXT record to publish at RecordName.
	Record string
	// Warnings say what an operator should mend about the key; the ring works
	// all the same.
	Warnings []string
}

// RecordName is where the public key belongs in DNS, without a final dot. It
// is empty when the signing domain is not known.
func (k KeyInfo) RecordName() string {
	if k.SigningDomain == "" {
		return ""
	}
	return k.Selector + "._domainkey." + k.SigningDomain
}

// key is a loaded key. The private half hides in signer, which no verb of fmt
// looks into.
type key struct {
	info      KeyInfo
	algorithm Algorithm
	domain    string // d=, or "" for the From domain
	selector  string
	identity  string
	sign      func(digest []byte) ([]byte, error)
}

// loadKey checks one key's settings and reads it.
func loadKey(c KeyConfig, allowReadable bool, open func(string) (fs.File, error), accelerate func(*rsa.PrivateKey) crypto.Signer) (*key, error) {
	pattern, err := parsePattern(c.Domain)
	if err != nil {
		return nil, err
	}
	d := strings.TrimPrefix(strings.TrimPrefix(pattern, "*"), ".")
	if c.SigningDomain != "" {
		if d, err = parseDomain(c.SigningDomain); err != nil {
			return nil, fmt.Errorf("signing domain: %w", err)
		}
	}
	if err := checkSelector(c.Selector); err != nil {
		return nil, err
	}
	if c.Identity != "" && (d == "" || !validIdentity(c.Identity, d)) {
		return nil, fmt.Errorf("identity %q is not an address or @domain at or under the signing domain %q (RFC 6376, 3.5, i=)", c.Identity, d)
	}
	if (c.KeyFile == "") == (len(c.PEM) == 0) {
		return nil, errors.New("give either a key file or the key itself")
	}
	text := []byte(c.PEM)
	if c.KeyFile != "" {
		if text, err = readKeyFile(c.KeyFile, allowReadable, open); err != nil {
			return nil, err
		}
		defer clear(text)
	}
	private, err := parsePrivate(text)
	if err != nil && c.KeyFile != "" {
		return nil, fmt.Errorf("key file %s: %w", c.KeyFile, err)
	}
	if err != nil {
		return nil, err
	}
	k := &key{domain: d, selector: c.Selector, identity: c.Identity}
	k.info = KeyInfo{
		Domain: pattern, SigningDomain: d, Selector: c.Selector, Tenant: c.Tenant,
		Identity: c.Identity, KeyFile: c.KeyFile, Additional: c.Additional, Public: private.Public(),
	}
	switch p := private.(type) {
	case *rsa.PrivateKey:
		k.algorithm, k.info.Bits = RSASHA256, p.N.BitLen()
		s := accelerate(p)
		k.sign = func(digest []byte) ([]byte, error) { return s.Sign(nil, digest, crypto.SHA256) }
		if k.info.Bits < goodRSABits {
			k.info.Warnings = append(k.info.Warnings, fmt.Sprintf("RSA key of %d bits: use %d (RFC 8301, 3.2)", k.info.Bits, goodRSABits))
		}
	case ed25519.PrivateKey:
		k.algorithm, k.info.Bits = Ed25519SHA256, 256
		// RFC 8463, 3: pure Ed25519 over the SHA-256 digest.
		k.sign = func(digest []byte) ([]byte, error) { return ed25519.Sign(p, digest), nil }
	}
	k.info.Algorithm = k.algorithm
	if c.Algorithm != Auto && c.Algorithm != k.algorithm {
		return nil, fmt.Errorf("the key is for %v, not %v", k.algorithm, c.Algorithm)
	}
	k.info.Record, err = Record(k.info.Public)
	return k, err
}

// readKeyFile reads a key file, unless others than its owner may do so too.
func readKeyFile(name string, allowReadable bool, open func(string) (fs.File, error)) ([]byte, error) {
	f, err := open(name)
	if err != nil {
		return nil, err // names the file
	}
	defer f.Close()
	st, err := f.Stat() // of what is open, not of what the name means by now
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("key file %s is not a regular file", name)
	}
	if p := st.Mode().Perm(); p&0o077 != 0 && !allowReadable {
		return nil, fmt.Errorf("key file %s has mode %04o, open to group or others: chmod 0600 it", name, p)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("key file %s is larger than %d bytes", name, maxKeyFile)
	}
	return text, nil
}

// parsePrivate reads the first private key in text. Errors never quote the
// text.
func parsePrivate(text []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			return nil, errors.New("no private key in PEM form")
		}
		var private any
		var err error
		switch block.Type {
		case "RSA PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, errors.New("the private key is encrypted: decrypt it with openssl pkey")
			}
			private, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "PRIVATE KEY":
			private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted: decrypt it with openssl pkey")
		default:
			continue // a certificate, parameters
		}
		clear(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the private key is damaged or of an unknown kind: %w", err)
		}
		switch p := private.(type) {
		case *rsa.PrivateKey:
			if n := p.N.BitLen(); n < minRSABits || n > maxRSABits {
				return nil, fmt.Errorf("RSA key of %d bits: must be %d to %d (RFC 8301, 3.2)", n, minRSABits, maxRSABits)
			}
			if len(p.Primes) != 2 {
				return nil, errors.New("RSA key of more than two primes")
			}
			return p, nil
		case ed25519.PrivateKey:
			return p, nil
		}
		return nil, fmt.Errorf("a key of type %T: DKIM knows RSA and Ed25519", private)
	}
}

// parsePattern folds a domain, a "*.domain" or a "*".
func parsePattern(s string) (string, error) {
	if s == "*" {
		return s, nil
	}
	rest, wild := strings.CutPrefix(s, "*.")
	d, err := parseDomain(rest)
	if err != nil {
		return "", fmt.Errorf("domain %q: %w", s, err)
	}
	if wild {
		return "*." + d, nil
	}
	return d, nil
}

// parseDomain folds a domain to lower-case A-labels. A literal is none.
func parseDomain(s string) (string, error) {
	d, err := message.ParseDomain(s)
	if err == nil && d[0] == '[' {
		err = errors.New("an address literal has no DNS records")
	}
	return d, err
}

func validDomain(s string) bool {
	_, err := parseDomain(s)
	return err == nil
}

// checkSelector holds a selector to RFC 6376, 3.1: sub-domains with dots
// between.
func checkSelector(s string) error {
	label := 0
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-' && label > 0 && i+1 < len(s) && s[i+1] != '.':
		case c == '.' && label > 0 && i+1 < len(s):
			label = -1
		default:
			return fmt.Errorf("selector %q is not a DNS name (RFC 6376, 3.1)", s)
		}
		if label++; label > 63 {
			return fmt.Errorf("selector %q has a label longer than 63 octets", s)
		}
	}
	if s == "" || len(s) > 189 {
		return fmt.Errorf("selector %q is empty or too long", s)
	}
	return nil
}
