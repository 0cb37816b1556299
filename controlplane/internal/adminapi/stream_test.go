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

// What is said of connections that last is stored, shown, and the same when it is applied again.
func TestApply_KeepsAllThatIsSaidOfConnections(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	text := `
kind: API
name: live
spec:
  zone: emea
  hosts: [x.test]
  routes: [{name: all, path_prefix: /, websocket: {max_message_bytes: 7, idle_timeout: 11s, ping_every: 13s}, units: {per_messages: 17, most: 3}}]
---
kind: API
name: lines
spec:
  zone: emea
  hosts: [y.test]
  tcp: {idle_timeout: 19s}
  upstreams: [{region: eu-west, url: "tls://a:1"}, {region: eu-west, url: "tcp://a:2"}]
`
	apply(t, z, text)
	for name, want := range map[string][]string{
		"live":  {`"max_message_bytes":7`, `"idle_timeout":11000000000`, `"ping_every":13000000000`, `"per_messages":17`},
		"lines": {`"tcp":{"idle_timeout":19000000000}`, "tls://a:1"},
	} {
		kv, ok, _, err := in.Catalog.Get(t.Context(), model.APIKey("emea", name))
		if err != nil || !ok || !json.Valid(kv.Value) {
			t.Fatal(ok, err)
		}
		for _, w := range want {
			if !strings.Contains(string(kv.Value), w) {
				t.Errorf("stored: %s\nwant %s in it", kv.Value, w)
			}
		}
		if _, err := resourcesAt(z, apitest.Admin).Get(t.Context(), &adminv1.GetRequest{Kind: "API", Name: "emea/" + name}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range apply(t, z, text).Changes {
		if c.Action != "unchanged" {
			t.Errorf("applied again: %s %s", c.Action, c.Name)
		}
	}
}
