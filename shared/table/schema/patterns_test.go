package schema_test

import (
	"fmt"
	"strings"
	"testing"

	"bailiwick/shared/table/schema"
)

// Patterns go over a bounded part of a body: what would take seconds is refused before any has begun, and what people write is not.
func TestSchema_PatternsAreBounded(t *testing.T) {
	var heavy strings.Builder
	heavy.WriteString(`{"type":"object","patternProperties":{`)
	for i := range 100 {
		if i > 0 {
			heavy.WriteByte(',')
		}
		fmt.Fprintf(&heavy, `"(x|y%d){20}z":{}`, i)
	}
	heavy.WriteString("}}")
	var names, texts, small strings.Builder
	names.WriteString("{")
	for i := range 3000 {
		if i > 0 {
			names.WriteByte(',')
		}
		fmt.Fprintf(&names, `"%s%d":1`, strings.Repeat("x", 300), i)
	}
	names.WriteString("}")
	fmt.Fprintf(&small, `{"%s":1}`, strings.Repeat("x", 300))
	texts.WriteString(`["` + strings.Repeat("a", 60<<10))
	for range 14 {
		texts.WriteString(`","` + strings.Repeat("a", 60<<10))
	}
	texts.WriteString(`"]`)
	const uuid = `{"type":"array","items":{"type":"string","pattern":"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"}}`
	var ids strings.Builder
	ids.WriteString(`["` + "01234567-89ab-cdef-0123-456789abcdef")
	for range 5_000 {
		ids.WriteString(`","01234567-89ab-cdef-0123-456789abcdef`)
	}
	ids.WriteString(`"]`)
	for _, c := range []struct {
		what, document, body string
		refused              bool
	}{
		{"many names, each held against many patterns", heavy.String(), names.String(), true},
		{"one such name", heavy.String(), small.String(), false},
		{"long texts, each held against a long pattern", `{"items":{"pattern":"(a|aa|b){80}c"}}`, texts.String(), true},
		{"the same within another's alternatives", `{"anyOf":[{"items":{"pattern":"(a|aa|b){40}c"}},{"items":{"pattern":"(a|aa|c){40}d"}}]}`, texts.String(), true},
		{"names held against a pattern of propertyNames", `{"propertyNames":{"pattern":"(x|xx|y){80}z"}}`, names.String(), true},
		{"5,000 UUIDs", uuid, ids.String(), false},
		{"a megabyte without patterns", `{"items":{"type":"string"}}`, texts.String(), false},
	} {
		s, err := schema.Compile(c.document)
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		found := s.Body([]byte(c.body))
		if refused := len(found) == 1 && strings.Contains(found[0].Detail, "send less at a time"); refused != c.refused || !refused && len(found) > 0 {
			t.Errorf("%s: %d findings, want it refused: %v", c.what, len(found), c.refused)
		}
	}
}
