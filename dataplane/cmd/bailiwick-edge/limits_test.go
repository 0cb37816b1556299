package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"bailiwick/regions/answer"
)

const page = "../../../docs/limits.md"

// The page of limits says of each option of the edge and of each constant it names what the program has. UPDATE=1 writes the
// values into it; what a row says beside is a person's.
func TestLimits_ThePageSaysWhatTheProgramHas(t *testing.T) {
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	options := optionsOf(t)
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
			want, known = constant(t, name)
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

// constant is that of a package of the data plane: proxy.headTimeout.
func constant(t *testing.T, name string) (string, bool) {
	dir, name, ok := strings.Cut(name, ".")
	if !ok {
		return "", false
	}
	where := filepath.Join("../../internal", dir)
	if dir == "dataplane" {
		where = "../.."
	}
	files, _ := filepath.Glob(filepath.Join(where, "*.go"))
	for _, file := range files {
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
					if id.Name == name && i < len(v.Values) {
						var text bytes.Buffer
						ast.Inspect(v.Values[i], func(n ast.Node) bool {
							if s, ok := n.(*ast.SelectorExpr); ok {
								fmt.Fprint(&text, s.X)
							}
							return true
						})
						return shown(t, v.Values[i], strings.Contains(text.String(), "time")), true
					}
				}
			}
		}
	}
	return "", false
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
	if _, plain := x.(*ast.BasicLit); !plain { // bytes are written as shifts, and what is counted as it is
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
		case "answer.Ramp":
			return int64(answer.Ramp)
		}
	}
	t.Fatalf("an expression of another kind than is read here: %T", x)
	return 0
}
