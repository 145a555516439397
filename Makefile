# `make` lists what there is. Only `check`, `interop` and `fuzz` need more than
# Go: scripts/install-deps installs it on Debian.

GO         ?= go
# libcrypto signs three times faster than crypto/rsa. Without a C compiler, or
# without libcrypto on the machine it runs on, the same binary uses Go's.
BUILDFLAGS ?= -tags openssl
TESTFLAGS  ?=
FUZZTIME   ?= 1m
CYCLES     ?= 200
SOAK       ?= 1h
BACKLOG    ?= 10000000
DOMAINS    ?= 1000000

BENCHFLAGS ?=

.PHONY: help build run demo test check bench bench-smoke bench-parts soak backlog crash torture fuzz interop deps

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 13

build: ## build bin/tradewind
	@$(GO) build $(BUILDFLAGS) -o bin/tradewind ./cmd/tradewind

run: build ## serve on loopback with a sink as the Internet, and say what to try
	@exec bin/tradewind serve -c configs/quickstart.toml --with-sink 127.0.0.1:2599 --hints

demo: build ## a few thousand messages, live, then a table; leaves nothing behind
	@bin/tradewind demo

test: ## the tests; needs Go and nothing else
	@$(GO) test $(TESTFLAGS) ./...

check: ## what CI runs: formatting, vet, staticcheck, race, fuzz, crash, interop
	@.ci/run --no-install

bench: build ## Tradewind beside Postfix, 12 to 25 minutes, into docs/BENCHMARKS.md (BENCHFLAGS=-quick: 5)
	@$(GO) run ./test/bench -out docs/bench -doc docs/BENCHMARKS.md $(BENCHFLAGS)

bench-smoke: build ## the same with few messages: does it run, is anything lost
	@$(GO) run ./test/bench -short -require-postfix >/dev/null

bench-parts: ## every benchmark of a package, with allocations
	@$(GO) test -run '^$$' -bench . -benchmem ./...

soak: ## SOAK=1h of load on the real binary; table and plot go to docs/
	@$(GO) test -tags soak -count 1 -timeout 0 -v -run '^TestSoak' ./interop -args -soak $(SOAK) -out ../docs

backlog: ## BACKLOG=10000000 waiting over DOMAINS=1000000, beside an empty queue
	@$(GO) test -tags backlog -count 1 -timeout 0 -v -run '^TestBacklog' ./interop -args -recipients $(BACKLOG) -domains $(DOMAINS) -load 20000 -rounds 3

crash: ## CYCLES=200 of load and kill -9 on the real binary
	@$(GO) test -count 1 -timeout 0 -v -run '^TestKill' ./test/crash -args -cycles $(CYCLES)

torture: ## the random tests, long and from seeds drawn anew, which they print: an hour or two
	@TRADEWIND_SEED=random TRADEWIND_MODEL_OPS=20000000 TRADEWIND_POWER_CUTS=5000 TRADEWIND_STORM_ROUNDS=100 \
		$(GO) test -count 1 -timeout 0 -v -run 'BehavesAsTheModel|PowerLossAtAny|ConcurrentUse|NoFileOperation|FlippedByte|Export|Exported' ./queue -args -fault-step 1 -flips 10000
	@$(GO) test -count 1 -timeout 0 -v -run '^TestKill' ./test/crash -args -cycles $(CYCLES) -seed 0

fuzz: ## every fuzz target for FUZZTIME=1m
	@.ci/fuzz $(FUZZTIME)

interop: ## Tradewind against swaks, Postfix, unbound and two DKIM verifiers
	@$(GO) test -tags interop -count 1 -skip '^TestKill' $(TESTFLAGS) $$(grep -rl --include='*_test.go' '^//go:build.*interop' . | xargs -n 1 dirname | sort -u)

deps: ## install the Debian packages that check, fuzz and interop need
	@scripts/install-deps
