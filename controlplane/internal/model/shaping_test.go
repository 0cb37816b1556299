package model_test

import (
	"errors"
	"testing"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

func TestShaping_IsRefusedWithItsReason(t *testing.T) {
	api := func(s model.Shaping) model.API {
		return model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Shaping: s}
	}
	rewrite := func(f model.Fields) model.Shaping { return model.Shaping{Rewrite: &model.Rewrite{Request: f}} }
	for _, c := range []struct {
		name   string
		in     model.API
		reason string // "": fine
		at     string
	}{
		{"origins", api(model.Shaping{CORS: &model.CORS{Origins: []string{"https://app.example.com", "http://localhost:3000", "https://*.example.com:8443"}, Credentials: true}}), "", ""},
		{"all origins", api(model.Shaping{CORS: &model.CORS{Origins: []string{"*"}}}), "", ""},
		{"credentials for all", api(model.Shaping{CORS: &model.CORS{Origins: []string{"https://a.test", "*"}, Credentials: true}}), "CREDENTIALS_FOR_ALL", "spec.cors.credentials"},
		{"no origin", api(model.Shaping{CORS: &model.CORS{}}), "ORIGIN_MISSING", "spec.cors.origins"},
		{"a path in an origin", api(model.Shaping{CORS: &model.CORS{Origins: []string{"https://a.test/"}}}), "ORIGIN_INVALID", "spec.cors.origins[0]"},
		{"a star within", api(model.Shaping{CORS: &model.CORS{Origins: []string{"https://a.*.test"}}}), "ORIGIN_INVALID", "spec.cors.origins[0]"},
		{"a star as the end of a name", api(model.Shaping{CORS: &model.CORS{Origins: []string{"https://*example.com"}}}), "ORIGIN_INVALID", "spec.cors.origins[0]"},
		{"a top-level domain", api(model.Shaping{CORS: &model.CORS{Origins: []string{"https://*.com"}}}), "ORIGIN_INVALID", "spec.cors.origins[0]"},
		{"the usual port", api(model.Shaping{CORS: &model.CORS{Origins: []string{"https://a.test:443"}}}), "ORIGIN_INVALID", "spec.cors.origins[0]"},
		{"null", api(model.Shaping{CORS: &model.CORS{Origins: []string{"null"}}}), "ORIGIN_INVALID", "spec.cors.origins[0]"},
		{"capitals", api(model.Shaping{CORS: &model.CORS{Origins: []string{"https://A.test"}}}), "ORIGIN_INVALID", "spec.cors.origins[0]"},

		{"fields", api(rewrite(model.Fields{Remove: []string{"X-Old"}, Set: []model.Field{{"X-Env", "prod"}}, Add: []model.Field{{"Accept-Language", "de"}}})), "", ""},
		{"an identity", api(rewrite(model.Fields{Set: []model.Field{{"bailiwick-customer", "acme"}}})), "HEADER_UNTOUCHABLE", "spec.rewrite.request.set[0]"},
		{"an identity under another spelling", api(rewrite(model.Fields{Set: []model.Field{{"Bailiwick_Customer", "acme"}}})), "HEADER_INVALID", "spec.rewrite.request.set[0]"},
		{"the client's address", api(rewrite(model.Fields{Remove: []string{"x-forwarded-for"}})), "HEADER_UNTOUCHABLE", "spec.rewrite.request.remove[0]"},
		{"hop by hop", api(rewrite(model.Fields{Set: []model.Field{{"connection", "close"}}})), "HEADER_UNTOUCHABLE", "spec.rewrite.request.set[0]"},
		{"a length", api(rewrite(model.Fields{Remove: []string{"Content-Length"}})), "HEADER_UNTOUCHABLE", "spec.rewrite.request.remove[0]"},
		{"two lines", api(rewrite(model.Fields{Add: []model.Field{{"X-A", "b\r\nX-C: d"}}})), "HEADER_INVALID", "spec.rewrite.request.add[0]"},
		{"twice", api(rewrite(model.Fields{Set: []model.Field{{"A-B", "1"}, {"X", ""}, {"a-b", "2"}}})), "DUPLICATE", "spec.rewrite.request.set[2]"},
		{"an answer's origin", api(model.Shaping{Rewrite: &model.Rewrite{Response: model.Fields{Set: []model.Field{{"Access-Control-Allow-Origin", "*"}}}}}), "HEADER_UNTOUCHABLE", "spec.rewrite.response.set[0]"},
		{"paths", api(model.Shaping{Rewrite: &model.Rewrite{Strip: "/v1", Put: "/internal/api", Host: "orders.internal:8080"}}), "", ""},
		{"a path upwards", api(model.Shaping{Rewrite: &model.Rewrite{Put: "/a/../b"}}), "PATH_INVALID", "spec.rewrite.path.put"},
		{"an encoded path", api(model.Shaping{Rewrite: &model.Rewrite{Put: "/a%2e%2e"}}), "PATH_INVALID", "spec.rewrite.path.put"},
		{"a host with a path", api(model.Shaping{Rewrite: &model.Rewrite{Host: "a.test/b"}}), "HOST_INVALID", "spec.rewrite.host"},

		{"units of documents", model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Routes: []model.Route{{Name: "q", Units: &model.Units{GraphQL: "cost"}, GraphQL: &model.GraphQL{}}}}, "", ""},
		{"units of documents that nobody reads", model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Routes: []model.Route{{Name: "q", Units: &model.Units{GraphQL: "cost"}}}}, "UNITS_INVALID", "spec.routes[0].units.graphql"},
		{"units of two kinds", model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Routes: []model.Route{{Name: "q", Units: &model.Units{GraphQL: "cost", PerBytes: 1}, GraphQL: &model.GraphQL{}}}}, "UNITS_INVALID", "spec.routes[0].units"},
		{"a schema", api(model.Shaping{Validation: &model.Validation{Schema: "type: object"}}), "", ""},
		{"a schema that is none", api(model.Shaping{Validation: &model.Validation{Schema: "type: text"}}), "SCHEMA_INVALID", "spec.validation.schema"},
		{"a schema that reads a file", api(model.Shaping{Validation: &model.Validation{Schema: "$ref: file:///etc/passwd"}}), "SCHEMA_INVALID", "spec.validation.schema"},
		{"no document", api(model.Shaping{Validation: &model.Validation{Requests: "openapi"}}), "OPENAPI_MISSING", "spec.openapi"},
		{"a document that is none", model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, OpenAPI: "swagger: '2.0'", Shaping: model.Shaping{Validation: &model.Validation{Requests: "openapi"}}}, "OPENAPI_INVALID", "spec.openapi"},
		{"a document that nothing is held against", model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, OpenAPI: "https://docs.test"}, "", ""},
		{"a validation of nothing", api(model.Shaping{Validation: &model.Validation{}}), "VALIDATION_INVALID", "spec.validation"},
		{"a depth beyond", model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Routes: []model.Route{{Name: "q", GraphQL: &model.GraphQL{MaxDepth: 201}}}}, "GRAPHQL_INVALID", "spec.routes[0].graphql.max_depth"},
		{"a route's", model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Routes: []model.Route{{Name: "q", Shaping: model.Shaping{Rewrite: &model.Rewrite{Strip: "x"}}}}}, "PATH_INVALID", "spec.routes[0].rewrite.path.strip"},
	} {
		err := c.in.Validate()
		var f *fault.Error
		switch {
		case c.reason == "" && err != nil:
			t.Errorf("%s: got %v, want it taken", c.name, err)
		case c.reason != "" && (!errors.As(err, &f) || f.Reason != c.reason || f.Field != c.at):
			t.Errorf("%s: got %+v, want %s at %s", c.name, err, c.reason, c.at)
		}
	}
}

// What is said of HTTP would be read as if a connection were held to it.
func TestAPI_TCPHasNothingOfHTTP(t *testing.T) {
	for name, change := range map[string]func(*model.API){
		"graphql": func(a *model.API) { a.Routes = []model.Route{{Name: "all", GraphQL: &model.GraphQL{}}} },
		"validation of a route": func(a *model.API) {
			a.Routes = []model.Route{{Name: "all", Shaping: model.Shaping{Validation: &model.Validation{Schema: "{}"}}}}
		},
		"validation of the API":       func(a *model.API) { a.Validation = &model.Validation{Schema: "{}"} },
		"grpc_web that is translated": func(a *model.API) { a.Routes = []model.Route{{Name: "all", GRPCWeb: model.GRPCWebPass}} },
	} {
		a := model.API{Name: "a", Zone: "z", Hosts: []string{"a.test"}, TCP: &model.TCP{}}
		if err := a.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&a)
		if err := a.Validate(); fault.ReasonOf(err) != "TCP_INVALID" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
