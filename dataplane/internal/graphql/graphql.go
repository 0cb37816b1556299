// Package graphql owns what a GraphQL request asks: how deep, how much, and what that costs, before an upstream sees it.
//
// It reads a document once, without the API's schema: a field costs one, and what lies below it as often as its argument
// first, last or limit says. It answers no query and changes none. What it reads is bounded before it is read, and what it
// reckons is bounded however fragments are nested. It keeps nothing, so nothing survives a crash, and it may be called by any
// number of goroutines at once.
package graphql

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/gqlerror"
	"github.com/vektah/gqlparser/v2/parser"

	"bailiwick/shared/table"
	"bailiwick/shared/table/schema"
)

// Bounds of what is read.
const (
	MaxDocument = 64 << 10 // bytes
	MaxTokens   = 5000
	maxJSON     = 64 // of values within values
	most        = math.MaxInt32
)

// Asked is what one request asks, all its operations together.
type Asked struct {
	Operations int64
	Fields     int64 // each as often as it stands in the operation, fragments put in; __typename is free
	Cost       int64
	Persisted  bool // some document was not there, but a name for one that the upstream keeps
}

// Read reads a request and holds it against bounds. body is nil if there is none. An error is for the caller.
func Read(b *table.GraphQL, method string, query url.Values, contentType string, body []byte) (Asked, error) {
	for name := range query {
		if other(name) {
			return Asked{}, fmt.Errorf("parameter %q is none of a request", brief(name))
		}
	}
	var list []operation
	switch method {
	case http.MethodGet, http.MethodHead:
		if body != nil {
			return Asked{}, errors.New("a query by GET stands in the URL, and there is a body")
		}
		for _, name := range members {
			if len(query[name]) > 1 {
				return Asked{}, fmt.Errorf("%s is there more than once", name)
			}
		}
		op := operation{text: query.Get("query"), name: query.Get("operationName"), read: true, persisted: query.Get("extensions") != "",
			named: query.Get("id") != "" || query.Get("documentId") != ""}
		if v := query.Get("variables"); v != "" {
			value, err := schema.Decode([]byte(v), maxJSON)
			if err != nil {
				return Asked{}, fmt.Errorf("variables: %w", err)
			}
			var ok bool
			if op.variables, ok = value.(map[string]any); !ok && value != nil {
				return Asked{}, errors.New("variables are no object")
			}
		}
		list = []operation{op}
	case http.MethodPost:
		for _, name := range members {
			if query.Has(name) { // some servers take that, others the body's
				return Asked{}, fmt.Errorf("%s stands in the URL of a POST: write it in the body", name)
			}
		}
		var err error
		if list, err = posted(b, contentType, body); err != nil {
			return Asked{}, err
		}
	default:
		return Asked{}, errors.New("GraphQL is asked by GET or POST")
	}
	all := Asked{Operations: int64(len(list))}
	for i := range list {
		got, err := list[i].measure(b)
		if err != nil && len(list) > 1 {
			err = fmt.Errorf("operation %d of the list: %w", i+1, err)
		}
		if err != nil {
			return Asked{}, err
		}
		all.Fields, all.Cost, all.Persisted = add(all.Fields, got.Fields), add(all.Cost, got.Cost), all.Persisted || got.Persisted
	}
	if all.Cost > b.Cost {
		return Asked{}, fmt.Errorf("it costs %d, more than %d: ask for fewer fields, or fewer of what they list (first, last, limit)", all.Cost, b.Cost)
	}
	return all, nil
}

// members are what servers read of a request, in the URL or in the body.
var members = []string{"query", "operationName", "variables", "extensions", "id", "documentId"}

// other says whether a name is another spelling of one of them: a reader that does not care for case would take it for that one.
func other(name string) bool {
	for _, known := range members {
		if name != known && strings.EqualFold(name, known) {
			return true
		}
	}
	return false
}

// operation is one as it was sent.
type operation struct {
	text, name string
	variables  map[string]any
	persisted  bool // it may be known by another name
	named      bool // it has the name of a document that the upstream keeps, whatever text is there
	read       bool // it must not change anything
}

func posted(b *table.GraphQL, contentType string, body []byte) ([]operation, error) {
	media, params, err := mime.ParseMediaType(contentType)
	switch {
	case err == nil && media == "application/graphql" && schema.UTF8(params):
		return []operation{{text: string(body)}}, nil
	case err != nil || !schema.JSON(contentType):
		return nil, errors.New("send it as application/json")
	}
	v, err := schema.Decode(body, maxJSON)
	if err != nil {
		return nil, err
	}
	list, batch := v.([]any)
	switch {
	case !batch:
		list = []any{v}
	case b.Batch == 0:
		return nil, errors.New("this route takes no lists of operations: send each by itself")
	case len(list) == 0 || len(list) > b.Batch:
		return nil, fmt.Errorf("the list holds %d operations, and this route takes 1 to %d", len(list), b.Batch)
	}
	var out []operation
	for _, v := range list {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, errors.New("a request is an object with a query")
		}
		op := operation{}
		for name, into := range map[string]*string{"query": &op.text, "operationName": &op.name} {
			if m[name] == nil {
				continue
			}
			if *into, ok = m[name].(string); !ok {
				return nil, fmt.Errorf("%s is no text", name)
			}
		}
		if m["variables"] != nil {
			if op.variables, ok = m["variables"].(map[string]any); !ok {
				return nil, errors.New("variables are no object")
			}
		}
		for name := range m {
			if other(name) {
				return nil, fmt.Errorf("member %q is none of a request", brief(name))
			}
		}
		op.persisted, op.named = m["extensions"] != nil, m["id"] != nil || m["documentId"] != nil
		out = append(out, op)
	}
	return out, nil
}

func (o *operation) measure(b *table.GraphQL) (Asked, error) {
	switch {
	case o.named && strings.TrimSpace(o.text) != "": // which of the two is asked nobody knows
		return Asked{}, errors.New("there is a document, and the name of one that is kept (id, documentId): send one of them")
	case strings.TrimSpace(o.text) == "" && (o.persisted || o.named):
		return Asked{Fields: 1, Cost: 1, Persisted: true}, nil
	case strings.TrimSpace(o.text) == "":
		return Asked{}, errors.New("there is no query")
	case len(o.text) > MaxDocument:
		return Asked{}, fmt.Errorf("the document has %d bytes, more than %d", len(o.text), MaxDocument)
	}
	doc, err := parser.ParseQueryWithTokenLimit(&ast.Source{Input: o.text}, MaxTokens)
	if err != nil {
		if e, ok := errors.AsType[*gqlerror.Error](err); ok && len(e.Locations) > 0 {
			return Asked{}, fmt.Errorf("line %d, column %d: %s", e.Locations[0].Line, e.Locations[0].Column, brief(e.Message))
		}
		return Asked{}, errors.New(brief(err.Error()))
	}
	for i, f := range doc.Fragments {
		if doc.Fragments.ForName(f.Name) != doc.Fragments[i] {
			return Asked{}, errors.New("two fragments have one name")
		}
	}
	var op *ast.OperationDefinition
	for _, one := range doc.Operations {
		if o.name == "" && len(doc.Operations) == 1 || o.name != "" && one.Name == o.name {
			if op != nil {
				return Asked{}, errors.New("two operations have one name")
			}
			op = one
		}
	}
	switch {
	case op == nil && o.name != "":
		return Asked{}, errors.New("the document holds no operation of the name in operationName")
	case op == nil:
		return Asked{}, errors.New("the document holds no operation, or several: name one in operationName")
	case o.read && op.Operation != ast.Query:
		return Asked{}, errors.New("what changes something is asked by POST")
	}
	m := &meter{bounds: b, doc: doc, op: op, variables: o.variables, fragments: map[string]*extent{}}
	e, err := m.set(op.SelectionSet)
	switch {
	case err != nil:
		return Asked{}, err
	case e.depth > int64(b.Depth):
		return Asked{}, fmt.Errorf("fields lie %d deep, more than %d", e.depth, b.Depth)
	case e.aliases > int64(b.Aliases):
		return Asked{}, fmt.Errorf("it has %d aliases, more than %d", e.aliases, b.Aliases)
	case e.roots > int64(b.RootFields):
		return Asked{}, fmt.Errorf("it asks for %d fields at the root, more than %d", e.roots, b.RootFields)
	case e.introspects && !b.Introspection:
		return Asked{}, errors.New("this route tells nothing of its schema (__schema, __type)")
	}
	return Asked{Fields: max(e.fields, 1), Cost: max(e.cost, 1)}, nil
}

// extent is what a selection comes to, whatever it stands in.
type extent struct {
	depth, aliases, roots, fields, cost int64
	introspects                         bool
}

type meter struct {
	bounds    *table.GraphQL
	doc       *ast.QueryDocument
	op        *ast.OperationDefinition
	variables map[string]any
	fragments map[string]*extent // each is measured once; nil: it is being
}

func (m *meter) set(s ast.SelectionSet) (e extent, err error) {
	for _, sel := range s {
		var in extent
		switch sel := sel.(type) {
		case *ast.Field:
			if in, err = m.field(sel); err != nil {
				return e, err
			}
		case *ast.InlineFragment:
			if in, err = m.set(sel.SelectionSet); err != nil {
				return e, err
			}
		case *ast.FragmentSpread:
			of, err := m.fragment(sel.Name)
			if err != nil {
				return e, err
			}
			in = *of
		}
		e.depth = max(e.depth, in.depth)
		e.aliases, e.roots, e.fields, e.cost = add(e.aliases, in.aliases), add(e.roots, in.roots), add(e.fields, in.fields), add(e.cost, in.cost)
		e.introspects = e.introspects || in.introspects
	}
	return e, nil
}

func (m *meter) fragment(name string) (*extent, error) {
	if e, known := m.fragments[name]; known {
		if e == nil {
			return nil, errors.New("a fragment lies within itself")
		}
		return e, nil
	}
	def := m.doc.Fragments.ForName(name)
	if def == nil {
		return nil, errors.New("a fragment is named that the document does not hold")
	}
	m.fragments[name] = nil
	e, err := m.set(def.SelectionSet)
	if err != nil {
		return nil, err
	}
	m.fragments[name] = &e
	return &e, nil
}

func (m *meter) field(f *ast.Field) (extent, error) {
	if f.Name == "__typename" && len(f.SelectionSet) == 0 {
		e := extent{}
		if f.Alias != f.Name {
			e.aliases, e.fields, e.cost, e.roots = 1, 1, 1, 1
		}
		return e, nil
	}
	below, err := m.set(f.SelectionSet)
	if err != nil {
		return below, err
	}
	e := extent{depth: add(1, below.depth), aliases: below.aliases, roots: 1, fields: add(1, below.fields), cost: add(1, mul(m.times(f), below.cost)),
		introspects: f.Name == "__schema" || f.Name == "__type"}
	if f.Alias != f.Name {
		e.aliases = add(e.aliases, 1)
	}
	return e, nil
}

// times is how often what lies below a field is asked for.
func (m *meter) times(f *ast.Field) int64 {
	n := int64(1)
	for _, a := range f.Arguments {
		switch a.Name {
		case "first", "last", "limit":
			n = max(n, m.number(a.Value))
		}
	}
	return n
}

func (m *meter) number(v *ast.Value) int64 {
	if v == nil {
		return 1
	}
	switch v.Kind {
	case ast.IntValue, ast.FloatValue, ast.StringValue, ast.BlockValue: // some servers read all of them as a number
		return whole(v.Raw)
	case ast.Variable:
		said, there := m.variables[v.Raw]
		if !there || said == nil { // null is no value to some servers, which take the default then
			if def := m.op.VariableDefinitions.ForName(v.Raw); def != nil && def.DefaultValue != nil && def.DefaultValue.Kind != ast.Variable {
				return m.number(def.DefaultValue)
			}
			return 1
		}
		switch said := said.(type) {
		case json.Number:
			return whole(said.String())
		case string: // some servers read it as a number
			return whole(said)
		}
	}
	return 1
}

// whole is a number as servers read it that read text as one: with space around it, and an underscore within, some do.
func whole(s string) int64 {
	s = strings.ReplaceAll(strings.TrimSpace(s), "_", "")
	if strings.ContainsAny(s, "xXoObB") {
		if n, err := strconv.ParseInt(s, 0, 64); err == nil || errors.Is(err, strconv.ErrRange) { // n is the largest then
			return min(max(n, 1), most)
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange), math.IsNaN(n), n < 1:
		return 1
	case n > most:
		return most
	}
	return int64(math.Ceil(n))
}

// add and mul end at a number that is more than any bound.
func add(a, b int64) int64 { return min(a+b, most) }
func mul(a, b int64) int64 { return min(a*b, most) } // each is most at most: no overflow

func brief(s string) string {
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}
