package archtest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// Every place where a panic is caught, and what becomes of it. On a request's path the doors for HTTP/1.1, HTTP/2 and
// HTTP/3 catch it; what they print is tested in package proxy. A new one needs its line, and must
// not print what a request brought.
var recovers = map[string]string{
	"dataplane/internal/spool/append.go":            "a fault on mapped memory becomes an error with its address; other panics go on",
	"dataplane/internal/spool/guard.go":             "the same",
	"dataplane/internal/proxy/conn.go":              "whatever a connection over HTTP/1.1 met; its row is written, it ends, and where in the code it was is logged",
	"dataplane/internal/proxy/looping.go":           "the same on a loop: that connection ends, and the loop goes on",
	"dataplane/internal/http2/http.go":              "the same over HTTP/2: the stream is reset, and where in the code it was is logged by the door",
	"dataplane/internal/http2/stream.go":            "the same for requests on the common road",
	"dataplane/internal/http3/http.go":              "the same over HTTP/3",
	"dataplane/internal/http3/stream.go":            "the same for requests on the common road over HTTP/3",
	"dataplane/internal/proxy/responder.go":         "the same within an answer, which is broken off",
	"dataplane/internal/proxy/caching.go":           "an answer to nobody that breaks off (http.ErrAbortHandler); of other panics the place is logged, and the renewal ends",
	"dataplane/internal/tunnel/tunnel.go":           "the same of a connection of which nothing is known but its bytes",
	"dataplane/internal/websocket/joint.go":         "one connection's end; where in the code it was is logged",
	"controlplane/internal/group/raftgroup/disk.go": "what bbolt says of a page; the file is refused",
	"controlplane/internal/ledger/machine.go":       "what pebble says of its files; the node stops with it",
}

func TestPanics_AreCaughtWhereTheListSays(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range list(t, "./dataplane/...", "./controlplane/...", "./shared/...", "./regions/...") {
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			at := strings.TrimPrefix(p.ImportPath, module+"/") + "/" + name
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "recover" && len(call.Args) == 0 {
					if seen[at] = true; recovers[at] == "" {
						t.Errorf("%s catches a panic: it needs its line in this test's list", at)
					}
				}
				return true
			})
		}
	}
	for at := range recovers {
		if !seen[at] {
			t.Errorf("%s is on the list and catches nothing", at)
		}
	}
}
