package main

import (
	"slices"
	"testing"
)

func TestHugePagesAreAskedForOnce(t *testing.T) {
	const asked, told = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1", "TRADEWIND_HUGE_PAGES=1"
	for _, test := range []struct {
		name, modes string
		env, want   []string
	}{
		{"on request", "always [madvise] never", []string{"A=b"}, []string{"A=b", asked, told}},
		{"for everyone", "[always] madvise never", []string{"A=b"}, nil},
		{"for nobody", "always madvise [never]", []string{"A=b"}, nil},
		{"asked already", "always [madvise] never", []string{asked}, nil},
		{"started anew already", "always [madvise] never", []string{"A=b", asked, told}, nil},
		{"tunables lost on the way", "always [madvise] never", []string{told}, nil},
		{"not wanted", "always [madvise] never", []string{"TRADEWIND_HUGE_PAGES="}, nil},
		{"other tunables", "always [madvise] never", []string{"GLIBC_TUNABLES=glibc.malloc.check=1", "A=b"},
			[]string{"GLIBC_TUNABLES=glibc.malloc.check=1:glibc.malloc.hugetlb=1", "A=b", told}},
	} {
		before := slices.Clone(test.env)
		if got := hugePagesEnv(test.modes, test.env); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if !slices.Equal(test.env, before) {
			t.Errorf("%s: the environment given was changed to %q", test.name, test.env)
		}
	}
}
