package main

import "time"

// cell is one place of the matrix: what is sent and what the far end is like.
type cell struct {
	name string
	what string // for the table

	size       int    // octets of a message
	key        string // DKIM: "", "rsa2048" or "ed25519"
	recipients int
	latency    time.Duration // of each reply of the sink
	greylist   int           // percent
	http       bool
	backlog    bool
	domains    int
	messages   int // for Tradewind in one round; Postfix gets a part of it

	quick bool // it is among the rows the claims are about
}

const (
	connections  = 50 // of the source
	kib          = 1 << 10
	greylistFor  = time.Second
	warmup       = 4  // a part of the messages, one in so many, goes ahead and is not measured: memory is mapped, processes are started
	postfixShare = 10 // Postfix gets a tenth of the messages: it takes as long over them
)

// matrix varies one thing at a time around the middle: 10 KiB, unsigned, one
// recipient, a sink that answers at once, an empty queue, SMTP.
func matrix() []cell {
	base := cell{name: "10k", what: "10 KiB", size: 10 * kib, recipients: 1, domains: 10, messages: 24000, quick: true}
	with := func(name, what string, change func(*cell)) cell {
		c := base
		c.name, c.what, c.quick = name, what, false
		change(&c)
		return c
	}
	return []cell{
		base,
		with("1k", "1 KiB", func(c *cell) { c.size = kib }),
		with("100k", "100 KiB", func(c *cell) { c.size, c.messages, c.quick = 100*kib, 6000, true }),
		with("10k-rsa", "10 KiB, RSA-2048", func(c *cell) { c.key, c.messages, c.quick = "rsa2048", 8000, true }),
		with("1k-rsa", "1 KiB, RSA-2048", func(c *cell) { c.size, c.key, c.messages = kib, "rsa2048", 8000 }),
		with("100k-rsa", "100 KiB, RSA-2048", func(c *cell) { c.size, c.key, c.messages = 100*kib, "rsa2048", 4000 }),
		with("10k-ed25519", "10 KiB, Ed25519", func(c *cell) { c.key, c.messages, c.quick = "ed25519", 16000, true }),
		with("50-recipients", "10 KiB to 50 recipients", func(c *cell) { c.recipients, c.domains, c.messages = 50, 1, 2000 }),
		with("50ms", "10 KiB, sink 50 ms a reply", func(c *cell) { c.latency = 50 * time.Millisecond }),
		with("200ms", "10 KiB, sink 200 ms a reply", func(c *cell) { c.latency, c.messages = 200*time.Millisecond, 16000 }),
		with("greylist", "10 KiB, 10 % greylisted", func(c *cell) { c.greylist = 10 }),
		with("http", "10 KiB by HTTP, one a request", func(c *cell) { c.http, c.messages, c.quick = true, 16000, true }),
		with("backlog", "10 KiB beside a backlog", func(c *cell) { c.backlog, c.quick = true, true }),
	}
}

// count is how many messages relay r gets in one round.
func (c *cell) count(r relay, scale float64) int {
	n := float64(c.messages) * scale
	if r.slow() {
		n /= postfixShare
	}
	return max(int(n), connections)
}
