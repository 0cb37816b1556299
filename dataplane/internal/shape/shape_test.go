package shape_test

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/shape"
	"bailiwick/shared/table"
)

func TestShare_NamesTheOriginsThatMay(t *testing.T) {
	named := &table.CORS{Origins: []string{"https://app.test", "https://*.example.com", "http://localhost:3000", "https://*.example.com:8443"}, Credentials: true, Expose: []string{"X-Total"}}
	for _, c := range []struct {
		origin string
		may    bool
	}{
		{"https://app.test", true}, {"http://app.test", false}, {"https://app.test:8443", false}, {"https://app.test.evil.test", false}, {"https://xapp.test", false}, {"null", false}, {"", false},
		{"https://a.example.com", true}, {"https://a.b.example.com", true}, {"https://example.com", false}, {"https://evilexample.com", false}, {"https://.example.com", false},
		{"https://evil.test/.example.com", false}, {"https://evil.test#.example.com", false}, {"https://evil.test?.example.com", false}, {"https://u@a.example.com", false}, {"https://evil.test\\.example.com", false},
		{"https://a.example.com:8443", true}, {"https://a.example.com:9443", false}, {"https://A.example.com", false}, {"http://localhost:3000", true},
	} {
		h := http.Header{"Access-Control-Allow-Origin": {"*"}, "Access-Control-Allow-Credentials": {"true"}, "Vary": {"Accept"}}
		kept := maps.Clone(h)
		shape.Share(named, h, []string{c.origin})
		want := ""
		if c.may {
			want = c.origin
		}
		if got := h.Get("Access-Control-Allow-Origin"); got != want || (h.Get("Access-Control-Allow-Credentials") == "true") != c.may || (h.Get("Access-Control-Expose-Headers") == "X-Total") != c.may {
			t.Errorf("%s: got %v", c.origin, h)
		}
		if !slices.Equal(h["Vary"], []string{"Accept", "Origin"}) || len(kept["Vary"]) != 1 {
			t.Errorf("%s: Vary %v, and of what is kept %v", c.origin, h["Vary"], kept["Vary"])
		}
	}
	h := http.Header{"Vary": {"accept, origin"}}
	shape.Share(named, h, nil)
	if len(h["Vary"]) != 1 || h.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without an origin: %v", h)
	}
	h = http.Header{}
	shape.Share(&table.CORS{Origins: []string{"*"}}, h, []string{"https://any.test"})
	if h.Get("Access-Control-Allow-Origin") != "*" || h["Vary"] != nil || h.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("for all: %v", h)
	}
	h = http.Header{} // as no table should say: all pages would be given a customer's cookies
	shape.Share(&table.CORS{Origins: []string{"*"}, Credentials: true}, h, []string{"https://any.test"})
	if h.Get("Access-Control-Allow-Origin") != "" || h.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("for all with credentials: %v", h)
	}
}

func TestAnswerPreflight_SaysWhatAScriptMayDo(t *testing.T) {
	c := &table.CORS{Origins: []string{"https://app.test"}, Methods: []string{"PUT"}, Headers: []string{"Authorization", "Content-Type"}, MaxAge: 10 * time.Minute}
	h := http.Header{}
	shape.AnswerPreflight(c, h, http.Header{"Origin": {"https://app.test"}})
	if h.Get("Access-Control-Allow-Methods") != "GET, HEAD, POST, PUT" || h.Get("Access-Control-Allow-Headers") != "Authorization, Content-Type" || h.Get("Access-Control-Max-Age") != "600" || h.Get("Access-Control-Allow-Origin") != "https://app.test" {
		t.Errorf("got %v", h)
	}
	h = http.Header{}
	shape.AnswerPreflight(c, h, http.Header{"Origin": {"https://other.test"}})
	if len(h) != 1 || strings.Join(h["Vary"], ",") != "Origin,Access-Control-Request-Method,Access-Control-Request-Headers" {
		t.Errorf("another page: %v", h)
	}
	for _, h := range []http.Header{{}, {"Origin": {"a"}}, {"Access-Control-Request-Method": {"PUT"}}, {"Origin": {"a", "b"}, "Access-Control-Request-Method": {"PUT"}}} {
		if _, ok := shape.Preflight("OPTIONS", h); ok {
			t.Errorf("%v is taken for a preflight", h)
		}
	}
	if m, ok := shape.Preflight("OPTIONS", http.Header{"Origin": {"a"}, "Access-Control-Request-Method": {"PUT"}}); !ok || m != "PUT" {
		t.Error("a preflight is not taken for one")
	}
}

func TestPath_IsRewrittenBySegments(t *testing.T) {
	for _, c := range []struct{ strip, put, path, raw, want, wantRaw string }{
		{"", "", "/v1/a", "", "/v1/a", ""},
		{"/v1", "", "/v1/a", "", "/a", ""},
		{"/v1", "", "/v1", "", "/", ""},
		{"/v1", "", "/v1/", "", "/", ""},
		{"/v1", "", "/v10/a", "", "/v10/a", ""},
		{"/v1", "/api", "/v1/a", "", "/api/a", ""},
		{"/v1", "/api", "/v1", "", "/api", ""},
		{"/v1", "/api", "/v2/a", "", "/api/v2/a", ""}, // put confines, whatever is asked for
		{"/v1", "/api", "/v2/%61", "/v2/%61", "/api/v2/%61", "/api/v2/%61"},
		{"/v1", "/api", "/v10", "", "/api/v10", ""},
		{"/v1", "", "/v2/a b!", "/v2/a%20b%21", "/v2/a b!", "/v2/a%20b%21"},
		{"", "/api", "/a", "", "/api/a", ""},
		{"/v1", "/api", "/v1/a b!", "/v1/a%20b%21", "/api/a b!", "/api/a%20b%21"},
		{"/v1/x", "/api", "/v1/x/a", "/%761/x/%61", "/api/a", "/api/%61"}, // the strip as the client spelt it
		{"/v1", "", "/v1", "/%761", "/", "/"},
		{"/v1", "/a b", "/v1/c", "/v1/%63", "/a b/c", "/a%20b/%63"},
	} {
		path, raw := shape.Path(&table.Rewrite{Strip: c.strip, Put: c.put}, c.path, c.raw)
		if path != c.want || raw != c.wantRaw {
			t.Errorf("%s %s, of %s %s: got %s %s, want %s %s", c.strip, c.put, c.path, c.raw, path, raw, c.want, c.wantRaw)
		}
	}
}

func TestHeader_RemovesSetsAdds(t *testing.T) {
	shared := []string{"1"}
	h := http.Header{"X-Old": {"a"}, "X-Set": shared, "X-Add": shared, "User-Agent": {"curl"}}
	shape.Header(&table.Fields{Remove: []string{"X-Old", "User-Agent"}, Set: []table.Field{{Name: "X-Set", Value: "2"}}, Add: []table.Field{{Name: "X-Add", Value: "2"}, {Name: "X-New", Value: "3"}}}, h)
	if h["X-Old"] != nil || h.Get("X-Set") != "2" || !slices.Equal(h["X-Add"], []string{"1", "2"}) || h.Get("X-New") != "3" || shared[0] != "1" {
		t.Errorf("got %v, shared %v", h, shared)
	}
	if v, there := h["User-Agent"]; !there || v != nil {
		t.Errorf("User-Agent: %v %v, want it there and empty, or the library would name itself", v, there)
	}
	h = http.Header{"X_tenant": {"forged"}, "X.tenant": {"forged"}, "X-Gone_by": {"forged"}, "X~gone'by": {"forged"}, "X_other": {"a"}}
	shape.Header(&table.Fields{Remove: []string{"X-Gone-By"}, Set: []table.Field{{Name: "X-Tenant", Value: "acme"}}}, h)
	if len(h) != 2 || h.Get("X-Tenant") != "acme" || h["X_other"] == nil {
		t.Errorf("in another spelling: got %v", h)
	}
}
