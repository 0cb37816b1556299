package adminapi_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// What is said of shaping is stored whole, for the API and for a route, shown, and the same when it is applied again.
func TestApply_KeepsAllThatIsSaidOfShaping(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	const shaping = `cors: {origins: [https://app.test], methods: [PUT], headers: [X-API-Key], expose: [X-Total], credentials: true, max_age: 60s},
    rewrite: {path: {strip: /v1, put: /api}, host: "orders.internal:80", request: {remove: [X-A], set: [{name: X-B, value: b}], add: [{name: X-C, value: c}]}, response: {remove: [Server], set: [{name: X-D, value: d}, {name: X-E, value: e}]}},
    validation: {requests: none}`
	text := `
kind: API
name: extra
spec: {zone: emea, hosts: [x.test], policy: gdpr-emea, ` + shaping + `, routes: [{name: all, path_prefix: /, ` + shaping + `, units: {graphql: cost},
    graphql: {max_depth: 1, max_aliases: 2, max_root_fields: 3, max_cost: 4, max_batch: 5, introspection: true}}], auth: {identity: signed}}
`
	apply(t, z, text)
	kv, ok, _, err := in.Catalog.Get(t.Context(), model.APIKey("emea", "extra"))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	var stored map[string]any
	if err := json.Unmarshal(kv.Value, &stored); err != nil {
		t.Fatal(err)
	}
	route := stored["routes"].([]any)[0].(map[string]any)
	for _, of := range []map[string]any{stored, route} {
		for field, n := range map[string]int{"cors": 6, "rewrite": 5, "validation": 1} {
			if m, _ := of[field].(map[string]any); len(m) != n {
				t.Errorf("stored %s: %v, want %d fields", field, of[field], n)
			}
		}
	}
	if g, _ := route["graphql"].(map[string]any); len(g) != 6 {
		t.Errorf("stored of GraphQL: %v", g)
	}
	resp, err := resourcesAt(z, apitest.Admin).Get(t.Context(), &adminv1.GetRequest{Kind: "API", Name: "emea/extra"})
	if err != nil {
		t.Fatal(err)
	}
	shown := resp.Resource.GetApi()
	if r := shown.GetRewrite(); r.GetPath().GetPut() != "/api" || r.GetHost() != "orders.internal:80" || r.GetRequest().GetSet()[0].GetValue() != "b" || r.GetRequest().GetAdd()[0].GetName() != "X-C" || r.GetResponse().GetSet()[1].GetValue() != "e" || shown.GetCors().GetMaxAge().AsDuration() != time.Minute {
		t.Errorf("shown: %v", shown)
	}
	if r := shown.GetRoutes()[0]; r.GetUnits().GetGraphql() != "cost" || r.GetGraphql().GetMaxBatch() != 5 || r.GetValidation().GetRequests() != "none" {
		t.Errorf("shown of the route: %v", r)
	}
	for _, c := range apply(t, z, text).Changes {
		if c.Action != "unchanged" {
			t.Errorf("applied again: %v", c)
		}
	}
}

// What a key is bound to is the text of a claim: read from another claim it may name somebody else.
func TestApply_AnIssuersClaimStaysAsItIs(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	api := func(auth string) string {
		return "kind: API\nname: extra\nspec: {zone: emea, hosts: [x.test], policy: gdpr-emea, auth: {" + auth + "}}"
	}
	issuer := func(claim string) string {
		return "issuers: [{issuer: https://id.test, audiences: [a]" + claim + "}]"
	}
	apply(t, z, api(issuer("")))
	apply(t, z, api(issuer(", claim: sub"))) // what it was by default
	_, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, api(issuer(", claim: email")))})
	if f, ok := errors.AsType[*fault.Error](err); !ok || f.Reason != "IMMUTABLE" || f.Field != "resources[0].spec.auth.issuers[0].claim" {
		t.Errorf("another claim: got %v", err)
	}
	if c := apply(t, z, api("identity: headers")).Changes[0]; c.Action != "updated" { // without the issuer
		t.Errorf("an issuer is taken away: got %v, want it updated: its tokens would go on being taken", c)
	}
	apply(t, z, api(issuer(", claim: email")))
}
