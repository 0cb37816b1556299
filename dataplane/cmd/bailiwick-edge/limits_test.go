package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane"
	"bailiwick/regions/answer"
	"bailiwick/shared/usage"
)

const page = "../../../docs/limits.md"

// The page of limits says of each option of the edge and of each constant it names what the program has, and it names each that
// looks like a limit. UPDATE=1 writes the values into it; what a row says beside is a person's.
func TestLimits_ThePageSaysWhatTheProgramHas(t *testing.T) {
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	options, constants := optionsOf(t), constantsOf(t)
	row := regexp.MustCompile("^\\| `([^`]+)` \\| ([^|]*) \\|")
	seen, lines := map[string]bool{}, strings.Split(string(raw), "\n")
	for i, line := range lines {
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		name, is := m[1], strings.TrimSpace(m[2])
		want, known := options[name]
		if !strings.HasPrefix(name, "-") {
			var x ast.Expr
			if x, known = constants[name]; known {
				want = shown(t, x, timed(x))
			}
		}
		seen[name] = true
		switch {
		case !known:
			t.Errorf("%s names %s, which the program does not have", page, name)
		case os.Getenv("UPDATE") != "":
			lines[i] = fmt.Sprintf("| `%s` | %s |%s", name, want, line[len(m[0]):])
		case is != want:
			t.Errorf("%s says %q of %s, the program has %q", page, is, name, want)
		}
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(page, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name := range options {
		if !seen[name] {
			t.Errorf("%s does not say what %s is by default", page, name)
		}
	}
	excused := map[string]bool{}
	for why, names := range noLimits {
		for name := range strings.FieldsSeq(names) {
			excused[name] = true
			if constants[name] == nil || seen[name] || !limit.MatchString(name) {
				t.Errorf("%s needs no excuse (%s): it is gone, on the page, or not taken for a limit", name, why)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(constants)) {
		if limit.MatchString(name) && !seen[name] && !excused[name] {
			t.Errorf("%s does not say what %s bounds, and noLimits not why it need not", page, name)
		}
	}
	if len(options) < 20 || len(seen) < len(options)+10 {
		t.Errorf("%d options and %d rows: the test checks little", len(options), len(seen))
	}
}

// optionsOf are the flags that main.go defines, with their defaults.
func optionsOf(t *testing.T) map[string]string {
	f, err := parser.ParseFile(token.NewFileSet(), "main.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		of, ok := sel.X.(*ast.Ident)
		if !ok || of.Name != "flags" {
			return true
		}
		args := call.Args
		kind, isVar := strings.CutSuffix(sel.Sel.Name, "Var")
		if isVar {
			args = args[1:]
		}
		switch kind {
		case "String", "Bool", "Int", "Int64", "Float64", "Duration":
			name := args[0].(*ast.BasicLit).Value
			out["-"+strings.Trim(name, `"`)] = shown(t, args[1], kind == "Duration")
		}
		return true
	})
	return out
}

// constantsOf are those of the packages of the data plane, with what each is: proxy.headTimeout.
func constantsOf(t *testing.T) map[string]ast.Expr {
	files, _ := filepath.Glob("../../*.go")
	inside, _ := filepath.Glob("../../internal/*/*.go")
	out := map[string]ast.Expr{}
	for _, file := range slices.Concat(files, inside) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok || gen.Tok != token.CONST {
				continue
			}
			for _, s := range gen.Specs {
				v := s.(*ast.ValueSpec)
				for i, id := range v.Names {
					if i < len(v.Values) && !counts(v.Values[i]) {
						out[f.Name.Name+"."+id.Name] = v.Values[i]
					}
				}
			}
		}
	}
	return out
}

// counts says whether an expression is one of an enumeration: states and kinds bound nothing.
func counts(x ast.Expr) (is bool) {
	ast.Inspect(x, func(n ast.Node) bool {
		id, ok := n.(*ast.Ident)
		is = is || ok && id.Name == "iota"
		return true
	})
	return is
}

// timed says whether an expression is a duration.
func timed(x ast.Expr) (is bool) {
	ast.Inspect(x, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		is = is || ok && fmt.Sprint(s.X) == "time"
		return true
	})
	return is
}

// limit is what names of constants that bound something look like. Who makes one of another name may give it one of these.
var limit = regexp.MustCompile(`\.([mM](ax|ost)([A-Z]\w*)?|\w*(Most|Max|Limit|AtOnce|Timeout|Time|Wait|Idle|Patience|Burst|Rate|Conns|Connections|Window|Windows)|atOnce|idle|patience|windows?)$`)

// noLimits look like it, and are nothing that anybody comes up against.
var noLimits = map[string]string{
	"an option, whose row says it":                               "proxy.DefaultUploadRate proxy.DefaultUploadWindow quota.DefaultWait dns.MaxTTL",
	"a manifest's to say, and in docs/apis.md":                   "channel.DefaultMax failover.defaultWait graphql.MaxDocument graphql.MaxTokens graphql.maxJSON limit.MaxWindows policy.maxWindows policy.compiledAtOnce tunnel.DefaultIdle websocket.DefaultIdle",
	"in the row of what it is a part of":                         "accesslog.lineMost cache.maxChanged edgetls.patience http2.tableMost",
	"work that is done at a time: the rest is next":              "dataplane.rowsAtOnce direct.most evidence.RefusalsAtOnce evidence.TellAtOnce loop.atOnce loop.most park.atOnce quota.maxAsks",
	"the edge's own measure: nobody is refused, or waits longer": "http3.bodyPatience loop.vainMost priority.windowMost proxy.judgeAtMost quota.eagerMost quota.floorMost quota.retryMost",
	"the edge's own file or table, which it bounds elsewhere":    "evidence.maxRefusedFile evidence.maxToldBytes policy.maxShard spool.checkpointLimit spool.maxRecord",
	"a protocol's, or a number's":                                "ferry.frameMost ferry.wordMost graphql.most http1.maxDigits http1.maxSize http2.settingWindow websocket.maxControl websocket.maxHeader",
}

// shown is an expression's value as the page has it.
func shown(t *testing.T, x ast.Expr, duration bool) string {
	if l, ok := x.(*ast.BasicLit); ok && l.Kind == token.STRING {
		if s, _ := strconv.Unquote(l.Value); s != "" {
			return s
		}
		return "none"
	}
	if id, ok := x.(*ast.Ident); ok && (id.Name == "false" || id.Name == "true") {
		return id.Name
	}
	if c, ok := x.(*ast.CallExpr); ok && strings.HasPrefix(fmt.Sprint(c.Fun), "&{os") {
		return "from the environment"
	}
	n := value(t, x)
	if duration {
		s := time.Duration(n).String()
		s = strings.TrimSuffix(strings.TrimSuffix(s, "0s"), "0m")
		if strings.HasSuffix(time.Duration(n).String(), "0s") && len(s) > 0 && s[len(s)-1] >= '0' && s[len(s)-1] <= '9' { // 30s, and not 3
			s = time.Duration(n).String()
		}
		if s == "" {
			s = "0s"
		}
		return s
	}
	if shifted(x) { // bytes are written as shifts, and what is counted as it is
		for _, u := range []struct {
			size int64
			name string
		}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
			if n >= u.size && n%u.size == 0 {
				return fmt.Sprintf("%d %s", n/u.size, u.name)
			}
		}
	}
	return strconv.FormatInt(n, 10)
}

func shifted(x ast.Expr) (is bool) {
	ast.Inspect(x, func(n ast.Node) bool {
		b, ok := n.(*ast.BinaryExpr)
		is = is || ok && b.Op == token.SHL
		return true
	})
	return is
}

func value(t *testing.T, x ast.Expr) int64 {
	switch x := x.(type) {
	case *ast.BasicLit:
		n, err := strconv.ParseInt(strings.ReplaceAll(x.Value, "_", ""), 0, 64)
		if err != nil {
			t.Fatalf("%s is no number: %v", x.Value, err)
		}
		return n
	case *ast.ParenExpr:
		return value(t, x.X)
	case *ast.BinaryExpr:
		a, b := value(t, x.X), value(t, x.Y)
		switch x.Op {
		case token.MUL:
			return a * b
		case token.SHL:
			return a << b
		case token.ADD:
			return a + b
		}
	case *ast.SelectorExpr:
		switch fmt.Sprint(x.X) + "." + x.Sel.Name {
		case "time.Hour":
			return int64(time.Hour)
		case "time.Minute":
			return int64(time.Minute)
		case "time.Second":
			return int64(time.Second)
		case "time.Microsecond":
			return int64(time.Microsecond)
		case "time.Millisecond":
			return int64(time.Millisecond)
		case "dataplane.DefaultLinger":
			return int64(dataplane.DefaultLinger)
		case "answer.Ramp":
			return int64(answer.Ramp)
		case "usage.MaxDetailRows":
			return usage.MaxDetailRows
		}
	}
	t.Fatalf("an expression of another kind than is read here: %T", x)
	return 0
}
