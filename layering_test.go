// Package tradewind_test holds the rules of the house that no compiler checks.
package tradewind_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tradewind-mta/tradewind"

// rows are the layers, lowest first: a package imports only from rows above its
// own in this list. docs/ARCHITECTURE.md says what each is for.
func rows() [][]string {
	return [][]string{
		{"message"},
		{"store", "mta/mx", "mta/loadgen", "mta/mx/zonetest", "token"},
		{"throttle", "dkim", "queue", "event", "suppression", "mta/outbound"},
		{"bounce", "tracking"},
		{"inject", "mta", "report"},
		{"mta/inbound", "api"},
		{"configs"},
		{"app"},
		{"cmd/tradewind"},
	}
}

// file is one source file of the repository.
type file struct {
	name string // slash separated, from the root
	ast  *ast.File
	fset *token.FileSet
}

func (f *file) pkg() string { return path.Dir(f.name) }

func (f *file) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

func (f *file) imports(name string) bool {
	return slices.ContainsFunc(f.ast.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == strconv.Quote(name) })
}

// sources parses every Go file.
func sources(t *testing.T) (list []*file) {
	t.Helper()
	fset := token.NewFileSet()
	for name := range tracked(t) {
		if path.Ext(name) != ".go" {
			continue
		}
		tree, err := parser.ParseFile(fset, filepath.FromSlash(name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, &file{name, tree, fset})
	}
	if len(list) < 100 {
		t.Fatalf("only %d Go files found; is this the root?", len(list))
	}
	return list
}

// tracked walks the files that belong to the repository.
func tracked(t *testing.T) func(yield func(name string) bool) {
	t.Helper()
	return func(yield func(string) bool) {
		err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			switch {
			case d.IsDir() && (d.Name() == ".git" || name == "tmp" || name == "bin"):
				return filepath.SkipDir
			case d.Name() == ".git": // a file, in a linked work tree
				return nil
			case !d.Type().IsRegular():
				return nil
			case !yield(filepath.ToSlash(name)):
				return filepath.SkipAll
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// below lists the folders of tests and tools, which may import anything and
// which nothing imports.
func below(pkg string) bool {
	top, _, _ := strings.Cut(pkg, "/")
	return slices.Contains([]string{".", ".ci", "test", "interop", "scripts"}, top)
}

func TestPackagesImportOnlyFromRowsAboveTheirOwn(t *testing.T) {
	t.Parallel()
	row := map[string]int{}
	for i, names := range rows() {
		for _, n := range names {
			row[n] = i
		}
	}
	for _, f := range sources(t) {
		if f.isTest() || below(f.pkg()) {
			continue
		}
		own, known := row[f.pkg()]
		if !known {
			t.Errorf("%s: package %s has no row; give it one in layering_test.go and docs/ARCHITECTURE.md", f.name, f.pkg())
			continue
		}
		for _, i := range f.ast.Imports {
			name, _ := strconv.Unquote(i.Path.Value)
			other, ours := strings.CutPrefix(name, module+"/")
			if !ours {
				continue
			}
			if at, known := row[other]; !known || at >= own {
				t.Errorf("%s imports %s, which is not in a row above %s", f.name, other, f.pkg())
			}
		}
	}
}

func TestEveryRowStandsInTheArchitecturePage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, names := range rows() {
		for _, n := range names {
			if _, err := os.Stat(n); err != nil {
				continue // a row kept free for a package to come
			}
			want := "| " + strconv.Itoa(i) + " | `" + n + "` |"
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("docs/ARCHITECTURE.md has no line that begins with %q", want)
			}
		}
	}
}

// The order of parts is what keeps the limits and the disk apart: queue knows
// no throttle, and throttle touches nothing outside itself.
func TestThrottleTouchesNeitherDiskNorNetwork(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		if f.isTest() || f.pkg() != "throttle" && f.pkg() != "message" {
			continue
		}
		for _, name := range []string{"os", "net", "io/ioutil", "syscall", "github.com/cockroachdb/pebble/v2"} {
			if f.imports(name) {
				t.Errorf("%s imports %s", f.name, name)
			}
		}
	}
}

// Time in tests is virtual: a sleep is the way to let it pass inside a
// testing/synctest bubble, and a guess anywhere else.
func TestNoTestSleepsOutsideABubble(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		if !f.isTest() || f.imports("testing/synctest") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s: time.Sleep without testing/synctest", f.fset.Position(s.Pos()))
				}
			}
			return true
		})
	}
}

// State belongs to values that somebody made with New. A package-level
// variable may be a constant in all but keyword, never something written to.
func TestNoPackageWritesToItsVariables(t *testing.T) {
	t.Parallel()
	vars := map[string]map[string]bool{} // package, name
	files := sources(t)
	for _, f := range files {
		if f.isTest() || below(f.pkg()) {
			continue
		}
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "init" && fn.Recv == nil {
					t.Errorf("%s: work in init", f.fset.Position(fn.Pos()))
				}
				continue
			}
			for _, s := range g.Specs {
				if shared(s.(*ast.ValueSpec)) {
					t.Errorf("%s: a lock, pool, counter or channel of a whole package", f.fset.Position(s.Pos()))
				}
				for _, n := range s.(*ast.ValueSpec).Names {
					if vars[f.pkg()] == nil {
						vars[f.pkg()] = map[string]bool{}
					}
					vars[f.pkg()][n.Name] = true
				}
			}
		}
	}
	for _, f := range files {
		if f.isTest() {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			// Whatever the function itself declares hides the package's. A
			// write before such a declaration is missed; nobody writes that.
			mine := maps.Clone(vars[f.pkg()])
			delete(mine, "_")
			ast.Inspect(fn, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.Field:
					for _, id := range n.Names {
						delete(mine, id.Name)
					}
				case *ast.ValueSpec:
					for _, id := range n.Names {
						delete(mine, id.Name)
					}
				case *ast.AssignStmt:
					for _, l := range n.Lhs {
						if id, ok := l.(*ast.Ident); ok && n.Tok == token.DEFINE {
							delete(mine, id.Name)
						}
					}
				case *ast.RangeStmt:
					for _, l := range []ast.Expr{n.Key, n.Value} {
						if id, ok := l.(*ast.Ident); ok && n.Tok == token.DEFINE {
							delete(mine, id.Name)
						}
					}
				}
				return true
			})
			written := func(e ast.Expr) {
				for {
					switch x := e.(type) {
					case *ast.IndexExpr:
						e = x.X
						continue
					case *ast.SelectorExpr:
						e = x.X
						continue
					case *ast.StarExpr:
						e = x.X
						continue
					case *ast.Ident:
						if mine[x.Name] {
							t.Errorf("%s: writes to the package's variable %s", f.fset.Position(x.Pos()), x.Name)
						}
					}
					return
				}
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.AssignStmt:
					if n.Tok != token.DEFINE {
						for _, l := range n.Lhs {
							written(l)
						}
					}
				case *ast.IncDecStmt:
					written(n.X)
				case *ast.CallExpr:
					if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "delete" || id.Name == "clear") && len(n.Args) > 0 {
						written(n.Args[0])
					}
				}
				return true
			})
		}
	}
}

// shared reports declarations of something that goroutines share.
func shared(s *ast.ValueSpec) (found bool) {
	look := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.ChanType:
			found = true
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			found = found || ok && (x.Name == "sync" && !strings.HasPrefix(n.Sel.Name, "Once") || x.Name == "atomic")
		}
		return true
	}
	if s.Type != nil {
		ast.Inspect(s.Type, look)
	}
	for _, v := range s.Values {
		ast.Inspect(v, look)
	}
	return found
}

// What a machine is called and where it keeps its copy of the source is nobody
// else's business, and wrong everywhere else.
func TestNoFileNamesTheMachineItWasWrittenOn(t *testing.T) {
	t.Parallel()
	var words []string
	for _, w := range [][]string{{"/work", "/"}, {"/ro", "ot/"}, {"proxy.", "golang.org"}, {"goproxy", "."}, {"GOPRO", "XY="}, {"GOFLAGS=", "-mod"}} {
		words = append(words, strings.Join(w, "")) // in two parts, or this file would name them
	}
	for name := range tracked(t) {
		info, err := os.Stat(filepath.FromSlash(name))
		if err != nil || info.Size() > 1<<20 {
			continue
		}
		text, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, w := range words {
			if i := bytes.Index(text, []byte(w)); i >= 0 {
				t.Errorf("%s:%d names %q", name, 1+bytes.Count(text[:i], []byte("\n")), w)
			}
		}
	}
}
