package archtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "bailiwick"

type pkg struct {
	ImportPath   string
	Dir          string
	Name         string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	Deps         []string
}

func list(t *testing.T, patterns ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-deps=false", "-json=ImportPath,Dir,Name,GoFiles,TestGoFiles,XTestGoFiles,Imports,Deps"}, patterns...)...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list found no package; a rule over nothing proves nothing")
	}
	return pkgs
}

func under(path string, roots ...string) bool {
	for _, r := range roots {
		full := module + "/" + r
		if path == full || strings.HasPrefix(path, full+"/") {
			return true
		}
	}
	return false
}

// The planes meet only on the wire: a data plane that could call control code would one day need it to serve.
func TestPlanes_DoNotSeeEachOther(t *testing.T) {
	for _, p := range list(t, "./...") {
		for _, imp := range p.Imports {
			if under(p.ImportPath, "dataplane") && under(imp, "controlplane") || under(p.ImportPath, "controlplane") && under(imp, "dataplane") {
				t.Errorf("%s imports %s: the planes do not see each other", p.ImportPath, imp)
			}
			if under(p.ImportPath, "shared", "regions") && under(imp, "dataplane", "controlplane", "deploy", "e2e") {
				t.Errorf("%s imports %s: contracts do not depend on the planes", p.ImportPath, imp)
			}
		}
	}
}

// One owner per technology, so that replacing one is a change in one place.
func TestTechnologies_HaveOneOwner(t *testing.T) {
	owners := map[string][]string{
		"github.com/hashicorp/raft":        {"controlplane/internal/group/raftgroup"},
		"go.etcd.io/bbolt":                 {"controlplane/internal/group/raftgroup"},
		"go.etcd.io/etcd":                  {"controlplane/internal/group/etcdgroup", "deploy/sandbox"}, // the sandbox runs a server
		"github.com/cockroachdb/pebble":    {"controlplane/internal/ledger"},
		"github.com/letsencrypt/pebble":    {"deploy/sandbox"},                                                                                                                                                            // a test authority: no product is built with it
		"github.com/quic-go/quic-go":       {"dataplane/internal/ship", "controlplane/internal/ingest", "dataplane/internal/proxy", "dataplane/internal/http3", "dataplane/internal/relay", "e2e/benchedge", "e2e/flood"}, // which ask
		"github.com/caddyserver/certmagic": {"dataplane/internal/edgetls"},
		"go.uber.org/zap":                  {"dataplane/internal/edgetls", "controlplane/internal/group/etcdgroup"},
		"github.com/prometheus":            {"shared/telemetry"},
		"github.com/spf13/cobra":           {"controlplane/cmd/bailiwick"},
		"github.com/twmb/franz-go":         {"controlplane/internal/sink/kafka"},
		"github.com/miekg/dns":             {"dataplane/internal/dns", "e2e/harness"}, // the harness asks
		"github.com/parquet-go":            {"controlplane/internal/detail"},
		"github.com/coreos/go-oidc":        {"controlplane/internal/sso"},
		"github.com/go-jose/go-jose":       {"controlplane/internal/sso", "dataplane/internal/token"},
	}
	used := map[string]bool{}
	for _, p := range list(t, "./...") {
		for _, imp := range p.Imports {
			for tech, homes := range owners {
				if imp != tech && !strings.HasPrefix(imp, tech+"/") {
					continue
				}
				used[tech] = true
				if !under(p.ImportPath, homes...) {
					t.Errorf("%s imports %s, which belongs to %v", p.ImportPath, imp, homes)
				}
			}
		}
	}
	for _, tech := range []string{"github.com/hashicorp/raft", "github.com/cockroachdb/pebble", "github.com/quic-go/quic-go", "github.com/caddyserver/certmagic", "github.com/parquet-go"} {
		if !used[tech] {
			t.Errorf("nobody imports %s: the rule checks nothing", tech)
		}
	}
}

// Generated types stop at the doors: inside, code would otherwise hold half-filled messages from the wire.
func TestGenerated_StopsAtTheDoors(t *testing.T) {
	inner := []string{"regions", "shared/apikey", "shared/revision", "shared/usage", "shared/table", "shared/durable", "shared/identity",
		"controlplane/internal/model", "controlplane/internal/alert", "controlplane/internal/calendar", "controlplane/internal/forecast", "controlplane/internal/group", "controlplane/internal/view", "controlplane/internal/ledger", "controlplane/internal/quota", "controlplane/internal/detail",
		"dataplane/internal/policy", "dataplane/internal/gate", "dataplane/internal/limit", "dataplane/internal/spool", "dataplane/internal/detail", "dataplane/internal/evidence",
		"dataplane/internal/observe", "dataplane/internal/dns", "dataplane/internal/token", "dataplane/internal/priority"}
	for _, p := range list(t, "./...") {
		for _, imp := range p.Imports {
			if under(imp, "proto/gen") && under(p.ImportPath, inner...) {
				t.Errorf("%s imports %s: generated types stop at the doors", p.ImportPath, imp)
			}
		}
	}
}

// Deterministic and pure packages read no clock, randomness or I/O; they are given all of it.
func TestPure_ReadsNoClock(t *testing.T) {
	pure := []string{"regions", "controlplane/internal/view", "controlplane/internal/calendar", "controlplane/internal/forecast", "dataplane/internal/gate", "dataplane/internal/http1", "shared/revision", "shared/usage", "shared/table", "controlplane/internal/attribution", "controlplane/internal/correction"}
	forbidden := map[string][]string{"time": {"Now", "Since", "Until", "Sleep", "After", "NewTimer", "NewTicker", "Tick", "AfterFunc"}}
	imports := []string{"os", "net", "net/http", "math/rand", "math/rand/v2", "crypto/rand"}
	for _, p := range list(t, "./...") {
		if !under(p.ImportPath, pure...) || strings.HasSuffix(p.ImportPath, "test") { // made for tests
			continue
		}
		for _, imp := range p.Imports {
			if slices.Contains(imports, imp) {
				t.Errorf("%s imports %s, but is pure", p.ImportPath, imp)
			}
		}
		for _, use := range selectors(t, p, forbidden) {
			t.Errorf("%s: a pure package reads the clock", use)
		}
	}
}

// Only main packages read flags or the environment, or end the process.
func TestProcess_BelongsToMain(t *testing.T) {
	forbidden := map[string][]string{"os": {"Exit", "Getenv", "LookupEnv", "Environ", "Args"}, "log": {"Fatal", "Fatalf"}, "flag": {"Parse", "String", "Bool"}}
	for _, p := range list(t, "./...") {
		if p.Name == "main" || under(p.ImportPath, "e2e", "proto/gen") {
			continue
		}
		for _, use := range selectors(t, p, forbidden) {
			t.Errorf("%s: only cmd may do that", use)
		}
	}
}

// The edge is light, and holds nothing that could make it a control node.
func TestEdge_LinksNoControlTechnology(t *testing.T) {
	for _, p := range list(t, "./dataplane/cmd/bailiwick-edge") {
		if len(p.Deps) < 100 {
			t.Fatalf("bailiwick-edge has %d dependencies; go list did not see them", len(p.Deps))
		}
		for _, dep := range p.Deps {
			for _, bad := range []string{"github.com/hashicorp/raft", "go.etcd.io/", "github.com/cockroachdb/pebble", "github.com/parquet-go", "cel.dev/", "buf.build/go/protovalidate", "github.com/spf13/cobra", "github.com/twmb", module + "/controlplane"} {
				if strings.HasPrefix(dep, bad) {
					t.Errorf("bailiwick-edge links %s", dep)
				}
			}
		}
	}
}

// The programs speak to an etcd and run none: its server is for tests and the sandbox.
func TestPrograms_LinkNoEtcdServer(t *testing.T) {
	client := false
	for _, p := range list(t, "./controlplane/cmd/...", "./dataplane/cmd/...") {
		for _, dep := range p.Deps {
			client = client || strings.HasPrefix(dep, "go.etcd.io/etcd/client/v3")
			for _, bad := range []string{"go.etcd.io/etcd/server", "go.etcd.io/raft"} {
				if strings.HasPrefix(dep, bad) {
					t.Errorf("%s links %s", p.ImportPath, dep)
				}
			}
		}
	}
	if deps := list(t, "./controlplane/internal/group/etcdgroup")[0].Deps; !client && !slices.Contains(deps, "go.etcd.io/etcd/client/v3") {
		t.Error("nothing links the etcd client: the rule checks nothing")
	}
}

// A package without a doc is a package whose promises nobody wrote down; two docs contradict each other.
func TestPackages_HaveOneDoc(t *testing.T) {
	for _, p := range list(t, "./...") {
		if under(p.ImportPath, "proto/gen") {
			continue
		}
		docs := 0
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				docs++
			}
		}
		if len(p.GoFiles) > 0 && docs != 1 {
			t.Errorf("%s has %d package docs, want 1", p.ImportPath, docs)
		}
	}
}

// shared is a charter, not a drawer: non-test code of both planes imports each package, and there are at most ten.
func TestShared_IsUsedByBothPlanes(t *testing.T) {
	users := map[string]map[string]bool{}
	for _, p := range list(t, "./...") {
		for _, imp := range p.Imports {
			for _, plane := range []string{"dataplane", "controlplane"} {
				if under(imp, "shared") && under(p.ImportPath, plane) {
					if users[imp] == nil {
						users[imp] = map[string]bool{}
					}
					users[imp][plane] = true
				}
			}
		}
	}
	entries, err := os.ReadDir("../../shared")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		count++
		path := module + "/shared/" + e.Name()
		for _, plane := range []string{"dataplane", "controlplane"} {
			used := users[path][plane]
			for sub := range users {
				used = used || strings.HasPrefix(sub, path+"/") && users[sub][plane]
			}
			if !used {
				t.Errorf("%s is not imported by %s", path, plane)
			}
		}
	}
	if count > 10 {
		t.Errorf("shared has %d packages, want at most 10", count)
	}
}

// selectors finds uses of pkg.Name in a package's non-test files.
func selectors(t *testing.T, p pkg, forbidden map[string][]string) []string {
	t.Helper()
	var found []string
	for _, name := range p.GoFiles {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		local := map[string]string{}
		for _, imp := range f.Imports {
			path := strings.Trim(imp.Path.Value, `"`)
			if imp.Name != nil {
				local[imp.Name.Name] = path
			} else {
				local[strings.TrimSuffix(path[strings.LastIndex(path, "/")+1:], "-go")] = path // quic-go is package quic
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			id, ok := sel.X.(*ast.Ident)
			if ok && id.Obj == nil && slices.Contains(forbidden[local[id.Name]], sel.Sel.Name) {
				found = append(found, fset.Position(sel.Pos()).String()+" "+id.Name+"."+sel.Sel.Name)
			}
			return true
		})
	}
	return found
}
