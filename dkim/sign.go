package dkim

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"
)

// Request is one message to sign.
type Request struct {
	// Message is the header, an empty line and the body, in CRLF lines, as it
	// will stand on the wire before dot-stuffing. With BodyHash set the body is
	// not looked at and may be missing.
	Message []byte
	// BodyHash is the hash of the body, if known: messages that differ only in
	// their header share it.
	BodyHash BodyHash
	// From is the domain of the From field, which the caller has parsed and
	// found Tenant entitled to; Sign does not compare it with the header.
	From   string
	Tenant string
	// Now is the time for t=; zero means the ring's clock.
	Now time.Time
}

// scratch is what one Sign works in.
type scratch struct {
	header header
	body   BodyHasher
	keys   []*key
	out    []byte
	digest [sha256.Size]byte
}

// maxScratch is the largest buffer kept for the next message.
const maxScratch = 64 << 10

// Sign returns the DKIM-Signature fields for a message, each with its CRLF,
// one for each key that fits, to be put before the message as they are. They
// cover every instance of the listed fields, signed from the bottom up.
//
// Sign waits for a free slot for as long as ctx lasts. Errors wrap ErrNoKey,
// ErrLineEnd, ErrHeader, message.ErrBadAddress for an impossible From domain,
// or ctx's; any other comes from the RSA implementation.
func (r *Ring) Sign(ctx context.Context, req Request) ([]byte, error) {
	domain, err := parseDomain(req.From)
	if err != nil {
		return nil, fmt.Errorf("dkim: From domain: %w", err)
	}
	s := r.scratch.Get().(*scratch)
	defer r.release(s)
	keys, own := r.pick(s.keys[:0], domain, req.Tenant)
	s.keys = keys
	if !own {
		r.metrics.noKey.Inc()
		if !r.allowUnsigned {
			return nil, fmt.Errorf("%w: %s", ErrNoKey, domain)
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	if req.Now.IsZero() {
		req.Now = r.now()
	}

	start := r.now()
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("dkim: wait to sign: %w", err)
	}
	fields, err := r.sign(s, domain, &req)
	r.slots.Release(1)
	r.metrics.seconds.Observe(r.now().Sub(start).Seconds())
	return fields, err
}

// sign makes the signatures with s.keys. Header and body are canonicalised
// once for all of them; only the signature's own field differs.
func (r *Ring) sign(s *scratch, domain string, req *Request) ([]byte, error) {
	body, err := s.header.split(req.Message, r.names)
	if err != nil {
		return nil, err
	}
	bodyHash := req.BodyHash
	if bodyHash == (BodyHash{}) {
		s.body.Reset()
		s.body.Write(body)
		if bodyHash, err = s.body.Sum(); err != nil {
			return nil, fmt.Errorf("%w in the body", err)
		}
	}
	s.header.canonicalize(r.names)
	shared := len(s.header.canon)

	s.out = s.out[:0]
	for _, k := range s.keys {
		var w fieldWriter
		w.begin(s.out)
		value := len(w.b)
		w.unsigned(k, k.signingDomain(domain), s.header.h, bodyHash, req.Now, r.expiry)
		// RFC 6376, 3.7: the field itself comes last, without its CRLF.
		canon := append(s.header.canon[:shared], "dkim-signature:"...)
		s.header.canon = appendRelaxedValue(canon, w.b[value:])
		s.digest = sha256.Sum256(s.header.canon)
		sig, err := k.sign(s.digest[:])
		r.metrics.signed(k.algorithm, err)
		if err != nil {
			return nil, fmt.Errorf("dkim: sign for %s with selector %s: %w", k.signingDomain(domain), k.selector, err)
		}
		w.value(sig)
		s.out = w.b
	}
	return append(make([]byte, 0, len(s.out)), s.out...), nil
}

// release keeps s for another message. Nothing of this one stays reachable,
// and one huge header does not cost its memory for ever.
func (r *Ring) release(s *scratch) {
	clear(s.header.fields)
	clear(s.keys)
	if cap(s.header.canon) > maxScratch || cap(s.out) > maxScratch {
		return
	}
	r.scratch.Put(s)
}
