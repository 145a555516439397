// Command report reads `go test -json` and prints what a person wants to see
// while it runs: a line for each package, everything a failed test said, and the
// last that tests said whose package ended under them. It appends "passed failed
// skipped" to the file named by its argument.
//
// Its exit status is 0 however the tests went: go test has one of its own.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strings"
	"time"
)

// event is one line of go test -json; see go doc test2json.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// maxOutput bounds what is kept of one test's output, in bytes.
const maxOutput = 64 << 10

// A package that panics or exits ends all of its tests, and which of them it was
// nobody knows: the last maxTail bytes of maxTails of them are shown.
const (
	maxTail  = 4 << 10
	maxTails = 20
)

// heard is what a test has said: its first maxOutput bytes, and the last maxTail.
type heard struct {
	head strings.Builder
	tail string
}

func (h *heard) add(s string) {
	if h.head.Len() < maxOutput {
		h.head.WriteString(s)
	}
	if h.tail += s; len(h.tail) > 2*maxTail {
		h.tail = h.tail[len(h.tail)-maxTail:]
	}
}

func (h *heard) last() string { return h.tail[max(0, len(h.tail)-maxTail):] }

type counts struct{ passed, failed, skipped int }

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: go test -json ... | report FILE")
	}
	total, err := read(os.Stdin, os.Stdout)
	if err != nil {
		log.Fatal(err)
	}
	f, err := os.OpenFile(os.Args[1], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		log.Fatal(err)
	}
	_, err = fmt.Fprintln(f, total.passed, total.failed, total.skipped)
	if err := f.Close(); err != nil {
		log.Fatal(err)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func read(in io.Reader, out io.Writer) (total counts, err error) {
	said := make(map[string]*heard) // by package and test
	packages := make(map[string]*counts)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(out, lines.Text())
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "output":
			if said[key] == nil {
				said[key] = new(heard)
			}
			said[key].add(e.Output)
		case "pass", "fail", "skip":
			if e.Test == "" && e.Action == "fail" {
				cutOff(out, e.Package, said)
			}
			end(out, e, said[key], packages, &total)
			delete(said, key)
		}
	}
	return total, lines.Err()
}

// cutOff shows what tests said last that had not ended when their package failed.
func cutOff(out io.Writer, pkg string, said map[string]*heard) {
	var names []string
	for key := range said {
		if test, ok := strings.CutPrefix(key, pkg+"\x00"); ok && test != "" {
			names = append(names, test)
		}
	}
	slices.Sort(names)
	for i, test := range names {
		key := pkg + "\x00" + test
		if i < maxTails {
			fmt.Fprintf(out, "--- NOT ENDED: %s, which said last:\n%s", test, said[key].last())
		}
		delete(said, key)
	}
	if more := len(names) - maxTails; more > 0 {
		fmt.Fprintf(out, "--- NOT ENDED: %d more\n", more)
	}
}

// end counts a test or package that has ended and says so where that matters.
func end(out io.Writer, e event, said *heard, packages map[string]*counts, total *counts) {
	if packages[e.Package] == nil {
		packages[e.Package] = new(counts)
	}
	p := packages[e.Package]
	if e.Test == "" {
		switch {
		case e.Action == "skip": // no test files
			return
		case e.Action == "fail" && said != nil:
			fmt.Fprint(out, said.head.String())
			if p.failed == 0 { // it panicked or did not build
				total.failed++
			}
		}
		took := time.Duration(e.Elapsed * float64(time.Second)).Round(100 * time.Millisecond)
		fmt.Fprintf(out, "  %s %s: %d passed, %d failed, %d skipped in %v\n", e.Action, e.Package, p.passed, p.failed, p.skipped, took)
		return
	}
	switch e.Action {
	case "pass":
		p.passed++
		total.passed++
	case "skip":
		p.skipped++
		total.skipped++
	case "fail":
		p.failed++
		total.failed++
		if said != nil {
			fmt.Fprint(out, said.head.String())
		}
	}
}
