package graphql_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/graphql"
	"bailiwick/shared/table"
)

var bounds = table.GraphQL{Depth: 4, Aliases: 3, RootFields: 3, Cost: 1000, Batch: 2}

func post(query string, more ...string) []byte {
	data, _ := json.Marshal(query)
	return fmt.Appendf(nil, `{"query":%s%s}`, data, strings.Join(more, ""))
}

func TestRead_BoundsWhatIsAsked(t *testing.T) {
	doubling := "query { ...f0 }"
	for i := range 60 { // 2^60 fields in a few hundred bytes
		doubling += fmt.Sprintf(" fragment f%d on Q { ...f%d ...f%d }", i, i+1, i+1)
	}
	doubling += " fragment f60 on Q { a }"
	open := bounds
	open.Introspection = true
	for _, c := range []struct {
		name    string
		b       *table.GraphQL
		body    []byte
		f, cost int64
		want    string // of the error
	}{
		{"a field", nil, post("{ a }"), 1, 1, ""},
		{"names of types are free", nil, post("{ __typename a { __typename b } }"), 2, 2, ""},
		{"lists", nil, post("{ a(first: 3) { b c(limit: 2) { d } } }"), 4, 1 + 3*(1+1+2*1), ""},
		{"a variable", nil, post("query($n: Int = 7) { a(first: $n) { b } }", `,"variables":{"n":4}`), 2, 5, ""},
		{"a variable left out", nil, post("query($n: Int = 7) { a(first: $n) { b } }"), 2, 8, ""},
		{"a variable as text", nil, post("query($n: Int) { a(first: $n) { b } }", `,"variables":{"n":"4"}`), 2, 5, ""},
		{"a list of less than nothing", nil, post("{ a(first: -5) { b } }"), 2, 2, ""},
		{"a fragment each time", nil, post("{ x { ...f } y { ...f } } fragment f on T { a b }"), 6, 6, ""},
		{"the named one of two", nil, post("query A { a } query B { a b }", `,"operationName":"B"`), 2, 2, ""},
		{"a list of requests", nil, []byte(`[{"query":"{ a }"},{"query":"{ a b }"}]`), 3, 3, ""},
		{"introspection where it may", &open, post("{ __schema { types { name } } }"), 3, 3, ""},
		{"what it does not know of", nil, []byte(`{"query":"{ a }","other":1}`), 1, 1, ""},

		{"deep", nil, post("{ a { b { c { d { e } } } } }"), 0, 0, "5 deep"},
		{"deep by fragments", nil, post("{ a { ...f } } fragment f on T { b { ...g } } fragment g on T { c { d { e } } }"), 0, 0, "5 deep"},
		{"aliases", nil, post("{ a { w: x, y: x, z: x, v: x } }"), 0, 0, "4 aliases"},
		{"aliases of a type's name", nil, post("{ a { w: __typename, y: __typename, z: __typename, v: __typename } }"), 0, 0, "4 aliases"},
		{"roots", nil, post("{ a b ...f } fragment f on Q { c d }"), 0, 0, "4 fields at the root"},
		{"cost", nil, post("{ a(first: 100) { b(first: 100) { c } } }"), 0, 0, "costs 10101"},
		{"cost beyond all numbers", nil, post("{ a(first: 999999999999999999999) { b(first: 9999999999999) { c(first: 99999999999) { d } } } }"), 0, 0, "costs"},
		{"cost of a list of requests", nil, []byte(`[{"query":"{ a(first: 600) { b } }"},{"query":"{ a(first: 600) { b } }"}]`), 0, 0, "costs 1202"},
		{"the larger of two", nil, post("{ a(first: 1, last: 2000) { b } }"), 0, 0, "costs 2001"},
		{"doubling", nil, post(doubling), 0, 0, "more than"},
		{"a fragment in itself", nil, post("{ ...f } fragment f on Q { a { ...g } } fragment g on Q { ...f }"), 0, 0, "within itself"},
		{"a fragment that is none", nil, post("{ ...f }"), 0, 0, "does not hold"},
		{"two fragments of a name", nil, post("{ ...f } fragment f on Q { a } fragment f on Q { a(first: 5000) { b } }"), 0, 0, "one name"},
		{"introspection", nil, post("{ a ...f } fragment f on Q { __type(name: \"T\") { name } }"), 0, 0, "nothing of its schema"},
		{"two, none named", nil, post("query A { a } query B { b }"), 0, 0, "operationName"},
		{"none of the name", nil, post("query A { a }", `,"operationName":"B"`), 0, 0, "operationName"},
		{"no document", nil, post("{ a"), 0, 0, "line 1"},
		{"lists within lists", nil, post("{ a(x: [" + strings.Repeat("[", 30_000) + "]) }"), 0, 0, "nesting"},
		{"tokens", nil, post("{ a(x: [" + strings.Repeat("1 ", 6000) + "]) }"), 0, 0, "token"},
		{"bytes", nil, post("{ a " + strings.Repeat(" ", 70_000) + "}"), 0, 0, "more than 65536"},
		{"a list too long", nil, []byte(`[{"query":"{a}"},{"query":"{a}"},{"query":"{a}"}]`), 0, 0, "3 operations"},
		{"an empty list", nil, []byte(`[]`), 0, 0, "0 operations"},
		{"a list in a list", nil, []byte(`[[{"query":"{a}"}]]`), 0, 0, "object"},
		{"two queries", nil, []byte(`{"query":"{ a }","query":"{ b { c } }"}`), 0, 0, "twice"},
		{"a query in another spelling", nil, []byte(`{"query":"{ a }","Query":"{ b { c } }"}`), 0, 0, "none of a request"},
		{"a name in another spelling", nil, []byte(`{"query":"query A { a } query B { b { c } }","operationName":"A","operationname":"B"}`), 0, 0, "none of a request"},
		{"variables in another spelling", nil, post("query($n: Int) { a(first: $n) { b } }", `,"variables":{"n":1},"Variables":{"n":5000}`), 0, 0, "none of a request"},
		{"a document and the name of another", nil, post("{ a }", `,"documentId":"dear"`), 0, 0, "one of them"},
		{"a number as text", nil, post("{ a(first: \"2000\") { b } }"), 0, 0, "costs 2001"},
		{"a number with an exponent", nil, post("{ a(first: 2e3) { b } }"), 0, 0, "costs 2001"},
		{"the same for a variable that is left out", nil, post("query($n: Float = 2e3) { a(first: $n) { b } }"), 0, 0, "costs 2001"},
		{"text for a variable that is left out", nil, post("query($n: ID = \"2000\") { a(first: $n) { b } }"), 0, 0, "costs 2001"},
		{"text with space around it", nil, post("query($n: Int) { a(first: $n) { b } }", `,"variables":{"n":" 2000\n"}`), 0, 0, "costs 2001"},
		{"text with an underscore", nil, post("query($n: Int) { a(first: $n) { b } }", `,"variables":{"n":"2_000"}`), 0, 0, "costs 2001"},
		{"text to another base", nil, post("query($n: Int) { a(first: $n) { b } }", `,"variables":{"n":"0x7d0"}`), 0, 0, "costs 2001"},
		{"text beyond all numbers to another base", nil, post("{ a(first: \"0xffffffffffffffffffff\") { b } }"), 0, 0, "costs"},
		{"text that is no number", nil, post("{ a(first: \"box\") { b } }"), 2, 2, ""},
		{"null, where a default is larger", nil, post("query($n: Int = 2000) { a(first: $n) { b } }", `,"variables":{"n":null}`), 0, 0, "costs 2001"},
		{"no query", nil, []byte(`{"variables":{}}`), 0, 0, "no query"},
		{"no body", nil, nil, 0, 0, "not JSON"},
	} {
		b := &bounds
		if c.b != nil {
			b = c.b
		}
		got, err := graphql.Read(b, "POST", nil, "application/json", c.body)
		if c.want == "" && (err != nil || got.Fields != c.f || got.Cost != c.cost) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %+v %v, want %d fields, cost %d, %q", c.name, got, err, c.f, c.cost, c.want)
		}
	}
}

func TestRead_TakesEachWayOfAsking(t *testing.T) {
	get := func(pairs ...string) url.Values {
		v := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			v.Add(pairs[i], pairs[i+1])
		}
		return v
	}
	for _, c := range []struct {
		name, method string
		query        url.Values
		media        string
		body         []byte
		want         string
	}{
		{"GET", "GET", get("query", "{ a }"), "", nil, ""},
		{"GET with variables", "GET", get("query", "query($n: Int){ a(first: $n) { b } }", "variables", `{"n":2000}`), "", nil, "costs 2001"},
		{"GET of a kept query", "GET", get("extensions", "{}"), "", nil, ""},
		{"GET of a kept document", "GET", get("id", "x"), "", nil, ""},
		{"GET of a document and the name of another", "GET", get("query", "{ a }", "id", "x"), "", nil, "one of them"},
		{"GET with text for variables", "GET", get("query", "{ a }", "variables", `"{}"`), "", nil, "no object"},
		{"another charset", "POST", nil, "application/json; charset=utf-7", post("{ a }"), "application/json"},
		{"another charset of GraphQL", "POST", nil, "application/graphql; charset=utf-7", []byte("{ a }"), "application/json"},
		{"no UTF-8", "POST", nil, "application/json", []byte("{\"query\":\"{ a }\",\"x\":\"\xff\"}"), "UTF-8"},
		{"GET twice", "GET", get("query", "{ a }", "query", "{ b }"), "", nil, "more than once"},
		{"GET that changes", "GET", get("query", "mutation { a }"), "", nil, "POST"},
		{"GET with a body", "GET", get("query", "{ a }"), "application/json", post("{ a }"), "body"},
		{"application/graphql", "POST", nil, "application/graphql", []byte("{ a }"), ""},
		{"a mutation", "POST", nil, "application/json; charset=utf-8", post("mutation { a }"), ""},
		{"POST with both", "POST", get("query", "{ a }"), "application/json", post("{ b }"), "URL"},
		{"GET with a query in another spelling", "GET", get("query", "{ a }", "Query", "{ b { c } }"), "", nil, "none of a request"},
		{"GET with variables in another spelling", "GET", get("query", "{ a }", "VARIABLES", "{}"), "", nil, "none of a request"},
		{"GET with a document in another spelling", "GET", get("query", "{ a }", "documentid", "dear"), "", nil, "none of a request"},
		{"GET with a name in another spelling", "GET", get("query", "query A { a } query B { b }", "operationName", "A", "operationname", "B"), "", nil, "none of a request"},
		{"GET with a parameter of another's", "GET", get("query", "{ a }", "queries", "1", "page", "2"), "", nil, ""},
		{"POST with both, in another spelling", "POST", get("Query", "{ a }"), "application/json", post("{ b }"), "none of a request"},
		{"a form", "POST", nil, "application/x-www-form-urlencoded", []byte("query={a}"), "application/json"},
		{"many parts", "POST", nil, "multipart/form-data; boundary=x", []byte("--x"), "application/json"},
		{"no type", "POST", nil, "", post("{ a }"), "application/json"},
		{"PUT", "PUT", nil, "application/json", post("{ a }"), "GET or POST"},
	} {
		_, err := graphql.Read(&bounds, c.method, c.query, c.media, c.body)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"query":"{ a(first: 3) { ...f } } fragment f on T { b }","variables":{"n":1}}`))
	f.Add([]byte(`[{"query":"query A($n: Int = 3) { a @skip(if: true) { ... on T { b } } }","operationName":"A"}]`))
	f.Add([]byte(`{"query":"{ a(x: \"\"\"block\"\"\") }"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := graphql.Read(&bounds, "POST", nil, "application/json", body)
		if err == nil && (got.Fields < 1 || got.Cost < got.Fields && !got.Persisted || got.Cost > bounds.Cost) {
			t.Errorf("%q: %+v", body, got)
		}
	})
}
