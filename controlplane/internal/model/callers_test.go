package model_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

func TestAPI_CallersAreBounded(t *testing.T) {
	public := `{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`
	sample := func() model.API {
		return model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.example.test"}, Concurrency: &model.Concurrency{Min: 2},
			Routes: []model.Route{{Name: "all", PathPrefix: "/", Units: &model.Units{Header: "X-Units"}}},
			Auth: &model.Auth{KeyHeader: "X-Partner-Key", KeyQuery: "partner_key", ClientCertificates: true,
				Issuers: []model.Issuer{{Issuer: "https://id.example.test/realm", Audiences: []string{"orders"}}}}}
	}
	api := sample()
	if err := api.Validate(); err != nil {
		t.Fatal(err)
	}
	edge := api.Callers()
	if i := edge.Issuers[0]; i.Claim != "sub" || i.Leeway != time.Minute || !slices.Equal(i.Algorithms, []string{"RS256", "ES256"}) || edge.KeyHeader != "X-Partner-Key" {
		t.Errorf("edges are told %+v, want the defaults filled in", edge)
	}
	if u := api.Routes[0].Costs(); u.Most != model.DefaultUnits {
		t.Errorf("edges are told %+v, want the default filled in", u)
	}
	for name, c := range map[string]struct {
		change func(*model.API)
		reason string
	}{
		"a header of ours":            {func(a *model.API) { a.Auth.KeyHeader = "Bailiwick-Key" }, "HEADER_INVALID"},
		"a header of another meaning": {func(a *model.API) { a.Auth.KeyHeader = "cookie" }, "HEADER_INVALID"},
		"a header with an alias":      {func(a *model.API) { a.Auth.KeyHeader = "X_Key" }, "HEADER_INVALID"},
		"a parameter":                 {func(a *model.API) { a.Auth.KeyQuery = "a&b" }, "PARAMETER_INVALID"},
		"no audience":                 {func(a *model.API) { a.Auth.Issuers[0].Audiences = nil }, "AUDIENCE_MISSING"},
		"none":                        {func(a *model.API) { a.Auth.Issuers[0].Algorithms = []string{"none"} }, "ALGORITHM_INVALID"},
		"a shared secret":             {func(a *model.API) { a.Auth.Issuers[0].Algorithms = []string{"HS256"} }, "ALGORITHM_INVALID"},
		"in clear":                    {func(a *model.API) { a.Auth.Issuers[0].Issuer = "http://id.example.test" }, "URL_INVALID"},
		"keys in clear":               {func(a *model.API) { a.Auth.Issuers[0].JWKSURL = "http://id.example.test/keys" }, "URL_INVALID"},
		"twice":                       {func(a *model.API) { a.Auth.Issuers = append(a.Auth.Issuers, a.Auth.Issuers[0]) }, "DUPLICATE"},
		"patience":                    {func(a *model.API) { a.Auth.Issuers[0].Leeway = time.Hour }, "LEEWAY_INVALID"},
		"no keys":                     {func(a *model.API) { a.Auth.Issuers[0].JWKS = `{"keys":[]}` }, "JWKS_INVALID"},
		"two places": {func(a *model.API) {
			a.Auth.Issuers[0].JWKS, a.Auth.Issuers[0].JWKSURL = public, "https://id.example.test/keys"
		}, "JWKS_INVALID"},
		"a private key": {func(a *model.API) { a.Auth.Issuers[0].JWKS = strings.Replace(public, `"kty"`, `"d":"AAAA","kty"`, 1) }, "JWKS_PRIVATE"},
		"upside down":   {func(a *model.API) { a.Concurrency = &model.Concurrency{Min: 9, Max: 3} }, "CONCURRENCY_INVALID"},
		"units of both": {func(a *model.API) { a.Routes[0].Units.PerBytes = 100 }, "UNITS_INVALID"},
		"units of none": {func(a *model.API) { a.Routes[0].Units.Header = "" }, "UNITS_INVALID"},
		"free and not":  {func(a *model.API) { a.Routes[0].Free = true }, "UNITS_INVALID"},
		"too many":      {func(a *model.API) { a.Routes[0].Units.Most = model.MaxUnits + 1 }, "UNITS_INVALID"},
	} {
		a := sample()
		c.change(&a)
		if err := a.Validate(); fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), "orders") {
			t.Errorf("%s: got %v, want %s", name, err, c.reason)
		}
	}
	a := sample()
	a.Auth.Issuers[0].JWKS = public
	if err := a.Validate(); err != nil {
		t.Errorf("public keys as text: %v", err)
	}
	if err := (model.Plan{Name: "p", Products: []string{"core"}, PriorityClass: "diamond"}).Validate(); fault.ReasonOf(err) != "PRIORITY_INVALID" {
		t.Errorf("a class that is none: %v", err)
	}
}

// A key comes in a header that means nothing else: neither to edges, which would take it away, nor to upstreams, which would act
// on it. The error says what to do.
func TestAuth_KeyHeadersMeanNothingElse(t *testing.T) {
	validate := func(name string) error {
		return model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.example.test"}, Auth: &model.Auth{KeyHeader: name}}.Validate()
	}
	for _, name := range []string{"Range", "range", "If-None-Match", "Host", "Content-Length", "content-encoding", "Connection", "Via", "X-Forwarded-For", "X-Forwarded-Anything", "X-Real-IP", "Forwarded",
		"Bailiwick-Customer", "Bailiwick-Identity", "X-Request-Id", "Traceparent", "Sec-WebSocket-Key", "Grpc-Timeout", "Connect-Timeout-Ms", "Cache-Control", "Accept-Encoding",
		"Access-Control-Request-Method", "Origin", "Referer", "Proxy-Connection", "Keep-Alive", "X-HTTP-Method-Override", "X-Original-URL", "Transfer-Encoding", "TE", "Authorization", "Cookie", "X-API-Key"} {
		err := validate(name)
		if fault.ReasonOf(err) != "HEADER_INVALID" || !strings.Contains(err.Error(), "orders") {
			t.Errorf("key_header %s: got %v, want HEADER_INVALID", name, err)
		}
	}
	for _, name := range []string{"X-Partner-Key", "apikey", "Api-Key", "X-Auth-Token", "Ocp-Apim-Subscription-Key", "X-Forward", "Ranges", ""} {
		if err := validate(name); err != nil {
			t.Errorf("key_header %s: %v", name, err)
		}
	}
	// What was stored before it was looked at is read and served as it was.
	stored := model.Encode(model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.example.test"}, Auth: &model.Auth{KeyHeader: "Range"}})
	if a, err := model.Decode[model.API](model.PrefixAPI+"orders", stored); err != nil || a.Callers().KeyHeader != "Range" {
		t.Errorf("a stored API with key_header Range: got %+v, %v", a.Auth, err)
	}
}
