package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/table"
)

// big is a schema of more bytes than are compiled when an API arrives.
func big(kind string) string {
	return fmt.Sprintf(`{"type":%q,"description":%q}`, kind, strings.Repeat("x", 9<<10))
}

// A table waits for a few documents of an API and no more, so that many of them hold up no revocation; the others are compiled once,
// when they are first needed.
func TestTable_WaitsForFewDocuments(t *testing.T) {
	routes := []table.Route{
		{Name: "small", PathPrefix: "/small", Validation: &table.Validation{Schema: `{"type":"object"}`}},
		{Name: "big", PathPrefix: "/big", Validation: &table.Validation{Schema: big("object")}},
		{Name: "same", PathPrefix: "/same", Validation: &table.Validation{Schema: big("object")}},
		{Name: "none", PathPrefix: "/none", Validation: &table.Validation{Schema: big("nothing")}},
	}
	for i := range 500 { // each of them alone takes longer than all that is compiled at once
		routes = append(routes, table.Route{Name: fmt.Sprint("r", i), PathPrefix: fmt.Sprint("/r/", i), Validation: &table.Validation{Schema: big(fmt.Sprint("nothing", i))}})
	}
	tab := build(t, append(sample(t), enc(t, table.KindAPI, "many", table.API{Name: "many", Zone: "emea", Hosts: []string{"many.test"}, Routes: routes}))...)
	if got := tab.Quarantined(); len(got) != 0 {
		t.Fatalf("set aside: %v", got)
	}
	route := func(path string) *policy.Route {
		r, match := tab.API("many.test").Route("POST", path)
		if match != policy.RouteFound || r.Schema == nil {
			t.Fatalf("%s: %v", path, match)
		}
		return r
	}
	if route("/big").Schema != route("/same").Schema {
		t.Error("one text is compiled twice")
	}
	for path, fits := range map[string]bool{"/small": true, "/big": true} {
		s, err := route(path).Schema.Get()
		if err != nil || (len(s.Body([]byte(`{}`))) == 0) != fits || len(s.Body([]byte(`1`))) == 0 {
			t.Errorf("%s: %v", path, err)
		}
	}
	for range 2 {
		if s, err := route("/none").Schema.Get(); err == nil || s != nil {
			t.Errorf("one that is none was compiled to %v", s)
		}
	}
}
