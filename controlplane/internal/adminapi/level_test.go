package adminapi_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/table"
)

// Who must know a field before it is written: of a catalog's document every control node, and every edge of the zone that
// serves by it where the field forbids something; of a key those of its zone.
func TestApply_WaitsForProgramsThatKnowTheField(t *testing.T) {
	const api = "kind: API\nname: leveled\nspec: {zone: emea, hosts: [leveled.emea.example.test], policy: gdpr-emea, %}\n"
	scoped := strings.Replace(api, "%", "routes: [{name: all, path_prefix: /, scope: read}]", 1)
	for _, c := range []struct {
		name, old, doc string
		refused        bool
	}{
		{"a scope and an edge of the zone", "eu-west-edge-1", scoped, true},
		{"a scope and an edge of another zone", "us-east-edge-1", scoped, false},
		{"a scope and a control node of another zone", "us-1", scoped, true},
		{"a hedge and an edge", "eu-west-edge-1", strings.Replace(api, "%", "routes: [{name: all, path_prefix: /, hedge_after: 50ms}]", 1), false},
		{"a hedge and a control node", "emea-1", strings.Replace(api, "%", "routes: [{name: all, path_prefix: /, hedge_after: 50ms}]", 1), true},
		{"what was always there", "emea-1", strings.Replace(api, "%", "routes: [{name: all, path_prefix: /}]", 1), false},
		{"a plan and any edge", "us-east-edge-1", "kind: Plan\nname: leveled\nspec: {products: [commerce], max_concurrent: 5}\n", true},
		{"labels of a customer and a control node of another zone", "us-1", "kind: Customer\nname: leveled\nspec: {zone: emea, labels: [a=b]}\n", false},
		{"labels of a customer and a control node of the zone", "emea-1", "kind: Customer\nname: leveled\nspec: {zone: emea, labels: [a=b]}\n", true},
	} {
		for _, said := range []string{"of level 0", "has not said"} {
			t.Run(c.name+" "+said, func(t *testing.T) {
				in := seeded(t, 100*time.Millisecond)
				if said == "of level 0" {
					in.Catalog.Put(model.PrefixLevel+c.old, model.Encode(model.NodeLevel{Name: c.old}))
				} else {
					_, err := in.Catalog.Txn(t.Context(), group.Txn{RequestID: "forget", Ops: []group.Op{{Key: model.PrefixLevel + c.old, Delete: true}}})
					if err != nil {
						t.Fatal(err)
					}
				}
				_, err := resourcesAt(in.Zones["emea"], apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, c.doc)})
				if got := fault.ReasonOf(err) == "UPGRADE_UNDER_WAY"; got != c.refused || !got && err != nil {
					t.Fatalf("got %v, want refused %v", err, c.refused)
				}
				if c.refused && !strings.Contains(err.Error(), c.old) {
					t.Errorf("%v does not name %s", err, c.old)
				}
			})
		}
	}
}

func TestCreateKey_WaitsForEdgesThatKnowItsBounds(t *testing.T) {
	in := seeded(t, 100*time.Millisecond)
	in.Catalog.Put(model.PrefixLevel+"eu-west-edge-1", model.Encode(model.NodeLevel{Name: "eu-west-edge-1"}))
	keys := keysAt(in.Zones["emea"], apitest.Admin)
	bounded := &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold", AllowFrom: []string{"192.0.2.0/24"}}
	if _, err := keys.CreateKey(t.Context(), bounded); fault.ReasonOf(err) != "UPGRADE_UNDER_WAY" {
		t.Errorf("a key with bounds: %v", err)
	}
	if _, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold"}); err != nil {
		t.Errorf("a key without: %v", err)
	}
	in.Catalog.Put(model.PrefixLevel+"eu-west-edge-1", model.Encode(model.NodeLevel{Name: "eu-west-edge-1", Level: table.Current}))
	if _, err := keys.CreateKey(t.Context(), bounded); err != nil {
		t.Errorf("once the edge is upgraded: %v", err)
	}
}

// An edge that does not know purges would acknowledge the position and give what was purged; a control node that does not
// would send tables without it.
func TestPurgeCache_WaitsForProgramsThatKnowIt(t *testing.T) {
	in := seeded(t, 100*time.Millisecond)
	caches := adminv1connect.NewCacheServiceClient(apitest.Client(apitest.Admin), in.Zones["emea"].Server.URL, faults)
	for _, old := range []string{"eu-west-edge-1", "emea-1"} {
		in.Catalog.Put(model.PrefixLevel+old, model.Encode(model.NodeLevel{Name: old}))
		_, err := caches.PurgeCache(t.Context(), &adminv1.PurgeCacheRequest{Api: "orders", All: true})
		if fault.ReasonOf(err) != "UPGRADE_UNDER_WAY" || !strings.Contains(err.Error(), old) {
			t.Errorf("while %s is of level 0: %v", old, err)
		}
		in.Catalog.Put(model.PrefixLevel+old, model.Encode(model.NodeLevel{Name: old, Level: table.Current}))
	}
	in.Catalog.Put(model.PrefixLevel+"us-east-edge-1", model.Encode(model.NodeLevel{Name: "us-east-edge-1"}))
	if _, err := caches.PurgeCache(t.Context(), &adminv1.PurgeCacheRequest{Api: "orders", All: true}); err != nil {
		t.Errorf("another zone's edge is old: %v", err)
	}
}
