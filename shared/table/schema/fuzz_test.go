package schema_test

import (
	"bytes"
	"encoding/json"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"bailiwick/shared/table/schema"
)

// What is read here encoding/json reads too, and alike: nothing that is taken for one value is another to an upstream.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"a":[1,2.5e3,"\u00e4",null,true]}`, `{"a":1,"a":2}`, `[[[[]]]]`, `1 2`, "\"\xff\"", `{"a":1e9999}`, `"\ud800"`, ` [] `, `{"a":}`, `[1,]`, `nul`} {
		f.Add([]byte(s), uint8(5))
	}
	f.Fuzz(func(t *testing.T, data []byte, depth uint8) {
		v, err := schema.Decode(data, int(depth))
		if err != nil {
			return
		}
		if !json.Valid(data) || !utf8.Valid(data) {
			t.Fatalf("%q is taken, and is no JSON", data)
		}
		var theirs any
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		if err := d.Decode(&theirs); err != nil || !reflect.DeepEqual(v, theirs) {
			t.Fatalf("%q: got %v, encoding/json reads %v, %v", data, v, theirs, err)
		}
		var within func(v any) int
		within = func(v any) (n int) {
			switch v := v.(type) {
			case map[string]any:
				for _, in := range v {
					n = max(n, within(in))
				}
				return n + 1
			case []any:
				for _, in := range v {
					n = max(n, within(in))
				}
				return n + 1
			}
			return 0
		}
		if n := within(v); n > int(depth) {
			t.Fatalf("%q lies %d deep, of %d", data, n, depth)
		}
	})
}

const orderSchema = `{"type":"object","required":["id"],"additionalProperties":false,"properties":{
 "id":{"type":"string","pattern":"^[a-z]+$","maxLength":8},"n":{"type":"integer","minimum":1},
 "items":{"type":"array","maxItems":3,"items":{"oneOf":[{"type":"string"},{"type":"object","required":["sku"],"properties":{"sku":{"type":"integer"}}}]}}}}`

// What is told of a body names places that are in it, in bounds; and what fits by the letter of this test fits.
func FuzzBody(f *testing.F) {
	for _, s := range []string{`{"id":"a"}`, `{"id":"A","n":0,"x":1}`, `{"id":"a","items":[1,{"sku":"x"},"y",2]}`, `[]`, `{"id":"a","items":[{"sku":1}]}`, `{"i~d":1,"a/b":2}`} {
		f.Add([]byte(s))
	}
	s, err := schema.Compile(orderSchema)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		found := s.Body(data)
		if len(found) > schema.MaxErrors {
			t.Fatalf("%d findings", len(found))
		}
		v, err := schema.Decode(data, 64)
		for _, one := range found {
			if one.Detail == "" || len(one.Detail) > 300 || !utf8.ValidString(one.Detail) || !strings.HasPrefix(one.Pointer, "#") {
				t.Fatalf("%q: finding %+v", data, one)
			}
			if err == nil && !resolves(v, one.Pointer[1:]) {
				t.Fatalf("%q: finding at %q, where nothing is", data, one.Pointer)
			}
		}
		if m, ok := v.(map[string]any); err == nil && (len(found) == 0) != (ok && fits(m)) {
			t.Fatalf("%q: findings %v, by the letter it fits: %v", data, found, ok && fits(m))
		}
	})
}

// fits is what orderSchema says, written out.
func fits(m map[string]any) bool {
	id, ok := m["id"].(string)
	if !ok || len(id) > 8 || id == "" || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz") != "" {
		return false
	}
	whole := func(v any) (float64, bool) {
		n, ok := v.(json.Number)
		if !ok {
			return 0, false
		}
		f, err := strconv.ParseFloat(string(n), 64)
		// Beyond what a float64 tells apart this test says nothing.
		return f, err == nil && f == float64(int64(f))
	}
	for name, v := range m {
		switch name {
		case "id":
		case "n":
			if n, ok := whole(v); !ok || n < 1 {
				return false
			}
		case "items":
			list, ok := v.([]any)
			if !ok || len(list) > 3 {
				return false
			}
			for _, item := range list {
				if _, text := item.(string); text {
					continue
				}
				in, ok := item.(map[string]any)
				if !ok {
					return false
				}
				if _, ok := whole(in["sku"]); !ok {
					return false
				}
			}
		default:
			return false
		}
	}
	return true
}

func resolves(v any, pointer string) bool {
	pointer, err := url.PathUnescape(pointer)
	if err != nil {
		return false
	}
	if pointer == "" {
		return true
	}
	for part := range strings.SplitSeq(pointer[1:], "/") {
		part = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		switch in := v.(type) {
		case map[string]any:
			next, ok := in[part]
			if !ok {
				return false
			}
			v = next
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(in) {
				return false
			}
			v = in[i]
		default:
			return false
		}
	}
	return true
}

// A document is compiled or refused with a word of why, whatever it is; what compiles judges a request.
func FuzzCompile(f *testing.F) {
	f.Add(orderSchema, `{"id":"a"}`)
	f.Add("openapi: 3.0.3\ninfo: {title: a, version: '1'}\npaths:\n  /v1/{id}:\n    get:\n      parameters: [{in: path, name: id, required: true, schema: {type: integer}}]\n      responses: {'200': {description: ok}}\n", `1`)
	f.Add(`{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}`, `{}`)
	f.Add("a: &a [*a]", `[]`)
	f.Add(`{"patternProperties":{"(a+)+$":{}},"not":{"anyOf":[true,false]}}`, `{"aaaa":1}`)
	f.Fuzz(func(t *testing.T, text, body string) {
		if len(text) > 4<<10 { // the bound of what is taken is a test of its own
			return
		}
		if s, err := schema.Compile(text); err == nil {
			s.Body([]byte(body))
		} else if err.Error() == "" {
			t.Fatal("refused without a word")
		}
		if d, err := schema.CompileOpenAPI(text); err == nil {
			d.Check(&schema.Request{Method: "GET", Path: "/v1/1", Query: url.Values{"a": {body}}, Header: func(string) []string { return []string{body} }})
			d.Check(&schema.Request{Method: "POST", Path: body, Header: func(string) []string { return nil }, ContentType: "application/json", Body: []byte(body)})
		}
	})
}
