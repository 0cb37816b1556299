package model

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"bailiwick/shared/table"
)

// written are the types of all that operators write, and those within them.
func written() map[string]reflect.Type {
	types := map[string]reflect.Type{}
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t.PkgPath() != reflect.TypeFor[API]().PkgPath() || types[t.Name()] != nil {
			return
		}
		types[t.Name()] = t
		for i := range t.NumField() {
			walk(t.Field(i).Type)
		}
	}
	for _, v := range []any{Zone{}, Region{}, LegalBasis{}, Policy{}, API{}, Product{}, Plan{}, Customer{}, Closure{}, Drain{}, Switch{}, Key{}} {
		walk(reflect.TypeOf(v))
	}
	return types
}

// Whoever adds a field must say what an edge that does not know it may do: without an entry an old one would serve without it.
func TestFields_AreAllEntered(t *testing.T) {
	types := written()
	for name, typ := range types {
		var have []string
		for i := range typ.NumField() {
			json, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if typ.Field(i).Anonymous {
				continue // its own fields are entered
			}
			have = append(have, json)
			if _, ok := fields[name][json]; !ok {
				t.Errorf("%s.%s is not in the table of fields: enter since which level programs know it, and whether an edge that does not may serve without it", name, json)
			}
			switch k := typ.Field(i).Type.Kind(); k {
			case reflect.Map, reflect.Interface, reflect.Array:
				t.Errorf("%s.%s is a %s, which NeedsOf does not look into", name, json, k)
			}
		}
		for json, f := range fields[name] {
			if !slices.Contains(have, json) {
				t.Errorf("%s.%s is in the table of fields and nowhere else", name, json)
			}
			if f.since > table.Current || f.restricts && f.since == 0 {
				t.Errorf("%s.%s is of level %d, this program's is %d, and what restricts is not of level 0", name, json, f.since, table.Current)
			}
		}
	}
	for name := range fields {
		if types[name] == nil {
			t.Errorf("the table of fields has a type %s that no operator writes", name)
		}
	}
}

// A single field, wherever it is, decides; an empty one does not.
func TestNeedsOf_FindsEachField(t *testing.T) {
	for name, typ := range written() {
		for i := range typ.NumField() {
			json, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			v := reflect.New(typ).Elem()
			fill(v.Field(i))
			n, f := NeedsOf(v.Interface()), fields[name][json]
			if n.Nodes < f.since || f.restricts && (n.Edges < f.since || n.Field == "") {
				t.Errorf("%s with %s alone needs %+v, want %+v", name, json, n, f)
			}
		}
	}
	if n := NeedsOf(API{Name: "a", Routes: []Route{{}, {Scope: "x"}}}); n != (Needs{1, 1, "routes[1].scope"}) {
		t.Errorf("an API with a scope needs %+v", n)
	}
	if n := NeedsOf(API{Name: "a", Routes: []Route{{Name: "r", PathPrefix: "/"}}}); n != (Needs{}) {
		t.Errorf("an API of before needs %+v", n)
	}
	if n := NeedsOf(API{Auth: &Auth{Identity: "none"}}); n != (Needs{1, 1, "auth.identity"}) {
		t.Errorf("an API whose upstreams are not told who asks needs %+v", n)
	}
	if n := NeedsOf(API{Shaping: Shaping{CORS: &CORS{Origins: []string{"https://a.test"}}}}); n != (Needs{1, 1, "cors"}) {
		t.Errorf("an API whose pages are named needs %+v: an edge without that passes on what the upstream allows", n)
	}
	if n := NeedsOf(API{Dispatch: Dispatch{SlowStart: 1}}); n != (Needs{Nodes: 1}) {
		t.Errorf("a slow start needs %+v: nothing of edges", n)
	}
}

func TestNeedsOf_Values(t *testing.T) {
	defer func(f field) { fields["Switch"]["feature"] = f }(fields["Switch"]["feature"])
	fields["Switch"]["feature"] = field{values: map[string]field{"later": forbids2611}}
	if n := NeedsOf(Switch{Feature: "later"}); n.Edges != 1 || n.Field != "feature" {
		t.Errorf("a value that came later needs %+v", n)
	}
	if n := NeedsOf(Switch{Feature: "dns"}); n != (Needs{}) {
		t.Errorf("a value of before needs %+v", n)
	}
}

// fill makes a value that is not empty.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Uint8:
		if v.CanInt() {
			v.SetInt(1)
		} else {
			v.SetUint(1)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i))
			}
		}
	}
}
