//go:build openssl && cgo && linux

package dkim

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>

// libcrypto is loaded when the program runs, not when it is linked: no headers
// are needed to build, and a machine without it falls back to Go. These are
// the functions of the OpenSSL 3 ABI that one signature takes.
typedef struct {
	const char *(*version)(int);
	void *(*d2i)(int, void **, const unsigned char **, long);
	void (*key_free)(void *);
	void *(*ctx_new)(void *, void *);
	void (*ctx_free)(void *);
	int (*sign_init)(void *);
	int (*set_padding)(void *, int);
	int (*set_md)(void *, const void *);
	const void *(*sha256)(void);
	int (*sign)(void *, unsigned char *, size_t *, const unsigned char *, size_t);
	void (*clear_error)(void);
} tw_crypto;

static int tw_load(tw_crypto *c) {
	void *h = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
	if (h == NULL)
		return 0;
	// The handle is never closed: libcrypto cannot be unloaded safely.
	return (c->version = dlsym(h, "OpenSSL_version")) != NULL
		&& (c->d2i = dlsym(h, "d2i_PrivateKey")) != NULL
		&& (c->key_free = dlsym(h, "EVP_PKEY_free")) != NULL
		&& (c->ctx_new = dlsym(h, "EVP_PKEY_CTX_new")) != NULL
		&& (c->ctx_free = dlsym(h, "EVP_PKEY_CTX_free")) != NULL
		&& (c->sign_init = dlsym(h, "EVP_PKEY_sign_init")) != NULL
		&& (c->set_padding = dlsym(h, "EVP_PKEY_CTX_set_rsa_padding")) != NULL
		&& (c->set_md = dlsym(h, "EVP_PKEY_CTX_set_signature_md")) != NULL
		&& (c->sha256 = dlsym(h, "EVP_sha256")) != NULL
		&& (c->sign = dlsym(h, "EVP_PKEY_sign")) != NULL
		&& (c->clear_error = dlsym(h, "ERR_clear_error")) != NULL;
}

static const char *tw_version(tw_crypto *c) { return c->version(0); }

static void *tw_key(tw_crypto *c, const unsigned char *der, long n) {
	void *k = c->d2i(6, NULL, &der, n); // 6: EVP_PKEY_RSA
	if (k == NULL)
		c->clear_error();
	return k;
}

static void tw_key_free(tw_crypto *c, void *k) { c->key_free(k); }

// tw_ready is a context that signs any number of digests, one at a time: to
// look the algorithms up takes libcrypto a tenth of a signature.
static void *tw_ready(tw_crypto *c, void *key) {
	void *x = c->ctx_new(key, NULL);
	if (x != NULL
		&& c->sign_init(x) > 0
		&& c->set_padding(x, 1) > 0 // 1: RSA_PKCS1_PADDING
		&& c->set_md(x, c->sha256()) > 0)
		return x;
	c->ctx_free(x);
	c->clear_error(); // the queue belongs to the thread, which others will use
	return NULL;
}

static void tw_ready_free(tw_crypto *c, void *x) { c->ctx_free(x); }

static int tw_sign(tw_crypto *c, void *x, unsigned char *sig, size_t sig_n, const unsigned char *digest) {
	size_t n = sig_n;
	int ok = c->sign(x, sig, &n, digest, 32) > 0 && n == sig_n;
	if (!ok)
		c->clear_error();
	return ok;
}
*/
import "C"

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"runtime"
	"unsafe"
)

// Backend names the implementation that makes RSA signatures: the version of
// libcrypto that was found, or "go".
func Backend() string {
	lib := loadLibcrypto()
	if lib == nil {
		return "go"
	}
	return C.GoString(C.tw_version(lib))
}

// accelerator returns the maker of the fastest RSA signers there are: by
// libcrypto, or by Go for a key libcrypto will not take.
func accelerator() func(*rsa.PrivateKey) crypto.Signer {
	lib := loadLibcrypto()
	return func(k *rsa.PrivateKey) crypto.Signer {
		if lib != nil {
			if s := newLibcryptoSigner(lib, k); s != nil {
				return s
			}
		}
		return k
	}
}

func loadLibcrypto() *C.tw_crypto {
	lib := new(C.tw_crypto)
	if C.tw_load(lib) == 0 {
		return nil
	}
	return lib
}

// libcryptoSigner makes PKCS #1 v1.5 signatures over SHA-256 digests.
type libcryptoSigner struct {
	lib    *C.tw_crypto
	key    unsafe.Pointer // an EVP_PKEY; its use by many threads at once is safe
	public *rsa.PublicKey
	ready  chan unsafe.Pointer // contexts nobody signs with just now
}

// maxReady is how many contexts a key keeps; they are small, and no more are in
// use at a time than signatures are made at a time.
const maxReady = 64

// newLibcryptoSigner returns nil if libcrypto does not sign with k.
func newLibcryptoSigner(lib *C.tw_crypto, k *rsa.PrivateKey) *libcryptoSigner {
	der := x509.MarshalPKCS1PrivateKey(k)
	defer clear(der)
	p := C.tw_key(lib, (*C.uchar)(unsafe.SliceData(der)), C.long(len(der)))
	if p == nil {
		return nil
	}
	ready := make(chan unsafe.Pointer, maxReady)
	s := &libcryptoSigner{lib: lib, key: p, public: &k.PublicKey, ready: ready}
	runtime.AddCleanup(s, func(p unsafe.Pointer) {
		for len(ready) > 0 {
			C.tw_ready_free(lib, <-ready)
		}
		C.tw_key_free(lib, p)
	}, p)
	// A library that signs wrongly must be noticed here, not by receivers.
	digest := sha256.Sum256(nil)
	sig, err := s.Sign(nil, digest[:], crypto.SHA256)
	if err != nil || rsa.VerifyPKCS1v15(s.public, crypto.SHA256, digest[:], sig) != nil {
		return nil
	}
	return s
}

// Public returns the public key.
func (s *libcryptoSigner) Public() crypto.PublicKey { return s.public }

// Sign signs a SHA-256 digest; its first argument is not used.
func (s *libcryptoSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, errors.New("dkim: libcrypto signs SHA-256 digests only")
	}
	defer runtime.KeepAlive(s)
	var x unsafe.Pointer
	select {
	case x = <-s.ready:
	default:
		if x = C.tw_ready(s.lib, s.key); x == nil {
			return nil, errors.New("dkim: libcrypto does not get ready to sign")
		}
	}
	sig := make([]byte, s.public.Size())
	if C.tw_sign(s.lib, x, (*C.uchar)(unsafe.SliceData(sig)), C.size_t(len(sig)), (*C.uchar)(unsafe.SliceData(digest))) == 0 {
		C.tw_ready_free(s.lib, x)
		return nil, errors.New("dkim: libcrypto could not sign")
	}
	select {
	case s.ready <- x:
	default:
		C.tw_ready_free(s.lib, x)
	}
	return sig, nil
}
