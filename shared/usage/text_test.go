package usage_test

import (
	"maps"
	"reflect"
	"slices"
	"testing"

	"bailiwick/shared/usage"
)

// texts names each field of a row in which text or bytes go from an edge to its zone, and what is in it. Nothing that a
// client sends is among them (invariant 19): what became a pseudonym is a number.
var texts = map[string]string{
	"RequestID":    "random",
	"Customer":     "the customer's id, to his own zone",
	"Subscription": "id in his record",
	"Plan":         "catalogue id",
	"Product":      "catalogue id",
	"API":          "catalogue id",
	"Route":        "catalogue id; not the path",
	"ServedRegion": "catalogue id",
	"KeyID":        "id of a key; not its secret",
}

func TestRow_HoldsNoFreeText(t *testing.T) {
	seen := map[string]bool{}
	for f := range reflect.TypeFor[usage.Row]().Fields() {
		switch f.Type.Kind() {
		case reflect.String, reflect.Slice, reflect.Array, reflect.Map, reflect.Interface, reflect.Pointer, reflect.Struct:
			if seen[f.Name] = true; texts[f.Name] == "" {
				t.Errorf("%s goes from an edge to its zone with every request: it needs a line in this test's list, and free text has none", f.Name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		if !seen[name] {
			t.Errorf("%s has a line and does not exist any more", name)
		}
	}
}
