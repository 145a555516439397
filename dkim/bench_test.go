package dkim

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
)

// newsletter is a message of about n bytes: a header as mailings have it, and
// indented HTML, which relaxed form changes in every line.
func newsletter(n int) []byte {
	msg := crlfs(plainHeader + "Reply-To: r@example.com\nMIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\n" +
		"Content-Transfer-Encoding: 8bit\nList-Id: <news.example.com>\n" +
		"List-Unsubscribe: <https://t.example.com/u/0123456789abcdef0123456789abcdef0123456789abcdef>\n" +
		"List-Unsubscribe-Post: List-Unsubscribe=One-Click\nFeedback-ID: campaign:customer:news:sender\nX-Mailer: x\n\n")
	for i := 0; len(msg) < n; i++ {
		msg = fmt.Appendf(msg, "%s<td class=\"c%d\">Some words of the letter, and a few more.</td>\r\n", strings.Repeat("  ", i%6), i)
	}
	return msg
}

func BenchmarkSign(b *testing.B) {
	for kind, k := range testKeys() {
		r := mustNew(b, Config{Keys: []KeyConfig{{Domain: "example.com", Selector: "s", PEM: k.PEM}}, Expiry: DefaultExpiry})
		for _, size := range []int{1 << 10, 10 << 10, 100 << 10} {
			msg := newsletter(size)
			b.Run(fmt.Sprintf("%s/%dKB", kind, size>>10), func(b *testing.B) {
				measure(b, len(msg), sign(r, msg))
			})
		}
	}
}

// measure runs f and reports the CPU time of the process beside the time by
// the clock, which other work on the machine makes useless.
func measure(b *testing.B, size int, f func() error) {
	b.Helper()
	var before, after syscall.Rusage
	b.SetBytes(int64(size))
	b.ReportAllocs()
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	for b.Loop() {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	cpu := after.Utime.Nano() - before.Utime.Nano() + after.Stime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/op")
}

func sign(r *Ring, msg []byte) func() error {
	return func() error {
		_, err := r.Sign(context.Background(), Request{Message: msg, From: "example.com", Now: signedAt})
		return err
	}
}

// BenchmarkSignWithoutKey is everything but the private key's work.
func BenchmarkSignWithoutKey(b *testing.B) {
	r := mustNew(b, edConfig())
	sig := make([]byte, 64)
	r.keys[0].sign = func([]byte) ([]byte, error) { return sig, nil }
	msg := newsletter(10 << 10)
	measure(b, len(msg), sign(r, msg))
}

// BenchmarkSHA256 is the floor under the body hash.
func BenchmarkSHA256(b *testing.B) {
	msg := newsletter(10 << 10)
	measure(b, len(msg), func() error { sha256.Sum256(msg); return nil })
}

// BenchmarkRSA compares the implementations; Backend says what "fastest" is.
func BenchmarkRSA(b *testing.B) {
	private, err := parsePrivate(testKeys()["rsa2048"].PEM)
	if err != nil {
		b.Fatal(err)
	}
	k := private.(*rsa.PrivateKey)
	digest := sha256.Sum256(nil)
	for name, s := range map[string]crypto.Signer{"go": k, "fastest": accelerator()(k)} {
		b.Run(name, func(b *testing.B) {
			b.Log(Backend())
			measure(b, len(digest), func() error { _, err := s.Sign(nil, digest[:], crypto.SHA256); return err })
		})
	}
}

// ragged is prose in lines as long as they happen to be, which no processor can
// foresee.
func ragged(size int) (body []byte) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for len(body) < size {
		for range rnd.IntN(20) {
			body = append(body, "wonderfully"[:1+rnd.IntN(11)]...)
			body = append(body, ' ')
		}
		body = append(body, "end.\r\n"...)
	}
	return body
}

// BenchmarkBody shows the cost by kind of text: MB/s must not fall from a
// size to its double.
func BenchmarkBody(b *testing.B) {
	for name, line := range map[string]string{
		"base64": strings.Repeat("QUJD", 19) + "\r\n",
		"prose":  strings.Repeat("words with single spaces ", 3)[:74] + "\r\n",
		"spaces": strings.Repeat("a  ", 25) + "\r\n",
		"blank":  "\r\n",
		"white":  strings.Repeat(" \t", 38) + "\r\n",
		"ragged": string(ragged(1 << 20)[:1<<20]),
	} {
		for _, size := range []int{1 << 20, 2 << 20} {
			body := bytes.Repeat([]byte(line), size/len(line))
			b.Run(fmt.Sprintf("%s/%dMB", name, size>>20), func(b *testing.B) {
				measure(b, len(body), func() error { _, err := HashBody(body); return err })
			})
		}
	}
}

// BenchmarkHeader does the same for headers at their limits.
func BenchmarkHeader(b *testing.B) {
	r := mustNew(b, edConfig())
	r.keys[0].sign = func([]byte) ([]byte, error) { return make([]byte, 64), nil }
	for name, header := range map[string]func(n int) string{
		"folds":  func(n int) string { return strings.Repeat("Subject: x"+strings.Repeat("\r\n x", 1000)+"\r\n", 4*n) },
		"fields": func(n int) string { return strings.Repeat("To: someone@example.net\r\n", 250*n) },
		"white":  func(n int) string { return strings.Repeat("Cc: "+strings.Repeat(" \t", 8000)+"\r\n", 4*n) },
	} {
		for n := 1; n <= 2; n++ {
			msg := []byte("From: a@example.com\r\n" + header(n) + "\r\nHi.\r\n")
			b.Run(fmt.Sprintf("%s/x%d", name, n), func(b *testing.B) {
				measure(b, len(msg), sign(r, msg))
			})
		}
	}
}
