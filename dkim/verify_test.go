package dkim

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// signedNow is msg with signatures that have not expired.
func signedNow(t testing.TB, r *Ring, msg []byte) []byte {
	t.Helper()
	fields, err := r.Sign(t.Context(), Request{Message: msg, From: "example.com", Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return join(fields, msg)
}

func TestVerifyNamesTheDomainsThatSigned(t *testing.T) {
	t.Parallel()
	r := mustNew(t, dualConfig())
	msg := crlfs("From: a@example.com\nSubject: hi\n\nhello\n")
	signed := signedNow(t, r, msg)
	ask := zone(r)
	down := errors.New("servfail")
	tests := []struct {
		name   string
		msg    []byte
		lookup func(name string) ([]string, error)
		want   []string
		err    error
	}{
		{"signed", signed, ask, []string{"example.com"}, nil},
		{"unsigned", msg, ask, nil, nil},
		{"changed", []byte(strings.Replace(string(signed), "hello", "hallo", 1)), ask, nil, nil},
		{"no key", signed, func(string) ([]string, error) { return nil, nil }, nil, nil},
		{"DNS fails", signed, func(string) ([]string, error) { return nil, down }, nil, ErrKeyUnavailable},
		{"no header", []byte("x"), ask, nil, ErrTooCostly},
		{"many fields", append([]byte(strings.Repeat("X: y\r\n", maxVerifyFields+1)), signed...), ask, nil, ErrTooCostly},
		{"many folds", append([]byte("X: y\r\n"+strings.Repeat(" y\r\n", maxVerifyFolds+1)), signed...), ask, nil, ErrTooCostly},
		{"long header", append([]byte("X: "+strings.Repeat("y", maxVerifyHeader)+"\r\n"), signed...), ask, nil, ErrTooCostly},
		{"blank end", append(slices.Clone(signed), strings.Repeat("\r\n", maxVerifyBlank+1)...), ask, nil, ErrTooCostly},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Verify(t.Context(), tt.msg, func(_ context.Context, name string) ([]string, error) { return tt.lookup(name) })
			slices.Sort(got)
			if got = slices.Compact(got); !slices.Equal(got, tt.want) || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %v; want %v, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestOnlyTheFirstSignaturesAreVerified(t *testing.T) {
	t.Parallel()
	r := mustNew(t, edConfig())
	msg := signedNow(t, r, crlfs("From: a@example.com\nSubject: hi\n\nhello\n"))
	forged := strings.Repeat("DKIM-Signature: v=1; a=rsa-sha256; d=x.example; s=s; h=from; bh=AA==; b=AA==\r\n", 50)
	asked := make(chan string, 100)
	got, err := Verify(t.Context(), append([]byte(forged), msg...), func(_ context.Context, name string) ([]string, error) {
		asked <- name
		return nil, nil
	})
	if len(got) != 0 || err != nil {
		t.Errorf("got %v, %v; want nothing", got, err)
	}
	if n := len(asked); n > maxVerifications {
		t.Errorf("%d lookups, want at most %d", n, maxVerifications)
	}
}

func FuzzVerify(f *testing.F) {
	r := mustNew(f, edConfig())
	f.Add(signedNow(f, r, crlfs("From: a@example.com\nSubject: hi\n\nhello\n")))
	f.Add([]byte("DKIM-Signature: v=1\r\n\r\n"))
	ask := zone(r)
	f.Fuzz(func(t *testing.T, msg []byte) {
		got, err := Verify(t.Context(), msg, func(_ context.Context, name string) ([]string, error) { return ask(name) })
		if err != nil && len(got) > 0 {
			t.Errorf("%v and %v", got, err)
		}
	})
}
