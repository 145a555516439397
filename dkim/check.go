package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
)

// What Check finds wrong with a key's DNS record. Each is wrapped with the
// name and what to do.
var (
	ErrNoRecord = errors.New("dkim: no key record in DNS")
	ErrRevoked  = errors.New("dkim: the key is revoked in DNS")
	ErrMismatch = errors.New("dkim: the record in DNS does not fit the key")
)

const maxRecord = 16 << 10

// LookupTXT returns the TXT records at a name, the strings of each record
// joined. That there are none is said by no records or by a *net.DNSError with
// IsNotFound.
type LookupTXT func(ctx context.Context, name string) ([]string, error)

// CheckResult is what stands in DNS for a key.
type CheckResult struct {
	Name   string // where it was looked for
	Record string // what was found, if anything
	// Warnings say what works but should be mended.
	Warnings []string
}

// Check compares a key with the record that receivers will find. Errors wrap
// ErrNoRecord, ErrRevoked or ErrMismatch: receivers would not accept our
// signatures. Any other error comes from the lookup and says nothing about
// the key.
func Check(ctx context.Context, lookup LookupTXT, k KeyInfo) (CheckResult, error) {
	res := CheckResult{Name: k.RecordName()}
	if res.Name == "" {
		return res, errors.New("dkim: check: the signing domain follows the From domain: name one")
	}
	all, err := lookup(ctx, res.Name)
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		all, err = nil, nil
	}
	if err != nil {
		return res, fmt.Errorf("dkim: check %s: %w", res.Name, err)
	}
	switch len(all) {
	case 0:
		return res, fmt.Errorf("%w: publish at %s: %s", ErrNoRecord, res.Name, k.Record)
	case 1:
		res.Record = all[0]
	default:
		// RFC 6376, 3.6.2.2: what receivers do then is undefined.
		return res, fmt.Errorf("%w: %d TXT records at %s, there must be one", ErrMismatch, len(all), res.Name)
	}
	rec, err := parseRecord(res.Record)
	if err != nil {
		return res, fmt.Errorf("%w: %s: %w", ErrMismatch, res.Name, err)
	}
	if rec.public == nil {
		return res, fmt.Errorf("%w: %s has an empty p=", ErrRevoked, res.Name)
	}
	if mine, ok := k.Public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !mine.Equal(rec.public) {
		return res, fmt.Errorf("%w: %s holds another key: publish %s", ErrMismatch, res.Name, k.Record)
	}
	if !listHas(rec.hashes, "sha256") {
		return res, fmt.Errorf("%w: h= at %s does not allow sha256", ErrMismatch, res.Name)
	}
	if !listHas(rec.services, "email") && !listHas(rec.services, "*") {
		return res, fmt.Errorf("%w: s= at %s does not allow email", ErrMismatch, res.Name)
	}
	if listHas(rec.flags, "s") && k.Identity != "" && !strings.EqualFold(k.Identity[strings.LastIndexByte(k.Identity, '@')+1:], k.SigningDomain) {
		return res, fmt.Errorf("%w: t=s at %s forbids the identity %s, which is not of %s itself", ErrMismatch, res.Name, k.Identity, k.SigningDomain)
	}
	if listHas(rec.flags, "y") {
		res.Warnings = append(res.Warnings, "t=y: receivers may ignore signatures of a domain that is testing DKIM")
	}
	if !rec.versioned {
		res.Warnings = append(res.Warnings, "no v=DKIM1 at the start of the record")
	}
	return res, nil
}

// record is a key record, RFC 6376, 3.6.1.
type record struct {
	versioned bool
	public    crypto.PublicKey // nil: revoked
	hashes    string           // colon lists, with their defaults
	services  string
	flags     string
}

func parseRecord(text string) (*record, error) {
	if len(text) > maxRecord {
		return nil, fmt.Errorf("record longer than %d octets", maxRecord)
	}
	rec := &record{hashes: "sha256", services: "*"}
	kind, p, hasKey := "rsa", "", false
	seen := make(map[string]bool)
	n := 0
	for spec := range strings.SplitSeq(text, ";") {
		if strings.Trim(spec, recordSpace) == "" {
			continue // after the last semicolon
		}
		name, value, ok := strings.Cut(spec, "=")
		name, value = strings.Trim(name, recordSpace), strings.Trim(value, recordSpace)
		if !ok || name == "" {
			return nil, fmt.Errorf("%.40q is not a tag", spec)
		}
		if seen[name] {
			return nil, fmt.Errorf("tag %.40q given twice", name)
		}
		seen[name] = true
		switch name {
		case "v":
			if value != "DKIM1" || n > 0 {
				return nil, errors.New("v= is not DKIM1 or does not come first")
			}
			rec.versioned = true
		case "k":
			kind = value
		case "p":
			p, hasKey = value, true
		case "h":
			rec.hashes = value
		case "s":
			rec.services = value
		case "t":
			rec.flags = value
		}
		n++
	}
	if !hasKey {
		return nil, errors.New("no p=")
	}
	var err error
	if p != "" {
		rec.public, err = parsePublic(kind, p)
	}
	return rec, err
}

const recordSpace = " \t\r\n"

func parsePublic(kind, p string) (crypto.PublicKey, error) {
	p = strings.Map(func(r rune) rune {
		if strings.ContainsRune(recordSpace, r) {
			return -1
		}
		return r
	}, p)
	der, err := base64.StdEncoding.DecodeString(p)
	if err != nil {
		return nil, errors.New("p= is not base64")
	}
	switch kind {
	case "ed25519":
		if len(der) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("p= holds %d bytes, an Ed25519 key has %d", len(der), ed25519.PublicKeySize)
		}
		return ed25519.PublicKey(der), nil
	case "rsa":
		if public, err := x509.ParsePKIXPublicKey(der); err == nil {
			if public, ok := public.(*rsa.PublicKey); ok {
				return public, nil
			}
			return nil, errors.New("p= holds a key that is not RSA")
		}
		// Both forms are in use; RFC 6376, 3.6.1 names this one.
		if public, err := x509.ParsePKCS1PublicKey(der); err == nil {
			return public, nil
		}
		return nil, errors.New("p= holds no RSA key")
	}
	return nil, fmt.Errorf("k=%.40q is not rsa or ed25519", kind)
}

// listHas reports whether a colon list of RFC 6376 holds word.
func listHas(list, word string) bool {
	for item := range strings.SplitSeq(list, ":") {
		if strings.Trim(item, recordSpace) == word {
			return true
		}
	}
	return false
}
