package proxy_test

import (
	"strings"
	"testing"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/shared/table"
)

// A query of more parameters than Go's own reader takes (urlmaxqueryparams, 10,000) is read to its end where only names are looked
// for in it, and refused where all of it is read: nothing is decided on a part, over each protocol.
func TestQuery_OfMoreParametersThanGoReads(t *testing.T) {
	w := newWorld(t, patient)
	key, o := mint(t, "callers")
	w.objects = append(w.objects, o)
	w.shaped(func(a *table.API) {
		a.OpenAPI = `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/doc":{"get":{"parameters":[{"name":"limit","in":"query","schema":{"type":"integer"}}],"responses":{"200":{"description":"d"}}}}}}`
		a.Routes = []table.Route{{Name: "all"}, {Name: "doc", PathPrefix: "/doc", Validation: &table.Validation{OpenAPI: true}},
			{Name: "graphql", PathPrefix: "/graphql", GraphQL: &table.GraphQL{Depth: 9, Aliases: 9, RootFields: 9, Cost: 9}}}
	})
	most := strings.Repeat("a&", 10_001)
	for _, v := range w.vias() {
		for _, c := range []struct {
			name, host, path string
			header           []string
			status           int
			reason, uri      string
		}{
			{"plain", "orders.test", "/v1/x?" + most + "z", nil, 200, "", "/v1/x?" + most + "z"},
			{"with a document", "orders.test", "/doc?" + most + "limit=x", nil, 400, gate.ReasonInvalid, ""},
			{"with a document, as few as are read", "orders.test", "/doc?" + strings.Repeat("a&", 9_999) + "limit=7", nil, 200, "", "/doc?" + strings.Repeat("a&", 9_999) + "limit=7"},
			{"GraphQL", "orders.test", "/graphql?" + most + "query={a}", nil, 400, gate.ReasonQuery, ""},
			{"a key behind all", "callers.test", "/x?" + most + "partner_key=" + key, []string{"X-Api-Key", "", "Host", "callers.test"}, 200, "", "/x?" + strings.TrimSuffix(most, "&")},
			{"a key at both ends", "callers.test", "/x?partner_key=" + key + "&" + most + "partner_key=" + key, []string{"X-Api-Key", "", "Host", "callers.test"}, 401, gate.ReasonKeyConflict, ""},
		} {
			if c.host != "orders.test" && v.name != "HTTP/1.1" { // each connection of these is of orders.test
				continue
			}
			before := w.west.up.count.Load()
			var a answer
			if v.name == "HTTP/1.1" {
				a = w.send("GET", c.path, "", c.header...)
			} else {
				a = w.sendBy(t.Context(), v, "GET", c.path, "")
			}
			if a.err != nil || a.status != c.status || !strings.Contains(a.body, c.reason) {
				t.Errorf("%s over %s: got %d %.300s %v, want %d %s", c.name, v.name, a.status, a.body, a.err, c.status, c.reason)
				continue
			}
			_, uri := w.west.up.last()
			if n := w.west.up.count.Load() - before; c.status != 200 && n != 0 || c.status == 200 && (n != 1 || uri != c.uri) {
				t.Errorf("%s over %s: %d at the upstream, with %d bytes of %d", c.name, v.name, n, len(uri), len(c.uri))
			}
		}
	}
}
