package archtest_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every fuzz target has inputs beside it that `go test` runs: without them whoever changes the code tries the few seeds that the
// target adds, and what a run of hours found is lost with its cache. `KEEP=10 FUZZ=name e2e/fuzz.sh` writes them. They are small,
// since they are read at each run and in each clone.
func TestFuzz_TargetsHaveACorpus(t *testing.T) {
	const most, largest = 32, 2 << 10
	targets := 0
	for _, p := range list(t, "./...") {
		for _, name := range append(p.TestGoFiles, p.XTestGoFiles...) {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Fuzz") {
					continue
				}
				targets++
				dir := filepath.Join(p.Dir, "testdata", "fuzz", fn.Name.Name)
				inputs, err := os.ReadDir(dir)
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				if len(inputs) == 0 || len(inputs) > most {
					t.Errorf("%s: %s has %d inputs in testdata/fuzz, want 1 to %d", p.ImportPath, fn.Name.Name, len(inputs), most)
				}
				for _, in := range inputs {
					b, err := os.ReadFile(filepath.Join(dir, in.Name()))
					if err != nil {
						t.Fatal(err)
					}
					if len(b) > largest || !bytes.HasPrefix(b, []byte("go test fuzz v1\n")) {
						t.Errorf("%s: input %s of %s has %d bytes, want one of go test with %d at most", p.ImportPath, in.Name(), fn.Name.Name, len(b), largest)
					}
				}
			}
		}
	}
	if targets < 60 {
		t.Errorf("%d fuzz targets are found: the rule checks nothing", targets)
	}
}
