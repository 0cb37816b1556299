package archtest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// logged are the names of attributes that our lines may carry. A log leaves the machine and often the zone: names
// of nodes, regions, APIs and policies, numbers and reasons are what it is for. What a request brought is not:
// no path, query, header, body, address of a client or text of a key. Customers go by no name. A new name is
// added here after that question.
var logged = strings.Fields(`
addr admin admin_urls after after_ms api blocks budget budget_bytes by bytes bytes_before catalog cells count day detail duration edge epoch 
erased_rows err error expired_rows fails file files flights from grant group hash hashed heard held host hosts https id index key keys kind kind_of 
leader limit lock log majority minutes name next_order node nodes not_after number offset operation part peer plan policy position problem program 
reason record records records_behind_it refused_total region remote request retry_in revision rows rows_lost rule segment seq serial served sessions 
signed sink source stored sum target term to transport type url valid_for waited_for want_snapshot webhook why why_here written zone 
`)

func TestLogs_CarryNamesOnTheListOnly(t *testing.T) {
	allowed, used := map[string]bool{}, map[string]bool{}
	for _, name := range logged {
		allowed[name] = true
	}
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
						t.Errorf("%s: the log attribute %q is not on the list in e2e/archtest: may it leave the zone?", fset.Position(call.Args[i].Pos()), name)
					}
					used[name] = true
				}
				return true
			})
		}
	}
	for _, name := range logged {
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

// No metric has a label: what a series is called is written in the code, and nothing that a request brought can become
// one. The first that needs one adds its few values here. Profiles and variables of the process are served nowhere:
// there are requests in its memory.
func TestMetrics_SayNothingOfRequests(t *testing.T) {
	metrics := 0
	for _, p := range list(t, "./dataplane/...", "./controlplane/...", "./shared/...") {
		for _, imp := range p.Imports {
			switch imp {
			case "net/http/pprof", "runtime/pprof", "runtime/trace", "expvar":
				t.Errorf("%s imports %s: memory and stacks of a process hold keys and requests", p.ImportPath, imp)
			}
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
			ast.Inspect(f, func(n ast.Node) bool {
				switch x := n.(type) {
				case *ast.CompositeLit:
					if sel, ok := x.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Metric" {
						metrics++
					}
				case *ast.KeyValueExpr:
					if id, ok := x.Key.(*ast.Ident); ok && id.Name == "Labels" {
						t.Errorf("%s: a metric with a label: which values may it have?", fset.Position(x.Pos()))
					}
				}
				return true
			})
		}
	}
	if metrics < 4 {
		t.Errorf("%d metrics found: the rule checks nothing", metrics)
	}
}
