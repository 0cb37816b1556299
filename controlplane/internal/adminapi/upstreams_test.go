package adminapi_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// What is said of upstreams is stored, shown, and the same when it is applied again.
func TestApply_KeepsAllThatIsSaidOfUpstreams(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	text := `
kind: API
name: extra
spec:
  zone: emea
  hosts: [x.test]
  policy: gdpr-emea
  routes: [{name: all, path_prefix: /, hedge_after: 50ms, grpc_web: pass, units: {per_messages: 77}, cache: {ttl: 1s, stale_while_revalidate: 2s, stale_if_error: 3s, max_bytes: 4, scope: plan, generation: 5}}]
  upstreams: [{region: eu-west, url: "https://a:1"}, {region: eu-west, url: "https://b:1", drain: true, protocol: h2}]
  health: {path: /up, protocol: http, interval: 2s, timeout: 300ms, failures: 5, good_for: 30s}
  dispatch: {choice: in-order, slow_start: 20s, max_requests: 100, max_waiting: 50, max_wait: 2s, max_ejected_percent: 30, discovery: dns, max_connections: 9}
  upstream_tls: {server_name: a.test, client_certificate: orders}
`
	apply(t, z, text)
	kv, ok, _, err := in.Catalog.Get(t.Context(), model.APIKey("emea", "extra"))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	// Every field of these types was given above: one that conversion forgets is empty here.
	var stored map[string]any
	if err := json.Unmarshal(kv.Value, &stored); err != nil {
		t.Fatal(err)
	}
	for field, n := range map[string]int{"dispatch": 8, "health": 6, "upstream_tls": 2} {
		if m, _ := stored[field].(map[string]any); len(m) != n {
			t.Errorf("stored %s: %v, want %d fields", field, stored[field], n)
		}
	}
	if route, _ := stored["routes"].([]any)[0].(map[string]any); len(route["cache"].(map[string]any)) != 6 {
		t.Errorf("stored of the route: %v", route)
	}
	resp, err := resourcesAt(z, apitest.Admin).Get(t.Context(), &adminv1.GetRequest{Kind: "API", Name: "emea/extra"})
	if err != nil {
		t.Fatal(err)
	}
	shown := resp.Resource.GetApi().String()
	for _, want := range []string{"in-order", "dns", "max_wait:{seconds:2}", "slow_start:{seconds:20}", "max_ejected_percent:30", "max_connections:9", "protocol:\"h2\"", "protocol:\"http\"", "grpc_web:\"pass\"", "per_messages:77", "drain:true", "hedge_after:{nanos:50000000}", "good_for:{seconds:30}", "failures:5", "client_certificate", "generation:5", "scope:\"plan\"", "max_bytes:4"} {
		if !strings.Contains(strings.ReplaceAll(shown, "  ", " "), want) {
			t.Errorf("shown: %s\nwant %s in it", shown, want)
		}
	}
	for _, c := range apply(t, z, text).Changes {
		if c.Action != "unchanged" {
			t.Errorf("applied again: %v", c)
		}
	}
}
