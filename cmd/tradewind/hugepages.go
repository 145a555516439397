package main

import (
	"os"
	"slices"
	"strings"
	"syscall"
)

// hugePagesVar says, set to anything, that huge pages have been seen to.
const hugePagesVar = "TRADEWIND_HUGE_PAGES"

// askForHugePages starts the program anew, in the same process, with an
// environment in which malloc asks the kernel for huge pages. The store's
// memtables, 64 MiB each and read all over, come from malloc; that they lie in
// pages of 2 MiB saves a tenth of the CPU of a message. glibc reads the
// tunable before anything of the program runs. Should the start fail, the
// engine runs with small pages.
func askForHugePages() {
	modes, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil {
		return
	}
	env := hugePagesEnv(string(modes), os.Environ())
	if env == nil {
		return
	}
	// Not /proc/self/exe, after which the process would be called.
	if self, err := os.Executable(); err == nil {
		_ = syscall.Exec(self, os.Args, env)
	}
}

// hugePagesEnv is the environment to start anew with, nil when there is no
// need: modes is what the kernel offers, the one in force in brackets.
func hugePagesEnv(modes string, env []string) []string {
	const tunables, hugetlb = "GLIBC_TUNABLES=", "glibc.malloc.hugetlb="
	if !strings.Contains(modes, "[madvise]") {
		return nil
	}
	env = slices.Clone(env)
	at := -1
	for i, v := range env {
		if strings.HasPrefix(v, hugePagesVar+"=") {
			return nil
		}
		if strings.HasPrefix(v, tunables) {
			at = i
		}
	}
	switch {
	case at < 0:
		env = append(env, tunables+hugetlb+"1")
	case strings.Contains(env[at], hugetlb):
		return nil
	default:
		env[at] += ":" + hugetlb + "1"
	}
	return append(env, hugePagesVar+"=1")
}
