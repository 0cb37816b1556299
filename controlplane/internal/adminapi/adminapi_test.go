package adminapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
)

var faults = connect.WithInterceptors(rpcfault.Client())

func resourcesAt(z *apitest.Zone, token string) adminv1connect.ResourceServiceClient {
	return adminv1connect.NewResourceServiceClient(apitest.Client(token), z.Server.URL, faults)
}

func keysAt(z *apitest.Zone, token string) adminv1connect.KeyServiceClient {
	return adminv1connect.NewKeyServiceClient(apitest.Client(token), z.Server.URL, faults)
}

func parse(t testing.TB, text string) []*adminv1.Resource {
	t.Helper()
	docs, err := manifest.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var out []*adminv1.Resource
	for _, d := range docs {
		out = append(out, d.Resource)
	}
	return out
}

func sample(t testing.TB, file string) string {
	t.Helper()
	data, err := os.ReadFile("../../../deploy/sandbox/manifests/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return os.Expand(string(data), func(string) string { return "127.0.0.1:7301" })
}

func apply(t testing.TB, z *apitest.Zone, text string) *adminv1.ApplyResponse {
	t.Helper()
	resp, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, text)})
	if err != nil {
		t.Fatalf("apply: %v (%s)", err, fault.ReasonOf(err))
	}
	return resp
}

// seeded is an installation with the sandbox's own manifests.
func seeded(t testing.TB, wait time.Duration) *apitest.Installation {
	t.Helper()
	in := apitest.New(t, wait)
	apply(t, in.Zones["emea"], sample(t, "10-catalog.yaml"))
	apply(t, in.Zones["emea"], sample(t, "20-customers-emea.yaml"))
	apply(t, in.Zones["us"], sample(t, "20-customers-us.yaml"))
	return in
}

func TestApply_SandboxManifests(t *testing.T) {
	in := apitest.New(t, time.Second)
	resp := apply(t, in.Zones["emea"], sample(t, "10-catalog.yaml"))
	if len(resp.Changes) != 13 || resp.Changes[0].Action != "created" {
		t.Errorf("got %d changes, first %v; want 13 created", len(resp.Changes), resp.Changes[0])
	}
	var flows []string
	for _, f := range resp.Flows {
		flows = append(flows, fmt.Sprintf("%s:%s>%s:%v:%s", f.Policy, f.From, f.To, f.Allowed, f.Basis))
	}
	want := "gdpr-emea:eu-central>eu-west:true:gdpr gdpr-emea:eu-west>eu-central:true:gdpr us:us-east>us-west:true:us-law us:us-west>us-east:true:us-law"
	if got := strings.Join(flows, " "); got != want {
		t.Errorf("flows: got %s\nwant %s", got, want)
	}
	if got := strings.Join(resp.Warnings, "\n"); strings.Contains(got, "not yet enforced") || strings.Contains(got, "cannot fail over") {
		t.Errorf("warnings: got %q", got)
	}
	before := in.Catalog.Dump()
	for _, c := range apply(t, in.Zones["us"], sample(t, "10-catalog.yaml")).Changes {
		if c.Action != "unchanged" {
			t.Errorf("applied again: %s %s is %s, want unchanged", c.Kind, c.Name, c.Action)
		}
	}
	if in.Catalog.Dump() != before {
		t.Error("an apply without changes wrote to the catalog")
	}
}

func TestApply_DryRunTellsFieldsAndFlows(t *testing.T) {
	in := seeded(t, time.Second)
	before := in.Catalog.Dump()
	resp, err := resourcesAt(in.Zones["emea"], apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{DryRun: true, Resources: parse(t, `
kind: LegalBasis
name: gdpr
spec: {kind: same-law, status: suspended, source: Regulation (EU) 2016/679}
---
kind: Plan
name: gold
spec:
  products: [commerce, insight]
  rate_limit: {requests_per_second: 700, burst: 500}
  quota: {units: 5000000, period: month, mode: soft}
---
kind: API
name: late
spec: {zone: emea, hosts: [late.test], policy: gdpr-emea, upstreams: [{region: eu-west, url: "http://a:1"}, {region: eu-west, url: "http://10.2.0.1:1"}], routes: [{name: a, hedge_after: 30s}]}
---
kind: Region
name: eu-west
spec: {zone: emea, country: IE, jurisdiction: EEA, upstream_networks: [10.1.0.0/16]}
`)})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(resp.Changes[1].Fields), `[field:"spec.rate_limit.requests_per_second" old:"500" new:"700"]`; strings.Join(strings.Fields(got), " ") != want {
		t.Errorf("fields: got %s, want %s", got, want)
	}
	if len(resp.Flows) != 2 || resp.Flows[0].Allowed || resp.Flows[0].Basis != "gdpr" {
		t.Errorf("flows: got %v, want eu-west and eu-central closed both ways", resp.Flows)
	}
	if got := strings.Join(resp.Warnings, "\n"); !strings.Contains(got, "which is suspended") {
		t.Errorf("suspending a basis in use: got warnings %q", got)
	}
	if got := strings.Join(resp.Warnings, "\n"); !strings.Contains(got, "API late of zone emea: route a: hedge_after 30s is not before the timeout of 30s that a route has by default") {
		t.Errorf("a hedge that never comes: got warnings %q", got)
	}
	if got := strings.Join(resp.Warnings, "\n"); strings.Count(got, "API late of zone emea: upstream http://10.2.0.1:1 is outside of the upstream_networks of region eu-west") != 1 ||
		!strings.Contains(got, "API orders of zone emea: upstream http://127.0.0.1:7301 is outside") {
		t.Errorf("upstreams outside of a region's networks: got warnings %q", got)
	}
	if in.Catalog.Dump() != before {
		t.Error("a dry run wrote to the catalog")
	}
}

// Input → kind, reason, field; the state stays as it is.
func TestApply_RefusesBadInput(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	if _, err := keysAt(z, apitest.Admin).CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme"}); err != nil {
		t.Fatal(err)
	}
	api := func(spec string) string { return "kind: API\nname: extra\nspec: {" + spec + "}\n" }
	for _, c := range []struct {
		name, in string
		kind     fault.Kind
		reason   string
		field    string
	}{
		{"unknown region in a policy", "kind: Policy\nname: p\nspec: {zone: emea, pairs: [{from: eu-west, to: eu-south, basis: gdpr}]}", fault.Invalid, "REGION_UNKNOWN", "resources[0].spec.pairs[0].to"},
		{"self pair", "kind: Policy\nname: p\nspec: {zone: emea, pairs: [{from: eu-west, to: eu-west, basis: gdpr}]}", fault.Invalid, "PAIR_SELF", "resources[0].spec.pairs[0].to"},
		{"unknown basis", "kind: Policy\nname: p\nspec: {zone: emea, within_zone: {basis: hope}}", fault.Invalid, "BASIS_UNKNOWN", "resources[0].spec.within_zone.basis"},
		{"suspended basis", "kind: LegalBasis\nname: s\nspec: {kind: scc, status: suspended}\n---\nkind: Policy\nname: p\nspec: {zone: emea, within_zone: {basis: s}}", fault.Invalid, "BASIS_SUSPENDED", "resources[1].spec.within_zone.basis"},
		{"expired basis", "kind: LegalBasis\nname: s\nspec: {kind: scc, expires: 2020-01-01}\n---\nkind: Policy\nname: p\nspec: {zone: emea, within_zone: {basis: s}}", fault.Invalid, "BASIS_EXPIRED", "resources[1].spec.within_zone.basis"},
		{"no date", "kind: LegalBasis\nname: s\nspec: {kind: scc, expires: someday}", fault.Invalid, "EXPIRES_MALFORMED", "resources[0].spec.expires"},
		{"region moves", "kind: Region\nname: eu-west\nspec: {zone: us, country: IE, jurisdiction: EEA}", fault.Conflict, "REGION_IMMUTABLE", "resources[0].spec.zone"},
		{"region of no zone", "kind: Region\nname: eu-south\nspec: {zone: apac}", fault.Invalid, "ZONE_UNKNOWN", "resources[0].spec.zone"},
		{"new zone", "kind: Zone\nname: apac\nspec: {}", fault.Invalid, "ZONE_FIXED", "resources[0].name"},
		{"zone's law", "kind: Zone\nname: emea\nspec: {jurisdiction: US}", fault.Conflict, "IMMUTABLE", "resources[0].spec.jurisdiction"},
		{"zone's key", "kind: Zone\nname: emea\nspec: {signing_key: AAAA}", fault.Conflict, "IMMUTABLE", "resources[0].spec.signing_key"},
		{"host taken by another zone", api("zone: emea, hosts: [orders.us.example.test]"), fault.Conflict, "HOST_TAKEN", "resources[0].spec.hosts[0]"},
		{"host taken within the file", api("zone: emea, hosts: [x.test]") + "---\nkind: API\nname: more\nspec: {zone: us, hosts: [x.test]}", fault.Conflict, "HOST_TAKEN", "resources[1].spec.hosts[0]"},
		{"one issuer, two claims", api("zone: emea, hosts: [x.test], auth: {issuers: [{issuer: 'https://id.test', audiences: [x]}]}") + "---\nkind: API\nname: more\nspec: {zone: emea, hosts: [y.test], auth: {issuers: [{issuer: 'https://id.test', audiences: [y], claim: email}]}}", fault.Conflict, "CLAIM_DIFFERS", "resources[0].spec.auth.issuers[0].claim"},
		{"host in upper case", api("zone: emea, hosts: [X.test]"), fault.Invalid, "HOST_INVALID", "resources[0].spec.hosts[0]"},
		{"host with port", api("zone: emea, hosts: ['x.test:443']"), fault.Invalid, "HOST_INVALID", "resources[0].spec.hosts[0]"},
		{"API of no zone", api("zone: apac, hosts: [x.test]"), fault.Invalid, "ZONE_UNKNOWN", "resources[0].spec.zone"},
		{"unknown policy", api("zone: emea, hosts: [x.test], policy: p"), fault.Invalid, "POLICY_UNKNOWN", "resources[0].spec.policy"},
		{"foreign policy", api("zone: emea, hosts: [x.test], policy: us"), fault.Invalid, "POLICY_FOREIGN", "resources[0].spec.policy"},
		{"upstream nowhere", api("zone: emea, hosts: [x.test], upstreams: [{region: eu-south, url: 'http://a:1'}]"), fault.Invalid, "REGION_UNKNOWN", "resources[0].spec.upstreams[0].region"},
		{"upstream beyond the border", api("zone: emea, hosts: [x.test], policy: gdpr-emea, upstreams: [{region: us-east, url: 'http://a:1'}]"), fault.Invalid, "REGION_UNREACHABLE", "resources[0].spec.upstreams[0].region"},
		{"upstream where nobody serves", api("zone: emea, hosts: [x.test], upstreams: [{region: eu-north, url: 'http://a:1'}]"), fault.Invalid, "REGION_CONTROL_ONLY", "resources[0].spec.upstreams[0].region"},
		{"upstream with path", api("zone: emea, hosts: [x.test], upstreams: [{region: eu-west, url: 'http://a:1/x'}]"), fault.Invalid, "URL_INVALID", "resources[0].spec.upstreams[0].url"},
		{"upstream with password", api("zone: emea, hosts: [x.test], upstreams: [{region: eu-west, url: 'http://u:p@a:1'}]"), fault.Invalid, "URL_INVALID", "resources[0].spec.upstreams[0].url"},
		{"upstream twice", api("zone: emea, hosts: [x.test], upstreams: [{region: eu-west, url: 'http://a:1'}, {region: eu-west, url: 'http://a:1', drain: true}]"), fault.Invalid, "DUPLICATE", "resources[0].spec.upstreams[1]"},
		{"probe timeout", api("zone: emea, hosts: [x.test], health: {timeout: 1m}"), fault.Invalid, "HEALTH_TIMEOUT_INVALID", "resources[0].spec.health.timeout"},
		{"good for a moment", api("zone: emea, hosts: [x.test], health: {good_for: 1ms}"), fault.Invalid, "HEALTH_GOOD_FOR_INVALID", "resources[0].spec.health.good_for"},
		{"choice", api("zone: emea, hosts: [x.test], dispatch: {choice: dice}"), fault.Invalid, "FIELD_INVALID", "resources[0].spec.dispatch.choice"},
		{"a line before nothing", api("zone: emea, hosts: [x.test], dispatch: {max_waiting: 5}"), fault.Invalid, "LIMIT_INVALID", "resources[0].spec.dispatch.max_waiting"},
		{"a long wait", api("zone: emea, hosts: [x.test], dispatch: {max_requests: 5, max_wait: 1m}"), fault.Invalid, "LIMIT_INVALID", "resources[0].spec.dispatch.max_wait"},
		{"slow start", api("zone: emea, hosts: [x.test], dispatch: {slow_start: 1h}"), fault.Invalid, "SLOW_START_INVALID", "resources[0].spec.dispatch.slow_start"},
		{"hedge at once", api("zone: emea, hosts: [x.test], routes: [{name: a, hedge_after: 1ms}]"), fault.Invalid, "HEDGE_INVALID", "resources[0].spec.routes[0].hedge_after"},
		{"kept for a week", api("zone: emea, hosts: [x.test], routes: [{name: a, cache: {stale_if_error: 168h}}]"), fault.Invalid, "CACHE_INVALID", "resources[0].spec.routes[0].cache.stale_if_error"},
		{"kept for whom", api("zone: emea, hosts: [x.test], routes: [{name: a, cache: {scope: everybody}}]"), fault.Invalid, "FIELD_INVALID", "resources[0].spec.routes[0].cache.scope"},
		{"TLS of cleartext", api("zone: emea, hosts: [x.test], upstreams: [{region: eu-west, url: 'http://a:1'}], upstream_tls: {server_name: a.test}"), fault.Invalid, "TLS_UNUSED", "resources[0].spec.upstream_tls"},
		{"a ca that is none", api("zone: emea, hosts: [x.test], upstream_tls: {ca: hello}"), fault.Invalid, "CA_INVALID", "resources[0].spec.upstream_tls.ca"},
		{"a key for a ca", api("zone: emea, hosts: [x.test], upstream_tls: {ca: \"-----BEGIN PRIVATE KEY-----\\nAAAA\\n-----END PRIVATE KEY-----\\n\"}"), fault.Invalid, "CA_INVALID", "resources[0].spec.upstream_tls.ca"},
		{"a client certificate that is a path", api("zone: emea, hosts: [x.test], upstream_tls: {client_certificate: ../x}"), fault.Invalid, "NAME_INVALID", "resources[0].spec.upstream_tls.client_certificate"},
		{"a WebSocket that is posted", api("zone: emea, hosts: [x.test], routes: [{name: a, methods: [POST], websocket: {}}]"), fault.Invalid, "WEBSOCKET_INVALID", "resources[0].spec.routes[0].websocket"},
		{"a WebSocket that is idle for a week", api("zone: emea, hosts: [x.test], routes: [{name: a, websocket: {idle_timeout: 168h}}]"), fault.Invalid, "WEBSOCKET_INVALID", "resources[0].spec.routes[0].websocket.idle_timeout"},
		{"a WebSocket that pings all the time", api("zone: emea, hosts: [x.test], routes: [{name: a, websocket: {ping_every: 1s}}]"), fault.Invalid, "WEBSOCKET_INVALID", "resources[0].spec.routes[0].websocket.ping_every"},
		{"tcp to HTTP", api("zone: emea, hosts: [x.test], tcp: {}, upstreams: [{region: eu-west, url: 'http://a:1'}]"), fault.Invalid, "URL_INVALID", "resources[0].spec.upstreams[0].url"},
		{"HTTP to tcp", api("zone: emea, hosts: [x.test], upstreams: [{region: eu-west, url: 'tcp://a:1'}]"), fault.Invalid, "URL_INVALID", "resources[0].spec.upstreams[0].url"},
		{"tcp to no port", api("zone: emea, hosts: [x.test], tcp: {}, upstreams: [{region: eu-west, url: 'tcp://a'}]"), fault.Invalid, "URL_INVALID", "resources[0].spec.upstreams[0].url"},
		{"tcp with two routes", api("zone: emea, hosts: [x.test], tcp: {}, routes: [{name: a}, {name: b, path_prefix: /b}]"), fault.Invalid, "TCP_INVALID", "resources[0].spec.routes[1]"},
		{"tcp with a path", api("zone: emea, hosts: [x.test], tcp: {}, routes: [{name: a, path_prefix: /a}]"), fault.Invalid, "TCP_INVALID", "resources[0].spec.routes[0].path_prefix"},
		{"tcp with a health page", api("zone: emea, hosts: [x.test], tcp: {}, health: {path: /up}"), fault.Invalid, "TCP_INVALID", "resources[0].spec.health.path"},
		{"two routes alike", api("zone: emea, hosts: [x.test], routes: [{name: a, path_prefix: /x}, {name: b, path_prefix: /x/}]"), fault.Invalid, "ROUTE_DUPLICATE", "resources[0].spec.routes[1].path_prefix"},
		{"route name", api("zone: emea, hosts: [x.test], routes: [{name: A}]"), fault.Invalid, "FIELD_INVALID", "resources[0].spec.routes[0].name"},
		{"route timeout", api("zone: emea, hosts: [x.test], routes: [{name: a, timeout: 1h}]"), fault.Invalid, "TIMEOUT_INVALID", "resources[0].spec.routes[0].timeout"},
		{"no host", "kind: API\nname: a\nspec: {zone: emea}", fault.Invalid, "FIELD_INVALID", "resources[0].spec.hosts"},
		{"name", "kind: Plan\nname: Gold\nspec: {products: [commerce]}", fault.Invalid, "FIELD_INVALID", "resources[0].name"},
		{"unknown API", "kind: Product\nname: p\nspec: {apis: [nope]}", fault.Invalid, "API_UNKNOWN", "resources[0].spec.apis[0]"},
		{"unbillable outcome", "kind: Product\nname: p\nspec: {apis: [orders], billable_outcomes: [refused]}", fault.Invalid, "OUTCOME_INVALID", "resources[0].spec.billable_outcomes[0]"},
		{"unknown product", "kind: Plan\nname: p\nspec: {products: [nope]}", fault.Invalid, "PRODUCT_UNKNOWN", "resources[0].spec.products[0]"},
		{"unknown plan", "kind: Customer\nname: c\nspec: {zone: emea, subscriptions: [{plan: nope}]}", fault.Invalid, "PLAN_UNKNOWN", "resources[0].spec.subscriptions[0].plan"},
		{"customer of another zone", "kind: Customer\nname: c\nspec: {zone: us, subscriptions: [{plan: gold}]}", fault.WrongZone, "WRONG_ZONE", "resources[0]"},
		{"customer of no zone", "kind: Customer\nname: c\nspec: {zone: apac}", fault.Invalid, "ZONE_UNKNOWN", "resources[0].spec.zone"},
		{"subscription with keys goes", "kind: Customer\nname: acme\nspec: {zone: emea}", fault.Conflict, "IN_USE", "resources[0].spec.subscriptions"},
		{"closure of another zone", "kind: Closure\nname: c\nspec: {zone: us, from: us-east}", fault.WrongZone, "WRONG_ZONE", "resources[0]"},
		{"closure of nothing", "kind: Closure\nname: c\nspec: {zone: emea}", fault.Invalid, "CLOSURE_EMPTY", "resources[0].spec"},
		{"closure of nowhere", "kind: Closure\nname: c\nspec: {zone: emea, from: eu-south}", fault.Invalid, "REGION_UNKNOWN", "resources[0].spec.from"},
		{"stale etag", "kind: Product\nname: commerce\netag: \"1\"\nspec: {apis: [orders]}", fault.Conflict, "ETAG_MISMATCH", "resources[0].etag"},
		{"twice in one file", "kind: Product\nname: p\nspec: {apis: [orders]}\n---\nkind: Product\nname: p\nspec: {apis: [reports]}", fault.Invalid, "DUPLICATE", "resources[1].name"},
		{"good catalog, bad customer: neither is written", "kind: Product\nname: fresh\nspec: {apis: [orders]}\n---\nkind: Customer\nname: c\nspec: {zone: emea, subscriptions: [{plan: nope}]}", fault.Invalid, "PLAN_UNKNOWN", "resources[1].spec.subscriptions[0].plan"},
	} {
		before := in.Catalog.Dump() + z.Store.Dump()
		_, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, c.in)})
		f, ok := fault.As(err)
		if !ok {
			t.Errorf("%s: got %v, want %s", c.name, err, c.reason)
			continue
		}
		if f.Kind != c.kind || f.Reason != c.reason || f.Field != c.field {
			t.Errorf("%s: got %v %s at %s: %v\nwant %v %s at %s", c.name, f.Kind, f.Reason, f.Field, f, c.kind, c.reason, c.field)
		}
		if in.Catalog.Dump()+z.Store.Dump() != before {
			t.Errorf("%s: the state changed", c.name)
		}
	}
}

func TestApply_WrongZoneNamesItsAdminURLs(t *testing.T) {
	in := seeded(t, time.Second)
	_, err := resourcesAt(in.Zones["emea"], apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, "kind: Customer\nname: c\nspec: {zone: us}")})
	f, _ := fault.As(err)
	if f == nil || f.Meta["zone"] != "us" || f.Meta["admin_urls"] != in.Zones["us"].Server.URL {
		t.Errorf("got %+v, want zone us and its URL %s", f, in.Zones["us"].Server.URL)
	}
}

func TestApply_RetriesWhatOthersOutran(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	raced := 0
	in.Catalog.Before = func() {
		if raced++; raced == 1 { // another operator deletes the product between judgement and commit
			in.Catalog.Before = nil
			if _, err := resourcesAt(z, apitest.Admin).Delete(context.Background(), &adminv1.DeleteRequest{Kind: "plans", Name: "free"}); fault.ReasonOf(err) != "IN_USE" {
				t.Errorf("delete of a plan in use: got %v", err)
			}
			apply(t, z, "kind: API\nname: rival\nspec: {zone: emea, hosts: [x.test]}")
		}
	}
	_, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, "kind: API\nname: mine\nspec: {zone: us, hosts: [x.test]}")})
	if fault.ReasonOf(err) != "HOST_TAKEN" {
		t.Errorf("two APIs raced for a host: got %v, want HOST_TAKEN for the second", err)
	}
}

func TestApply_IsIdempotentByRequestID(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	in.Catalog.Lose.Store(1) // the first answer is lost on the way
	req := &adminv1.ApplyRequest{RequestId: "r1", Resources: parse(t, "kind: Product\nname: p\nspec: {apis: [orders]}")}
	resp, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), req)
	if err != nil || resp.Changes[0].Action != "created" {
		t.Fatalf("got %v, %v", resp, err)
	}
	before := in.Catalog.Dump()
	if resp, err = resourcesAt(z, apitest.Admin).Apply(t.Context(), req); err != nil || resp.Changes[0].Action != "unchanged" {
		t.Errorf("again: got %v, %v", resp, err)
	}
	if in.Catalog.Dump() != before {
		t.Error("the same request changed something twice")
	}
}

func TestDelete_RefusesWhatIsUsed(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	key, err := keysAt(z, apitest.Admin).CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ kind, name, reason, want string }{
		{"regions", "eu-west", "IN_USE", "API emea/orders"},
		{"regions", "us-west", "IN_USE", "API us/orders"},
		{"legal-bases", "gdpr", "IN_USE", "policy gdpr-emea"},
		{"policies", "us", "IN_USE", "API us/orders"},
		{"apis", "orders", "NAME_AMBIGUOUS", "emea/orders, us/orders"},
		{"products", "insight", "IN_USE", "plan gold"},
		{"plans", "free", "IN_USE", "customer globex"},
		{"customers", "acme", "IN_USE", "key " + key.Id},
		{"zones", "us", "ZONE_FIXED", "init"},
		{"customers", "nobody", "CUSTOMER_NOT_FOUND", "nobody"},
		{"keys", "x", "KIND_UNKNOWN", "regions"},
	} {
		_, err := resourcesAt(z, apitest.Admin).Delete(t.Context(), &adminv1.DeleteRequest{Kind: c.kind, Name: c.name})
		if fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.want) {
			t.Errorf("delete %s %s: got %v (%s), want %s naming %q", c.kind, c.name, err, fault.ReasonOf(err), c.reason, c.want)
		}
	}
	if _, err := keysAt(z, apitest.Admin).RevokeKey(t.Context(), &adminv1.RevokeKeyRequest{Id: key.Id}); err != nil {
		t.Fatal(err)
	}
	for _, d := range [][2]string{{"customers", "acme"}, {"apis", "us/reports"}} {
		if _, err := resourcesAt(z, apitest.Admin).Delete(t.Context(), &adminv1.DeleteRequest{Kind: d[0], Name: d[1]}); err != nil {
			t.Errorf("delete %v: %v", d, err)
		}
		if _, err := resourcesAt(z, apitest.Admin).Get(t.Context(), &adminv1.GetRequest{Kind: d[0], Name: d[1]}); fault.KindOf(err) != fault.NotFound {
			t.Errorf("get %v after its deletion: %v", d, err)
		}
	}
}

// A key made between the judgement and the commit of a deletion keeps its customer.
func TestDelete_SeesAKeyThatSlipsIn(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	z.Store.Before = func() {
		z.Store.Before = nil
		if _, err := keysAt(z, apitest.Admin).CreateKey(context.Background(), &adminv1.CreateKeyRequest{Customer: "acme"}); err != nil {
			t.Error(err)
		}
	}
	_, err := resourcesAt(z, apitest.Admin).Delete(t.Context(), &adminv1.DeleteRequest{Kind: "customers", Name: "acme"})
	if fault.ReasonOf(err) != "IN_USE" {
		t.Errorf("got %v, want IN_USE", err)
	}
}

// Without the catalog's quorum only the catalog stands still.
func TestCatalogDown_StopsCatalogChangesOnly(t *testing.T) {
	in := seeded(t, 300*time.Millisecond)
	us := in.Zones["us"]
	in.Catalog.SetDown(true)
	_, err := resourcesAt(us, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, "kind: Product\nname: p\nspec: {apis: [orders]}")})
	if fault.KindOf(err) != fault.Unavailable || fault.ReasonOf(err) != "CATALOG_NO_LEADER" || !strings.Contains(err.Error(), "quorum of the primary zone emea") {
		t.Errorf("apply: got %v (%s), want CATALOG_NO_LEADER naming zone emea", err, fault.ReasonOf(err))
	}
	apply(t, us, "kind: Customer\nname: late\nspec: {zone: us, subscriptions: [{plan: gold}]}\n---\nkind: Closure\nname: shut\nspec: {zone: us, from: us-east, to: us-west, reason: drill}")
	key, err := keysAt(us, apitest.Admin).CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "late"})
	if err != nil {
		t.Fatalf("create key: %v", err)
	}
	if _, err := keysAt(us, apitest.Admin).RevokeKey(t.Context(), &adminv1.RevokeKeyRequest{Id: key.Id}); err != nil {
		t.Errorf("revoke: %v", err)
	}
	if _, err := resourcesAt(us, apitest.Admin).Delete(t.Context(), &adminv1.DeleteRequest{Kind: "closure", Name: "shut"}); err != nil {
		t.Errorf("reopen: %v", err)
	}
	nodes := adminv1connect.NewNodeServiceClient(apitest.Client(apitest.Viewer), us.Server.URL, faults)
	if list, err := nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{}); err != nil || len(list.Nodes) != 4 {
		t.Errorf("list nodes: %v, %v", list, err)
	}
	if list, err := resourcesAt(us, apitest.Viewer).List(t.Context(), &adminv1.ListRequest{Kind: "zones"}); err != nil || len(list.Resources) != 2 {
		t.Errorf("list zones: %v, %v", list, err)
	}
	if _, err := resourcesAt(us, apitest.Viewer).List(t.Context(), &adminv1.ListRequest{Kind: "regions"}); fault.ReasonOf(err) != "CATALOG_NO_LEADER" {
		t.Errorf("a linearizable read: got %v, want CATALOG_NO_LEADER", err)
	}
	us.Store.SetDown(true)
	_, err = keysAt(us, apitest.Admin).CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "late"})
	if fault.KindOf(err) != fault.Unavailable || fault.ReasonOf(err) != "ZONE_NO_LEADER" {
		t.Errorf("zone down: got %v (%s), want ZONE_NO_LEADER", err, fault.ReasonOf(err))
	}
}

func TestAuthorise_DeniesByDefault(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	z.Store.SetDown(true) // letting people in never waits for a quorum
	defer z.Store.SetDown(false)
	apply := &adminv1.ApplyRequest{Resources: parse(t, "kind: Product\nname: p\nspec: {apis: [orders]}")}
	for _, c := range []struct {
		token  string
		kind   fault.Kind
		reason string
	}{{"", fault.Unauthenticated, "TOKEN_MISSING"}, {"guess", fault.Unauthenticated, "TOKEN_UNKNOWN"}, {apitest.Viewer, fault.Denied, "ROLE_INSUFFICIENT"}} {
		_, err := resourcesAt(z, c.token).Apply(t.Context(), apply)
		if err == nil || fault.KindOf(err) != c.kind || fault.ReasonOf(err) != c.reason {
			t.Errorf("token %q: got %v (%s), want %s", c.token, err, fault.ReasonOf(err), c.reason)
		}
	}
	if _, err := resourcesAt(z, apitest.Viewer).List(t.Context(), &adminv1.ListRequest{Kind: "plans"}); err != nil {
		t.Errorf("a viewer reads: %v", err)
	}
	for _, path := range []string{"/bailiwick.admin.v1.ResourceService/Nope", "//bailiwick.admin.v1.ResourceService/List", "/x"} {
		resp, err := http.Post(z.Server.URL+path, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Errorf("%s without a token: 200", path)
		}
	}
}

func TestHandler_SpeaksJSONAsWritten(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	post := func(path, body string) (int, string) {
		resp, err := apitest.Client(apitest.Admin).Post(z.Server.URL+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, strings.ReplaceAll(string(data), " ", "")
	}
	get := "/bailiwick.admin.v1.ResourceService/Get"
	if code, body := post(get, `{"kind":"plans","name":"free"}`); code != 200 || !strings.Contains(body, `"rate_limit":{"requests_per_second":5,"burst":5}`) || !strings.Contains(body, `"sla_target":""`) {
		t.Errorf("get: %d %s", code, body)
	}
	if code, body := post(get, `{"kind":"plans","nmae":"free"}`); code != 400 || !strings.Contains(body, "nmae") {
		t.Errorf("a misspelt field: %d %s, want 400 naming it", code, body)
	}
	if code, body := post(get, `{"kind":"plans","name":"nope"}`); code != 404 || !strings.Contains(body, `"reason":"PLAN_NOT_FOUND"`) || !strings.Contains(body, `"domain":"bailiwick"`) {
		t.Errorf("not found: %d %s, want 404 with its reason", code, body)
	}
	if code, body := post("/bailiwick.admin.v1.ResourceService/Apply", strings.Repeat(" ", 10<<20)); code != 429 || !strings.Contains(body, `"reason":"TOO_LARGE"`) {
		t.Errorf("10 MB: %d %.300s, want TOO_LARGE", code, body)
	}
	if code, _ := post(get, `{"kind":`); code != 400 {
		t.Errorf("half a body: %d, want 400", code)
	}
}

func TestListNodes_ShowsWhatTheZoneKnows(t *testing.T) {
	in := seeded(t, time.Second)
	nodes := adminv1connect.NewNodeServiceClient(apitest.Client(apitest.Admin), in.Zones["emea"].Server.URL, faults)
	list, err := nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, n := range list.Nodes {
		got[n.Name] = n.Status
		if n.Name == "eu-west-edge-1" && (n.Catalog.GetSum() != "abcd" || n.CatalogWant.GetIndex() != 9 || n.ServesAloneUntil.GetSeconds() != 2_000_000_000 || n.ConnectedTo != "emea-1") {
			t.Errorf("edge row: %v", n)
		}
	}
	want := map[string]string{"eu-west-edge-1": "connected", "us-east-edge-1": "unknown", "emea-1": "connected", "us-1": "unknown"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := nodes.RemoveNode(t.Context(), &adminv1.RemoveNodeRequest{Name: "eu-west-edge-1"}); err != nil {
		t.Fatal(err)
	}
	for name, reason := range map[string]string{"eu-west-edge-1": "NODE_NOT_FOUND", "emea-1": "CLUSTER_OFF", "us-1": "WRONG_ZONE"} {
		if _, err := nodes.RemoveNode(t.Context(), &adminv1.RemoveNodeRequest{Name: name}); fault.ReasonOf(err) != reason {
			t.Errorf("remove %s: got %v, want %s", name, err, reason)
		}
	}
}

func TestCreateJoinToken_Refuses(t *testing.T) {
	in := seeded(t, time.Second)
	nodes := adminv1connect.NewNodeServiceClient(apitest.Client(apitest.Admin), in.Zones["emea"].Server.URL, faults)
	for region, want := range map[string]string{"eu-west": "", "eu-south": "REGION_UNKNOWN", "eu-north": "REGION_CONTROL_ONLY", "us-east": "WRONG_ZONE"} {
		resp, err := nodes.CreateJoinToken(t.Context(), &adminv1.CreateJoinTokenRequest{Kind: "edge", Region: region, Name: "e2"})
		if want == "" {
			if err != nil || time.Until(resp.ExpiresAt.AsTime()) > 15*time.Minute {
				t.Errorf("%s: got %v, %v", region, resp, err)
			}
		} else if fault.ReasonOf(err) != want {
			t.Errorf("%s: got %v, want %s", region, err, want)
		}
	}
	for _, c := range []struct{ kind, region, name, reason string }{
		{"console", "eu-west", "e2", "FIELD_INVALID"}, {"control", "eu-north", "emea-9", ""},
		{"control", "eu-west", "emea-1", "CLUSTER_OFF"}, // one that exists is replaced: its groups must not need it
	} {
		if _, err := nodes.CreateJoinToken(t.Context(), &adminv1.CreateJoinTokenRequest{Kind: c.kind, Region: c.region, Name: c.name}); fault.ReasonOf(err) != c.reason {
			t.Errorf("%+v: got %v", c, err)
		}
	}
}

func TestBorderStatus_IsWhatTheZoneAdopted(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	border := adminv1connect.NewBorderServiceClient(apitest.Client(apitest.Viewer), z.Server.URL, faults)
	status := func() string {
		resp, err := border.Status(t.Context(), &adminv1.BorderStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, p := range resp.Pairs {
			out = append(out, p.From+">"+p.To)
		}
		return fmt.Sprint(out, resp.AdoptedCatalogIndex)
	}
	if got := status(); got != "[] 0" {
		t.Errorf("before adoption: got %s, want nothing permitted", got)
	}
	z.Store.Put(model.KeyAdopted, model.Encode(model.Adopted{CatalogEpoch: 1, CatalogIndex: 17,
		Regions:  []model.Region{{Name: "eu-west", Zone: "emea"}, {Name: "eu-central", Zone: "emea"}},
		Bases:    []model.LegalBasis{{Name: "gdpr", Kind: "same-law", Status: "active"}},
		Policies: []model.Policy{{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}}}}))
	if got := status(); got != "[eu-central>eu-west eu-west>eu-central] 17" {
		t.Errorf("adopted: got %s", got)
	}
	resp := apply(t, z, "kind: Closure\nname: shut\nspec: {zone: emea, from: eu-west, to: eu-central, reason: drill}")
	if len(resp.Flows) != 1 || resp.Flows[0].Allowed {
		t.Errorf("closure: flows %v, want eu-west>eu-central closed", resp.Flows)
	}
	if got := status(); got != "[eu-central>eu-west] 17" {
		t.Errorf("closed: got %s", got)
	}
}

func TestQueryUsage_CountsAsDesigned(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	cell := time.Now().Truncate(15 * time.Minute)
	report := adminapi.UsageReport{CompleteThrough: cell}
	for outcome, n := range map[string]int64{"success": 100, "client_error": 7, "upstream_error": 5, "aborted": 3, "limited": 11, "refused": 13, "unserved": 2} {
		report.Rows = append(report.Rows, adminapi.UsageRow{Cell: cell, Product: "commerce", API: "orders", Plan: "gold", Outcome: outcome, Requests: n, Units: n})
	}
	z.Usage.Set("acme", report)
	apply(t, z, "kind: Product\nname: commerce\nspec: {apis: [orders], billable_outcomes: [success, client_error]}")
	usage := adminv1connect.NewUsageServiceClient(apitest.Client(apitest.Viewer), z.Server.URL, faults)
	resp, err := usage.QueryUsage(t.Context(), &adminv1.QueryUsageRequest{Customer: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	got := resp.Total
	if got.Requests != 117 || got.Billable != 107 || got.Limited != 11 || got.Errors != 17 || got.Units != 117 {
		t.Errorf("total: got %v, want 117 requests and units, 107 billable, 11 limited, 17 errors", got)
	}
	if !resp.CompleteThrough.AsTime().Equal(cell) {
		t.Errorf("complete_through: got %v, want %v", resp.CompleteThrough.AsTime(), cell)
	}
	if _, err := usage.QueryUsage(t.Context(), &adminv1.QueryUsageRequest{Customer: "nobody"}); fault.ReasonOf(err) != "CUSTOMER_NOT_FOUND" {
		t.Errorf("unknown customer: got %v", err)
	}
	totals, err := usage.QueryTotals(t.Context(), &adminv1.QueryTotalsRequest{AllZones: true})
	if err != nil || len(totals.Zones) != 2 || totals.Zones[0].Total.Billable != 107 {
		t.Errorf("totals: got %v, %v", totals, err)
	}
	if back := adminapi.TotalsFrom(totals.Zones[0]); len(back.Rows) != 7 || len(adminapi.TotalsProto(back).Rows) != 7 {
		t.Errorf("totals between nodes: got %v", back)
	}
}

// What an edge answers from its cache is counted, and billed unless its product gives it away, whatever it said. A client that
// left before there was an answer was given none.
func TestQueryUsage_CacheHitsMayBeFree(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	cell := time.Now().Truncate(15 * time.Minute)
	report := adminapi.UsageReport{CompleteThrough: cell}
	row := func(outcome, served string, n int64) {
		report.Rows = append(report.Rows, adminapi.UsageRow{Cell: cell, Product: "commerce", API: "orders", Plan: "gold", Outcome: outcome, ServedRegion: served, Requests: n})
	}
	for i, outcome := range []string{"success", "client_error", "upstream_error", "aborted"} {
		row(outcome, "eu-west", 1<<(2*i)) // an upstream was asked
		row(outcome, "", 2<<(2*i))        // none was: a hit, but for the aborted
	}
	z.Usage.Set("acme", report)
	usage := adminv1connect.NewUsageServiceClient(apitest.Client(apitest.Viewer), z.Server.URL, faults)
	for _, c := range []struct {
		spec string
		want int64
	}{
		{"{apis: [orders]}", 3},
		{"{apis: [orders], free_cache_hits: true}", 1},
		{"{apis: [orders], billable_outcomes: [success, client_error], free_cache_hits: false}", 3 + 3<<2},
		{"{apis: [orders], billable_outcomes: [success, client_error], free_cache_hits: true}", 1 + 1<<2},
		{"{apis: [orders], billable_outcomes: [success, client_error, upstream_error, aborted], free_cache_hits: true}", 1 + 1<<2 + 1<<4 + 3<<6},
	} {
		apply(t, z, "kind: Product\nname: commerce\nspec: "+c.spec)
		resp, err := usage.QueryUsage(t.Context(), &adminv1.QueryUsageRequest{Customer: "acme"})
		if err != nil {
			t.Fatal(err)
		}
		if resp.Total.Billable != c.want || resp.Total.Requests != 255 {
			t.Errorf("%s: %d of %d billable, want %d of 255", c.spec, resp.Total.Billable, resp.Total.Requests, c.want)
		}
		var rows int64
		for _, r := range resp.Rows {
			if r.Billable {
				rows += r.Requests
			}
		}
		if rows != c.want {
			t.Errorf("%s: rows of %d requests are said to be billable, want %d", c.spec, rows, c.want)
		}
		totals, err := usage.QueryTotals(t.Context(), &adminv1.QueryTotalsRequest{})
		if err != nil || totals.Zones[0].Total.Billable != c.want {
			t.Errorf("%s: totals %v, %v, want %d billable", c.spec, totals, err, c.want)
		}
	}
}

var _ group.Store = (*apitest.Store)(nil)
