package tradewind_test

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pages returns the documents by name.
func pages(t *testing.T) map[string]string {
	t.Helper()
	list := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			list[filepath.ToSlash(name)] = string(text)
		}
	}
	return list
}

// A document that names a test as its witness must not go on doing so when the
// test is renamed or gone.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, f := range sources(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.isTest() {
				known[fn.Name.Name] = true
			}
		}
	}
	name := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9]*)`")
	for page, text := range pages(t) {
		for _, m := range name.FindAllStringSubmatch(text, -1) {
			if !known[m[1]] {
				t.Errorf("%s names %s, which does not exist", page, m[1])
			}
		}
	}
}

func TestLinksBetweenDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for page, text := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}

// Every command there is stands in OPERATIONS.md, and what stands there as a
// command is one.
func TestOperationsPageKnowsTheCommands(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("cmd/tradewind/main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(src), "func commands() []command {")
	list, _, _ = strings.Cut(list, "\n}\n")
	known := map[string]bool{"help": true}
	for _, m := range regexp.MustCompile(`(?m)^\t\t\{"([a-z ]+)", `).FindAllStringSubmatch(list, -1) {
		known[m[1]] = true
	}
	if len(known) < 15 {
		t.Fatalf("found only the commands %v", known)
	}
	text := pages(t)["docs/OPERATIONS.md"]
	for c := range known {
		if !strings.Contains(text, "tradewind "+c) {
			t.Errorf("docs/OPERATIONS.md says nothing of tradewind %s", c)
		}
	}
	for page, text := range pages(t) {
		for _, m := range regexp.MustCompile("(?m)[`]tradewind ([a-z]+)( [a-z]+)?").FindAllStringSubmatch(text, -1) {
			if !known[m[1]] && !known[m[1]+m[2]] {
				t.Errorf("%s: there is no command tradewind %s%s", page, m[1], m[2])
			}
		}
	}
}

// The first commands of the README are for what the quickstart serves.
func TestReadmeSendsToWhereTheQuickstartListens(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("configs/quickstart.toml")
	if err != nil {
		t.Fatal(err)
	}
	readme := pages(t)["README.md"]
	found := regexp.MustCompile(`127\.0\.0\.1(?::| --port )([0-9]+)`).FindAllStringSubmatch(readme, -1)
	if len(found) < 3 {
		t.Fatalf("the README names only the addresses %v", found)
	}
	for _, m := range found {
		if !strings.Contains(string(text), `"127.0.0.1:`+m[1]+`"`) {
			t.Errorf("the README sends to port %s, where the quickstart does not listen", m[1])
		}
	}
}

// Whoever reads a store by hand reads the page first.
func TestArchitecturePageListsEveryKeySpace(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("store/keys.go")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(pages(t)["docs/ARCHITECTURE.md"], "\n## On disk\n")
	text, _, _ = strings.Cut(text, "\n## ")
	spaces := regexp.MustCompile(`(?m)^\tkey([A-Z][A-Za-z]+) += (?:'(.)'|(0x[0-9a-f]+))`).FindAllStringSubmatch(string(src), -1)
	if len(spaces) < 15 {
		t.Fatalf("found only %v", spaces)
	}
	for _, m := range spaces {
		if !strings.Contains(text, "`"+m[2]+m[3]+"`") {
			t.Errorf("docs/ARCHITECTURE.md says nothing of key space %s, %s%s", m[1], m[2], m[3])
		}
	}
}
