package schema_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"bailiwick/shared/table/schema"
)

const order = `{"type":"object","required":["item","count"],"additionalProperties":false,
 "properties":{"item":{"type":"string","pattern":"^[a-z]{1,64}$"},"count":{"type":"integer","minimum":1,"maximum":10},
  "price":{"type":"number"},"note":{"type":["string","null"],"maxLength":5},"pay":{"oneOf":[{"const":"card"},{"const":"cash"}]},
  "lines":{"type":"array","items":{"type":"object","required":["id"],"properties":{"id":{"type":"string","format":"uuid"}}},"uniqueItems":true}}}`

func TestSchema_NamesEachFieldThatIsWrong(t *testing.T) {
	s, err := schema.Compile(order)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		body string
		want []string // pointers
	}{
		{`{"item":"a","count":1}`, nil},
		{`{"item":"a","count":1,"price":1e3,"note":null,"pay":"card","lines":[{"id":"01a21709-a4f3-732d-b75e-f9821cbdd91b"}]}`, nil},
		{`{"item":"a","count":1.0}`, nil},
		{`{"item":"A","count":0}`, []string{"#/item", "#/count"}},
		{`{"item":"a"}`, []string{"#"}},
		{`{"item":"a","count":"1"}`, []string{"#/count"}},
		{`{"item":"a","count":1,"more":1}`, []string{"#"}},
		{`{"item":"a","count":1,"pay":"cheque"}`, []string{"#/pay"}},
		{`{"item":"a","count":1,"lines":[{"id":"x"},{}]}`, []string{"#/lines/0/id", "#/lines/1"}},
		{`{"item":"a","count":1,"count":2}`, []string{"#"}}, // which of the two the upstream takes nobody knows
		{`{"item":"a","count":1} {}`, []string{"#"}},
		{`{"item":"a","count":1e999999999}`, []string{"#"}},
		{`{"item":"a","count":` + strings.Repeat("9", 65) + `}`, []string{"#"}},
		{`{"item":"a","count":1,`, []string{"#"}},
		{``, []string{"#"}},
		{`[` + strings.Repeat("[", 100_000), []string{"#"}},
		{`{"item":"` + strings.Repeat("a", 70_000) + `","count":1}`, []string{"#/item"}},
	} {
		found := s.Body([]byte(c.body))
		var got []string
		for _, f := range found {
			got = append(got, f.Pointer)
			if f.Detail == "" || len(f.Detail) > 250 {
				t.Errorf("%.60s: detail %q", c.body, f.Detail)
			}
		}
		// The order of members of an object is no order.
		for _, w := range c.want {
			if !strings.Contains(" "+strings.Join(got, " ")+" ", " "+w+" ") {
				t.Errorf("%.60s: got %v, want %v", c.body, found, c.want)
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%.60s: got %v, want %v", c.body, found, c.want)
		}
	}
}

func TestCompile_RefusesWithTheLine(t *testing.T) {
	deep := "{" + strings.Repeat(`"not":{`, 70) + strings.Repeat("}", 71)
	wide := func(n int) string { // alternatives within alternatives, not in themselves
		var b strings.Builder
		b.WriteString(`{"$ref":"#/$defs/s0","$defs":{`)
		for i := range n {
			fmt.Fprintf(&b, `"s%d":{"anyOf":[{"properties":{"a":{"$ref":"#/$defs/s%d"}}},{"properties":{"a":{"$ref":"#/$defs/s%d"}}},{"properties":{"a":{"$ref":"#/$defs/s%d"}}}]},`, i, i+1, i+1, i+1)
		}
		fmt.Fprintf(&b, `"s%d":{}}}`, n)
		return b.String()
	}
	for _, c := range []struct{ name, text, want string }{
		{"no JSON", "{\n \"type\": [\n}", "line "},
		{"empty", "", "empty"},
		{"a type that is none", "{\n\"properties\": {\n\"a\": {\"type\": \"text\"}}}", "line 3 (/properties/a"},
		{"a pattern that is none", "type: object\nproperties:\n  a: {pattern: '('}", "'('"},
		{"a pattern that is long", "pattern: '(abc){1,900}'", "fewer repetitions"},
		{"a file", "properties:\n  a:\n    $ref: file:///etc/passwd", "line 3"},
		{"a network", "properties:\n  a: {$ref: 'https://example.com/x.json'}", "nothing outside"},
		{"a relative file", "properties:\n  a: {$ref: 'other.json#/x'}", "nothing outside"},
		{"another dialect", `{"$schema":"https://example.com/dialect"}`, "nothing outside"},
		{"nothing there", "properties:\n  a: {$ref: '#/$defs/none'}", "names nothing"},
		{"itself", `{"$ref":"#"}`, "itself"},
		{"itself by a detour", `{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"anyOf":[{"$ref":"#"}]}}}`, "itself"},
		{"an alias", "a: &x {type: string}\nb: *x", "anchors"},
		{"twice", "type: string\ntype: object", "written twice"},
		{"deep", deep, "deep"},
		{"wide", wide(20), "alternatives within alternatives"},
		{"an id within", `{"properties":{"a":{"$id":"https://example.com/a"}}}`, "$id"},
		{"a number", `{"minimum":1e999999999}`, "number"},
		{"long", `{"title":"` + strings.Repeat("x", 70_000) + `"}`, "more than 65536"},
	} {
		_, err := schema.Compile(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", c.name, err, c.want)
		}
	}
	for _, text := range []string{wide(8), `{"type":"string"}`, "type: object", "true: {}\n", `{"$id":"https://example.com/x.json","properties":{"a":{"$ref":"#/$defs/a"}},"$defs":{"a":{"type":"string"}}}`} {
		if _, err := schema.Compile(text); err != nil {
			t.Errorf("%.60s: got %v, want it taken", text, err)
		}
	}
}

// A schema of alternatives within itself would look at a deep body twice as often with each step down.
func TestSchema_LooksAtNoBodyForEver(t *testing.T) {
	s, err := schema.Compile(`{"anyOf":[{"properties":{"a":{"$ref":"#"},"x":{"const":1}},"required":["x"]},{"properties":{"a":{"$ref":"#"},"y":{"const":1}},"required":["y"]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"x":1}`
	for range 40 {
		body = `{"y":2,"a":` + body + `}`
	}
	found := s.Body([]byte(body))
	if len(found) != 1 || !strings.Contains(found[0].Detail, "deeper") {
		t.Errorf("got %v", found)
	}
	if found := s.Body([]byte(`{"x":1,"a":{"y":1,"a":{"x":1}}}`)); found != nil {
		t.Errorf("a shallow one: got %v", found)
	}
	tree, err := schema.Compile(`{"type":"object","properties":{"left":{"$ref":"#"},"right":{"$ref":"#"}}}`)
	if err != nil {
		t.Fatal(err)
	}
	body = `{}`
	for range 50 {
		body = `{"left":` + body + `}`
	}
	if found := tree.Body([]byte(body)); found != nil {
		t.Errorf("a tree: got %v", found)
	}
}

// What one body of a mebibyte takes must not depend on how much of it is wrong.
func TestSchema_ALongBodyOfWrongValuesTakesNoMemoryForEach(t *testing.T) {
	s, err := schema.Compile(`{"type":"array","items":{"anyOf":[{"type":"string"},{"type":"object","required":["id"]},{"type":"null"},{"type":"boolean"}]}}`)
	if err != nil {
		t.Fatal(err)
	}
	long := func(value string) []byte {
		return []byte("[" + strings.Repeat(value+",", 20_000) + value + "]")
	}
	if found := s.Body(long(`true`)); found != nil {
		t.Errorf("as it should be: got %v", found)
	}
	if found := s.Body(long("0")); len(found) != 1 || !strings.Contains(found[0].Detail, "too long to say where") {
		t.Errorf("all wrong: got %v", found)
	}
	if found := s.Body([]byte("[true,0,null,1]")); len(found) != 2 || found[0].Pointer != "#/1" || found[1].Pointer != "#/3" {
		t.Errorf("a short one: got %v", found)
	}
	var b strings.Builder // each value in the innermost list is looked at 3^8 times
	b.WriteString(`{"$ref":"#/$defs/s0","$defs":{`)
	for i := range 8 {
		fmt.Fprintf(&b, `"s%d":{"anyOf":[{"items":{"$ref":"#/$defs/s%d"}},{"items":{"$ref":"#/$defs/s%d"}},{"items":{"$ref":"#/$defs/s%d"}}]},`, i, i+1, i+1, i+1)
	}
	b.WriteString(`"s8":{"type":"string"}}}`)
	if s, err = schema.Compile(b.String()); err != nil {
		t.Fatal(err)
	}
	deep := func(n int) []byte {
		return []byte(strings.Repeat("[", 8) + strings.Repeat(`0,`, n) + "0" + strings.Repeat("]", 8))
	}
	if found := s.Body(deep(100_000)); len(found) != 1 || !strings.Contains(found[0].Detail, "more values") {
		t.Errorf("many values deep below alternatives: got %v", found)
	}
	if found := s.Body(deep(2)); len(found) != 1 {
		t.Errorf("few: got %v", found)
	}
}

// Edges compile what control nodes took, before a table with a revocation in it counts.
func TestCompileOpenAPI_AsOftenAsThereAreSchemas(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{`)
	for i := range 200 {
		fmt.Fprintf(&b, `"/p%d":{"post":{"requestBody":{"content":{"application/json":{"schema":{"$ref":"#/components/schemas/s0"}}}},"responses":{"200":{"description":""}}}},`, i)
	}
	b.WriteString(`"/x":{}},"components":{"schemas":{`)
	for i := range 200 {
		fmt.Fprintf(&b, `"s%d":{"properties":{"a":{"$ref":"#/components/schemas/s%d"}}},`, i, i+1)
	}
	b.WriteString(`"s200":{}}}}`)
	var err error
	if n := testing.AllocsPerRun(1, func() { _, err = schema.CompileOpenAPI(b.String()) }); err != nil || n > 1_000_000 {
		t.Errorf("%v, %.0f allocations for 200 operations of one schema", err, n)
	}
}

const document = `
openapi: 3.0.3
info: {title: Orders, version: "1"}
servers: [{url: https://orders.test/v1}]
paths:
  /orders:
    get:
      parameters:
        - {name: limit, in: query, schema: {type: integer, minimum: 1, maximum: 100}}
        - {name: tag, in: query, schema: {type: array, items: {type: string, maxLength: 3}}}
        - {name: open, in: query, required: true, schema: {type: boolean}}
        - {name: X-Trace, in: header, schema: {type: string, pattern: "^[0-9a-f]+$"}}
      responses: {"200": {description: fine}}
    post:
      requestBody:
        required: true
        content:
          application/json: {schema: {$ref: "#/components/schemas/Order"}}
          text/csv: {}
      responses: {"201": {description: made}}
  /orders/{id}:
    parameters: [{name: id, in: path, required: true, schema: {type: integer}}]
    get: {responses: {"200": {description: fine}}}
  /orders/new:
    get: {responses: {"200": {description: fine}}}
components:
  schemas:
    Order:
      type: object
      required: [item]
      properties:
        item: {type: string}
        note: {type: string, nullable: true}
        price: {type: number, minimum: 0, exclusiveMinimum: true}
`

func TestDocument_Checks(t *testing.T) {
	d, err := schema.CompileOpenAPI(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, url, media, body string
		want                     string // of its findings where and what, or "unknown"
	}{
		{"GET", "/v1/orders?open=true&limit=5&tag=abc&tag=d", "", "", ""},
		{"HEAD", "/v1/orders?open=false", "", "", ""},
		{"GET", "/v1/orders", "", "", "query open is missing"},
		{"GET", "/v1/orders?open=1", "", "", "query open"},
		{"GET", "/v1/orders?open=true&open=true", "", "", "more than once"},
		{"GET", "/v1/orders?open=true&limit=101", "", "", "query limit"},
		{"GET", "/v1/orders?open=true&limit=ten", "", "", "query limit"},
		{"GET", "/v1/orders?open=true&limit=1e999999999", "", "", "query limit"},
		{"GET", "/v1/orders?open=true&tag=abcd", "", "", "query tag"},
		{"GET", "/v1/orders?open=true&trace=zz", "", "", "header X-Trace"},
		{"GET", "/v1/orders/7", "", "", ""},
		{"GET", "/v1/orders/new", "", "", ""},
		{"GET", "/v1/orders/seven", "", "", "path id"},
		{"GET", "/v1/orders/7/x", "", "", "unknown"},
		{"GET", "/v2/orders", "", "", "unknown"},
		{"DELETE", "/v1/orders", "", "", "unknown"},
		{"POST", "/v1/orders", "application/json; charset=utf-8", `{"item":"a","note":null,"price":0.5}`, ""},
		{"POST", "/v1/orders", "application/json", `{"item":1}`, "#/item"},
		{"POST", "/v1/orders", "application/json", `{"item":"a","price":0}`, "#/price"},
		{"POST", "/v1/orders", "application/json", ``, "body is missing"},
		{"POST", "/v1/orders", "text/csv", `whatever`, ""},
		{"POST", "/v1/orders", "application/xml", `<a/>`, "Content-Type"},
		{"POST", "/v1/orders", "", `{"item":"a"}`, "Content-Type"},
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		r := &schema.Request{Method: c.method, Path: u.Path, Query: u.Query(), ContentType: c.media, Header: func(name string) []string {
			if v := u.Query().Get("trace"); v != "" && name == "X-Trace" {
				return []string{v}
			}
			return nil
		}}
		if c.body != "" {
			r.Body = []byte(c.body)
		}
		found, known := d.Check(r)
		got := fmt.Sprint(found)
		switch {
		case !known:
			got = "unknown"
		case len(found) == 0:
			got = ""
		}
		if !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s %s %s: got %s, want %q", c.method, c.url, c.body, got, c.want)
		}
	}
}

const headed = `
openapi: 3.0.3
info: {title: Orders, version: "1"}
paths:
  /orders:
    parameters:
      - {name: accept, in: header, required: true, schema: {type: string, enum: [text/csv]}}
    get:
      parameters:
        - {name: Authorization, in: header, required: true, schema: {type: string, pattern: "^Basic "}}
        - {name: Content-Type, in: header, required: true, schema: {type: string}}
        - {name: X-Shop, in: header, required: true, schema: {type: string}}
        - {name: Accept, in: query, schema: {type: integer}}
      responses: {"200": {description: fine}}
  /cart:
    get:
      parameters:
        - {name: session, in: cookie, required: true, schema: {type: integer, minimum: 1}}
        - {name: theme, in: cookie, schema: {type: string, enum: [dark, light]}}
        - {name: likes, in: cookie, schema: {type: array, items: {type: integer}}}
      responses: {"200": {description: fine}}
  /search:
    get:
      parameters:
        - {name: filter, in: query, required: true, style: deepObject, explode: true, schema: {type: object}}
        - {name: page, in: query, required: true, schema: {type: object, properties: {size: {type: integer}}}}
      responses: {"200": {description: fine}}
`

func TestDocument_ChecksHeadersAndCookies(t *testing.T) {
	d, err := schema.CompileOpenAPI(headed)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, url string
		shop      string
		cookies   []string
		want      string // of its findings
	}{
		{"what OpenAPI passes over", "/orders", "a", nil, "[]"},
		{"a header that it does not", "/orders", "", nil, "header X-Shop is missing"},
		{"a query of that name", "/orders?Accept=x", "a", nil, "query Accept"},
		{"a cookie", "/cart", "", []string{"a=b; session=7"}, "[]"},
		{"among several headers", "/cart", "", []string{"a=b", "theme=dark;session=7 "}, "[]"},
		{"in quotes, which are its own", "/cart", "", []string{`session="7"`}, "cookie session"},
		{"no cookie", "/cart", "", nil, "cookie session is missing"},
		{"no such cookie", "/cart", "", []string{"Session=7; sessions=7; a=session=7"}, "cookie session is missing"},
		{"of another type", "/cart", "", []string{"session=x"}, "cookie session"},
		{"too small", "/cart", "", []string{"session=0"}, "cookie session"},
		{"twice, both good", "/cart", "", []string{"session=7; session=8"}, "[]"},
		{"twice, one of them good", "/cart", "", []string{"session=7; session=x"}, "cookie session"},
		{"one that need not be there", "/cart", "", []string{"session=7; theme=blue"}, "cookie theme"},
		{"objects, by their fields", "/search?filter%5Ba%5D=1&size=x", "", nil, "[]"},
		{"one that is missing", "/search?filters%5Ba%5D=1&size=1", "", nil, "query filter is missing"},
		{"a list, which is not looked at", "/cart", "", []string{"session=7; likes=a"}, "[]"},
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		found, known := d.Check(&schema.Request{Method: "GET", Path: u.Path, Query: u.Query(), Header: func(name string) []string {
			switch {
			case name == "Cookie":
				return c.cookies
			case name == "X-Shop" && c.shop != "":
				return []string{c.shop}
			}
			return nil
		}})
		var said []string
		for _, f := range found {
			said = append(said, f.Parameter+" "+f.Detail)
		}
		if got := fmt.Sprint(said); !known || !strings.Contains(got, c.want) || len(found) > 1 {
			t.Errorf("%s: got %s, want %q", c.name, got, c.want)
		}
	}
}

func TestCompileOpenAPI_Refuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no document", "type: object", "no OpenAPI document"},
		{"version 2", "swagger: '2.0'", "no OpenAPI document"},
		{"no info", "openapi: 3.0.3\npaths: {}", "info"},
		{"a file", strings.Replace(document, "#/components/schemas/Order", "/etc/passwd", 1), "nothing outside"},
		{"a schema that is not there", strings.Replace(document, "#/components/schemas/Order", "#/components/schemas/None", 1), "None"},
		{"a type that is none", strings.Replace(document, "item: {type: string}", "item: {type: text}", 1), "text"},
		{"half a segment", strings.ReplaceAll(document, "/orders/{id}", "/orders/a{id}"), "whole segment"},
		{"a pattern", strings.Replace(document, "^[0-9a-f]+$", "(", 1), "line"},
	} {
		if _, err := schema.CompileOpenAPI(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", c.name, err, c.want)
		}
	}
}
