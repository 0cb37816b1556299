package proxy_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/accesslog"
	"bailiwick/dataplane/internal/attest"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// shaped sets what both edges' tables say of orders besides the usual.
func (w *world) shaped(orders func(a *table.API)) {
	w.west.orders, w.central.orders = orders, orders
	w.west.tables.Swap(w.view(w.west, true))
	w.central.tables.Swap(w.view(w.central, true))
}

// A browser asks before a script's request without a key: the edge answers, nobody is billed, no upstream is asked. What
// comes of the request itself, a refusal included, the page may read.
func TestCORS_TheEdgeAnswersPages(t *testing.T) {
	w := newWorld(t, patient)
	w.shaped(func(a *table.API) {
		a.CORS = &table.CORS{Origins: []string{"https://app.test"}, Methods: []string{"PUT"}, Headers: []string{"X-Api-Key"}, MaxAge: time.Minute}
		a.Routes = []table.Route{{Name: "all"}, {Name: "open", PathPrefix: "/open", CORS: &table.CORS{Origins: []string{"*"}}}, {Name: "post", PathPrefix: "/post", Methods: []string{"POST"}}}
	})
	rows, asked := w.west.meter.len(), w.west.up.count.Load()
	pre := func(path, origin, method string) answer {
		return w.send("OPTIONS", path, "", "X-Api-Key", "", "Origin", origin, "Access-Control-Request-Method", method)
	}
	a := pre("/v1/x", "https://app.test", "PUT")
	if a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != "https://app.test" || a.header.Get("Access-Control-Allow-Methods") != "GET, HEAD, POST, PUT" || a.header.Get("Access-Control-Allow-Headers") != "X-Api-Key" {
		t.Errorf("preflight: %+v", a)
	}
	if a = pre("/v1/x", "https://other.test", "PUT"); a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("preflight of another page: %+v", a)
	}
	if a = pre("/open/x", "https://other.test", "GET"); a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("preflight of an open route: %+v", a)
	}
	if a = pre("/post/x", "https://app.test", "PUT"); a.status != 405 {
		t.Errorf("preflight of a method that has no route: %+v", a)
	}
	if a = w.send("OPTIONS", "/v1/x", "", "X-Api-Key", "", "Origin", "https://app.test"); a.status != 401 {
		t.Errorf("OPTIONS that is no preflight, without a key: %+v", a)
	}
	if w.west.meter.len() != rows || w.west.up.count.Load() != asked {
		t.Errorf("%d rows and %d requests upstream for preflights", w.west.meter.len()-rows, w.west.up.count.Load()-asked)
	}
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Access-Control-Allow-Origin", "*")
		rw.Header().Set("Vary", "Accept")
		fmt.Fprint(rw, r.Header.Get("Origin"))
	})
	a = w.send("GET", "/v1/x", "", "Origin", "https://app.test")
	if a.status != 200 || a.body != "https://app.test" || !slices.Equal(a.header["Access-Control-Allow-Origin"], []string{"https://app.test"}) || !slices.Equal(a.header["Vary"], []string{"Accept", "Origin"}) {
		t.Errorf("answer: %+v", a)
	}
	if a = w.send("GET", "/v1/x", "", "Origin", "https://other.test"); a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("answer to another page: %+v", a)
	}
	if a = w.send("GET", "/v1/x", "", "X-Api-Key", "", "Origin", "https://app.test"); a.status != 401 || a.header.Get("Access-Control-Allow-Origin") != "https://app.test" {
		t.Errorf("a refusal: %+v", a)
	}
}

// What is kept is of no page: each is told for itself whether it may read it.
func TestCORS_ACachedAnswerIsOfNoPage(t *testing.T) {
	w := caching(t, table.Cache{}, true, says("max-age=3600"))
	kept := w.west.orders
	w.west.orders = func(a *table.API) {
		kept(a)
		a.CORS = &table.CORS{Origins: []string{"https://a.test", "https://b.test"}}
	}
	w.west.tables.Swap(w.view(w.west, true))
	for _, origin := range []string{"https://a.test", "https://b.test", "https://c.test"} {
		want := origin
		if origin == "https://c.test" {
			want = ""
		}
		a := w.send("GET", "/v1/x", "", "Origin", origin)
		if a.status != 200 || a.body != "answer 1" || a.header.Get("Access-Control-Allow-Origin") != want || !slices.Equal(a.header["Vary"], []string{"Origin"}) {
			t.Errorf("%s: got %+v", origin, a)
		}
	}
}

// Paths, hosts and fields are rewritten at home and where another region serves alike: the accepting edge changes fields, the
// upstream's edge path and host.
func TestRewrite_AtHomeAndAbroad(t *testing.T) {
	w := newWorld(t, patient)
	w.shaped(func(a *table.API) {
		a.HealthTimeout = time.Minute
		a.Routes = []table.Route{{Name: "all"}, {Name: "old", PathPrefix: "/v1", Rewrite: &table.Rewrite{Strip: "/v1", Put: "/internal", Host: "orders.internal",
			Request:  table.Fields{Remove: []string{"X-Old", "X_gone", "Bailiwick-Customer"}, Set: []table.Field{{Name: "X-Env", Value: "prod"}, {Name: "Bailiwick-Plan", Value: "forged"}, {Name: "X-Forwarded-Host", Value: "forged"}}, Add: []table.Field{{Name: "X-Tag", Value: "edge"}}},
			Response: table.Fields{Remove: []string{"Server", "X_gone"}, Set: []table.Field{{Name: "X-Frame-Options", Value: "DENY"}, {Name: "Bailiwick-Served", Value: "forged"}}}}}}
	})
	echo := func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Server", "upstream/1")
		fmt.Fprint(rw, r.Host, r.RequestURI, r.Header["X-Env"], r.Header["X-Old"], r.Header["X-Tag"], r.Header["Bailiwick-Customer"], r.Header["Bailiwick-Plan"], r.Header["X-Forwarded-Host"])
	}
	w.west.up.does(echo)
	w.central.up.does(echo)
	check := func(served string) {
		t.Helper()
		a := w.send("GET", "/v1/a%20b?q=1", "", "X-Old", "x", "X-Env", "client", "X-Tag", "client")
		want := "orders.internal/internal/a%20b?q=1[prod] [] [client edge] [acme] [gold] [orders.test]"
		if a.status != 200 || a.served != served || a.body != want || a.header.Get("Server") != "" || a.header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: got %d %s %v by %s, want %s", served, a.status, a.body, a.header, a.served, want)
		}
		if row := w.west.meter.last(); row.Route != "old" {
			t.Errorf("row of route %s, want old", row.Route)
		}
	}
	check("eu-west")
	// Nor does it come behind the body.
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "ok")
		rw.(http.Flusher).Flush()
		for _, name := range []string{"Server", "X_frame_options", "X_gone", "X-Sum"} {
			rw.Header().Set(http.TrailerPrefix+name, "upstream")
		}
	})
	conn, in := w.dial()
	io.WriteString(conn, w.head("GET", "/v1/x", "\r\n"))
	if resp, _ := read(t, in, "GET"); resp.StatusCode != 200 || fmt.Sprint(resp.Trailer) != "map[X-Sum:[upstream]]" {
		t.Errorf("got %d and the trailer %v", resp.StatusCode, resp.Trailer)
	}
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, r.Trailer)
	})
	conn, in = w.dial()
	io.WriteString(conn, w.head("POST", "/v1/x", "Transfer-Encoding: chunked\r\nX_said: x\r\n", "\r\n")+"1\r\nx\r\n0\r\nX-Sum: client\r\nX_gone: client\r\nX_old: client\r\nX_said: client\r\n\r\n")
	if resp, got := read(t, in, "POST"); resp.StatusCode != 200 || string(got) != "map[X-Sum:[client]]" {
		t.Errorf("got %d, and the upstream the trailer %s", resp.StatusCode, got)
	}
	w.west.up.does(echo)
	w.west.up.kill()
	eventually(t, 20*time.Second, "the other region serves", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	check("eu-central")
}

// A header that makes an upstream take GET or OPTIONS for another method would escape the route's methods, what a request
// costs, and the rule that such a request is made twice only if that does no harm.
func TestPath_NoHeaderChangesTheMethod(t *testing.T) {
	w := newWorld(t, patient)
	for _, road := range []string{"/common", "/short"} {
		for _, name := range []string{"X-HTTP-Method-Override", "X-Http-Method", "X-Method-Override", "X_HTTP_METHOD_OVERRIDE"} {
			if a := w.send("OPTIONS", road, "", name, "DELETE"); a.status != 200 {
				t.Errorf("%s: got %+v", name, a)
			}
			h, _ := w.west.up.last()
			for got, v := range h {
				if slices.Contains(v, "DELETE") {
					t.Errorf("%s: %s reached the upstream", name, got)
				}
			}
		}
	}
}

// The edge never decompresses: what a client accepts is asked for, and comes as it is, byte by byte.
func TestCompression_PassesAsItIs(t *testing.T) {
	w := newWorld(t, patient)
	bomb := []byte("\x1f\x8b\x08 no gzip at all")
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if enc := r.Header["Accept-Encoding"]; len(enc) == 1 {
			rw.Header().Set("Content-Encoding", enc[0])
		}
		rw.Header().Set("X-Asked", fmt.Sprint(r.Header["Accept-Encoding"], r.Header["Content-Encoding"]))
		rw.Write(bomb)
	})
	for _, road := range []string{"/common", "/short"} { // the second is an exchange
		for _, enc := range []string{"gzip", "br", "zstd"} {
			a := w.send("POST", road, string(bomb), "Accept-Encoding", enc, "Content-Encoding", enc)
			if a.status != 200 || a.body != string(bomb) || a.header.Get("Content-Encoding") != enc || a.header.Get("X-Asked") != fmt.Sprintf("[%s] [%s]", enc, enc) {
				t.Errorf("%s %s: got %+v", road, enc, a)
			}
		}
		if a := w.send("GET", road, "", "Accept-Encoding", "identity"); a.header.Get("X-Asked") != "[identity] []" {
			t.Errorf("%s: asked for %s, want what the client accepts", road, a.header.Get("X-Asked"))
		}
	}
	w.west.up.mu.Lock()
	defer w.west.up.mu.Unlock()
	if w.west.up.bodies[string(bomb)] != 6 {
		t.Errorf("%d bodies came as they were sent, want 6", w.west.up.bodies[string(bomb)])
	}
}

// What a parameter is may stand in any of the schemas that speak of it, as those write it who make their documents by program.
func TestValidation_ReadsParametersByAllOfTheirSchemas(t *testing.T) {
	w := newWorld(t, patient)
	w.shaped(func(a *table.API) {
		get := func(schema string) string {
			return `{"get":{"parameters":[{"name":"q","in":"query","schema":` + schema + `}],"responses":{"200":{"description":"d"}}}}`
		}
		a.OpenAPI = `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/doc/null":` + get(`{"anyOf":[{"type":"integer"},{"type":"null"}]}`) +
			`,"/doc/all":` + get(`{"allOf":[{"$ref":"#/components/schemas/Page"}]}`) + `,"/doc/enum":` + get(`{"enum":[1,2]}`) +
			`,"/doc/list":` + get(`{"anyOf":[{"type":"array","items":{"type":"integer"}},{"type":"null"}]}`) +
			`,"/doc/items":` + get(`{"type":"array","items":{"anyOf":[{"type":"integer"},{"enum":["all"]}]}}`) +
			`},"components":{"schemas":{"Page":{"type":"integer","minimum":1}}}}`
		a.Routes = []table.Route{{Name: "all"}, {Name: "doc", PathPrefix: "/doc", Validation: &table.Validation{OpenAPI: true}}}
	})
	for _, c := range []struct {
		path   string
		status int
	}{
		{"/doc/null?q=5", 200}, {"/doc/null?q=x", 400},
		{"/doc/all?q=5", 200}, {"/doc/all?q=0", 400}, {"/doc/all?q=x", 400},
		{"/doc/enum?q=1", 200}, {"/doc/enum?q=3", 400}, {"/doc/enum?q=x", 400},
		{"/doc/list?q=1&q=2", 200}, {"/doc/list?q=1&q=x", 400},
		{"/doc/items?q=1&q=all", 200}, {"/doc/items?q=1&q=x", 400},
	} {
		before := w.west.up.count.Load()
		a := w.send("GET", c.path, "")
		if sent := w.west.up.count.Load() - before; a.status != c.status || sent != int64(btoi(c.status == 200)) || c.status == 400 && !strings.Contains(a.body, `"query q"`) {
			t.Errorf("%s: got %d, %d upstream, %s, want %d", c.path, a.status, sent, a.body, c.status)
		}
	}
}

// What is not as the API says costs no upstream anything; it is counted as refused, with each field named.
func TestValidation_RefusesBeforeAnUpstream(t *testing.T) {
	w := newWorld(t, patient)
	w.shaped(func(a *table.API) {
		a.OpenAPI = `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/doc/{id}":{"get":{"parameters":[{"name":"id","in":"path","required":true,"schema":{"type":"integer"}},{"name":"limit","in":"query","schema":{"type":"integer","maximum":9}}],"responses":{"200":{"description":"d"}}}}}}`
		a.Routes = []table.Route{{Name: "all"}, {Name: "doc", PathPrefix: "/doc", Validation: &table.Validation{OpenAPI: true}},
			{Name: "body", PathPrefix: "/body", Validation: &table.Validation{Schema: `{"type":"object","required":["item"],"properties":{"item":{"type":"string"},"n":{"type":"integer"}}}`}}}
	})
	long := `{"item":"` + strings.Repeat("x", 200_000) + `"}`
	for _, c := range []struct {
		method, path, body, media string
		status                    int
		errors                    string
	}{
		{"GET", "/doc/7?limit=3", "", "", 200, ""},
		{"GET", "/doc/seven?limit=10", "", "", 400, "path id, query limit"},
		{"GET", "/doc", "", "", 404, ""},
		{"PUT", "/doc/7", "x", "", 404, ""},
		{"POST", "/body", `{"item":"a","n":1}`, "application/json", 200, ""},
		{"POST", "/body", long, "application/json", 200, ""}, // longer than what is kept of other bodies
		{"POST", "/body", `{"n":"1"}`, "application/json", 400, "#, #/n"},
		{"POST", "/body", `{"item":"a"}`, "text/plain", 400, "header Content-Type"},
		{"POST", "/body", `{"item":"a"} `, "", 400, "header Content-Type"},
		{"POST", "/body", "", "application/json", 400, "#"},
		{"POST", "/body", `{"item":"a","x":"+ACI-,+ACI-item+ACI-:+ACI-b"}`, "application/json; charset=utf-7", 400, "header Content-Type"},
		{"GET", "/body", "", "", 200, ""},
		{"POST", "/body", `{"item":"` + strings.Repeat("x", 1<<20) + `"}`, "application/json", 413, ""},
	} {
		before, rows := w.west.up.count.Load(), w.west.meter.len()
		expect := "" // who asks first is told before a connection closes under what it sends
		if c.status == 413 {
			expect = "100-continue"
		}
		a := w.send(c.method, c.path, c.body, "Content-Type", c.media, "Expect", expect)
		var p struct {
			Errors []struct{ Pointer, Parameter, Detail string }
		}
		if a.status >= 400 {
			if err := json.Unmarshal([]byte(a.body), &p); err != nil {
				t.Fatalf("%s %s: %s: %v", c.method, c.path, a.body, err)
			}
		}
		var at []string
		for _, e := range p.Errors {
			at = append(at, e.Pointer+e.Parameter)
		}
		slices.Sort(at)
		if got := strings.Join(at, ", "); a.status != c.status || got != c.errors {
			t.Errorf("%s %s %.40s: got %d %s %s, want %d %s", c.method, c.path, c.body, a.status, got, a.body, c.status, c.errors)
		}
		sent := w.west.up.count.Load() - before
		if row := w.west.meter.last(); sent != int64(btoi(c.status == 200)) || w.west.meter.len() != rows+1 || (row.Outcome == usage.OutcomeRefused) != (c.status != 200) {
			t.Errorf("%s %s %.40s: %d upstream, row %+v", c.method, c.path, c.body, sent, row)
		}
		if c.status == 200 && c.body != "" {
			w.west.up.mu.Lock()
			if w.west.up.bodies[c.body] != 1 {
				t.Errorf("%.40s: the body did not come as it was sent", c.body)
			}
			w.west.up.mu.Unlock()
		}
	}
	if a := w.send("POST", "/body", `{"item":"a"}`, "Content-Type", "application/json", "Content-Encoding", "br"); a.status != 400 || !strings.Contains(a.body, "Content-Encoding") {
		t.Errorf("a body that an upstream would read as another: %+v", a)
	}
	// A body of unknown length is read whole, and goes on with its length.
	req, _ := http.NewRequest("POST", w.west.server.URL+"/body", io.MultiReader(strings.NewReader(`{"item":`), strings.NewReader(`"chunked"}`)))
	req.Host = "orders.test"
	req.Header.Set("X-Api-Key", w.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.west.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if h, _ := w.west.up.last(); resp.StatusCode != 200 || w.west.up.bodies[`{"item":"chunked"}`] != 1 || h.Get("Transfer-Encoding") != "" {
		t.Errorf("chunked: %d, %v", resp.StatusCode, h)
	}
	if n := w.west.proxy.ReplayBytes(); n != 0 {
		t.Errorf("%d bytes of bodies are kept when all requests are over", n)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A query is held against the route's bounds, and costs what it asks: over POST and GET, in the row and out of the quota.
func TestGraphQL_IsBoundedAndCounted(t *testing.T) {
	w := newWorld(t, patient)
	w.shaped(func(a *table.API) {
		bounds := &table.GraphQL{Depth: 3, Aliases: 2, RootFields: 3, Cost: 100}
		a.Routes = []table.Route{{Name: "all"}, {Name: "free", PathPrefix: "/graphql", GraphQL: bounds}, {Name: "cost", PathPrefix: "/cost", GraphQL: bounds, Units: &table.Units{GraphQL: "cost", Most: 50}},
			{Name: "fields", PathPrefix: "/fields", GraphQL: bounds, Units: &table.Units{GraphQL: "fields", Most: 50}}}
	})
	for _, c := range []struct {
		method, path, body string
		status             int
		units              int64
	}{
		{"POST", "/graphql", `{"query":"{ me { name } }"}`, 200, 1},
		{"POST", "/cost", `{"query":"{ me { name } }"}`, 200, 2},
		{"POST", "/cost", `{"query":"query($n: Int) { orders(first: $n) { id total } }","variables":{"n":10}}`, 200, 21},
		{"POST", "/fields", `{"query":"{ orders(first: 10) { id total } }"}`, 200, 3},
		{"GET", "/cost?query=%7Borders(last:5)%7Bid%7D%7D", "", 200, 6},
		{"POST", "/cost", `{"query":"{ orders(first: 30) { id total } }"}`, 400, 0}, // 61: more than one request costs
		{"POST", "/graphql", `{"query":"{ orders(first: 1000) { id } }"}`, 400, 0},
		{"POST", "/graphql", `{"query":"{ a { b { c { d } } } }"}`, 400, 0},
		{"POST", "/graphql", `[{"query":"{ a }"}]`, 400, 0},
		{"POST", "/graphql", `{"query":"{ __schema { types { name } } }"}`, 400, 0},
		{"POST", "/graphql", `{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"x"}}}`, 200, 1},
		{"POST", "/cost", `{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"x"}}}`, 400, 0},
		{"GET", "/graphql?query=mutation%7Ba%7D", "", 400, 0},
		{"DELETE", "/graphql", "", 400, 0},
	} {
		before := w.west.up.count.Load()
		a := w.send(c.method, c.path, c.body, "Content-Type", "application/json")
		row := w.west.meter.last()
		if a.status != c.status || row.Units != c.units || (w.west.up.count.Load() == before+1) != (c.status == 200) {
			t.Errorf("%s %s %s: got %d %s, row of %d units, want %d and %d", c.method, c.path, c.body, a.status, a.body, row.Units, c.status, c.units)
		}
	}
}

// Lists of operations are refused where the route takes none, bounded where it does, and each operation in them is counted: as a
// unit, or as what it comes to where the route says so. Over each protocol, and by way of another region.
func TestGraphQL_ListsAreBoundedAndCounted(t *testing.T) {
	w := newWorld(t, patient)
	list := &table.GraphQL{Depth: 3, Aliases: 2, RootFields: 3, Cost: 30, Batch: 3}
	w.shaped(func(a *table.API) {
		a.Routes = []table.Route{{Name: "all"}, {Name: "none", PathPrefix: "/none", GraphQL: &table.GraphQL{Depth: 3, Aliases: 2, RootFields: 3, Cost: 30}},
			{Name: "list", PathPrefix: "/list", GraphQL: list}, {Name: "cost", PathPrefix: "/cost", GraphQL: list, Units: &table.Units{GraphQL: "cost", Most: 50}},
			{Name: "gratis", PathPrefix: "/gratis", GraphQL: list, Free: true}}
	})
	one := `{"query":"{ me { name } }"}`
	of := func(n int, query string) string {
		return "[" + strings.TrimSuffix(strings.Repeat(query+",", n), ",") + "]"
	}
	vias := w.vias()
	all := func(up *upstream) {
		for _, v := range vias {
			for _, c := range []struct {
				path, body string
				status     int
				units      int64
			}{
				{"/none", of(1, one), 400, 0},
				{"/list", one, 200, 1},
				{"/list", of(1, one), 200, 1},
				{"/list", of(3, one), 200, 3},
				{"/list", of(4, one), 400, 0},
				{"/list", "[]", 400, 0},
				{"/list", of(2, `{"query":"{ orders(first: 7) { id total } }"}`), 200, 2},
				{"/list", of(3, `{"query":"{ orders(first: 7) { id total } }"}`), 400, 0}, // 15 each: more than one request may cost
				{"/list", of(2, `{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"x"}}}`), 200, 2},
				{"/cost", of(3, one), 200, 6},
				{"/gratis", of(3, one), 200, 0},
			} {
				before, rows := up.count.Load(), w.west.meter.len()
				resp, err := v.ask(t.Context(), w, "POST", c.path, strings.NewReader(c.body), "Content-Type", "application/json")
				if err != nil {
					t.Fatalf("%s over %s: %v", c.path, v.name, err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if row := w.west.meter.last(); w.west.meter.len() != rows+1 || resp.StatusCode != c.status || row.Units != c.units || (up.count.Load() == before+1) != (c.status == 200) {
					t.Errorf("%s %s over %s: got %d, row of %d units, want %d and %d", c.path, c.body, v.name, resp.StatusCode, row.Units, c.status, c.units)
				}
			}
		}
	}
	all(w.west.up)
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	all(w.central.up)
}

// An upstream that wants it is told who asks in a token that the zone signed, also by way of another region, and finds the keys
// at the API's own host. What a client sends under that name reaches nobody.
func TestIdentity_IsSignedWhereItIsAskedFor(t *testing.T) {
	signer, err := attest.New("emea", "eu-west", pepper)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *proxy.Config) { patient(c); c.Signer = signer })
	w.shaped(func(a *table.API) { a.HealthTimeout = time.Minute; a.Auth = &table.Auth{Signed: true} })
	keys := w.send("GET", "/.well-known/bailiwick/jwks.json", "", "X-Api-Key", "")
	var set struct{ Keys []struct{ Kid, X string } }
	if err := json.Unmarshal([]byte(keys.body), &set); err != nil || keys.status != 200 || len(set.Keys) != 3 {
		t.Fatalf("keys: %+v %v", keys, err)
	}
	if a := w.send("GET", "/.well-known/bailiwick/jwks.json", "", "X-Api-Key", "", "Host", "tight.test"); a.status != 401 {
		t.Errorf("keys of an API that signs nothing: %+v", a)
	}
	check := func(u *upstream) {
		t.Helper()
		h, _ := u.last()
		if len(h["Bailiwick-Identity"]) != 1 {
			t.Fatalf("told %v", h["Bailiwick-Identity"])
		}
		parts := strings.Split(h["Bailiwick-Identity"][0], ".")
		if len(parts) != 3 {
			t.Fatalf("token %v", parts)
		}
		signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
		says, _ := base64.RawURLEncoding.DecodeString(parts[1])
		good := slices.ContainsFunc(set.Keys, func(k struct{ Kid, X string }) bool {
			x, _ := base64.RawURLEncoding.DecodeString(k.X)
			return len(x) == ed25519.PublicKeySize && ed25519.Verify(x, []byte(parts[0]+"."+parts[1]), signature)
		})
		var claims map[string]any
		if err := json.Unmarshal(says, &claims); err != nil || !good || claims["sub"] != "acme" || claims["aud"] != "orders" || claims["plan"] != "gold" || claims["sub"] != h.Get("Bailiwick-Customer") {
			t.Errorf("verifies %v, and says %s", good, says)
		}
	}
	if a := w.send("GET", "/v1/x", "", "Bailiwick-Identity", "forged"); a.status != 200 || a.served != "eu-west" {
		t.Fatalf("got %+v", a)
	}
	check(w.west.up)
	w.west.up.kill()
	eventually(t, 20*time.Second, "the other region serves", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	check(w.central.up)
}

// A line of the access log has what its row has, on each road; no path, query, header, address or secret is in it.
func TestAccessLog_NamesRequestsAndNoSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	log, err := accesslog.New(accesslog.Config{Path: path, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *proxy.Config) {
		patient(c)
		if c.Region == "eu-west" {
			c.Access = log
		}
	})
	for _, road := range []string{"/canary-path", "/short/canary-path"} {
		w.send("POST", road+"?token=canary-query", "canary-body", "X-Canary", "canary-header")
		w.send("GET", road, "", "X-Api-Key", "canary-key")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	log.Run(ctx)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("canary")) || bytes.Contains(data, []byte(w.key)) || bytes.Contains(data, []byte("127.0.0.1")) {
		t.Errorf("the log holds what is nobody's business: %s", data)
	}
	var got []string
	for line := range strings.Lines(string(data)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(m["api"], " ", m["route"], " ", m["method"], " ", m["status"], " ", m["customer"], " ", m["outcome"], " ", m["bytes_in"], " ", m["served_region"]))
	}
	want := []string{"orders all POST 200 acme success 11 eu-west", "orders all GET 401 <nil> <nil> 0 <nil>", "orders short POST 200 acme success 11 eu-west", "orders short GET 401 <nil> <nil> 0 <nil>"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// A document that this edge cannot read lets nothing pass: it is found out by the first request where it is too long to be looked
// at when it arrives.
func TestValidation_ADocumentThatIsNoneLetsNothingPass(t *testing.T) {
	w := newWorld(t, nil)
	long := strings.Repeat("x", 9<<10)
	w.shaped(func(a *table.API) {
		a.OpenAPI = `{"openapi":"` + long + `"}`
		a.Routes = []table.Route{{Name: "all"}, {Name: "schema", PathPrefix: "/schema", Validation: &table.Validation{Schema: `{"type":"` + long + `"}`}},
			{Name: "fits", PathPrefix: "/fits", Validation: &table.Validation{Schema: `{"type":"object","description":"` + long + `"}`}},
			{Name: "document", PathPrefix: "/document", Validation: &table.Validation{OpenAPI: true}}}
	})
	for path, status := range map[string]int{"/schema": 503, "/document": 503, "/fits": 200, "/v1/x": 200} {
		asked := w.west.up.count.Load()
		a := w.send("POST", path, `{"a":1}`, "Content-Type", "application/json")
		if passed := w.west.up.count.Load() - asked; a.status != status || (passed == 1) != (status == 200) {
			t.Errorf("%s: got %d %s, and %d passed", path, a.status, a.body, passed)
		}
	}
}
