package schema

import (
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

// asking compiles a document whose one operation takes one parameter, q or X-Q, and returns it and what says of a query what is
// wrong with it.
func asking(t *testing.T, version, parameter, schema, components string) (*Document, func(query string) []Finding) {
	t.Helper()
	d, err := CompileOpenAPI(fmt.Sprintf(`{"openapi":%q,"info":{"title":"t","version":"1"},"paths":{"/x":{"get":{"parameters":[{%s,"schema":%s}],
 "responses":{"200":{"description":"d"}}}}},"components":{"schemas":{%s}}}`, version, parameter, schema, components))
	if err != nil {
		t.Fatalf("%s: %v", schema, err)
	}
	return d, func(query string) []Finding {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		found, known := d.Check(&Request{Method: "GET", Path: "/x", Query: values, Header: func(name string) []string {
			if name == "Cookie" {
				return []string{"q=" + values.Get("q")}
			}
			return values["q"]
		}})
		if !known {
			t.Fatal("the operation is not known")
		}
		return found
	}
}

// page are schemas that others refer to.
const page = `"Page":{"type":"integer","minimum":1},"Twice":{"$ref":"#/components/schemas/Page"},"Paged":{"properties":{"page":{"$ref":"#/components/schemas/Page"}}},
 "Tree":{"anyOf":[{"type":"integer"},{"type":"array","items":{"$ref":"#/components/schemas/Tree"}}]}`

func TestParameter_ReadsByAllThatSpeaksOfIt(t *testing.T) {
	const query = `"name":"q","in":"query"`
	for _, c := range []struct {
		name, parameter, schema string
		fits, not               []string
	}{
		{"one that may be null", query, `{"anyOf":[{"type":"integer"},{"type":"null"}]}`, []string{"q=5", "q=-1", "q=", "q=null", "p=1"}, []string{"q=x", "q=5.5", "q=true", "q=1&q=2"}},
		{"all of a reference", query, `{"allOf":[{"$ref":"#/components/schemas/Page"}],"default":1}`, []string{"q=5"}, []string{"q=x", "q=0", "q=", "q=null"}},
		{"a reference to one", query, `{"$ref":"#/components/schemas/Twice"}`, []string{"q=5"}, []string{"q=x", "q=0"}},
		{"values without a type", query, `{"enum":[1,2]}`, []string{"q=1", "q=2", "q=1.0"}, []string{"q=x", "q=3", "q="}},
		{"values of several types", query, `{"enum":[1,"2",true,"x"]}`, []string{"q=1", "q=2", "q=true", "q=x"}, []string{"q=y", "q=3", "q=false"}},
		{"a value without a type", query, `{"const":true}`, []string{"q=true"}, []string{"q=x", "q=false"}},
		{"a list that may be null", query, `{"anyOf":[{"type":"array","items":{"type":"integer"}},{"type":"null"}]}`, []string{"q=1&q=2", "q=1", "q="}, []string{"q=x", "q=1&q=x", "q=1,2"}},
		{"items of alternatives", query, `{"type":"array","items":{"anyOf":[{"type":"integer"},{"enum":["all"]}]}}`, []string{"q=1&q=all", "q=all", "q=7"}, []string{"q=x", "q=1&q=x", "q=true"}},
		{"a list in one text", query + `,"explode":false`, `{"oneOf":[{"type":"array","items":{"$ref":"#/components/schemas/Page"}},{"type":"boolean"}]}`, []string{"q=1,2", "q=true"}, []string{"q=x", "q=1,x", "q=0"}},
		{"a list in a header", `"name":"X-Q","in":"header"`, `{"allOf":[{"type":"array"},{"items":{"anyOf":[{"type":"integer"},{"type":"null"}]}}]}`, []string{"q=1, 2,", "q=1&q=2"}, []string{"q=x", "q=1,x"}},
		{"a cookie", `"name":"q","in":"cookie"`, `{"anyOf":[{"$ref":"#/components/schemas/Page"},{"type":"boolean"}]}`, []string{"q=5", "q=true"}, []string{"q=x", "q=0"}},
		{"kinds that narrow each other", query, `{"allOf":[{"type":["integer","string"]},{"type":["integer","boolean"]}]}`, []string{"q=5"}, []string{"q=x", "q=true"}},
		{"the text, where the number does not fit", query, `{"anyOf":[{"type":"integer","maximum":3},{"type":"string","pattern":"^[0-9]{4}$"}]}`, []string{"q=1", "q=2024"}, []string{"q=x", "q=12"}},
		{"a list, or a text", query, `{"anyOf":[{"type":"array","items":{"type":"integer"}},{"type":"string","pattern":"^[ab]$"}]}`, []string{"q=1&q=2", "q=a"}, []string{"q=x", "q=1&q=a"}},
		{"lists of one kind or another", query, `{"anyOf":[{"type":"array","items":{"type":"integer","maximum":9}},{"type":"array","items":{"type":"string","pattern":"^[0-9]{2}$"}}]}`, []string{"q=1&q=2", "q=10&q=20"}, []string{"q=x", "q=1&q=10"}},
		{"an item of each kind", query, `{"type":"array","items":{"anyOf":[{"type":"integer","maximum":9},{"type":"string","pattern":"^[0-9]{2}$"}]}}`, []string{"q=1&q=10", "q=10&q=1"}, []string{"q=x", "q=1&q=100"}},
		{"a kind for each position", query, `{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"boolean"}}`, []string{"q=1&q=2&q=true", "q=1&q=true"}, []string{"q=x", "q=1&q=2&q=3"}},
		{"a list among values", query, `{"enum":[[1,2],7]}`, []string{"q=1&q=2", "q=7"}, []string{"q=x", "q=2&q=1"}},
		{"a schema within itself", query, `{"$ref":"#/components/schemas/Tree"}`, []string{"q=1", "q=1&q=2"}, []string{"q=x", "q=1&q=x"}},
		// As it was before any of these were read.
		{"bounds without a type", query, `{"pattern":"^[0-9]$"}`, []string{"q=5"}, []string{"q=x", "q=55", "q=5.5", "q=1&q=2"}},
		{"an empty text where null may be", query, `{"type":["string","null"],"minLength":1}`, []string{"q=a"}, []string{"q="}},
		{"an object of those alternatives, which is not looked at", query, `{"anyOf":[{"type":"integer"},{"$ref":"#/components/schemas/Paged"}]}`, []string{"q=5", "q=x", "page=1"}, nil},
		{"a size", query, `{"type":"integer","format":"int32"}`, []string{"q=2147483647", "q=-2147483648", "q=1e3"}, []string{"q=x", "q=2147483648", "q=1e30"}},
	} {
		_, check := asking(t, "3.1.0", c.parameter, c.schema, page)
		for _, q := range c.fits {
			if found := check(q); len(found) > 0 {
				t.Errorf("%s: %s: got %v, want it to pass", c.name, q, found)
			}
		}
		for _, q := range c.not {
			found := check(q)
			if len(found) == 0 {
				t.Errorf("%s: %s passes", c.name, q)
			}
			for _, f := range found {
				if !strings.HasSuffix(strings.ToLower(f.Parameter), " q") && f.Parameter != "header X-Q" || f.Detail == "" || f.Pointer != "" {
					t.Errorf("%s: %s: got %+v, want the parameter's name and a reason", c.name, q, f)
				}
			}
		}
	}
}

// The reason that is told is that of the first reading, which is the one that the document's author means.
func TestParameter_TellsOfTheFirstReading(t *testing.T) {
	for _, c := range []struct{ schema, query, want string }{
		{`{"type":["integer","string"],"maximum":3,"pattern":"^x"}`, "q=5", "maximum"},
		{`{"type":"array","items":{"type":["integer","string"],"maximum":3,"pattern":"^x"}}`, "q=1&q=5", "maximum"},
		{`{"enum":[1,2]}`, "q=3", "value must be one of 1, 2"},
		{`{"allOf":[{"$ref":"#/components/schemas/Page"}]}`, "q=x", "got string, want integer"},
	} {
		_, check := asking(t, "3.1.0", `"name":"q","in":"query"`, c.schema, page)
		if found := check(c.query); len(found) != 1 || !strings.Contains(found[0].Detail, c.want) || found[0].Parameter != "query q" {
			t.Errorf("%s: %s: got %+v, want %q", c.schema, c.query, found, c.want)
		}
	}
}

// OpenAPI 3.0 says nullable, and its documents refer within themselves all the same.
func TestParameter_ReadsWhatOldDocumentsSay(t *testing.T) {
	_, check := asking(t, "3.0.3", `"name":"q","in":"query"`, `{"oneOf":[{"type":"integer","nullable":true,"maximum":10,"exclusiveMaximum":true},{"$ref":"#/components/schemas/All"}]}`, `"All":{"type":"string","enum":["all"]}`)
	for query, fits := range map[string]bool{"q=5": true, "q=all": true, "q=10": false, "q=x": false} {
		if found := check(query); (len(found) == 0) != fits {
			t.Errorf("%s: got %v", query, found)
		}
	}
}

// A document may be wrong in any way: what is gathered of it ends, and does not double with each step.
func TestDocument_SaysOfSchemasWithinThemselves(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"itself":{"$ref":"#/itself"},"detour":{"anyOf":[{"allOf":[{"$ref":"#/detour"}]},{"type":"integer"}]},"nothing":{"$ref":"#/none"},
 "list":{"type":"array","items":{"$ref":"#/list"}},"false":false,"long0":{"$ref":"#/long1"}`)
	for i := range 1000 {
		fmt.Fprintf(&b, `,"long%d":{"$ref":"#/long%d"}`, i+1, i+2)
	}
	for i := range 60 { // 2^60, if each were gone into as often as it is named
		fmt.Fprintf(&b, `,"wide%d":{"anyOf":[{"$ref":"#/wide%d"},{"$ref":"#/wide%d"}]}`, i, i+1, i+1)
	}
	b.WriteString(`,"wide60":{"type":"boolean"}}`)
	d, err := read(b.String())
	if err != nil {
		t.Fatal(err)
	}
	for pointer, want := range map[string]saying{
		"/itself":  {may: anything},
		"/detour":  {may: anything, named: aNumber},
		"/nothing": {may: anything},
		"/long0":   {may: anything},
		"/false":   {},
		"/list":    {may: anArray, named: anArray, forms: []string{"/list"}},
		"/wide40":  {may: aBoolean, named: aBoolean},
	} {
		if got := d.says(pointer, 0); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", pointer, got, want)
		}
	}
	if _, err := CompileOpenAPI(`{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/x":{"get":{"parameters":[{"name":"q","in":"query","schema":{"$ref":"#/components/schemas/A"}}],
 "responses":{"200":{"description":"d"}}}}},"components":{"schemas":{"A":{"anyOf":[{"$ref":"#/components/schemas/A"},{"type":"integer"}]}}}}`); err == nil || !strings.Contains(err.Error(), "itself") {
		t.Errorf("a parameter that is itself: got %v", err)
	}
}

// A list of n items of two readings has 2^n. How many are tried is counted, each item that is held against a schema by itself too.
func TestParameter_TriesFewReadingsOfAList(t *testing.T) {
	var forms strings.Builder
	for i := range 10 {
		fmt.Fprintf(&forms, `{"type":"array","items":{"anyOf":[{"type":"integer","maximum":%d},{"type":"string","pattern":"^a"}]}},`, i)
	}
	for _, c := range []struct {
		name, schema, item string
		n, most            int
		fits               bool
	}{
		{"many that fit", `{"type":"array","items":{"anyOf":[{"type":"integer"},{"type":"string"}]}}`, "5", 10_000, 1, true},
		{"many that do not", `{"type":"array","items":{"anyOf":[{"type":"integer","maximum":3},{"type":"string","pattern":"^a"}]}}`, "5", 10_000, 2, false},
		{"many that do not, of more forms than are tried", `{"anyOf":[` + strings.TrimSuffix(forms.String(), ",") + `]}`, "50", 800, 2, false},
		{"some that do not, of which each is looked at too often", `{"anyOf":[` + strings.ReplaceAll(strings.TrimSuffix(forms.String(), ","), `{"type":"integer",`, `{"allOf":[`+strings.Repeat("{},", 20)+`{}],"type":"integer",`) + `]}`, "50", maxAlone, 2, false},
		{"some that do not", `{"anyOf":[` + strings.TrimSuffix(forms.String(), ",") + `]}`, "50", maxAlone, 2 + maxForms*(maxAlone+1), false},
		{"many of one reading", `{"type":"array","items":{"type":"integer","maximum":3}}`, "5", 10_000, 1, false},
	} {
		d, check := asking(t, "3.1.0", `"name":"q","in":"query"`, c.schema, "")
		said := make([]string, c.n)
		for i := range said {
			said[i] = c.item
		}
		validations := 0
		found := d.paths[0].operations["GET"].parameters[0].hold(said, func(s *Schema, v any) bool { validations++; return s.fits(v) })
		if validations > c.most || validations == 0 || (len(found) == 0) != c.fits || len(found) > MaxErrors {
			t.Errorf("%s: %d validations of %d items, most %d; found %v", c.name, validations, c.n, c.most, found)
		}
		if again := check(strings.TrimSuffix(strings.Repeat("q="+c.item+"&", c.n), "&")); (len(again) == 0) != c.fits {
			t.Errorf("%s: by the query got %v", c.name, again)
		}
	}
}

// A list may be as long as a head: how often its items are looked at has a bound, whatever the document says of them.
func TestParameter_IsLookedAtOnlySoOften(t *testing.T) {
	var b strings.Builder
	for i := range 500 {
		fmt.Fprintf(&b, `{"const":%d},`, i)
	}
	_, check := asking(t, "3.1.0", `"name":"q","in":"query","explode":false`, `{"type":"array","items":{"anyOf":[`+strings.TrimSuffix(b.String(), ",")+`]}}`, "")
	for n, want := range map[int]string{10: "fits none", 100: "too long to say", 1_000: "holds more"} {
		if found := check("q=" + strings.Repeat("500,", n) + "1"); len(found) == 0 || !strings.Contains(found[0].Detail, want) {
			t.Errorf("%d items: got %v, want %q", n, found, want)
		}
	}
	_, plain := asking(t, "3.1.0", `"name":"q","in":"query","explode":false`, `{"type":"array","items":{"anyOf":[{"type":"integer"},{"enum":["all"]}]}}`, "")
	if found := plain("q=" + strings.Repeat("7,", 32<<10)); len(found) != 1 || !strings.Contains(found[0].Detail, "too long to say") { // the last one is empty
		t.Errorf("as many as fit into a head: got %v", found)
	}
	if found := plain("q=" + strings.Repeat("7,", 32<<10) + "all"); found != nil {
		t.Errorf("as many as fit into a head, all of them good: got %v", found)
	}
	if found := check("q=" + strings.Repeat("7,", 100) + "1"); found != nil {
		t.Errorf("a hundred that fit: got %v", found)
	}
}

func TestFormat_KnowsTheSizesOfNumbers(t *testing.T) {
	for _, c := range []struct {
		format string
		value  any
		fits   bool
	}{
		{"int32", json.Number("2147483647"), true}, {"int32", json.Number("-2147483648"), true}, {"int32", json.Number("2147483648"), false},
		{"int32", json.Number("-2147483649"), false}, {"int32", json.Number("1.0"), true}, {"int32", json.Number("2147483647.0"), true},
		{"int32", json.Number("2.147483648e9"), false}, {"int32", json.Number("1.5"), false}, {"int32", json.Number("0e999"), true},
		{"int32", json.Number("-0.0"), true}, {"int32", json.Number("1e-999"), false}, {"int32", json.Number("1e999"), false}, {"int32", json.Number("10e-1"), true},
		{"int32", "99999999999", true}, {"int32", nil, true},
		{"int64", json.Number("9223372036854775807"), true}, {"int64", json.Number("9223372036854775808"), false}, {"int64", json.Number("9223372036854775807.0"), true},
		{"int64", json.Number("-9223372036854775808"), true}, {"int64", json.Number("9223372036854775808.0"), false}, {"int64", json.Number("99999999999"), true},
	} {
		s, err := Compile(fmt.Sprintf(`{"format":%q}`, c.format))
		if err != nil {
			t.Fatal(err)
		}
		if s.fits(c.value) != c.fits {
			t.Errorf("%s of %v: got %v", c.format, c.value, !c.fits)
		}
	}
	s, err := Compile(`{"properties":{"n":{"type":"integer","format":"int32"}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if found := s.Body([]byte(`{"n":99999999999}`)); len(found) != 1 || found[0].Pointer != "#/n" || !strings.Contains(found[0].Detail, "int32") {
		t.Errorf("in a body: got %v", found)
	}
	if found := s.Body([]byte(`{"n":7}`)); found != nil {
		t.Errorf("one that fits: got %v", found)
	}
}
