// Command report reads `go test -json` and prints what a person wants to see
// while it runs: a line for each package, and everything a failed test said. It
// appends "passed failed skipped" to the file named by its argument.
//
// Its exit status is 0 however the tests went: go test has one of its own.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"os"
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

type counts struct{ passed, failed, skipped int }

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: go test -json ... | report FILE")
	}
	total := read()
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

func read() (total counts) {
	said := make(map[string]*strings.Builder) // by package and test
	packages := make(map[string]*counts)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text())
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "build-output":
			fmt.Print(e.Output)
		case "output":
			if said[key] == nil {
				said[key] = new(strings.Builder)
			}
			if said[key].Len() < maxOutput {
				said[key].WriteString(e.Output)
			}
		case "pass", "fail", "skip":
			end(e, said[key], packages, &total)
			delete(said, key)
		}
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
	return total
}

// end counts a test or package that has ended and says so where that matters.
func end(e event, said *strings.Builder, packages map[string]*counts, total *counts) {
	if packages[e.Package] == nil {
		packages[e.Package] = new(counts)
	}
	p := packages[e.Package]
	if e.Test == "" {
		switch {
		case e.Action == "skip": // no test files
			return
		case e.Action == "fail" && said != nil:
			fmt.Print(said.String())
			if p.failed == 0 { // it panicked or did not build
				total.failed++
			}
		}
		took := time.Duration(e.Elapsed * float64(time.Second)).Round(100 * time.Millisecond)
		fmt.Printf("  %s %s: %d passed, %d failed, %d skipped in %v\n", e.Action, e.Package, p.passed, p.failed, p.skipped, took)
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
			fmt.Print(said.String())
		}
	}
}
