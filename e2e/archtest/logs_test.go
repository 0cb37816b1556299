package archtest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"testing"

	"bailiwick/shared/telemetry"
	"slices"
	"strings"
)

func TestLogs_CarryNamesOnTheListOnly(t *testing.T) {
	allowed, used := map[string]bool{}, map[string]bool{}
	for _, name := range telemetry.Names() {
		allowed[name] = true
	}
	every := map[string]bool{"time": true, "level": true, "msg": true, "program": true, "node": true}
	first := map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0, "Log": 3} // of the attributes
	for _, p := range list(t, "./dataplane/...", "./controlplane/...", "./shared/...") {
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				at, ok := first[sel.Sel.Name]
				if !ok || len(call.Args) <= at || at > 0 && text(call.Args[at-1]) == "" {
					return true // it logs nothing
				}
				for i := at; i+1 < len(call.Args); i += 2 {
					name := text(call.Args[i])
					if !allowed[name] {
						t.Errorf("%s: the log attribute %q is not on the list in shared/telemetry/names.go: may it leave the zone?", fset.Position(call.Args[i].Pos()), name)
					}
					if every[name] && !strings.HasSuffix(p.ImportPath, "/telemetry") {
						t.Errorf("%s: %q is on every line already, and readers of JSON take one of the two", fset.Position(call.Args[i].Pos()), name)
					}
					used[name] = true
				}
				return true
			})
		}
	}
	for _, name := range telemetry.Names() {
		if !used[name] {
			t.Errorf("%q is on the list, and no line carries it any more", name)
		}
	}
}

// text is the value of a literal, "" of anything else.
func text(e ast.Expr) string {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return ""
	}
	s, _ := strconv.Unquote(l.Value)
	return s
}

// What a series is called is written in the code, and nothing that a request brought can become a label: only one file gives
// labels, of these keys, whose values are closed lists that are walked once, before any door is open. Variables of the process are served nowhere, and profiles by one package
// alone, which tells them to its own machine: names of functions, counts and sizes, by which an operator finds what an edge spends
// its time on. What is in memory they do not show, and nobody serves the mux that net/http/pprof writes itself into.
//
// code, reason, class, outcome: words of ours or of a standard; protocol: what brought a request; at: upstream or edge; result: of
// a look into a cache, or at a token.
var metricLabels = []string{"at", "class", "code", "outcome", "protocol", "reason", "result"}

const labelledMetrics = "dataplane/metrics.go"

func TestMetrics_SayNothingOfRequests(t *testing.T) {
	metrics, profiled := 0, false
	for _, p := range list(t, "./dataplane/...", "./controlplane/...", "./shared/...") {
		for _, imp := range p.Imports {
			switch imp {
			case "net/http/pprof", "runtime/pprof", "runtime/trace", "expvar":
				if profiles := imp == "net/http/pprof" && p.ImportPath == module+"/dataplane/internal/profile"; profiles {
					profiled = true
					continue
				}
				t.Errorf("%s imports %s: memory and stacks of a process hold keys and requests", p.ImportPath, imp)
			}
		}
		for _, use := range selectors(t, p, map[string][]string{"net/http": {"DefaultServeMux", "Handle", "HandleFunc", "ListenAndServe", "ListenAndServeTLS", "Serve", "ServeTLS"}}) {
			t.Errorf("%s: net/http's default mux may be served, and profiles with it", use)
		}
		if under(p.ImportPath, "shared/telemetry") {
			continue
		}
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			resource := map[ast.Node]bool{} // fields of resources, whose labels are operators' own
			ast.Inspect(f, func(n ast.Node) bool {
				switch x := n.(type) {
				case *ast.CompositeLit:
					sel, ok := x.Type.(*ast.SelectorExpr)
					if ok && sel.Sel.Name == "Metric" {
						metrics++
					}
					if !ok {
						break
					}
					if of, ok := sel.X.(*ast.Ident); ok && (of.Name == "model" || of.Name == "adminv1") {
						for _, e := range x.Elts {
							resource[e] = true
						}
					}
				case *ast.KeyValueExpr:
					if id, ok := x.Key.(*ast.Ident); ok && id.Name == "Labels" && !resource[x] && !(strings.HasSuffix(filepath.Join(p.Dir, file), labelledMetrics) && labels(x.Value)) {
						t.Errorf("%s: a metric with a label: which values may it have?", fset.Position(x.Pos()))
					}
				}
				return true
			})
		}
	}
	if !profiled {
		t.Error("nobody serves profiles: the exception is for nobody")
	}
	if metrics < 4 {
		t.Errorf("%d metrics found: the rule checks nothing", metrics)
	}
}

// labels says whether a literal has the keys of labels and no other.
func labels(e ast.Expr) bool {
	l, ok := e.(*ast.CompositeLit)
	if !ok {
		return false
	}
	for _, e := range l.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok || !slices.Contains(metricLabels, text(kv.Key)) {
			return false
		}
	}
	return len(l.Elts) > 0
}
